"""How the benchmark runs Lightning: whole training steps, and single hooks in a running fit."""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from measure import timed
from networks import Batch, Workload
from variants import convert

__all__ = [
    "Live",
    "Spent",
    "event_step",
    "fill_gradients",
    "parameters_after",
    "step_time",
    "watched_time",
    "within_fit",
]

#: Optimizers that leave the weights where they are, so that every round measures the same.
_STILL = {"sgd": lambda p: torch.optim.SGD(p, lr=0.0), "adam": lambda p: torch.optim.Adam(p, lr=0.0)}
_MOVING = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-4),
}
#: Steps at the start of a fit that are not timed.
_WARM_UP = 3

Result = TypeVar("Result")


# ---- whole training steps -------------------------------------------------------------------------------------------


class Task(pl.LightningModule):
    """An ordinary LightningModule for class labels.

    Args:
        network: What is trained; gives logits in the last dimension.
        optimizer: Makes the optimizer.
    """

    def __init__(self, network: nn.Module, optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.network = network
        self._optimizer = optimizer

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.network(inputs)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Loss of a batch."""
        return cross_entropy(self(batch[0]).flatten(0, -2), batch[1].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The one asked for."""
        return self._optimizer(self.parameters())


class _StepClock(pl.Callback):
    """Takes the time at the start of every batch: from start to start is a whole step, with all that Lightning does."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Note the time; a GPU is only waited for at the first and the last step, as in ordinary training."""
        first, last = len(self.starts) == _WARM_UP, len(self.starts) + 1 == trainer.limit_train_batches
        if pl_module.device.type == "cuda" and (first or last):
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())


def step_time(
    workload: Workload,
    callbacks: Sequence[pl.Callback],
    steps: int,
    *,
    event_share: float = 0.0,
    accelerator: str = "cpu",
    predecessor: bool = False,
) -> float:
    """Seconds per step in a fresh fit: the median step (on a GPU the mean), plus a share of the event's extra time.

    Args:
        workload: What is trained.
        callbacks: None for a plain run.
        steps: Steps to time.
        event_share: Events per step. Where it is not 0, an event has to fall on step :func:`event_step`.
        accelerator: Lightning's name of the device.
        predecessor: Convert the network.
    """
    torch.manual_seed(0)
    network = workload.build()
    module = Task(convert(network) if predecessor else network, _MOVING[workload.optimizer])
    clock = _StepClock()
    count = _WARM_UP + steps + 1
    trainer = _trainer([*callbacks, clock], count, accelerator)
    trainer.fit(module, _repeated(workload.batch, count))
    durations = [after - before for before, after in zip(clock.starts, clock.starts[1:], strict=False)][_WARM_UP:]
    _free(module)
    if accelerator == "gpu":  # single steps mean little where the host runs ahead; events are rare enough to leave out
        return statistics.mean(durations)
    ordinary = statistics.median(durations[:-1])
    return ordinary + event_share * max(0.0, durations[-1] - ordinary)


class _EveryOther(pl.Callback):
    """Takes a callback out of its Trainer for every other stretch of steps, and notes when stretches begin.

    Args:
        callback: The Trainer has it behind others, one of which leads.
        stretch: Steps.
    """

    def __init__(self, callback: pl.Callback, stretch: int) -> None:
        self._callback, self._stretch = callback, stretch
        self.starts: list[float] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a stretch a few steps behind a log, so that each has as many of them."""
        if (batch_idx - _WARM_UP) % self._stretch == 0:
            self.starts.append(time.perf_counter())
            others = [each for each in trainer.callbacks if each is not self._callback]  # type: ignore[attr-defined]
            trainer.callbacks = [*others, *([self._callback] if len(self.starts) % 2 == 0 else [])]  # type: ignore[attr-defined]


def watched_time(
    workload: Workload, callbacks: Sequence[pl.Callback], watching: pl.Callback, *, stretch: int, pairs: int, bare: bool
) -> tuple[list[float], list[float]]:
    """Seconds per step in stretches of one run that a callback is out of, and in those between them; on the CPU.

    Stretches lie so close together that what slows a machine down for seconds hits both. The run logs to TensorBoard as
    often as Lightning's defaults have it. Hooks that the callback put on model and optimizers stay there.

    Args:
        workload: What is trained.
        callbacks: Those that are always there.
        watching: What is there in every other stretch.
        stretch: Steps.
        pairs: How many stretches with it; each is paired with the one before.
        bare: Give one batch over and over again, and take from the Trainer what does not belong to a step; else samples
            are drawn and collated one by one, and the Trainer shows its progress and writes a checkpoint at the end, as
            its defaults have it.
    """
    torch.manual_seed(0)
    module = Task(workload.build(), _MOVING[workload.optimizer])
    switch = _EveryOther(watching, stretch)
    count = _WARM_UP + 2 * (pairs + 1) * stretch + 1  # the first pair does not count
    batches = _repeated(workload.batch, count) if bare else _collated(workload.batch, count)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        trainer = _trainer([*callbacks, switch, watching], count, "cpu", TensorBoardLogger(folder), bare=bare)
        trainer.fit(module, batches)
    _free(module)
    seconds = [(after - before) / stretch for before, after in itertools.pairwise(switch.starts)]
    return seconds[2::2], seconds[3::2]


def event_step(steps: int) -> int:
    """The optimizer step, counted from 1, whose event :func:`step_time` looks at: the last timed one."""
    return _WARM_UP + steps


def parameters_after(workload: Workload, callbacks: Sequence[pl.Callback], steps: int) -> list[Tensor]:
    """All parameters after a few steps from the same seed."""
    torch.manual_seed(0)
    module = Task(workload.build(), _MOVING[workload.optimizer])
    _trainer(callbacks, steps, "cpu").fit(module, _repeated(workload.batch, steps))
    return [parameter.detach() for parameter in module.parameters()]


def _trainer(
    callbacks: Sequence[pl.Callback],
    steps: int,
    accelerator: str,
    logger: Logger | Literal[False] = False,
    *,
    bare: bool = True,
) -> pl.Trainer:
    return pl.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=1,
        limit_train_batches=steps,
        callbacks=list(callbacks),
        logger=logger,
        enable_checkpointing=not bare,
        enable_model_summary=not bare,
        enable_progress_bar=not bare,
        precision="bf16-mixed" if accelerator == "gpu" else "32-true",
    )


def _repeated(batch: Batch, count: int) -> DataLoader[Batch]:
    return DataLoader([batch] * count, batch_size=None)  # type: ignore[arg-type] # a list is a map-style dataset, too


def _collated(batch: Batch, count: int) -> DataLoader[tuple[Tensor, ...]]:
    samples = TensorDataset(*batch)
    sampler = RandomSampler(samples, replacement=True, num_samples=count * len(samples))
    return DataLoader(samples, batch_size=len(samples), sampler=sampler)


def _free(module: pl.LightningModule) -> None:
    """Trainer, module and callbacks refer to each other; the next variant needs their memory."""
    module.zero_grad(set_to_none=True)
    module.trainer = None
    gc.collect()


# ---- single hooks in a running fit ----------------------------------------------------------------------------------


class Spent(NamedTuple):
    """Seconds of one step: in the hooks before the optimizer, in the optimizer, in the hooks at the batch's end."""

    gradient_pass: float
    optimizer: float
    batch_end: float


