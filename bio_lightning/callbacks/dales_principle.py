"""Dale's principle: wiring."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from bio_lightning import functional
from bio_lightning.callbacks.base import ReadWith
from bio_lightning.callbacks.mechanism import Observables, ScheduledMechanism, require
from bio_lightning.errors import BioConfigError
from bio_lightning.events import Change, number_of
from bio_lightning.functional._shards import count_of, in_parts_of, local, whole
from bio_lightning.kernels import Block, Rule
from bio_lightning.optimizers import Owner
from bio_lightning.parameters import number
from bio_lightning.session import Session
from bio_lightning.synapses import ALL_KINDS, Kind, Synapses, select

__all__ = ["DalesPrinciple"]


class DalesPrinciple(ScheduledMechanism):
    """Give all outgoing weights of a neuron one sign, excitatory or inhibitory, and keep it.

    The maths: :func:`bio_lightning.functional.dalian_network_initialization` and ``enforce_dales_principle``; the card:
    ``cards/dales_principle.md``. A presynaptic neuron is a *column* of a Linear layer and an input channel of a
    convolution. Neutral with ``end_step: 0``.

    Args:
        excitatory_fraction: Share of excitatory neurons in a layer, in [0, 1].
        balanced: At the start scale inhibitory weights so that the layer sums to zero, at its old norm.
        input_layer: Constrain also layers that read the model's input: pixels are not neurons.
        axis: ``presynaptic``: one sign per neuron's outgoing weights; ``postsynaptic``: per neuron's incoming weights,
            as the predecessor did.
        shared: Groups of patterns; layers of a group read the same neurons and so share signs (query, key and value
            projections). A recurrent layer's recurrent weights and the layer that reads its output share by themselves.
        on_mismatch: What to do with weights from a checkpoint without signs: ``project`` or ``refuse``.

    Raises:
        BioConfigError: A value is out of range, a group's layers read different numbers of neurons, ``shared`` is
            given with ``axis: postsynaptic``, or ``balanced`` meets a layer whose neurons are all of one kind.

    Example:
        >>> DalesPrinciple(excitatory_fraction=0.75).axis
        'presynaptic'
    """

    name: ClassVar[str] = "dales_principle"
    order: ClassVar[int] = 60
    kinds: ClassVar[frozenset[Kind]] = ALL_KINDS - {"embedding"}
    #: A weight has a count of violations from the moment on when it has its signs.
    stored: ClassVar[tuple[str, ...]] = ("signs", "violations")
    counts: ClassVar[tuple[str, ...]] = ("violations",)
    read_with: ClassVar[ReadWith] = {"input_layer": ("axis", ("presynaptic",))}
    settled_at_start: ClassVar[frozenset[str]] = frozenset(("seed", "excitatory_fraction", "balanced", "shared"))

    excitatory_fraction: float = number(0.8, ge=0, le=1)
    balanced: bool = False
    input_layer: bool = False
    axis: Literal["presynaptic", "postsynaptic"] = "presynaptic"
    shared: tuple[tuple[str, ...], ...] = ()
    on_mismatch: Literal["project", "refuse"] = "project"

    def __post_init__(self) -> None:
        super().__post_init__()
        free = not self.shared or self.axis == "presynaptic"
        require(free, "shared", self.shared, "an empty list with axis: postsynaptic, as no two layers feed one neuron")
        mixed = not self.balanced or 0 < self.excitatory_fraction < 1
        require(mixed, "excitatory_fraction", self.excitatory_fraction, "a number in (0, 1) with balanced: true")

    def choose_targets(self, session: Session) -> None:
        """Choose the targets, without those that read the model's input."""
        super().choose_targets(session)
        self._groups = self._shared_names(session)
        self._foreign: set[str] = set()  # weights from a checkpoint that does not know their signs
        if self.axis == "presynaptic" and not self.input_layer:
            for name, synapses in list(self.targets.items()):
                if synapses.module_name in session.architecture.inputs and not _is_recurrent(synapses):
                    self.skipped.append(self.targets.pop(name))
            if not self.targets:
                raise BioConfigError(
                    f"{self.name}.include", self.include, "patterns that name a layer behind the input layer, or"
                    " input_layer: true"
                )  # fmt: skip
        for name, synapses in self.targets.items() if self.axis == "presynaptic" else ():
            behind = synapses.module_name in session.architecture.hidden and not _is_recurrent(synapses)
            if behind and name not in self._groups and _populations(session, synapses)[0][0] == name:
                session.tell(
                    f"{name} may read hidden neurons of a recurrent layer, in a way that tracing cannot follow: its"
                    " signs are its own, unless dales_principle.shared groups it with the recurrent weights"
                )

    def adopt(self, session: Session) -> None:
        """Signs of the neurons on the other side are of no use."""
        if self._restored.get("arguments", {}).get("axis", self.axis) != self.axis:
            for tensors in self._restored["weights"].values():
                tensors.clear()
        super().adopt(session)

    def initialize(self, session: Session, synapses: Synapses) -> None:
        """Draw the signs; on a fresh start give the weights their signs."""
        tensors = session.store.setdefault(synapses.name, {})
        if "signs" in tensors:
            return
        signs = self._draw(session, synapses).to(synapses.weight.device)
        if self.balanced and bool((signs == signs[0]).all()):
            raise BioConfigError(
                f"{self.name}.balanced",
                True,
                f"false, or an excitatory_fraction that leaves {synapses.name} excitatory and inhibitory neurons",
            )
        tensors["signs"] = signs
        if session.resumed:
            self._foreign.add(synapses.name)
            tensors["violations"] = _no_violations(synapses.weight)
        elif self.active(0) and synapses.weight.requires_grad:
            self._give_signs(session, synapses)

    def verify(self, session: Session, synapses: Synapses) -> None:
        """Weights of a checkpoint that does not know the signs are projected, or refused."""
        if synapses.name not in self._foreign or not self.active(session.step_of(synapses)):
            return
        wrong = whole(self._project(session, synapses))
        if self.on_mismatch == "refuse" and int(wrong) > 0:
            raise MisconfigurationException(
                f"DalesPrinciple: {int(wrong)} weights of {synapses.name} contradict their neuron's sign;"
                " load a checkpoint trained with the same signs, or set on_mismatch='project'"
            )

    def finish(self, session: Session, synapses: Synapses, owner: Owner, completed: range) -> None:
        """Zero what the optimizer moved past zero."""
        if not self.due_after(completed):
            return
        tensors = session.store[synapses.name]
        if "violations" not in tensors:  # frozen until now, or before start_step
            self._give_signs(session, synapses)
        else:
            tensors["violations"] = tensors["violations"] + self._project(session, synapses)

    def imposed_signs(self, session: Session, synapses: Synapses) -> Tensor:
        """Signs, shaped to broadcast against the weight."""
        signs = session.store[synapses.name]["signs"]
        return synapses.along_presynaptic(signs) if self.axis == "presynaptic" else synapses.along_postsynaptic(signs)

    def observables(self, session: Session, synapses: Synapses) -> Observables:
        """How many weights moved past zero."""
        corrected = session.store[synapses.name].get("violations", 0)
        return {**super().observables(session, synapses), "violations": (corrected, synapses.weight.numel())}

    @torch.no_grad()
    def _give_signs(self, session: Session, synapses: Synapses) -> None:
        weight, signs = local(synapses.weight), self.imposed_signs(session, synapses)
        with in_parts_of(synapses.weight):
            weight.copy_(functional.dalian_network_initialization(weight, signs, balanced=self.balanced))
        session.store[synapses.name]["violations"] = _no_violations(synapses.weight)

    def _project(self, session: Session, synapses: Synapses) -> Tensor:
        """How many weights had the wrong sign."""
        projection = Change(_PROJECTION, operands=(self.imposed_signs(session, synapses),))
        return number_of(session.plasticity.change(synapses, projection), synapses.weight)

    # ---- whose sign -------------------------------------------------------------------------------------------------

    def _draw(self, session: Session, synapses: Synapses) -> Tensor:
        """Signs of the neurons that a weight reads, in one draw per population of neurons."""
        if self.axis == "postsynaptic":
            return self._population(synapses.name, synapses.postsynaptic_neurons)
        members = self._groups.get(synapses.name, (synapses.name,))
        readings = (_populations(session, session.synapses[member]) for member in members)
        # a group reads what any of its members is known to read
        populations = next((p for p in readings if p[0][0] not in members), None)
        if populations is None:
            populations = [(synapses.name, synapses.presynaptic_neurons)]
        return torch.cat([self._population(name, size) for name, size in populations])

    def _population(self, name: str, size: int) -> Tensor:
        name = "\0".join(self._groups.get(name, (name,)))
        return functional.random_signs(size, self.noise(name, 0), excitatory_fraction=self.excitatory_fraction)

    def _shared_names(self, session: Session) -> dict[str, tuple[str, ...]]:
        """Group of every weight that shares signs by configuration."""
        groups: dict[str, tuple[str, ...]] = {}
        for patterns in self.shared:
            members, _ = select(session.synapses, patterns, (), self.kinds, self.name, key="shared")
            names = tuple(member.name for member in members)
            sizes = {member.name: member.presynaptic_neurons for member in members}
            if len(set(sizes.values())) > 1:
                raise BioConfigError(f"{self.name}.shared", sizes, "layers that read the same number of neurons")
            for name in names:
                if name in groups:
                    raise BioConfigError(f"{self.name}.shared", name, "every layer in one group only")
                groups[name] = names
        return groups


