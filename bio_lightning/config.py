"""YAML: the schema, generated from the constructors; loading and checking; building the callbacks."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # OmegaConf's parser, here for its exception only
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, OmegaConf
from omegaconf.errors import InterpolationValidationError, OmegaConfBaseException, ValidationError

from bio_lightning import predecessor
from bio_lightning.callbacks import REGISTRY, BioCallback, PlasticityMechanism
from bio_lightning.errors import BioConfigError, NoEffectWarning, nearest_name
from bio_lightning.parameters import checked, parameters, whole_number
from bio_lightning.settings import Settings

__all__ = ["BioConfig", "as_yaml", "bio_callbacks", "check_names", "load_config", "migrate", "presets"]

#: Top-level settings and their defaults.
_SHARED = {"seed": 0, **Settings()._asdict()}
#: What a section holds that does not set its own; relative, so that a configuration may be part of a larger one.
_INHERITED = {key: f"${{..{key}}}" for key in _SHARED}
_TOP = (*_SHARED, *REGISTRY)

# ---- the schema -----------------------------------------------------------------------------------------------------


def _without_null(hint: Any) -> Any:
    arguments = [argument for argument in typing.get_args(hint) if argument is not type(None)]
    return arguments[0] if type(None) in typing.get_args(hint) and len(arguments) == 1 else hint


def _is_scalar(hint: Any) -> bool:
    # choices too are left to the constructor: OmegaConf knows Literal from 2.4 on, which Hydra does not allow yet
    return hint in (bool, int, float, str)


def _schema_field(field: dataclasses.Field[Any]) -> tuple[str, Any, Any]:
    """A constructor's parameter as OmegaConf sees it; lists, mappings and mixed unions are left to the constructor."""
    plain = _without_null(field.type)
    typed = _is_scalar(plain)
    if field.name in _SHARED:
        return field.name, plain if typed else Any, dataclasses.field(default=_INHERITED[field.name])
    settings: dict[str, Any] = {"default": field.default, "default_factory": field.default_factory}
    if isinstance(field.default, tuple):
        settings = {"default_factory": functools.partial(list, field.default)}
    return field.name, field.type if typed else Any, dataclasses.field(**settings, metadata=field.metadata)


def _section(callback: type[BioCallback]) -> type:
    fields = [_schema_field(field) for field in parameters(callback)]
    return dataclasses.make_dataclass(
        callback.__name__,
        [("enabled", bool, False), *fields],
        namespace={"__module__": __name__, "__qualname__": f"BioConfig.{callback.__name__}"},
    )


def _schema() -> type:
    types = {field.name: field.type for field in parameters(PlasticityMechanism)}
    sections = {name: _section(callback) for name, callback in REGISTRY.items()}
    plain = {key: _without_null(types[key]) for key in _SHARED}
    shared = [(key, plain[key] if _is_scalar(plain[key]) else Any, default) for key, default in _SHARED.items()]
    fields = [(name, section, dataclasses.field(default_factory=section)) for name, section in sections.items()]
    doc = """Structured schema of a configuration, for OmegaConf and Hydra: one section per callback, all off.

    A section has ``enabled`` and the callback's constructor arguments, with their defaults. ``seed``, ``apply_to``,
    ``kernel`` and ``state_dtype`` also exist at the top level, for every section that does not set its own.

    Example:
        >>> BioConfig(seed=1).crystallization.floor
        0.05
    """
    # the sections' classes are attributes of the schema, so that a configuration can be pickled
    nested = {section.__name__: section for section in sections.values()}
    return dataclasses.make_dataclass(
        "BioConfig", [*shared, *fields], namespace={"__module__": __name__, "__doc__": doc, **nested}
    )


BioConfig = _schema()
_KEYS = {name: [field.name for field in dataclasses.fields(getattr(BioConfig(), name))] for name in REGISTRY}
_PATHS = [*_SHARED, *(f"{section}.{key}" for section, keys in _KEYS.items() for key in keys)]

# ---- public ---------------------------------------------------------------------------------------------------------


