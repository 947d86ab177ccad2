"""How fast each weight learns: one multiplier per synapse, applied once per optimizer step.

All mechanisms of a LightningModule share one store. What a mechanism keeps for a weight lies there under its own key,
so that one may read or reset what another wrote (a rejuvenated synapse loses its crystallization).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from bio_lightning.events import Change, Kept, change_weight, draw
from bio_lightning.functional._layer import computing_dtype, mean
from bio_lightning.functional._shards import as_part, in_parts_of, like_held, local, start_of
from bio_lightning.functional.noise import Noises, element_index
from bio_lightning.kernels import Block, Data, Form, Job, Mode, Rule, finish_together, product, run
from bio_lightning.layout import Layout
from bio_lightning.synapses import Synapses

__all__ = ["Part", "Plasticity", "Store", "Work", "share_of_step"]

#: Tensors by weight name, then by key.
Store = dict[str, dict[str, Tensor]]

#: Layers up to this size are laid side by side, where their shapes are equal: a call costs more than their maths.
SMALL = 1 << 14
#: So many weights at a time, which bounds the copies.
TOGETHER = 1 << 20


class Part(NamedTuple):
    """What one mechanism adds to the pass over one weight, or over several that lie side by side.

    Args:
        form: Its rules.
        states: Its stored tensors, one of the shape of each weight; none where it stores nothing.
        noise: Its draws.
        operands: Further tensors, with an axis of one or all weights in front of what broadcasts against a weight, or
            against this process's part of it.
    """

    form: Form
    states: tuple[Tensor, ...] = ()
    noise: Noises | None = None
    operands: tuple[Tensor, ...] = ()


class Work(NamedTuple):
    """One weight in a pass, or several that lie side by side, with what the mechanisms do to them."""

    layers: Sequence[Synapses]
    parts: tuple[Part, ...]

    def during(self, mode: Mode) -> Work:
        """What is left of it in a mode."""
        if mode == "gradient":
            return self
        parts = (part._replace(form=part.form.during(mode)) for part in self.parts)
        return self._replace(parts=tuple(part for part in parts if any(rule is not None for rule in part.form)))


class Plasticity:
    """The pass over all weights of a LightningModule.

    Args:
        compiled: Whether passes are compiled.
    """

    def __init__(self, compiled: bool = False) -> None:
        self.compiled = compiled
        self._snapshots: dict[str, Tensor] = {}
        self._layouts: dict[str, Layout] = {}

    @torch.no_grad()
    def run(self, mode: Mode, works: Iterable[Work]) -> None:
        """The pass of one step, see :data:`~bio_lightning.kernels.Mode`."""
        left = [work.during(mode) for work in works]
        left = [work for work in left if work.parts or mode == "before"]
        if left:  # to prepare for compiled code takes longer than to find out that there is nothing to run
            finish_together(self._jobs(mode, left))

    def _jobs(self, mode: Mode, works: Iterable[Work]) -> Iterator[tuple[tuple[ProcessGroup, ...], Job]]:
        """A job for each work, with the processes that hold its weights together."""
        for work in works:
            layout = self._layout(work.layers[0])
            job = self._run_one if len(work.layers) == 1 else self._run_side_by_side
            yield layout.groups, job(mode, work, layout)

    def place(self, synapses: Synapses) -> tuple[object, int]:
        """How a weight lies, and how many that lie so and are worked on alike may do so side by side: at least 1."""
        layout = self._layout(synapses)
        weight = synapses.weight
        most = TOGETHER // max(layout.size, 1) if layout.size <= SMALL else 1
        return (layout.key, weight.dtype, weight.device), most

    def change(self, synapses: Synapses, change: Change, kept: Sequence[Kept] = ()) -> Tensor:
        """An event: a change of some synapses, see :func:`~bio_lightning.events.change_weight`."""
        layout = self._layout(synapses)
        compiled = self.compiled and layout.size > SMALL
        return change_weight(change, synapses.weight, layout, kept=kept, compiled=compiled)

    def draw(self, synapses: Synapses, kept: Kept) -> None:
        """Draw what is kept of every synapse."""
        draw(kept, synapses.weight, self._layout(synapses))

    def factor(self, parts: Sequence[Part], weight: Tensor) -> Tensor | None:
        """Product of what the mechanisms do to a weight's learning rate, in its shape; None when none acts.

        Args:
            parts: What the mechanisms do to this weight alone, in the library's order.
            weight: Its values before the optimizer step.
        """
        part = local(weight)
        index = None
        if any(each.noise is not None for each in parts):
            index = element_index(part.shape, full_shape=weight.shape, start=start_of(weight), device=weight.device)
        with in_parts_of(weight):
            held = [each._replace(states=tuple(like_held(state, weight) for state in each.states)) for each in parts]
            factor = self._factor(held, part, index)
        return None if factor is None else as_part(factor.expand(part.shape), weight)

    @staticmethod
    def _factor(parts: Sequence[Part], weight: Tensor, index: Tensor | None) -> Tensor | None:
        factors = []
        average = None
        for part in parts:
            rule = part.form.factor
            if rule is None:
                continue
            if average is None and any(r is not None and r.reads_average for r in (rule, part.form.statistic)):
                average = mean(weight.abs())
            draw = None if part.noise is None or index is None else part.noise.first().at(index)
            state = part.states[0].to(computing_dtype(part.states[0])) if part.states else None
            block = Block(weight, None, average, None, state, draw, tuple(operand[0] for operand in part.operands))
            if part.form.statistic is not None:
                block = block._replace(mean=mean(part.form.statistic(block)))
            factors.append(rule(block))
        return product(factors, weight.shape)

    def release(self) -> None:
        """Free the snapshots."""
        self._snapshots.clear()
        self._layouts.clear()

    # ---- one matrix -------------------------------------------------------------------------------------------------

    def _layout(self, synapses: Synapses) -> Layout:
        weight = synapses.weight
        layout = self._layouts.get(synapses.name)
        if layout is None or not layout.fits(weight):
            layout = self._layouts[synapses.name] = Layout(weight, leading=2 if synapses.gamma > 1 else 1)
        return layout

    def _other(self, mode: Mode, synapses: Synapses) -> Tensor | None:
        """Gradient or snapshot."""
        weight = synapses.weight
        if mode == "gradient":
            return weight.grad
        held = self._snapshots.get(synapses.name)
        if mode == "before" and (held is None or not Layout.alike(held, weight)):
            held = self._snapshots[synapses.name] = torch.empty_like(weight, requires_grad=False)
        return held

    def _run_one(self, mode: Mode, work: Work, layout: Layout) -> Job:
        synapses = work.layers[0]
        weight, other, grad = synapses.weight.detach(), self._other(mode, synapses), _judged_grad(synapses, mode)
        data = [
            Data(
                layout.matrix(part.states[0]) if part.states else None,
                None if part.noise is None else part.noise.first().keys(),
                None,
                tuple(layout.operand(operand[0]) for operand in part.operands),
            )
            for part in work.parts
        ]
        matrix = layout.matrix(weight)
        beside = None if other is None else layout.matrix(other)
        yield from run(
            tuple(part.form for part in work.parts),
            mode,
            matrix,
            beside,
            layout.index,
            data,
            grad=None if grad is None else layout.matrix(grad),
            compiled=self.compiled,
            spread=bool(layout.groups),
        )
        states = ((part.states[0], piece.state) for part, piece in zip(work.parts, data, strict=True) if part.states)
        for tensor, result in ((weight, matrix), (other, beside), *states):
            if tensor is not None and result is not None:
                layout.write_back(tensor, result)

    def _run_side_by_side(self, mode: Mode, work: Work, layout: Layout) -> Job:
        """Layers of one shape as the rows of one matrix."""
        weights = [synapses.weight for synapses in work.layers]
        others = _all_or_none(self._other(mode, synapses) for synapses in work.layers)
        grads = _all_or_none(_judged_grad(synapses, mode) for synapses in work.layers)
        matrix = layout.stack(weights)
        other = layout.stack(others) if others else None
        data = [
            Data(
                layout.stack(part.states) if part.states else None,
                None if part.noise is None else _columns(part.noise.keys(), matrix.device),
                None,
                tuple(layout.spread(operand, len(weights)) for operand in part.operands),
            )
            for part in work.parts
        ]
        yield from run(
            tuple(part.form for part in work.parts),
            mode,
            matrix,
            other,
            (torch.zeros(len(weights), dtype=torch.int32, device=matrix.device), layout.flat_index),
            data,
            grad=layout.stack(grads) if grads else None,
            layer_per_row=True,
            compiled=self.compiled,
            spread=bool(layout.groups),
        )
        if mode == "after":
            layout.scatter(matrix, weights)
            return
        if other is not None:
            layout.scatter(other, others)
        for part, piece in zip(work.parts, data, strict=True):
            if piece.state is not None and part.form.observe is not None:
                layout.scatter(piece.state, part.states)


def share_of_step(gamma: int) -> Part:
    """The share of one of ``gamma`` synapses in its connection's step."""
    return Part(Form(factor=Rule(_share, (("gamma", gamma),))))


def _share(block: Block, *, gamma: int) -> Tensor:
    return torch.full((1, 1), 1.0 / gamma, dtype=computing_dtype(block.weight), device=block.weight.device)


def _judged_grad(synapses: Synapses, mode: Mode) -> Tensor | None:
    """The raw gradient that rules judge ahead of a step in which updates are scaled."""
    return synapses.weight.grad if mode == "before" else None


def _all_or_none(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """Tensors of which all are there or none is, so that rows belong to their layers."""
    given = list(tensors)
    found = [tensor for tensor in given if tensor is not None]
    assert len(found) in (0, len(given))  # noqa: S101 - an invariant: what lies side by side is in one mode
    return found


def _columns(keys: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    # from pageable memory the copy to a GPU would wait
    held = keys.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else keys.to(device)
    return held[:, :1], held[:, 1:]
