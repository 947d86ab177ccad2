"""Dormancy: how little a neuron does beside the others of its layer."""

from __future__ import annotations

import torch
from torch import Tensor

from bio_lightning.functional._layer import ratio

__all__ = ["dormancy_score"]


@torch.no_grad()
def dormancy_score(activity: Tensor) -> Tensor:
    r"""Activity of each neuron, in units of its layer's mean.

    .. math:: s_i = \frac{a_i}{\frac{1}{n} \sum_k a_k}

    A neuron is called tau-dormant where its score is at most tau.

    Args:
        activity: Mean absolute activation, or firing rate, of each neuron of one layer; any shape, >= 0.

    Returns:
        float64, the shape of ``activity``; 0 everywhere in a silent layer.

    Example:
        >>> dormancy_score(torch.tensor([0.0, 1.0, 3.0, 4.0])) <= 0.025
        tensor([ True, False, False, False])

    References:
        Sokar et al., The dormant neuron phenomenon in deep reinforcement learning, ICML, 2023.
    """
    activity = activity.to(torch.float64)
    neurons = float(max(activity.numel(), 1))  # a tensor is divided by a float in half the time
    return ratio(activity, activity.sum() / neurons, at_zero=0.0)
