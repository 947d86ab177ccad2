"""Constructor parameters: declared once as annotated attributes, checked once, for Python and YAML alike."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Union

from typing_extensions import dataclass_transform

from bio_lightning.errors import BioConfigError, nearest_name

__all__ = ["Parametrized", "Range", "checked", "default_of", "describe", "number", "parameters", "whole_number"]


class Range(NamedTuple):
    """Interval of allowed numbers.

    Example:
        >>> str(Range(low=0, high=1, open_low=True)), 0.0 in Range(low=0, high=1, open_low=True)
        ('(0, 1]', False)
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)) or math.isnan(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        left = "(" if self.open_low or self.low == -math.inf else "["
        right = ")" if self.open_high or self.high == math.inf else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


def number(
    default: Any,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    infinite: bool = False,
) -> Any:
    """A numeric constructor parameter with its allowed range.

    Args:
        default: Its default.
        ge: Smallest allowed value.
        gt: Bound that must be exceeded.
        le: Largest allowed value.
        lt: Bound that must not be reached.
        infinite: Whether infinity is allowed.
    """
    low = ge if ge is not None else gt if gt is not None else -math.inf
    high = le if le is not None else lt if lt is not None else math.inf
    bounds = Range(low, high, open_low=gt is not None, open_high=lt is not None)
    return dataclasses.field(default=default, metadata={"range": bounds, "infinite": infinite})


class _MismatchError(Exception):
    """A value that does not fit a type hint; the message says what would."""

    def __init__(self, allowed: str, nearest: str | None = None) -> None:
        super().__init__(allowed)
        self.allowed, self.nearest = allowed, nearest


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(dataclasses.field,))
class Parametrized:
    """Base of classes whose annotated attributes are their constructor's keywords, checked and converted.

    A subclass is written as a dataclass is, and type checkers take it for one. It must not be one: OmegaConf makes a
    configuration of every dataclass instance that it meets, and so would ``hydra.utils.instantiate`` of the callbacks
    in its arguments. So a dataclass of the same fields makes constructor and repr, and keeps the fields.

    Integers become floats and floats without a fraction integers, lists become tuples, and a bare string becomes a
    tuple of one, each where that is expected.

    Raises:
        BioConfigError: A value has the wrong type or is out of range.

    Example:
        >>> class Example(Parametrized):
        ...     floor: float = number(0.05, gt=0, le=1)
        >>> Example(floor=1), dataclasses.is_dataclass(Example)
        (Example(floor=1.0), False)
    """

    _fields: ClassVar[tuple[dataclasses.Field[Any], ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        hints = {k: hint for k, hint in typing.get_type_hints(cls).items() if typing.get_origin(hint) is not ClassVar}
        # a copy, since a dataclass writes the type into the field, which may be one that a base declared
        declared = {key: (copy.copy(getattr(cls, key)),) if hasattr(cls, key) else () for key in hints}
        made = dataclasses.make_dataclass(
            cls.__name__,
            [(key, hint, *declared[key]) for key, hint in hints.items()],
            namespace={"__post_init__": cls.__post_init__},
            kw_only=True,
            eq=False,
        )
        cls._fields = dataclasses.fields(made)
        _show_what_is_taken(vars(made)["__init__"], cls._fields)
        for name in {"__init__", "__repr__"} - vars(cls).keys():
            setattr(cls, name, vars(made)[name])

    def __post_init__(self) -> None:
        for field in self._fields:
            setattr(self, field.name, checked(field, getattr(self, field.name)))


def _show_what_is_taken(constructor: Any, fields: Iterable[dataclasses.Field[Any]]) -> None:
    """Let a dataclass's constructor show to jsonargparse what it takes.

    That is what a default factory makes, instead of the dataclass's own mark, and a bare string for a list of them.
    """
    signature = inspect.signature(constructor)
    shown = {}
    for field in fields:
        default, hint = default_of(field), field.type
        either = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
        hint = hint | str if tuple[str, ...] in either else hint
        shown[field.name] = signature.parameters[field.name].replace(
            annotation=hint, default=inspect.Parameter.empty if default is dataclasses.MISSING else default
        )
    constructor.__signature__ = signature.replace(parameters=[signature.parameters["self"], *shown.values()])


def parameters(owner: Parametrized | type[Parametrized]) -> tuple[dataclasses.Field[Any], ...]:
    """Parameters of a class or instance, those of its bases first, each with its resolved type.

    Example:
        >>> class Example(Parametrized):
        ...     floor: float = number(0.05, gt=0, le=1)
        >>> [(field.name, field.type, field.default) for field in parameters(Example)]
        [('floor', <class 'float'>, 0.05)]
    """
    return owner._fields


def describe(field: dataclasses.Field[Any]) -> str:
    """What a parameter accepts, in words.

    Example:
        >>> class Example(Parametrized):
        ...     floor: float = number(0.05, gt=0, le=1)
        >>> describe(parameters(Example)[0])
        'a number in (0, 1]'
    """
    bounds = field.metadata.get("range")
    return _describe_hint(field.type, f" in {bounds}" if bounds and bounds != Range() else "")


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Default of a parameter, ``dataclasses.MISSING`` where it has none.

    Example:
        >>> default_of(number(0.05)), default_of(dataclasses.field(default_factory=dict))
        (0.05, {})
    """
    return field.default_factory() if callable(field.default_factory) else field.default


def checked(field: dataclasses.Field[Any], given: Any) -> Any:
    """A value for a parameter, converted to its type.

    Raises:
        BioConfigError: The value has the wrong type or is out of range.
    """
    try:
        value = _convert(field.type, given)
    except _MismatchError as error:
        raise BioConfigError(field.name, given, describe(field), error.nearest) from None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and "range" in field.metadata:
        finite = field.metadata["infinite"] or not math.isinf(value)
        if value not in field.metadata["range"] or not finite:
            raise BioConfigError(field.name, given, describe(field))
    return value


def whole_number(value: Any) -> Any:
    """A float without a fraction as an integer, as YAML and JSON make no difference; anything else as it is.

    Example:
        >>> whole_number(1.0), whole_number(1.5)
        (1, 1.5)
    """
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _describe_hint(hint: Any, bounds: str = "") -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return ", or ".join(_describe_hint(argument, bounds) for argument in arguments)
    if origin is tuple:
        return "a list of " + ("lists of strings" if typing.get_origin(arguments[0]) is tuple else "strings")
    if origin is dict:
        return "a mapping from strings to lists of strings"
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a string", type(None): "null"}
    return names[hint] + (bounds if hint in (float, int) else "")


def _convert(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        nearest = nearest_name(value, arguments) if isinstance(value, str) else None
        raise _MismatchError(_describe_hint(hint), nearest)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value)
    if origin is tuple:
        return _convert_tuple(arguments[0], value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _MismatchError(_describe_hint(hint))
        return {_convert(str, key): _convert(arguments[1], item) for key, item in value.items()}
    return _convert_scalar(hint, value)


def _convert_union(hints: tuple[Any, ...], value: Any) -> Any:
    nearest = None
    for hint in hints:
        try:
            return _convert(hint, value)
        except _MismatchError as error:  # noqa: PERF203 - the alternatives are few
            nearest = nearest or error.nearest
    raise _MismatchError(", or ".join(map(_describe_hint, hints)), nearest)


def _convert_tuple(hint: Any, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) and hint is str:
        return (value,)
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise _MismatchError("a list")
    items = tuple(value)
    if typing.get_origin(hint) is tuple and any(isinstance(item, str) for item in items):
        raise _MismatchError("a list of lists")  # a string would count as a list of one
    return tuple(_convert(hint, item) for item in items)


def _convert_scalar(hint: Any, value: Any) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int:
        value = whole_number(value)
    if type(value) is hint or (isinstance(value, hint) and not isinstance(value, bool)):
        return value
    raise _MismatchError(_describe_hint(hint))
