"""One pass over memory: elementwise rules on matrices of weights, eagerly in chunks or compiled.

A mechanism brings pure functions; here they are chained and run. Statistics of a layer (the mean absolute weight, the
mean that a factor is divided by) come first, in float64 and without a host sync, then one elementwise sweep.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.distributed import ProcessGroup

from bio_lightning.functional._compiling import computed_once
from bio_lightning.functional._layer import computing_dtype
from bio_lightning.functional._shards import add_up
from bio_lightning.functional.noise import Draw

__all__ = [
    "Arguments",
    "Block",
    "Data",
    "Form",
    "Job",
    "Kernel",
    "Mode",
    "Rule",
    "Statistics",
    "finish_together",
    "layer_mean",
    "perform",
    "product",
    "run",
]

#: Elements that an eager operation works on at a time: temporaries of this size stay in a processor's cache.
CHUNK = 1 << 18

#: How a pass runs.
Kernel = Literal["auto", "eager", "compiled"]

#: ``gradient``: state, then gradient times factor. ``before``: state and snapshot, ahead of the optimizer's step.
#: ``after``: the weight moves from the snapshot by factor times what the optimizer moved it.
Mode = Literal["gradient", "before", "after"]

#: Work on a weight. Where other processes hold the rest of the weight, it gives what this one can say of sums over all
#: of it, float64, and receives the sums; see :func:`finish_together`.
Job = Generator[Tensor, Tensor, None]


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


def layer_mean(pieces: Iterable[Tensor], layer_per_row: bool = False, groups: tuple[ProcessGroup, ...] = ()) -> Tensor:
    """Mean over a layer that comes in pieces and may be spread over processes, broadcastable against its matrix."""
    total, count = _layer_sum(pieces, layer_per_row)
    if not groups:
        return total / count
    both = add_up(torch.cat([total, torch.full_like(total, count)], dim=1), groups)
    return both[:, :1] / both[:, 1:]


def _layer_sum(pieces: Iterable[Tensor], layer_per_row: bool) -> tuple[Tensor, int]:
    """Sum over a layer that comes in pieces, and how many values it has.

    In float64, so that it does not depend on chunks or shards; eagerly rows are added up in their own precision, since
    torch would first make a copy in float64.
    """
    total: Tensor | None = None
    count = 0
    for values in pieces:
        inner = torch.float64 if torch.compiler.is_compiling() else computing_dtype(values)
        rows = values.sum(1, keepdim=True, dtype=inner).to(torch.float64)
        part = rows if layer_per_row else rows.sum(0, keepdim=True)
        total = part if total is None else total + part
        count += values.shape[1] if layer_per_row else values.numel()
    assert total is not None  # noqa: S101 - there is always a piece
    return total, count


class Statistics(NamedTuple):
    """Means over a layer that some forms read.

    Args:
        forms: The forms.
        mode: See :data:`Mode`.
        layer_per_row: Whether every row is a layer of its own.
    """

    forms: tuple[Form, ...]
    mode: Mode
    layer_per_row: bool = False

    def fill(self, chunks: tuple[Arguments, ...]) -> tuple[Arguments, ...]:
        """The chunks of a whole layer with the means filled in."""
        for places in self.steps():
            means = [layer_mean(values, self.layer_per_row) for values in self.values(places, chunks)]
            chunks = tuple(chunk.with_means(places, means) for chunk in chunks)
        return chunks

    def steps(self) -> Iterator[tuple[int, ...]]:
        """Which means one after the other: of absolute weights (-1), then what the forms at some places ask for."""
        if any(rule is not None and rule.reads_average for form in self.forms for rule in form):
            yield (-1,)
        places = tuple(place for place, form in enumerate(self.forms) if form.statistic is not None)
        if places:
            yield places

    def values(self, places: Sequence[int], chunks: Sequence[Arguments]) -> Iterator[Iterator[Tensor]]:
        """What the means of a step are taken of, each chunk by chunk."""
        for place in places:
            yield (self._value(place, chunk) for chunk in chunks)

    def _value(self, place: int, chunk: Arguments) -> Tensor:
        if place < 0:
            return chunk.measured(self.mode).abs()
        rule = self.forms[place].statistic
        assert rule is not None  # noqa: S101 - see steps
        return cast("Tensor", rule(chunk.block(place, self.mode)))


class _Sums(NamedTuple):
    """What one process can say of the means of a step: sums and numbers of values, ``(rows or 1, 2 * means)``."""

    of: Statistics
    places: tuple[int, ...]

    @property
    def layer_per_row(self) -> bool:
        """Whether every row is a layer of its own."""
        return self.of.layer_per_row

    def __call__(self, *chunks: Arguments) -> Tensor:
        """Over all chunks of one matrix."""
        columns = []
        for values in self.of.values(self.places, chunks):
            total, count = _layer_sum(values, self.layer_per_row)
            columns += [total, torch.full_like(total, count)]
        return torch.cat(columns, dim=1)


class _Pass(NamedTuple):
    """One elementwise sweep in place."""

    forms: tuple[Form, ...]
    mode: Mode
    layer_per_row: bool = False
    statistics: Statistics | None = None

    def __call__(self, *chunks: Arguments) -> None:
        """Over all chunks of one matrix."""
        for chunk in chunks if self.statistics is None else self.statistics.fill(chunks):
            self._sweep(chunk)

    def _sweep(self, chunk: Arguments) -> None:
        """Over one chunk."""
        factors: list[Tensor] = []
        new: list[tuple[Tensor, Tensor]] = []
        for place, form in enumerate(self.forms):
            block = chunk.block(place, self.mode)
            stored = chunk.data[place].state
            if form.observe is not None and stored is not None:
                state = form.observe(block)
                new.append((stored, state))
                block = block._replace(state=state)
            if form.factor is not None:
                factors.append(form.factor(block))
        factor = product(factors, chunk.weight.shape)
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


def product(factors: Sequence[Tensor], shape: torch.Size) -> Tensor | None:
    """Product of factors that broadcast against a shape: a single one itself, and None of none."""
    if len(factors) < 2:
        return factors[0] if factors else None
    result = factors[0] * factors[1]  # a tensor of its own, where a factor may be what is stored
    for factor in factors[2:]:
        result = result.mul_(factor) if result.shape == shape else result * factor
    return result


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
        draw = None
        if data.keys is not None:
            draw = Draw(*data.keys, self.row.unsqueeze(1), self.column.to(torch.int32), data.derived)
        weight = self.measured(mode)
        state = None if data.state is None else data.state.to(computing_dtype(weight))
        return Block(weight, self.grad, self.average, data.mean, state, draw, data.operands)

    def with_means(self, places: Sequence[int], means: Sequence[Tensor]) -> Arguments:
        """The same with the means of a step of :class:`Statistics` filled in."""
        data, average = list(self.data), self.average
        for place, mean in zip(places, means, strict=True):
            rounded = mean.to(computing_dtype(self.weight))
            if torch.compiler.is_compiling():
                # For every row: a sweep that stores a state, too, and reads nothing by row is one loop over rows and
                # columns, and cannot be fused with its random numbers, which are drawn by row and column.
                rounded = computed_once(rounded.expand(self.weight.shape[0], 1).clone())
            if place < 0:
                average = rounded
            else:
                data[place] = data[place]._replace(mean=rounded)
        return self._replace(data=data, average=average)

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
#: Code that was compiled for a tiny layer, in this run or an earlier one, is to use all threads on a large one.
_OPTIONS: dict[str, Any] = {
    "cpp.dynamic_threads": True,
    "cpp.enable_floating_point_contract_flag": "fast",
    "assert_indirect_indexing": False,
    "realize_opcount_threshold": 1000,
    "realize_reads_threshold": 1000,
}
#: Where every row has statistics of its own, torch 2.13 fails to fuse them with what reads them, and stores more. These
#: layers are small, at most a million weights together.
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

    def __call__(self, *chunks: Arguments) -> Any:
        """Over all chunks of one matrix."""

    def __hash__(self) -> int:
        """One compilation for all that are equal."""


def _guards_on_arguments(guards: Sequence[Any]) -> list[bool]:
    """Which guards stay: what is compiled for a function is asked at every call whether it fits the arguments.

    That the function, this package and the classes of the arguments are still the same takes longer to ask than that.
    """
    constant = ("function", "L['function']", "type(", "dict(")
    return [not guard.is_global and not guard.name.startswith(constant) for guard in guards]


@functools.cache
def _compiled(function: Function) -> Callable[[Arguments], Any]:
    known = inspect.signature(torch.compile).parameters
    limits: dict[str, Any] = {"recompile_limit": 64, "isolate_recompiles": True}
    more = {name: value for name, value in limits.items() if name in known}
    options = _ROW_OPTIONS if function.layer_per_row else _OPTIONS
    if "isolate_recompiles" in more:  # else only guards keep what is compiled for one function from another
        options = {**options, "guard_filter_fn": _guards_on_arguments}
    return torch.compile(lambda chunk: function(chunk), dynamic=True, options=options, **more)


def _execute(function: Function, whole: Arguments, compiled: bool) -> Any:
    """Run a function on a matrix: compiled, or in chunks where that is not wanted or fails."""
    global _failed
    if compiled and not _failed and whole.weight.numel() > 0:
        try:
            return _compiled(function)(whole)
        except Exception as error:  # whatever a compiler may raise; nothing has run yet
            _failed = True
            rank_zero_warn(f"bio_lightning: kernel 'compiled' fails, 'eager' takes over: {error}")
    return function(*([whole] if function.layer_per_row else _chunks(whole)))


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
    spread: bool = False,
) -> Job:
    """Run the pass over one matrix, in place.

    Args:
        forms: What the mechanisms do, in order.
        mode: See :data:`Mode`.
        weight: Weights, ``(rows, columns)``.
        other: Gradient or snapshot, the shape of ``weight``.
        index: Of every row, int32, and of every column, whole numbers of any type: an element's logical index is the
            sum of its two.
        data: Tensors of every mechanism, in the order of ``forms``.
        grad: Raw gradient where ``other`` is a snapshot.
        layer_per_row: Whether every row is a layer of its own, with its own statistics.
        compiled: Compile it, once for all shapes; where that fails, warn once and stay eager.
        spread: Whether other processes hold the rest of the layer.

    Yields:
        Where ``spread``, this process's part of sums over the layer.
    """
    matrix = Arguments(weight, other, other if mode == "gradient" else grad, *index, data)
    statistics = Statistics(forms, mode, layer_per_row)
    make = functools.partial(_Pass, forms, mode, layer_per_row)
    yield from perform(make, statistics, matrix, compiled=compiled, spread=spread)


def perform(
    make: Callable[[Statistics | None], Function],
    statistics: Statistics,
    matrix: Arguments,
    *,
    compiled: bool,
    spread: bool,
) -> Job:
    """Run a function on a matrix that may be a part of the layer.

    Args:
        make: Makes the function of the statistics that it has to fill in itself.
        statistics: What it reads.
        matrix: The matrix.
        compiled: Whether to compile it.
        spread: Whether other processes hold the rest of the layer.
    """
    for places in statistics.steps() if spread else ():
        sums = yield _execute(_Sums(statistics, places), matrix, compiled)
        matrix = matrix.with_means(places, torch.split(sums[:, ::2] / sums[:, 1::2], 1, dim=1))
    _execute(make(None if spread else statistics), matrix, compiled)


@torch.no_grad()
def finish_together(jobs: Iterable[tuple[tuple[ProcessGroup, ...], Job]]) -> None:
    """Run jobs to their end; what several of them ask of other processes at a time is one message.

    Args:
        jobs: Each with the groups of processes that hold the weight together; they are started one after the other.
    """
    with _CONSTANTS, _ALL_SHAPES:  # once for all of them: it takes a while
        _finish_together(jobs)


def _finish_together(jobs: Iterable[tuple[tuple[ProcessGroup, ...], Job]]) -> None:
    waiting = [(groups, job, part) for groups, job in jobs if (part := next(job, None)) is not None]
    while waiting:
        by_groups: dict[tuple[ProcessGroup, ...], list[tuple[Job, Tensor]]] = {}
        for groups, job, part in waiting:
            by_groups.setdefault(groups, []).append((job, part))
        waiting = []
        for groups, asking in by_groups.items():
            packed = add_up(torch.cat([part.flatten() for _job, part in asking]), groups)
            sums = torch.split(packed, [part.numel() for _job, part in asking])
            for (job, part), total in zip(asking, sums, strict=True):
                with contextlib.suppress(StopIteration):
                    waiting.append((groups, job, job.send(total.view_as(part))))
