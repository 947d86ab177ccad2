"""The subcommands: each is a function, whose signature is its arguments and whose docstring is its help."""

from __future__ import annotations

import sys
from pathlib import Path

from bio_lightning.callbacks import Mechanism
from bio_lightning.cli.event_files import find_runs
from bio_lightning.cli.planning import load_model, plan_of
from bio_lightning.cli.report import page
from bio_lightning.cli.schema import schema_text
from bio_lightning.config import as_yaml, bio_callbacks, load_config
from bio_lightning.config import migrate as migrate_config
from bio_lightning.config import presets as known_presets
from bio_lightning.errors import BioConfigError
from bio_lightning.settings import agree, warn_of_idle

__all__ = ["COMMANDS"]


def presets() -> None:
    """List the configurations that come with the library."""
    known = known_presets()
    width = max(map(len, known))
    for name, path in known.items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        _print(f"{name:<{width}}  {first.lstrip('# ')}")


def show(source: str, *overrides: str) -> None:
    """Print a configuration with every key, as it is after overrides and interpolations.

    Args:
        source: Preset, or path of a YAML file.
        overrides: Settings to change, as in fuzzy_learning_rates.nu=0.3.
    """
    _print(as_yaml(load_config(source, overrides)).rstrip())


def check(file: str) -> None:
    """Check a configuration, also its sections that are off; the exit status is 2 where something is wrong.

    Args:
        file: Path of a YAML file, or preset.
    """
    callbacks = bio_callbacks(file)
    agree([callback for callback in callbacks if isinstance(callback, Mechanism)])
    warn_of_idle(callbacks)
    names = ", ".join(type(callback).__name__ for callback in callbacks)
    _print(f"{file}: valid; on: {names or 'nothing'}")


def plan(file: str, *overrides: str, model: str) -> None:
    """Print which mechanism acts on which layer of a model, how, and what memory it takes, without training.

    Args:
        file: Path of a YAML file, or preset.
        overrides: Settings to change, as in fuzzy_learning_rates.nu=0.3.
        model: The LightningModule as module:Class; a function that gives one will do.
    """
    callbacks = bio_callbacks(file, overrides)
    warn_of_idle(callbacks)
    _print(plan_of(load_model(model), callbacks))


def migrate(file: str) -> None:
    """Translate a configuration of pytorch-bio-transformations, with a comment on every field.

    Args:
        file: Path of a YAML file with its field names.
    """
    sections, notes = migrate_config(file)
    for note in notes:
        _print(f"# {note}")
    _print(as_yaml(sections).rstrip())


def report(*logdir: str, out: str = "report.html") -> None:
    """Write one HTML file that compares runs: a table, and panels of what they logged to TensorBoard.

    Args:
        logdir: Folders with TensorBoard's event files, there or further below.
        out: Where the page goes.
    """
    if not logdir:
        raise BioConfigError("logdir", None, "at least one folder with TensorBoard's event files")
    Path(out).write_text(page(find_runs(logdir)), encoding="utf-8")
    _print(out)


def schema(out: str | None = None) -> None:
    """Print the JSON schema of a configuration, by which editors complete and check keys.

    Args:
        out: Write it to this file instead.
    """
    if out is None:
        _print(schema_text().rstrip())
    else:
        Path(out).write_text(schema_text(), encoding="utf-8")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


COMMANDS = (presets, show, check, plan, migrate, report, schema)
