"""Train a small network twice from the same seed, plain and with synapses, and compare.

    python examples/train.py --config paper --model cnn --seeds 3 fuzzy_learning_rates.nu=0.3

Ends with a table, an overview as PNG, and TensorBoard logs of both runs, all in one folder.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from bio_lightning import BioConfigError, BioMonitor, bio_callbacks, load_config
from bio_lightning.config import presets
from data import Images, load
from models import LEARNING_RATES, NETWORKS
from options import positive_integer, positive_number
from report import save_figure, table
from runs import Run, Settings, train

__all__ = ["main"]

#: Presets are for longer runs than these, whose histograms and figures would be few.
PACE = (
    "bio_monitor.histogram_every_n_steps=50",
    "bio_monitor.rank_every_n_steps=100",
    "bio_monitor.figure_every_n_epochs=5",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 for success, 2 for what the user can put right."""
    args = _parser().parse_intermixed_args(arguments)
    torch.set_num_threads(1)  # the networks are too small to gain by more, and threads that wait for a core cost a lot
    try:
        images = load(args.data, args.data_dir)
        config = _config(args)
        folder = _output_folder(args)
    except (OSError, ValueError) as error:
        return _refuse(error)
    try:
        plain, bio = _train_pairs(args, images, config, folder)
    except (OSError, BioConfigError, MisconfigurationException) as error:  # say, the config does not suit the network
        shutil.rmtree(folder / "bio", ignore_errors=True)
        return _refuse(error)
    result = table(plain, bio)
    (folder / "table.md").write_text(result, encoding="utf-8")
    save_figure(folder / "overview.png", plain, bio, _title(args))
    print(f"\n{result}\n{folder / 'overview.png'}\ntensorboard --logdir {folder}")
    return 0


def _parser() -> argparse.ArgumentParser:
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("overrides", nargs="*", help="settings of the config, such as fuzzy_learning_rates.nu=0.3")
    add("--config", default="default", help="preset or path of a YAML file (default: %(default)s)")
    add("--data", default="digits", choices=["digits", "fashion-mnist"], help="default: %(default)s")
    add("--data-dir", type=Path, help="folder of the data set's four IDX files; nothing is downloaded")
    add("--model", default=defaults.model, choices=list(NETWORKS), help="default: %(default)s")
    add("--seeds", type=positive_integer, default=1, help="pairs of runs (default: %(default)s)")
    add("--epochs", type=positive_integer, default=defaults.epochs, help="default: %(default)s")
    add("--batch-size", type=positive_integer, default=defaults.batch_size, help="default: %(default)s")
    add("--optimizer", default=defaults.optimizer, choices=list(LEARNING_RATES), help="default: %(default)s")
    add("--lr", type=positive_number, help=f"learning rate (default: {LEARNING_RATES})")
    add("--accelerator", default=defaults.accelerator, choices=["auto", "cpu", "gpu"], help="default: %(default)s")
    add("--out", type=Path, help="folder for the results; must not hold any yet (default: a new one in runs)")
    return parser


def _config(args: argparse.Namespace) -> DictConfig:
    config = load_config(args.config, args.overrides)
    if args.config in presets() and config.bio_monitor.enabled:
        config = load_config(args.config, [*PACE, *args.overrides])
    return config


def _title(args: argparse.Namespace) -> str:
    count = f"{args.seeds} seeds, mean and range" if args.seeds > 1 else "1 seed"
    return f"{args.data}, {args.model}, config {Path(args.config).stem} ({count})"


def _refuse(error: Exception) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _output_folder(args: argparse.Namespace) -> Path:
    """The folder asked for, or the first free one; never one with another run's logs, which would mix with ours."""
    folder: Path | None = args.out
    if folder is None:
        name = f"{args.data}-{args.model}-{Path(args.config).stem}"
        candidates = (Path("runs") / f"{name}-{number}" for number in itertools.count(1))
        return next(candidate for candidate in candidates if not candidate.exists())
    if any((folder / name).exists() for name in ("plain", "bio")):
        raise FileExistsError(f"--out {folder} already holds results; name another folder")
    return folder


def _train_pairs(
    args: argparse.Namespace, images: Images, config: DictConfig, folder: Path
) -> tuple[list[Run], list[Run]]:
    """Train one pair per seed; each pair has synapses of its own, too."""
    settings = Settings(args.model, args.optimizer, args.lr, args.epochs, args.batch_size, args.accelerator)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "config.yaml")
    plain, bio = [], []
    for seed in range(args.seeds):
        callbacks = bio_callbacks(config, _seeds(config, seed))
        bio.append(train(settings, images, callbacks, seed, folder, "bio"))  # first, since it alone can be refused
        monitor = [copy.copy(callback) for callback in callbacks if isinstance(callback, BioMonitor)]  # changes no bit
        plain.append(train(settings, images, monitor, seed, folder, "plain"))
    return plain, bio


def _seeds(config: DictConfig, offset: int) -> list[str]:
    """Overrides that give a pair seeds of its own, also sections that have one already."""
    sections = [name for name, section in config.items() if isinstance(section, DictConfig) and section.enabled]
    own = [f"{name}.seed={config[name].seed + offset}" for name in sections if "seed" in config[name]]
    return [f"seed={config.seed + offset}", *own]


if __name__ == "__main__":
    sys.exit(main())
