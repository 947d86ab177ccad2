"""Configuration: presets, the schema, inheritance, interpolation, overrides, and every error with its exact key."""

import copy
import pickle
import re
import typing
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError

import bio_lightning
from bio_lightning import BioConfig, BioConfigError, NoEffectWarning, bio_callbacks, load_config
from bio_lightning import config as config_module
from bio_lightning.callbacks import REGISTRY
from bio_lightning.config import presets
from bio_lightning.errors import nearest_name
from bio_lightning.parameters import parameters
from bio_lightning.settings import agree

SHARED = {"seed": 0, "apply_to": "auto", "kernel": "auto", "state_dtype": "float32", "forward_order": None}
PRESETS = ("all", "continual", "dale", "default", "none", "paper")
PARAMETERS = [(section, field.name) for section, callback in REGISTRY.items() for field in parameters(callback)]


def on(section, **keys):
    return {section: {"enabled": True, **keys}}


def field_of(section, key):
    return next(field for field in parameters(REGISTRY[section]) if field.name == key)


def as_lists(value):
    return [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def error_of(source, *overrides):
    with pytest.raises(BioConfigError) as raised:
        load_config(source, overrides)
    return raised.value


# ---- presets --------------------------------------------------------------------------------------------------------


def test_presets_are_the_files_in_configs():
    assert tuple(presets()) == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_preset_loads_builds_and_logs(name):
    config = load_config(name)
    built = bio_callbacks(name)
    assert [callback.name for callback in built] == [section for section in REGISTRY if config[section].enabled]
    assert config.bio_monitor.enabled


@pytest.mark.parametrize("name", PRESETS)
def test_preset_begins_with_what_it_is_for(name):
    assert re.match(r"# [^\n]{20,}", presets()[name].read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "default"])
def test_preset_holds_only_what_differs(name):
    for section, values in OmegaConf.to_container(OmegaConf.load(presets()[name])).items():
        assert values.pop("enabled") is True
        for key, value in values.items():
            assert value != as_lists(getattr(REGISTRY[section](), key)), f"{section}.{key}"


def test_presets_that_name_mechanisms_switch_them_on():
    names = {name: {callback.name for callback in bio_callbacks(name)} for name in PRESETS}
    assert names["all"] == set(REGISTRY)
    assert names["none"] == {"bio_monitor"}
    assert names["dale"] == {"dales_principle", "bio_monitor"}
    assert names["continual"] == {"weight_rejuvenation", "bio_monitor"}
    assert names["default"] == {"fuzzy_learning_rates", "crystallization", "weight_rejuvenation", "bio_monitor"}
    assert names["paper"] == {"fuzzy_learning_rates", "weight_rejuvenation", "weight_splitting", "bio_monitor"}


def test_paper_preset_has_the_settings_of_the_experiments():
    fuzzy, rejuvenation, splitting, _ = bio_callbacks("paper")
    assert (fuzzy.nu, fuzzy.distribution) == (0.09, "uniform")
    assert (rejuvenation.dre, rejuvenation.every_n_steps) == (14.0, 1)
    assert (splitting.gamma, splitting.mode) == (2, "grouped")


def test_continual_preset_has_the_settings_of_the_trial():
    rejuvenation = bio_callbacks("continual")[0]
    assert (rejuvenation.dre, rejuvenation.shrinkage, rejuvenation.every_n_steps) == (3.0, 0.02, 100)
    assert (rejuvenation.reference, rejuvenation.moments) == ("initial", "layer_mean")


def test_dale_preset_is_balanced():
    dale = bio_callbacks("dale")[0]
    assert (dale.balanced, dale.excitatory_fraction, dale.axis) == (True, 0.8, "presynaptic")


def test_presets_are_found_inside_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "bio_lightning" / "configs").mkdir(parents=True)
    (tmp_path / "bio_lightning" / "configs" / "mine.yaml").write_text("seed: 3\n")
    (tmp_path / "configs").mkdir()
    monkeypatch.setattr(config_module, "__file__", str(tmp_path / "bio_lightning" / "config.py"))
    assert list(presets()) == ["mine"]
    assert load_config("mine").seed == 3