def presets() -> dict[str, Path]:
    """The configurations that come with the library.

    Returns:
        Files by name.

    Example:
        >>> presets()["default"].name
        'default.yaml'
    """
    package = Path(__file__).parent
    folder = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_config(source: Any, overrides: Iterable[str] | Mapping[str, Any] = ()) -> DictConfig:
    """Load a configuration, merge it onto the schema, and check every value, also in sections that are off.

    Args:
        source: Path of a YAML file, name of a preset, mapping, DictConfig (also one that this function returned), or a
            configuration written for the predecessor: see :func:`bio_lightning.predecessor.translate`. A section that
            sets keys must say ``enabled: true`` or ``false``. In a section, null for ``seed``, ``apply_to``,
            ``kernel`` and ``state_dtype`` inherits the top-level value.
        overrides: What to change afterwards: texts as in ``"fuzzy_learning_rates.nu=0.3"``, whose values are YAML, or
            a mapping of sections.

    Returns:
        All sections with all keys; interpolations stay in place.

    Raises:
        BioConfigError: The file cannot be read, or a name or value cannot be accepted.

    Warns:
        NoEffectWarning: An override sets keys of a section that is off.

    Example:
        >>> config = load_config({"dales_principle": {"enabled": True}}, ["seed=3"])
        >>> config.dales_principle.enabled, config.dales_principle.seed, config.crystallization.enabled
        (True, 3, False)
    """
    given = _read(source)
    changes = _parsed(overrides)
    if not predecessor.is_predecessor(given) or set(given) & set(_TOP):
        return _merged(given, changes)
    old, sections, notes = _translated(given)
    for note in notes:
        rank_zero_info(f"bio_lightning: {note}")
    return _merged_as_written(old, sections, changes)


def bio_callbacks(source_or_config: Any, overrides: Iterable[str] | Mapping[str, Any] = ()) -> list[BioCallback]:
    """The callbacks that a configuration switches on.

    Args:
        source_or_config: See :func:`load_config`.
        overrides: See :func:`load_config`.

    Returns:
        Enabled callbacks in the library's order, ready for ``Trainer(callbacks=...)``.

    Raises:
        BioConfigError: See :func:`load_config`.

    Example:
        >>> [type(callback).__name__ for callback in bio_callbacks({}, ["weight_rejuvenation.enabled=true"])]
        ['WeightRejuvenation']
    """
    return _enabled(load_config(source_or_config, overrides))


def migrate(source: Any) -> tuple[dict[str, Any], list[str]]:
    """Translate a configuration written for pytorch-bio-transformations.

    Args:
        source: Path of a YAML file, or a mapping with its field names.

    Returns:
        Sections for :func:`load_config`, and one note per field: what it became, or what to do instead.

    Raises:
        BioConfigError: The file cannot be read, is not such a configuration, or a value cannot be accepted.

    Example:
        >>> migrate({"apply_dales_principle": False})[0]["dales_principle"]["enabled"]
        False
    """
    given = _read(source)
    if not predecessor.is_predecessor(given):
        allowed = "a configuration of pytorch-bio-transformations, as in base_lr: 0.1"
        raise BioConfigError("source", ", ".join(map(str, given)), allowed, predecessor.nearest_field(given))
    old, sections, notes = _translated(given)
    _merged_as_written(old, sections, {})
    plain: dict[str, Any] = _unmarked(sections)
    return plain, notes


def as_yaml(config: Mapping[str, Any]) -> str:
    """A configuration as YAML, with every interpolation resolved.

    A setting of the shared pass that a section inherits has the value that is in force. The text loads again.

    Args:
        config: What :func:`load_config` or :func:`migrate` returned.

    Raises:
        BioConfigError: An interpolation cannot be resolved.

    Example:
        >>> print(as_yaml(load_config("none", ["seed=3"])).splitlines()[0])
        seed: 3
    """
    if not isinstance(config, DictConfig):
        return OmegaConf.to_yaml(OmegaConf.create(dict(config)))
    raw, values = OmegaConf.to_container(config), _resolved(config)
    for key, section in _led(raw, values).items():
        for name in _inheriting(raw, key):
            values[name][key] = values[section][key]
    return OmegaConf.to_yaml(OmegaConf.create(values))


def _merged(given: dict[str, Any], changes: dict[str, Any]) -> DictConfig:
    """Sections and overrides on the schema, checked."""
    check_names(given)
    values = _overlaid(given, changes)
    for section in (name for name in given if name in REGISTRY and "enabled" not in values[name]):
        keys = ", ".join(map(str, given[section])) or "nothing"
        raise BioConfigError(
            f"{section}.enabled", None, f"true or false; the section sets {keys} and is silent on that"
        )
    config: DictConfig = OmegaConf.structured(BioConfig)
    for name, value in values.items():
        for key, item in value.items() if name in REGISTRY else ():
            _assign(config[name], key, _INHERITED.get(key) if item is None else item)
        if name in _SHARED:
            _assign(config, name, value)
    _enabled(config)
    for name in (name for name in changes if name in REGISTRY and not config[name].enabled):
        if set(changes[name]) - {"enabled"}:
            keys = ", ".join(f"{name}.{key}" for key in changes[name])
            rank_zero_warn(f"{keys}: overridden, but {name} is off", category=NoEffectWarning)
    return config


