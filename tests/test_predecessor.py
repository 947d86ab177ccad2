"""Configurations of the predecessor: what every field becomes, and what is said about it."""

import dataclasses
import enum
from typing import Any, NamedTuple

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional

from bio_lightning import BioConfigError, bio_callbacks, load_config, predecessor
from bio_lightning import config as config_module
from bio_lightning.plasticity import Plasticity
from bio_lightning.predecessor import translate


class Distribution(str, enum.Enum):
    """As in the predecessor: a string and an enumeration."""

    UNIFORM = "uniform"
    TEMPORAL = "temporal"


class Old(NamedTuple):
    """The predecessor's configuration, with its defaults."""

    weight_splitting_activation_function: Any = nn.Identity()
    fuzzy_learning_rate_factor_nu: float = 0.16
    dampening_factor: float = 0.6
    crystal_thresh: float = 4.5e-05
    rejuvenation_parameter_dre: float = 8.0
    weight_splitting_Gamma: int = 0  # noqa: N815
    apply_dales_principle: bool = False
    base_lr: float = 0.1
    stability_factor: float = 2.0
    lr_variability: float = 0.2
    fuzzy_lr_distribution: Distribution = Distribution.UNIFORM
    fuzzy_lr_min: float = 0.5
    fuzzy_lr_max: float = 2.0
    fuzzy_lr_dynamic: bool = False
    fuzzy_lr_decay: float = 0.9995
    fuzzy_lr_update_freq: int = 100
    fuzzy_lr_layer_index: int = -1
    fuzzy_lr_total_layers: int = -1


@pytest.fixture
def reported(monkeypatch):
    lines = []
    monkeypatch.setattr(config_module, "rank_zero_info", lines.append)
    return lines


FUZZY = {"enabled": True, "distribution": "uniform"}
VOLUME = {"enabled": True, "reference": "absolute", "normalize": False}
DALE = {"axis": "postsynaptic", "excitatory_fraction": 0.5}

#: Field, value, section, what the section then holds, what the note says.
FIELDS = [
    (
        "weight_splitting_activation_function",
        functional.relu,
        "weight_splitting",
        {"enabled": False, "mode": "grouped", "activation": "relu"},
        "=relu -> weight_splitting.activation='relu': units are summed behind it",
    ),
    (
        "weight_splitting_Gamma",
        2,
        "weight_splitting",
        {"enabled": True, "mode": "grouped", "gamma": 2},
        "=2 -> weight_splitting.gamma=2: groups of output units share their sum (mode: grouped), as before",
    ),
    (
        "fuzzy_learning_rate_factor_nu",
        0.09,
        "fuzzy_learning_rates",
        {**FUZZY, "nu": 0.09},
        "=0.09 -> fuzzy_learning_rates.nu=0.09: half-width of the uniform distributions",
    ),
    (
        "fuzzy_lr_distribution",
        "gamma",
        "fuzzy_learning_rates",
        {**FUZZY, "distribution": "gamma"},
        "='gamma' -> fuzzy_learning_rates.distribution='gamma': gamma no longer doubles the learning rate",
    ),
    (
        "fuzzy_lr_min",
        0.4,
        "fuzzy_learning_rates",
        {**FUZZY, "min": 0.4},
        "=0.4 -> fuzzy_learning_rates.min=0.4: bounds",
    ),
    (
        "fuzzy_lr_max",
        3.0,
        "fuzzy_learning_rates",
        {**FUZZY, "max": 3.0},
        "=3.0 -> fuzzy_learning_rates.max=3.0: bounds",
    ),
    (
        "fuzzy_lr_decay",
        0.9,
        "fuzzy_learning_rates",
        {**FUZZY, "decay": 0.9},
        "=0.9 -> fuzzy_learning_rates.decay=0.9: per update_every steps, for distribution: temporal only",
    ),
    (
        "fuzzy_lr_update_freq",
        50,
        "fuzzy_learning_rates",
        {**FUZZY, "update_every": 50},
        "=50 -> fuzzy_learning_rates.update_every=50: in optimizer steps",
    ),
    ("fuzzy_lr_dynamic", True, "fuzzy_learning_rates", FUZZY, "=True has no counterpart: the distribution decides"),
    ("fuzzy_lr_layer_index", 3, "fuzzy_learning_rates", FUZZY, "=3 has no counterpart: a layer's place is found"),
    ("fuzzy_lr_total_layers", 5, "fuzzy_learning_rates", FUZZY, "=5 has no counterpart: layers are counted"),
    (
        "dampening_factor",
        0.5,
        "crystallization",
        {"enabled": True, "dampening_factor": 0.5},
        "=0.5 -> crystallization.dampening_factor=0.5: what is left of a learning rate now stays above floor",
    ),
    (
        "crystal_thresh",
        1e-4,
        "crystallization",
        {"enabled": True, "crystal_thresh": 1e-4},
        "=0.0001 -> crystallization.crystal_thresh=0.0001: judged on the raw gradient",
    ),
    (
        "rejuvenation_parameter_dre",
        14.0,
        "weight_rejuvenation",
        {"enabled": True, "reference": "current", "dre": 14.0},
        "=14.0 -> weight_rejuvenation.dre=14.0: the same probability",
    ),
    (
        "apply_dales_principle",
        True,
        "dales_principle",
        {"enabled": True, **DALE},
        "=True -> dales_principle.enabled=True: as before one sign per row",
    ),
    (
        "base_lr",
        0.2,
        "volume_dependent_lr",
        {**VOLUME, "base_lr": 0.2},
        "=0.2 -> volume_dependent_lr.base_lr=0.2: acts only with normalize: false",
    ),
    (
        "stability_factor",
        3.0,
        "volume_dependent_lr",
        {**VOLUME, "stability_factor": 3.0},
        "=3.0 -> volume_dependent_lr.stability_factor=3.0: relative to a weight of 1 (reference: absolute)",
    ),
    (
        "lr_variability",
        0.3,
        "volume_dependent_lr",
        {**VOLUME, "lr_variability": 0.3},
        "=0.3 -> volume_dependent_lr.lr_variability=0.3; volume_dependent_lr is on",
    ),
]


