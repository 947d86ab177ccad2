"""Numbers by tag: every statistic of every layer, and of all layers together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.distributed
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_sum

from bio_lightning.functional._layer import row
from bio_lightning.metrics import (
    ActivationRank,
    CrystallizedFraction,
    DormantFraction,
    ExcitationInhibition,
    FiringRate,
    GradientRatio,
    LogNormality,
    MultiplierSpread,
    SignViolations,
    SpineLifetime,
    SynapseSurvival,
    Turnover,
    UpdateRatio,
    WeightRank,
)
from bio_lightning.metrics._sums import Seen, SumsMetric
from bio_lightning.synapses import Synapses

__all__ = [
    "ACTIVITY",
    "FAMILIES",
    "OVERALL",
    "PLASTICITY",
    "WEIGHTS",
    "Family",
    "Observation",
    "Series",
    "Statistics",
    "joined",
    "sum_over_ranks",
]

#: Groups beside the mechanisms: the first part of a tag.
WEIGHTS, ACTIVITY, PLASTICITY = "weights", "activity", "plasticity"
OVERALL = "overall"
#: Quantiles of what all mechanisms together do; of one of them the spread will do.
QUANTILES = (0.05, 0.5, 0.95)


class Family(NamedTuple):
    """Statistics that one metric computes.

    Args:
        metric: Its class, or a function that gives one. Of states with a leading axis ``compute`` gives numbers along
            it, save for a :class:`DormantFraction` and an :class:`ActivationRank`.
        prefix: Of their names, in front of what ``compute`` calls them; the whole name where it computes one number.
    """

    metric: Callable[..., Metric]
    prefix: str = ""


#: What turns observations into statistics, by the name under which mechanisms and probes report them.
FAMILIES: dict[str, Family] = {
    "multiplier": Family(MultiplierSpread, "multiplier_"),
    "plasticity": Family(partial(MultiplierSpread, quantiles=QUANTILES), "multiplier_"),
    "crystallized_fraction": Family(CrystallizedFraction, "crystallized_fraction"),
    "floor_fraction": Family(CrystallizedFraction, "floor_fraction"),
    "replaced": Family(Turnover, "replaced_"),
    "lifetime": Family(SpineLifetime, "lifetime_"),
    "age": Family(SynapseSurvival),
    "violations": Family(SignViolations, "violations_"),
    "firing_rate_mean": Family(FiringRate, "firing_rate_mean"),
    "dormant_fraction": Family(DormantFraction, "dormant_fraction_"),
    "input_rank": Family(ActivationRank, "input_rank_"),
    "log_weight": Family(LogNormality, "log_weight_"),
    "balance": Family(ExcitationInhibition),
    "rank": Family(WeightRank, "rank_"),
    "update_ratio": Family(UpdateRatio, "update_ratio"),
    "synapse_spread": Family(UpdateRatio, "synapse_spread"),
    "gradient_ratio": Family(GradientRatio, "gradient_ratio"),
}

#: Mechanism or group, family, and what its metric, a :class:`SumsMetric`, is given to ``observe``.
Observation = tuple[str, str, tuple[Any, ...]]

#: What metrics saw of each layer, by mechanism (or group) and family; the metrics themselves where these do not add up.
Series = dict[tuple[str, str], dict[str, "Seen | Metric"]]

#: Of a layer with no more weights all observations are looked at together, which spares tiny layers a tenth of a log;
#: those of a larger one would fill the memory.
_LARGE = 1 << 20


class _Column(NamedTuple):
    """What one state of a family gets from every layer, and a tensor where it lies."""

    key: tuple[str, str]
    state: str
    numbers: list[Sequence[Tensor | float] | Tensor]
    place: Tensor


class Statistics:
    """What metrics see of layers, and what they compute from it, for each layer and for all together.

    Metrics are kept from one log to the next, since making one costs more than its maths. What torchmetrics wraps
    around ``update``, ``compute`` and ``reset``, to synchronise and to cache, would cost as much again. Nothing is
    cached here, and processes are in step at one place only, see :func:`sum_over_ranks`.

    Args:
        layers: Numbers of a layer come together where its weight lies.
    """

    def __init__(self, layers: Iterable[Synapses]) -> None:
        self._layers = {layer.name: layer for layer in layers}
        self._kept: dict[tuple[object, ...], tuple[Metric, dict[str, Tensor]]] = {}
        self._families: dict[str, SumsMetric] = {}

    def layer_metric(self, family: str, layer: str, **settings: Any) -> Metric:
        """An empty metric of one layer, whose sums are added up over ranks."""
        device = self._layers[layer].weight.device
        key = (family, layer, device)
        if key not in self._kept:
            metric = FAMILIES[family].metric(sync_on_compute=False, **settings).to(device)
            empty = {name: cast("Tensor", default).to(device) for name, default in metric._defaults.items()}
            self._kept[key] = metric, empty
        metric, empty = self._kept[key]
        vars(metric).update(empty)
        return metric

    @torch.no_grad()
    def series(self, layers: Iterable[tuple[Synapses, Iterable[Observation]]]) -> Series:
        """What metrics see of some layers."""
        series: Series = {}
        for layer, observations in layers:
            large = layer.weight.numel() > _LARGE
            for turn in ([each] for each in observations) if large else [list(observations)]:
                with torch.inference_mode():  # spares each operation a fifth, and nothing is ever learned from this
                    for group, family, values in turn:
                        series.setdefault((group, family), {})[layer.name] = self._metric(family).observe(*values)
        return series

    @torch.inference_mode()
    def observe(self, family: str, *values: Any) -> Seen:
        """What a metric sees of one layer."""
        return self._metric(family).observe(*values)

    def _metric(self, family: str) -> SumsMetric:
        """The one that sees and computes for all layers, whatever it was given before."""
        if family not in self._families:
            self._families[family] = cast("SumsMetric", FAMILIES[family].metric(sync_on_compute=False))
        return self._families[family]

    @torch.inference_mode()
    def by_tag(self, series: Series) -> dict[str, float]:
        """What the metrics compute, and what they compute for all layers together, in one transfer from the device."""
        tables = self._tables(series)
        tags: list[str] = []
        found: list[Tensor] = []
        for (group, family), layers in series.items():
            if (group, family) in tables:
                metric = self._metric(family)
                vars(metric).update(tables[group, family])
                computed = _computed(metric)
            else:
                computed = _averaged(cast("list[Metric]", list(layers.values())))
            prefix = FAMILIES[family].prefix
            for statistic, values in computed.items():
                tags += [f"bio/{group}/{prefix}{statistic}/{layer}" for layer in (*layers, OVERALL)]
                found.append(values)
        if not found:
            return {}
        numbers = torch.cat(_on_one_device(found)).tolist()
        # without a death there is no lifetime yet
        return {
            tag: number
            for tag, number in zip(tags, numbers, strict=True)
            if not ("/lifetime_" in tag and number == float("inf"))
        }

    def _tables(self, series: Series) -> dict[tuple[str, str], dict[str, Tensor]]:
        """For each family what its metric keeps of every layer and, last, of all together: ``(layers + 1, ...)``.

        One call then computes of all layers what it would of one. States of all families lie in few tables, since to
        put them together one by one takes longer than what is computed from them.
        """
        columns: dict[tuple[Any, ...], list[_Column]] = {}
        for key, layers in series.items():
            names, seen = list(layers), list(layers.values())
            if isinstance(seen[0], Metric):
                continue
            place = self._layers[names[0]].weight
            for state in seen[0]:
                numbers = [cast("Seen", each)[state] for each in seen]
                kind = self._metric(key[1])._reductions[state], isinstance(numbers[0], Tensor), len(seen), place.device
                columns.setdefault(kind, []).append(_Column(key, state, numbers, place))
        tables: dict[tuple[str, str], dict[str, Tensor]] = {}
        for (reduction, *_), alike in columns.items():
            by_layer = zip(*(column.numbers for column in alike), strict=True)
            rows = torch.stack([_chained(numbers, alike[0].place) for numbers in by_layer])
            table = torch.cat([rows, reduction(rows).unsqueeze(0)])
            parts = torch.split(table, [len(column.numbers[0]) for column in alike], dim=1)
            for column, part in zip(alike, parts, strict=True):
                tables.setdefault(column.key, {})[column.state] = part
        return tables


def _chained(parts: Sequence[Sequence[Tensor | float] | Tensor], like: Tensor) -> Tensor:
    """Numbers, or states, in one row on the device of a tensor."""
    if isinstance(parts[0], Tensor):
        return torch.cat([cast("Tensor", part).to(like.device) for part in parts])
    return row([number for part in parts for number in part], like=like)


def _averaged(metrics: Sequence[Metric]) -> dict[str, Tensor]:
    """Of layers with different numbers of units, whose states do not merge: every unit counts once, or every rank."""
    sizes = [float(sum(m.units)) if isinstance(m, DormantFraction) else 1.0 for m in metrics]
    computed = [_computed(metric) for metric in metrics]
    rows = torch.stack(_on_one_device([torch.stack(list(each.values())) for each in computed]))
    shares = torch.tensor([size / sum(sizes) for size in sizes], dtype=torch.float64, device=rows.device)
    table = torch.cat([rows, (shares @ rows).unsqueeze(0)])
    return dict(zip(computed[0], table.unbind(1), strict=True))


def _on_one_device(tensors: Sequence[Tensor]) -> list[Tensor]:
    """That of the first; to ask takes less than to send."""
    device = tensors[0].device
    return [tensor if tensor.device == device else tensor.to(device) for tensor in tensors]


def _computed(metric: Metric) -> dict[str, Tensor]:
    """What a metric computes, by name."""
    computed = type(metric).compute(metric)
    return {"": computed} if isinstance(computed, Tensor) else computed


def sum_over_ranks(metrics: Sequence[Metric]) -> None:
    """What each metric's own synchronisation does to its sums, in one message for all of them.

    Args:
        metrics: The same ones in the same order on every rank; all their states are sums.
    """
    names = [(metric, name) for metric in metrics for name in metric._defaults]
    if any(metric._reductions[name] is not dim_zero_sum for metric, name in names):
        raise TypeError("only sums can be added up over ranks")
    states = [cast("Tensor", getattr(metric, name)) for metric, name in names]
    if not states:
        return
    packed = torch.cat([state.flatten() for state in states])
    torch.distributed.all_reduce(packed)
    pieces = torch.split(packed, [state.numel() for state in states])
    for (metric, name), state, piece in zip(names, states, pieces, strict=True):
        setattr(metric, name, piece.view_as(state))


def joined(parts: Iterable[Series]) -> Series:
    """One table of all."""
    series: Series = {}
    for part in parts:
        for key, layers in part.items():
            series.setdefault(key, {}).update(layers)
    return series