# ---- default.yaml is the reference ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default():
    return OmegaConf.to_container(OmegaConf.load(presets()["default"]))


@pytest.fixture(scope="module")
def comments():
    """Comment of every key's line, by section and key; '' is the top level."""
    section, found = "", {}
    for line in presets()["default"].read_text(encoding="utf-8").splitlines():
        match = re.match(r"( *)(\w+):[^#]*(?:# (.+))?$", line)
        if match:
            indent, key, comment = match.groups()
            section = section if indent else ""
            found[section, key] = comment or ""
            section = key if not indent and line.endswith(":") else section
    return found


def test_default_has_every_section_and_key_and_no_other(default):
    assert list(default) == [*SHARED, *REGISTRY]
    for section, callback in REGISTRY.items():
        assert set(default[section]) == {"enabled", *(field.name for field in parameters(callback))}


@pytest.mark.parametrize(("section", "key"), PARAMETERS)
def test_default_has_the_constructors_value(default, section, key):
    if key in SHARED:
        assert default[section][key] == f"${{..{key}}}"
    else:
        assert default[section][key] == as_lists(getattr(REGISTRY[section](), key))
        assert type(default[section][key]) is type(as_lists(getattr(REGISTRY[section](), key)))


def test_default_has_the_schemas_top_level(default):
    assert {key: default[key] for key in SHARED} == SHARED == {key: getattr(BioConfig(), key) for key in SHARED}


@pytest.mark.parametrize(("section", "key"), [*PARAMETERS, *(("", key) for key in SHARED)])
def test_default_says_what_a_key_accepts(comments, section, key):
    comment = comments[section, key]
    assert comment
    bounds = field_of(section, key).metadata.get("range") if section else None
    if bounds is not None:
        assert str(bounds) in comment
    hint = typing.get_type_hints(REGISTRY[section or "crystallization"])[key]
    for choice in literals(hint):
        assert re.search(rf"\b{choice}\b", comment), choice


def literals(hint):
    """All choices that a hint offers."""
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    return [choice for part in typing.get_args(hint) for choice in literals(part)]


# ---- sources --------------------------------------------------------------------------------------------------------


def test_schema_alone_is_everything_off():
    assert bio_callbacks({}) == []
    assert load_config({}) == OmegaConf.structured(BioConfig)


@pytest.mark.parametrize("name", PRESETS)
def test_loading_is_idempotent(name, tmp_path):
    config = load_config(name)
    assert load_config(config) == config
    assert OmegaConf.to_container(load_config(config)) == OmegaConf.to_container(config)
    (tmp_path / "saved.yaml").write_text(OmegaConf.to_yaml(config))
    assert load_config(tmp_path / "saved.yaml") == config
    assert load_config(config) is not config


