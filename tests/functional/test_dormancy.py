import numpy as np
import pytest
import torch

from bio_lightning.functional import dormancy_score
from tests.checks import assert_pure, floats, random_rates


def test_worked_example():
    assert floats(dormancy_score(torch.tensor([0.0, 1.0, 3.0, 4.0]))) == [0.0, 0.5, 1.5, 2.0]
    assert floats(dormancy_score(torch.tensor([3.0]))) == [1.0]  # a layer of one neuron


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_score_matches_numpy(dtype):
    activity = random_rates(6, 5, dtype=dtype)
    expected = activity.double().numpy() / activity.double().numpy().mean()
    np.testing.assert_allclose(dormancy_score(activity).numpy(), expected, rtol=1e-12)


def test_a_silent_layer_has_score_zero_and_an_empty_one_none():
    assert floats(dormancy_score(torch.zeros(3))) == [0.0, 0.0, 0.0]
    assert dormancy_score(torch.empty(0)).shape == (0,)


def test_nan_is_not_hidden():
    assert dormancy_score(torch.tensor([1.0, float("nan")])).isnan().all()


def test_nothing_is_modified():
    assert_pure(dormancy_score, random_rates(9))
