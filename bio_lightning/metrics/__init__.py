"""Statistics of synapses as torchmetrics; they know nothing of callbacks, so any loop can use them."""

from bio_lightning.metrics.crystallized_fraction import CrystallizedFraction
from bio_lightning.metrics.firing_rate import FiringRate
from bio_lightning.metrics.multiplier_spread import MultiplierSpread
from bio_lightning.metrics.sign_violations import SignViolations
from bio_lightning.metrics.turnover import Turnover

__all__ = ["CrystallizedFraction", "FiringRate", "MultiplierSpread", "SignViolations", "Turnover"]
