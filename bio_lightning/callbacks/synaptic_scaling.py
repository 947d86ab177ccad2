"""Synaptic scaling: wiring."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bio_lightning import functional
from bio_lightning.callbacks.base import ReadWith
from bio_lightning.callbacks.mechanism import Observables, PlasticityMechanism
from bio_lightning.functional._shards import as_part, local
from bio_lightning.kernels import Block, Form, Rule
from bio_lightning.optimizers import Owner
from bio_lightning.parameters import number
from bio_lightning.plasticity import Part
from bio_lightning.session import Session
from bio_lightning.synapses import NEURON_KINDS, Kind, Synapses

__all__ = ["SynapticScaling"]


class SynapticScaling(PlasticityMechanism):
    """Regulate neurons toward a target firing rate.

    The maths: :func:`bio_lightning.functional.scale_grad` and ``tetzlaff_change``; the card:
    ``cards/synaptic_scaling.md``. A firing rate is the running mean share of positive inputs to the nonlinearity.

    Args:
        rule: ``multiplicative`` scales the gradients of a neuron's incoming weights by ``(target / rate) ** strength``:
            it changes speed, not direction. ``tetzlaff`` moves the weights themselves, and reaches silent neurons.
        target: Firing rate to regulate toward, in (0, 1], or ``layer_mean``.
        strength: Exponent of the multiplicative rule, >= 0; 0 is neutral.
        min: Smallest factor of the multiplicative rule, in [0, 1].
        max: Largest factor of the multiplicative rule, >= 1.
        rate: Speed of the tetzlaff rule relative to the optimizer's learning rate, >= 0; 0 is neutral.
        max_change: Largest change per step by the tetzlaff rule, relative to the weight, in [0, 1].

    Raises:
        BioConfigError: A value is out of range.

    Example:
        >>> SynapticScaling(rule="tetzlaff", target=0.3).rule
        'tetzlaff'
    """

    name: ClassVar[str] = "synaptic_scaling"
    order: ClassVar[int] = 40
    kinds: ClassVar[frozenset[Kind]] = NEURON_KINDS
    stored: ClassVar[tuple[str, ...]] = ("scaling_rate",)
    read_with: ClassVar[ReadWith] = {
        **dict.fromkeys(("strength", "min", "max"), ("rule", ("multiplicative",))),
        **dict.fromkeys(("rate", "max_change"), ("rule", ("tetzlaff",))),
    }

    rule: Literal["multiplicative", "tetzlaff"] = "multiplicative"
    target: float | Literal["layer_mean"] = number("layer_mean", gt=0, le=1)
    strength: float = number(1.0, ge=0)
    min: float = number(0.5, ge=0, le=1)
    max: float = number(2.0, ge=1)
    rate: float = number(100.0, ge=0)
    max_change: float = number(0.01, ge=0, le=1)

    @property
    def scales_learning(self) -> bool:
        """Only the multiplicative rule has a factor."""
        return self.rule == "multiplicative"

    @property
    def rates_needed(self) -> tuple[str, ...]:
        """Postsynaptic rates."""
        return ("rate",)

    def prepare(self, session: Session, layers: Sequence[Synapses], step: int) -> None:
        """Keep the rates known before this step, of which the factor is a function until the next time."""
        for tensors in (session.store.setdefault(layer.name, {}) for layer in layers):
            if self.rule == "multiplicative" and "rate" in tensors:
                tensors["scaling_rate"] = tensors["rate"]  # a new step's rate is a new tensor

    def part(self, session: Session, layers: Sequence[Synapses], step: int) -> Part | None:
        """The neurons' factors on all their incoming weights; none before the first rate is known."""
        if not self.scales_learning or "scaling_rate" not in session.store.get(layers[0].name, {}):
            return None
        rates = torch.stack([session.store[layer.name]["scaling_rate"] for layer in layers])
        return Part(self._form, operands=(layers[0].along_postsynaptic(rates),))

    @functools.cached_property
    def _form(self) -> Form:
        settings = (("target", self.target), ("strength", self.strength), ("min", self.min), ("max", self.max))
        return Form(
            factor=Rule(_scaling, settings),
            statistic=Rule(_rate) if self.target == "layer_mean" else None,
        )

    def after_update(self, session: Session, synapses: Synapses, owner: Owner) -> None:
        """Homeostatic change of the weights themselves."""
        change = self._change(session, synapses, owner)
        if change is not None:
            local(synapses.weight.detach()).add_(change)

    def observables(self, session: Session, synapses: Synapses) -> Observables:
        """Of tetzlaff also how far the weights would move at the rates that are known now."""
        observed = super().observables(session, synapses)
        owner, weight = session.owner(synapses.weight), synapses.weight.detach()
        if owner is not None and self.active(max(session.step_of(synapses) - 1, 0)):
            change = self._change(session, synapses, owner)
            if change is not None:
                observed["update_ratio"] = (weight, as_part(local(weight) + change, weight))
        return observed

    @torch.no_grad()
    def _change(self, session: Session, synapses: Synapses, owner: Owner) -> Tensor | None:
        """Change of this process's part of a weight; none of the multiplicative rule, or before a rate is known."""
        rate = session.store.get(synapses.name, {}).get("rate")
        if self.rule != "tetzlaff" or rate is None:
            return None
        return functional.tetzlaff_change(
            local(synapses.weight),
            synapses.along_postsynaptic(rate),
            target=functional.target_rate(rate, self.target),
            step_size=owner.group["lr"] * self.rate,
            max_change=self.max_change,
        )


def _rate(block: Block) -> Tensor:
    return block.operands[0]


def _scaling(block: Block, **settings: Any) -> Tensor:
    return functional.scaling_factor(_rate(block), block.mean, **settings)
