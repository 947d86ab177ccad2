"""The command line: what each command prints, its exit status, and that errors say what to do."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from bio_lightning import load_config
from bio_lightning.cli import main
from bio_lightning.cli.commands import COMMANDS, plan
from bio_lightning.cli.docstrings import arguments, summary
from bio_lightning.config import as_yaml, presets
from tests.cli.test_report import write_run

README = Path(__file__).parents[2] / "README.md"
NAMES = [command.__name__ for command in COMMANDS]
MODEL = "lightning.pytorch.demos.boring_classes:BoringModel"
CONFLICT = """
crystallization: {enabled: true, apply_to: update}
fuzzy_learning_rates: {enabled: true, apply_to: gradient}
"""
OLD = "fuzzy_learning_rate_factor_nu: 0.3\nfuzzy_lr_distribution: uniform\napply_dales_principle: true\n"


def succeed(capsys, *words: str) -> str:
    """Standard output of a command that must succeed."""
    status = main(words)
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def refuse(capsys, *words: str) -> str:
    """The message of a command that must be refused."""
    status = main(words)
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    return captured.err


# ---- the command itself ----------------------------------------------------------------------------------------------


def test_help_lists_every_command_with_its_docstring(capsys):
    text = " ".join(succeed(capsys, "--help").split()).replace("- ", "-")  # argparse breaks words there
    for command in COMMANDS:
        assert f"{command.__name__} {summary(command)}" in text


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_help_of_a_command_is_its_docstring(capsys, command):
    text = " ".join(succeed(capsys, command.__name__, "--help").split()).replace("- ", "-")
    assert summary(command) in text
    assert all(f"{name.upper() if f'--{name} ' in text else name} {meaning}" in text
               for name, meaning in arguments(command).items())  # fmt: skip


def test_unknown_command_names_the_likely_one(capsys):
    message = refuse(capsys, "chek", "mine.yaml")
    assert message == f"error: command: got 'chek'; allowed: {', '.join(NAMES)}. Did you mean 'check'?\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), f"command: got None; allowed: {', '.join(NAMES)}"),
        (("show",), "source: got None; allowed: Preset, or path of a YAML file"),
        (("check",), "file: got None; allowed: Path of a YAML file, or preset"),
        (("plan", "--model", MODEL), "file: got None; allowed: Path of a YAML file, or preset"),
        (("plan", "default"), f"--model: got None; allowed: {arguments(plan)['model'].rstrip('.')}"),
        (("plan", "default", "--model"), "argument --model: expected one argument"),
        (("report", "runs", "--out"), "argument --out: expected one argument"),
        (("presets", "--nowhere"), "presets: got '--nowhere'; allowed: no option but --help"),
        (("plan", "--modl", MODEL, "default"), "plan: got '--modl'; allowed: --model. Did you mean '--model'?"),
        (("plan", "-m", MODEL, "default"), "plan: got '-m'; allowed: --model"),
        (("show", "--", "--preset"), "source: got '--preset'; allowed: a YAML file that exists, or a preset: all,"),
        (("check", "default", "none"), "unrecognized arguments: none"),
        (("--nowhere",), "unrecognized arguments: --nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_missing_or_unknown_argument_is_refused_in_one_line(capsys, words, message):
    *tip, line = refuse(capsys, *words).splitlines()
    assert line.startswith(f"error: {message}") if message.endswith(",") else line == f"error: {message}"
    assert all(line.startswith("tip: ") for line in tip)
    assert len(tip) <= 1


@pytest.mark.parametrize("key", [".floor", "crystallization..floor", "crystallization.floor."])
def test_a_key_with_an_empty_part_is_named(capsys, key):
    for words in (("show", "default", f"{key}=1"), ("plan", "default", f"{key}=1", "--model", MODEL)):
        assert refuse(capsys, *words) == (
            f"error: {key}: got '{key}=1'; allowed: key=value, as in fuzzy_learning_rates.nu=0.3."
            " Did you mean 'crystallization.floor'?\n"
        )


@pytest.mark.parametrize("words", [("--", "none", "seed=2"), ("none", "--", "seed=2"), ("none", "seed=2", "--")])
def test_words_behind_two_dashes_are_no_options(capsys, words):
    assert succeed(capsys, "show", *words) == succeed(capsys, "show", "none", "seed=2")
    expected = succeed(capsys, "plan", "none", "seed=2", "--model", MODEL)
    assert succeed(capsys, "plan", "--model", MODEL, *words) == expected


def test_runs_as_a_program(tmp_path):
    program = [sys.executable, "-m", "bio_lightning.cli"]
    path = tmp_path / "mine.yaml"
    path.write_text("crystallization: {enabled: true, flor: 0.1}\n", encoding="utf-8")
    done = subprocess.run([*program, "check", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "crystallization.flor: got 0.1" in done.stderr
    assert "Traceback" not in done.stderr


def test_readme_shows_every_command_and_its_examples_run(tmp_path, monkeypatch, capsys):
    text = README.read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", text.partition("## Command line")[2].partition("\n## ")[0], re.MULTILINE)
    examples = [shlex.split(line)[1:] for line in re.findall(r"^bio-lightning .*", text, re.MULTILINE)]
    assert listed == [words[0] for words in examples] == NAMES
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.yaml").write_text("bio_monitor: {enabled: true}\n", encoding="utf-8")
    (tmp_path / "old.yaml").write_text(OLD, encoding="utf-8")
    (tmp_path / "my_project").mkdir()
    (tmp_path / "my_project" / "models.py").write_text(
        "from lightning.pytorch.demos.boring_classes import BoringModel as Classifier\n", encoding="utf-8"
    )
    write_run(tmp_path / "runs", {"loss": [1.0]})
    for words in examples:
        succeed(capsys, *words)
    assert {"report.html", "schema.json"} <= {path.name for path in tmp_path.iterdir()}


# ---- presets, show, check, migrate -----------------------------------------------------------------------------------


def test_presets_have_one_line_each(capsys):
    lines = succeed(capsys, "presets").splitlines()
    assert [line.split()[0] for line in lines] == list(presets())
    assert all(len(line.split()) > 4 and "#" not in line for line in lines)


@pytest.mark.parametrize("name", presets())
def test_show_prints_yaml_that_loads_to_the_same(capsys, name):
    shown = yaml.safe_load(succeed(capsys, "show", name))
    expected = OmegaConf.to_container(load_config(name), resolve=True)
    assert shown == expected
    assert OmegaConf.to_container(load_config(shown), resolve=True) == expected


def test_show_resolves_overrides_and_interpolations(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("BIO_NU", "0.4")
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 5\nfuzzy_learning_rates: {enabled: true, nu: '${oc.env:BIO_NU}'}\n", encoding="utf-8")
    shown = yaml.safe_load(succeed(capsys, "show", str(path), "crystallization.enabled=true", "seed=7"))
    assert shown["seed"] == shown["crystallization"]["seed"] == 7
    assert shown["fuzzy_learning_rates"]["nu"] == 0.4
    assert shown["crystallization"]["enabled"] is True


def test_show_has_the_value_that_is_in_force(capsys):
    shown = yaml.safe_load(succeed(capsys, "show", "default", "crystallization.apply_to=update"))
    sections = [values for values in shown.values() if isinstance(values, dict) and "apply_to" in values]
    assert len(sections) == 4
    assert {values["apply_to"] for values in sections} == {"update"}
    assert shown["apply_to"] == "auto"


def test_override_without_effect_is_a_line_not_a_traceback(capsys):
    assert main(["show", "none", "crystallization.floor=0.1"]) == 0
    message = "warning: crystallization.floor: overridden, but crystallization is off"
    assert message in capsys.readouterr().err.splitlines()


def test_check_says_what_is_on(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("dales_principle: {enabled: true}\nbio_monitor: {enabled: true}\n", encoding="utf-8")
    assert succeed(capsys, "check", str(path)) == f"{path}: valid; on: DalesPrinciple, BioMonitor\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("crystallization: {enabled: true, flor: 0.1}", ["crystallization.flor: got 0.1", "Did you mean 'floor'?"]),
        ("cristallization: {enabled: true}", ["cristallization: got", "Did you mean 'crystallization'?"]),
        ("crystallization: {enabled: false, floor: 2}", ["crystallization.floor: got 2", "in (0, 1]"]),
        ("crystallization: {floor: 0.5}", ["crystallization.enabled", "true or false"]),
        (
            CONFLICT,
            ["apply_to belongs to the pass", "Crystallization sets 'update'", "FuzzyLearningRates sets 'gradient'"],
        ),
        ("a: [1", ["mine.yaml", "a YAML file with a mapping"]),
    ],
)
def test_check_refuses_with_key_value_and_what_is_allowed(capsys, tmp_path, text, parts):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    message = refuse(capsys, "check", str(path))
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize("words", [("check",), ("plan", "--model", MODEL)], ids=lambda words: words[0])
def test_check_and_plan_warn_of_what_the_mode_does_not_read(capsys, tmp_path, words):
    path = tmp_path / "mine.yaml"
    path.write_text("volume_dependent_lr: {enabled: true, base_lr: 0.5}\n", encoding="utf-8")
    assert main([words[0], str(path), *words[1:]]) == 0
    assert capsys.readouterr().err.splitlines()[0] == (
        "warning: volume_dependent_lr.base_lr: 0.5 has no effect with normalize: true; it is read with normalize: false"
    )


def test_file_that_does_not_exist_names_the_presets(capsys):
    message = refuse(capsys, "show", "papre")
    assert "source: got 'papre'" in message
    assert "Did you mean 'paper'?" in message


def test_migrate_prints_our_yaml_with_a_comment_on_every_field(capsys, tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(OLD, encoding="utf-8")
    printed = succeed(capsys, "migrate", str(path))
    comments = [line for line in printed.splitlines() if line.startswith("# ")]
    assert [comment.removeprefix("# ").partition("=")[0] for comment in comments] == list(yaml.safe_load(OLD))
    new = tmp_path / "new.yaml"
    new.write_text(printed, encoding="utf-8")
    assert as_yaml(load_config(new)) == as_yaml(load_config(path))
    assert yaml.safe_load(printed)["fuzzy_learning_rates"]["nu"] == 0.3


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("bio_monitor: {enabled: true}", ["source: got 'bio_monitor'", "pytorch-bio-transformations"]),
        ("dampening_factor: 3.0", ["dampening_factor: got 3.0", "in (0, 1]"]),
        ("base_lr: 0.1\nstabilty_factor: 2.0", ["stabilty_factor: got 2.0", "Did you mean 'stability_factor'?"]),
    ],
)
def test_migrate_refuses_under_the_names_that_the_user_wrote(capsys, tmp_path, text, parts):
    path = tmp_path / "old.yaml"
    path.write_text(text, encoding="utf-8")
    message = refuse(capsys, "migrate", str(path))
    assert [part for part in parts if part not in message] == []


# ---- plan ------------------------------------------------------------------------------------------------------------


def test_plan_prints_a_line_for_every_layer(capsys):
    out = succeed(capsys, "plan", "default", "apply_to=update", "kernel=compiled", "--model", MODEL)
    *lines, key = out.splitlines()
    header, layer, total = (line.split() for line in lines)
    assert header == ["layer", "kind", "synapses", "mechanisms", "apply_to", "kernel", "memory"]
    assert layer[:8] == ["layer.weight", "linear", "64", "1", "2", "3", "update", "compiled"]
    assert total[:2] == ["total", "64"]
    assert key == "mechanisms: 1 Crystallization, 2 FuzzyLearningRates, 3 WeightRejuvenation"


MODELS = """
import lightning.pytorch as pl
from torch import nn

