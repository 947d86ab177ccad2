"""What there is to see of a weight between two steps: for statistics, histograms and figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from bio_lightning.functional._shards import whole
from bio_lightning.kernels import product
from bio_lightning.metrics import DormantFraction, ExcitationInhibition
from bio_lightning.monitoring.figures import Points, Snapshot
from bio_lightning.monitoring.statistics import ACTIVITY, PLASTICITY, WEIGHTS, Observation, Series
from bio_lightning.session import Session
from bio_lightning.synapses import Synapses

__all__ = ["observed", "plasticity_of", "ranks_of", "rates_of", "shown_tensors", "snapshot"]


def observed(session: Session, layer: Synapses) -> Iterator[Observation]:
    """What statistics are made of, save for ranks."""
    weight = layer.weight.detach()
    yield WEIGHTS, "log_weight", (weight,)
    yield WEIGHTS, "balance", (weight,)
    multipliers = []
    for mechanism in session.acting(layer):
        observables = mechanism.observables(session, layer)
        for family, values in observables.items():
            yield mechanism.name, family, values
        if "multiplier" in observables and mechanism.active(_latest_step(session, layer)):
            multipliers.append(cast("Tensor", observables["multiplier"][0]))
    if _scales(session, layer):
        multiplier = product(multipliers, weight.shape)
        yield PLASTICITY, "plasticity", (torch.ones_like(weight) if multiplier is None else multiplier,)


def ranks_of(layer: Synapses) -> Iterator[Observation]:
    """What ranks are made of; of a split weight the sum is one matrix."""
    weight = layer.weight.detach()
    yield WEIGHTS, "rank", (weight.sum(dim=0) if layer.gamma > 1 else weight,)


@torch.no_grad()
def plasticity_of(session: Session, layer: Synapses) -> Tensor:
    """Product of all multipliers that acted on a weight in the step just done, in its shape."""
    weight = layer.weight.detach()
    factor = session.plasticity.factor(session.parts(layer, _latest_step(session, layer)), weight)
    return torch.ones_like(weight) if factor is None else factor


def shown_tensors(session: Session, layers: Sequence[Synapses]) -> dict[str, Tensor]:
    """What histograms are made of, by tag; for firing rates see :func:`rates_of`."""
    found = {}
    for layer in layers:
        found[f"bio/{WEIGHTS}/weight/{layer.name}"] = layer.weight.detach()
        if _scales(session, layer):
            found[f"bio/{PLASTICITY}/multiplier/{layer.name}"] = plasticity_of(session, layer)
        born = session.store.get(layer.name, {}).get("born")
        if born is not None:
            found[f"bio/weight_rejuvenation/age/{layer.name}"] = session.step_of(layer) - born
    return {tag: whole(tensor) for tag, tensor in found.items()}


def rates_of(activity: Series) -> dict[str, Tensor]:
    """Firing rates by tag, from metrics that have summed them over ranks."""
    metrics = cast("dict[str, DormantFraction]", activity.get((ACTIVITY, "dormant_fraction"), {}))
    sums = {name: (metric.activity, metric.samples) for name, metric in metrics.items()}
    return {f"bio/{ACTIVITY}/firing_rate/{name}": total / ranks for name, (total, ranks) in sums.items()}


def snapshot(session: Session, layers: Sequence[Synapses], turnover: Mapping[str, Points]) -> Snapshot:
    """What figures are made of.

    Args:
        session: Of the fit.
        layers: The layers to draw.
        turnover: Its course so far, by layer.
    """
    scaled = [layer for layer in layers if _scales(session, layer)]
    return Snapshot(
        {layer.name: whole(layer.weight.detach()) for layer in layers},
        {layer.name: whole(plasticity_of(session, layer)) for layer in scaled},
        {layer.name: _balance(layer) for layer in layers},
        turnover,
    )


def _latest_step(session: Session, layer: Synapses) -> int:
    return max(session.step_of(layer) - 1, 0)


def _scales(session: Session, layer: Synapses) -> bool:
    return any(mechanism.scales_learning for mechanism in session.acting(layer))


def _balance(layer: Synapses) -> tuple[float, float]:
    metric = ExcitationInhibition(sync_on_compute=False).to(layer.weight.device)
    metric.update(whole(layer.weight.detach()))
    computed = metric.compute()
    return float(computed["excitation"]), float(computed["inhibition"])
