"""Configurations written for pytorch-bio-transformations 0.0.5, translated field by field."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from torch import nn

from bio_lightning.errors import BioConfigError, nearest_name
from bio_lightning.split_layers import ACTIVATIONS

__all__ = ["fields_of", "is_predecessor", "named_by_field", "translate"]


#: Section and key that a field becomes; without a key it has no counterpart.
_FIELDS: dict[str, tuple[str, str | None]] = {
    "weight_splitting_activation_function": ("weight_splitting", "activation"),
    "weight_splitting_Gamma": ("weight_splitting", "gamma"),
    "fuzzy_learning_rate_factor_nu": ("fuzzy_learning_rates", "nu"),
    "fuzzy_lr_distribution": ("fuzzy_learning_rates", "distribution"),
    "fuzzy_lr_min": ("fuzzy_learning_rates", "min"),
    "fuzzy_lr_max": ("fuzzy_learning_rates", "max"),
    "fuzzy_lr_decay": ("fuzzy_learning_rates", "decay"),
    "fuzzy_lr_update_freq": ("fuzzy_learning_rates", "update_every"),
    "fuzzy_lr_dynamic": ("fuzzy_learning_rates", None),
    "fuzzy_lr_layer_index": ("fuzzy_learning_rates", None),
    "fuzzy_lr_total_layers": ("fuzzy_learning_rates", None),
    "dampening_factor": ("crystallization", "dampening_factor"),
    "crystal_thresh": ("crystallization", "crystal_thresh"),
    "rejuvenation_parameter_dre": ("weight_rejuvenation", "dre"),
    "apply_dales_principle": ("dales_principle", "enabled"),
    "base_lr": ("volume_dependent_lr", "base_lr"),
    "stability_factor": ("volume_dependent_lr", "stability_factor"),
    "lr_variability": ("volume_dependent_lr", "lr_variability"),
}

#: What is different now, or what to do instead.
_REMARKS = {
    "weight_splitting_activation_function": "units are summed behind it, as before",
    "weight_splitting_Gamma": "groups of output units share their sum (mode: grouped), as before; it must divide the"
    " number of outputs, not of inputs",
    "fuzzy_learning_rate_factor_nu": "half-width of the uniform distributions, standard deviation of the others; the"
    " mean over a layer is now exactly 1",
    "fuzzy_lr_distribution": "gamma no longer doubles the learning rate, beta has standard deviation nu; temporal ages"
    " without new noise; layer_adaptive, weight_adaptive and activity take effect",
    "fuzzy_lr_min": "bounds the factors before they are divided by their mean",
    "fuzzy_lr_max": "bounds the factors before they are divided by their mean",
    "fuzzy_lr_decay": "per update_every steps, for distribution: temporal only, down to a quarter of the diversity",
    "fuzzy_lr_update_freq": "in optimizer steps, not in calls of update_fuzzy_learning_rates()",
    "fuzzy_lr_dynamic": "the distribution decides: temporal ages, weight_adaptive and activity are refreshed every"
    " update_every steps, the others stay as drawn",
    "fuzzy_lr_layer_index": "a layer's place is found in the model's forward order; leave it out",
    "fuzzy_lr_total_layers": "layers are counted in the model; leave it out",
    "dampening_factor": "what is left of a learning rate now stays above floor, and recovery gives it back",
    "crystal_thresh": "judged on the raw gradient; exactly zero gradients count only with ignore_zero_grad: false",
    "rejuvenation_parameter_dre": "the same probability, relative to the layer's current spread (reference: current);"
    " new weights have the layer's initial distribution and both signs, and nothing is clamped",
    "apply_dales_principle": "as before one sign per row of a Linear layer, which is a neuron's incoming weights (axis:"
    " postsynaptic), half of the rows negative (excitatory_fraction: 0.5); a convolution had a sign per pair of"
    " channels and now has one per output channel; Dale's principle proper, for outgoing weights, is axis: presynaptic",
    "base_lr": "acts only with normalize: false, as before, and makes weights learn that much slower than the optimizer"
    " says; with normalize: true it has no effect, and the optimizer's learning rate must be chosen anew",
    "stability_factor": "relative to a weight of 1 (reference: absolute), as before; reference: layer_mean suits any"
    " layer",
}

#: What the predecessor always did, and its defaults where ours differ.
_ALWAYS: dict[str, dict[str, Any]] = {
    "fuzzy_learning_rates": {"distribution": "uniform"},
    "volume_dependent_lr": {"reference": "absolute", "normalize": False},
    "crystallization": {},
    "weight_rejuvenation": {"reference": "current"},
    "dales_principle": {"axis": "postsynaptic", "excitatory_fraction": 0.5},
    "weight_splitting": {"mode": "grouped"},
}

_DECAY = 0.9995  # its default, of the one distribution that reads it

#: Mechanisms that it applied where the training loop called them.
_CALLS = {
    "fuzzy_learning_rates": "fuzzy_learning_rates() was called",
    "volume_dependent_lr": "volume_dependent_lr() was called",
    "crystallization": "crystallize() was called, and only through fuzzy_learning_rates()",
    "weight_rejuvenation": "rejuvenate_weights() was called; set every_n_steps to how often that was",
}


def fields_of(source: object) -> dict[str, Any] | None:
    """Fields and values of a NamedTuple or dataclass instance; None for anything else.

    Example:
        >>> import collections
        >>> fields_of(collections.namedtuple("BioConfig", "base_lr")(0.1)), fields_of(3)
        ({'base_lr': 0.1}, None)
    """
    if isinstance(source, tuple) and hasattr(source, "_asdict"):
        return dict(source._asdict())
    if dataclasses.is_dataclass(source) and not isinstance(source, type):
        return {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    return None


def is_predecessor(given: Mapping[str, Any]) -> bool:
    """Whether a mapping has fields of the predecessor.

    Example:
        >>> is_predecessor({"dampening_factor": 0.6}), is_predecessor({"crystallization": {"enabled": True}})
        (True, False)
    """
    return any(name in _FIELDS for name in given)


def nearest_field(given: Mapping[str, Any]) -> str | None:
    """The field that one of some names was probably meant for."""
    return next((field for name in given if (field := nearest_name(name, _FIELDS))), None)


def translate(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Translate a configuration with the predecessor's field names.

    A mechanism is switched on when one of its fields is given, weight splitting when ``weight_splitting_Gamma`` is not
    0, Dale's principle when ``apply_dales_principle`` is true. What the predecessor computed is kept where a setting
    of ours computes it; fields that are not given have its defaults, where something reads them.

    Args:
        given: Its fields by name.

    Returns:
        Sections for :func:`bio_lightning.load_config`, and one note per field: what it became, or what to do instead.

    Raises:
        BioConfigError: A field is not one of the predecessor's, or an activation function has no counterpart.

    Example:
        >>> sections, notes = translate({"apply_dales_principle": False})
        >>> sections["dales_principle"]["enabled"], notes
        (False, ['apply_dales_principle=False -> dales_principle.enabled=False'])
    """
    sections: dict[str, Any] = {}
    notes = []
    temporal = _plain(given.get("fuzzy_lr_distribution")) == "temporal"
    for name, value in given.items():
        if name not in _FIELDS:
            raise BioConfigError(str(name), value, ", ".join(_FIELDS), nearest_name(name, _FIELDS))
        section, key = _FIELDS[name]
        first = section not in sections
        values = sections.setdefault(section, {"enabled": section in _CALLS, **_ALWAYS[section]})
        key, new = _converted(name, key, value)
        if name == "fuzzy_lr_decay" and value == _DECAY and not temporal:
            key = None  # its default, which nothing reads
        if name == "weight_splitting_Gamma":
            values["enabled"] = True
        if key:
            values[key] = new
        note = f"{name}={_shown(value)} " + (f"-> {section}.{key}={new!r}" if key else "has no counterpart")
        note += f": {_REMARKS[name]}" if name in _REMARKS and (key, new) != ("enabled", False) else ""
        note += f"; {section} is on, while it acted where {_CALLS[section]}" if first and section in _CALLS else ""
        notes.append(note)
    if temporal:
        sections["fuzzy_learning_rates"].setdefault("decay", _DECAY)
    return sections, notes


