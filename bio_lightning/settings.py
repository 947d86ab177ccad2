"""Settings of the shared pass: agreed on by all mechanisms, and checked against the Trainer before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelPruning, WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from bio_lightning.errors import NoEffectWarning
from bio_lightning.kernels import Kernel
from bio_lightning.optimizers import ApplyTo
from bio_lightning.synapses import Synapses

if TYPE_CHECKING:
    from bio_lightning.callbacks.base import BioCallback
    from bio_lightning.callbacks.mechanism import Mechanism

__all__ = [
    "Settings",
    "agree",
    "compiles",
    "refuse_scaled_gradients",
    "refuse_shared_weights",
    "refuse_unsupported",
    "warn_of_idle",
]

#: Weights times steps from which on compiling pays: it takes half a minute, and saves some 6 ns per weight and step.
_WORTH = 5_000_000_000
#: Steps of a run that does not say how many it has.
_USUAL_STEPS = 5_000
_SHARDING = ("FSDP", "DeepSpeed", "XLA")


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


def compiles(kernel: Kernel, trainer: pl.Trainer | None, synapses: Sequence[Synapses]) -> bool:
    """Whether the pass is compiled: by default where model and run are so large that it pays."""
    if kernel != "auto":
        return kernel == "compiled"
    steps = _USUAL_STEPS
    if trainer is not None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined] # set in Lightning's setup
            return False
        steps = trainer.max_steps if trainer.max_steps >= 0 else steps
    return steps * sum(tensor.weight.numel() for tensor in synapses) >= _WORTH


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
            raise MisconfigurationException(
                f"{key} belongs to the pass that all mechanisms share, but {values}; set it in one of them"
            )
        if chosen:
            agreed[key] = next(iter(chosen))
    return Settings(**agreed)


def refuse_unsupported(trainer: pl.Trainer, settings: Settings, callbacks: Sequence[BioCallback]) -> None:
    """Refuse what cannot be supported, and warn of what has no effect.

    Raises:
        MisconfigurationException: The strategy hides weights, an averaging callback comes before ours, another one
            replaces parameters, nobody can see when an optimizer steps, or ``apply_to`` cannot work with it.
    """
    warn_of_idle(callbacks)
    names = _names(callbacks)
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
            f"{names}: bio_lightning does not support {strategy}, whose weights it cannot see in training; use"
            " ModelParallelStrategy with fully_shard (FSDP2), DDP, or a single device"
        )
    if any(isinstance(callback, ModelPruning) for callback in listed):
        raise MisconfigurationException(
            f"{names} cannot work with ModelPruning, which replaces parameters of layers in training; prune afterwards"
        )
    for optimizer in trainer.optimizers:
        if not hasattr(optimizer, "_optimizer_step_post_hooks"):
            raise MisconfigurationException(
                f"{names} cannot see when {type(optimizer).__name__} steps; derive it from torch.optim.Optimizer, and"
                " call the constructor of that"
            )
    adaptive = [type(optimizer) for optimizer in trainer.optimizers if not isinstance(optimizer, torch.optim.SGD)]
    if settings.apply_to == "gradient" and torch.optim.LBFGS in adaptive:
        setters = _names([callback for callback in callbacks if getattr(callback, "apply_to", None) == "gradient"])
        raise MisconfigurationException(
            f"{setters}: apply_to='gradient' cannot work with LBFGS; use 'update' or 'auto'"
        )
    if settings.apply_to == "gradient" and adaptive:
        name = adaptive[0].__name__
        rank_zero_warn(
            f"apply_to='gradient': {name} divides a constant factor away; use 'auto' or 'update'",
            category=NoEffectWarning,
        )


def warn_of_idle(callbacks: Sequence[BioCallback]) -> None:
    """Warn of what was set and is not read: the mode in force is another one."""
    for callback in callbacks:
        for line in callback.idle_settings():
            rank_zero_warn(line, category=NoEffectWarning)


def _names(callbacks: Sequence[BioCallback]) -> str:
    return ", ".join(dict.fromkeys(type(callback).__name__ for callback in callbacks))


def refuse_shared_weights(optimizers: Sequence[Optimizer], acting: Mapping[Synapses, Sequence[Mechanism]]) -> None:
    """Two optimizers that move one weight: whose step would its multiplier scale?

    Raises:
        MisconfigurationException: Naming the weight.
    """
    members = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in optimizers]
    for tensor, mechanisms in acting.items():
        if sum(id(tensor.weight) in parameters for parameters in members) > 1:
            raise MisconfigurationException(
                f"{_names(mechanisms)}: {tensor.name} belongs to several optimizers; give it to one, or exclude it"
            )


def refuse_scaled_gradients(mechanisms: Sequence[Mechanism], optimizer: Optimizer) -> None:
    """A fused optimizer unscales inside ``step``: thresholds would judge gradients times the loss scale.

    Raises:
        MisconfigurationException: A mechanism judges gradients.
    """
    unscales_itself = getattr(optimizer, "_step_supports_amp_scaling", False)
    for mechanism in mechanisms if unscales_itself else ():
        if mechanism.judges_gradients:
            raise MisconfigurationException(
                f"{type(mechanism).__name__} judges gradients, but {type(optimizer).__name__} unscales them only inside"
                " its step under a gradient scaler; create the optimizer with fused=False"
            )
