"""How a weight lies in memory: as a matrix in memory order, with the logical index of every element."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bio_lightning.functional.noise import element_index

__all__ = ["Layout"]


class Layout:
    """View of a weight, and of what has its shape, as a matrix whose elements lie in memory order.

    A channels-last convolution, say, keeps its output channels as rows and its columns in the order of memory. The
    noise counts elements in logical order, so the index of an element is the sum of its row's and its column's.

    Args:
        weight: The weight tensor; dense, whatever its strides.
        leading: Dimensions that make the rows.
    """

    def __init__(self, weight: Tensor, leading: int = 1) -> None:
        shape = tuple(weight.shape)
        self._leading = leading
        strides = self._strides = weight.stride()
        self._shape = shape
        self._device = weight.device
        rest = sorted(range(leading, weight.ndim), key=lambda dim: (-strides[dim], dim))
        self._order = (*range(leading), *rest)
        self._is_plain = self._order == tuple(range(weight.ndim)) and weight.numel() > 0
        self._rows = math.prod(shape[:leading])
        logical = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]

        def count(dims: tuple[int, ...]) -> Tensor:
            """Logical index of the elements along some dimensions, in memory order, modulo 2**32."""
            index = torch.zeros(1, dtype=torch.int64)
            for dim in dims:
                index = (index.unsqueeze(-1) + torch.arange(shape[dim]) * logical[dim]).flatten()
            return index.to(torch.int32).to(weight.device)

        self.index = count(self._order[:leading]), count(self._order[leading:])
        #: What decides whether two weights can lie side by side.
        self.key = (shape, self._order, leading)

    @functools.cached_property
    def flat_index(self) -> Tensor:
        """Logical index of every element, in memory order."""
        row, column = self.index
        return (row.unsqueeze(1) + column).flatten()

    def fits(self, weight: Tensor) -> bool:
        """Whether the weight still lies as it did."""
        return (weight.shape, weight.stride(), weight.device) == (self._shape, self._strides, self._device)

    @staticmethod
    def alike(first: Tensor, second: Tensor) -> bool:
        """Whether two tensors lie alike."""
        return (first.shape, first.stride(), first.device, first.dtype) == (
            second.shape, second.stride(), second.device, second.dtype,
        )  # fmt: skip

    @staticmethod
    def logical_index(weight: Tensor) -> Tensor:
        """Logical index of every element in the weight's own shape."""
        return element_index(weight.shape, device=weight.device)

    def matrix(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as a matrix: a view where it lies as the weight does, else a copy."""
        if self._is_plain and tensor.is_contiguous():
            matrix = tensor.view(self._rows, -1)
        else:
            matrix = tensor.permute(self._order).flatten(0, self._leading - 1).flatten(1)
        return matrix.data  # no view to autograd: a compiled function need not look at what it would be a view of

    def write_back(self, tensor: Tensor, matrix: Tensor) -> None:
        """Put a matrix back where :meth:`matrix` had to copy."""
        if tensor.untyped_storage().data_ptr() != matrix.untyped_storage().data_ptr():
            moved = tensor.detach().permute(self._order)
            moved.copy_(matrix.view(moved.shape))

    def stack(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Several tensors of the weight's shape as the rows of one matrix: a copy."""
        whole = torch.stack([tensor for tensor in tensors if tensor is not None])
        return self._side_by_side(whole)

    def stack_operands(self, tensors: Sequence[Tensor]) -> Tensor:
        """Several tensors that broadcast against the weight as the rows of one matrix, spread out."""
        whole = torch.stack(list(tensors))
        padded = whole.view(len(whole), *(1,) * (len(self._shape) + 1 - whole.ndim), *whole.shape[1:])
        return self._side_by_side(padded.expand(len(whole), *self._shape))

    def _side_by_side(self, whole: Tensor) -> Tensor:
        return whole.permute(0, *(dim + 1 for dim in self._order)).flatten(1)

    def scatter(self, rows: Tensor, tensors: Sequence[Tensor | None]) -> None:
        """Put every row back into its tensor."""
        moved = rows.view(len(rows), *(self._shape[dim] for dim in self._order))
        back = [0] * len(self._order)
        for place, dim in enumerate(self._order):
            back[dim] = place + 1
        pieces = moved.permute(0, *back).unbind(0)
        torch._foreach_copy_([tensor for tensor in tensors if tensor is not None], list(pieces))

    def operand(self, tensor: Tensor) -> Tensor:
        """A tensor that broadcasts against the weight as one that broadcasts against the matrix."""
        padded = tensor.view((1,) * (len(self._shape) - tensor.ndim) + tensor.shape)
        moved = padded.permute(self._order)
        rows, columns = list(moved.shape[: self._leading]), list(moved.shape[self._leading :])
        full = [self._shape[dim] for dim in self._order]
        if any(size != 1 for size in rows):
            rows = full[: self._leading]
        if any(size != 1 for size in columns):
            columns = full[self._leading :]
        return moved.expand(*rows, *columns).reshape(math.prod(rows), math.prod(columns))