def _no_violations(weight: Tensor) -> Tensor:
    return count_of(torch.zeros((), dtype=torch.int64, device=weight.device), weight)


def _projected(block: Block) -> tuple[Tensor, Tensor]:
    return functional.enforce_dales_principle(block.weight, block.operands[0])


_PROJECTION = Rule(_projected)


def _is_recurrent(synapses: Synapses) -> bool:
    """Whether a weight reads neurons of its own layer."""
    return synapses.kind == "recurrent" and not (
        synapses.attribute == "weight_ih" or synapses.attribute.startswith("weight_ih_l0")
    )


def _populations(session: Session, synapses: Synapses) -> list[tuple[str, int]]:
    """The populations of neurons that a weight reads, with their sizes.

    Recurrent weights and whatever reads the same hidden neurons share them: the next layer of the same module, both
    directions of it where it is bidirectional, and the layer behind the module, where the trace sees what it reads.
    """
    own = [(synapses.name, synapses.presynaptic_neurons)]
    layer = synapses.attribute.removeprefix("weight_ih_l").split("_")[0]
    if _is_recurrent(synapses) and not layer.isdigit():
        return own
    if layer.isdigit() and int(layer) > 0:
        prefix = f"{synapses.name.removesuffix(synapses.attribute)}weight_hh_l{int(layer) - 1}"
        hidden: tuple[str, ...] = (prefix, f"{prefix}_reverse")[: 2 if synapses.module.bidirectional else 1]
    else:
        hidden = session.architecture.hidden.get(synapses.module_name, ()) if len(synapses.sites) == 1 else ()
    if not all(name in session.synapses for name in hidden):
        return own
    sizes = [session.synapses[name].presynaptic_neurons for name in hidden]
    return list(zip(hidden, sizes, strict=True)) if sum(sizes) == synapses.presynaptic_neurons else own
