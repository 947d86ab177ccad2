"""Crystallization: wiring."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bio_lightning import functional
from bio_lightning.callbacks.base import ReadWith
from bio_lightning.callbacks.mechanism import Observables, PlasticityMechanism
from bio_lightning.events import ONE, Kept
from bio_lightning.functional.crystallization import hits
from bio_lightning.kernels import Block, Form, Rule
from bio_lightning.parameters import number
from bio_lightning.plasticity import Part
from bio_lightning.session import Session
from bio_lightning.synapses import ALL_KINDS, NEURON_KINDS, Kind, Synapses

__all__ = ["Crystallization"]


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
    read_with: ClassVar[ReadWith] = {
        **dict.fromkeys(("crystal_thresh", "ignore_zero_grad"), ("criterion", ("gradient",))),
        "use_thresh": ("criterion", ("use",)),
    }

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

    def part(self, session: Session, layers: Sequence[Synapses], step: int) -> Part | None:
        """Crystallize and recover, then slow down by what is left of each synapse's plasticity."""
        known = [session.store[layer.name] for layer in layers]
        form = self._form
        operands: tuple[Tensor, ...] = ()
        if self.criterion == "use" and "rate" in known[0] and "pre_rate" in known[0]:
            pre, post = (
                torch.stack([functional.highly_active(tensors[side], self.use_thresh) for tensors in known])
                for side in ("pre_rate", "rate")
            )
            operands = (layers[0].along_presynaptic(pre), layers[0].along_postsynaptic(post))
        elif self.criterion == "use":  # no rate is known before the first step
            form = form._replace(observe=None)
        return Part(form, states=tuple(tensors["crystal"] for tensors in known), operands=operands)

    @functools.cached_property
    def _form(self) -> Form:
        change = (("dampening_factor", self.dampening_factor), ("floor", self.floor), ("recovery", self.recovery))
        judge = (("crystal_thresh", self.crystal_thresh), ("ignore_zero_grad", self.ignore_zero_grad))
        by_gradient = Rule(_by_gradient, (*judge, *change), reads_average=True)
        return Form(
            factor=Rule(_remaining), observe=by_gradient if self.criterion == "gradient" else Rule(_by_use, change)
        )

    def kept(self, session: Session, synapses: Synapses, step: int) -> tuple[Kept, ...]:
        """A new synapse is fully plastic."""
        return (Kept(session.store[synapses.name]["crystal"], ONE),)

    def observables(self, session: Session, synapses: Synapses) -> Observables:
        """Also how many synapses are rigid, and how many the next hit would take to the floor."""
        crystal = session.store[synapses.name]["crystal"]
        near = min(self.floor / self.dampening_factor, (1 + self.floor) / 2)
        rigid: Observables = {"crystallized_fraction": (crystal,), "floor_fraction": (crystal, near)}
        return {**super().observables(session, synapses), **rigid}


def _by_gradient(block: Block, *, crystal_thresh: float, ignore_zero_grad: bool, **change: float) -> Tensor:
    assert block.grad is not None and block.state is not None  # noqa: S101, PT018 - the pass gives both
    mask = hits(block.weight, block.grad, crystal_thresh, ignore_zero_grad, block.average)
    return functional.crystallize(block.state, mask, **change)


def _by_use(block: Block, **change: float) -> Tensor:
    assert block.state is not None  # noqa: S101 - the pass gives it
    pre, post = block.operands
    return functional.crystallize(block.state, pre & post, **change)


def _remaining(block: Block) -> Tensor:
    assert block.state is not None  # noqa: S101 - the pass gives it
    return block.state