def named_by_field(error: BioConfigError, given: Mapping[str, Any]) -> BioConfigError:
    """The same error, under the name and with the value that the predecessor's configuration has for the setting.

    Example:
        >>> named_by_field(BioConfigError("crystallization.floor", 2, "less"), {"dampening_factor": 0.6}).key
        'crystallization.floor'
    """
    for name in given:
        section, key = _FIELDS[name]
        if error.key == f"{section}.{key}":
            return BioConfigError(name, error.value, error.allowed, error.nearest)
    return error


def _converted(name: str, key: str | None, value: Any) -> tuple[str | None, Any]:
    """Key and value of a field."""
    if name == "weight_splitting_Gamma" and value == 0:
        return "enabled", False
    if name == "weight_splitting_activation_function":
        return key, _activation(name, value)
    return key, _plain(value)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _activation(field: str, value: Any) -> str | None:
    """Our name of an activation function, given as a callable or by name."""
    given = _shown(value).strip("'")
    known = {name.replace("_", ""): name for name in ACTIVATIONS}
    plain = given.removesuffix("()").rpartition(".")[2].replace("_", "").lower()
    if plain in ("identity", "none"):
        return None
    if plain in known:
        default = ACTIVATIONS[known[plain]]()
        if not isinstance(value, nn.Module) or _settings(value) == _settings(default):
            return known[plain]
        given = repr(value)
    allowed = f"{', '.join(ACTIVATIONS)} or identity, with their default settings"
    raise BioConfigError(field, given, allowed, known.get(nearest_name(plain, known) or ""))


def _settings(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "inplace"}


def _shown(value: Any) -> str:
    """A callable by its name, anything else as written."""
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    return repr(value.value if isinstance(value, enum.Enum) else value)
