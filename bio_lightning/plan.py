"""What acts where: in sentences when training starts, and as a table, which the command line gives without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from bio_lightning.functional._shards import local
from bio_lightning.optimizers import Owner, apply_to_for
from bio_lightning.session import Session
from bio_lightning.synapses import Synapses

__all__ = ["PlanRow", "decisions", "plan_rows", "plan_table"]

_HEADER = ("layer", "kind", "synapses", "mechanisms", "apply_to", "kernel", "memory")
_TO_THE_RIGHT = ("synapses", "memory")
_NOTHING = "-"


def decisions(session: Session, optimizers: Sequence[Optimizer]) -> Iterator[str]:
    """What was decided for a fit.

    Args:
        session: Of the fit, whose training starts.
        optimizers: Of the fit.
    """
    yield f"forward order ({session.architecture.source}): {' -> '.join(session.architecture.order)}"
    for mechanism in session.mechanisms:
        if mechanism.skipped:
            names = ", ".join(f"{s.name} ({s.kind})" for s in mechanism.skipped)
            yield f"{type(mechanism).__name__} does not act on {names}"
    if any(hasattr(mechanism, "kernel") for mechanism in session.mechanisms):
        kernel = "compiled" if session.plasticity.compiled else "eager"
        why = "model size and number of steps" if session.settings.kernel == "auto" else "as asked"
        yield f"the pass over all weights is {kernel} ({why})"
    if any(mechanism.scales_learning for mechanism in session.mechanisms):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                picked = apply_to_for(session.settings.apply_to, Owner(0, optimizer, group))
                why = "as asked" if session.settings.apply_to != "auto" else {
                    "gradient": "SGD without weight decay: scaling the gradient is scaling the learning rate",
                    "update": f"{type(optimizer).__name__} would divide or decay past a factor on the gradient",
                }[picked]  # fmt: skip
                yield f"multipliers scale the {picked} ({why})"


class PlanRow(NamedTuple):
    """What acts on one weight.

    Args:
        layer: Its name.
        kind: Family of its layer.
        synapses: Their number; a split connection has several.
        mechanisms: Class names of the callbacks that act on it, in the library's order.
        apply_to: ``gradient`` or ``update``, the setting where the optimizer is not known; ``-`` where no multiplier
            acts, and ``no optimizer`` where nothing acts since no optimizer moves the weight.
        kernel: ``compiled`` or ``eager``, for the multipliers; ``-`` where none acts.
        memory: Bytes that the mechanisms take: their state, the copy of the weight that updates are compared with (also
            where the optimizer is not known), and the further weights of a split with their gradients. Optimizer
            moments of these, and firing rates, one number per neuron, come on top.
    """

    layer: str
    kind: str
    synapses: int
    mechanisms: tuple[str, ...]
    apply_to: str
    kernel: str
    memory: int


def plan_rows(session: Session) -> list[PlanRow]:
    """One row for every weight with synapses, in registration order.

    Args:
        session: A session that has found its synapses.
    """
    known = any(session.owner(synapses.weight) is not None for synapses in session.synapses.values())
    return [_row(session, synapses, known) for synapses in session.synapses.values()]


def plan_table(session: Session) -> str:
    """The rows as text, with totals and a key to the mechanisms' numbers.

    Args:
        session: A session that has found its synapses.
    """
    rows = plan_rows(session)
    names = list(dict.fromkeys(type(mechanism).__name__ for mechanism in session.mechanisms))
    numbers = {name: str(number) for number, name in enumerate(names, start=1)}
    lines = [
        (
            row.layer,
            row.kind,
            f"{row.synapses:,}",
            " ".join(numbers[name] for name in row.mechanisms) or _NOTHING,
            row.apply_to,
            row.kernel,
            _bytes(row.memory),
        )
        for row in rows
    ]
    total = ("total", "", f"{sum(row.synapses for row in rows):,}", "", "", "", _bytes(sum(row.memory for row in rows)))
    key = ", ".join(f"{number} {name}" for name, number in numbers.items())
    return "\n".join([*_aligned([_HEADER, *lines, total]), f"mechanisms: {key or 'none is on'}"])


def _row(session: Session, synapses: Synapses, known: bool) -> PlanRow:
    acting = session.acting(synapses)
    owner = session.owner(synapses.weight)
    scaled = synapses.gamma > 1 or any(mechanism.scales_learning for mechanism in acting)
    applied = _NOTHING
    if acting and known and owner is None:
        applied, scaled = "no optimizer", False
    elif scaled:
        applied = session.settings.apply_to if owner is None else apply_to_for(session.settings.apply_to, owner)
    return PlanRow(
        synapses.name,
        synapses.kind,
        synapses.weight.numel(),
        tuple(dict.fromkeys(type(mechanism).__name__ for mechanism in acting)),
        applied,
        ("compiled" if session.plasticity.compiled else "eager") if scaled else _NOTHING,
        _memory(session, synapses, copied=scaled and applied != "gradient"),
    )


def _memory(session: Session, synapses: Synapses, copied: bool) -> int:
    weight = synapses.weight
    state = sum(_size(tensor) for tensor in session.store.get(synapses.name, {}).values())
    own = _size(weight)
    more = own - own // synapses.gamma
    gradients = more if weight.requires_grad else 0
    return state + (own if copied else 0) + more + gradients


def _size(tensor: Tensor) -> int:
    """Bytes in this process."""
    return local(tensor).numel() * tensor.element_size()


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = zip(_HEADER, widths, strict=True)
    formats = [f"{'>' if name in _TO_THE_RIGHT else '<'}{width}" for name, width in cells]
    return ["  ".join(format(cell, how) for cell, how in zip(row, formats, strict=True)).rstrip() for row in rows]