def _translated(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Fields of the predecessor as they resolve, the sections they become, and the notes."""
    old = _marked(given, _resolved(OmegaConf.create(given, flags={"allow_objects": True})))
    return old, *predecessor.translate(old)


def _merged_as_written(old: dict[str, Any], sections: dict[str, Any], changes: dict[str, Any]) -> DictConfig:
    """Translated sections on the schema; errors name the fields that the user wrote."""
    try:
        return _merged(sections, changes)
    except BioConfigError as error:
        section, _, key = error.key.partition(".")
        raise (error if key in changes.get(section, {}) else predecessor.named_by_field(error, old)) from None


# ---- reading --------------------------------------------------------------------------------------------------------


def _read(source: Any) -> dict[str, Any]:
    mapping = source
    if isinstance(source, (str, os.PathLike)):
        mapping = _from_file(os.fspath(source))
    elif isinstance(source, BioConfig):
        mapping = OmegaConf.structured(source)
    elif not isinstance(source, Mapping):
        mapping = predecessor.fields_of(source)
    given = _plain(mapping)
    if not isinstance(given, dict):
        raise BioConfigError("source", source, "a path, a preset's name, or a mapping of sections")
    return given


def _from_file(source: str) -> DictConfig:
    known = presets()
    path = known.get(source, Path(source))
    if not path.is_file():
        nearest = nearest_name(path.stem, known)
        raise BioConfigError("source", source, "a YAML file that exists, or a preset: " + ", ".join(known), nearest)
    allowed = "a YAML file with a mapping of sections, as in crystallization: {enabled: true}"
    try:
        config = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise BioConfigError(source, " ".join(str(error).split()), allowed) from None
    if not isinstance(config, DictConfig) or not config:
        raise BioConfigError(source, OmegaConf.to_container(config) or None, allowed)
    return config


class _Interpolated(str):
    """Text from an interpolation, which may stand for a number: an environment variable has nothing else to say."""


def _marked(raw: Any, resolved: Any) -> Any:
    """The resolved values, with a mark on text that came from an interpolation."""
    if isinstance(raw, Mapping) and isinstance(resolved, Mapping):
        return {key: _marked(raw.get(key), value) for key, value in resolved.items()}
    return _Interpolated(resolved) if isinstance(resolved, str) and "${" in str(raw) else resolved


def _unmarked(value: Any) -> Any:
    """OmegaConf holds text of no other class."""
    if isinstance(value, Mapping):
        return {key: _unmarked(item) for key, item in value.items()}
    return str(value) if isinstance(value, _Interpolated) else value


def _plain(value: Any) -> Any:
    """Plain dicts and lists. What is part of a larger DictConfig is resolved there, save what is merely inherited."""
    if not OmegaConf.is_config(value):
        return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value
    raw: Any = OmegaConf.to_container(value)
    if value._get_parent() is None or not isinstance(raw, dict):
        return raw
    resolved = _marked(raw, _resolved(value, missing=True))
    for name, section in raw.items():
        for key in _SHARED:
            if isinstance(section, dict) and section.get(key) == _INHERITED[key]:
                resolved[name][key] = section[key]
    return resolved


def _overlaid(below: Mapping[Any, Any], above: Mapping[Any, Any]) -> dict[Any, Any]:
    """Mappings are merged, everything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        merged[key] = _overlaid(below[key], value) if both else value
    return merged


def _parsed(overrides: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(overrides, Mapping):
        given: dict[str, Any] = _plain(overrides)
        check_names(given)
        return given
    values: dict[str, Any] = {}
    for item in (overrides,) if isinstance(overrides, str) else overrides:
        key, equals, text = str(item).partition("=")
        if not equals or not all(key.split(".")):
            name = key.strip(".")
            nearest = None if key in _PATHS or key in _TOP else _nearest(name, (*_TOP, *_PATHS))
            raise BioConfigError(key or "overrides", item, "key=value, as in fuzzy_learning_rates.nu=0.3", nearest)
        try:
            parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([item]))
        except (OmegaConfBaseException, yaml.YAMLError):
            allowed = "a YAML value; special characters need quotes, as in include='*.weight'"
            raise BioConfigError(key, text, allowed) from None
        check_names(parsed)
        values = _overlaid(values, parsed)
    return values


# ---- checking -------------------------------------------------------------------------------------------------------


def check_names(given: Mapping[str, Any], beside: tuple[str, ...] = ()) -> None:
    """Check the names of sections and keys, not their values.

    Args:
        given: A mapping of sections, as in a configuration file.
        beside: Names that are allowed beside those of a configuration.

    Raises:
        BioConfigError: A section or key is unknown, or a section is not a mapping.

    Example:
        >>> check_names({"crystallization": {"flor": 0.1}})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        bio_lightning.errors.BioConfigError: crystallization.flor: got 0.1; allowed: ... Did you mean 'floor'?
    """
    top = (*beside, *_TOP)
    for name, values in given.items():
        if name not in top:
            raise BioConfigError(str(name), values, ", ".join(top), _nearest(name, top))
        if name in REGISTRY and not isinstance(values, Mapping):
            raise BioConfigError(name, values, f"a mapping, as in {name}: {{enabled: true}}")
        for key, value in values.items() if name in REGISTRY else ():
            if key not in _KEYS[name]:
                raise BioConfigError(f"{name}.{key}", value, ", ".join(_KEYS[name]), nearest_name(key, _KEYS[name]))


def _nearest(name: str, names: Iterable[str]) -> str | None:
    """The key of that name where only one section has it, else the most similar of some names."""
    homes = [f"{section}.{name}" for section, keys in _KEYS.items() if name in keys]
    return homes[0] if len(homes) == 1 else nearest_name(name, names)


def _assign(node: DictConfig, key: str, value: Any) -> None:
    try:
        held: Any = node._get_node(key)
        if _would_be_converted(held, value):
            raise ValidationError("")
        plain = _unmarked(value)
        plain = whole_number(plain) if isinstance(held, IntegerNode) else plain
        OmegaConf.update(node, key, plain, merge=False)  # an assignment would warn of conversions
    except OmegaConfBaseException as error:
        raise _refusal(node, key, value, error) from None


def _would_be_converted(node: Any, value: Any) -> bool:
    """Whether OmegaConf would make of a value what nobody wrote: of any whole number a bool, of text a number."""
    if isinstance(value, str):
        is_text = not isinstance(value, _Interpolated) and "${" not in value and value != "???"
        return is_text and isinstance(node, (BooleanNode, IntegerNode, FloatNode))
    return isinstance(value, int) and not isinstance(value, bool) and isinstance(node, BooleanNode)


def _refusal(node: Any, key: str, value: Any, reason: OmegaConfBaseException) -> BioConfigError:
    """What a constructor would say to a value that OmegaConf refused."""
    path = str(node._get_full_key(key))
    section: Any = OmegaConf.get_type(node)
    field = next(field for field in dataclasses.fields(section) if field.name == key)
    try:
        if field.type is not Any:
            checked(field, value)
    except BioConfigError as error:
        return BioConfigError(path, value, error.allowed, error.nearest)
    return BioConfigError(path, value, f"plain values and valid interpolations ({_brief(reason)})")


def _brief(error: OmegaConfBaseException) -> str:
    return str(error.msg).splitlines()[0]


def _resolved(config: DictConfig, missing: bool = False) -> dict[str, Any]:
    try:
        return typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=not missing))
    except InterpolationValidationError as error:
        raise _refusal(error.parent_node, error.key, error.value, error) from None
    except OmegaConfBaseException as error:
        raw: Any = OmegaConf.to_container(error.parent_node)
        named = re.search(r"\$\{\.*([\w.]+)\}", str(raw[error.key]))
        nearest = nearest_name(named[1], _PATHS) if named else None
        allowed = f"what can be resolved ({_brief(error)})"
        raise BioConfigError(str(error.full_key), raw[error.key], allowed, nearest) from None


