"""A change of some synapses of a weight, with all that is kept of them, in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bio_lightning.functional.noise import Noise
from bio_lightning.kernels import Arguments, Data, Rule, execute, layer_mean
from bio_lightning.layout import Layout

__all__ = ["Fill", "Kept", "change_weight", "fill_where"]

#: What becomes of a kept value where the synapse is new; ``mean`` is that of the layer.
Fill = Literal["zero", "one", "mean"]

#: Tensors of a weight's shape with their fills: multipliers, optimizer moments.
Kept = Sequence[tuple[Tensor, Fill]]


class _Event(NamedTuple):
    """The pass. ``data`` holds the weight's own first, then every kept tensor; ``other`` receives the mask."""

    change: Rule
    fills: tuple[Fill, ...]
    layer_per_row: bool = False  # never: an event is rare, or a small layer's is cheap

    def __call__(self, *chunks: Arguments) -> None:
        """Over all chunks of one matrix."""
        # The weight is looked at last: compiled code changes tensors in the order in which it met them, and stores in
        # memory whatever it still needs of one before it changes that.
        counts, places = [_stored(chunk, 0) for chunk in chunks], range(len(self.fills))
        keeping = [[_stored(chunk, 1 + place) for place in places] for chunk in chunks]
        masks = [chunk.other for chunk in chunks]
        values = [_value(fill, [kept[place] for kept in keeping]) for place, fill in enumerate(self.fills)]
        for chunk, count, kept, mask in zip(chunks, counts, keeping, masks, strict=True):
            new, changed = self.change(chunk.block(0, "gradient"))
            count.add_(_count(changed))
            for tensor, value in zip(kept, values, strict=True):
                tensor.copy_(torch.where(changed, value, tensor))
            if mask is not None:
                mask.copy_(changed)
            chunk.weight.copy_(new)


def _count(mask: Tensor) -> Tensor:
    """Either way is several times faster than the other where it is taken."""
    return mask.sum() if torch.compiler.is_compiling() else mask.count_nonzero()


def _stored(chunk: Arguments, place: int) -> Tensor:
    state = chunk.data[place].state
    assert state is not None  # noqa: S101 - an invariant: it is made below
    return state


def _value(fill: Fill, pieces: Sequence[Tensor]) -> Tensor:
    if fill == "mean":
        return layer_mean(pieces).to(pieces[0].dtype)
    return torch.full((1, 1), float(fill == "one"), dtype=pieces[0].dtype, device=pieces[0].device)


@torch.no_grad()
def change_weight(
    change: Rule,
    weight: Tensor,
    layout: Layout,
    *,
    noise: Noise | None = None,
    purposes: tuple[str, ...] = (),
    operands: tuple[Tensor, ...] = (),
    constants: tuple[Tensor, ...] = (),
    kept: Kept = (),
    mask: Tensor | None = None,
    compiled: bool = False,
) -> Tensor:
    """Change a weight in place, and what is kept of its changed synapses.

    Args:
        change: Gives the new weights and the mask of those that count as changed.
        weight: The weight.
        layout: How it lies in memory.
        noise: Its draw.
        purposes: What further draws are derived for.
        operands: Tensors that broadcast against the weight.
        constants: Further tensors that the change reads as a whole; it sees each as a row.
        kept: Tensors of the weight's shape with what becomes of their changed elements.
        mask: Receives which synapses changed; lies in memory as the weight does. Integers of 32 bits are fastest: bool
            is slow to store in compiled code.
        compiled: Compile it, once for all shapes.

    Returns:
        How many synapses changed, int64, 0-dim.
    """
    count = torch.zeros((), dtype=torch.int64, device=weight.device)
    own = Data(
        count,
        None if noise is None else noise.keys(),
        operands=(*map(layout.operand, operands), *(constant.view(1, -1) for constant in constants)),
        derived=() if noise is None else tuple((name, *noise.derive(name).keys()) for name in purposes),
    )
    tensors = [weight, *(tensor for tensor, _fill in kept), *(() if mask is None else (mask,))]
    matrices = [layout.matrix(tensor) for tensor in tensors]
    data = [own, *(Data(matrix) for matrix in matrices[1 : 1 + len(kept)])]
    function = _Event(change, tuple(fill for _tensor, fill in kept))
    whole = Arguments(matrices[0], None if mask is None else matrices[-1], None, *layout.index, data)
    execute(function, whole, compiled)
    for tensor, matrix in zip(tensors, matrices, strict=True):
        layout.write_back(tensor, matrix)
    return count


@torch.no_grad()
def fill_where(mask: Tensor, kept: Kept) -> None:
    """Renew what is kept of the synapses in a mask."""
    for tensor, fill in kept:
        tensor.masked_fill_(
            mask, _value(fill, [tensor.flatten(1) if tensor.ndim > 1 else tensor.view(1, -1)]).squeeze()
        )
