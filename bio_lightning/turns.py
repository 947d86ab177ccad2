"""Whose turn it is in a step: weights with their optimizer and what acts on them, and which are worked on together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from bio_lightning.optimizers import Owner
from bio_lightning.plasticity import Store
from bio_lightning.synapses import Synapses

if TYPE_CHECKING:
    from bio_lightning.callbacks.mechanism import Mechanism

__all__ = ["Turn", "together"]


class Turn(NamedTuple):
    """A weight in a step of its optimizer.

    Args:
        synapses: The weight.
        owner: Its optimizer and parameter group.
        active: Mechanisms that act on it in this step, in the library's order.
        due: Those of them whose state changes.
        scaled: Whether its step differs from what the optimizer alone would do.
        kind: Number of what it has in common with others; numbers are faster to compare.
        most: How many of that kind may be worked on together, at least 1.
    """

    synapses: Synapses
    owner: Owner
    active: tuple[Mechanism, ...]
    due: tuple[Mechanism, ...]
    scaled: bool
    kind: int
    most: int


def together(turns: Iterable[Turn], modes: Mapping[int, str], store: Store) -> Iterator[tuple[list[Synapses], Turn]]:
    """Layers to which the same is done, and of which the same is known, as many as may lie side by side.

    Args:
        turns: Of one optimizer.
        modes: How multipliers act, by the id of the parameter group.
        store: What mechanisms keep of each weight.

    Yields:
        Layers, and the turn of the first one.
    """
    found: dict[tuple[object, ...], list[Turn]] = {}
    for turn in turns:
        known = store.get(turn.synapses.name, ())
        shape = turn.synapses.weight.shape  # which user code may change in the middle of a run
        found.setdefault((turn.kind, modes[id(turn.owner.group)], shape, *known), []).append(turn)
    for alike in found.values():
        for first in range(0, len(alike), alike[0].most):
            yield [turn.synapses for turn in alike[first : first + alike[0].most]], alike[0]
