"""What a run is: its configuration, as text and as hyperparameters, and the layout of its dashboard."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bio_lightning.callbacks.base import BioCallback
from bio_lightning.callbacks.mechanism import Mechanism
from bio_lightning.callbacks.weight_splitting import WeightSplitting
from bio_lightning.monitoring.statistics import ACTIVITY, OVERALL, PLASTICITY, WEIGHTS
from bio_lightning.parameters import parameters
from bio_lightning.settings import agree

__all__ = ["as_text", "configuration", "headlines", "hyperparameters", "layout"]

#: Charts by group: a title, and the statistics in it; one line per layer where there is one statistic.
CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    WEIGHTS: {
        "how far a step moves the weights": ("update_ratio",),
        "size of the gradients": ("gradient_ratio",),
        "excitation and inhibition": ("excitation", "inhibition"),
        "balance": ("balance",),
        "effective rank": ("rank_effective",),
        "spread of the log-weights": ("log_weight_std",),
    },
    ACTIVITY: {
        "firing rate": ("firing_rate_mean",),
        "dormant units": ("dormant_fraction_tau_0", "dormant_fraction_tau_0.025", "dormant_fraction_tau_0.1"),
        "effective rank of what a layer reads": ("input_rank_effective",),
    },
    PLASTICITY: {
        "mean multiplier": ("multiplier_mean",),
        "5 %, half, and 95 % of the multipliers": tuple(f"multiplier_quantile_{p}" for p in ("0.05", "0.5", "0.95")),
    },
    "crystallization": {
        "crystallized synapses": ("crystallized_fraction",),
        "synapses at the floor": ("floor_fraction",),
    },
    "weight_rejuvenation": {
        "replaced in the last event": ("replaced_fraction",),
        "replaced in all events": ("replaced_fraction_total",),
        "older than 100 and 1,000 steps": ("older_than_100", "older_than_1000"),
        "lifetime in steps": ("lifetime_steps",),
    },
    "dales_principle": {"corrections per synapse": ("violations_per_synapse",)},
    "weight_splitting": {"how differently the synapses of a connection learn": ("synapse_spread",)},
}
#: Of a mechanism that only scales learning.
SCALING = {"mean multiplier": ("multiplier_mean",), "spread of the multipliers": ("multiplier_std",)}
#: Of one that moves the weights instead.
MOVING = {"synaptic_scaling": {"how far homeostasis moves the weights": ("update_ratio",)}}
#: Numbers by which the HParams tab compares runs, with the group without which there are none.
HEADLINES = {
    f"bio/{WEIGHTS}/rank_effective/{OVERALL}": WEIGHTS,
    f"bio/{WEIGHTS}/update_ratio/{OVERALL}": WEIGHTS,
    f"bio/{ACTIVITY}/dormant_fraction_tau_0.025/{OVERALL}": ACTIVITY,
    f"bio/{PLASTICITY}/multiplier_mean/{OVERALL}": PLASTICITY,
    f"bio/{PLASTICITY}/multiplier_std/{OVERALL}": PLASTICITY,
    f"bio/crystallization/crystallized_fraction/{OVERALL}": "crystallization",
    f"bio/weight_rejuvenation/replaced_fraction_total/{OVERALL}": "weight_rejuvenation",
    f"bio/dales_principle/violations_per_synapse/{OVERALL}": "dales_principle",
}


def _groups(mechanisms: Sequence[Mechanism]) -> list[str]:
    scaling = [PLASTICITY] if any(mechanism.scales_learning for mechanism in mechanisms) else []
    logging = [each for each in mechanisms if not (isinstance(each, WeightSplitting) and each.mode == "grouped")]
    return [*scaling, *dict.fromkeys(mechanism.name for mechanism in logging), ACTIVITY, WEIGHTS]


def layout(mechanisms: Sequence[Mechanism]) -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's custom-scalars layout: a category per mechanism, a chart per statistic, a line per layer.

    Args:
        mechanisms: That are on.

    Returns:
        What ``SummaryWriter.add_custom_scalars`` takes; tags are regular expressions.
    """
    scaling = {mechanism.name for mechanism in mechanisms if mechanism.scales_learning}
    found = {}
    for group in _groups(mechanisms):
        charts = {**(SCALING if group in scaling else MOVING.get(group, {})), **CHARTS.get(group, {})}
        if charts:
            found[group] = {title: ["Multiline", _patterns(group, names)] for title, names in charts.items()}
    return found


def _patterns(group: str, statistics: Sequence[str]) -> list[str]:
    """One statistic is shown for every layer, several for all layers together."""
    layers = ".*" if len(statistics) == 1 else OVERALL
    return [f"^bio/{group}/{re.escape(statistic)}/{layers}$" for statistic in statistics]


def headlines(mechanisms: Sequence[Mechanism]) -> list[str]:
    """Tags by which the HParams tab compares runs."""
    groups = _groups(mechanisms)
    return [tag for tag, group in HEADLINES.items() if group in groups]


def configuration(callbacks: Sequence[BioCallback]) -> dict[str, Any]:
    """What is on, with every setting as it is in force: what the mechanisms share comes first.

    Args:
        callbacks: The bio callbacks of a Trainer.
    """
    mechanisms = [callback for callback in callbacks if isinstance(callback, Mechanism)]
    shared = agree(mechanisms)._asdict()
    resolved: dict[str, Any] = {key: _plain(value) for key, value in shared.items()}
    for callback in callbacks:
        name, number = callback.name, 2
        while name in resolved:  # several callbacks of a class
            name, number = f"{callback.name}_{number}", number + 1
        own = {field.name: _plain(getattr(callback, field.name)) for field in parameters(callback)}
        resolved[name] = {"enabled": True, **{key: value for key, value in own.items() if key not in shared}}
    return resolved


def _plain(value: Any) -> Any:
    """Tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def as_text(configuration: Mapping[str, Any]) -> str:
    """YAML that :func:`bio_lightning.load_config` reads.

    Example:
        >>> print(as_text({"kernel": "auto", "crystallization": {"enabled": True, "include": ["*"]}}))
        kernel: "auto"
        crystallization:
          enabled: true
          include: ["*"]
    """
    lines = []
    for key, value in configuration.items():
        if isinstance(value, Mapping):
            lines += [f"{key}:", *(f"  {inner}: {_scalar(item)}" for inner, item in value.items())]
        else:
            lines.append(f"{key}: {_scalar(value)}")
    return "\n".join(lines)


def _scalar(value: Any) -> str:
    """JSON is YAML, save for infinity."""
    return ".inf" if isinstance(value, float) and math.isinf(value) else json.dumps(value)


def hyperparameters(configuration: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """The same with dotted keys, and what is no number or text as JSON.

    Example:
        >>> hyperparameters({"crystallization": {"floor": 0.1, "include": ["*"]}})
        {'crystallization.floor': 0.1, 'crystallization.include': '["*"]'}
    """
    found: dict[str, bool | int | float | str] = {}
    for key, value in configuration.items():
        inner = {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, Mapping) else {key: value}
        for name, item in inner.items():
            simple = isinstance(item, (bool, int, str)) or (isinstance(item, float) and math.isfinite(item))
            found[name] = item if simple else _scalar(item)
    return found
