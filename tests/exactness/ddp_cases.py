"""What one group of processes runs, one case after the other, and one process on the same global batches."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as fn
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from tests.cases import CASES as MECHANISM_CASES
from tests.exactness.runs import MODELS, SETS, TOGETHER, Batches, PlainCNN, scaled, train
from tests.models import CLASSES, MLP, TwoOptimizers, ZooModel, make_model

GLOBAL_BATCH = 12
HUGE = 2.0  # inputs from here on overflow


class Experts(ZooModel):
    """A sample goes to one of two experts. An expert without samples does not run; batches are sorted by expert."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.first, self.second = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(2))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        chosen = x[:, 0] > 0
        parts = [expert(x[here]) for expert, here in ((self.first, chosen), (self.second, ~chosen)) if here.any()]
        return self.head(torch.cat(parts))

    def batches(self, count: int, size: int = GLOBAL_BATCH, seed: int = 1) -> Batches:
        return [(x[x[:, 0].argsort(descending=True)], y) for x, y in super().batches(count, size, seed)]


class ChannelsLast(PlainCNN):
    """Weights and gradients do not lie in the order of their dimensions."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        for layer in self.net:
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                layer.to(memory_format=torch.channels_last)


class Overflowing(MLP):
    """The loss of a few samples is infinite: with a scaler their steps are skipped."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x, y = batch
            return (fn.cross_entropy(self(x), y, reduction="none") * torch.where(x[:, 0] > HUGE, torch.inf, 1.0)).mean()


@dataclass(frozen=True)
class Case:
    """One run.

    Args:
        label: Which mechanisms.
        optimizer: Which optimizer.
        model: Which model.
        steps: Number of batches.
        double: Whether in float64, where the comparison with one process is close.
        strategy: Arguments of the strategy.
        trainer: Makes arguments of the Trainer.
    """

    label: str
    optimizer: str = "sgd"
    model: type[ZooModel] = MLP
    steps: int = 20
    double: bool = True
    strategy: Mapping[str, Any] = field(default_factory=dict)
    trainer: Callable[[], dict[str, Any]] = dict

    def run(self, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """Train on this rank's share of every batch; only rank 0 has the initial weights of one process."""
        model = make_model(self.model, self.optimizer, seed=rank, double=self.double)
        shares = [tuple(t.chunk(world)[rank] for t in batch) for batch in model.batches(self.steps, GLOBAL_BATCH)]
        arguments = self.trainer()
        if world > 1:
            impatient = DDPStrategy(timeout=datetime.timedelta(seconds=60), **self.strategy)
            arguments |= {"strategy": impatient, "devices": world}
        return train(model, SETS[self.label](), shares, **arguments)


def _with_scaler() -> dict[str, Any]:
    return {"plugins": scaled()}


def _accumulating() -> dict[str, Any]:
    return {"accumulate_grad_batches": 3}


_VIEWS, _STATIC, _UNUSED = (
    {key: True} for key in ("gradient_as_bucket_view", "static_graph", "find_unused_parameters")
)

_BOTH = ("everything", "by_activity")

CASES: dict[str, Case] = {
    **{f"alone-{label}": Case(label, steps=12) for label in SETS if label not in TOGETHER},
    **{f"{label}-long": Case(label, "momentum", steps=200) for label in _BOTH},
    **{f"{label}-long-float32": Case(label, "adam", steps=200, double=False) for label in _BOTH},
    **{f"{label}-adam": Case(label, "adam") for label in TOGETHER},
    **{f"everything-{name}": Case("everything", "adam", model, steps=12) for name, model in MODELS.items()},
    **{f"by_activity-{name}": Case("by_activity", "adam", MODELS[name], steps=12)
       for name in ("PlainCNN", "PlainTransformer")},
    **{f"{label}-views": Case(label, "momentum", ChannelsLast, steps=12, strategy=_VIEWS) for label in _BOTH},
    # torch itself cannot accumulate with a static graph
    "everything-static": Case("everything", "adam", strategy=_STATIC),
    "by_activity-static-views": Case("by_activity", strategy={**_STATIC, **_VIEWS}),
    **{f"{label}-views-accumulating": Case(label, "adam", strategy=_VIEWS, trainer=_accumulating) for label in _BOTH},
    **{f"{label}-experts": Case(label, "adam", Experts, strategy=_UNUSED) for label in _BOTH},
    **{f"{label}-overflowing": Case(label, "adam", Overflowing, trainer=_with_scaler) for label in _BOTH},
    **{f"{label}-two-optimizers": Case(label, "adam", TwoOptimizers) for label in _BOTH},
}  # fmt: skip


def cases_of(world: int) -> list[str]:
    """All cases in two processes; in more, each mechanism alone in its first form only, which saves time."""
    first = {f"alone-{name}-{next(iter(case.active))}" for name, case in MECHANISM_CASES.items()}
    return [name for name in CASES if world == 2 or not name.startswith("alone-") or name in first]


def unrelated(rank: int, world: int) -> dict[str, Tensor]:
    """A run of its own, on one rank's share of the data."""
    model = make_model(MLP, double=True)
    shares = [tuple(t.chunk(world)[rank] for t in batch) for batch in model.batches(12, GLOBAL_BATCH)]
    return train(model, SETS["by_activity"](), shares)


def run_all(rank: int, world: int, port: int, folder: str) -> None:
    """All cases in one process of a group."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(world), NODE_RANK="0", LOCAL_RANK=str(rank)
    )
    torch.set_num_threads(1)
    states = {name: CASES[name].run(rank, world) for name in cases_of(world)}
    torch.save({**states, "unrelated": unrelated(rank, world)}, f"{folder}/{rank}.pt")
