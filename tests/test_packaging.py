"""The built wheel carries cards and presets, and works where there is no checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bio_lightning.callbacks import REGISTRY

ROOT = Path(__file__).parent.parent
PRESETS = {path.name for path in (ROOT / "configs").glob("*.yaml")}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the contents of the wheel, as pip would unpack it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_wheel_holds_every_card_and_preset(installed):
    package = installed / "bio_lightning"
    assert {path.stem for path in (package / "cards").glob("*.md")} == set(REGISTRY)
    assert {path.name for path in (package / "configs").glob("*.yaml")} == PRESETS
    assert len(PRESETS) >= 6
    assert (package / "configs" / "schema.json").is_file()
    assert (package / "py.typed").exists()
    assert {path.name.split("-")[0] for path in installed.iterdir()} == {"bio_lightning"}


def test_wheel_has_the_command(installed):
    (entries,) = installed.glob("*.dist-info/entry_points.txt")
    assert "bio-lightning = bio_lightning.cli:main" in entries.read_text(encoding="utf-8")


def test_presets_are_found_by_name_after_installation(installed, tmp_path):
    program = (
        f"import bio_lightning; assert bio_lightning.__file__.startswith({str(installed)!r}), bio_lightning.__file__;"
        "print(*[type(c).__name__ for c in bio_lightning.bio_callbacks('paper')])"
    )
    run = [sys.executable, "-c", program]
    environment = {"PYTHONPATH": str(installed), "PATH": ""}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["FuzzyLearningRates", "WeightRejuvenation", "WeightSplitting", "BioMonitor"]