def test_every_field_of_the_predecessor_is_covered():
    assert {field for field, *_ in FIELDS} == set(Old._fields) == set(predecessor._FIELDS)


@pytest.mark.parametrize(("field", "value", "section", "expected", "note"), FIELDS)
def test_field_becomes_a_key_with_a_note(field, value, section, expected, note, reported):
    sections, notes = translate({field: value})
    assert sections == {section: expected}
    assert len(notes) == 1
    assert notes[0].startswith(f"{field}{note}")
    assert "\n" not in notes[0]
    config = load_config({field: value})
    assert {key: config[section][key] for key in expected} == expected
    assert reported == [f"bio_lightning: {notes[0]}"]


@pytest.mark.parametrize(
    ("section", "field", "call"),
    [
        ("fuzzy_learning_rates", "fuzzy_lr_min", "fuzzy_learning_rates()"),
        ("volume_dependent_lr", "base_lr", "volume_dependent_lr()"),
        ("crystallization", "crystal_thresh", "crystallize()"),
        ("weight_rejuvenation", "rejuvenation_parameter_dre", "rejuvenate_weights() was called; set every_n_steps"),
    ],
)
def test_first_note_of_a_mechanism_says_that_the_loop_used_to_call_it(section, field, call):
    sections, notes = translate({field: 0.5, "fuzzy_lr_dynamic": False, "lr_variability": 0.1, "dampening_factor": 0.5})
    assert sections[section]["enabled"] is True
    said = [note for note in notes if f"{section} is on" in note]
    assert len(said) == 1
    assert call in said[0]


@pytest.mark.parametrize(
    ("field", "value", "note"),
    [
        ("weight_splitting_Gamma", 0, "weight_splitting_Gamma=0 -> weight_splitting.enabled=False"),
        ("apply_dales_principle", False, "apply_dales_principle=False -> dales_principle.enabled=False"),
    ],
)
def test_what_was_off_stays_off(field, value, note):
    assert bio_callbacks({field: value}) == []
    assert translate({field: value})[1] == [note]


def test_its_decay_is_set_where_it_is_read():
    (fuzzy,) = bio_callbacks({"fuzzy_lr_distribution": "temporal"})
    assert fuzzy.decay == 0.9995
    (fuzzy,) = bio_callbacks({"fuzzy_lr_distribution": "temporal", "fuzzy_lr_decay": 0.9})
    assert fuzzy.decay == 0.9
    for distribution in ("uniform", "gamma"):
        (fuzzy,) = bio_callbacks({"fuzzy_lr_distribution": distribution})
        assert list(fuzzy.idle_settings()) == [], "nobody has set it"