def test_source_may_be_a_path_a_string_a_mapping_or_a_config(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("crystallization:\n  enabled: true\n  floor: 0.1\n")
    expected = load_config(on("crystallization", floor=0.1))
    assert expected.crystallization.floor == 0.1
    for source in (path, str(path), OmegaConf.load(path), {"crystallization": OmegaConf.load(path).crystallization}):
        assert load_config(source) == expected
    schema = BioConfig()
    schema.crystallization.enabled, schema.crystallization.floor = True, 0.1
    assert load_config(schema) == load_config(OmegaConf.structured(schema)) == expected


def test_source_is_left_as_it_was():
    source = on("weight_rejuvenation", readers={"fc1": ["fc2"]})
    before = copy.deepcopy(source)
    load_config(source, ["weight_rejuvenation.readers.fc2=[fc3]", "seed=4"])
    assert source == before
    config = load_config("default")
    load_config(config, ["seed=4"])
    assert config.seed == 0


def test_result_refuses_typing_mistakes_and_can_be_copied():
    config = load_config("default")
    with pytest.raises(ConfigAttributeError):
        config.crystallization.flor = 0.1
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


def test_values_reach_the_callbacks_as_plain_python():
    source = on("weight_rejuvenation", include=["fc*"], exclude="fc3", readers={"fc1": "fc2", "fc2": ["fc3"]})
    source |= on("dales_principle", shared=[["q", "k"], ["a", "b"]])
    rejuvenation, dale = bio_callbacks(source)
    assert rejuvenation.include == ("fc*",)
    assert rejuvenation.exclude == ("fc3",)
    assert rejuvenation.readers == {"fc1": ("fc2",), "fc2": ("fc3",)}
    assert dale.shared == (("q", "k"), ("a", "b"))
    for callback in (rejuvenation, dale):
        for field in parameters(callback):
            value = getattr(callback, field.name)
            assert not isinstance(value, (DictConfig, ListConfig))
            assert type(value) in (str, int, float, bool, tuple, dict, type(None))


@pytest.mark.parametrize(
    ("section", "key", "given", "expected"),
    [
        ("fuzzy_learning_rates", "nu", 1, 1.0),
        ("weight_rejuvenation", "dre", float("inf"), float("inf")),
        ("synaptic_scaling", "target", 1, 1.0),
        ("synaptic_scaling", "target", "layer_mean", "layer_mean"),
        ("crystallization", "end_step", 5, 5),
        ("crystallization", "end_step", None, None),
        ("crystallization", "include", "fc1", ("fc1",)),
        ("crystallization", "include", ("fc1", "fc2"), ("fc1", "fc2")),
    ],
)
def test_values_are_converted(section, key, given, expected):
    value = getattr(bio_callbacks(on(section, **{key: given}))[0], key)
    assert value == expected
    assert type(value) is type(expected)


def test_infinity_is_written_as_in_yaml(tmp_path):
    (tmp_path / "mine.yaml").write_text("weight_rejuvenation: {enabled: true, dre: .inf}\n")
    assert bio_callbacks(tmp_path / "mine.yaml")[0].dre == float("inf")


def test_callbacks_come_in_the_librarys_order():
    source = {section: {"enabled": True} for section in reversed(REGISTRY)}
    assert [callback.name for callback in bio_callbacks(source)] == list(REGISTRY)


# ---- inheritance and interpolation ----------------------------------------------------------------------------------


SETTINGS = {"seed": 7, "apply_to": "update", "kernel": "eager", "state_dtype": "bfloat16"}


@pytest.mark.parametrize(("key", "value"), SETTINGS.items())
def test_top_level_reaches_every_section_that_has_the_key(key, value):
    built = bio_callbacks("all", [f"{key}={value}"])
    sections = [callback for callback in built if hasattr(callback, key)]
    assert [getattr(callback, key) for callback in sections] == [value] * len(sections)
    assert len(sections) == {"seed": 7, "kernel": 6}.get(key, 4)


@pytest.mark.parametrize(("key", "value"), SETTINGS.items())
def test_a_sections_own_value_wins_and_null_inherits(key, value):
    own = bio_callbacks({key: SHARED[key], **on("crystallization", **{key: value})})[0]
    assert getattr(own, key) == value
    inherited = bio_callbacks({key: value, **on("crystallization", **{key: None})})[0]
    assert getattr(inherited, key) == value


def test_only_keys_that_a_class_has_are_in_its_section():
    config = load_config({})
    for section, callback in REGISTRY.items():
        assert list(config[section]) == ["enabled", *(field.name for field in parameters(callback))]
    assert "apply_to" not in config.weight_splitting
    assert "seed" not in config.bio_monitor


def test_interpolation_reaches_other_keys_their_defaults_and_overrides():
    source = on("crystallization", floor="${fuzzy_learning_rates.nu}", use_thresh="${.recovery}")
    assert bio_callbacks(source)[0].floor == 0.16
    assert bio_callbacks(source)[0].use_thresh == 0.01
    with pytest.warns(NoEffectWarning, match="fuzzy_learning_rates is off"):
        assert bio_callbacks(source, ["fuzzy_learning_rates.nu=0.5"])[0].floor == 0.5
    assert (
        bio_callbacks("default", ["crystallization.end_step=${weight_rejuvenation.every_n_steps}"])[1].end_step == 100
    )


def test_interpolation_in_a_config_waits_for_defaults_and_overrides():
    source = OmegaConf.create(on("crystallization", floor="${fuzzy_learning_rates.nu}"))
    assert bio_callbacks(source)[0].floor == 0.16
    with pytest.warns(NoEffectWarning, match="fuzzy_learning_rates is off"):
        assert bio_callbacks(source, ["fuzzy_learning_rates.nu=0.5"])[0].floor == 0.5


def test_interpolation_reaches_the_environment_whose_text_may_be_a_number(monkeypatch):
    monkeypatch.setenv("NU", "0.25")
    monkeypatch.setenv("ON", "yes")
    monkeypatch.setenv("STEPS", "7")
    values = {"enabled": "${oc.env:ON}", "nu": "${oc.env:NU}", "end_step": "${oc.env:STEPS}"}
    source = {"fuzzy_learning_rates": values}
    nested = OmegaConf.create({"bio": source})
    for given in (
        source,
        OmegaConf.create(source),
        nested.bio,
        {"fuzzy_learning_rates": nested.bio.fuzzy_learning_rates},
    ):
        fuzzy = bio_callbacks(given)[0]
        assert (fuzzy.nu, fuzzy.end_step) == (0.25, 7)
    assert bio_callbacks("default", ["fuzzy_learning_rates.nu=${oc.env:NU}"])[0].nu == 0.25
    readers = OmegaConf.create(
        {"bio": on("weight_rejuvenation", readers={"fc1": "${oc.env:ON}"}, source="${oc.env:S,zero}")}
    )
    rejuvenation = bio_callbacks(readers.bio)[0]
    assert (rejuvenation.readers, rejuvenation.source) == ({"fc1": ("yes",)}, "zero")
    assert type(rejuvenation.readers["fc1"][0]) is type(rejuvenation.source) is str
    monkeypatch.setenv("NU", "much")
    error = error_of(nested.bio)
    assert (error.key, error.value) == (NU, "much")


def test_part_of_a_larger_config_is_resolved_there_and_still_inherits():
    larger = OmegaConf.create({"spread": 0.4, "bio": load_config("default", ["seed=2"])})
    larger.bio.fuzzy_learning_rates.nu = "${spread}"
    assert load_config(larger.bio).fuzzy_learning_rates.nu == 0.4
    assert [c.seed for c in bio_callbacks(larger.bio) if hasattr(c, "seed")] == [2, 2, 2]
    assert [c.seed for c in bio_callbacks(larger.bio, ["seed=5"]) if hasattr(c, "seed")] == [5, 5, 5]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("key", "value"), [("nu", 0.2), ("include", "fc1"), ("enabled", True), ("seed", 3)])
