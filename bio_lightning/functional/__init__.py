"""The maths alone, on plain tensors: usable from a hand-written training loop, without Lightning."""

from bio_lightning.functional import distributions, quantiles
from bio_lightning.functional.crystallization import crystallize, frequently_used, highly_active, settled_or_strong
from bio_lightning.functional.dales_principle import (
    dalian_network_initialization,
    enforce_dales_principle,
    random_signs,
)
from bio_lightning.functional.dormancy import dormancy_score
from bio_lightning.functional.fuzzy_learning_rates import fuzzy_learning_rates, normalize_multipliers
from bio_lightning.functional.matrix_rank import (
    effective_rank,
    singular_values,
    singular_values_of_gram,
    stable_rank,
)
from bio_lightning.functional.noise import Draw, Noise, element_index, stream
from bio_lightning.functional.synaptic_scaling import scale_grad, scaling_factor, target_rate, tetzlaff_change
from bio_lightning.functional.volume_dependent_lr import stability, volume_dependent_lr
from bio_lightning.functional.weight_rejuvenation import (
    fresh_synapses,
    lognormal_fit,
    rejuvenate_weights,
    turnover_mask,
)
from bio_lightning.functional.weight_splitting import split_weights, sum_groups, synapse_shares

__all__ = [
    "Draw",
    "Noise",
    "crystallize",
    "dalian_network_initialization",
    "distributions",
    "dormancy_score",
    "effective_rank",
    "element_index",
    "enforce_dales_principle",
    "frequently_used",
    "fresh_synapses",
    "fuzzy_learning_rates",
    "highly_active",
    "lognormal_fit",
    "normalize_multipliers",
    "quantiles",
    "random_signs",
    "rejuvenate_weights",
    "scale_grad",
    "scaling_factor",
    "settled_or_strong",
    "singular_values",
    "singular_values_of_gram",
    "split_weights",
    "stability",
    "stable_rank",
    "stream",
    "sum_groups",
    "synapse_shares",
    "target_rate",
    "tetzlaff_change",
    "turnover_mask",
    "volume_dependent_lr",
]
