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
from bio_lightning.functional.noise import Noise, element_index
from bio_lightning.kernels import Block, Data, Form, Job, Mode, Rule, finish_together, run
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
    """What one mechanism adds to the pass over one weight tensor.

    Args:
        form: Its rules.
        state: Its stored tensor, in the shape of the weight.
        noise: Its draw.
        operands: Further tensors, broadcastable to the weight, or to this process's part of it.
    """

    form: Form
    state: Tensor | None = None
    noise: Noise | None = None
    operands: tuple[Tensor, ...] = ()


class Work(NamedTuple):
    """One weight tensor in a pass, with what the mechanisms do to it."""

    synapses: Synapses
    parts: tuple[Part, ...]

    def during(self, mode: Mode) -> Work:
        """What is left of it in a mode."""
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
        """The pass of one step, see :data:`~bio_lightning.kernels.Mode`; small layers of one shape together."""
        alike: dict[tuple[object, ...], list[Work]] = {}
        for whole in works:
            work = whole if mode == "gradient" else whole.during(mode)
            if mode != "before" and not work.parts:
                continue
            weight = work.synapses.weight
            layout = self._layout(work.synapses)
            if layout.size > SMALL:
                alike[work.synapses,] = [work]
            else:
                forms = tuple(part.form for part in work.parts)
                operands = tuple(operand.shape for part in work.parts for operand in part.operands)
                key = (layout.key, weight.dtype, weight.device, forms, operands)
                alike.setdefault(key, []).append(work)
        if alike:  # to prepare for compiled code takes longer than to find out that there is nothing to run
            finish_together(self._jobs(mode, alike.values()))

    def _jobs(self, mode: Mode, alike: Iterable[list[Work]]) -> Iterator[tuple[tuple[ProcessGroup, ...], Job]]:
        """Jobs for works that may lie side by side, each with the processes that hold its weights together."""
        for found in alike:
            layout = self._layout(found[0].synapses)
            most = max(TOGETHER // max(layout.size, 1), 1)
            for first in range(0, len(found), most):
                group = found[first : first + most]
                if len(group) == 1:
                    yield layout.groups, self._run_one(mode, group[0], layout)
                else:
                    yield layout.groups, self._run_side_by_side(mode, group, layout)

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
            parts: What the mechanisms do, in the library's order.
            weight: Its values before the optimizer step.
        """
        part = local(weight)
        index = None
        if any(each.noise is not None for each in parts):
            index = element_index(part.shape, full_shape=weight.shape, start=start_of(weight), device=weight.device)
        with in_parts_of(weight):
            held = [
                each._replace(state=None if each.state is None else like_held(each.state, weight)) for each in parts
            ]
            factor = self._factor(held, part, index)
        return None if factor is None else as_part(factor.expand(part.shape), weight)

    @staticmethod
    def _factor(parts: Sequence[Part], weight: Tensor, index: Tensor | None) -> Tensor | None:
        product: Tensor | None = None
        average = None
        for part in parts:
            rule = part.form.factor
            if rule is None:
                continue
            if average is None and any(r is not None and r.reads_average for r in (rule, part.form.statistic)):
                average = mean(weight.abs())
            draw = None if part.noise is None or index is None else part.noise.at(index)
            state = None if part.state is None else part.state.to(computing_dtype(part.state))
            block = Block(weight, None, average, None, state, draw, part.operands)
            if part.form.statistic is not None:
                block = block._replace(mean=mean(part.form.statistic(block)))
            factor = rule(block)
            product = factor if product is None else product * factor
        return product

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

    @staticmethod
    def _data(part: Part, layout: Layout) -> Data:
        return Data(
            None if part.state is None else layout.matrix(part.state),
            None if part.noise is None else part.noise.keys(),
            None,
            tuple(layout.operand(operand) for operand in part.operands),
        )

    def _run_one(self, mode: Mode, work: Work, layout: Layout) -> Job:
        weight = work.synapses.weight.detach()
        other = self._other(mode, work.synapses)
        data = [self._data(part, layout) for part in work.parts]
        matrix = layout.matrix(weight)
        beside = None if other is None else layout.matrix(other)
        grad = _judged_grad(work.synapses, mode)
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
        states = ((part.state, piece.state) for part, piece in zip(work.parts, data, strict=True))
        for tensor, result in ((weight, matrix), (other, beside), *states):
            if tensor is not None and result is not None:
                layout.write_back(tensor, result)

    def _run_side_by_side(self, mode: Mode, works: list[Work], layout: Layout) -> Job:
        """Layers of one shape as the rows of one matrix."""
        weights = [work.synapses.weight for work in works]
        others = [self._other(mode, work.synapses) for work in works]
        grads = [_judged_grad(work.synapses, mode) for work in works]
        data = [self._stacked(parts, layout) for parts in zip(*(work.parts for work in works), strict=True)]
        matrix = layout.stack(weights)
        other = layout.stack(others) if others[0] is not None else None
        yield from run(
            tuple(part.form for part in works[0].parts),
            mode,
            matrix,
            other,
            (torch.zeros(len(works), dtype=torch.int32, device=matrix.device), layout.flat_index),
            data,
            grad=layout.stack(grads) if grads[0] is not None else None,
            layer_per_row=True,
            compiled=self.compiled,
            spread=bool(layout.groups),
        )
        if mode == "after":
            layout.scatter(matrix, weights)
            return
        if other is not None:
            layout.scatter(other, others)
        for place, part in enumerate(data):
            if part.state is not None and works[0].parts[place].form.observe is not None:
                layout.scatter(part.state, [work.parts[place].state for work in works])

    @staticmethod
    def _stacked(parts: Sequence[Part], layout: Layout) -> Data:
        """The tensors of one mechanism for several layers."""
        states = [part.state for part in parts]
        device = layout.flat_index.device
        return Data(
            layout.stack(states) if states[0] is not None else None,
            _keys([part.noise for part in parts], device),
            None,
            tuple(layout.stack_operands(same) for same in zip(*(part.operands for part in parts), strict=True)),
        )


def share_of_step(gamma: int) -> Part:
    """The share of one of ``gamma`` synapses in its connection's step."""
    return Part(Form(factor=Rule(_share, (("gamma", gamma),))))


def _share(block: Block, *, gamma: int) -> Tensor:
    return torch.full((1, 1), 1.0 / gamma, dtype=computing_dtype(block.weight), device=block.weight.device)


def _judged_grad(synapses: Synapses, mode: Mode) -> Tensor | None:
    """The raw gradient that rules judge ahead of a step in which updates are scaled."""
    return synapses.weight.grad if mode == "before" else None


def _keys(noises: list[Noise | None], device: torch.device) -> tuple[Tensor, Tensor] | None:
    keys = [noise.keys() for noise in noises if noise is not None]
    if not keys:
        return None
    both = torch.tensor(keys, dtype=torch.int32)
    # from pageable memory the copy to a GPU would wait
    both = both.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else both.to(device)
    return both[:, :1], both[:, 1:]
