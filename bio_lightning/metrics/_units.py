"""Activations as one row per sample."""

from __future__ import annotations

from torch import Tensor

__all__ = ["as_samples", "check_units"]


def check_units(units: int) -> int:
    """The number of units of a layer.

    Raises:
        ValueError: It is not a whole number >= 1.
    """
    if isinstance(units, bool) or not isinstance(units, int) or units < 1:
        raise ValueError(f"units: got {units!r}; allowed: a whole number >= 1")
    return units


def as_samples(activation: Tensor, units: int, axis: int) -> Tensor:
    """Shape ``(samples, units)`` from units on one axis and samples on all others.

    Raises:
        ValueError: The axis does not exist or has another length.
    """
    if not -activation.dim() <= axis < activation.dim() or activation.shape[axis] != units:
        raise ValueError(f"activation: got shape {tuple(activation.shape)}; allowed: {units} units on axis {axis}")
    rows = activation.movedim(axis, -1)
    return rows.reshape(rows.shape[:-1].numel(), units)
