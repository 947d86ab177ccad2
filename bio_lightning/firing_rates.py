"""Running firing rates of neurons, from forward hooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bio_lightning.synapses import Synapses

__all__ = ["FiringRates", "Gate", "RateCounter", "Side"]

_DECAY = 0.99

#: Which neurons of a layer: ``rate`` for its outputs, ``pre_rate`` for its inputs. Also the key in the store.
Side = str


def neuron_dim(synapses: Synapses) -> int:
    """Dimension of the neurons in a layer's input and output, counted from the end."""
    return -1 if synapses.kind == "linear" else 1 - len(synapses.shape)


class Gate:
    """Whether forwards count: those of a training step do."""

    is_open = False


class RateCounter:
    """Forward hook that counts positive values per neuron, in the forwards of training steps that learn.

    A layer in evaluation mode may learn, and a forward without gradients is none that learns: with activation
    checkpointing the recomputation counts, and only that. A class of its own rather than a closure, so that a model in
    training can be pickled and copied.
    """

    def __init__(self, dim: int, of_input: bool, gate: Gate) -> None:
        self.dim, self.of_input, self.gate = dim, of_input, gate
        self.positive: Tensor | None = None
        self.total = 0

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Count one forward."""
        if not (self.gate.is_open and torch.is_grad_enabled()):
            return
        value = inputs[0] if self.of_input else output[0] if isinstance(output, tuple) else output
        value = value.detach()
        others = [d for d in range(value.ndim) if d != self.dim % value.ndim]
        # float64 counts are exact integers: independent of how a batch is cut into micro-batches and ranks
        positive = (value > 0).sum(dim=others).to(torch.float64) if others else (value > 0).to(torch.float64)
        self.positive = positive if self.positive is None else self.positive.to(positive.device) + positive
        self.total += value.numel() // value.shape[self.dim]

    def clear(self) -> None:
        """Start anew."""
        self.positive, self.total = None, 0


class FiringRates:
    """Counts of the current optimizer step and their exponential average over steps.

    A firing rate is the share of positive inputs to the nonlinearity over all training forwards of one optimizer step,
    micro-batches and ranks together; then the average moves once, by 1 percent of the way.

    Args:
        store: Where the averages live, by weight name.
    """

    def __init__(self, store: dict[str, dict[str, Tensor]]) -> None:
        self._store = store
        self.gate = Gate()
        self._counters: dict[tuple[str, Side], list[RateCounter]] = {}
        self._handles: list[RemovableHandle] = []

    def watch(self, synapses: Synapses, side: Side, modules: Iterable[nn.Module]) -> None:
        """Start counting the neurons of a layer, at the output (or input) of ``modules``."""
        if (synapses.name, side) in self._counters:
            return
        counters = self._counters[synapses.name, side] = []
        for module in modules:
            counter = RateCounter(neuron_dim(synapses), side == "pre_rate", self.gate)
            counters.append(counter)
            self._handles.append(module.register_forward_hook(counter))
        pending = self._store.get(synapses.name, {}).pop(f"{side}_count", None)
        if pending is not None and counters and not _distributed():
            counters[0].positive, counters[0].total = pending[:-1], int(pending[-1])

    @property
    def hooked(self) -> bool:
        """Whether any hook is on the model."""
        return bool(self._handles)

    def pending(self, name: str) -> dict[str, Tensor]:
        """Counts of forwards whose optimizer step is still to come, by key: what a checkpoint between steps lacks."""
        counts = {side: _total(counters) for (owner, side), counters in self._counters.items() if owner == name}
        return {f"{side}_count": count for side, count in counts.items() if count is not None}

    def commit(self, names: set[str]) -> None:
        """Update the averages of the layers whose optimizer stepped, and start counting anew."""
        due = {key: counters for key, counters in self._counters.items() if key[0] in names}
        counts = {key: count for key, counters in due.items() if (count := _total(counters)) is not None}
        for (name, side), count in zip(counts, _sum_over_ranks(list(counts.values())), strict=True):
            share = (count[:-1] / count[-1]).to(torch.float32)
            old = self._store.setdefault(name, {}).get(side)
            self._store[name][side] = share if old is None else torch.lerp(share, old, _DECAY)
        for counters in due.values():
            for counter in counters:
                counter.clear()

    def discard(self, names: set[str]) -> None:
        """Forget the counts of layers whose step does not happen."""
        for (name, _side), counters in self._counters.items():
            for counter in counters if name in names else ():
                counter.clear()

    def remove(self) -> None:
        """Remove all hooks from the model; counts that await a step go to the store."""
        for name in {name for name, _side in self._counters}:
            self._store.setdefault(name, {}).update(self.pending(name))
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._counters.clear()
        self.gate.is_open = False


def _total(counters: list[RateCounter]) -> Tensor | None:
    """Positive counts of all sites of a layer with the number of observations appended."""
    seen = [counter for counter in counters if counter.positive is not None]
    if not seen:
        return None
    positive = torch.stack([c.positive for c in seen if c.positive is not None]).sum(dim=0)
    return torch.cat([positive, positive.new_tensor([float(sum(c.total for c in seen))])])


def _distributed() -> bool:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return ready and torch.distributed.get_world_size() > 1


def _sum_over_ranks(tensors: list[Tensor]) -> list[Tensor]:
    """Sum each tensor over all processes, in one message."""
    if not tensors or not _distributed():
        return tensors
    packed = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(packed)
    return list(torch.split(packed, [tensor.numel() for tensor in tensors]))
