"""What one group of processes runs, one case after the other, and one process on the same global batches."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as fn
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from tests.cases import ACTIVE
from tests.cases import CASES as MECHANISM_CASES
from tests.exactness import resuming
from tests.exactness.resuming import Break, break_off, everything, last_checkpoint
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
#: Each mechanism in its first form.
FIRST = [f"{name}-{next(iter(case.active))}" for name, case in MECHANISM_CASES.items()]

CASES: dict[str, Case] = {
    **{f"alone-{label}": Case(label, steps=200 if label in FIRST else 12) for label in SETS if label not in TOGETHER},
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
    first = {f"alone-{label}" for label in FIRST}
    return [name for name in CASES if world == 2 or not name.startswith("alone-") or name in first]


def unrelated(rank: int, world: int) -> dict[str, Tensor]:
    """A run of its own, on one rank's share of the data."""
    model = make_model(MLP, double=True)
    shares = [tuple(t.chunk(world)[rank] for t in batch) for batch in model.batches(12, GLOBAL_BATCH)]
    return train(model, SETS["by_activity"](), shares)


def run_all(rank: int, world: int) -> dict[str, dict[str, Tensor]]:
    """All cases in one process of a group."""
    states = {name: CASES[name].run(rank, world) for name in cases_of(world)}
    return {**states, "unrelated": unrelated(rank, world)}


# ---- runs that break off ---------------------------------------------------------------------------------------------


def of_rank(rank: int = 0, world: int = 1) -> type[ZooModel]:
    """A model that sees its rank's share of every batch."""

    class OfRank(MLP):
        def batches(self, count: int, size: int = GLOBAL_BATCH, seed: int = 1) -> Batches:
            return [tuple(t.chunk(world)[rank] for t in batch) for batch in super().batches(count, size, seed)]

    return OfRank


#: Which mechanisms, which optimizer, and when every process breaks off.
BREAKS: dict[str, tuple[str, str, Break]] = {
    "none": ("none", "adam", Break("on_train_batch_start", 6)),
    "all-sgd": ("all", "sgd", Break("on_after_backward", 7)),
    "all-momentum": ("all", "momentum", Break("on_train_batch_end", 8, first=False)),
    "all-adam": ("all", "adam", Break("on_save_checkpoint", 5)),
    "by_activity-adam": ("by_activity", "adam", Break("on_before_optimizer_step", 9)),
    "by_activity-momentum": ("by_activity", "momentum", Break("on_train_batch_end", 5)),
    "scheduled-adam": ("scheduled", "adam", Break("on_before_zero_grad", 11, first=False)),
    **{
        f"{name}-{label}-{optimizer}": (f"{name}-{label}", optimizer, Break("on_train_batch_end", 4 + place % 9))
        for place, (name, label) in enumerate(ACTIVE)
        for optimizer in ("sgd", "momentum", "adam")
    },
}


def arguments_of(case: str, optimizer: str, rank: int, world: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What to train with in a process of a group."""
    strategy = DDPStrategy(timeout=datetime.timedelta(seconds=60))
    more = {"model": of_rank(rank, world), "strategy": strategy, "devices": world, "use_distributed_sampler": False}
    return (SETS[case]() if case in SETS else case, optimizer), more


def break_off_all(rank: int, world: int, folder: str) -> dict[str, dict[str, Tensor]]:
    """Train without a break, break off, and go on."""
    states = {}
    for name, (case, optimizer, when) in BREAKS.items():
        arguments, more = arguments_of(case, optimizer, rank, world)
        states[f"{name} uninterrupted"] = everything(*resuming.train(*arguments, **more))
        arguments, more = arguments_of(case, optimizer, rank, world)
        place = Path(folder) / name
        path = break_off(*arguments, when, place, **more)
        states[f"{name} broken off"] = {"step": torch.tensor(torch.load(path, weights_only=True)["global_step"])}
        arguments, more = arguments_of(case, optimizer, rank, world)
        states[f"{name} resumed"] = everything(
            *resuming.train(*arguments, ckpt_path=path, folder=place / "resumed", **more)
        )
    return states


def be_killed(rank: int, world: int, folder: str) -> dict[str, Any]:
    """Train until the last process is killed, which the others see at their next message."""
    arguments, more = arguments_of("all", "adam", rank, world)
    when = Break("on_train_batch_start", 9, "SIGKILL") if rank == world - 1 else None
    resuming.train(*arguments, when=when, folder=Path(folder), **more)
    return {}


def be_terminated(rank: int, world: int, folder: str) -> dict[str, Any]:
    """Train until all processes are told to end, as a cluster does it; Lightning ends them after the batch."""
    arguments, more = arguments_of("all", "adam", rank, world)
    try:
        resuming.train(*arguments, when=Break("on_after_backward", 9, "SIGTERM"), folder=Path(folder), **more)
    except SystemExit:
        return {"ended": torch.tensor(True)}
    return {"ended": torch.tensor(False)}


def go_on(rank: int, world: int, folder: str) -> dict[str, dict[str, Tensor]]:
    """Go on from the last checkpoint of a group that is gone."""
    arguments, more = arguments_of("all", "adam", rank, world)
    path = last_checkpoint(Path(folder))
    return {"resumed": everything(*resuming.train(*arguments, ckpt_path=path, folder=Path(folder) / "again", **more))}


# ---- one step in float32 ---------------------------------------------------------------------------------------------


def step_by_step(rank: int, world: int, folder: str) -> dict[str, dict[str, Tensor]]:
    """The state after every step, and a checkpoint there."""
    for label in _BOTH:
        arguments, more = arguments_of(label, "adam", rank, world)
        resuming.train(*arguments, folder=Path(folder) / label, every=1, **more)
    return {}


def after_step(label: str, step: int, path: Path | None, folder: Path) -> str:
    """Checkpoint of one process that has made a step from a checkpoint, on the same global batches."""
    arguments, more = SETS[label](), {"model": of_rank(), "every": 1, "max_steps": step, "folder": folder}
    resuming.train(arguments, "adam", ckpt_path=path, **more)
    return last_checkpoint(folder)
