"""One pass over memory: elementwise rules on matrices of weights, eagerly in chunks or compiled.

A mechanism brings pure functions; here they are chained and run. Statistics of a layer (the mean absolute weight, the
mean that a factor is divided by) come first, in float64 and without a host sync, then one elementwise sweep.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from bio_lightning.functional._layer import computing_dtype
from bio_lightning.functional.noise import Draw

__all__ = [
    "Arguments",
    "Block",
    "Data",
    "Form",
    "Kernel",
    "Mode",
    "Rule",
    "execute",
    "layer_mean",
    "run",
    "with_statistics",
]

#: Elements that an eager operation works on at a time: temporaries of this size stay in a processor's cache.
CHUNK = 1 << 17

#: How a pass runs.
Kernel = Literal["auto", "eager", "compiled"]

#: ``gradient``: state, then gradient times factor. ``before``: state and snapshot, ahead of the optimizer's step.
#: ``after``: the weight moves from the snapshot by factor times what the optimizer moved it.
Mode = Literal["gradient", "before", "after"]


class Block(NamedTuple):
    """What a rule sees: a matrix of weights, or rows of it, and whatever belongs to them.

    Args:
        weight: The weights before the optimizer step, ``(rows, columns)``.
        grad: Their raw gradients; None after the step.
        average: Mean absolute weight of the layer, broadcastable.
        mean: The layer's mean of the mechanism's ``statistic`` rule, broadcastable.
        state: The mechanism's stored tensor, in the computing dtype.
        draw: The mechanism's random numbers.
        operands: Further tensors, broadcastable.
    """

    weight: Tensor
    grad: Tensor | None = None
    average: Tensor | None = None
    mean: Tensor | None = None
    state: Tensor | None = None
    draw: Draw | None = None
    operands: tuple[Tensor, ...] = ()


class Rule(NamedTuple):
    """A pure elementwise function of a :class:`Block` with its settings; two with equal settings are equal.

    Args:
        function: Of a block and the settings.
        settings: Keywords and their values.
        reads_average: Whether it reads ``Block.average``.
    """

    function: Callable[..., Any]
    settings: tuple[tuple[str, Any], ...] = ()
    reads_average: bool = False

    def __call__(self, block: Block) -> Any:
        """The function's value for a block: a tensor, or what an event makes of it."""
        return self.function(block, **dict(self.settings))


class Form(NamedTuple):
    """What one mechanism does in a pass; hashable, and all that a compiled pass is compiled for.

    Args:
        factor: Factor on the learning rate.
        observe: New state, from the raw gradient.
        statistic: What the layer's mean is taken of, for the factor's ``Block.mean``; of the weight's shape, or of that
            of an operand.
    """

    factor: Rule | None = None
    observe: Rule | None = None
    statistic: Rule | None = None

    def during(self, mode: Mode) -> Form:
        """What is left of it in a mode."""
        if mode == "before":
            return Form(observe=self.observe)
        return self._replace(observe=None) if mode == "after" else self


class Data(NamedTuple):
    """The tensors of one mechanism in a pass, as matrices."""

    state: Tensor | None = None
    keys: tuple[int | Tensor, int | Tensor] | None = None
    mean: Tensor | None = None
    operands: tuple[Tensor, ...] = ()
    derived: tuple[tuple[str, int, int], ...] = ()


def layer_mean(pieces: Iterable[Tensor], layer_per_row: bool = False) -> Tensor:
    """Mean over a layer that comes in pieces, broadcastable against its matrix.

    In float64, so that it does not depend on chunks or shards; eagerly rows are added up in their own precision, since
    torch would first make a copy in float64.
    """
    total: Tensor | None = None
    count, dtype = 0, torch.float32
    for values in pieces:
        dtype = computing_dtype(values)
        inner = torch.float64 if torch.compiler.is_compiling() else dtype
        rows = values.sum(1, keepdim=True, dtype=inner).to(torch.float64)
        part = rows if layer_per_row else rows.sum(0, keepdim=True)
        total = part if total is None else total + part
        count += values.shape[1] if layer_per_row else values.numel()
    assert total is not None  # noqa: S101 - there is always a piece
    return (total / count).to(dtype)