def test_gamma_switches_splitting_on_in_any_order():
    for fields in (("weight_splitting_Gamma", "weight_splitting_activation_function"), tuple(reversed(Old._fields))):
        given = {field: getattr(Old(torch.tanh, weight_splitting_Gamma=3), field) for field in fields}
        splitting = bio_callbacks(given)[-1]
        assert (splitting.gamma, splitting.mode, splitting.activation) == (3, "grouped", "tanh")


def test_an_instance_is_translated_whole(reported):
    old = Old(functional.relu, fuzzy_learning_rate_factor_nu=0.09, weight_splitting_Gamma=2, apply_dales_principle=True)
    fuzzy, volume, crystallization, rejuvenation, dale, splitting = bio_callbacks(old, ["crystallization.floor=0.2"])
    assert (fuzzy.nu, fuzzy.distribution) == (0.09, "uniform")
    assert (volume.normalize, volume.reference, volume.base_lr) == (False, "absolute", 0.1)
    assert (crystallization.floor, crystallization.recovery) == (0.2, 0.01)
    assert (rejuvenation.reference, rejuvenation.every_n_steps) == ("current", 100)
    assert (dale.axis, dale.excitatory_fraction) == ("postsynaptic", 0.5)
    assert (splitting.gamma, splitting.mode, splitting.activation) == (2, "grouped", "relu")
    assert [line.split("=")[0] for line in reported] == [f"bio_lightning: {field}" for field in Old._fields]


def test_defaults_of_the_predecessor_leave_splitting_and_dale_off_and_set_nothing_in_vain():
    callbacks = bio_callbacks(Old())
    assert [callback.name for callback in callbacks] == [
        "fuzzy_learning_rates", "volume_dependent_lr", "crystallization", "weight_rejuvenation"
    ]  # fmt: skip
    assert [line for callback in callbacks for line in callback.idle_settings()] == []


@pytest.mark.parametrize(("distribution", "decay"), [("uniform", 0.97), ("temporal", 0.9995)])
def test_the_default_decay_is_kept_where_something_reads_it(distribution, decay):
    assert bio_callbacks(Old(fuzzy_lr_distribution=distribution))[0].decay == decay
    assert bio_callbacks(Old(fuzzy_lr_distribution=distribution, fuzzy_lr_decay=0.5))[0].decay == 0.5


def test_result_is_an_ordinary_config_reported_once(reported):
    config = load_config({"dampening_factor": 0.5})
    assert len(reported) == 1
    assert load_config(config) == config
    assert bio_callbacks(config)[0].dampening_factor == 0.5
    assert len(reported) == 1


def test_dict_yaml_config_and_dataclass_give_the_same(tmp_path):
    given = {"fuzzy_learning_rate_factor_nu": 0.3, "fuzzy_lr_distribution": "temporal", "weight_splitting_Gamma": 2}
    given["weight_splitting_activation_function"] = "nn.ReLU()"
    expected = load_config(given)
    assert expected.weight_splitting.activation == "relu"
    (tmp_path / "old.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(given)))
    instance = dataclasses.make_dataclass("Old", [(key, Any, value) for key, value in given.items()])()
    for source in (tmp_path / "old.yaml", OmegaConf.create(given), instance):
        assert load_config(source) == expected
    enumerated = {**given, "fuzzy_lr_distribution": Distribution.TEMPORAL}
    assert load_config(enumerated) == load_config(OmegaConf.create(enumerated)) == expected
    assert "fuzzy_lr_distribution='temporal' -> " in translate(enumerated)[1][1]


def test_interpolation_between_the_predecessors_fields():
    source = OmegaConf.create({"fuzzy_lr_min": 0.3, "dampening_factor": "${fuzzy_lr_min}"})
    assert load_config(source).crystallization.dampening_factor == 0.3


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (functional.relu, "relu"),
        (torch.relu, "relu"),
        (nn.ReLU(), "relu"),
        (nn.ReLU(inplace=True), "relu"),
        (nn.ReLU, "relu"),
        ("torch.nn.functional.relu", "relu"),
        ("nn.ReLU()", "relu"),
        (functional.leaky_relu, "leaky_relu"),
        (nn.LeakyReLU(), "leaky_relu"),
        ("LeakyReLU", "leaky_relu"),
        (torch.tanh, "tanh"),
        (nn.Sigmoid(), "sigmoid"),
        (functional.gelu, "gelu"),
        (nn.SiLU(), "silu"),
        (functional.elu, "elu"),
        (nn.Identity(), None),
        (None, None),
    ],
)
def test_activation_is_translated_by_name(given, expected):
    sections, _ = translate({"weight_splitting_activation_function": given})
    assert sections["weight_splitting"]["activation"] == expected


