"""The JSON schema of a configuration, generated from the constructors, so that editors complete and check keys."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from typing import Any, Literal, Union

from bio_lightning.callbacks import REGISTRY, BioCallback, PlasticityMechanism
from bio_lightning.cli.docstrings import arguments, summary
from bio_lightning.parameters import Range, default_of, parameters
from bio_lightning.settings import Settings

__all__ = ["json_schema", "schema_text"]

#: Top-level settings, which a section inherits unless it sets its own.
_SHARED = {"seed": 0, **Settings()._asdict()}
_INTERPOLATION = {"type": "string", "pattern": r"\$\{", "description": "An interpolation, as in ${oc.env:NAME}."}
_SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string"}


def schema_text() -> str:
    """The schema as it is written to ``configs/schema.json``.

    Example:
        >>> schema_text().splitlines()[1]
        '  "$schema": "https://json-schema.org/draft/2020-12/schema",'
    """
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def json_schema() -> dict[str, Any]:
    """Sections, keys, types, ranges, defaults and descriptions.

    What depends on several keys at a time is left to :func:`bio_lightning.load_config`.

    Example:
        >>> json_schema()["properties"]["crystallization"]["properties"]["floor"]["default"]
        0.05
    """
    fields = {field.name: field for field in parameters(PlasticityMechanism)}
    texts, shared = arguments(PlasticityMechanism), {}
    for key, default in _SHARED.items():
        text = re.sub(r"[.;] null inherits.*", ".", texts[key])  # true of sections only
        property_ = _property(fields[key], text)
        shared[key] = {**property_, "default": _primitive(default)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bio_lightning",
        "description": "Synapses of a LightningModule: one section per callback, in snake case; the others are off.",
        "type": "object",
        "additionalProperties": False,
        "properties": {**shared, **{name: _section(callback) for name, callback in REGISTRY.items()}},
        "$defs": {"interpolation": _INTERPOLATION},
    }


def _section(callback: type[BioCallback]) -> dict[str, Any]:
    texts = arguments(callback)
    properties: dict[str, Any] = {"enabled": _either([{"type": "boolean"}], "Whether the callback is on.")}
    for field in parameters(callback):
        properties[field.name] = _property(field, texts[field.name], inherits=field.name in _SHARED)  # null inherits
        if field.name not in _SHARED:
            properties[field.name]["default"] = _primitive(default_of(field))
    return {
        "description": summary(callback),
        "type": "object",
        "additionalProperties": False,
        "required": ["enabled"],
        "properties": properties,
    }


def _property(field: dataclasses.Field[Any], text: str, inherits: bool = False) -> dict[str, Any]:
    hint: Any = field.type
    return _either(_alternatives(hint | None if inherits else hint, field.metadata.get("range", Range())), text)


def _either(alternatives: list[dict[str, Any]], text: str) -> dict[str, Any]:
    return {"description": text, "anyOf": [*alternatives, {"$ref": "#/$defs/interpolation"}]}


def _alternatives(hint: Any, bounds: Range) -> list[dict[str, Any]]:
    """What a type hint allows, one schema for each member of a union."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return [schema for member in members for schema in _alternatives(member, bounds)]
    if origin is Literal:
        return [{"enum": list(members)}]
    if origin is tuple:
        items = [schema for schema in _alternatives(members[0], bounds) if schema.get("type") == "array"]
        texts = {"type": "string"}  # a bare string is a list of one, though not within a list
        return [{"type": "array", "items": items[0]}] if items else [{"type": "array", "items": texts}, texts]
    if origin is dict:
        return [{"type": "object", "additionalProperties": _alternatives(members[1], bounds)[0]}]
    if hint is type(None):
        return [{"type": "null"}]
    return [{"type": _SCALARS[hint], **(_limits(bounds) if hint in (int, float) else {})}]


def _limits(bounds: Range) -> dict[str, float]:
    low = {"exclusiveMinimum" if bounds.open_low else "minimum": bounds.low}
    high = {"exclusiveMaximum" if bounds.open_high else "maximum": bounds.high}
    return {key: value for key, value in {**low, **high}.items() if abs(value) != float("inf")}


def _primitive(value: Any) -> Any:
    return [_primitive(item) for item in value] if isinstance(value, tuple) else value
