"""PyTorch Lightning callbacks that give any LightningModule the dynamics of biological synapses."""

from bio_lightning.callbacks import (
    Crystallization,
    DalesPrinciple,
    FuzzyLearningRates,
    SynapticScaling,
    VolumeDependentLR,
    WeightRejuvenation,
    WeightSplitting,
)
from bio_lightning.errors import BioConfigError, NoEffectWarning
from bio_lightning.session import dale_signs, multipliers
from bio_lightning.split_layers import fold

__version__ = "0.1.0"

__all__ = [
    "BioConfigError",
    "Crystallization",
    "DalesPrinciple",
    "FuzzyLearningRates",
    "NoEffectWarning",
    "SynapticScaling",
    "VolumeDependentLR",
    "WeightRejuvenation",
    "WeightSplitting",
    "dale_signs",
    "fold",
    "multipliers",
]
