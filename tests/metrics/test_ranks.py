"""What is particular to the ranks of weights and of activations."""

import pytest
import torch

from bio_lightning.metrics import ActivationRank, WeightRank
from tests.checks import random_weight
from tests.metrics.cases import assert_close


def test_samples_of_many_batches_form_one_matrix():
    metric = ActivationRank(units=3)
    for sample in torch.eye(3):
        metric.update(sample)  # each alone has rank 1
    assert_close(metric.compute(), {"stable": 3.0, "effective": 3.0}, tolerance=1e-12)


def test_rank_of_samples_in_a_plane():
    metric = ActivationRank(units=10)
    metric.update(random_weight(500, 2) @ random_weight(2, 10, seed=1))
    assert all(1 < value < 2 + 1e-6 for value in metric.compute().values())


def test_images_have_their_units_on_axis_one():
    images = random_weight(2, 3, 4, 5)
    images[:, 1] = images[:, 2] = 0
    metric = ActivationRank(units=3, axis=1)
    metric.update(images)
    assert_close(metric.compute(), {"stable": 1.0, "effective": 1.0})


def test_silent_units_and_weights_of_zero_have_rank_zero():
    activation = ActivationRank(units=2)
    activation.update(torch.zeros(5, 2))
    weight = WeightRank()
    weight.update(torch.zeros(5, 2))
    for metric in (activation, weight):
        assert_close(metric.compute(), {"stable": 0.0, "effective": 0.0}, tolerance=0.0)


def test_layers_are_averaged():
    metric = WeightRank()
    metric.update(torch.eye(4))
    metric.update(torch.ones(20, 30))
    assert_close(metric.compute(), {"stable": 2.5, "effective": 2.5})


def test_kernels_lie_flat():
    weight = random_weight(4, 3, 2, 2)
    one, other = WeightRank(), WeightRank()
    one.update(weight.to(memory_format=torch.channels_last))
    other.update(weight.reshape(4, 12))
    assert_close(one.compute(), {key: value.item() for key, value in other.compute().items()}, tolerance=1e-12)


def test_a_bias_has_no_rank():
    with pytest.raises(ValueError, match=r"weight: got shape \(4,\)"):
        WeightRank().update(torch.ones(4))


def test_units_out_of_range():
    with pytest.raises(ValueError, match="units: got 0"):
        ActivationRank(units=0)
    with pytest.raises(ValueError, match=r"activation: got shape \(3, 2\); allowed: 3 units on axis -1"):
        ActivationRank(units=3).update(torch.zeros(3, 2))
