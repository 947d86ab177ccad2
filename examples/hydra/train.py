"""A Hydra app whose synapses are switched by overrides, laid out as lightning-hydra-template is.

    cd examples/hydra
    python train.py '~callbacks.fuzzy_learning_rates'
    python train.py +callbacks.crystallization._target_=bio_lightning.Crystallization
    python train.py '~callbacks' bio=paper bio.crystallization.enabled=true

Each mechanism may be a ``_target_`` entry of ``callbacks``; the entry ``bio`` takes a whole configuration of synapses.
Model and data know of neither.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # model and data are those of the other examples

import hydra
import lightning.pytorch as pl
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import DictConfig

from bio_lightning import bio_callbacks, load_config
from bio_lightning.config import presets

__all__ = ["build", "main"]

# Every preset is a choice for the group bio, with all sections and keys, so that Hydra knows a misspelt override.
for preset in presets():
    ConfigStore.instance().store(group="bio", name=preset, node=load_config(preset))


def build(config: DictConfig) -> pl.Trainer:
    """A Trainer with all callbacks of a composed configuration.

    Args:
        config: With the entries ``trainer``, ``bio``, and ``callbacks`` unless that is left out.
    """
    callbacks = [instantiate(entry) for entry in (config.get("callbacks") or {}).values()]
    return instantiate(config.trainer, callbacks=[*callbacks, *bio_callbacks(config.bio)])


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> None:
    """Train a model."""
    pl.seed_everything(config.seed)
    build(config).fit(instantiate(config.model), instantiate(config.data))


if __name__ == "__main__":
    main()
