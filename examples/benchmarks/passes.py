"""What measures one variant once: a pass or an event in a running fit, the predecessor's calls, the memory limit."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from driving import Live, fill_gradients, within_fit
from measure import copy_time, timed
from networks import Workload
from variants import GRADIENT_MECHANISMS, callbacks_for, convert, has_predecessor

__all__ = [
    "LIMIT",
    "PREDECESSOR",
    "Measure",
    "Setup",
    "Variants",
    "event_in_fit",
    "memory_limit",
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
