"""Running firing rates of neurons, from forward hooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bio_lightning.functional._layer import computing_dtype
from bio_lightning.functional._shards import innermost_part, local
from bio_lightning.synapses import NEURON_KINDS, Synapses

__all__ = ["FiringRates", "Gate", "RateCounter", "Side", "counted", "firing_modules", "neuron_dim"]

_DECAY = 0.99

#: Below it a float32 holds every whole number.
_EXACT = 1 << 24

#: Which neurons of a layer: ``rate`` for its outputs, ``pre_rate`` for its inputs. Also the key in the store.
Side = str

#: Positive values of every neuron in float64, and how many were looked at.
Count = tuple[Tensor, "int | Tensor"]


def neuron_dim(synapses: Synapses) -> int:
    """Dimension of the neurons in a layer's input and output, counted from the end."""
    return -1 if synapses.kind == "linear" else 1 - len(synapses.shape)


def firing_modules(
    synapses: Synapses, side: Side, named: Mapping[str, nn.Module], norms: Mapping[str, str]
) -> list[nn.Module]:
    """Where a layer's firing shows: at itself, the norm behind it, or the attention module around it.

    Args:
        synapses: The layer's weight, at all its sites.
        side: Which neurons.
        named: All modules of the model.
        norms: Name of the norm behind a layer, by the layer's name.
    """
    found: list[nn.Module] = []
    for site in synapses.sites:
        around = named.get(site.module_name.rpartition(".")[0])
        if site.kind not in NEURON_KINDS:
            continue
        if isinstance(around, nn.MultiheadAttention):  # a hook on its inner projection never fires
            found += [around] if side == "rate" else []
        else:
            norm = norms.get(site.module_name) if side == "rate" else None
            found.append(named[norm] if norm else site.module)
    return found


class Gate:
    """Whether forwards count: those of a training step do."""

    is_open = False


