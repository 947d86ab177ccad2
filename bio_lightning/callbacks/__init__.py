"""One Lightning callback per mechanism, and the monitor."""

from bio_lightning.callbacks.base import BioCallback
from bio_lightning.callbacks.bio_monitor import BioMonitor
from bio_lightning.callbacks.crystallization import Crystallization
from bio_lightning.callbacks.dales_principle import DalesPrinciple
from bio_lightning.callbacks.fuzzy_learning_rates import FuzzyLearningRates
from bio_lightning.callbacks.mechanism import Mechanism, PlasticityMechanism, ScheduledMechanism
from bio_lightning.callbacks.synaptic_scaling import SynapticScaling
from bio_lightning.callbacks.volume_dependent_lr import VolumeDependentLR
from bio_lightning.callbacks.weight_rejuvenation import WeightRejuvenation
from bio_lightning.callbacks.weight_splitting import WeightSplitting

#: Every callback that YAML can switch on, by its section.
REGISTRY: dict[str, type[BioCallback]] = {
    callback.name: callback
    for callback in (
        FuzzyLearningRates,
        VolumeDependentLR,
        SynapticScaling,
        Crystallization,
        WeightRejuvenation,
        DalesPrinciple,
        WeightSplitting,
        BioMonitor,
    )
}

__all__ = [
    "REGISTRY",
    "BioCallback",
    "BioMonitor",
    "Crystallization",
    "DalesPrinciple",
    "FuzzyLearningRates",
    "Mechanism",
    "PlasticityMechanism",
    "ScheduledMechanism",
    "SynapticScaling",
    "VolumeDependentLR",
    "WeightRejuvenation",
    "WeightSplitting",
]
