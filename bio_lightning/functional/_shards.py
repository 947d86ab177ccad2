"""Tensors that several processes hold together (DTensors, as FSDP2 and tensor parallelism make of weights).

A plain tensor is one that a process holds alone, so that callers need not ask which of the two they have.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

__all__ = [
    "add_up",
    "add_up_all",
    "as_part",
    "count_of",
    "cut",
    "groups_of",
    "in_parts_of",
    "innermost_part",
    "like_held",
    "local",
    "reshard",
    "shard",
    "share_count",
    "start_of",
    "whole",
]

#: The weight that processes hold together, see :func:`in_parts_of`.
_held: contextvars.ContextVar[DTensor | None] = contextvars.ContextVar("_held", default=None)


@contextlib.contextmanager
def in_parts_of(weight: Tensor) -> Iterator[None]:
    """Where functions of this package get this process's part of a weight, and are to mean the whole.

    Statistics are then those of all parts, so that all processes that hold the weight have to be here.
    """
    token = _held.set(weight if isinstance(weight, DTensor) else None)
    try:
        yield
    finally:
        _held.reset(token)


def add_up_all(part: Tensor, count: int) -> tuple[Tensor, Tensor | int]:
    """A float64 sum and the number of its summands, at least 1, over all processes that hold the weight together."""
    # compiled code is given its statistics
    held = None if torch.compiler.is_compiling() else _held.get()
    if held is None:
        return part, max(count, 1)
    both = add_up(torch.stack([part, torch.full_like(part, count)]), groups_of(held))
    return both[0], both[1].clamp(min=1)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, in the same memory."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():  # else a view that autograd knows of
        return tensor.to_local()


def like_held(tensor: Tensor, weight: Tensor) -> Tensor:
    """A tensor as far as this process holds the weight: its part, or all, where FSDP2 has put the weight together."""
    return local(tensor) if isinstance(weight, DTensor) else whole(tensor)


def reshard(module: nn.Module) -> None:
    """Take apart what FSDP2 put together for a forward that no backward followed; not within a step."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. All processes that hold it have to ask."""
    if not isinstance(tensor, DTensor):
        return tensor
    if any(placement.is_partial() for placement in tensor.placements):
        return add_up(local(tensor).clone(), groups_of(tensor))
    return tensor.full_tensor()


def start_of(tensor: Tensor) -> tuple[int, ...]:
    """Where this process's part begins in the whole tensor, one number per dimension."""
    return _place(tensor)[1] if isinstance(tensor, DTensor) else (0,) * tensor.ndim


def as_part(part: Tensor, like: Tensor) -> Tensor:
    """The tensor of which this process holds ``part`` as it holds its part of ``like``."""
    if not isinstance(like, DTensor):
        return part
    return _from_local(part, like, like.placements)


def shard(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has in full, cut as another of its shape is; without a message."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    part = tensor
    for dim, (length, start) in enumerate(zip(*_place(like), strict=True)):
        part = part.narrow(dim, start if length else 0, length)
    return as_part(part.clone(memory_format=torch.contiguous_format), like)  # the whole is not kept alive


def cut(values: Tensor, like: Tensor) -> Tensor:
    """What belongs to this process's part of ``like``, of values that broadcast against the whole.

    Values of several tensors have one more axis in front; not so of a split weight, which is never in parts.
    """
    if not isinstance(like, DTensor):
        return values
    lengths, starts = _place(like)
    for dim in range(-min(values.ndim, like.ndim), 0):
        if values.shape[dim] != 1:
            values = values.narrow(dim, starts[dim] if lengths[dim] else 0, lengths[dim])
    return values


def groups_of(tensor: Tensor) -> tuple[ProcessGroup, ...]:
    """Groups of processes that hold different parts; none for a tensor that this process holds alone."""
    if not isinstance(tensor, DTensor):
        return ()
    mesh = tensor.device_mesh
    return tuple(mesh.get_group(dim) for dim, at in enumerate(tensor.placements) if not at.is_replicate())


def add_up(part: Tensor, groups: tuple[ProcessGroup, ...]) -> Tensor:
    """The sum of what the processes of some groups have, in place; it does not wait for a device."""
    for group in groups:
        torch.distributed.all_reduce(part, group=group)
    return part


def count_of(part: Tensor, like: Tensor) -> Tensor:
    """A 0-dim number whose summands the processes hold that hold ``like``; :func:`whole` adds them up."""
    if not isinstance(like, DTensor):
        return part
    return _from_local(part, like, [at if at.is_replicate() else Partial() for at in like.placements])


def share_count(count: Tensor, like: Tensor) -> Tensor:
    """A number that every process knows, as one of which the first has all and the others nothing."""
    if not isinstance(like, DTensor) or isinstance(count, DTensor):
        return count
    coordinate = like.device_mesh.get_coordinate() or ()
    is_first = all(i == 0 or at.is_replicate() for i, at in zip(coordinate, like.placements, strict=True))
    return count_of(count if is_first else torch.zeros_like(count), like)


def innermost_part(tensor: Tensor, dim: int) -> tuple[int, int]:
    """Where tensor parallelism, the mesh's last axis, lets this process's part of a dimension begin, and its size.

    Raises:
        ValueError: The tensor is not cut there.
    """
    if not isinstance(tensor, DTensor) or not tensor.placements[-1].is_shard(dim):
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is not cut along dimension {dim}")
    mesh = tensor.device_mesh
    placements = [Replicate()] * (mesh.ndim - 1) + [tensor.placements[-1]]
    return compute_local_shape_and_global_offset(tensor.shape, mesh, placements)[1][dim], mesh.size(mesh.ndim - 1)


def _place(tensor: DTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of this process's part, and where it begins."""
    return compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)


def _from_local(part: Tensor, like: DTensor, placements: list[Placement] | tuple[Placement, ...]) -> Tensor:
    shape, stride = (like.shape, like.stride()) if part.ndim == like.ndim else (part.shape, part.stride())
    return DTensor.from_local(part, like.device_mesh, placements, run_check=False, shape=shape, stride=stride)
