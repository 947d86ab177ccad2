"""What can be seen only while a step is done: activations, gradients, and the weights before it.

Nothing is computed but in the steps that are logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from torchmetrics import Metric

from bio_lightning.firing_rates import Count, Gate, RateCounter, counted, firing_modules, neuron_dim
from bio_lightning.functional._shards import whole
from bio_lightning.metrics import ActivationRank, DormantFraction, FiringRate
from bio_lightning.metrics._norm_ratio import NormRatio
from bio_lightning.metrics._sums import Seen
from bio_lightning.monitoring.statistics import ACTIVITY, WEIGHTS, Series, Statistics, sum_over_ranks
from bio_lightning.session import Session
from bio_lightning.synapses import Synapses, named_modules, recompile_for_hooks

__all__ = ["Probes"]


class InputProbe:
    """Forward hook that hands a layer's input to a metric; what is compiled is not looked into."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Look at one forward."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            with torch.no_grad():
                self.metric.update(whole(inputs[0].detach()))


class Probes:
    """Hooks on the layers and optimizers of a fit.

    Args:
        session: Of the fit, which has begun.
        layers: The layers to look at.
        statistics: Where the metrics come from.
    """

    def __init__(self, session: Session, layers: Sequence[Synapses], statistics: Statistics) -> None:
        self._session, self._layers, self._statistics = session, layers, statistics
        self._firing = Gate()
        self._counters: dict[str, list[RateCounter]] = {}
        self._inputs: dict[str, ActivationRank] = {}
        self._readers: dict[str, list[nn.Module]] = {}
        self._before: dict[str, Tensor] = {}
        self._moves: Series = {}
        self._handles: list[RemovableHandle] = []
        self._ranking: list[RemovableHandle] = []  # hooks that are there only while ranks are looked at
        self._looks_at_moves = False
        self._hook()

    # ---- around a step ----------------------------------------------------------------------------------------------

    def open(self, *, moves: bool, ranks: bool) -> None:
        """Look at the step that begins.

        Args:
            moves: Also at gradients and at how far weights move.
            ranks: Also at the rank of what layers read, which takes time.
        """
        self._firing.is_open = True
        if ranks and not self._ranking:
            for name, metric in self._inputs.items():
                metric.reset()
                self._ranking += [module.register_forward_hook(InputProbe(metric)) for module in self._readers[name]]
        if moves and not self._before:
            self._before = {layer.name: layer.weight.detach().clone() for layer in self._layers}
            self._looks_at_moves = True

    def close(self) -> None:
        """Look no more, and forget what was seen."""
        self._firing.is_open = self._looks_at_moves = False
        for handle in self._ranking:
            handle.remove()
        self._ranking.clear()
        self._before.clear()
        self._moves.clear()
        for counters in self._counters.values():
            for counter in counters:
                counter.clear()

    def see_gradients(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """The gradients that an optimizer is about to use, before clipping; not where only its step unscales them."""
        if not self._looks_at_moves:
            return
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
            return
        for layer in self._owned_by(optimizer):
            if layer.weight.grad is not None:
                self._see_move("gradient_ratio", layer, layer.weight.grad, self._before[layer.name])

    def _see_updates(self, optimizer: Optimizer, *_: Any) -> None:
        """Optimizer post-hook, behind that of the session, which may have scaled the move."""
        if self._looks_at_moves:
            gradients = self._moves.get((WEIGHTS, "gradient_ratio"), {})
            for layer in self._owned_by(optimizer):
                gradient = cast("Seen | None", gradients.get(layer.name))
                reference = None if gradient is None else NormRatio.reference(gradient)  # of the same weights
                self._see_move("update_ratio", layer, self._before[layer.name], layer.weight.detach(), reference)

    # ---- afterwards -------------------------------------------------------------------------------------------------

    def moves(self) -> Series:
        """Sizes of gradients and updates: the same on every rank."""
        return self._moves

    @torch.no_grad()
    def activity(self) -> Series:
        """Firing, and ranks of what layers read, over all ranks: each has to ask, and gets the layers that ran."""
        rates: dict[str, FiringRate] = {}
        dormant: dict[str, DormantFraction] = {}
        over_ranks = self._session.rates.over_ranks
        for name, counters in self._counters.items():
            layer = self._session.synapses[name]
            share = _share(counted(counters, layer, "rate"))
            if share is None and not over_ranks:
                continue
            units = {"units": layer.postsynaptic_neurons}
            rates[name] = cast("FiringRate", self._statistics.layer_metric("firing_rate_mean", name))
            dormant[name] = cast("DormantFraction", self._statistics.layer_metric("dormant_fraction", name, **units))
            if share is not None:
                with torch.inference_mode():  # without what torchmetrics wraps around an update, see Statistics
                    FiringRate.update(rates[name], share)
                    # by its rate a unit is as dormant as by its activation
                    DormantFraction.update(dormant[name], share.unsqueeze(0))
        inputs = {**self._inputs} if self._ranking else {}
        if over_ranks:
            sum_over_ranks([*rates.values(), *dormant.values(), *inputs.values()])
            # only where another rank may have run the layer does the host have to wait for the answer
            rates = {name: metric for name, metric in rates.items() if bool(metric.neurons > 0)}
        # compiled layers run and show nothing
        shown = {name for name, m in inputs.items() if m.update_count > 0 or (over_ranks and bool(m.gram.any()))}
        series: Series = {
            (ACTIVITY, "firing_rate_mean"): {name: metric.seen(metric.sums) for name, metric in rates.items()},
            (ACTIVITY, "dormant_fraction"): {name: dormant[name] for name in rates},
            (ACTIVITY, "input_rank"): {name: inputs[name] for name in rates if name in shown},
        }
        return {key: layers for key, layers in series.items() if layers}

    def remove(self) -> None:
        """Leave no hook behind."""
        for handle in self._handles:
            handle.remove()
        if self._counters and self._handles:
            recompile_for_hooks(self._session.module)
        self._handles.clear()
        self.close()

    def _hook(self) -> None:
        named = named_modules(self._session.module)
        norms = self._session.architecture.norms
        for layer in self._layers:
            for module in firing_modules(layer, "rate", named, norms):
                counter = RateCounter(neuron_dim(layer), False, self._firing)
                self._counters.setdefault(layer.name, []).append(counter)
                self._handles.append(module.register_forward_hook(counter))
            readers = firing_modules(layer, "pre_rate", named, norms)
            if readers:
                metric = ActivationRank(layer.presynaptic_neurons, axis=neuron_dim(layer), sync_on_compute=False)
                self._inputs[layer.name] = metric.to(layer.weight.device)
                self._readers[layer.name] = readers
        if self._handles:
            recompile_for_hooks(self._session.module)
        owners = [owner for layer in self._layers if (owner := self._session.owner(layer.weight)) is not None]
        for optimizer in {id(owner.optimizer): owner.optimizer for owner in owners}.values():
            self._handles.append(optimizer.register_step_post_hook(self._see_updates))

    def _owned_by(self, optimizer: Optimizer) -> list[Synapses]:
        owners = ((layer, self._session.owner(layer.weight)) for layer in self._layers if layer.name in self._before)
        return [layer for layer, owner in owners if owner is not None and owner.optimizer is optimizer]

    def _see_move(self, family: str, layer: Synapses, *values: Tensor | float | None) -> None:
        self._moves.setdefault((WEIGHTS, family), {})[layer.name] = self._statistics.observe(family, *values)


def _share(count: Count | None) -> Tensor | None:
    """Share of positive values per neuron, float64."""
    return None if count is None else count[0] / count[1]
