import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from bio_lightning.metrics import LogNormality
from tests.metrics.cases import assert_close


def computed(*weights):
    metric = LogNormality()
    for weight in weights:
        metric.update(torch.as_tensor(weight))
    return metric.compute()


def test_lognormal_magnitudes_are_not_skewed():
    rng = np.random.default_rng(0)
    weight = rng.lognormal(-3, 0.9, size=200_000) * rng.choice([-1, 1], size=200_000)
    result = computed(weight)
    assert result["mean"].item() == pytest.approx(-3, abs=0.01)
    assert result["std"].item() == pytest.approx(0.9, abs=0.01)
    assert abs(result["skew"].item()) < 0.02


def test_normal_weights_are_skewed_to_small_ones():
    result = computed(np.random.default_rng(0).normal(0, 0.05, size=200_000))
    exact = scipy.special.polygamma(2, 0.5) / scipy.special.polygamma(1, 0.5) ** 1.5
    assert exact == pytest.approx(-1.535, abs=1e-3)
    assert result["skew"].item() == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("size", [0.3, 1.0, 1e-6, 7e4])
def test_equal_magnitudes_have_neither_spread_nor_skew(size):
    weight = torch.full((1001,), size) * torch.where(torch.arange(1001) % 3 == 0, -1.0, 1.0)
    assert_close(computed(weight), {"mean": np.log(size), "std": 0.0, "skew": 0.0}, tolerance=1e-6)
    assert computed(weight)["std"].item() == 0.0
    assert computed(weight)["skew"].item() == 0.0


@pytest.mark.parametrize("spread", [1e-3, 1e-2])
def test_a_narrow_spread_keeps_its_skew(spread):
    logs = -4 + spread * np.random.default_rng(0).gamma(2.0, size=10_000)
    expected = {"mean": logs.mean(), "std": logs.std(), "skew": scipy.stats.skew(logs)}
    result = computed(np.exp(logs))
    assert all(result[key].item() == pytest.approx(expected[key], rel=1e-4) for key in expected)


def test_zeros_are_no_synapses():
    assert_close(computed(torch.zeros(9)), {"mean": 0.0, "std": 0.0, "skew": 0.0}, tolerance=0.0)
    weight = torch.tensor([0.5, 0.1, -0.2])
    padded = computed(torch.cat([weight, torch.zeros(99), -torch.zeros(3)]))
    assert_close(padded, {key: value.item() for key, value in computed(weight).items()}, tolerance=1e-12)
