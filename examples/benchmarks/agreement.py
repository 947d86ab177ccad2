"""What has to hold before times mean anything: equal results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bio_lightning import multipliers
from driving import Live, parameters_after, within_fit
from networks import Workload, labels
from variants import ALL_MECHANISMS, callbacks_for

__all__ = ["DisagreementError", "check"]

#: Settings with which every mechanism is on and does nothing.
NEUTRAL: Mapping[str, Mapping[str, Any]] = {
    "fuzzy_learning_rates": {"distribution": "baseline"},
    "volume_dependent_lr": {"stability_factor": 0.0, "lr_variability": 0.0},
    "synaptic_scaling": {"strength": 0.0},
    "crystallization": {"dampening_factor": 1.0},
    "weight_rejuvenation": {"dre": math.inf, "shrinkage": 0.0, "every_n_steps": 2},
    "dales_principle": {"end_step": 0},
}
STEPS = 5
#: Relative difference that rounding may make between two kernels.
TOLERANCE = 1e-6  # 1e-6 of a normal number, where it nearly cancels the mean of a factor
#: Share of values that may differ more: a weight within rounding of a threshold may fall on either side.
FLIPPED = 1e-4


class DisagreementError(RuntimeError):
    """Two variants that must compute the same do not."""


def check(kernels: Sequence[str], *, quick: bool = False) -> None:
    """Neutral settings change no bit of a run, and all kernels give the same gradients, multipliers and weights.

    Args:
        kernels: The first is what the others are compared with.
        quick: Compile nothing for neutral settings, which takes a minute.

    Raises:
        DisagreementError: They do not.
    """
    for optimizer in ("sgd", "adamw"):
        workload = _workload()._replace(optimizer=optimizer)
        plain = parameters_after(workload, [], STEPS)
        for kernel in kernels[:1] if quick else kernels:
            neutral = parameters_after(workload, callbacks_for(kernel, ALL_MECHANISMS, NEUTRAL), STEPS)
            if not all(torch.equal(one, other) for one, other in zip(plain, neutral, strict=True)):
                raise DisagreementError(f"neutral settings change a run with {optimizer} and kernel {kernel!r}")
    for optimizer in ("sgd", "adam"):
        reference = _results(kernels[0], optimizer)
        for kernel in kernels[1:]:
            _compare(reference, _results(kernel, optimizer), f"{kernels[0]} and {kernel} with {optimizer}")
    print("checked: neutral settings change no bit" + (f"; {', '.join(kernels)} agree" if len(kernels) > 1 else ""))


def _workload() -> Workload:
    """Something with a convolution and layers of awkward sizes."""

    def build() -> nn.Module:
        stem = (nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Flatten())
        return nn.Sequential(*stem, nn.Linear(768, 67), nn.ReLU(), nn.Linear(67, 10))

    generator = torch.Generator().manual_seed(0)
    return Workload("check", build, (torch.randn(8, 3, 8, 8, generator=generator), labels(10, 8)))


def _results(kernel: str, optimizer: str) -> dict[str, Tensor]:
    """Gradients after every pass, multipliers and weights at the end, with an event on the last step."""
    torch.manual_seed(0)
    workload = _workload()
    found: dict[str, Tensor] = {}

    def script(live: Live) -> None:
        for number in range(STEPS):
            live.step()
            for name, parameter in live.network.named_parameters():
                assert parameter.grad is not None  # noqa: S101 - the step filled it
                found[f"gradient {number} of {name}"] = parameter.grad.clone()
        found.update({f"multiplier of {name}": tensor for name, tensor in multipliers(live.module).items()})
        found.update({f"weights of {name}": p.detach().clone() for name, p in live.network.named_parameters()})

    settings = {"weight_rejuvenation": {"every_n_steps": STEPS + 1}}
    callbacks = callbacks_for(kernel, ALL_MECHANISMS, settings)
    within_fit(workload.build(), workload.batch, callbacks, script, optimizer=optimizer)
    return found


def _compare(reference: Mapping[str, Tensor], other: Mapping[str, Tensor], what: str) -> None:
    if reference.keys() != other.keys():
        raise DisagreementError(f"{what}: different results {sorted(reference.keys() ^ other.keys())}")
    for name, expected in reference.items():
        differs = ~torch.isclose(other[name], expected, rtol=TOLERANCE, atol=1e-12)
        if int(differs.sum()) > max(1, FLIPPED * differs.numel()):
            raise DisagreementError(f"{what}: {int(differs.sum())} of {differs.numel()} values differ in the {name}")
