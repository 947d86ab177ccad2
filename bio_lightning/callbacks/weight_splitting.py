"""Weight splitting: wiring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from bio_lightning import functional
from bio_lightning.architecture import trace_architecture
from bio_lightning.callbacks.mechanism import Mechanism, Observables, require
from bio_lightning.errors import BioConfigError
from bio_lightning.optimizers import apply_to_for, split_moments, splits_gradient
from bio_lightning.parameters import number
from bio_lightning.session import Session
from bio_lightning.settings import agree
from bio_lightning.split_layers import Activation, SplitLayer, group_hook, group_outputs, split_layer
from bio_lightning.synapses import Kind, Synapses, find_synapses, named_modules, recompile_for_hooks, select

__all__ = ["WeightSplitting"]


class WeightSplitting(Mechanism):
    """Let a connection consist of several synapses, each with its own plasticity.

    The maths: :func:`bio_lightning.functional.split_weights`; the card: ``cards/weight_splitting.md``. This is the one
    mechanism that changes the function that is trained, so the split stays on the model after ``fit``, until
    :func:`bio_lightning.fold` merges it. It has no schedule. Neutral with ``gamma: 1``.

    Args:
        gamma: Synapses per connection, or units per group, >= 1.
        mode: ``synapses``: each weight is a sum of ``gamma`` trainable ones; ``grouped``: groups of ``gamma`` output
            units are summed and share the sum.
        activation: ``grouped`` only: applied to the units before they are summed.

    Raises:
        BioConfigError: A value is out of range, or an activation is given with ``mode: synapses``.

    Example:
        >>> WeightSplitting(gamma=3).mode
        'synapses'
    """

    name: ClassVar[str] = "weight_splitting"
    order: ClassVar[int] = 0
    kinds: ClassVar[frozenset[Kind]] = frozenset(("linear", "conv"))
    stored: ClassVar[tuple[str, ...]] = ("gamma",)
    settled_at_start: ClassVar[frozenset[str]] = frozenset(("seed",))

    gamma: int = number(2, ge=1)
    mode: Literal["synapses", "grouped"] = "synapses"
    activation: Activation | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._order = self.forward_order
        require(
            self.activation is None or self.mode == "grouped", "activation", self.activation, "null with mode: synapses"
        )

    def build(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Split right after the user's ``configure_model``: before the optimizer, and before a checkpoint is loaded."""
        launcher = type(trainer.strategy.launcher).__name__
        if "MultiProcessing" in launcher:
            raise MisconfigurationException(
                "WeightSplitting cannot work with a spawning strategy, which copies back only weights of unchanged"
                " shape; use strategy='ddp'"
            )
        if self.mode == "synapses" and isinstance(trainer.strategy, ModelParallelStrategy):
            raise MisconfigurationException(
                "WeightSplitting(mode='synapses') cannot work with ModelParallelStrategy, which shards weights"
                " before they are split; use mode='grouped', or strategy='ddp'"
            )
        listed: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined] # set by Lightning's connector
        self._order = agree([c for c in listed if isinstance(c, Mechanism)]).forward_order
        if any(isinstance(callback, StochasticWeightAveraging) for callback in listed):
            raise MisconfigurationException(
                "WeightSplitting cannot work with StochasticWeightAveraging, which copies the model before it is split;"
                " use EMAWeightAveraging behind it in the list"
            )
        own = pl_module.__dict__.get("configure_model")
        original = pl_module.configure_model

        def unwrap() -> None:
            pl_module.__dict__.pop("configure_model", None)
            if own is not None:
                pl_module.__dict__["configure_model"] = own

        def configure_model_then_split() -> None:
            unwrap()
            original()
            self.split(pl_module)

        pl_module.__dict__["configure_model"] = configure_model_then_split
        self._unwrap = unwrap

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave no wrapper behind where the exception came before ``configure_model``."""
        super().on_exception(trainer, pl_module, exception)
        if getattr(pl_module.__dict__.get("configure_model"), "__name__", "") == "configure_model_then_split":
            self._unwrap()

    def choose_targets(self, session: Session) -> None:
        """The split layers."""
        chosen, self.skipped = self._selected(session.synapses, session.module)
        self.targets = {synapses.name: synapses for synapses in chosen}

    def split(self, module: pl.LightningModule, forward_order: tuple[str, ...] | None = None) -> None:
        """Split the selected layers of a module in place; layers that are split already stay as they are.

        Args:
            module: The LightningModule.
            forward_order: What all mechanisms agree on, where no Trainer has told.
        """
        self._order = forward_order or self._order
        if self.gamma == 1:
            return
        chosen = self._selected(find_synapses(module)[0], module)[0]
        for synapses in chosen:
            self._check_one(synapses)
        for synapses in chosen:
            self._split_one(synapses)
        recompile_for_hooks(module)

    @torch.no_grad()
    def initialize(self, session: Session, synapses: Synapses) -> None:
        """Give the synapses of a connection unequal shares, unless they have them.

        Shares that are still equal to the bit are those of the split: no plasticity of their own has moved them apart.
        That is asked of the weights, as another Trainer may have split them, for a test before the first fit, or a
        plain checkpoint was loaded.
        """
        tensors = session.store.setdefault(synapses.name, {})
        weight = synapses.weight
        if synapses.gamma > 1 and bool((weight == weight[:1]).all()):
            weight.copy_(functional.split_weights(weight.sum(dim=0), self.gamma, self.noise(synapses.name, 0)))
        tensors["gamma"] = torch.tensor(self.gamma)

    def verify(self, session: Session, synapses: Synapses) -> None:
        """Split the moments of a plain checkpoint, too."""
        owner = session.owner(synapses.weight)
        if synapses.gamma > 1 and owner is not None:
            divided = splits_gradient(owner, apply_to_for(session.settings.apply_to, owner))
            split_moments(owner.optimizer, synapses.weight, divided=divided)

    def observables(self, session: Session, synapses: Synapses) -> Observables:
        """Of synapses how differently those of a connection learn: by how much their factors of the last step differ.

        They share one gradient, so where these factors are equal they learn as the unsplit weight would. Grouped units
        compute something else than ungrouped ones whatever their plasticity, so that there is nothing to compare.
        """
        observed = super().observables(session, synapses)
        if self.mode == "synapses":
            weight = synapses.weight.detach()
            factor = session.plasticity.factor(session.parts(synapses, max(session.step_of(synapses) - 1, 0)), weight)
            factor = torch.ones_like(weight) if factor is None else factor
            each = factor.reshape(synapses.gamma, *synapses.shape)
            ahead = each - each[:1]  # of the first one: exactly 0 where all are equal, as rounded means would not give
            observed["synapse_spread"] = (each - (ahead - ahead.mean(dim=0)), each)
        return observed

    @staticmethod
    def restore(module: nn.Module, checkpoint: Mapping[str, Any]) -> nn.Module:
        """Split a plain module as a checkpoint says, and load the checkpoint's weights.

        Args:
            module: A fresh module of the class that was trained; changed in place.
            checkpoint: A Lightning checkpoint as ``torch.load`` gives it.

        Returns:
            ``module``, ready to run, or for :func:`bio_lightning.fold`.

        Raises:
            ValueError: The checkpoint holds no split.

        Example:
            >>> WeightSplitting.restore(nn.Linear(2, 2), {"callbacks": {}})
            Traceback (most recent call last):
            ...
            ValueError: the checkpoint was not trained with WeightSplitting
        """
        states = [s for key, s in checkpoint["callbacks"].items() if key.startswith(WeightSplitting.__name__)]
        if not states:
            raise ValueError("the checkpoint was not trained with WeightSplitting")
        for state in states:
            callback = WeightSplitting(**{**state["arguments"], "include": tuple(state["weights"]), "exclude": ()})
            for synapses in find_synapses(module)[0].values():
                if synapses.name in state["weights"] and callback.gamma > 1:
                    callback._split_one(synapses)
        module.load_state_dict(checkpoint["state_dict"])
        return module

    def _selected(
        self, synapses: dict[str, Synapses], module: pl.LightningModule
    ) -> tuple[list[Synapses], list[Synapses]]:
        chosen, skipped = select(synapses, self.include, self.exclude, self.kinds, self.name)
        shared = [s for s in chosen if any(site.kind not in self.kinds for site in s.sites)]
        if self.mode == "grouped":
            layers = {site.module_name: site.module for s in synapses.values() for site in s.sites}
            outputs = trace_architecture(module, layers, self._order).outputs
            modules = named_modules(module)
            parents = {s.name: modules[s.module_name.rpartition(".")[0]] for s in chosen}
            # attention reads its output projection's weights itself: no hook on the projection would see that
            unseen = {name for name, parent in parents.items() if isinstance(parent, nn.MultiheadAttention)}
            shared += [s for s in chosen if s.module_name in outputs or len(s.sites) > 1 or s.name in unseen]
        kept = [s for s in chosen if s not in shared]
        if not kept:
            allowed = (
                "patterns that name a layer that can be split: not tied to another kind, and for mode: grouped not tied"
                " at all, not the output layer, and not inside MultiheadAttention"
            )
            raise BioConfigError(f"{self.name}.include", self.include, allowed)
        return kept, [*skipped, *dict.fromkeys(shared)]

    def _check_one(self, synapses: Synapses) -> None:
        """Whether a layer can be split as the settings say."""
        layer, units = synapses.module, synapses.postsynaptic_neurons
        hook = group_hook(layer)
        if self.mode == "synapses" and isinstance(layer, SplitLayer):
            self._agree(synapses, layer.synapses_per_connection)
        elif self.mode == "grouped" and hook is not None:
            self._agree(synapses, hook.gamma)
        elif self.mode == "grouped" and units % self.gamma:
            allowed = f"a divisor of the {units} units of {synapses.module_name}, or exclude that layer"
            raise BioConfigError(f"{self.name}.gamma", self.gamma, allowed)

    def _split_one(self, synapses: Synapses) -> None:
        layer = synapses.module
        if self.mode == "grouped" and group_hook(layer) is None:
            group_outputs(layer, self.gamma, self.activation)
        elif self.mode == "synapses" and not isinstance(layer, SplitLayer):
            for site in synapses.sites:
                split_layer(site.module, self.gamma)
                site.module._parameters["weight"] = layer._parameters["weight"]  # tied layers stay tied

    def _agree(self, synapses: Synapses, gamma: int) -> None:
        if gamma != self.gamma:
            allowed = f"{gamma}, since {synapses.module_name} is split already; fold the model to change it"
            raise BioConfigError(f"{self.name}.gamma", self.gamma, allowed)
