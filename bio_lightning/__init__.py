"""PyTorch Lightning callbacks that give any LightningModule the dynamics of biological synapses."""

from bio_lightning.callbacks import (
    BioMonitor,
    Crystallization,
    DalesPrinciple,
    FuzzyLearningRates,
    SynapticScaling,
    VolumeDependentLR,
    WeightRejuvenation,
    WeightSplitting,
)
from bio_lightning.config import BioConfig, bio_callbacks, load_config
from bio_lightning.errors import BioConfigError, NoEffectWarning, SynapseWarning
from bio_lightning.inspection import dale_signs, multipliers
from bio_lightning.split_layers import fold

__version__ = "0.1.0"

__all__ = [
    "BioConfig",
    "BioConfigError",
    "BioMonitor",
    "Crystallization",
    "DalesPrinciple",
    "FuzzyLearningRates",
    "NoEffectWarning",
    "SynapseWarning",
    "SynapticScaling",
    "VolumeDependentLR",
    "WeightRejuvenation",
    "WeightSplitting",
    "bio_callbacks",
    "dale_signs",
    "fold",
    "load_config",
    "multipliers",
]
