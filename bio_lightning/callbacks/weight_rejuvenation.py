"""Weight rejuvenation: wiring."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bio_lightning import functional
from bio_lightning.callbacks.base import ReadWith
from bio_lightning.callbacks.mechanism import Observables, ScheduledMechanism
from bio_lightning.errors import BioConfigError, nearest_name
from bio_lightning.events import Change, Kept, change_weight, number_of, silence
from bio_lightning.functional._layer import is_at_hand, mean, std, total
from bio_lightning.functional._shards import count_of, cut, in_parts_of, local, start_of, whole
from bio_lightning.functional.noise import Draw
from bio_lightning.functional.quantiles import quantile_table, segments
from bio_lightning.functional.weight_rejuvenation import Source
from bio_lightning.kernels import Block, Form, Rule
from bio_lightning.layout import Layout
from bio_lightning.optimizers import Moments, Owner, moments_of
from bio_lightning.parameters import number
from bio_lightning.session import Session
from bio_lightning.synapses import ALL_KINDS, NEURON_KINDS, Kind, Synapses

__all__ = ["WeightRejuvenation"]


class WeightRejuvenation(ScheduledMechanism):
    """Replace weak weights by new synapses, as the brain's spines turn over.

    The maths: :func:`bio_lightning.functional.rejuvenate_weights`; the card: ``cards/weight_rejuvenation.md``. An event
    falls on every ``every_n_steps``-th optimizer step. Neutral with ``dre: .inf`` and ``shrinkage: 0``.

    Args:
        every_n_steps: Optimizer steps between events, >= 1.
        select: ``magnitude``: each weight with probability ``exp(-dre * abs(w) / scale)``; ``activity``: all synapses
            of neurons that hardly fire.
        dre: Selectivity of ``magnitude``, > 0; the larger, the fewer weights are replaced.
        reference: The scale: standard deviation of the layer's ``initial`` or ``current`` weights.
        shrinkage: Share that all other weights lose at an event, in [0, 1).
        source: Where new weights come from: the layer's ``init`` distribution, a ``lognormal`` fit of its present
            magnitudes, or ``zero``.
        dormant_fraction: Share of the layer's mean firing rate below which a neuron is dormant, in [0, 1].
        readers: For ``activity``: which layers read a layer's neurons, where tracing cannot find out.
        moments: What becomes of the optimizer's memory of new synapses.

    Raises:
        BioConfigError: A value is out of range.

    Example:
        >>> WeightRejuvenation(dre=3.0, shrinkage=0.02).every_n_steps
        100
    """

    name: ClassVar[str] = "weight_rejuvenation"
    order: ClassVar[int] = 50
    #: ``born`` is the step at which each synapse was born; it is kept where another callback asks for ages.
    stored: ClassVar[tuple[str, ...]] = ("initial_std", "quantiles", "replaced", "replaced_total", "lived", "born")
    counts: ClassVar[tuple[str, ...]] = ("replaced", "replaced_total")
    read_with: ClassVar[ReadWith] = {
        **dict.fromkeys(("dre", "reference"), ("select", ("magnitude",))),
        **dict.fromkeys(("dormant_fraction", "readers"), ("select", ("activity",))),
    }

    every_n_steps: int = number(100, ge=1)
    select: Literal["magnitude", "activity"] = "magnitude"
    dre: float = number(8.0, gt=0, infinite=True)
    reference: Literal["initial", "current"] = "initial"
    shrinkage: float = number(0.0, ge=0, lt=1)
    source: Source = "init"
    dormant_fraction: float = number(0.025, ge=0, le=1)
    readers: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    moments: Moments = "layer_mean"

    @property
    def rates_needed(self) -> tuple[str, ...]:
        """``activity`` reads the postsynaptic rates."""
        return ("rate",) if self.select == "activity" else ()

    def acted_kinds(self) -> frozenset[Kind]:
        """``activity`` needs neurons."""
        return NEURON_KINDS if self.select == "activity" else ALL_KINDS

    def choose_targets(self, session: Session) -> None:
        """Choose the targets; an output layer has no nonlinearity, so its units are never dormant."""
        super().choose_targets(session)
        self._found: dict[str, Tensor] = {}  # NaN where a weight was at the latest event
        self._readers: dict[str, list[tuple[Synapses, int]] | None] = {}
        for name, synapses in list(self.targets.items()):
            if synapses.padding_row is not None and synapses.shape[0] == 1:  # an embedding without a synapse
                self.skipped.append(self.targets.pop(name))
        by_module = {synapses.module_name: synapses for synapses in session.synapses.values()}
        self._check_readers(by_module)
        if self.select == "activity":
            for name, synapses in list(self.targets.items()):
                if synapses.module_name in session.architecture.outputs:
                    self.skipped.append(self.targets.pop(name))
            if not self.targets:
                raise BioConfigError(
                    f"{self.name}.include", self.include, "patterns that name a layer other than the output layer"
                )
            self._find_readers(session, by_module)

    def start(self, session: Session, synapses: Synapses) -> None:
        """Remember the layer's initial distribution."""
        tensors = session.store.setdefault(synapses.name, {})
        weight = synapses.weight.detach()
        if "quantiles" not in tensors:
            self._raise_on_nan(synapses.name, weight)
            initial = _without_padding(synapses, whole(weight))
            tensors["quantiles"] = segments(quantile_table(initial))
            tensors["initial_std"] = std(initial)
        zero = torch.zeros((), dtype=torch.int64, device=weight.device)
        for key in self.counts:
            tensors.setdefault(key, count_of(zero, weight))
        tensors.setdefault("lived", zero)
        if not any(callback.reads_ages for callback in session.callbacks):
            tensors.pop("born", None)
        elif "born" not in tensors:
            now = session.step_of(synapses) if session.steps else 0  # a plan counts no steps
            tensors["born"] = torch.full_like(synapses.weight, now, dtype=torch.int32, requires_grad=False)

    @torch.no_grad()
    def finish(self, session: Session, synapses: Synapses, owner: Owner, completed: range) -> None:
        """An event, where one is due."""
        due = self.due_after(completed)
        if not due:
            return
        if self.select == "activity":
            happened = self._renew_dormant(session, synapses, owner, completed[-1])
        else:
            happened = self._turn_over(session, synapses, owner, completed[-1])
        if happened:  # every synapse has lived since the event before; one batch may complete several steps
            tensors = session.store[synapses.name]
            tensors["lived"] = tensors["lived"] + due * self.every_n_steps

    def kept(self, session: Session, synapses: Synapses, step: int) -> tuple[Kept, ...]:
        """A new synapse is born now."""
        born = session.store[synapses.name].get("born")
        if born is None:
            return ()
        return (Kept(born, _NOW, operands=(torch.full((), step, dtype=born.dtype, device=born.device),)),)

    def observables(self, session: Session, synapses: Synapses) -> Observables:
        """How many synapses were replaced, how long they live, and how old they are."""
        tensors, total = session.store[synapses.name], synapses.weight.numel()
        observed = {
            **super().observables(session, synapses),
            "replaced": (tensors["replaced"], tensors["replaced_total"], total),
            "lifetime": (tensors["replaced_total"], total, tensors["lived"]),
        }
        if "born" in tensors:
            observed["age"] = (tensors["born"], session.step_of(synapses))
        return observed

    def _turn_over(self, session: Session, synapses: Synapses, owner: Owner, step: int) -> bool:
        """Replace weak synapses, in one pass over the weight and all that is kept of it, where that can be done."""
        tensors, weight = session.store[synapses.name], synapses.weight
        scale = tensors["initial_std"] if self.reference == "initial" else _current_std(synapses)
        if is_at_hand(scale) and not bool(scale > 0):
            self._raise_on_nan(synapses.name, weight)
            session.tell(
                f"{synapses.name} is not rejuvenated: the standard deviation of its weights is 0, or not finite"
            )
            return False
        operands = {"scale": scale}
        signs = session.signs(synapses, step - 1)
        if signs is not None:
            operands["signs"] = signs
        if synapses.padding_row is not None:
            rows = torch.arange(weight.shape[0], device=weight.device).view(-1, *(1,) * (weight.ndim - 1))
            operands["is_synapse"] = cut(rows != synapses.padding_row, weight)
        if self.source == "lognormal":
            operands["centre"], operands["spread"] = _lognormal_fit(weight)
        settings = {"dre": self.dre, "shrinkage": self.shrinkage, "source": self.source}
        turnover = Change(
            Rule(_turnover, (("given", (*operands, "table")), *settings.items())),
            noise=self.noise(synapses.name, step),
            purposes=("replace", "value", "sign"),
            operands=tuple(operands.values()),
            constants=(tensors["quantiles"],),
        )
        self._change(session, synapses, owner, turnover, step)
        return True

    def _change(self, session: Session, synapses: Synapses, owner: Owner, change: Change, step: int) -> None:
        """Change a target; its new synapses start young: optimizer moments, multipliers."""
        counted = session.plasticity.change(synapses, change, self._kept(session, synapses, owner, step))
        self._look_for_nan(synapses.name, synapses.weight, whole(count_of(counted[1], synapses.weight)))
        tensors = session.store[synapses.name]
        tensors["replaced"] = number_of(counted, synapses.weight)
        tensors["replaced_total"] = tensors["replaced_total"] + tensors["replaced"]

    def _kept(self, session: Session, synapses: Synapses, owner: Owner, step: int) -> list[Kept]:
        moments = self._moments_of(session, synapses.name, owner, synapses.weight)
        return [*session.kept(synapses, step), *moments]

    def _look_for_nan(self, name: str, weight: Tensor, found: Tensor) -> None:
        """At once on a CPU; elsewhere at the next event, as looking at a value would wait for the device."""
        seen = found if is_at_hand(found) else self._found.get(name)
        self._found[name] = found.to("cpu", non_blocking=True)
        if seen is not None and bool(seen.isnan().tolist()):  # NaN among the weights, or infinities of both signs
            self._raise_on_nan(name, weight)

    @staticmethod
    def _raise_on_nan(name: str, weight: Tensor) -> None:
        with in_parts_of(weight):
            found = bool(total(local(weight).isnan()) > 0)
        if found:
            raise RuntimeError(
                f"{name} contains NaN, which WeightRejuvenation would hide; find its source, with detect_anomaly=True"
            )

    def _moments_of(self, session: Session, name: str, owner: Owner, parameter: torch.nn.Parameter) -> list[Kept]:
        kept, unknown = moments_of(owner.optimizer, parameter, self.moments)
        if unknown:
            names = ", ".join(unknown)
            session.tell(
                f"{name}: new synapses keep {names} of {type(owner.optimizer).__name__}, whose meaning is unknown"
            )
        return kept

    def _renew_dormant(self, session: Session, synapses: Synapses, owner: Owner, step: int) -> bool:
        """Fresh incoming weights, zero bias and outgoing weights for neurons that hardly fire, if rates are known."""
        tensors = session.store[synapses.name]
        rate = tensors.get("rate")
        if rate is None:
            return False
        dormant = rate < self.dormant_fraction * mean(rate)
        operands = {"dormant": synapses.along_postsynaptic(dormant)}
        signs = session.signs(synapses, step - 1)
        if signs is not None:
            operands["signs"] = signs
        if self.source == "lognormal":
            operands["centre"], operands["spread"] = _lognormal_fit(synapses.weight)
        settings = {"shrinkage": self.shrinkage, "source": self.source}
        renewal = Change(
            Rule(_renewal, (("given", (*operands, "table")), *settings.items())),
            noise=self.noise(synapses.name, step),
            purposes=("value", "sign"),
            operands=tuple(operands.values()),
            constants=(tensors["quantiles"],),
        )
        self._change(session, synapses, owner, renewal, step)
        bias = synapses.module._parameters.get("bias")
        if bias is not None and (bias_owner := session.owner(bias)) is not None:
            moments = self._moments_of(session, f"{synapses.module_name}.bias", bias_owner, bias)
            change_weight(silence(cut(dormant, bias)), bias, Layout(bias), kept=moments)
        for reader, block in self._readers[synapses.name] or ():
            self._silence(session, reader, dormant.repeat_interleave(block), step)
        tensors["rate"] = torch.where(dormant, mean(rate), rate)  # a new neuron gets time to find its rate
        return True

    def _silence(self, session: Session, reader: Synapses, dormant: Tensor, step: int) -> None:
        """Zero the weights by which a layer reads renewed neurons."""
        owner = session.owner(reader.weight)
        if owner is not None and reader.weight.requires_grad:
            change = silence(reader.along_presynaptic(dormant))
            kept = self._kept(session, reader, owner, step)
            born = session.store.get(reader.name, {}).get("born")  # a silenced synapse is not replaced
            session.plasticity.change(reader, change, [one for one in kept if one.tensor is not born])

    def _check_readers(self, by_module: Mapping[str, Synapses]) -> None:
        """Whether there are the layers that ``readers`` names; also where ``magnitude`` reads none of them."""
        known = ", ".join(by_module)
        for layer, given in self.readers.items():
            for key in (layer, *given):
                if key not in by_module:
                    allowed = f"names of layers: {known}"
                    raise BioConfigError(f"{self.name}.readers", key, allowed, nearest_name(key, by_module))

    def _find_readers(self, session: Session, by_module: Mapping[str, Synapses]) -> None:
        """Who reads each target's neurons: as given, else as traced, else nobody."""
        for name, synapses in self.targets.items():
            traced = session.architecture.readers.get(synapses.module_name)
            if synapses.module_name in self.readers:
                layers = [by_module[layer] for layer in self.readers[synapses.module_name]]
            elif traced is not None and all(reader.module_name in by_module for reader in traced):
                layers = [by_module[reader.module_name] for reader in traced]
            else:
                self._readers[name] = None
                session.tell(
                    f"who reads {synapses.module_name} is unknown: only incoming weights of dormant units are refreshed"
                )
                continue
            self._readers[name] = [(layer, self._block(synapses, layer)) for layer in layers]

    def _block(self, synapses: Synapses, reader: Synapses) -> int:
        """How many inputs of the reader one neuron fills: its feature map, where that is flattened."""
        block, rest = divmod(reader.presynaptic_neurons, synapses.postsynaptic_neurons)
        if rest:
            raise BioConfigError(
                f"{self.name}.readers",
                f"{synapses.module_name}: {reader.module_name}",
                f"a layer whose inputs ({reader.presynaptic_neurons}) are a multiple of"
                f" {synapses.postsynaptic_neurons} neurons",
            )
        return block


