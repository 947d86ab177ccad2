"""Runs that break off, in this process or one of their own, and go on from the last checkpoint they wrote."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from bio_lightning import dale_signs, multipliers
from bio_lightning.callbacks import BioCallback, Mechanism
from bio_lightning.callbacks.mechanism import ScheduledMechanism
from tests.cases import ACTIVE, active, all_on
from tests.models import ZooModel, make_model, make_trainer, weights_of

#: Names of the cases: no callback, every mechanism alone in each of its active settings, all at once, and all on
#: schedules of their own.
CASES = ("none", *(f"{name}-{label}" for name, label in ACTIVE), "all", "scheduled")
EPOCHS, BATCHES = 2, 7
#: Exit status of a process whose run nothing broke off.
RAN_TO_ITS_END = 3


class BrokeOffError(Exception):
    """What a run raises that breaks off."""


class Shuffled:
    """A loader that shuffles in every epoch, and can go on in the middle of one."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.epoch, self.position = batches, 0, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        if self.position == len(self):  # Lightning knows the length, and does not ask for one more
            self.epoch, self.position = self.epoch + 1, 0
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.epoch)).tolist()
        while self.position < len(self):
            self.position += 1
            yield self.batches[order[self.position - 1]]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class Break(NamedTuple):
    """When a run breaks off, and how.

    Args:
        hook: Hook of a callback.
        call: Which of its calls, counted from 1.
        how: ``raise``, or a signal.
        first: Whether the callback comes before all others, else after them.
    """

    hook: str
    call: int
    how: str = "raise"
    first: bool = True


class BreaksOff(pl.Callback):
    """Breaks off a run."""

    def __init__(self, when: Break) -> None:
        self.when, self.calls = when, 0
        setattr(self, when.hook, self.count)

    def count(self, *_: Any, **__: Any) -> None:
        self.calls += 1
        if self.calls == self.when.call:
            if self.when.how == "raise":
                raise BrokeOffError
            os.kill(os.getpid(), getattr(signal, self.when.how))


def callbacks_of(case: str) -> list[BioCallback]:
    """Fresh callbacks of a case."""
    if case == "scheduled":
        scheduled = [callback for callback in all_on() if isinstance(callback, ScheduledMechanism)]
        return [
            type(callback)(**callback.arguments() | {"start_step": 1 + place % 3, "every_n_steps": 3, "end_step": 11})
            for place, callback in enumerate(scheduled)
        ]
    if case in ("none", "all"):
        return all_on() if case == "all" else []
    name, _, label = case.partition("-")
    return [active(name, label)]


def train(
    case: str | list[BioCallback],
    optimizer: str = "sgd",
    *,
    model: str | type[ZooModel] | ZooModel = "MLP",
    folder: Path | None = None,
    when: Break | None = None,
    others: tuple[pl.Callback, ...] = (),
    ckpt_path: str | None = None,
    every: int = 2,
    validation: Any = None,
    **arguments: Any,
) -> tuple[ZooModel, pl.Trainer]:
    """Train, with a checkpoint every few steps where there is a folder for them."""
    callbacks: list[pl.Callback] = [*(callbacks_of(case) if isinstance(case, str) else case), *others]
    if when is not None:
        callbacks.insert(0 if when.first else len(callbacks), BreaksOff(when))
    if folder is not None:
        callbacks.append(ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1))
    made = model if isinstance(model, ZooModel) else make_model(model, optimizer, seed=99 if ckpt_path else 0)
    trainer = make_trainer(callbacks, **{"max_epochs": EPOCHS, "enable_checkpointing": folder is not None, **arguments})
    # weights_only: that a checkpoint holds nothing but tensors and primitives
    trainer.fit(made, Shuffled(made.batches(BATCHES)), validation, ckpt_path=ckpt_path, weights_only=True)
    return made, trainer


def break_off(case: str, optimizer: str, when: Break, folder: Path, **more: Any) -> str:
    """Train until the run breaks off, in a process of its own where a signal ends it; the last checkpoint."""
    if when.how == "raise":
        try:
            train(case, optimizer, folder=folder, when=when, **more)
        except BrokeOffError:
            return last_checkpoint(folder)
        raise AssertionError("the run did not break off")
    process = start(case, optimizer, folder=folder, when=when, **more)
    process.join(60)
    # at SIGTERM Lightning ends the process itself, after the batch
    assert process.exitcode == (-signal.SIGKILL if when.how == "SIGKILL" else 0)
    return last_checkpoint(folder)


def start(*args: Any, **kwargs: Any) -> multiprocessing.process.BaseProcess:
    """A training in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports take seconds: once for all processes
    process = context.Process(target=_quietly, args=args, kwargs=kwargs)
    process.start()
    return process


def _quietly(*args: Any, **kwargs: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    train(*args, **kwargs)
    os._exit(RAN_TO_ITS_END)


def last_checkpoint(folder: Path) -> str:
    """The latest checkpoint of a run."""
    return str(max(folder.glob("*.ckpt"), key=lambda path: int(path.stem.removeprefix("step="))))


def everything(model: ZooModel, trainer: pl.Trainer) -> dict[str, Tensor]:
    """All that a run has come to: weights, state of mechanisms and optimizers, multipliers, signs, counters."""
    found = {f"weight {name}": weight for name, weight in weights_of(model).items()}
    mechanisms = [callback for callback in trainer.callbacks if isinstance(callback, Mechanism)]
    for mechanism in mechanisms:
        state = mechanism.state_dict()
        found[f"{mechanism.name} steps"] = torch.tensor(state["steps"])
        for name, tensors in state["weights"].items():
            found.update({f"{mechanism.name} {name} {key}": tensor for key, tensor in tensors.items()})
    if mechanisms:
        found.update({f"multiplier {name}": multiplier for name, multiplier in multipliers(model).items()})
        found.update({f"sign {name}": signs for name, signs in dale_signs(model).items()})
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in trainer.optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                found[f"{key} of {names[parameter]}"] = torch.as_tensor(value if value is not None else 0)
    return {key: tensor.detach().clone() for key, tensor in found.items()}
