"""Runs whose whole state is compared: weights, state of the mechanisms, multipliers, moments of the optimizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bio_lightning import multipliers
from bio_lightning.callbacks import BioCallback
from bio_lightning.functional._shards import whole
from tests.cases import ACTIVE, MECHANISMS, active, all_on
from tests.models import CNN, MLP, Recurrent, Tied, Transformer, ZooModel, make_trainer, weights_of

Batches = list[tuple[Tensor, Tensor]]


def by_activity() -> list[BioCallback]:
    """All mechanisms, driven by activity where they can be."""
    return [
        MECHANISMS["fuzzy_learning_rates"](distribution="activity", nu=0.4, update_every=2),
        MECHANISMS["volume_dependent_lr"](),
        MECHANISMS["synaptic_scaling"](rule="tetzlaff", target=0.6, rate=5.0),
        MECHANISMS["crystallization"](criterion="use", use_thresh=1.1, recovery=0.1),
        MECHANISMS["weight_rejuvenation"](select="activity", dormant_fraction=0.6, every_n_steps=3),
        MECHANISMS["dales_principle"](),
        MECHANISMS["weight_splitting"](gamma=2),
    ]


def scheduled() -> list[BioCallback]:
    """All mechanisms that have a schedule, each with another one."""
    schedules = ((0, 5, 2), (1, None, 3), (2, 9, 1), (0, None, 2), (1, 8, 2), (3, None, 2))
    return [
        type(callback)(**callback.arguments() | {"start_step": start, "end_step": end, "every_n_steps": every})
        for callback, (start, end, every) in zip(all_on()[:6], schedules, strict=True)
    ]


#: Settings that stay bounded over 200 steps.
_MILD = {"synaptic_scaling-tetzlaff": {"target": 0.6, "rate": 5.0}}


def _alone(name: str, label: str) -> Callable[[], list[BioCallback]]:
    return lambda: [active(name, label, **_MILD.get(f"{name}-{label}", {}))]


#: What the sweeps run with: three ways to have all mechanisms on, and each alone in each of its forms.
TOGETHER: dict[str, Callable[[], list[BioCallback]]] = {
    "everything": all_on,
    "by_activity": by_activity,
    "scheduled": scheduled,
}
SETS = {**TOGETHER, **{f"{name}-{label}": _alone(name, label) for name, label in ACTIVE}}


class PlainCNN(CNN):
    """Without batch statistics and dropout, which are functions of the batch and of torch's random state."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        for place, layer in enumerate(self.net):
            if isinstance(layer, (nn.BatchNorm2d, nn.Dropout)):
                self.net[place] = nn.Identity()


class PlainTransformer(Transformer):
    """Without dropout."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)


#: Models that see a batch as they see its parts.
MODELS: dict[str, type[ZooModel]] = {
    model.__name__: model for model in (MLP, PlainCNN, PlainTransformer, Recurrent, Tied)
}


def scaled() -> MixedPrecision:
    """16-mixed on the CPU, with a scale that is a power of two and so changes no bit of a mantissa."""
    return MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))


def train(
    model: ZooModel, callbacks: Sequence[pl.Callback], batches: Batches, validation: Batches | None = None, **arguments
) -> dict[str, Tensor]:
    """Train on batches, one epoch unless told otherwise; the whole state afterwards."""
    trainer = make_trainer(list(callbacks), **{"max_epochs": 1, "use_distributed_sampler": False, **arguments})
    validating = None if validation is None else DataLoader(validation, batch_size=None)
    trainer.fit(model, DataLoader(batches, batch_size=None), validating)
    return state_of(model, callbacks, trainer.optimizers)


def state_of(
    model: ZooModel, callbacks: Sequence[pl.Callback], optimizers: Sequence[torch.optim.Optimizer] = ()
) -> dict[str, Tensor]:
    """Everything that a run has changed, flat, by a name that says where it is from; where in shards, put together."""
    state = {f"weight {name}": tensor for name, tensor in weights_of(model).items()}
    for number, optimizer in enumerate(optimizers):
        for place, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    state[f"optimizer {number} {place} {key}"] = value.detach().clone()
    bio = [callback for callback in callbacks if isinstance(callback, BioCallback)]
    if bio:
        session = bio[0].session
        state["steps"] = torch.tensor(session.steps)
        state |= {f"multiplier {name}": tensor for name, tensor in multipliers(model).items()}
        for name, tensors in session.store.items():
            state |= {f"{key} {name}": tensor.clone() for key, tensor in tensors.items()}
    return {name: whole(tensor) for name, tensor in state.items()}


def unequal(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 0.0) -> list[str]:
    """What differs: floating point numbers by more than a tolerance, whole numbers and signs at all."""
    found = sorted(first.keys() ^ second.keys())
    for name in first.keys() & second.keys():
        one, other = first[name], second[name]
        within = tolerance if one.is_floating_point() and not name.startswith("signs") else 0.0
        if one.shape != other.shape or not torch.allclose(one.double(), other.double(), rtol=within, atol=within):
            found.append(name)
    return found


def moved(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether every weight tensor that both have is another one."""
    shared = [name for name in first if name.startswith("weight ") and name in second]
    return bool(shared) and all(not torch.allclose(first[n], second[n], atol=1e-6) for n in shared)
