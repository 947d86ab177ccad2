"""What measures one variant once: a pass or an event in a running fit, the predecessor's calls, the memory limit."""

from __future__ import annotations

import cProfile
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback
from torch import nn

from driving import Live, fill_gradients, within_fit
from measure import copy_time, timed
from networks import Workload
from variants import GRADIENT_MECHANISMS, callbacks_for, convert, has_predecessor

__all__ = [
    "LIMIT",
    "PREDECESSOR",
    "Breakdown",
    "Measure",
    "Setup",
    "Variants",
    "broken_down",
    "event_in_fit",
    "memory_limit",
    "operations",
    "pass_in_fit",
    "predecessor_calls",
    "update_in_fit",
]

LIMIT = "memory limit"
PREDECESSOR = "predecessor 0.0.5"

Measure = Callable[[], float]
Variants = dict[str, Measure]


@dataclasses.dataclass(frozen=True)
class Setup:
    """How to measure.

    Args:
        quick: Small sizes and few rounds.
        kernels: Those that this version of the library has.
        accelerator: Lightning's name of the device.
    """

    quick: bool
    kernels: Sequence[str]
    accelerator: str = "cpu"

    @property
    def device(self) -> str:
        """Torch's name of the device."""
        return "cuda" if self.accelerator == "gpu" else "cpu"

    def rounds(self, wanted: int) -> int:
        """Rounds that count."""
        return 1 if self.quick else wanted


def pass_in_fit(
    setup: Setup, network: nn.Module, workload: Workload, kernel: str, mechanisms: Sequence[str]
) -> Measure:
    """The gradient pass in a fit, the median of a few."""

    def script(live: Live) -> float:
        return statistics.median(live.step().gradient_pass for _ in range(3))

    def measure() -> float:
        callbacks = callbacks_for(kernel, mechanisms)
        return within_fit(network, workload.batch, callbacks, script, accelerator=setup.accelerator)

    return measure


def update_in_fit(setup: Setup, network: nn.Module, workload: Workload, kernel: str) -> Measure:
    """Snapshot and blend around an Adam step, less that step alone."""

    def script(live: Live) -> float:
        steps = [live.step() for _ in range(3)]
        return statistics.median(spent.gradient_pass + spent.optimizer for spent in steps)

    def measure() -> float:
        plain, bio = (
            within_fit(network, workload.batch, callbacks, script, optimizer="adam", accelerator=setup.accelerator)
            for callbacks in ([], callbacks_for(kernel, GRADIENT_MECHANISMS))
        )
        return bio - plain

    return measure


def event_in_fit(
    setup: Setup, network: nn.Module, workload: Workload, kernel: str, mechanisms: Sequence[str]
) -> Measure:
    """A rejuvenation event, after an Adam step."""

    def script(live: Live) -> float:
        return statistics.median(live.step().batch_end for _ in range(3))

    def measure() -> float:
        callbacks = callbacks_for(kernel, mechanisms, {"weight_rejuvenation": {"every_n_steps": 1}})
        accelerator = setup.accelerator
        return within_fit(network, workload.batch, callbacks, script, optimizer="adam", accelerator=accelerator)

    return measure


class Breakdown(NamedTuple):
    """Seconds of a phase of a step: in all, and of these in compiled code, which ``calls`` calls run."""

    total: float
    compiled: float
    calls: int


def broken_down(network: nn.Module, workload: Workload, callbacks: Sequence[Callback], *, event: bool) -> Breakdown:
    """Where the time of a gradient pass, or of an event, goes; the total is taken without the profiler."""

    def script(live: Live) -> Breakdown:
        spent = [live.step() for _ in range(9)][2:]
        total = statistics.median(each.batch_end if event else each.gradient_pass for each in spent)
        profile = cProfile.Profile()
        live.start()
        if event:
            live.gradient_pass()
            live.optimizer.step()
        profile.runcall(live.batch_end if event else live.gradient_pass)
        # code that torch.compile made for a processor is a function "kernel" of a module of its own
        kernels = [entry for entry in profile.getstats() if "kernel.kernel" in str(entry.code)]
        return Breakdown(total, sum(entry.totaltime for entry in kernels), sum(entry.callcount for entry in kernels))

    return within_fit(network, workload.batch, callbacks, script, optimizer="adam" if event else "sgd")


def operations(network: nn.Module, workload: Workload, callbacks: Sequence[Callback]) -> list[tuple[str, int, float]]:
    """Operations of an eager gradient pass: name, number of calls, and seconds; the longest first."""

    def script(live: Live) -> list[tuple[str, int, float]]:
        live.step()
        live.start()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            live.gradient_pass()
        found = [(entry.key, entry.count, entry.self_cpu_time_total / 1e6) for entry in profile.key_averages()]
        return sorted(found, key=lambda entry: -entry[2])

    return within_fit(network, workload.batch, callbacks, script)


def predecessor_calls(setup: Setup, workload: Workload, call: Callable[[Any], None]) -> Variants:
    """The predecessor's calls on made-up gradients, where it is installed."""
    if not has_predecessor():
        return {}
    network = convert(workload.build()).to(setup.device)

    def measure() -> float:
        seconds = []
        for _ in range(3):
            fill_gradients(network)
            seconds.append(timed(lambda: call(network)))
        return statistics.median(seconds)

    return {PREDECESSOR: measure}


def memory_limit(setup: Setup, weights: int, traffic: int) -> Variants:
    """Copying as many bytes per weight."""
    return {LIMIT: copy_time(traffic * weights, setup.device)}
