"""Warnings about what the synapses do, from numbers that are logged anyway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from bio_lightning.callbacks.mechanism import Mechanism, ScheduledMechanism
from bio_lightning.callbacks.weight_rejuvenation import WeightRejuvenation
from bio_lightning.errors import SynapseWarning
from bio_lightning.monitoring.statistics import ACTIVITY, OVERALL
from bio_lightning.session import Session

__all__ = ["Alert", "Alerts"]

#: Shares worth a warning: of synapses at the floor, and of units that fire less than 0.025 of their layer's mean.
_FLOOR, _DORMANT = "floor_fraction", "dormant_fraction_tau_0.025"


class Alert(NamedTuple):
    """Something that the user may not want.

    Args:
        mechanism: Who did it, or ``activity``.
        kind: What happened.
        layer: Where.
        text: The same in words, with a remedy.
    """

    mechanism: str
    kind: str
    layer: str
    text: str


class Alerts:
    """Looks at every log, and says each thing once.

    Args:
        session: Of the fit.
        share: Share of a layer beyond which rigid synapses and dormant units are worth a warning.
        patience: Steps without any effect after which that is.
    """

    def __init__(self, session: Session, share: float, patience: int) -> None:
        self._session, self._share, self._patience = session, share, patience
        self._said: set[tuple[str, str, str]] = set()
        #: Value of what should move, and the step at which it was first seen there.
        self._rest: dict[tuple[str, str, str], tuple[float, int]] = {}

    def look(self, numbers: Mapping[str, float]) -> list[Alert]:
        """Warn of what is new.

        Args:
            numbers: What is logged, by tag.

        Returns:
            What has been warned of.
        """
        found = [alert for alert in self._found(numbers) if alert[:3] not in self._said]
        for alert in found:
            self._said.add(alert[:3])
            rank_zero_warn(f"bio_lightning: {alert.text}", category=SynapseWarning)
        return found

    def _found(self, numbers: Mapping[str, float]) -> Iterator[Alert]:
        for tag, value in numbers.items():
            _, mechanism, statistic, layer = tag.split("/", 3)
            if statistic not in _TELLING or layer == OVERALL or not self._learns(layer):
                continue
            if statistic == _FLOOR and value > self._share:
                yield self._crystallized(layer, value)
            elif mechanism == ACTIVITY and statistic == _DORMANT and value > self._share and self._has_neurons(layer):
                yield self._dormant(layer, value)
            elif statistic in _EFFECTS:
                yield from self._still(mechanism, statistic, layer, value, numbers)

    def _crystallized(self, layer: str, value: float) -> Alert:
        text = (
            f"{value:.0%} of the synapses of {layer} are crystallized at the floor and hardly learn any more; raise"
            " crystallization.recovery or crystallization.floor, or lower crystallization.crystal_thresh"
        )
        return Alert("crystallization", "floor", layer, text)

    def _dormant(self, layer: str, value: float) -> Alert:
        text = (
            f"{value:.0%} of the units of {layer} are dormant; lower the learning rate, or let them start anew with"
            " weight_rejuvenation.select=activity"
        )
        return Alert(ACTIVITY, "dormant", layer, text)

    def _still(
        self, mechanism: str, statistic: str, layer: str, value: float, numbers: Mapping[str, float]
    ) -> Iterator[Alert]:
        """What has not moved for long, or has been neutral for long."""
        acting = {each.name: each for each in self._session.acting(self._session.synapses[layer])}
        if mechanism not in acting:  # the product of all of them
            return
        acts = acting[mechanism]
        if isinstance(acts, WeightRejuvenation) and acts.select == "activity":  # no dormant unit: all is well
            return
        step = self._session.step_of(self._session.synapses[layer])
        rests = statistic in _MOVING or value == 0
        if statistic == "multiplier_std":
            rests = rests and numbers[f"bio/{mechanism}/multiplier_mean/{layer}"] == 1
        if statistic == "synapse_spread":
            rests = rests and all(_treats_alike(each, step) for each in acting.values() if each is not acts)
        key = (mechanism, statistic, layer)
        last, since = self._rest.get(key, (value, step))
        if not rests or value != last or not acts.active(step):
            since = step
        self._rest[key] = (value, since)
        every = acts.every_n_steps if isinstance(acts, ScheduledMechanism) else 1
        if rests and step - since >= max(self._patience, 2 * every):  # the first event may be yet to come
            text = _EFFECTS[statistic].format(layer=layer, mechanism=mechanism, steps=step - since)
            yield Alert(mechanism, statistic, layer, text)

    def _learns(self, layer: str) -> bool:
        weight = self._session.synapses[layer].weight
        return weight.requires_grad and self._session.owner(weight) is not None

    def _has_neurons(self, layer: str) -> bool:
        """An output layer's units have no nonlinearity that could be silent."""
        return self._session.synapses[layer].module_name not in self._session.architecture.outputs


def _treats_alike(mechanism: Mechanism, step: int) -> bool:
    """Whether equal factors say that it treats synapses alike: not if it moves weights, or is yet to act."""
    return mechanism.scales_learning and mechanism.active(step)


#: Statistics that grow as long as their mechanism acts.
_MOVING = {
    "replaced_fraction_total": (
        "no synapse of {layer} has been replaced for {steps} steps; lower weight_rejuvenation.dre, or raise"
        " weight_rejuvenation.shrinkage"
    ),
    "violations_corrected": (
        "{mechanism} has had no effect on {layer} for {steps} steps: no weight tried to change its sign; leave the"
        " layer out, or switch the mechanism off"
    ),
}
#: Statistics that are 0 where their mechanism has no effect: that of multipliers if also their mean is 1, that of split
#: synapses if also no other mechanism moves weights.
_RESTING = {
    "multiplier_std": (
        "{mechanism} has had no effect on {layer} for {steps} steps: every multiplier is 1; change its settings, or"
        " leave the layer out with {mechanism}.exclude"
    ),
    "update_ratio": (
        "{mechanism} has had no effect on {layer} for {steps} steps: it moves no weight; raise {mechanism}.rate, or"
        " leave the layer out with {mechanism}.exclude"
    ),
    "synapse_spread": (
        "{mechanism} has had no effect on {layer} for {steps} steps: every connection learns as one weight would;"
        " raise {mechanism}.gamma above 1; add fuzzy_learning_rates, volume_dependent_lr, crystallization (criterion:"
        " gradient) or weight_rejuvenation; or leave the layer out with {mechanism}.exclude"
    ),
}
_EFFECTS = _MOVING | _RESTING
#: What is looked at.
_TELLING = {_FLOOR, _DORMANT, *_EFFECTS}