def _led(raw: Any, values: dict[str, Any]) -> dict[str, str]:
    """What all mechanisms share, by the section that is on and sets it itself: it wins over the top level."""
    leading: dict[str, str] = {}
    for key in Settings._fields:
        for name in REGISTRY:
            if key in raw[name] and raw[name][key] != _INHERITED[key] and values[name]["enabled"]:
                leading.setdefault(key, name)
    return leading


def _inheriting(raw: Any, key: str) -> list[str]:
    return [name for name in REGISTRY if raw[name].get(key) == _INHERITED[key]]


def _let_own_values_win(raw: Any, values: dict[str, Any]) -> None:
    """Where one section sets what all mechanisms share, the others follow it rather than the top level."""
    for key in _led(raw, values):
        for name in _inheriting(raw, key):
            values[name][key] = None


def _enabled(config: DictConfig) -> list[BioCallback]:
    """Construct all callbacks, which checks all values, and keep those that are on."""
    values = _resolved(config)
    PlasticityMechanism(**{key: values[key] for key in _SHARED})  # checks the top level, before a section inherits it
    _let_own_values_win(OmegaConf.to_container(config), values)
    built = []
    for name, callback in REGISTRY.items():
        enabled = values[name].pop("enabled")
        try:
            built.append((enabled, callback(**values[name])))
        except BioConfigError as error:
            raise error.under(name) from None
    return [callback for enabled, callback in built if enabled]
