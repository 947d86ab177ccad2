"""Statistics of synapses as torchmetrics; they know nothing of callbacks, so any loop can use them.

Results are global: what ``compute`` returns is the same on every process and counts what all of them have seen. Weights
that every process holds as a whole leave shares, means and ratios as they are, and multiply what is a count, such as
``corrected``. Of a sharded weight every process gives its own shard, except to ``WeightRank``; a ``DTensor``
is taken for the whole, as if every process held it.
"""

from bio_lightning.metrics.activation_rank import ActivationRank
from bio_lightning.metrics.crystallized_fraction import CrystallizedFraction
from bio_lightning.metrics.dormant_fraction import DormantFraction
from bio_lightning.metrics.excitation_inhibition import ExcitationInhibition
from bio_lightning.metrics.firing_rate import FiringRate
from bio_lightning.metrics.gradient_ratio import GradientRatio
from bio_lightning.metrics.log_normality import LogNormality
from bio_lightning.metrics.multiplier_spread import MultiplierSpread
from bio_lightning.metrics.sign_violations import SignViolations
from bio_lightning.metrics.spine_lifetime import SpineLifetime
from bio_lightning.metrics.synapse_survival import SynapseSurvival
from bio_lightning.metrics.turnover import Turnover
from bio_lightning.metrics.update_ratio import UpdateRatio
from bio_lightning.metrics.weight_rank import WeightRank

__all__ = [
    "ActivationRank",
    "CrystallizedFraction",
    "DormantFraction",
    "ExcitationInhibition",
    "FiringRate",
    "GradientRatio",
    "LogNormality",
    "MultiplierSpread",
    "SignViolations",
    "SpineLifetime",
    "SynapseSurvival",
    "Turnover",
    "UpdateRatio",
    "WeightRank",
]