def with_statistics(
    forms: tuple[Form, ...], chunks: tuple[Arguments, ...], mode: Mode, layer_per_row: bool = False
) -> tuple[Arguments, ...]:
    """The chunks of a layer, with those statistics of it that the forms read."""
    if any(rule is not None and rule.reads_average for form in forms for rule in form):
        average = layer_mean((chunk.measured(mode).abs() for chunk in chunks), layer_per_row)
        chunks = tuple(chunk._replace(average=average) for chunk in chunks)
    for place, form in enumerate(forms):
        if form.statistic is not None:
            mean = layer_mean((form.statistic(chunk.block(place, mode)) for chunk in chunks), layer_per_row)
            chunks = tuple(chunk.with_mean(place, mean) for chunk in chunks)
    return chunks


class _Pass(NamedTuple):
    """One pass: statistics of the layer, then one elementwise sweep in place."""

    forms: tuple[Form, ...]
    mode: Mode
    layer_per_row: bool = False

    def __call__(self, *chunks: Arguments) -> None:
        """Over all chunks of one matrix."""
        for chunk in with_statistics(self.forms, chunks, self.mode, self.layer_per_row):
            self._sweep(chunk)

    def _sweep(self, chunk: Arguments) -> None:
        """Over one chunk."""
        factor: Tensor | None = None
        new: list[tuple[Tensor, Tensor]] = []
        for place, form in enumerate(self.forms):
            block = chunk.block(place, self.mode)
            stored = chunk.data[place].state
            if form.observe is not None and stored is not None:
                state = form.observe(block)
                new.append((stored, state))
                block = block._replace(state=state)
            if form.factor is not None:
                part = form.factor(block)
                factor = part if factor is None else factor * part
        for stored, state in new:
            stored.copy_(state)
        if self.mode == "before":
            if chunk.other is not None:
                chunk.other.copy_(chunk.weight)
        elif self.mode == "gradient":
            assert chunk.other is not None  # noqa: S101 - an invariant: this mode has a gradient
            if factor is not None:
                chunk.other.mul_(factor)
        elif factor is not None:
            assert chunk.other is not None  # noqa: S101 - an invariant: this mode has a snapshot
            keep = 1.0 - factor.to(computing_dtype(chunk.weight))  # exactly 0 for a factor of 1
            chunk.weight.sub_((chunk.weight - chunk.other) * keep)


class Arguments(NamedTuple):
    """What a pass works on. ``other`` is the gradient, or the snapshot before or after the step."""

    weight: Tensor
    other: Tensor | None
    grad: Tensor | None
    row: Tensor
    column: Tensor
    data: list[Data]
    average: Tensor | None = None

    def measured(self, mode: Mode) -> Tensor:
        """The weights before the optimizer step."""
        if mode == "after":
            assert self.other is not None  # noqa: S101 - an invariant: this mode has a snapshot
            return self.other
        return self.weight

    def block(self, place: int, mode: Mode) -> Block:
        """What the rules of one mechanism see."""
        data = self.data[place]
        draw = None if data.keys is None else Draw(*data.keys, self.row.unsqueeze(1) + self.column, data.derived)
        weight = self.measured(mode)
        state = None if data.state is None else data.state.to(computing_dtype(weight))
        return Block(weight, self.grad, self.average, data.mean, state, draw, data.operands)

    def with_mean(self, place: int, mean: Tensor) -> Arguments:
        """The same with one mechanism's statistic filled in."""
        data = list(self.data)
        data[place] = data[place]._replace(mean=mean)
        return self._replace(data=data)

    def rows(self, first: int, last: int) -> Arguments:
        """Some rows of everything that has rows."""
        height = self.weight.shape[0]

        def cut(tensor: Tensor | None) -> Tensor | None:
            return tensor[first:last] if tensor is not None and tensor.ndim and tensor.shape[0] == height else tensor

        data = [
            part._replace(state=cut(part.state), operands=tuple(o for o in map(cut, part.operands) if o is not None))
            for part in self.data
        ]
        return self._replace(
            weight=self.weight[first:last],
            other=cut(self.other),
            grad=cut(self.grad),
            row=self.row[first:last],
            data=data,
        )