def test_missing_value_may_come_from_an_override(key, value, nested):
    source = {"fuzzy_learning_rates": {"enabled": True, key: "???"}}
    source = OmegaConf.create({"bio": source}).bio if nested else source
    assert load_config(source, [f"fuzzy_learning_rates.{key}={value}"]).fuzzy_learning_rates[key] == value
    error = error_of(source)
    assert (error.key, error.value) == (f"fuzzy_learning_rates.{key}", "???")


# ---- overrides ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("fuzzy_learning_rates.nu=0.3", 0.3),
        ("fuzzy_learning_rates.nu=1", 1.0),
        ("fuzzy_learning_rates.nu=1e-3", 0.001),
        ("fuzzy_learning_rates.end_step=null", None),
        ("fuzzy_learning_rates.update_every=7", 7),
        ("fuzzy_learning_rates.distribution=gamma", "gamma"),
        ("fuzzy_learning_rates.include=[fc1,fc2]", ("fc1", "fc2")),
        ("fuzzy_learning_rates.include='*.weight'", ("*.weight",)),
        ("fuzzy_learning_rates={enabled: true, nu: 0.2}", 0.2),
    ],
)
def test_override_sets_a_value_of_the_right_type(override, expected):
    key = re.match(r"\w+\.(\w+)=", override)
    value = getattr(bio_callbacks("default", [override])[0], key[1] if key else "nu")
    assert value == expected
    assert type(value) is type(expected)


