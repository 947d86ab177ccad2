"""Fuzzy learning rates: wiring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from bio_lightning import functional
from bio_lightning.callbacks.base import ReadWith
from bio_lightning.callbacks.mechanism import PlasticityMechanism
from bio_lightning.events import Kept
from bio_lightning.functional import distributions
from bio_lightning.functional._layer import mean
from bio_lightning.functional.distributions import DISTRIBUTIONS, Distribution
from bio_lightning.functional.quantiles import gamma_table
from bio_lightning.kernels import Block, Form, Rule
from bio_lightning.parameters import number
from bio_lightning.plasticity import Part
from bio_lightning.session import Session
from bio_lightning.synapses import ALL_KINDS, NEURON_KINDS, Kind, Synapses

__all__ = ["FuzzyLearningRates"]

_REFRESHED = ("weight_adaptive", "activity")
_DRAWN_WITH = ("distribution", "nu", "min", "max", "seed")


class FuzzyLearningRates(PlasticityMechanism):
    """Give every weight its own learning rate, with mean exactly 1 over the layer.

    The maths: :func:`bio_lightning.functional.fuzzy_learning_rates`; the card: ``cards/fuzzy_learning_rates.md``.

    Args:
        distribution: Where the factors come from; ``baseline`` is neutral.
        nu: Their standard deviation; for the uniform ones the half-width. >= 0.
        min: Smallest factor before normalising, in [0, 1].
        max: Largest factor before normalising, >= 1.
        update_every: Steps between refreshes of ``weight_adaptive`` and ``activity``, and unit of age of ``temporal``.
        decay: Factor on the diversity per unit of age, in (0, 1]; ``temporal`` only.

    Raises:
        BioConfigError: A value is out of range.

    Example:
        >>> FuzzyLearningRates(distribution="gamma", nu=0.3).nu
        0.3
    """

    name: ClassVar[str] = "fuzzy_learning_rates"
    order: ClassVar[int] = 20
    stored: ClassVar[tuple[str, ...]] = ("base",)
    keeps_multiplier: ClassVar[bool] = True
    read_with: ClassVar[ReadWith] = {
        **dict.fromkeys(("nu", "min", "max"), ("distribution", DISTRIBUTIONS[1:])),  # all but the baseline
        **dict.fromkeys(("update_every", "every_n_steps"), ("distribution", (*_REFRESHED, "temporal"))),
        "decay": ("distribution", ("temporal",)),
    }

    distribution: Distribution = "lognormal"
    nu: float = number(0.16, ge=0)
    min: float = number(0.5, ge=0, le=1)
    max: float = number(2.0, ge=1)
    update_every: int = number(100, ge=1)
    decay: float = number(0.97, gt=0, le=1)

    @property
    def rates_needed(self) -> tuple[str, ...]:
        """``activity`` reads the postsynaptic rates."""
        return ("rate",) if self.distribution == "activity" else ()

    def acted_kinds(self) -> frozenset[Kind]:
        """``activity`` needs neurons."""
        return NEURON_KINDS if self.distribution == "activity" else ALL_KINDS

    def __post_init__(self) -> None:
        super().__post_init__()
        self._drawn_later: set[str] = set()  # weights whose base is no function of the seed alone

    def start(self, session: Session, synapses: Synapses) -> None:
        """Draw the base factors.

        They are stored: to draw them again in every pass would cost five times what reading them costs.
        """
        tensors = session.store.setdefault(synapses.name, {})
        if "base" not in tensors:
            dtype = session.settings.stored_as
            tensors["base"] = torch.empty_like(synapses.weight, dtype=dtype, requires_grad=False)
            self._draw(session, synapses, step=0)

    def prepare(self, session: Session, layers: Sequence[Synapses], step: int) -> None:
        """Refresh the base factors that depend on weights or activity."""
        age = step - self.start_step
        if self.distribution in _REFRESHED and age > 0 and age % self.update_every == 0:
            for synapses in layers:
                self._draw(session, synapses, step)

    def part(self, session: Session, layers: Sequence[Synapses], step: int) -> Part:
        """The base factors; for ``temporal`` what is left of them at this age."""
        bases = tuple(session.store[layer.name]["base"] for layer in layers)
        if self.distribution != "temporal":
            return Part(_AS_STORED, states=bases)
        last_change = max(step - self.start_step, 0) // self.every_n_steps * self.every_n_steps
        left = distributions.remaining_diversity(self.decay, last_change / self.update_every)
        bounds = (("min", self.min), ("max", self.max))
        return Part(
            Form(factor=Rule(_developed, bounds), statistic=Rule(_raw_developed, bounds)),
            states=bases,
            operands=(torch.full((1,), left, device=bases[0].device),),
        )

    def kept(self, session: Session, synapses: Synapses, step: int) -> tuple[Kept, ...]:
        """New synapses draw anew; the layer's mean stays 1."""
        self._drawn_later.add(synapses.name)
        return (self._drawn(session, synapses, step),)

    def adopt(self, session: Session) -> None:
        """A base drawn with other settings is drawn anew."""
        saved = self._restored.get("arguments", {})
        if any(saved[key] != value for key, value in self.arguments().items() if key in _DRAWN_WITH and key in saved):
            for tensors in self._restored["weights"].values():
                tensors.pop("base", None)
        self._drawn_later |= {n for n, tensors in self._restored.get("weights", {}).items() if "base" in tensors}
        super().adopt(session)

    def saved_keys(self, name: str) -> tuple[str, ...]:
        """A base that is a function of the seed alone need not be saved."""
        later = name in self._drawn_later or self.distribution in _REFRESHED
        return super().saved_keys(name) if later else ()

    def _draw(self, session: Session, synapses: Synapses, step: int) -> None:
        """Base factors for all synapses."""
        session.plasticity.draw(synapses, self._drawn(session, synapses, step))

    def _drawn(self, session: Session, synapses: Synapses, step: int) -> Kept:
        """How base factors are drawn."""
        base, noise = session.store[synapses.name]["base"], self.noise(synapses.name, step)
        if self.distribution == "temporal":
            return Kept(base, Form(factor=Rule(_at_birth, (("nu", self.nu),))), noise)
        operands: dict[str, Tensor] = {}
        table: tuple[Tensor, ...] = ()
        if self.distribution == "layer_adaptive":
            operands["depth"] = torch.full((), self._depth(session, synapses), device=base.device)
        elif self.distribution == "activity" and "rate" in session.store[synapses.name]:
            rate = session.store[synapses.name]["rate"]
            operands |= {"rate": synapses.along_postsynaptic(rate), "average_rate": mean(rate)}
        elif self.distribution == "gamma" and self.nu > 0:
            table = (gamma_table(self.nu).to(base.device),)
        settings = (
            ("given", (*operands, "table") if table else tuple(operands)),
            *((key, getattr(self, key)) for key in ("distribution", "nu", "min", "max")),
        )
        by_weight = self.distribution == "weight_adaptive"
        fill = Form(factor=Rule(_normalized, settings, by_weight), statistic=Rule(_summed, settings, by_weight))
        return Kept(base, fill, noise, operands=tuple(operands.values()), constants=table, has_mean_one=True)

    def _depth(self, session: Session, synapses: Synapses) -> float:
        """Position among the targets in forward order, 0 to 1."""
        mine = {target.module_name for target in self.targets.values()}
        order = [layer for layer in session.architecture.order if layer in mine]
        return order.index(synapses.module_name) / max(len(order) - 1, 1)


