"""The JSON schema: up to date, and of one mind with the loader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from bio_lightning import BioConfigError, load_config
from bio_lightning.callbacks import REGISTRY
from bio_lightning.cli import main
from bio_lightning.cli.schema import json_schema, schema_text
from bio_lightning.config import as_yaml, presets
from bio_lightning.parameters import parameters

FILE = Path(__file__).parents[2] / "configs" / "schema.json"
VALIDATOR = Draft202012Validator(json_schema())


def errors(config) -> list:
    return list(VALIDATOR.iter_errors(config))


def test_file_is_up_to_date():
    assert FILE.read_text(encoding="utf-8") == schema_text(), "run: bio-lightning schema --out configs/schema.json"


def test_command_prints_and_writes_it(tmp_path, capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()
    path = tmp_path / "schema.json"
    assert main(["schema", "--out", str(path)]) == 0
    assert path.read_text(encoding="utf-8") == schema_text()


def test_is_a_schema():
    Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid_as_written_and_as_resolved(name):
    assert errors(yaml.safe_load(presets()[name].read_text(encoding="utf-8"))) == []
    assert errors(yaml.safe_load(as_yaml(load_config(name)))) == []


def test_every_key_has_a_description_and_the_constructors_default():
    schema = json_schema()
    for stem, callback in REGISTRY.items():
        properties = schema["properties"][stem]["properties"]
        assert list(properties) == ["enabled", *(field.name for field in parameters(callback))]
        assert all(len(value["description"]) > 5 for value in properties.values())
        for field in parameters(callback):
            if "default" in properties[field.name]:
                given = tuple(value) if isinstance(value := properties[field.name]["default"], list) else value
                assert given == getattr(callback(), field.name), (stem, field.name)


#: What must be refused by schema and loader alike.
WRONG = [
    {"cristallization": {"enabled": True}},
    {"crystallization": {"enabled": True, "flor": 0.1}},
    {"crystallization": {"floor": 0.1}},
    {"crystallization": {"enabled": "yes"}},
    {"crystallization": {"enabled": True, "floor": 0}},
    {"crystallization": {"enabled": True, "floor": 1.5}},
    {"crystallization": {"enabled": True, "criterion": "gradients"}},
    {"crystallization": {"enabled": True, "floor": None}},
    {"weight_rejuvenation": {"enabled": True, "every_n_steps": 0}},
    {"weight_rejuvenation": {"enabled": True, "readers": {"fc1": 3}}},
    {"dales_principle": {"enabled": True, "shared": ["a", "b"]}},
    {"weight_rejuvenation": {"enabled": True, "every_n_steps": 2.5}},
    {"weight_rejuvenation": {"enabled": True, "every_n_steps": 0.0}},
    {"seed": 1.5},
    {"seed": None},
    {"kernel": "fast"},
]
#: What both must accept.
RIGHT = [
    {"crystallization": {"enabled": True, "seed": None, "end_step": None, "apply_to": "update"}},
    {"synaptic_scaling": {"enabled": False, "target": 0.2}},
    {"synaptic_scaling": {"enabled": False, "target": "layer_mean"}},
    {"weight_rejuvenation": {"enabled": True, "dre": float("inf"), "readers": {"fc1": ["fc2"]}}},
    {"dales_principle": {"enabled": True, "shared": [["a", "b"]], "include": "layer*"}},
    {"seed": 3.0, "weight_rejuvenation": {"enabled": True, "every_n_steps": 2.0, "end_step": 1e3, "seed": -1.0}},
    {"seed": 3, "fuzzy_learning_rates": {"enabled": True, "nu": 0, "update_every": "${seed}"}},
    {"kernel": None, "apply_to": None, "forward_order": None, "bio_monitor": {"enabled": True}},
    {"forward_order": ["a", "b"], "bio_monitor": {"enabled": True}},
]


@pytest.mark.parametrize("config", WRONG, ids=str)
def test_refuses_what_the_loader_refuses(config):
    assert errors(config)
    with pytest.raises(BioConfigError):
        load_config(config)


@pytest.mark.parametrize("config", RIGHT, ids=str)
def test_accepts_what_the_loader_accepts(config):
    assert errors(config) == []
    load_config(config)
