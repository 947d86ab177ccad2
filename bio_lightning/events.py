"""A change of some synapses of a weight, with all that is kept of them, in one pass over memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bio_lightning.functional._layer import computing_dtype, ratio
from bio_lightning.functional._shards import count_of
from bio_lightning.functional.noise import Noise
from bio_lightning.kernels import (
    CHUNK,
    Arguments,
    Block,
    Data,
    Form,
    Rule,
    Statistics,
    finish_together,
    layer_mean,
    perform,
)
from bio_lightning.layout import Layout

__all__ = ["MEAN", "ONE", "ZERO", "Change", "Kept", "change_weight", "draw", "number_of", "silence"]


class Change(NamedTuple):
    """What an event does to a weight.

    Args:
        rule: Gives the new weights and the mask of those that count as changed.
        noise: Its draw.
        purposes: What further draws are derived for.
        operands: Tensors that broadcast against the weight.
        constants: Further tensors that the rule reads as a whole; it sees each as a row.
    """

    rule: Rule
    noise: Noise | None = None
    purposes: tuple[str, ...] = ()
    operands: tuple[Tensor, ...] = ()
    constants: tuple[Tensor, ...] = ()


class Kept(NamedTuple):
    """A tensor of a weight's shape (multipliers, an optimizer moment) and what becomes of it where a synapse is new.

    Args:
        tensor: The tensor.
        fill: Its factor is the new value.
        noise: Its draw; the fill then sees the weight after the change.
        purposes: What further draws are derived for.
        operands: Tensors that broadcast against the weight.
        constants: Further tensors that the fill reads as a whole; it sees each as a row.
        has_mean_one: Whether the tensor is divided by its mean afterwards.
    """

    tensor: Tensor
    fill: Form
    noise: Noise | None = None
    purposes: tuple[str, ...] = ()
    operands: tuple[Tensor, ...] = ()
    constants: tuple[Tensor, ...] = ()
    has_mean_one: bool = False


def _constant(block: Block, *, value: float) -> Tensor:
    return torch.full((1, 1), value, dtype=block.weight.dtype, device=block.weight.device)


def _state(block: Block) -> Tensor:
    assert block.state is not None  # noqa: S101 - the event gives it
    return block.state


def _mean(block: Block) -> Tensor:
    assert block.mean is not None  # noqa: S101 - the event gives it
    return block.mean


def _silenced(block: Block) -> tuple[Tensor, Tensor]:
    mask = block.operands[0] & ~block.weight.isnan()
    return torch.where(mask, torch.zeros_like(block.weight), block.weight), mask


#: Fills: 0, 1, and the layer's mean.
ZERO = Form(factor=Rule(_constant, (("value", 0.0),)))
ONE = Form(factor=Rule(_constant, (("value", 1.0),)))
MEAN = Form(factor=Rule(_mean), statistic=Rule(_state))


def _marked(block: Block) -> tuple[Tensor, Tensor]:
    return block.weight, block.operands[0].to(torch.bool).expand_as(block.weight)


def silence(mask: Tensor) -> Change:
    """Weights of 0 where a mask, broadcastable to the weight, is true; a NaN stays to be found."""
    return Change(Rule(_silenced), operands=(mask,))


class _Event(NamedTuple):
    """The pass. The change comes first, with the count of changed synapses, then every kept tensor with its fill."""

    forms: tuple[Form, ...]
    statistics: Statistics | None = None
    layer_per_row: bool = False  # never: an event is rare, or a small layer's is cheap

    def __call__(self, *chunks: Arguments) -> None:
        """Over all chunks of one matrix."""
        # The weight is looked at last: compiled code changes tensors in the order in which it met them, and stores in
        # memory whatever it still needs of one before it changes that.
        stored = [[_given(data.state) for data in chunk.data] for chunk in chunks]
        known = chunks if self.statistics is None else self.statistics.fill(chunks)
        for chunk, (counted, *kept) in zip(known, stored, strict=True):
            new, changed = self._factor(0)(chunk.block(0, "gradient"))
            for place, tensor in enumerate(kept, 1):
                fresh = self._factor(place)(chunk.block(place, "gradient"))
                tensor.copy_(torch.where(changed, fresh, tensor))
            counted.add_(_count(changed, chunk.weight))  # of the old ones: compiled code would make the new ones twice
            chunk.weight.copy_(new)

    def _factor(self, place: int) -> Rule:
        factor = self.forms[place].factor
        assert factor is not None  # noqa: S101 - an invariant: a change and a fill have one
        return factor


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # noqa: S101 - an invariant: it is made below
    return tensor


def _count(mask: Tensor, weight: Tensor) -> Tensor:
    """How many are marked, and a number that is NaN where a weight is."""
    if torch.compiler.is_compiling():  # one loop for both, as both read the mask; eagerly it would take longer
        count = mask.sum(dtype=torch.int32)
        found = torch.where(weight != weight, weight, mask.to(weight.dtype)).sum(dtype=torch.float64)
    else:
        count, found = mask.count_nonzero(), weight.sum(dtype=computing_dtype(weight))
    return torch.stack([count.to(torch.float64), found.to(torch.float64)])


@torch.no_grad()
def change_weight(
    change: Change, weight: Tensor, layout: Layout, *, kept: Sequence[Kept] = (), compiled: bool = False
) -> Tensor:
    """Change a weight in place, and what is kept of its changed synapses.

    What is drawn follows in an eager pass of its own: the compiler would trace some distributions for minutes.

    Args:
        change: What happens to the weight.
        weight: The weight.
        layout: How it lies in memory.
        kept: What is kept of every synapse.
        compiled: Compile it, once for all shapes.

    Returns:
        float64, shape ``(2,)``: how many synapses of this process's part changed, see :func:`number_of`, and a number
        that is NaN where one of its old weights was; it may be so, too, where infinities of both signs were.
    """
    drawn = [one for one in kept if one.noise is not None]
    others = [one for one in kept if one.noise is None]
    if not drawn:
        return _run(change, weight, layout, others, compiled)
    # 32 bits: a bool is slow to store in compiled code, and an integer to load
    mask = torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
    changed = _run(change, weight, layout, [*others, Kept(mask, ONE)], compiled)
    _run(Change(Rule(_marked), operands=(mask,)), weight, layout, drawn, compiled=False)
    return changed


def number_of(counted: Tensor, weight: Tensor) -> Tensor:
    """How many synapses an event changed, int64, in summands, where several processes hold the weight together."""
    return count_of(counted[0].to(torch.int64), weight)


@torch.no_grad()
def draw(kept: Kept, weight: Tensor, layout: Layout) -> None:
    """Draw what is kept of every synapse."""
    _run(Change(Rule(_marked), operands=(torch.ones((), device=weight.device),)), weight, layout, [kept], False)


def _run(change: Change, weight: Tensor, layout: Layout, kept: Sequence[Kept], compiled: bool) -> Tensor:
    counted = torch.zeros(2, dtype=torch.float64, device=weight.device)
    tensors = (weight, *(one.tensor for one in kept))
    matrix, *stored = (layout.matrix(tensor) for tensor in tensors)
    data = [_data(change, counted, layout)]
    data += [_data(one, state, layout) for one, state in zip(kept, stored, strict=True)]
    forms = (Form(factor=change.rule), *(one.fill for one in kept))
    arguments = Arguments(matrix, None, None, *layout.index, data)
    make, statistics, spread = functools.partial(_Event, forms), Statistics(forms, "gradient"), bool(layout.groups)
    finish_together([(layout.groups, perform(make, statistics, arguments, compiled=compiled, spread=spread))])
    for one, state in zip(kept, stored, strict=True):
        if one.has_mean_one:
            pieces = torch.split(state, max(CHUNK // max(state.shape[1], 1), 1))
            average = layer_mean((piece.to(torch.float64) for piece in pieces), groups=layout.groups)
            correction = ratio(torch.ones_like(average), average, at_zero=1.0).to(computing_dtype(state))
            for piece in pieces:  # rounded once: in half precision the correction itself may be nothing
                piece.copy_(piece.to(computing_dtype(state)) * correction)
    for tensor, changed in zip(tensors, (matrix, *stored), strict=True):
        layout.write_back(tensor, changed)
    return counted


def _data(part: Change | Kept, state: Tensor, layout: Layout) -> Data:
    noise = part.noise
    return Data(
        state,
        None if noise is None else noise.keys(),
        operands=(*map(layout.operand, part.operands), *(constant.view(1, -1) for constant in part.constants)),
        derived=() if noise is None else tuple((name, *noise.derive(name).keys()) for name in part.purposes),
    )
