"""When things happen: what all bio callbacks of a Trainer share about one LightningModule.

Lightning calls every callback at every hook. Here the first bio callback in the Trainer's list leads and the session
runs all mechanisms in the library's own order, so that the order of the list does not matter.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from bio_lightning.architecture import Architecture, trace_architecture
from bio_lightning.events import Kept
from bio_lightning.firing_rates import FiringRates, firing_modules
from bio_lightning.functional._shards import reshard
from bio_lightning.kernels import Mode
from bio_lightning.optimizers import Owner, Owners, apply_to_for, splits_gradient
from bio_lightning.plasticity import Part, Plasticity, Store, Work, share_of_step
from bio_lightning.resuming import hand_over, put_in_place
from bio_lightning.settings import (
    Settings,
    agree,
    compiles,
    refuse_scaled_gradients,
    refuse_shared_weights,
    refuse_unsupported,
)
from bio_lightning.split_layers import fit_to_split
from bio_lightning.synapses import Synapses, find_synapses, named_modules, recompile_for_hooks
from bio_lightning.turns import Turn, together

if TYPE_CHECKING:
    from bio_lightning.callbacks.base import BioCallback
    from bio_lightning.callbacks.mechanism import Mechanism

__all__ = ["Session"]

#: The latest session of every LightningModule; outside the module, so that the module stays plain.
_SESSIONS: weakref.WeakKeyDictionary[nn.Module, Session] = weakref.WeakKeyDictionary()


class Session:
    """State and schedule shared by the bio callbacks of one Trainer, for one LightningModule.

    Args:
        pl_module: The module; held weakly.
        callbacks: The bio callbacks in the Trainer's order; the first one leads.
    """

    def __init__(self, pl_module: pl.LightningModule, callbacks: Sequence[BioCallback]) -> None:
        self._module = weakref.ref(pl_module)
        self.callbacks = list(callbacks)
        self.mechanisms: list[Mechanism] = sorted(
            (cast("Mechanism", c) for c in callbacks if c.is_mechanism), key=lambda c: (c.order, c.state_key)
        )
        self.synapses: dict[str, Synapses] = {}
        self.architecture = Architecture(order=[])
        self.store: Store = {}
        self.steps: list[int] = []  # optimizer steps done, by optimizer
        self.resumed = self._settled = False  # whether from a checkpoint; whether state has its first values
        self.rates = FiringRates(self.store)
        self.plasticity = Plasticity()
        self.settings = Settings()
        self._acting: dict[str, list[Mechanism]] = {}
        self._handles: list[RemovableHandle] = []
        self._owner_index: dict[str, int] = {}
        self._owners = Owners([])
        self._turns: dict[tuple[object, ...], list[Turn]] = {}
        self._kinds: dict[object, int] = {}  # numbers of what turns have in common
        self._passed: set[int] = set()  # optimizers whose pass has run in the current step
        self._learned = False  # whether the current batch had a backward pass
        self._stepped: dict[int, int] = {}  # optimizers that stepped in the current batch, with their count before
        self.stepped = False  # whether an optimizer stepped in the latest batch
        self._touched: set[str] = set()  # weights that had a gradient in the current step
        self._told: set[str] = set()

    @classmethod
    def join(cls, pl_module: pl.LightningModule, callbacks: Sequence[BioCallback]) -> Session:
        """The session of these callbacks on this module: the one of an earlier ``fit``, or a new one."""
        session = _SESSIONS.get(pl_module)
        if session is None or set(session.mechanisms) != {c for c in callbacks if c.is_mechanism}:
            session = _SESSIONS[pl_module] = cls(pl_module, callbacks)
        session.callbacks = list(callbacks)
        return session

    @classmethod
    def of(cls, pl_module: nn.Module) -> Session:
        """The latest session of a module, compiled or not.

        Raises:
            ValueError: No Trainer with bio callbacks has run on the module.
        """
        module = getattr(pl_module, "_orig_mod", pl_module)
        session = _SESSIONS.get(module)
        if session is None:
            raise ValueError(f"no Trainer with bio callbacks has run on this {type(module).__name__}")
        return session

    @property
    def module(self) -> pl.LightningModule:
        """The LightningModule."""
        module = self._module()
        if module is None:
            raise RuntimeError("the LightningModule of this session is gone")
        return module

    def tell(self, message: str) -> None:
        """Say something once, on rank zero."""
        if message not in self._told:
            self._told.add(message)
            rank_zero_info(f"bio_lightning: {message}")

    # ---- start ------------------------------------------------------------------------------------------------------

    def expect_weights(self) -> None:
        """``setup``: a checkpoint may be loaded next."""
        register: Any = self.module.register_load_state_dict_pre_hook  # torch gives it no types
        self._handles.append(register(fit_to_split))

    def resume(self, states: Mapping[str, Any]) -> None:
        """``on_load_checkpoint``: weights are not fresh, even where the checkpoint holds no state of ours."""
        self.resumed = True
        hand_over(self.mechanisms, states)

    def begin(self, trainer: pl.Trainer) -> None:
        """``on_fit_start``: find the synapses, restore or initialise their state, install hooks."""
        refuse_unsupported(trainer, agree(self.mechanisms), self.callbacks)
        reshard(self.module)
        self.survey(trainer.optimizers, trainer)
        self.rates.over_ranks = trainer.world_size > 1
        if not trainer.strategy.restore_checkpoint_after_setup:
            self.settle()

    def settle(self) -> None:
        """Restore or initialise all state, and install hooks: once, when the strategy has restored."""
        if self._settled:
            return
        self._settled = True
        self._adopt()
        self._continue_counting()
        self.start()
        for optimizer in self._owners.optimizers:
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        self._watch_rates()
        if self.rates.hooked:
            recompile_for_hooks(self.module)

    def survey(self, optimizers: Sequence[Optimizer], trainer: pl.Trainer | None = None) -> None:
        """Which mechanism acts on which weight, and how; nothing is changed. Without a Trainer, as far as is known."""
        self._owners = Owners(optimizers)
        self.settings = agree(self.mechanisms)
        self._find_synapses()
        acting = {s: self._acting[n] for n, s in self.synapses.items() if self._acting[n]}
        refuse_shared_weights(optimizers, acting)
        self.plasticity.compiled = compiles(self.settings.kernel, trainer, list(acting))

    def start(self) -> None:
        """Give weights and state their first values, where they have none."""
        for phase in ("initialize", "start"):
            for mechanism in self.mechanisms:
                for synapses in mechanism.targets.values():
                    getattr(mechanism, phase)(self, synapses)

    def ready(self) -> None:
        """``on_train_start``, after every restore: check the state; some strategies restore after ``on_fit_start``."""
        reshard(self.module)
        self.settle()
        self._remember_owners()
        self._adopt()
        for mechanism in self.mechanisms:
            for synapses in mechanism.targets.values():
                mechanism.verify(self, synapses)

    def _remember_owners(self) -> None:
        """For when there are none any more, or weights are other parameters, as FSDP2 makes of them for validation."""
        self._owner_index |= {n: owner.index for n, s in self.synapses.items() if (owner := self.owner(s.weight))}

    def _adopt(self) -> None:
        """Take over what a checkpoint has restored."""
        for mechanism in self.mechanisms:
            mechanism.adopt(self)
        put_in_place(self.store, self.synapses, {key for mechanism in self.mechanisms for key in mechanism.counts})

    def end(self) -> None:
        """``teardown`` and ``on_exception``: leave no hook behind."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self.rates.hooked:
            recompile_for_hooks(self.module)
        self.rates.remove()
        self.plasticity.release()
        self._turns.clear()
        self._kinds.clear()
        for of_a_step in (self._passed, self._stepped, self._touched):  # an exception leaves it half done
            of_a_step.clear()
        self._remember_owners()
        self.resumed = self._settled = False
        self._owners = Owners([])

    def _find_synapses(self) -> None:
        self._turns.clear()
        self._kinds.clear()
        self.synapses, unusable = find_synapses(self.module)
        for name, reason in unusable.items():
            self.tell(f"{name} is left alone: {reason}")
        layers = {site.module_name: site.module for s in self.synapses.values() for site in s.sites}
        self.architecture = trace_architecture(self.module, layers, self.settings.forward_order)
        self._acting = {name: [] for name in self.synapses}
        for mechanism in self.mechanisms:
            mechanism.choose_targets(self)
            for name in mechanism.targets:
                for other in self._acting[name]:
                    if type(other) is type(mechanism):
                        raise MisconfigurationException(
                            f"two {type(mechanism).__name__} callbacks act on {name}; separate them by include/exclude"
                        )
                self._acting[name].append(mechanism)

    def _continue_counting(self) -> None:
        restored = [m.restored_steps for m in self.mechanisms if m.restored_steps]
        if restored:
            self.steps = list(restored[0])
        for mechanism in self.mechanisms:
            mechanism.restored_steps = []
        if len(self.steps) != len(self._owners.optimizers):
            self.steps = [0] * len(self._owners.optimizers)

    def _watch_rates(self) -> None:
        named = named_modules(self.module)
        for mechanism in self.mechanisms:
            for side in mechanism.rates_needed:
                for synapses in mechanism.targets.values():
                    modules = firing_modules(synapses, side, named, self.architecture.norms)
                    self.rates.watch(synapses, side, modules)
                    if not modules:
                        self.tell(f"{type(mechanism).__name__} skips {synapses.name}: no hook sees what it reads")

    # ---- one training step ------------------------------------------------------------------------------------------

    def batch_start(self) -> None:
        """``on_train_batch_start``: a pass whose optimizer never stepped is forgotten."""
        self._passed.clear()
        self._learned = False
        self.rates.gate.is_open = True

    def after_backward(self, trainer: pl.Trainer) -> None:
        """``on_after_backward``: the pass, in the micro-batch that completes the accumulation.

        Elsewhere the pass has to wait for ``on_before_optimizer_step``: in manual optimization nobody knows here whose
        step follows, with a gradient scaler the gradients are scaled and the step may be skipped, and an
        ``optimizer_step`` of the user's may skip it, too.
        """
        self._learned = True
        waits = _scaler(trainer) is not None or is_overridden("optimizer_step", self.module, pl.LightningModule)
        if self.module.automatic_optimization and not waits and not _accumulating(trainer):
            self.run_pass(trainer, self._owners.optimizers[0])

    def before_optimizer_step(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """``on_before_optimizer_step``: the pass where it has not run in ``on_after_backward``."""
        scaler = _scaler(trainer)
        if scaler is not None:
            refuse_scaled_gradients(self.mechanisms, optimizer)
            if self._will_skip(scaler, optimizer):
                self.rates.discard(self._names(self._owners.optimizers.index(optimizer)))
                return
        self.run_pass(trainer, optimizer)

    def _will_skip(self, scaler: Any, optimizer: Optimizer) -> bool:
        """Whether a step under a gradient scaler is left out: for infinite gradients, or for want of a loss.

        Of a fused optimizer's gradients nothing is known before its step.
        """
        if self.module.automatic_optimization and not self._learned:
            return True
        return any(bool(found) for found in scaler._found_inf_per_device(optimizer).values())

    def run_pass(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """Crystallize, refresh multipliers, and scale the gradients where multipliers act on gradients."""
        index = self._owners.optimizers.index(optimizer)
        if index in self._passed:
            return
        self._passed.add(index)
        step = self.steps[index]
        modes = self._modes(index)
        passes: dict[Mode, list[Work]] = {"gradient": [], "before": []}
        divided: list[Synapses] = []
        turns = [turn for turn in self._turns_of(index) if turn.synapses.weight.grad is not None]
        self._touched.update(turn.synapses.name for turn in turns)
        for layers, turn in together(turns, modes, self.store):
            for mechanism in turn.due:
                mechanism.prepare(self, layers, step)
            mode = modes[id(turn.owner.group)]
            if mode == "gradient" or turn.scaled:
                stage: Mode = "gradient" if mode == "gradient" else "before"
                passes[stage].append(Work(layers, self._parts(layers, turn.active, turn.due, step)))
            if turn.synapses.gamma > 1 and splits_gradient(turn.owner, mode):
                divided += layers
        for stage, works in passes.items():
            self.plasticity.run(stage, works)
        for synapses in divided:
            cast("Tensor", synapses.weight.grad).div_(synapses.gamma)

    def parts(self, synapses: Synapses, step: int) -> tuple[Part, ...]:
        """What the mechanisms do to a weight in the pass of a step."""
        return self._parts([synapses], *self._active(synapses, step), step)

    def _parts(
        self, layers: Sequence[Synapses], active: Sequence[Mechanism], due: Sequence[Mechanism], step: int
    ) -> tuple[Part, ...]:
        """A state changes only where that is due."""
        parts = []
        for mechanism in active:
            part = mechanism.part(self, layers, step)
            if part is not None:
                parts.append(part if mechanism in due else part._replace(form=part.form._replace(observe=None)))
        return tuple(parts)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        """Optimizer post-hook: the step happened (a fused optimizer says itself when it did not)."""
        index = self._owners.optimizers.index(optimizer)
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            self.rates.discard(self._names(index))
            return
        if index not in self._passed:
            raise MisconfigurationException(
                f"{type(optimizer).__name__} stepped without Lightning's hooks, so that no mechanism could act; step"
                " what self.optimizers() gives, or what is handed to optimizer_step, not the optimizer inside"
            )
        step = self.steps[index]
        modes = self._modes(index)
        turns = [turn for turn in self._turns_of(index) if turn.synapses.name in self._touched]
        moved = []
        scaled = [turn for turn in turns if turn.scaled and modes[id(turn.owner.group)] == "update"]
        for layers, turn in together(scaled, modes, self.store):
            parts = self._parts(layers, turn.active, turn.due, step)
            gamma = turn.synapses.gamma
            if gamma > 1 and not splits_gradient(turn.owner, "update"):
                parts = (*parts, share_of_step(gamma))
            moved.append(Work(layers, parts))
        self.plasticity.run("after", moved)
        for turn in turns:
            for mechanism in turn.due:
                mechanism.after_update(self, turn.synapses, turn.owner)
        self.rates.commit(self._names(index))
        self._stepped.setdefault(index, step)
        self.steps[index] += 1
        self._passed.discard(index)

    def batch_end(self, trainer: pl.Trainer) -> None:
        """``on_train_batch_end``: rejuvenation, then Dale's principle, where the owning optimizer stepped."""
        self.stepped = bool(self._stepped)
        self.rates.gate.is_open = False
        turns = {index: self._turns_of(index) for index in self._stepped}
        for mechanism in self.mechanisms:
            for index, before in self._stepped.items():
                completed = range(before + 1, self.steps[index] + 1)
                for turn in turns[index]:
                    if turn.synapses.name in self._touched and turn.synapses.name in mechanism.targets:
                        mechanism.finish(self, turn.synapses, turn.owner, completed)
        if self._stepped:
            self._stepped.clear()
            self._touched.clear()

    # ---- lookups ----------------------------------------------------------------------------------------------------

    def owner(self, parameter: nn.Parameter) -> Owner | None:
        """Optimizer and parameter group of a parameter, None where it has none."""
        return self._owners.find(parameter)

    def _turns_of(self, index: int) -> list[Turn]:
        """Weights of one optimizer that a mechanism or a split concerns, in its present step.

        Which they are changes when parameter groups or the mechanisms that act do, not from step to step.
        """
        step = self.steps[index]
        self._owners.refresh()
        key = index, self._owners.version, *((m.active(step), m.due(step)) for m in self.mechanisms)
        if key not in self._turns:
            self._turns[key] = [
                self._turn(synapses, owner, step)
                for name, synapses in self.synapses.items()
                if self._acting[name] or synapses.gamma > 1
                if (owner := self.owner(synapses.weight)) is not None and owner.index == index
            ]
        return self._turns[key]

    def _turn(self, synapses: Synapses, owner: Owner, step: int) -> Turn:
        active, due = self._active(synapses, step)
        lies, most = self.plasticity.place(synapses)
        common = (lies, synapses.gamma, synapses.kind, synapses.groups, active, due)
        own = synapses if most == 1 else common  # a weight that is worked on alone is a kind of its own
        kind = self._kinds.setdefault(own, len(self._kinds))
        scaled = synapses.gamma > 1 or any(m.scales_learning for m in active)
        return Turn(synapses, owner, active, due, scaled, kind, most)

    def _active(self, synapses: Synapses, step: int) -> tuple[tuple[Mechanism, ...], tuple[Mechanism, ...]]:
        """Mechanisms that act on a weight at a step, and those of them whose state changes."""
        active = tuple(mechanism for mechanism in self._acting[synapses.name] if mechanism.active(step))
        return active, tuple(mechanism for mechanism in active if mechanism.due(step))

    def _names(self, index: int) -> set[str]:
        return {turn.synapses.name for turn in self._turns_of(index)}

    def _modes(self, index: int) -> dict[int, Literal["gradient", "update"]]:
        """How multipliers act, by parameter group: a schedule may have changed a weight decay."""
        optimizer = self._owners.optimizers[index]
        setting = self.settings.apply_to
        return {id(group): apply_to_for(setting, Owner(index, optimizer, group)) for group in optimizer.param_groups}

    def step_of(self, synapses: Synapses) -> int:
        """Steps done by the optimizer that owns a weight; 0 where none does."""
        owner = self.owner(synapses.weight)
        index = owner.index if owner else self._owner_index.get(synapses.name)
        return 0 if index is None else self.steps[index]

    def acting(self, synapses: Synapses) -> list[Mechanism]:
        """Mechanisms on a weight, in the library's order."""
        return self._acting.get(synapses.name, [])

    def kept(self, synapses: Synapses, step: int) -> list[Kept]:
        """What the mechanisms keep of every synapse, with what becomes of it where the synapse is new."""
        return [kept for mechanism in self.acting(synapses) for kept in mechanism.kept(self, synapses, step)]

    def signs(self, synapses: Synapses, step: int) -> Tensor | None:
        """Signs that Dale's principle imposes on a weight at a step, shaped to broadcast, or None."""
        for mechanism in self.acting(synapses):
            signs = mechanism.imposed_signs(self, synapses) if mechanism.active(step) else None
            if signs is not None:
                return signs
        return None


def _accumulating(trainer: pl.Trainer) -> bool:
    return trainer.fit_loop._should_accumulate()


def _scaler(trainer: pl.Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)
