"""One entry per metric: updates drawn at random, a worked example, and what numpy and scipy say of the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg
import scipy.stats
import torch

from bio_lightning import metrics
from bio_lightning.functional._sketch import ACCURACY


def spread(multipliers):
    everything = np.concatenate([np.asarray(m, dtype=np.float64).ravel() for (m,) in multipliers])
    return {"mean": everything.mean(), "std": everything.std(), "min": everything.min(), "max": everything.max()}


def spread_and_quantiles(multipliers):
    everything = together(multipliers)
    lower = {f"quantile_{p:g}": np.quantile(everything, p, method="lower") for p in (0.0, 0.05, 0.5, 0.95, 1.0)}
    return spread(multipliers) | lower


def together(updates):
    """The elements of all first arguments."""
    return np.concatenate([np.asarray(each, dtype=np.float64).ravel() for each, *_ in updates])


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


def survival(births):
    age = np.concatenate([now - born.numpy().ravel() for born, now in births])
    return {"older_than_10": (age > 10).mean(), "older_than_40": (age > 40).mean(), "age_mean": age.mean()}


def lifetime(events):
    deaths = sum(int(replaced) for replaced, _, _ in events)
    lived = sum(synapses * steps for _, synapses, steps in events)
    return {"steps": lived / deaths if deaths else np.inf, "per_step": deaths / lived}


def excitation_inhibition(weights):
    weight = together(weights)
    excitation, inhibition = weight[weight > 0].sum(), -weight[weight < 0].sum()
    return {
        "excitation": excitation / weight.size,
        "inhibition": inhibition / weight.size,
        "balance": (excitation - inhibition) / np.abs(weight).sum(),
        "excitatory_fraction": (weight[weight != 0] > 0).mean(),
    }


def dormant(updates):
    layers = [np.concatenate([np.asarray(layer, dtype=np.float64) for layer in each]) for each in zip(*updates)]  # noqa: B905
    activity = [np.abs(layer).mean(axis=0) for layer in layers]
    score = np.concatenate([layer / layer.mean() for layer in activity])
    return {f"tau_{tau:g}": (score <= tau).mean() for tau in (0.0, 0.025, 0.1)}


def log_normality(weights):
    weight = together(weights)
    logs = np.log(np.abs(weight[weight != 0]))
    return {"mean": logs.mean(), "std": logs.std(), "skew": scipy.stats.skew(logs)}


def ranks(singular):
    return {
        "stable": (singular**2).sum() / singular.max() ** 2,
        "effective": np.exp(scipy.stats.entropy(singular / singular.sum())),
    }


def weight_rank(weights):
    each = [ranks(scipy.linalg.svdvals(np.asarray(w, dtype=np.float64).reshape(len(w), -1))) for (w,) in weights]
    return {key: np.mean([layer[key] for layer in each]) for key in ("stable", "effective")}


def activation_rank(activations):
    samples = np.concatenate([np.asarray(h, dtype=np.float64).reshape(-1, h.shape[-1]) for (h,) in activations])
    return ranks(scipy.linalg.svdvals(samples))


def update_ratio(updates):
    before = together(updates)
    return np.linalg.norm(together([pair[::-1] for pair in updates]) - before) / np.linalg.norm(before)


def gradient_ratio(updates):
    return np.linalg.norm(together(updates)) / np.linalg.norm(together([pair[::-1] for pair in updates]))


@dataclass(frozen=True)
class Case:
    """What a metric is tested with.

    Args:
        draw: Arguments of one update, from a numpy generator.
        reference: The result from the arguments of all updates.
        example: Arguments of one update, with its result.
        empty: Arguments of an update without synapses, with the result where there is no other.
        settings: Arguments of the constructor.
        tolerance: Largest difference from the reference.
    """

    draw: Callable[[np.random.Generator], tuple[Any, ...]]
    reference: Callable[[list[tuple[Any, ...]]], Any]
    example: tuple[tuple[Any, ...], Any]
    empty: tuple[tuple[Any, ...], Any]
    settings: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-6


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float32))


def draw_weight(rng, *shape) -> torch.Tensor:
    """Signed weights, some of which are 0."""
    weight = rng.lognormal(-2, 1, size=shape) * rng.choice([-1, 1], size=shape, p=[0.3, 0.7])
    return tensor(weight * (rng.uniform(size=shape) > 0.1))


def draw_hidden(rng, units: int) -> torch.Tensor:
    """Activations of units of very different size, some of them silent."""
    size = 10.0 ** -np.arange(units) * (np.arange(units) != 1)
    return tensor(rng.normal(size=(rng.integers(1, 9), units)) * size)


def draw_pair(rng) -> tuple[torch.Tensor, torch.Tensor]:
    weight = draw_weight(rng, rng.integers(1, 9), 6)
    return weight, weight + tensor(rng.normal(0, 0.01, size=weight.shape))


#: By the name of the class; a second case of a class has a word more.
CASES: dict[str, Case] = {
    "MultiplierSpread": Case(
        draw=lambda rng: (tensor(rng.lognormal(0, 0.4, size=(rng.integers(1, 9), 7, 3))),),
        reference=spread,
        example=((torch.tensor([[3.0, 1.0], [0.0, 0.0]]),), {"mean": 1.0, "std": 1.5**0.5, "min": 0.0, "max": 3.0}),
        empty=((torch.empty(0, 4),), {"mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0}),
    ),
    "MultiplierSpread quantiles": Case(
        settings={"quantiles": (0.0, 0.05, 0.5, 0.95, 1.0)},
        draw=lambda rng: (tensor(rng.lognormal(0, 0.4, size=(rng.integers(1, 9), 7, 3)).clip(0, 2)),),
        reference=spread_and_quantiles,
        tolerance=ACCURACY * 2,
        example=(
            (torch.full((2, 3), 0.75),),
            {"mean": 0.75, "std": 0.0, "min": 0.75, "max": 0.75}
            | {f"quantile_{p}": 0.75 for p in ("0", "0.05", "0.5", "0.95", "1")},
        ),
        empty=(
            (torch.empty(0, 4),),
            {"mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0}
            | {f"quantile_{p}": 1.0 for p in ("0", "0.05", "0.5", "0.95", "1")},
        ),
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
    "SynapseSurvival": Case(
        settings={"older_than": (10, 40)},
        draw=lambda rng: (
            torch.as_tensor(rng.integers(-5, 60, size=(rng.integers(1, 9), 5))),
            int(rng.integers(60, 80)),
        ),
        reference=survival,
        example=(
            (torch.tensor([0, 48, 49, 59], dtype=torch.int32), 59),
            {"older_than_10": 0.5, "older_than_40": 0.25, "age_mean": 20.0},
        ),
        empty=(
            (torch.empty(0, dtype=torch.int64), 70),
            {"older_than_10": 0.0, "older_than_40": 0.0, "age_mean": 0.0},
        ),
    ),
    "SpineLifetime": Case(
        draw=lambda rng: (torch.as_tensor(rng.integers(0, 20)), int(rng.integers(20, 40)), int(rng.integers(1, 9))),
        reference=lifetime,
        example=((1, 4, 25), {"steps": 100.0, "per_step": 0.01}),
        empty=((0, 0, 10), {"steps": np.inf, "per_step": 0.0}),
    ),
    "ExcitationInhibition": Case(
        draw=lambda rng: (draw_weight(rng, rng.integers(1, 9), 7, 3),),
        reference=excitation_inhibition,
        example=(
            (torch.tensor([[2.0, 1.0, -1.0, 0.0]]),),
            {"excitation": 0.75, "inhibition": 0.25, "balance": 0.5, "excitatory_fraction": 2 / 3},
        ),
        empty=(
            (torch.empty(0, 2),),
            {"excitation": 0.0, "inhibition": 0.0, "balance": 0.0, "excitatory_fraction": 0.0},
        ),
    ),
    "DormantFraction": Case(
        settings={"units": 4},
        draw=lambda rng: (draw_hidden(rng, 4),),
        reference=dormant,
        example=(
            (torch.tensor([[0.0, 0.5, 12.0, -9.0], [0.0, 0.5, -4.0, 3.0]]),),
            {"tau_0": 0.25, "tau_0.025": 0.25, "tau_0.1": 0.25},
        ),
        empty=((torch.empty(0, 4),), {"tau_0": 0.0, "tau_0.025": 0.0, "tau_0.1": 0.0}),
    ),
    "DormantFraction layers": Case(
        settings={"units": (5, 3)},
        draw=lambda rng: (draw_hidden(rng, 5), draw_hidden(rng, 3)),
        reference=dormant,
        example=(
            (torch.tensor([0.0, 1.0, 20.0, 20.0, 9.0]), torch.tensor([[0.0, 0.0, 5.0], [0.0, 1.0, 0.0]])),
            {"tau_0": 0.25, "tau_0.025": 0.25, "tau_0.1": 0.375},
        ),
        empty=((torch.empty(0, 5), torch.empty(0, 3)), {"tau_0": 0.0, "tau_0.025": 0.0, "tau_0.1": 0.0}),
    ),
    "LogNormality": Case(
        draw=lambda rng: (draw_weight(rng, rng.integers(1, 9), 7, 3),),
        reference=log_normality,
        example=(
            (torch.tensor([1.0, -1.0, 0.0, 1.0, 16.0], dtype=torch.float64),),
            {"mean": np.log(2), "std": 3**0.5 * np.log(2), "skew": 2 / 3**0.5},
        ),
        empty=((torch.empty(0, 2),), {"mean": 0.0, "std": 0.0, "skew": 0.0}),
    ),
    "WeightRank": Case(
        draw=lambda rng: (tensor(rng.normal(size=(rng.integers(2, 9), 3, 2))),),
        reference=weight_rank,
        example=((torch.tensor([[0.0, 2.0], [1.0, 0.0]]),), {"stable": 1.25, "effective": 3 / 4 ** (1 / 3)}),
        empty=((torch.empty(0, 4),), {"stable": 0.0, "effective": 0.0}),
    ),
    "ActivationRank": Case(
        settings={"units": 6},
        draw=lambda rng: (tensor(rng.normal(size=(rng.integers(1, 3), 2, 6))),),
        reference=activation_rank,
        example=((torch.tensor([[0.0, 2.0, 0.0, 0.0, 0.0, 1.0]]),), {"stable": 1.0, "effective": 1.0}),
        empty=((torch.empty(0, 6),), {"stable": 0.0, "effective": 0.0}),
    ),
    "UpdateRatio": Case(
        draw=draw_pair,
        reference=update_ratio,
        example=((torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.5]])), 0.1),
        empty=((torch.empty(0, 2), torch.empty(0, 2)), 0.0),
    ),
    "GradientRatio": Case(
        draw=draw_pair,
        reference=gradient_ratio,
        example=((torch.tensor([0.0, 1.0]), torch.tensor([-3.0, 4.0])), 0.2),
        empty=((torch.empty(0), torch.empty(0)), 0.0),
    ),
}


def make(name: str, **settings: Any):
    """The metric of a case."""
    return getattr(metrics, class_name(name))(**CASES[name].settings, **settings)


def class_name(name: str) -> str:
    """The class that a case tests."""
    return name.partition(" ")[0]


def draws(name: str, count: int, seed: int = 0) -> list[tuple[Any, ...]]:
    """Arguments of several updates of different size."""
    rng = np.random.default_rng(seed)
    return [CASES[name].draw(rng) for _ in range(count)]


def assert_equals_reference(name: str, metric, updates: list[tuple[Any, ...]]) -> None:
    """A metric computes what numpy does from all updates."""
    assert_close(metric.compute(), CASES[name].reference(updates), CASES[name].tolerance)


def assert_close(computed, expected, tolerance: float = 1e-6) -> None:
    """A metric's result, a 0-dim tensor or a dict of them, equals numbers."""
    if not isinstance(expected, dict):
        computed, expected = {"": computed}, {"": expected}
    assert computed.keys() == expected.keys()
    for key, value in computed.items():
        assert value.shape == ()
        assert value.item() == np.float64(expected[key]) or abs(value.item() - expected[key]) <= tolerance, key
