"""Settings of the shared pass: agreed on by all mechanisms, and checked against the Trainer before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from bio_lightning.errors import NoEffectWarning
from bio_lightning.kernels import Kernel
from bio_lightning.optimizers import ApplyTo
from bio_lightning.synapses import Synapses

if TYPE_CHECKING:
    from bio_lightning.callbacks.base import BioCallback
    from bio_lightning.callbacks.mechanism import Mechanism

__all__ = ["Settings", "agree", "compiles", "refuse_scaled_gradients", "refuse_shared_weights", "refuse_unsupported"]

#: What is worth compiling for.
_MANY_WEIGHTS, _FEW_STEPS = 4_000_000, 500
_SHARDING = ("FSDP", "ModelParallel", "DeepSpeed", "XLA")


class Settings(NamedTuple):
    """What belongs to the pass rather than to one mechanism."""

    apply_to: ApplyTo = "auto"
    kernel: Kernel = "auto"
    state_dtype: str = "float32"
    forward_order: tuple[str, ...] | None = None

    @property
    def stored_as(self) -> torch.dtype:
        """Dtype of stored multipliers."""
        return torch.bfloat16 if self.state_dtype == "bfloat16" else torch.float32


def compiles(kernel: Kernel, trainer: pl.Trainer, synapses: Sequence[Synapses]) -> bool:
    """Whether the pass is compiled: by default where the model is large and the run not known to be short.

    Compiling takes as long as some hundred eager passes over ten million weights.
    """
    if kernel != "auto":
        return kernel == "compiled"
    steps = trainer.max_steps
    short = bool(trainer.fast_dev_run) or 0 <= steps < _FEW_STEPS  # type: ignore[attr-defined] # set in Lightning's setup
    return not short and sum(tensor.weight.numel() for tensor in synapses) >= _MANY_WEIGHTS


def agree(mechanisms: Sequence[Mechanism]) -> Settings:
    """The settings of a group of mechanisms; what nobody sets takes its default.

    Raises:
        MisconfigurationException: Two mechanisms set different values.
    """
    agreed: dict[str, Any] = {}
    for key in Settings._fields:
        chosen: dict[Any, str] = {}
        for mechanism in mechanisms:
            value = getattr(mechanism, key, None)
            if value is not None:
                chosen.setdefault(value, type(mechanism).__name__)
        if len(chosen) > 1:
            values = " and ".join(f"{name} sets {value!r}" for value, name in chosen.items())
            raise MisconfigurationException(f"{key} belongs to the pass that all mechanisms share, but {values}")
        if chosen:
            agreed[key] = next(iter(chosen))
    return Settings(**agreed)


def refuse_unsupported(trainer: pl.Trainer, settings: Settings, callbacks: Sequence[BioCallback]) -> None:
    """Refuse what cannot be supported, and warn of what has no effect.

    Raises:
        MisconfigurationException: The strategy shards weights, an averaging callback comes before ours, or
            ``apply_to`` cannot work with the optimizer.
    """
    listed: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined] # set by Lightning's connector
    last = max(listed.index(callback) for callback in callbacks)
    if any(isinstance(callback, WeightAveraging) for callback in listed[:last]):
        raise MisconfigurationException(
            f"{type(listed[last]).__name__} must come before WeightAveraging in the list of callbacks: the average has"
            " to see weights as the step leaves them"
        )
    strategy = type(trainer.strategy).__name__
    if any(word in strategy for word in _SHARDING):
        raise MisconfigurationException(
            f"bio_lightning does not support {strategy} yet, which shards weights; use a single device or DDP"
        )
    adaptive = [type(optimizer) for optimizer in trainer.optimizers if not isinstance(optimizer, torch.optim.SGD)]
    if settings.apply_to == "gradient" and torch.optim.LBFGS in adaptive:
        raise MisconfigurationException("apply_to='gradient' cannot work with LBFGS; use 'update' or 'auto'")
    if settings.apply_to == "gradient" and adaptive:
        name = adaptive[0].__name__
        rank_zero_warn(
            f"apply_to='gradient': {name} divides a constant factor away; use 'auto' or 'update'",
            category=NoEffectWarning,
        )


def refuse_shared_weights(optimizers: Sequence[Optimizer], synapses: Sequence[Synapses]) -> None:
    """Two optimizers that move one weight: whose step would its multiplier scale?

    Raises:
        MisconfigurationException: Naming the weight.
    """
    members = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in optimizers]
    for tensor in synapses:
        if sum(id(tensor.weight) in parameters for parameters in members) > 1:
            raise MisconfigurationException(
                f"{tensor.name} belongs to several optimizers; give it to one, or exclude it from the mechanisms"
            )


def refuse_scaled_gradients(mechanisms: Sequence[Mechanism], optimizer: Optimizer) -> None:
    """A fused optimizer unscales inside ``step``: thresholds would judge gradients times the loss scale.

    Raises:
        MisconfigurationException: A mechanism judges gradients.
    """
    for mechanism in mechanisms:
        if mechanism.judges_gradients:
            raise MisconfigurationException(
                f"{type(mechanism).__name__} judges gradients, but {type(optimizer).__name__} unscales them only inside"
                " its step under a gradient scaler; create the optimizer with fused=False"
            )