def test_override_wins_and_needs_no_enabled():
    source = on("crystallization", floor=0.1, recovery=0.2)
    with pytest.warns(NoEffectWarning, match="weight_splitting is off"):
        config = load_config(source, ["crystallization.floor=0.3", "weight_splitting.gamma=4", "seed=9"])
    assert (config.crystallization.floor, config.crystallization.recovery) == (0.3, 0.2)
    assert (config.weight_splitting.enabled, config.weight_splitting.gamma, config.seed) == (False, 4, 9)


def test_override_may_say_whether_a_section_is_on():
    assert bio_callbacks({"crystallization": {"floor": 0.1}}, ["crystallization.enabled=true"])[0].floor == 0.1
    assert bio_callbacks(on("crystallization"), ["crystallization.enabled=false"]) == []


def test_overrides_of_one_mapping_add_up():
    source = on("weight_rejuvenation", readers={"fc1": ["fc2"]})
    overrides = ["weight_rejuvenation.readers.fc2=[fc3]", "weight_rejuvenation.readers.fc3=fc4"]
    readers = bio_callbacks(source, overrides)[0].readers
    assert readers == {"fc1": ("fc2",), "fc2": ("fc3",), "fc3": ("fc4",)}


def test_overrides_may_be_a_mapping():
    changes = {
        "seed": 3,
        "crystallization": {"enabled": False},
        "dales_principle": {"enabled": True, "axis": "postsynaptic"},
    }
    texts = [
        "seed=3",
        "crystallization.enabled=false",
        "dales_principle.enabled=true",
        "dales_principle.axis=postsynaptic",
    ]
    assert load_config("default", changes) == load_config("default", texts)
    assert load_config("default", OmegaConf.create(changes)) == load_config("default", texts)
    with pytest.raises(BioConfigError, match=r"crystallization.flor: got 0.1; .* Did you mean 'floor'\?"):
        load_config("default", {"crystallization": {"flor": 0.1}})


def test_a_single_override_may_be_a_string():
    assert load_config({}, "seed=3").seed == 3


# ---- errors ---------------------------------------------------------------------------------------------------------


NU = "fuzzy_learning_rates.nu"
POSITIVE = "a number in [0, inf)"
BOOLEAN = "true or false"
STRINGS = "a list of strings"


def assert_error(error, key, value, allowed, nearest):
    assert (error.key, error.value, error.nearest) == (key, value, nearest)
    assert allowed in error.allowed
    assert str(error).startswith(f"{key}: got {error.value!r}; allowed: ")
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("source", "key", "value", "allowed", "nearest"),
    [
        (
            {"cristallization": {"enabled": True}},
            "cristallization",
            {"enabled": True},
            "seed, apply_to",
            "crystallization",
        ),
        ({"sed": 3}, "sed", 3, "seed, apply_to, kernel, state_dtype, forward_order, fuzzy_learning_rates", "seed"),
        ({"floor": 0.1}, "floor", 0.1, "seed, apply_to", "crystallization.floor"),
        ({"qwertz": 3}, "qwertz", 3, "seed, apply_to", None),
        ({3: 4}, "3", 4, "seed, apply_to", None),
        ({"crystallization": True}, "crystallization", True, "crystallization: {enabled: true}", None),
        ({"crystallization": None}, "crystallization", None, "crystallization: {enabled: true}", None),
        ({"crystallization": [1]}, "crystallization", [1], "crystallization: {enabled: true}", None),
        ({"crystallization": {"floor": 0.1}}, "crystallization.enabled", None, "the section sets floor", None),
        ({"crystallization": {}}, "crystallization.enabled", None, BOOLEAN, None),
        ({"crystallization": {"enabled": "maybe"}}, "crystallization.enabled", "maybe", BOOLEAN, None),
        ({"crystallization": {"enabled": "yes"}}, "crystallization.enabled", "yes", BOOLEAN, None),
        ({"crystallization": {"enabled": "true"}}, "crystallization.enabled", "true", BOOLEAN, None),
        ({"crystallization": {"enabled": 2}}, "crystallization.enabled", 2, BOOLEAN, None),
        ({"crystallization": {"enabled": False, "floor": 0.0}}, "crystallization.floor", 0.0, "in (0, 1]", None),
        ({"crystallization": {"enabled": False, "floor": "x"}}, "crystallization.floor", "x", "in (0, 1]", None),
        ({"seed": "x"}, "seed", "x", "a whole number", None),
        ({"seed": "3"}, "seed", "3", "a whole number", None),
        ({"seed": None}, "seed", None, "a whole number", None),
        ({"seed": "${kernel}"}, "seed", "auto", "a whole number", None),
        ({"seed": "${kernle}"}, "seed", "${kernle}", "'kernle' not found", "kernel"),
        ({"apply_to": "grad"}, "apply_to", "grad", "one of auto, gradient, update", "gradient"),
    ],
)
def test_error_in_a_section_or_at_the_top_level(source, key, value, allowed, nearest):
    assert_error(error_of(source), key, value, allowed, nearest)