def _chunks(arguments: Arguments) -> Iterator[Arguments]:
    rows, columns = arguments.weight.shape
    step = max(CHUNK // max(columns, 1), 1)
    if step >= rows:
        yield arguments
    else:
        for first in range(0, rows, step):
            yield arguments.rows(first, min(first + step, rows))


#: Contraction lets a processor multiply and add in one instruction.
#: Nothing of a tensor's size is to be stored on the way, however often it is read and however long it took.
_OPTIONS: dict[str, Any] = {
    "cpp.enable_floating_point_contract_flag": "fast",
    "assert_indirect_indexing": False,
    "realize_opcount_threshold": 1000,
    "realize_reads_threshold": 1000,
}
#: Where every row has statistics of its own, torch 2.13 fails to fuse them with what reads them.
_ROW_OPTIONS = {**_OPTIONS, "max_fusion_size": 1}
#: Settings are constants of the compiled code, not arguments of it: to hand each over costs as much as all the rest.
_CONSTANTS = torch._dynamo.config.patch(specialize_float=True)
#: A square matrix is no special case.
_ALL_SHAPES = torch.fx.experimental._config.patch(use_duck_shape=False)  # type: ignore[attr-defined]
_failed = False


class Function(Protocol):
    """What can be compiled: hashable, and works in place on the chunks of a matrix."""

    @property
    def layer_per_row(self) -> bool:
        """Whether every row is a layer of its own."""

    def __call__(self, *chunks: Arguments) -> None:
        """Over all chunks of one matrix."""

    def __hash__(self) -> int:
        """One compilation for all that are equal."""


@functools.cache
def _compiled(function: Function) -> Callable[[Arguments], None]:
    known = inspect.signature(torch.compile).parameters
    limits: dict[str, Any] = {"recompile_limit": 64, "isolate_recompiles": True}
    more = {name: value for name, value in limits.items() if name in known}
    options = _ROW_OPTIONS if function.layer_per_row else _OPTIONS
    return torch.compile(lambda chunk: function(chunk), dynamic=True, options=options, **more)


def execute(function: Function, whole: Arguments, compiled: bool) -> None:
    """Run a function on a matrix: compiled, or in chunks where that is not wanted or fails."""
    global _failed
    if compiled and not _failed:
        try:
            with _CONSTANTS, _ALL_SHAPES:
                _compiled(function)(whole)
        except Exception as error:  # whatever a compiler may raise; nothing has run yet
            _failed = True
            rank_zero_warn(f"bio_lightning: kernel 'compiled' fails, 'eager' takes over: {error}")
        else:
            return
    function(*([whole] if function.layer_per_row else _chunks(whole)))


@torch.no_grad()
def run(
    forms: tuple[Form, ...],
    mode: Mode,
    weight: Tensor,
    other: Tensor | None,
    index: tuple[Tensor, Tensor],
    data: list[Data],
    *,
    grad: Tensor | None = None,
    layer_per_row: bool = False,
    compiled: bool = False,
) -> None:
    """Run the pass over one matrix, in place.

    Args:
        forms: What the mechanisms do, in order.
        mode: See :data:`Mode`.
        weight: Weights, ``(rows, columns)``.
        other: Gradient or snapshot, the shape of ``weight``.
        index: int32 index of every row and of every column: an element's logical index is the sum of its two.
        data: Tensors of every mechanism, in the order of ``forms``.
        grad: Raw gradient where ``other`` is a snapshot.
        layer_per_row: Whether every row is a layer of its own, with its own statistics.
        compiled: Compile it, once for all shapes; where that fails, warn once and stay eager.
    """
    whole = Arguments(weight, other, other if mode == "gradient" else grad, *index, data)
    execute(_Pass(forms, mode, layer_per_row), whole, compiled)