def _clamped(block: Block, *, given: tuple[str, ...], **settings: Any) -> Tensor:
    assert block.draw is not None  # noqa: S101 - the event gives it
    operands: dict[str, Any] = dict(zip(given, block.operands, strict=True))
    if "table" in operands:
        operands["table"] = operands["table"].view(-1)
    return functional.fuzzy_learning_rates(
        block.weight, block.draw, normalize=False, average=block.average, **operands, **settings
    )


def _normalized(block: Block, **settings: Any) -> Tensor:
    factor = _clamped(block, **settings)
    assert block.mean is not None  # noqa: S101 - the event gives it
    return functional.normalize_multipliers(factor, block.mean.to(factor.dtype))


def _summed(block: Block, **settings: Any) -> Tensor:
    """In float64, so that the mean does not depend on how the weight lies in memory."""
    return _clamped(block, **settings).to(torch.float64)


def _at_birth(block: Block, *, nu: float) -> Tensor:
    assert block.draw is not None  # noqa: S101 - the event gives it
    return distributions.uniform(block.weight, block.draw, nu)


def _stored(block: Block) -> Tensor:
    assert block.state is not None  # noqa: S101 - the pass gives it
    return block.state


def _raw_developed(block: Block, *, min: float, max: float) -> Tensor:
    return distributions.developed(_stored(block), block.operands[0]).clamp(min, max)


def _developed(block: Block, **bounds: float) -> Tensor:
    return functional.normalize_multipliers(_raw_developed(block, **bounds), block.mean)


_AS_STORED = Form(factor=Rule(_stored))