def _without_padding(synapses: Synapses, rows: Tensor, first: int = 0) -> Tensor:
    """The weight's rows from ``first`` on, without an embedding's row for padding, a constant zero and no synapse."""
    padding = -1 if synapses.padding_row is None else synapses.padding_row - first
    return torch.cat([rows[:padding], rows[padding + 1 :]]) if 0 <= padding < len(rows) else rows


def _current_std(synapses: Synapses) -> Tensor:
    weight = synapses.weight.detach()
    with in_parts_of(weight):
        return std(_without_padding(synapses, local(weight), start_of(weight)[0]))


def _lognormal_fit(weight: Tensor) -> tuple[Tensor, Tensor]:
    with in_parts_of(weight):
        return functional.lognormal_fit(local(weight))


def _turnover(
    block: Block, *, given: tuple[str, ...], source: Source, dre: float, shrinkage: float
) -> tuple[Tensor, Tensor]:
    operands = dict(zip(given, block.operands, strict=True))
    new, replaced = functional.rejuvenate_weights(
        block.weight,
        _draw(block),
        scale=operands["scale"],
        dre=dre,
        shrinkage=shrinkage,
        source=source,
        **_fresh(operands, source),
    )
    # a spread of 0 tells no weak synapse from a strong one
    changes = operands["scale"] > 0
    if "is_synapse" in operands:
        changes = changes & operands["is_synapse"]
    return torch.where(changes, new, block.weight), replaced & changes


def _renewal(block: Block, *, given: tuple[str, ...], source: Source, shrinkage: float) -> tuple[Tensor, Tensor]:
    operands = dict(zip(given, block.operands, strict=True))
    fresh = functional.fresh_synapses(block.weight, _draw(block), source=source, **_fresh(operands, source))
    # a neuron that computes NaN never fires; a NaN stays to be found
    dormant = operands["dormant"] & ~block.weight.isnan()
    return torch.where(dormant, fresh, block.weight * (1.0 - shrinkage)), dormant


def _draw(block: Block) -> Draw:
    assert block.draw is not None  # noqa: S101 - the event gives it
    return block.draw


def _fresh(operands: dict[str, Tensor], source: Source) -> dict[str, Any]:
    """What new synapses are made from."""
    fit = (operands["centre"], operands["spread"]) if source == "lognormal" else None
    return {"table": operands["table"].view(-1), "signs": operands.get("signs"), "fit": fit}


def _step(block: Block) -> Tensor:
    return block.operands[0]


_NOW = Form(factor=Rule(_step))