@pytest.mark.parametrize(
    ("section", "key", "value", "allowed", "nearest"),
    [
        ("crystallization", "flor", 0.1, "recovery", "floor"),
        ("crystallization", "3", 4, "recovery", None),
        ("dales_principle", "apply_to", "auto", "excitatory_fraction", None),
        ("weight_splitting", "start_step", 3, "gamma, mode", None),
        ("fuzzy_learning_rates", "nu", "much", POSITIVE, None),
        ("fuzzy_learning_rates", "nu", "0.3", POSITIVE, None),
        ("fuzzy_learning_rates", "update_every", "7", "a whole number in [1, inf)", None),
        ("fuzzy_learning_rates", "update_every", 7.5, "a whole number in [1, inf)", None),
        ("fuzzy_learning_rates", "update_every", 0.0, "a whole number in [1, inf)", None),
        ("fuzzy_learning_rates", "end_step", "7", "a whole number in [0, inf), or null", None),
        ("fuzzy_learning_rates", "seed", "7", "a whole number", None),
        ("synaptic_scaling", "target", "0.5", "a number in (0, 1], or one of layer_mean", None),
        ("volume_dependent_lr", "normalize", "true", BOOLEAN, None),
        ("fuzzy_learning_rates", "nu", True, POSITIVE, None),
        ("fuzzy_learning_rates", "nu", None, POSITIVE, None),
        ("fuzzy_learning_rates", "nu", [0.1], POSITIVE, None),
        ("fuzzy_learning_rates", "nu", {"x": 1}, POSITIVE, None),
        ("fuzzy_learning_rates", "nu", -0.5, POSITIVE, None),
        ("fuzzy_learning_rates", "nu", float("inf"), POSITIVE, None),
        ("fuzzy_learning_rates", "update_every", 2.5, "a whole number in [1, inf)", None),
        ("fuzzy_learning_rates", "end_step", "x", "a whole number in [0, inf), or null", None),
        ("fuzzy_learning_rates", "distribution", "lognorm", "baseline, uniform, normal", "lognormal"),
        ("fuzzy_learning_rates", "distribution", 3, "baseline, uniform, normal", None),
        ("fuzzy_learning_rates", "apply_to", "grad", "one of auto, gradient, update", "gradient"),
        ("volume_dependent_lr", "normalize", 1, BOOLEAN, None),
        ("synaptic_scaling", "target", "layermean", "a number in (0, 1], or one of layer_mean", "layer_mean"),
        ("synaptic_scaling", "target", 1.5, "a number in (0, 1], or one of layer_mean", None),
        ("crystallization", "include", 5, STRINGS, None),
        ("crystallization", "include", {"a": 1}, STRINGS, None),
        ("crystallization", "include", ["a", 1], STRINGS, None),
        ("crystallization", "include", None, STRINGS, None),
        ("crystallization", "include", b"x", STRINGS, None),
        ("weight_rejuvenation", "readers", ["a"], "a mapping from strings to lists of strings", None),
        ("dales_principle", "shared", "q", "a list of lists of strings", None),
        ("weight_splitting", "activation", "relu", "null with mode: synapses", None),
    ],
)
def test_error_in_a_key_of_a_section(section, key, value, allowed, nearest):
    assert_error(error_of(on(section, **{key: value})), f"{section}.{key}", value, allowed, nearest)


