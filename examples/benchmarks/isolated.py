"""Measurements that need a process of their own: resident memory, and compilation with an empty cache.

Run as a script it prints one JSON object; :func:`isolated` does that and reads it.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from driving import Live, within_fit
from measure import timed
from networks import Workload, chain
from variants import ALL_MECHANISMS, callbacks_for, quietly

__all__ = ["STATUS", "isolated"]

#: Where Linux tells a process its resident memory.
STATUS = Path("/proc/self/status")
_WIDTH = 1000
_EVERY_STEP = {"weight_rejuvenation": {"every_n_steps": 1}}


def isolated(measurement: str, arguments: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, float]:
    """Take a measurement in a new process.

    Args:
        measurement: ``memory`` or ``compilation``.
        arguments: Of the function of that name.
        environment: Variables to set beside those of this process.

    Raises:
        RuntimeError: The process failed.
    """
    call = [sys.executable, __file__, measurement, json.dumps(arguments)]
    variables = {**os.environ, **environment}
    done = subprocess.run(call, capture_output=True, text=True, env=variables, check=False)  # noqa: S603 - this file
    if done.returncode != 0:
        raise RuntimeError(f"measuring {measurement} failed:\n{done.stderr}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


class _Held(NamedTuple):
    """Resident bytes between two steps, and what a step takes on top at its peak."""

    resident: int
    temporaries: int


def memory(kernel: str, mechanisms: Sequence[str], optimizer: str, layers: Sequence[int]) -> dict[str, float]:
    """Resident memory that callbacks add, as VmRSS and VmHWM tell it.

    Two sizes of network give what a weight costs; what imports and compilation hold is the same for both.

    Args:
        kernel: Of the callbacks.
        mechanisms: Which are on; an event of rejuvenation falls on every step.
        optimizer: ``sgd`` or ``adam``.
        layers: Two numbers of layers, of 1 M weights each.
    """
    _hold(kernel, mechanisms, optimizer, chain(2, 16))  # imports and compiles
    weights, extra, temporaries = [], [], []
    for count in layers:
        workload = chain(count, _WIDTH)
        plain = _hold(kernel, (), optimizer, workload)
        bio = _hold(kernel, mechanisms, optimizer, workload)
        weights.append(count * _WIDTH**2)
        extra.append(bio.resident - plain.resident)
        temporaries.append(bio.temporaries - plain.temporaries)
    return {
        "bytes_per_weight": (extra[1] - extra[0]) / (weights[1] - weights[0]),
        "temporaries_small": temporaries[0],
        "temporaries_large": temporaries[1],
    }


def _hold(kernel: str, mechanisms: Sequence[str], optimizer: str, workload: Workload) -> _Held:
    callbacks = callbacks_for(kernel, mechanisms, _EVERY_STEP) if mechanisms else []
    network = workload.build()

    def script(live: Live) -> _Held:
        live.step()
        gc.collect()
        resident = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # start VmHWM anew
        live.step()
        return _Held(resident, _status("VmHWM") - resident)

    return within_fit(network, workload.batch, callbacks, script, optimizer=optimizer)


def _status(key: str) -> int:
    """Bytes."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def compilation(kernel: str) -> dict[str, float]:
    """Seconds that a kernel adds to a fit of two steps, with all mechanisms, over the eager one.

    Args:
        kernel: The kernel that compiles.

    Returns:
        ``first``: in the process's first fit, with all that is imported for it; ``second``: for a network of other
        sizes; ``small``: for one of layers so small that they are worked on side by side.
    """
    networks = {"first": chain(3, 400), "second": chain(4, 500), "small": chain(3, 48)}
    _fit("eager", chain(2, 16))  # Lightning's own imports
    return {name: -_fit("eager", network) + _fit(kernel, network) for name, network in networks.items()}


def _fit(kernel: str, workload: Workload) -> float:
    network = workload.build()
    callbacks = callbacks_for(kernel, ALL_MECHANISMS, _EVERY_STEP)
    return timed(lambda: within_fit(network, workload.batch, callbacks, Live.step))


def _main(measurement: str, arguments: str) -> None:
    torch.manual_seed(0)
    measurements: dict[str, Callable[..., dict[str, float]]] = {"memory": memory, "compilation": compilation}
    with quietly():
        result = measurements[measurement](**json.loads(arguments))
    print(json.dumps(result))


if __name__ == "__main__":
    _main(*sys.argv[1:])
