"""One check of constructor parameters for Python and YAML."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import ClassVar, Literal

import pytest

from bio_lightning import BioConfigError
from bio_lightning.parameters import Parametrized, Range, describe, number, parameters


class Example(Parametrized):
    share: float = number(0.5, gt=0, le=1)
    count: int = number(2, ge=1)
    limit: int | None = number(None, ge=0)
    scale: float = number(1.0, gt=0, infinite=True)
    flag: bool = False
    rule: Literal["slow", "fast"] = "slow"
    target: float | Literal["mean"] = number("mean", gt=0)
    names: tuple[str, ...] = ("*",)
    groups: tuple[tuple[str, ...], ...] = ()
    table: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"share": 1}, 1.0),
        ({"limit": None}, None),
        ({"limit": 3}, 3),
        ({"limit": 3.0}, 3),
        ({"count": 1.0}, 1),
        ({"scale": float("inf")}, float("inf")),
        ({"target": 0.3}, 0.3),
        ({"target": "mean"}, "mean"),
        ({"names": "net.*"}, ("net.*",)),
        ({"names": ["a", "b"]}, ("a", "b")),
        ({"groups": [["q", "k"]]}, (("q", "k"),)),
        ({"table": {"a": ["b"]}}, {"a": ("b",)}),
    ],
)
def test_values_are_converted(given, kept):
    (key,) = given
    value = getattr(Example(**given), key)
    assert value == kept
    assert type(value) is type(kept)


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({"share": 0}, "a number in (0, 1]"),
        ({"share": 1.01}, "a number in (0, 1]"),
        ({"share": float("nan")}, "a number in (0, 1]"),
        ({"share": "0.5"}, "a number in (0, 1]"),
        ({"share": True}, "a number in (0, 1]"),
        ({"share": None}, "a number in (0, 1]"),
        ({"count": 0}, "a whole number in [1, inf)"),
        ({"count": 1.5}, "a whole number in [1, inf)"),
        ({"count": True}, "a whole number in [1, inf)"),
        ({"count": 0.0}, "a whole number in [1, inf)"),
        ({"count": float("inf")}, "a whole number in [1, inf)"),
        ({"count": float("nan")}, "a whole number in [1, inf)"),
        ({"limit": -1}, "a whole number in [0, inf), or null"),
        ({"scale": 0.0}, "a number in (0, inf)"),
        ({"flag": 1}, "true or false"),
        ({"rule": "medium"}, "one of slow, fast"),
        ({"target": 0.0}, "a number in (0, inf), or one of mean"),
        ({"target": "median"}, "a number in (0, inf), or one of mean"),
        ({"names": 3}, "a list of strings"),
        ({"names": [3]}, "a list of strings"),
        ({"groups": "qk"}, "a list of lists of strings"),
        ({"groups": ["q", "k"]}, "a list of lists of strings"),
        ({"groups": 3}, "a list of lists of strings"),
        ({"table": ["a"]}, "a mapping from strings to lists of strings"),
    ],
)
def test_bad_values_name_key_value_and_what_is_allowed(given, allowed):
    (key,) = given
    with pytest.raises(BioConfigError) as caught:
        Example(**given)
    error = caught.value
    assert (error.key, error.allowed) == (key, allowed)
    assert str(error).startswith(f"{key}: got {given[key]!r}; allowed: {allowed}")


def test_infinity_only_where_it_has_a_meaning():
    with pytest.raises(BioConfigError, match="target: got inf"):
        Example(target=float("inf"))


def test_near_miss_is_suggested():
    with pytest.raises(BioConfigError, match=r"rule: got 'fasst'; allowed: one of slow, fast\. Did you mean 'fast'\?"):
        Example(rule="fasst")


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        (Range(0, 1), (0, 1, 0.5), (-0.1, 1.1)),
        (Range(0, 1, open_low=True, open_high=True), (0.5,), (0, 1)),
        (Range(), (-1e30, 1e30), (float("nan"), "1")),
    ],
)
def test_range(bounds, inside, outside):
    assert all(value in bounds for value in inside)
    assert not any(value in bounds for value in outside)


# ---- declarations ----------------------------------------------------------------------------------------------------


class Narrowed(Example):
    kind: ClassVar[str] = "narrowed"

    count: int = number(3, ge=3)
    scale: float | None  # the range stays
    needed: str


def test_declarations_are_inherited_and_overridden():
    names = [field.name for field in parameters(Example)]
    assert [field.name for field in parameters(Narrowed)] == [*names, "needed"]
    assert Narrowed(needed="x").count == 3
    described = {key: {f.name: describe(f) for f in parameters(owner)} for key, owner in ((0, Example), (1, Narrowed))}
    assert described[1] == described[0] | {
        "count": "a whole number in [3, inf)", "scale": "a number in (0, inf), or null", "needed": "a string"
    }  # fmt: skip
    assert parameters(Narrowed(needed="x")) == parameters(Narrowed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "missing 1 required keyword-only argument: 'needed'"),
        ({"needed": "x", "shar": 1}, "unexpected keyword argument 'shar'"),
        ({"needed": "x", "kind": "other"}, "unexpected keyword argument 'kind'"),
    ],
)
def test_constructor_takes_what_is_declared(arguments, message):
    with pytest.raises(TypeError, match=message):
        Narrowed(**arguments)
    with pytest.raises(TypeError, match="positional"):
        Narrowed("x")


def test_signature_shows_types_and_defaults():
    shown = inspect.signature(Example).parameters
    assert (shown["table"].annotation, shown["table"].default) == (dict[str, tuple[str, ...]], {})
    assert (shown["limit"].annotation, shown["limit"].default) == (int | None, None)
    assert (shown["names"].annotation, shown["names"].default) == (tuple[str, ...] | str, ("*",))
    assert shown["groups"].annotation == tuple[tuple[str, ...], ...], "a bare string is none of these"
    assert inspect.signature(Narrowed).parameters["needed"].default is inspect.Parameter.empty
    assert list(shown) == [field.name for field in parameters(Example)]
    first, second = Example(), Example()
    assert first.table is not second.table


def test_own_constructor_and_repr_are_kept():
    class Own(Example):
        def __init__(self) -> None:
            super().__init__(count=7)

        def __repr__(self) -> str:
            return "own"

    assert (Own().count, repr(Own())) == (7, "own")


def test_instances_are_no_dataclasses_but_copy_and_print_as_such():
    example = Example(names="a", table={"a": ["b"]})
    assert not dataclasses.is_dataclass(example)
    for twin in (eval(repr(example)), copy.deepcopy(example), pickle.loads(pickle.dumps(example))):
        assert twin != example
        assert vars(twin) == vars(example)