class Live:
    """A running fit whose steps are taken by hand, through nothing but Lightning's own callback hooks.

    In manual optimization Lightning leaves the hooks around the optimizer to the user's step, so a step may call them
    as often as it likes: each :meth:`step` is complete for the callbacks.

    Args:
        module: The module that is fitted.
        callbacks: Those whose hooks count.
        batch: For the steps with real gradients.
    """

    def __init__(self, module: Task, callbacks: Sequence[pl.Callback], batch: Batch) -> None:
        self.module, self.callbacks, self.batch = module, callbacks, batch
        self.network = module.network
        optimizer = module.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)  # noqa: S101 - one was configured
        self.optimizer = optimizer

    def step(self, *, backward: bool = False) -> Spent:
        """One step, of which :meth:`start` tells the arguments."""
        self.start(backward=backward)
        return Spent(timed(self.gradient_pass), timed(self.optimizer.step), timed(self.batch_end))

    def start(self, *, backward: bool = False) -> None:
        """A step up to its gradients.

        Args:
            backward: Run the network and take its gradients, which also counts its neurons' firing; else made-up ones.
        """
        self._call("on_train_batch_start", None, 0)
        if backward:
            self.optimizer.zero_grad()
            loss = Task.training_step(self.module, self.batch, 0)
            assert isinstance(loss, Tensor)  # noqa: S101 - Lightning's type allows more
            torch.autograd.backward(loss)
        else:
            fill_gradients(self.network)

    def gradient_pass(self) -> None:
        """The hooks before the optimizer."""
        self._call("on_after_backward")
        self._call("on_before_optimizer_step", self.optimizer)

    def batch_end(self) -> None:
        """The hooks at the batch's end."""
        self._call("on_train_batch_end", None, None, 0)

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self.module.trainer, self.module, *arguments)


class _Driven(Task, Generic[Result]):
    """Runs a script instead of its one training step."""

    def __init__(self, network: nn.Module, optimizer: str, callbacks: Sequence[pl.Callback], script: Any) -> None:
        super().__init__(network, _STILL[optimizer])
        self.automatic_optimization = False
        self._callbacks, self._script = callbacks, script

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        live = Live(self, self._callbacks, batch)
        live.step(backward=True)  # firing rates, moments, compilation
        self.result: Result = self._script(live)
        return None


def within_fit(
    network: nn.Module,
    batch: Batch,
    callbacks: Sequence[pl.Callback],
    script: Callable[[Live], Result],
    *,
    optimizer: str = "sgd",
    accelerator: str = "cpu",
) -> Result:
    """Enter a fit, take one step with real gradients, and run a script that takes further ones.

    Args:
        network: Kept where it is but for what the callbacks do to it.
        batch: For the first step.
        callbacks: Fresh ones.
        script: What to do; its result is returned.
        optimizer: ``sgd`` or ``adam``, with learning rate 0.
        accelerator: Lightning's name of the device.
    """
    module: _Driven[Result] = _Driven(network, optimizer, callbacks, script)
    _trainer(callbacks, 1, accelerator).fit(module, _repeated(batch, 1))
    _free(module)
    return module.result


_MADE_UP: dict[torch.device, Tensor] = {}


def fill_gradients(network: nn.Module) -> None:
    """The same made-up gradients for every step, of usual size; all layers share one buffer of random numbers."""
    parameters = list(network.parameters())
    size, device = max(parameter.numel() for parameter in parameters), parameters[0].device
    buffer = _MADE_UP.get(device)
    if buffer is None or buffer.numel() < size:
        generator = torch.Generator().manual_seed(0)
        buffer = _MADE_UP[device] = (1e-3 * torch.randn(size, generator=generator)).to(device)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(buffer[: parameter.numel()].view(parameter.shape))
