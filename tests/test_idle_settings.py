"""Settings that the mode in force does not read: each is found by training with and without it, and warned of."""

from __future__ import annotations

import functools
import typing
import warnings

import pytest
import torch

from bio_lightning import (
    BioMonitor,
    Crystallization,
    DalesPrinciple,
    FuzzyLearningRates,
    NoEffectWarning,
    SynapticScaling,
    VolumeDependentLR,
    WeightRejuvenation,
    bio_callbacks,
)
from bio_lightning.callbacks import REGISTRY
from bio_lightning.config import presets
from bio_lightning.parameters import checked, parameters
from tests.cases import CASES, MECHANISMS
from tests.models import fit, identical, make_model, weights_of

#: Inherited, or about more than the mechanism's own mode; ``activation`` and ``shared`` are errors where nothing reads
#: them, and ``on_mismatch`` is about checkpoints.
LEFT_OUT = {
    "include", "exclude", "seed", "forward_order", "start_step", "end_step", "apply_to", "kernel", "state_dtype",
    "activation", "shared", "on_mismatch",
}  # fmt: skip
#: What few steps do not show: rates move too slowly for a synapse to be hit at first and then no more.
UNSEEN = {("use", "recovery")}


def choices(name):
    """Settings that may be modes, with all their values."""
    for field in parameters(MECHANISMS[name]):
        options = (False, True) if field.type is bool else typing.get_args(field.type)
        if field.name not in LEFT_OUT and all(isinstance(option, (str, bool)) for option in options):
            yield from ((field.name, option) for option in options)


SWEEP = [(name, mode, value) for name in MECHANISMS for mode, value in choices(name)]


@functools.cache
def trained(name, settings):
    """Weights and state after a few steps."""
    callback = MECHANISMS[name](**{key: dict(v) if key == "readers" else v for key, v in settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        model = make_model("MLP", "adam")
        fit(model, [callback], steps=7)
    kept = {f"{layer}.{key}": v for layer, held in callback.session.store.items() for key, v in held.items()}
    return weights_of(model) | {key: tensor.clone() for key, tensor in kept.items() if torch.is_tensor(tensor)}


def as_key(settings):
    return tuple((key, tuple(v.items()) if isinstance(v, dict) else v) for key, v in sorted(settings.items()))


def is_read(name, key, settings):
    """What the table says."""
    mode, values = MECHANISMS[name].read_with.get(key, (None, ()))
    return mode is None or settings.get(mode, default_of(name, mode)) in values


def default_of(name, key):
    return next(field.default for field in parameters(MECHANISMS[name]) if field.name == key)


def test_every_setting_has_another_value():
    for name, callback in MECHANISMS.items():
        assert CASES[name].others.keys() == {field.name for field in parameters(callback)} - LEFT_OUT


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode", "value"), SWEEP)
def test_a_setting_changes_the_run_or_is_known_to_be_idle(name, mode, value):
    settings = {**CASES[name].sensitive, mode: value}
    wrong = {}
    for key, other in CASES[name].others.items():
        if key != mode and (value, key) not in UNSEEN:
            before = trained(name, as_key(settings))
            after = trained(name, as_key({**settings, key: other}))
            changes = not identical(before, after)
            if changes != is_read(name, key, settings):
                wrong[key] = changes
    assert wrong == {}


@pytest.mark.parametrize("name", REGISTRY)
def test_table_names_settings_and_values_that_exist(name):
    fields = {field.name: field for field in parameters(REGISTRY[name])}
    for key, (mode, values) in REGISTRY[name].read_with.items():
        assert key in fields
        assert [checked(fields[mode], value) for value in values] == list(values)


def told(callbacks):
    """What a fit warns of as without effect."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NoEffectWarning)
        fit(make_model("MLP"), callbacks, steps=1)
    return [str(warning.message) for warning in caught if warning.category is NoEffectWarning]


@pytest.mark.parametrize(
    ("callback", "setting", "now", "wanted"),
    [
        (VolumeDependentLR(base_lr=0.5), "base_lr: 0.5", "normalize: true", "normalize: false"),
        (FuzzyLearningRates(decay=0.5, distribution="activity"), "decay: 0.5", "distribution: activity",
         "distribution: temporal"),
        (FuzzyLearningRates(update_every=7), "update_every: 7", "distribution: lognormal",
         "distribution: weight_adaptive, activity, temporal"),
        (SynapticScaling(rule="tetzlaff", strength=0.5), "strength: 0.5", "rule: tetzlaff", "rule: multiplicative"),
        (SynapticScaling(rate=5), "rate: 5.0", "rule: multiplicative", "rule: tetzlaff"),
        (Crystallization(criterion="use", ignore_zero_grad=False), "ignore_zero_grad: false", "criterion: use",
         "criterion: gradient"),
        (WeightRejuvenation(readers={"net.0": ["net.2"]}), "readers: {'net.0': ('net.2',)}", "select: magnitude",
         "select: activity"),
        (DalesPrinciple(axis="postsynaptic", input_layer=True), "input_layer: true", "axis: postsynaptic",
         "axis: presynaptic"),
        (BioMonitor(alerts=False, alert_share=0.1), "alert_share: 0.1", "alerts: false", "alerts: true"),
        (BioMonitor(alerts=False, alert_patience=3), "alert_patience: 3", "alerts: false", "alerts: true"),
    ],
)  # fmt: skip
def test_warning_names_key_value_and_mode(callback, setting, now, wanted):
    assert told([callback]) == [f"{callback.name}.{setting} has no effect with {now}; it is read with {wanted}"]


def test_defaults_and_what_is_read_are_no_reason_to_warn():
    assert told([SynapticScaling(rule="tetzlaff", strength=1.0, rate=3.0), VolumeDependentLR(normalize=False)]) == []
    assert told([VolumeDependentLR(base_lr=0.5, normalize=False)]) == []


def test_a_section_that_is_off_is_no_reason_to_warn():
    off = {"volume_dependent_lr": {"enabled": False, "base_lr": 0.5}, "dales_principle": {"enabled": True}}
    assert told(bio_callbacks(off)) == []


@pytest.mark.parametrize("preset", presets())
def test_presets_set_nothing_in_vain(preset):
    assert [line for callback in bio_callbacks(preset) for line in callback.idle_settings()] == []