class RateCounter:
    """Forward hook that counts positive values per neuron, in the forwards of training steps that learn.

    A layer in evaluation mode may learn, and a forward without gradients is none that learns. With activation
    checkpointing a forward counts once, see :func:`_is_repetition`. A class of its own rather than a closure, so that a
    model in training can be pickled and copied.
    """

    def __init__(self, dim: int, of_input: bool, gate: Gate) -> None:
        self.dim, self.of_input, self.gate = dim, of_input, gate
        self.positive: Tensor | None = None
        self.total = 0

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Count one forward."""
        if not (self.gate.is_open and torch.is_grad_enabled()) or _is_repetition():
            return
        value = inputs[0] if self.of_input else output[0] if isinstance(output, tuple) else output
        value = local(value.detach())
        others = [d for d in range(value.ndim) if d != self.dim % value.ndim]
        total = value.numel() // max(value.shape[self.dim], 1)
        # ones and zeros as floats: to compare into bool and add that up takes five times as long
        dtype = computing_dtype(value)
        if torch.compiler.is_compiling():  # which refuses to write into what is not contiguous
            ones = (value > 0).to(dtype)
        else:
            ones = torch.gt(value, 0, out=torch.empty_like(value, dtype=dtype))
        if others:
            ones = ones.sum(dim=others, dtype=None if total < _EXACT else torch.float64)
        # counts are exact integers: independent of how a batch is cut into micro-batches and ranks
        positive = ones.to(torch.float64)
        self.positive = positive if self.positive is None else self.positive.to(positive.device) + positive
        self.total += total

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
        self.over_ranks = False  # whether the ranks train one model; a process group alone does not say so
        self._counters: dict[tuple[str, Side], list[RateCounter]] = {}
        self._watched: dict[str, Synapses] = {}
        self._handles: list[RemovableHandle] = []

    def watch(self, synapses: Synapses, side: Side, modules: Iterable[nn.Module]) -> None:
        """Start counting the neurons of a layer, at the output (or input) of ``modules``."""
        if (synapses.name, side) in self._counters:
            return
        counters = self._counters[synapses.name, side] = []
        self._watched[synapses.name] = synapses
        for module in modules:
            counter = RateCounter(neuron_dim(synapses), side == "pre_rate", self.gate)
            counters.append(counter)
            self._handles.append(module.register_forward_hook(counter))
        pending = self._store.get(synapses.name, {}).pop(f"{side}_count", None)
        if pending is not None and counters and not self.over_ranks:
            counters[0].positive, counters[0].total = pending[:-1], int(pending[-1])

    @property
    def hooked(self) -> bool:
        """Whether any hook is on the model."""
        return bool(self._handles)

    def pending(self, name: str) -> dict[str, Tensor]:
        """Counts of forwards whose optimizer step is still to come, by key: what a checkpoint between steps lacks."""
        counts = {key[1]: self._count(key) for key in self._counters if key[0] == name}
        return {f"{side}_count": _packed(count) for side, count in counts.items() if count is not None}

    def commit(self, names: set[str]) -> None:
        """Update the averages of the layers whose optimizer stepped, and start counting anew."""
        due = {key: counters for key, counters in self._counters.items() if key[0] in names and counters}
        counts = {key: self._count(key) for key in due}
        for (name, side), count in (self._sum_over_ranks(counts) if self.over_ranks else counts).items():
            # only where another rank may have run the layer does the host have to wait for the answer
            if count is None or (counts[name, side] is None and not bool(count[1] > 0)):
                continue
            positive, total = count
            share = (positive / total).to(torch.float32)
            rates = self._store.setdefault(name, {})
            rates[side] = torch.lerp(share, rates[side], _DECAY) if side in rates else share
        for counters in due.values():
            for counter in counters:
                counter.clear()

    def _sum_over_ranks(self, counts: Mapping[tuple[str, Side], Count | None]) -> dict[tuple[str, Side], Count]:
        """Add up the counts of all processes, in one message; each sends as much, whichever layers ran there."""
        mine = [self._nothing(*key) if count is None else _packed(count) for key, count in counts.items()]
        if not mine:
            return {}
        packed = torch.cat(mine)
        torch.distributed.all_reduce(packed)
        summed = torch.split(packed, [count.numel() for count in mine])
        return {key: (count[:-1], count[-1]) for key, count in zip(counts, summed, strict=True)}

    def _nothing(self, name: str, side: Side) -> Tensor:
        """What a rank has counted in a layer that it did not run."""
        synapses = self._watched[name]
        return torch.zeros(_neurons(synapses, side) + 1, dtype=torch.float64, device=synapses.weight.device)

    def _count(self, key: tuple[str, Side]) -> Count | None:
        name, side = key
        return counted(self._counters[key], self._watched[name], side)

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
        self._watched.clear()
        self.gate.is_open = False


def _is_repetition() -> bool:
    """Whether a forward repeats one that has counted: in the backward pass, as non-reentrant checkpoints do.

    A reentrant checkpoint is an autograd function whose first forward ran without gradients, and did not count.
    """
    if torch.compiler.is_compiling():
        return False
    node = torch._C._current_autograd_node()
    return node is not None and not isinstance(node, torch.autograd.function.BackwardCFunction)


def counted(counters: Iterable[RateCounter], synapses: Synapses, side: Side) -> Count | None:
    """What this process has counted at all sites of a layer; None where it did not run.

    Tensor parallelism lets a process see some neurons of a layer, and all processes the same samples. So that they add
    up to a share of all observations, each counts what it sees as often as there are processes.
    """
    count: Count | None = None
    for counter in counters:
        if counter.positive is not None:
            one = counter.positive, counter.total
            count = one if count is None else (count[0] + one[0], count[1] + one[1])
    if count is None or len(count[0]) == _neurons(synapses, side):
        return count
    start, processes = innermost_part(synapses.weight, 0 if side == "rate" else 1)
    positive = count[0].new_zeros(_neurons(synapses, side))
    positive[start : start + len(count[0])] = count[0] * processes
    return positive, count[1]


def _neurons(synapses: Synapses, side: Side) -> int:
    return synapses.postsynaptic_neurons if side == "rate" else synapses.presynaptic_neurons


def _packed(count: Count) -> Tensor:
    """Both in one tensor."""
    positive, total = count
    return torch.cat([positive, positive.new_tensor([total])])