@pytest.mark.parametrize(
    ("given", "shown", "nearest"),
    [
        (nn.Softplus(), "Softplus", None),
        (lambda x: x, "<lambda>", None),
        ("leky_relu", "leky_relu", "leaky_relu"),
        (3, "3", None),
        (nn.LeakyReLU(0.3), "LeakyReLU(negative_slope=0.3)", "leaky_relu"),
        (nn.GELU("tanh"), "GELU(approximate='tanh')", "gelu"),
    ],
)
def test_activation_without_counterpart_is_an_error(given, shown, nearest):
    with pytest.raises(BioConfigError, match="relu, leaky_relu, tanh, sigmoid, gelu, silu, elu or identity") as raised:
        load_config(Old(given))
    assert raised.value.key == "weight_splitting_activation_function"
    assert (raised.value.value, raised.value.nearest) == (shown, nearest)


@pytest.mark.parametrize(
    ("given", "key", "value", "nearest"),
    [
        ({"dampening_factor": 0.6, "crystal_tresh": 1e-4}, "crystal_tresh", 1e-4, "crystal_thresh"),
        ({"dampening_factor": 0.6, "weight_splitting_gamma": 2}, "weight_splitting_gamma", 2, "weight_splitting_Gamma"),
        ({"dampening_factor": 0.6, "qwertz": 2}, "qwertz", 2, None),
    ],
)
def test_unknown_field_is_an_error(given, key, value, nearest):
    with pytest.raises(BioConfigError, match="weight_splitting_Gamma, fuzzy_learning_rate_factor_nu") as raised:
        load_config(given)
    assert (raised.value.key, raised.value.value, raised.value.nearest) == (key, value, nearest)


@pytest.mark.parametrize("ours", [{"crystallization": {"enabled": True}}, {"seed": 3}])
def test_old_and_new_names_do_not_mix(ours):
    with pytest.raises(BioConfigError) as raised:
        load_config({"dampening_factor": 0.6, **ours})
    assert (raised.value.key, raised.value.nearest) == ("dampening_factor", "crystallization.dampening_factor")


@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("fuzzy_learning_rate_factor_nu", -1.0, None),
        ("fuzzy_lr_min", 3.0, None),
        ("weight_splitting_Gamma", -1, None),
        ("fuzzy_lr_distribution", "unifrom", "uniform"),
        ("apply_dales_principle", "yes", None),
        ("apply_dales_principle", "perhaps", None),
        ("dampening_factor", "strong", None),
        ("dampening_factor", "0.6", None),
    ],
)
def test_wrong_values_are_named_by_field(field, value, nearest):
    with pytest.raises(BioConfigError) as raised:
        load_config({field: value})
    assert (raised.value.key, raised.value.value, raised.value.nearest) == (field, value, nearest)


def test_wrong_overrides_are_named_by_section():
    with pytest.raises(BioConfigError) as raised:
        load_config({"dampening_factor": 0.6}, ["crystallization.dampening_factor=2"])
    assert (raised.value.key, raised.value.value) == ("crystallization.dampening_factor", 2)
    with pytest.raises(BioConfigError, match=r"crystallization\.floor"):
        load_config({"dampening_factor": 0.6}, ["crystallization.floor=2"])


def test_interpolated_text_may_be_a_number(monkeypatch):
    monkeypatch.setenv("DAMPENING", "0.7")
    monkeypatch.setenv("DALE", "true")
    given = {"dampening_factor": "${oc.env:DAMPENING}", "apply_dales_principle": "${oc.env:DALE}"}
    config = load_config(given)
    assert (config.crystallization.dampening_factor, config.dales_principle.enabled) == (0.7, True)


def test_volume_rule_gives_the_predecessors_factor():
    volume = bio_callbacks({"base_lr": 0.2, "stability_factor": 3.0, "lr_variability": 0.0})[0]
    weight = torch.tensor([0.0, 0.25, -1.0])
    expected = 0.2 * torch.exp(-3.0 * weight.abs() / (weight.abs() + 1))
    part = volume.part(None, [NamedTuple("Weight", [("name", str)])("w")], 0)
    factor = Plasticity().factor([part], weight)
    assert torch.allclose(factor, expected)


def test_a_lone_misspelt_field_has_a_near_miss():
    for name in ("base_lrr", "Base_lr"):
        with pytest.raises(BioConfigError, match=f"got '{name}'; allowed: .*Did you mean 'base_lr'"):
            config_module.migrate({name: 0.1})