@pytest.mark.parametrize(
    ("key", "interpolation", "path", "value", "allowed", "nearest"),
    [
        ("nu", "${nowhere}", NU, "${nowhere}", "'nowhere' not found", None),
        ("nu", "${crystallization.flor}", NU, "${crystallization.flor}", "not found", "crystallization.floor"),
        ("nu", "${.distribution}", NU, "lognormal", POSITIVE, None),
        ("nu", "${.nu}", NU, "${.nu}", "Recursive interpolation", None),
        ("nu", "${oc.env:NOWHERE_SET}", NU, "${oc.env:NOWHERE_SET}", "'NOWHERE_SET' not found", None),
        ("nu", "${", NU, "${", POSITIVE, None),
        ("include", ["${"], "fuzzy_learning_rates.include", ["${"], "valid interpolations", None),
        ("include", ["${x}"], "fuzzy_learning_rates.include[0]", "${x}", "'x' not found", None),
    ],
)
def test_error_in_an_interpolation(key, interpolation, path, value, allowed, nearest):
    assert_error(error_of(on("fuzzy_learning_rates", **{key: interpolation})), path, value, allowed, nearest)


@pytest.mark.parametrize(
    ("override", "key", "value", "allowed", "nearest"),
    [
        (NU, NU, NU, "key=value", None),
        ("fuzzy_learning_rates.nu:0.3", "fuzzy_learning_rates.nu:0.3", "fuzzy_learning_rates.nu:0.3", "key=value", NU),
        ("=3", "overrides", "=3", "key=value", None),
        ("fuzzy_learning_rates.nue=3", "fuzzy_learning_rates.nue", 3, "distribution, nu", "nu"),
        ("fuzzy_learning_rats.nu=3", "fuzzy_learning_rats", {"nu": 3}, "crystallization", "fuzzy_learning_rates"),
        ("nu=3", "nu", 3, "seed, apply_to", NU),
        ("fuzzy_learning_rates=3", "fuzzy_learning_rates", 3, "fuzzy_learning_rates: {enabled: true}", None),
        ("fuzzy_learning_rates.nu=much", NU, "much", POSITIVE, None),
        ("fuzzy_learning_rates.nu='0.3'", NU, "0.3", POSITIVE, None),
        ("fuzzy_learning_rates.nu=-1", NU, -1.0, POSITIVE, None),
        ("fuzzy_learning_rates.nu=", NU, None, POSITIVE, None),
        ("fuzzy_learning_rates.nu.x=1", NU, {"x": 1}, POSITIVE, None),
        ("fuzzy_learning_rates.include=*", "fuzzy_learning_rates.include", "*", "include='*.weight'", None),
        ("fuzzy_learning_rates.include=[a", "fuzzy_learning_rates.include", "[a", "a YAML value", None),
        ("fuzzy_learning_rates.include.0=a", "fuzzy_learning_rates.include", {"0": "a"}, "a list of strings", None),
        ("seed=1.5", "seed", 1.5, "a whole number", None),
    ],
)
def test_error_in_an_override(override, key, value, allowed, nearest):
    assert_error(error_of("default", override), key, value, allowed, nearest)


def test_error_in_a_value_that_omegaconf_cannot_hold():
    error = error_of(on("crystallization", include=torch.ones(1)))
    assert error.key == "crystallization.include"
    assert "Tensor" in error.allowed
    assert "\n" not in error.allowed


