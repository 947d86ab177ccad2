"""Statistics of one layer: summed in float64, so that they do not depend on how the layer is cut into shards.

Where several processes hold it together, see :func:`~bio_lightning.functional._shards.in_parts_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bio_lightning.functional._shards import add_up_all, whole

__all__ = ["add_pieces", "computing_dtype", "is_at_hand", "mean", "mean_abs", "pieces", "ratio", "row", "std", "total"]

_PIECE = 1 << 18


def computing_dtype(tensor: Tensor) -> torch.dtype:
    """float32 for half precision, else the tensor's own: what an elementwise rule is computed in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def is_at_hand(tensor: Tensor) -> bool:
    """Whether a value can be looked at without waiting for a device."""
    return tensor.is_cpu


def total(x: Tensor) -> Tensor:
    """Sum over all elements as a 0-dim tensor in float64."""
    return add_up_all(x.sum(dtype=torch.float64), x.numel())[0]


def add_pieces(sums: Callable[..., Sequence[Tensor | int]], *tensors: Tensor) -> list[Tensor | float]:
    """Sums over tensors, on a processor by pieces that fit its cache, so that several passes cost one.

    Args:
        sums: Numbers, or 0-dim tensors, from a flat piece of each, in float64 save for what is exact in less.
        tensors: One or several of one shape, which may be any; of shards all processes that hold them take the whole.

    Returns:
        The numbers of all pieces together; on a device as they are, not waited for.
    """
    columns = zip(*(sums(*part) for part in zip(*map(pieces, tensors), strict=True)), strict=True)
    if is_at_hand(tensors[0]):
        return [sum(map(float, column)) for column in columns]
    return [only for (only,) in columns]


def row(numbers: Sequence[Tensor | float], like: Tensor) -> Tensor:
    """Numbers, or 0-dim tensors, as one tensor in float64 on the device of another, which is not waited for.

    All processes that hold one of the tensors together have to ask.
    """
    numbers = [whole(number) if isinstance(number, Tensor) else number for number in numbers]
    if is_at_hand(like):  # Python takes a quarter of the time
        return torch.tensor([float(number) for number in numbers], dtype=torch.float64, device=like.device)
    wide: Any = {"dtype": torch.float64, "device": like.device}
    return torch.stack([n.to(**wide) if isinstance(n, Tensor) else torch.full((), n, **wide) for n in numbers])


def pieces(tensor: Tensor, size: int = _PIECE) -> tuple[Tensor, ...]:
    """All elements, flat, in one piece or, on a processor, in several of at most some size."""
    flat = whole(tensor).detach().flatten()  # in this order, as torch detaches no DTensor in inference mode
    # a split into one takes as long as most sums of a small layer
    return torch.split(flat, size) if is_at_hand(flat) and flat.numel() > size else (flat,)


def mean(x: Tensor) -> Tensor:
    """Mean over all elements as a 0-dim tensor in the computing dtype; 0 for an empty tensor."""
    return _mean(x).to(computing_dtype(x))


def _mean(x: Tensor) -> Tensor:
    """In float64. Values that every process has in full weigh the same in it as in one process."""
    added, count = add_up_all(x.sum(dtype=torch.float64), x.numel())
    return added / count


def mean_abs(x: Tensor) -> Tensor:
    """Mean absolute value over all elements as a 0-dim tensor."""
    return mean(x.abs())


def std(x: Tensor) -> Tensor:
    """Standard deviation (population) over all elements as a 0-dim tensor; 0 for an empty tensor."""
    centred = x.to(torch.float64)
    centred = centred - _mean(centred)
    return _mean(centred.square()).sqrt().to(computing_dtype(x))


def ratio(numerator: Tensor, denominator: Tensor, at_zero: float) -> Tensor:
    """``numerator / denominator``, and ``at_zero`` where the denominator is 0: no 0/0 without a chosen meaning."""
    zero = denominator.logical_not()  # in a quarter of the time that torch takes to compare with a whole number
    return (numerator / denominator).masked_fill(zero, at_zero)
