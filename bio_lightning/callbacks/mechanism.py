"""What all mechanisms share: selection, schedule, noise, state; and what one may do, step by step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch.distributed
from torch import Tensor

from bio_lightning.callbacks.base import BioCallback
from bio_lightning.errors import BioConfigError
from bio_lightning.events import Kept
from bio_lightning.functional._shards import whole
from bio_lightning.functional.noise import Noise, Noises, stream
from bio_lightning.kernels import Kernel
from bio_lightning.optimizers import ApplyTo, Owner
from bio_lightning.parameters import number, parameters
from bio_lightning.plasticity import Part
from bio_lightning.session import Session
from bio_lightning.synapses import ALL_KINDS, Kind, Synapses, select

__all__ = ["Mechanism", "Observables", "PlasticityMechanism", "ScheduledMechanism"]

#: Arguments of a metric's ``update``, by family of statistic.
Observables = dict[str, tuple[Tensor | float, ...]]


class Mechanism(BioCallback):
    """A mechanism on selected synapses.

    Args:
        include: fnmatch patterns on qualified parameter or module names; a bare string is one pattern.
        exclude: Patterns to leave out again.
        seed: Of the mechanism's noise; any integer. Torch's random state is neither read nor moved.
        forward_order: All layers with synapses in forward order, where tracing cannot find it out; null for tracing. It
            belongs to the model: set it once, and all mechanisms share it.
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    seed: int = 0
    forward_order: tuple[str, ...] | None = None

    is_mechanism: ClassVar[bool] = True
    #: Place in the library's own order: within one step and at the start.
    order: ClassVar[int] = 0
    #: Layers it acts on.
    kinds: ClassVar[frozenset[Kind]] = ALL_KINDS
    #: Its keys in the shared store, saved in checkpoints.
    stored: ClassVar[tuple[str, ...]] = ()
    #: Those of them that count synapses.
    counts: ClassVar[tuple[str, ...]] = ()
    #: Whether its factor is kept from step to step, and so part of ``multipliers``.
    keeps_multiplier: ClassVar[bool] = False
    #: Arguments that act at the start alone: after a resume what they led to stays.
    settled_at_start: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.targets: dict[str, Synapses] = {}
        self.skipped: list[Synapses] = []
        self.restored_steps: list[int] = []

    def noise(self, name: str, step: int, purpose: str = "") -> Noise:
        """The draw for a weight at a step, independent of every other mechanism, purpose and weight."""
        return Noise(self.seed, stream(self.name, purpose, name), step)

    def noises(self, layers: Sequence[Synapses], step: int) -> Noises:
        """The same for several weights."""
        return Noises(self.seed, tuple(stream(self.name, "", layer.name) for layer in layers), step)

    # ---- what a mechanism does; every method may be left as it is ---------------------------------------------------

    @property
    def scales_learning(self) -> bool:
        """Whether :meth:`part` gives a factor on the learning rate."""
        return False

    @property
    def rates_needed(self) -> tuple[str, ...]:
        """Which firing rates it reads: ``rate`` (postsynaptic), ``pre_rate``."""
        return ()

    @property
    def judges_gradients(self) -> bool:
        """Whether it compares gradients with thresholds."""
        return False

    def acted_kinds(self) -> frozenset[Kind]:
        """Layers it acts on with its present settings."""
        return self.kinds

    def choose_targets(self, session: Session) -> None:
        """Choose the targets."""
        chosen, self.skipped = select(session.synapses, self.include, self.exclude, self.acted_kinds(), self.name)
        self.targets = {synapses.name: synapses for synapses in chosen}

    def initialize(self, session: Session, synapses: Synapses) -> None:
        """Give a weight its first values, on a fresh start only."""

    def start(self, session: Session, synapses: Synapses) -> None:
        """Create the state of a weight where none was restored."""

    def verify(self, session: Session, synapses: Synapses) -> None:
        """Check state and weight after every restore."""

    def active(self, step: int) -> bool:
        """Whether it acts at a step."""
        return True

    def due(self, step: int) -> bool:
        """Whether its state changes at a step."""
        return True

    def prepare(self, session: Session, layers: Sequence[Synapses], step: int) -> None:
        """Change what does not depend on the gradient, ahead of the pass of a step.

        Args:
            session: Of the fit.
            layers: One layer, or several of one shape of which the store has the same keys.
            step: Optimizer step, counted from 0.
        """

    def part(self, session: Session, layers: Sequence[Synapses], step: int) -> Part | None:
        """What it does to such layers in the pass of a step; None where it does nothing."""
        return None

    def after_update(self, session: Session, synapses: Synapses, owner: Owner) -> None:
        """Change a weight right after the optimizer moved it."""

    def finish(self, session: Session, synapses: Synapses, owner: Owner, completed: range) -> None:
        """Change a weight at the end of a batch in which its optimizer completed these steps (counted from 1)."""

    def kept(self, session: Session, synapses: Synapses, step: int) -> tuple[Kept, ...]:
        """What it keeps of every synapse, with what becomes of that where the synapse is new at a step."""
        return ()

    def imposed_signs(self, session: Session, synapses: Synapses) -> Tensor | None:
        """Signs that the mechanism imposes on a weight, broadcastable, or None."""
        return None

    def observables(self, session: Session, synapses: Synapses) -> Observables:
        """What :class:`BioMonitor` makes statistics of: by default the firing rate, where the mechanism reads it."""
        rate = session.store.get(synapses.name, {}).get("rate") if "rate" in self.rates_needed else None
        return {} if rate is None else {"firing_rate_mean": (rate,)}

    # ---- state ------------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Distinguishes two callbacks of one class on different layers."""
        return _state_key(type(self).__qualname__, tuple(self.include), tuple(self.exclude))  # asked for at every hook

    def arguments(self) -> dict[str, Any]:
        """Constructor arguments as primitives."""
        return {field.name: _primitive(getattr(self, field.name)) for field in parameters(self)}

    def saved_keys(self, name: str) -> tuple[str, ...]:
        """Keys of the store to save for a weight."""
        counts = (f"{side}_count" for side in self.rates_needed)
        return (*self.stored, *self.rates_needed, *counts)

    def state_dict(self) -> dict[str, Any]:
        """Arguments, step counters and the stored tensors: tensors and primitives only.

        What is in shards is put together on rank zero, whose state Lightning saves, and missing on other ranks.
        """
        if self._session is None or not self.targets:
            return self._restored
        store = self._session.store
        weights: dict[str, dict[str, Tensor]] = {name: {} for name in self.targets}
        for name, tensors in weights.items():
            for key in self.saved_keys(name):
                saved = _put_together(store[name][key]) if key in store.get(name, {}) else None
                if saved is not None:
                    tensors[key] = saved
        if self.rates_needed:
            for name, tensors in weights.items():
                tensors.update(self._session.rates.pending(name))
        return {"arguments": self.arguments(), "steps": list(self._session.steps), "weights": weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the weights' devices are known."""
        self._restored = state_dict

    def adopt(self, session: Session) -> None:
        """Move restored state into the store."""
        if not self._restored or not self.targets:
            return
        for name, tensors in self._restored["weights"].items():
            if name in self.targets:
                kept = session.store.setdefault(name, {})
                for key in self.saved_keys(name):
                    kept.pop(key, None)
                kept.update(tensors)
                for key in self.stored if self.keeps_multiplier else ():
                    if key in kept:
                        kept[key] = kept[key].to(session.settings.stored_as)
        self.restored_steps = list(self._restored["steps"])
        self._restored = {}


class ScheduledMechanism(Mechanism):
    """A mechanism that starts, ends and repeats.

    Args:
        start_step: First optimizer step at which it acts, >= 0.
        end_step: Optimizer step from which on it does not act; null for never.
        every_n_steps: How often its state changes, in optimizer steps, >= 1; a stored multiplier acts on every step.
        kernel: How passes run: ``eager``, ``compiled``, or ``auto`` to let the library choose; null inherits.
    """

    start_step: int = number(0, ge=0)
    end_step: int | None = number(None, ge=0)
    every_n_steps: int = number(1, ge=1)
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = self.end_step is None or self.end_step == 0 or self.end_step > self.start_step
        require(ends, "end_step", self.end_step, f"null, 0 (never acts), or more than start_step ({self.start_step})")

    def active(self, step: int) -> bool:
        """Whether ``step`` (counted from 0) lies in [start_step, end_step)."""
        return self.start_step <= step and (self.end_step is None or step < self.end_step)

    def due(self, step: int) -> bool:
        """Whether the state changes at ``step`` (counted from 0)."""
        return (step - self.start_step) % self.every_n_steps == 0

    def due_after(self, completed: range) -> int:
        """On how many of these completed steps (counted from 1) an event at the end of a step falls."""
        return sum(
            self.active(count - 1) and (count - self.start_step) % self.every_n_steps == 0 for count in completed
        )


class PlasticityMechanism(ScheduledMechanism):
    """A mechanism that changes how fast weights learn, through the pass that all of them share.

    Args:
        apply_to: ``gradient`` scales the gradient, ``update`` what the optimizer made of it; ``auto`` picks the
            gradient only for SGD without weight decay. null inherits from the other callbacks.
        state_dtype: Precision of stored multipliers; null inherits.
    """

    apply_to: ApplyTo | None = None
    state_dtype: Literal["float32", "bfloat16"] | None = None

    @property
    def scales_learning(self) -> bool:
        """Whether :meth:`factor` gives a factor on the learning rate."""
        return True

    def observables(self, session: Session, synapses: Synapses) -> Observables:
        """Also the factor of the step just done: what is kept of it always, what is drawn anew only while it acts."""
        observed = super().observables(session, synapses)
        step, weight = max(session.step_of(synapses) - 1, 0), synapses.weight
        if self.scales_learning and (self.stored or self.active(step)):
            part = self.part(session, [synapses], step)
            factor = None if part is None else session.plasticity.factor([part], weight.detach())
            if factor is not None:
                observed["multiplier"] = (factor,)
        return observed


@functools.lru_cache(maxsize=256)
def _state_key(name: str, include: tuple[str, ...], exclude: tuple[str, ...]) -> str:
    return f"{name}{ {'include': list(include), 'exclude': list(exclude)}!r}"


def _put_together(tensor: Tensor) -> Tensor | None:
    """A tensor as it is saved: one layer at a time is whole, and then leaves the device."""
    full = whole(tensor)
    if full is tensor:
        return tensor
    return full.cpu() if torch.distributed.get_rank() == 0 else None


def _primitive(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, (list, tuple)):
        return [_primitive(item) for item in value]
    if isinstance(value, dict):
        return {key: _primitive(item) for key, item in value.items()}
    return value


def require(condition: bool, key: str, value: object, allowed: str) -> None:
    """Raise a :class:`BioConfigError` unless a condition between several parameters holds."""
    if not condition:
        raise BioConfigError(key, value, allowed)