def test_unused_overrides_are_checked_even_where_a_later_one_replaces_them():
    assert (
        error_of("default", "crystallization.flor=1", "crystallization={enabled: true}").key == "crystallization.flor"
    )


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("- a\n- b\n", ["a", "b"]),
        ("seed: 1\nseed: 2\n", "found duplicate key seed"),
        ("seed: [1\n", "line 2, column 1"),
        ("crystallization: {enabled: *x}\n", "found undefined alias"),
        ("seed: ${kernel\n", "${kernel"),
        ("3\n", "int"),
        (b"\xff\xfe\x00", "can't decode byte"),
    ],
)
def test_error_in_a_file_names_the_file(tmp_path, content, value):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    error = error_of(path)
    assert error.key == str(path)
    assert error.value == value or (isinstance(value, str) and value in error.value)
    assert "a YAML file with a mapping of sections" in error.allowed
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("source", "nearest"),
    [
        ("defalt", "default"),
        ("configs/papre.yaml", "paper"),
        (Path("nowhere/dael.yaml"), "dale"),
        ("default.yaml", "default"),
        ("qwertz", None),
        ("", None),
    ],
)
def test_error_in_a_name_lists_the_presets(tmp_path, monkeypatch, source, nearest):
    monkeypatch.chdir(tmp_path)
    error = error_of(source)
    assert (error.key, error.value, error.nearest) == ("source", str(source), nearest)
    assert error.allowed.endswith(", ".join(PRESETS))


def test_error_for_a_folder(tmp_path):
    assert error_of(tmp_path).key == "source"


@pytest.mark.parametrize("source", [5, None, ["default"], OmegaConf.create([1]), BioConfig])
def test_error_for_a_source_of_another_type(source):
    error = error_of(source)
    assert error.key == "source"
    assert error.value is source
    assert "mapping" in error.allowed


# ---- the package ----------------------------------------------------------------------------------------------------


def test_schema_has_the_constructors_types():
    hints = typing.get_type_hints(BioConfig)
    assert hints["seed"] is int
    section = typing.get_type_hints(hints["fuzzy_learning_rates"])
    assert (section["nu"], section["update_every"], section["include"]) == (float, int, typing.Any)


def test_configuration_is_public():
    assert {"BioConfig", "bio_callbacks", "load_config"} <= set(bio_lightning.__all__)


# ---- what all mechanisms share --------------------------------------------------------------------------------------


def test_own_value_of_a_section_wins_for_the_whole_pass():
    given = {
        "apply_to": "gradient",
        "crystallization": {"enabled": True, "apply_to": "update"},
        "fuzzy_learning_rates": {"enabled": True},
    }
    fuzzy, crystallization = bio_callbacks(given)
    assert (fuzzy.apply_to, crystallization.apply_to) == (None, "update")
    assert agree([fuzzy, crystallization]).apply_to == "update"
    given["crystallization"]["enabled"] = False
    (fuzzy,) = bio_callbacks(given)
    assert fuzzy.apply_to == "gradient", "a section that is off has no say"


def test_override_of_a_section_that_is_off_warns():
    with pytest.warns(NoEffectWarning, match=r"crystallization\.floor: overridden, but crystallization is off"):
        load_config("none", ["crystallization.floor=0.1"])
    load_config("none", ["crystallization.enabled=false"])
    load_config("none", ["crystallization.floor=0.1", "crystallization.enabled=true"])


@pytest.mark.parametrize(
    ("given", "meant"), [("UNIFORM", "uniform"), ("Relu", "relu"), ("gelu", "GELU"), ("xyz", None)]
)
def test_near_misses_are_found_whatever_their_case(given, meant):
    assert nearest_name(given, ["uniform", "elu", "relu", "GELU"]) == meant


@pytest.mark.parametrize("source", [
    {"seed": 3.0, "weight_rejuvenation": {"enabled": True, "every_n_steps": 2.0, "end_step": 1e3}},
    OmegaConf.create("{seed: 3.0, weight_rejuvenation: {enabled: true, every_n_steps: 2.0, end_step: 1e3}}"),
])  # fmt: skip
def test_a_float_without_a_fraction_is_a_whole_number(source):
    config = load_config(source)
    for value, expected in (
        (config.seed, 3), (config.weight_rejuvenation.every_n_steps, 2), (config.weight_rejuvenation.end_step, 1000)
    ):  # fmt: skip
        assert value == expected
        assert type(value) is int
    (rejuvenation,) = bio_callbacks(
        {"weight_rejuvenation": {"enabled": True}}, ["weight_rejuvenation.every_n_steps=4.0"]
    )
    assert repr(rejuvenation.every_n_steps) == "4"
