"""Crystallization: wiring."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bio_lightning import functional
from bio_lightning.callbacks.mechanism import Observables, PlasticityMechanism
from bio_lightning.parameters import number
from bio_lightning.session import Session
from bio_lightning.synapses import ALL_KINDS, NEURON_KINDS, Kind, Synapses

__all__ = ["Crystallization"]


@dataclasses.dataclass(kw_only=True, eq=False)
class Crystallization(PlasticityMechanism):
    """Make synapses rigid that are well optimised, strongly driven, or frequently used.

    The maths: :func:`bio_lightning.functional.crystallize`; the card: ``cards/crystallization.md``. Gradients are
    judged raw, before any factor. Neutral while no weight passes a threshold.

    Args:
        criterion: ``gradient``: tiny relative to the weight, or larger than the layer's mean weight; ``use``: pre- and
            postsynaptic rates are both high.
        dampening_factor: Factor on a synapse's learning rate per hit, in (0, 1]; 1 is neutral.
        crystal_thresh: Relative gradient below which a weight is well optimised, >= 0.
        use_thresh: Multiple of the layer's mean firing rate above which a rate is high, >= 0.
        floor: Smallest remaining learning rate, in (0, 1].
        recovery: Share of the lost plasticity that returns per step without a hit, in [0, 1].
        ignore_zero_grad: An exactly zero gradient (a dead unit, a constant pixel) does not crystallize.

    Raises:
        BioConfigError: A value is out of range.

    Example:
        >>> Crystallization(floor=0.1).dampening_factor
        0.6
    """

    name: ClassVar[str] = "crystallization"
    order: ClassVar[int] = 10
    stored: ClassVar[tuple[str, ...]] = ("crystal",)
    keeps_multiplier: ClassVar[bool] = True

    criterion: Literal["gradient", "use"] = "gradient"
    dampening_factor: float = number(0.6, gt=0, le=1)
    crystal_thresh: float = number(4.5e-5, ge=0)
    use_thresh: float = number(1.5, ge=0)
    floor: float = number(0.05, gt=0, le=1)
    recovery: float = number(0.01, ge=0, le=1)
    ignore_zero_grad: bool = True

    @property
    def rates_needed(self) -> tuple[str, ...]:
        """``use`` reads the rates on both sides."""
        return ("rate", "pre_rate") if self.criterion == "use" else ()

    @property
    def judges_gradients(self) -> bool:
        """``gradient`` does."""
        return self.criterion == "gradient"

    def acted_kinds(self) -> frozenset[Kind]:
        """``use`` needs neurons."""
        return NEURON_KINDS if self.criterion == "use" else ALL_KINDS

    def start(self, session: Session, synapses: Synapses) -> None:
        """Every synapse starts fully plastic."""
        session.store.setdefault(synapses.name, {}).setdefault(
            "crystal", torch.ones_like(synapses.weight, dtype=session.settings.stored_as, requires_grad=False)
        )

    def observe(self, session: Session, synapses: Synapses, grad: Tensor, step: int) -> None:
        """Crystallize and recover."""
        mask = self._hits(session, synapses, grad)
        if mask is not None:
            crystal = session.store[synapses.name]["crystal"]
            new = functional.crystallize(
                crystal.to(torch.float32),
                mask,
                dampening_factor=self.dampening_factor,
                floor=self.floor,
                recovery=self.recovery,
            )
            crystal.copy_(new)

    def factor(self, session: Session, synapses: Synapses, weight: Tensor, step: int) -> Tensor:
        """What is left of each synapse's plasticity."""
        return session.store[synapses.name]["crystal"].to(torch.float32)

    def renew(self, session: Session, synapses: Synapses, mask: Tensor, step: int) -> None:
        """A new synapse is fully plastic."""
        session.store[synapses.name]["crystal"].masked_fill_(mask, 1.0)

    def observables(self, session: Session, synapses: Synapses) -> Observables:
        """Also how many synapses are rigid."""
        crystal = session.store[synapses.name]["crystal"]
        return {**super().observables(session, synapses), "crystallized_fraction": (crystal,)}

    def _hits(self, session: Session, synapses: Synapses, grad: Tensor) -> Tensor | None:
        if self.criterion == "gradient":
            return functional.settled_or_strong(
                synapses.weight.detach(),
                grad,
                crystal_thresh=self.crystal_thresh,
                ignore_zero_grad=self.ignore_zero_grad,
            )
        tensors = session.store[synapses.name]
        if "rate" not in tensors or "pre_rate" not in tensors:
            return None
        return functional.frequently_used(
            synapses.along_presynaptic(tensors["pre_rate"]),
            synapses.along_postsynaptic(tensors["rate"]),
            use_thresh=self.use_thresh,
        )