class Classifier(pl.LightningModule):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(3, width)
    def configure_optimizers(self):
        return self.trainer.optimizers

def small():
    return Classifier(4)

def careless():
    return {}["width"]

def leaving():
    raise SystemExit(3)

def confused():
    return len(3)

class Late(pl.LightningModule):
    def configure_model(self):
        raise KeyError("layers")

number = 3
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with a module of models."""
    (tmp_path / "project_models.py").write_text(MODELS, encoding="utf-8")
    (tmp_path / "broken_models.py").write_text("import nowhere_at_all\n", encoding="utf-8")
    (tmp_path / "misspelt_models.py").write_text("def (\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("project_models", "misspelt_models"):
        sys.modules.pop(name, None)


def test_overrides_may_stand_anywhere_behind_the_command(capsys):
    expected = succeed(capsys, "plan", "--model", MODEL, "none", "crystallization.enabled=true", "seed=2")
    assert "1 Crystallization" in expected
    for words in (
        ("none", "crystallization.enabled=true", "seed=2", "--model", MODEL),
        ("none", "--model", MODEL, "crystallization.enabled=true", "seed=2"),
        ("none", "crystallization.enabled=true", f"--model={MODEL}", "seed=2"),
    ):
        assert succeed(capsys, "plan", *words) == expected


def test_plan_takes_a_function_and_optimizers_that_need_a_trainer(capsys, project):
    assert main(["plan", "default", "--model", "project_models:small"]) == 0
    captured = capsys.readouterr()
    assert "layer.weight  linear        12  1 2 3       auto" in captured.out
    assert "warning: apply_to as set, since the optimizers are not known" in captured.err


@pytest.mark.parametrize(
    ("named", "parts"),
    [
        ("project_models", ["module:Class"]),
        ("project_models:Clasifier", ["LightningModules: Classifier", "Did you mean 'project_models:Classifier'?"]),
        ("projct_models:Classifier", ["can be imported from here", "Did you mean 'project_models:Classifier'?"]),
        ("broken_models:Classifier", ["No module named 'nowhere_at_all'"]),
        ("project_models:Classifier", ["called without arguments", "width", "a function"]),
        ("project_models:number", ["a LightningModule, not int"]),
        ("./project_models:small", ["as one imports it", "Did you mean 'project_models:small'?"]),
        ("project_models.py:small", ["as one imports it", "Did you mean 'project_models:small'?"]),
        ("..:small", ["as one imports it"]),
        ("misspelt_models:small", ["can be imported", "SyntaxError"]),
        ("project_models:careless", ["can be made", "KeyError: 'width'"]),
        ("project_models:leaving", ["can be made", "SystemExit: 3"]),
        ("project_models:confused", ["can be made", "TypeError: object of type 'int' has no len()"]),
    ],
)
def test_plan_refuses_a_model_that_is_none(capsys, project, named, parts):
    message = refuse(capsys, "plan", "default", "--model", named)
    assert f"--model: got '{named}'" in message
    assert [part for part in parts if part not in message] == []


def test_plan_refuses_a_model_that_cannot_configure_itself(capsys, project):
    message = refuse(capsys, "plan", "default", "--model", "project_models:Late")
    assert "--model: got 'Late'; allowed: a model that can configure itself (KeyError: 'layers')" in message


def test_a_reader_that_has_seen_enough_is_no_error():
    """As in ``bio-lightning show all | head -1``."""
    command = [sys.executable, "-m", "bio_lightning.cli", "show", "all"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_plan_refuses_what_does_not_suit_the_model(capsys):
    words = ("plan", "none", "crystallization={enabled: true, include: layr*}", "--model", MODEL)
    assert "crystallization.include: got 'layr*'" in refuse(capsys, *words)
