"""One entry per metric: updates drawn at random, a worked example, and numpy's word for the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bio_lightning import metrics


def spread(multipliers):
    everything = np.concatenate([np.asarray(m, dtype=np.float64).ravel() for (m,) in multipliers])
    return {"mean": everything.mean(), "std": everything.std(), "min": everything.min(), "max": everything.max()}


def crystallized(crystals):
    return (np.concatenate([np.asarray(c).ravel() for (c,) in crystals]) < 0.5).mean()


def turnover(layers):
    replaced, total, synapses = (np.array(column, dtype=np.float64).sum() for column in zip(*layers, strict=True))
    return {"fraction": replaced / synapses, "fraction_total": total / synapses}


def violations(layers):
    corrected, synapses = (np.array(column, dtype=np.float64).sum() for column in zip(*layers, strict=True))
    return {"corrected": corrected, "per_synapse": corrected / synapses}


def firing(rates):
    return np.concatenate([np.asarray(r, dtype=np.float64) for (r,) in rates]).mean()


@dataclass(frozen=True)
class Case:
    """What a metric is tested with.

    Args:
        draw: Arguments of one update, from a numpy generator.
        reference: The result from the arguments of all updates.
        example: Arguments of one update, with its result.
        empty: Arguments of an update without synapses, with the result where there is no other.
    """

    draw: Callable[[np.random.Generator], tuple[Any, ...]]
    reference: Callable[[list[tuple[Any, ...]]], Any]
    example: tuple[tuple[Any, ...], Any]
    empty: tuple[tuple[Any, ...], Any]


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float32))


CASES: dict[str, Case] = {
    "MultiplierSpread": Case(
        draw=lambda rng: (tensor(rng.lognormal(0, 0.4, size=(rng.integers(1, 9), 7, 3))),),
        reference=spread,
        example=((torch.tensor([[3.0, 1.0], [0.0, 0.0]]),), {"mean": 1.0, "std": 1.5**0.5, "min": 0.0, "max": 3.0}),
        empty=((torch.empty(0, 4),), {"mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0}),
    ),
    "CrystallizedFraction": Case(
        draw=lambda rng: (tensor(rng.uniform(0.05, 1, size=(rng.integers(1, 9), 5))),),
        reference=crystallized,
        example=((torch.tensor([1.0, 0.5, 0.49, 0.05, 0.6]),), 0.4),
        empty=((torch.empty(3, 0),), 0.0),
    ),
    "Turnover": Case(
        draw=lambda rng: (int(rng.integers(0, 5)), torch.tensor(rng.integers(5, 60)), int(rng.integers(20, 40))),
        reference=turnover,
        example=((2, 20, 16), {"fraction": 0.125, "fraction_total": 1.25}),
        empty=((0, 0, 0), {"fraction": 0.0, "fraction_total": 0.0}),
    ),
    "SignViolations": Case(
        draw=lambda rng: (torch.tensor(rng.integers(0, 50)), int(rng.integers(20, 40))),
        reference=violations,
        example=((torch.tensor(20), 16), {"corrected": 20.0, "per_synapse": 1.25}),
        empty=((0, 0), {"corrected": 0.0, "per_synapse": 0.0}),
    ),
    "FiringRate": Case(
        draw=lambda rng: (tensor(rng.uniform(0, 1, size=rng.integers(1, 30))),),
        reference=firing,
        example=((torch.tensor([0.0, 0.5, 1.0, 0.5, 0.5]),), 0.5),
        empty=((torch.empty(0),), 0.0),
    ),
}


def make(name: str, **arguments):
    """A metric by name."""
    return getattr(metrics, name)(**arguments)


def draws(name: str, count: int, seed: int = 0) -> list[tuple[Any, ...]]:
    """Arguments of several updates of different size."""
    rng = np.random.default_rng(seed)
    return [CASES[name].draw(rng) for _ in range(count)]


def assert_close(computed, expected, tolerance: float = 1e-6) -> None:
    """A metric's result, a 0-dim tensor or a dict of them, equals numbers."""
    if not isinstance(expected, dict):
        computed, expected = {"": computed}, {"": expected}
    assert computed.keys() == expected.keys()
    for key, value in computed.items():
        assert value.shape == ()
        assert value.item() == np.float64(expected[key]) or abs(value.item() - expected[key]) <= tolerance, key
