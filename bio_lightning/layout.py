"""How a weight lies in memory: as a matrix in memory order, with the logical index of every element."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bio_lightning.functional._shards import groups_of, local, start_of

__all__ = ["Layout"]


class Layout:
    """View of a weight, and of what has its shape, as a matrix whose elements lie in memory order.

    A channels-last convolution, say, keeps its output channels as rows and its columns in the order of memory. The
    noise counts elements in logical order, so the index of an element is the sum of its row's and its column's. Where
    several processes hold a weight together, the matrix is this process's part, with indices in the whole.

    Args:
        weight: The weight tensor; dense, whatever its strides.
        leading: Dimensions that make the rows.
    """

    def __init__(self, weight: Tensor, leading: int = 1) -> None:
        self._lies = _how_it_lies(weight)
        whole, start, part = tuple(weight.shape), start_of(weight), local(weight)
        self._is_part = part is not weight
        shape, strides = tuple(part.shape), part.stride()
        self._leading = leading
        self._shape = shape
        rest = sorted(range(leading, part.ndim), key=lambda dim: (-strides[dim], dim))
        self._order = (*range(leading), *rest)
        self._is_plain = self._order == tuple(range(part.ndim))
        self._size = math.prod(shape[:leading]), math.prod(shape[leading:])
        logical = [math.prod(whole[dim + 1 :]) for dim in range(len(whole))]
        #: Processes with which this one has to add up what a mean over the weight is made of.
        self.groups = groups_of(weight)
        #: Number of elements that this process holds.
        self.size = part.numel()

        def count(dims: tuple[int, ...]) -> Tensor:
            """Logical index of the elements along some dimensions, in memory order, modulo 2**32."""
            index = torch.zeros(1, dtype=torch.int64)
            for dim in dims:
                steps = torch.arange(start[dim], start[dim] + shape[dim]) * logical[dim]
                index = (index.unsqueeze(-1) + steps).flatten()
            return index.to(torch.int32).to(weight.device)

        largest = [(start[dim] + shape[dim] - 1) * logical[dim] for dim in self._order]
        self._largest = sum(largest)
        row, column = count(self._order[:leading]), count(self._order[leading:])
        #: What an element's row and its column add to its logical index, modulo 2**32; the column as floats if it can.
        self.index = row, _as_floats(column, sum(largest[leading:]))
        #: What decides whether two weights can lie side by side.
        self.key = (whole, start, shape, self._order, leading)

    @functools.cached_property
    def flat_index(self) -> Tensor:
        """Logical index of every element, in memory order, held as that of a column."""
        row, column = self.index
        return _as_floats((row.unsqueeze(1) + column.to(torch.int32)).flatten(), self._largest)

    def fits(self, weight: Tensor) -> bool:
        """Whether the weight still lies as it did."""
        return _how_it_lies(weight) == self._lies

    @staticmethod
    def alike(first: Tensor, second: Tensor) -> bool:
        """Whether two tensors lie alike."""
        return (_how_it_lies(first), first.dtype) == (_how_it_lies(second), second.dtype)

    def matrix(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as a matrix: a view where it lies as the weight does, else a copy."""
        tensor = local(tensor)
        if self._is_plain and tensor.is_contiguous():
            matrix = tensor.view(self._size)
        else:
            matrix = tensor.permute(self._order).reshape(self._size)
        return matrix.data  # no view to autograd: a compiled function need not look at what it would be a view of

    def write_back(self, tensor: Tensor, matrix: Tensor) -> None:
        """Put a matrix back where :meth:`matrix` had to copy."""
        part = local(tensor)
        if part.untyped_storage().data_ptr() != matrix.untyped_storage().data_ptr():
            moved = part.detach().permute(self._order)
            moved.copy_(matrix.view(moved.shape))

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Several tensors of the weight's shape as the rows of one matrix: a copy."""
        return self._side_by_side(torch.stack(self._parts(tensors)))

    def spread(self, operands: Tensor, count: int) -> Tensor:
        """What broadcasts against several weights, one or all of them on the first axis, as rows of one matrix."""
        padded = operands.view(len(operands), *(1,) * (len(self._shape) + 1 - operands.ndim), *operands.shape[1:])
        return self._side_by_side(padded.expand(count, *self._shape))

    def _side_by_side(self, whole: Tensor) -> Tensor:
        return whole.permute(0, *(dim + 1 for dim in self._order)).flatten(1)

    def _parts(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [local(tensor) for tensor in tensors] if self._is_part else list(tensors)

    def scatter(self, rows: Tensor, tensors: Sequence[Tensor]) -> None:
        """Put every row back into its tensor."""
        moved = rows.view(len(rows), *(self._shape[dim] for dim in self._order))
        back = [0] * len(self._order)
        for place, dim in enumerate(self._order):
            back[dim] = place + 1
        pieces = moved.permute(0, *back).unbind(0)
        torch._foreach_copy_(self._parts(tensors), list(pieces))

    def operand(self, tensor: Tensor) -> Tensor:
        """A tensor that broadcasts against the weight as one that broadcasts against the matrix."""
        tensor = local(tensor)
        padded = tensor.view((1,) * (len(self._shape) - tensor.ndim) + tensor.shape)
        moved = padded.permute(self._order)
        rows, columns = list(moved.shape[: self._leading]), list(moved.shape[self._leading :])
        full = [self._shape[dim] for dim in self._order]
        if any(size != 1 for size in rows):
            rows = full[: self._leading]
        if any(size != 1 for size in columns):
            columns = full[self._leading :]
        return moved.expand(*rows, *columns).reshape(math.prod(rows), math.prod(columns))


def _as_floats(index: Tensor, largest: int) -> Tensor:
    """An int32 index in float32, where that holds every whole number up to the largest, else as it is.

    torch's code for processors with AVX2 loads integers by way of the stack and waits there for them: for a third of
    the time of a pass.
    """
    return index.to(torch.float32) if largest <= 1 << 24 else index


def _how_it_lies(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.device
