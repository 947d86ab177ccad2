"""A LightningCLI app whose synapses are switched in YAML and by flags.

    cd examples/lightning_cli
    python main.py fit --config callbacks.yaml --trainer.callbacks+=bio_lightning.Crystallization
    python main.py fit --config bio.yaml --bio.crystallization.enabled=false

The first file lists each mechanism by ``class_path`` among the Trainer's callbacks, for which LightningCLI itself will
do; the second holds a whole configuration of synapses under ``bio``, for which BioCLI is needed. Model and data know of
neither.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # model and data are those of the other examples

from bio_lightning.cli.lightning_cli import BioCLI
from data import ImageData
from models import Classifier

if __name__ == "__main__":
    BioCLI(Classifier, ImageData)
