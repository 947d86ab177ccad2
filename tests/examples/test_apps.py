"""The LightningCLI and the Hydra app, run as a user would run them, for one epoch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.slow


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def logged(folder: Path) -> set[str]:
    """Mechanisms that a TensorBoard log in a folder tells of, among those that always have something to tell."""
    (file,) = folder.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    tags = [tag.split("/") for tag in events.Tags()["scalars"]]
    return {parts[1] for parts in tags if parts[0] == "bio"} & {
        "fuzzy_learning_rates", "crystallization", "weight_rejuvenation", "dales_principle"
    }  # fmt: skip


def lightning_cli(folder, config, *flags) -> subprocess.CompletedProcess:
    short = ("--trainer.max_epochs=1", "--trainer.log_every_n_steps=5", f"--trainer.default_root_dir={folder}")
    return run("lightning_cli/main.py", "fit", "--config", EXAMPLES / "lightning_cli" / config, *short, *flags)


@pytest.mark.parametrize(
    ("config", "flag", "expected"),
    [
        (
            "callbacks.yaml",
            "--trainer.callbacks+=bio_lightning.Crystallization",
            {"fuzzy_learning_rates", "weight_rejuvenation", "crystallization"},
        ),
        (
            "bio.yaml",
            "--bio.crystallization.enabled=false",
            {"fuzzy_learning_rates", "weight_rejuvenation", "dales_principle"},
        ),
    ],
)
def test_lightning_cli(tmp_path, config, flag, expected):
    done = lightning_cli(tmp_path, config, flag)
    assert done.returncode == 0, done.stderr
    assert logged(tmp_path) == expected


def test_lightning_cli_saves_what_was_given(tmp_path):
    flags = ("--bio.crystallization.enabled=false", "--bio.crystallization.end_step=null", "--trainer.max_steps=1")
    done = lightning_cli(tmp_path, "bio.yaml", *flags)
    assert done.returncode == 0, done.stderr
    (saved,) = tmp_path.rglob("config.yaml")
    crystallization = {"enabled": False, "end_step": None}
    given = {"preset": "default", "dales_principle": {"enabled": True}, "crystallization": crystallization}
    assert yaml.safe_load(saved.read_text(encoding="utf-8"))["bio"] == given


def test_lightning_cli_refuses_a_pattern_that_matches_nothing(tmp_path):
    done = lightning_cli(tmp_path, "bio.yaml", "--bio.dales_principle.include=nothing")
    assert done.returncode == 1
    assert "dales_principle.include: got 'nothing'; allowed: a pattern that matches one of " in done.stderr


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["~callbacks.fuzzy_learning_rates"], {"weight_rejuvenation"}),
        (
            ["+callbacks.crystallization._target_=bio_lightning.Crystallization"],
            {"fuzzy_learning_rates", "weight_rejuvenation", "crystallization"},
        ),
        (
            ["~callbacks", "bio=paper", "bio.crystallization.enabled=true"],
            {"fuzzy_learning_rates", "weight_rejuvenation", "crystallization"},
        ),
    ],
)
def test_hydra(tmp_path, overrides, expected):
    short = [f"hydra.run.dir={tmp_path}", "trainer.max_epochs=1", "+trainer.log_every_n_steps=5"]
    done = run("hydra/train.py", *overrides, *short)
    assert done.returncode == 0, done.stderr
    assert logged(tmp_path) == expected
