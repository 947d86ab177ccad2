import math

import pytest
import torch
from scipy import stats

from bio_lightning.functional import Noise, stability, volume_dependent_lr
from tests import reference
from tests.checks import assert_matches, assert_pure, floats, random_weight

DTYPES = [torch.float32, torch.float64]
NOISE = Noise(seed=1, stream=2, step=3)
# Every term matters, and one standard deviation of the noise folds some factors at zero.
SETTINGS = {"base_lr": 0.3, "stability_factor": 3.0, "lr_variability": 0.5}
FOLDING = {"base_lr": 0.3, "stability_factor": 3.0, "lr_variability": 2.0}
NOISE_TOLERANCE = 2e-6  # the noise is float32, whatever the dtype of the weight
MANY = 20000


def test_worked_example():
    # Mean size 1: volumes 0, 1/2 and 2/3.
    weight = torch.tensor([0.0, -1.0, 2.0])
    factor = volume_dependent_lr(
        weight, NOISE, base_lr=0.5, stability_factor=math.log(4.0), lr_variability=0.0, normalize=False
    )
    assert floats(factor) == pytest.approx([0.5, 0.25, 0.5 * 4.0 ** (-2.0 / 3.0)], rel=1e-6)


def test_worked_example_of_the_absolute_reference():
    # Volumes 0, 3/4 and 1/2 whatever the layer's mean, factors 1, 1/8 and 1/4: mean 11/24.
    weight = torch.tensor([0.0, 3.0, -1.0])
    factor = volume_dependent_lr(
        weight, NOISE, stability_factor=math.log(16.0), lr_variability=0.0, reference="absolute"
    )
    assert floats(factor) == pytest.approx([24.0 / 11.0, 3.0 / 11.0, 6.0 / 11.0], rel=1e-6)


def test_worked_example_of_the_noise(monkeypatch):
    normals = torch.tensor([0.0, 1.0, -3.0])
    monkeypatch.setattr(Noise, "normal", lambda _self, _like, _index=None: normals)
    factor = volume_dependent_lr(
        torch.zeros(3), NOISE, base_lr=2.0, stability_factor=5.0, lr_variability=0.5, normalize=False
    )
    assert floats(factor) == [2.0, 3.0, 1.0]  # 2 * |1 - 0.5 * 3| = 1: folded, not clamped


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("origin", ["layer_mean", "absolute"])
@pytest.mark.parametrize("settings", [SETTINGS, FOLDING])
def test_matches_the_reference(settings, origin, normalize, dtype):
    weight = random_weight(15, 20, scale=2.5, dtype=dtype)
    factor = volume_dependent_lr(weight, NOISE, reference=origin, normalize=normalize, **settings)
    assert (factor.dtype, factor.shape) == (dtype, weight.shape)
    expected = reference.volume_dependent_lr(
        floats(weight), floats(NOISE.normal(weight)), reference=origin, normalize=normalize, **settings
    )
    assert_matches(factor, expected, NOISE_TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_noise_matches_the_reference_to_the_rounding_of_the_weight(dtype):
    weight = random_weight(15, 20, dtype=dtype)
    settings = {"base_lr": 0.3, "stability_factor": 3.0, "lr_variability": 0.0}
    expected = reference.volume_dependent_lr(
        floats(weight), [0.0] * weight.numel(), reference="layer_mean", normalize=True, **settings
    )
    assert_matches(volume_dependent_lr(weight, NOISE, **settings), expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_defaults_match_the_reference(normalize):
    weight = random_weight(15, 20)
    defaults = {"base_lr": 0.1, "stability_factor": 2.0, "lr_variability": 0.2}
    expected = reference.volume_dependent_lr(
        floats(weight), floats(NOISE.normal(weight)), reference="layer_mean", normalize=normalize, **defaults
    )
    assert_matches(volume_dependent_lr(weight, NOISE, normalize=normalize), expected, NOISE_TOLERANCE)


# Properties


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("variability", [0.1, 0.25])
def test_mean_and_spread_fall_with_the_weight_at_the_stated_exponential(variability, normalize):
    sizes = torch.tensor([0.0, 0.25, 0.5, 1.0, 3.0])
    half = sizes.mean().item()
    weight = sizes.repeat_interleave(MANY)
    factor = volume_dependent_lr(
        weight, NOISE, base_lr=0.1, stability_factor=3.0, lr_variability=variability, normalize=normalize
    )
    rows = factor.view(len(sizes), MANY).double()
    smallest = rows[0].mean().item()
    for row, size in zip(rows, floats(sizes), strict=True):
        expected = math.exp(-3.0 * size / (size + half)) * (smallest if normalize else 0.1)
        error = 4.0 * variability * expected / math.sqrt(MANY)
        assert row.mean().item() == pytest.approx(expected, abs=error * (math.sqrt(2.0) if normalize else 1.0))
        assert row.std().item() == pytest.approx(variability * expected, rel=0.03)
        assert len(row.unique()) > 0.9 * MANY  # weights of equal size differ


@pytest.mark.parametrize("variability", [0.2, 1.0])
def test_equal_weights_have_folded_normal_factors(variability):
    factor = volume_dependent_lr(torch.ones(MANY), NOISE, lr_variability=variability)
    law = stats.foldnorm(c=1.0 / variability, scale=variability)
    assert stats.kstest(factor.numpy(), law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("stability", [0.5, 2.0, 10.0])
def test_normalising_keeps_the_mean_learning_rate_of_the_layer(stability):
    weight = random_weight(100, 50, dtype=torch.float32)
    settings = {"stability_factor": stability, "base_lr": 0.037}
    expected = volume_dependent_lr(weight, NOISE, lr_variability=0.0, **settings)
    assert expected.double().mean().item() == pytest.approx(1.0, abs=1e-6)
    noisy = volume_dependent_lr(weight, NOISE, lr_variability=0.2, **settings)
    assert noisy.double().mean().item() == pytest.approx(1.0, abs=0.02)


def test_base_lr_acts_only_without_normalising():
    weight = random_weight(100, dtype=torch.float32)
    for normalize, ratio in ((True, 1.0), (False, 4.0)):
        small = volume_dependent_lr(weight, NOISE, base_lr=0.5, normalize=normalize)
        large = volume_dependent_lr(weight, NOISE, base_lr=2.0, normalize=normalize)
        assert torch.equal(large, small * ratio)


def test_the_layer_mean_makes_the_factor_independent_of_scale():
    weight = random_weight(100)
    assert_matches(
        volume_dependent_lr(weight * 1e-3, NOISE, **SETTINGS), floats(volume_dependent_lr(weight, NOISE, **SETTINGS))
    )
    by_size = volume_dependent_lr(weight * 1e-3, NOISE, reference="absolute", lr_variability=0.0)
    assert by_size.std() < 0.01  # tiny weights have no volume at the absolute scale


def test_the_sign_of_a_weight_does_not_matter():
    weight = random_weight(100)
    assert torch.equal(volume_dependent_lr(-weight, NOISE, **SETTINGS), volume_dependent_lr(weight, NOISE, **SETTINGS))


def test_a_neutral_setting_changes_no_bit():
    weight = random_weight(5, 7, dtype=torch.float32)
    factor = volume_dependent_lr(weight, NOISE, stability_factor=0.0, lr_variability=0.0)
    assert torch.equal(factor, torch.ones(5, 7))
    factor = volume_dependent_lr(weight, NOISE, stability_factor=0.0, lr_variability=0.0, base_lr=1.0, normalize=False)
    assert torch.equal(factor, torch.ones(5, 7))


def test_the_noise_is_drawn_anew_each_step():
    weight = torch.ones(1000)
    one = volume_dependent_lr(weight, NOISE) - 1.0
    other = volume_dependent_lr(weight, NOISE._replace(step=4)) - 1.0
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1].item()) < 4.0 / math.sqrt(1000)


# Edges


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("origin", ["layer_mean", "absolute"])
def test_a_layer_of_zeros_has_no_volume(origin, normalize):
    factor = volume_dependent_lr(
        torch.zeros(4, 5), NOISE, base_lr=0.3, lr_variability=0.0, reference=origin, normalize=normalize
    )
    assert torch.equal(factor, torch.full((4, 5), 1.0 if normalize else 0.3))


@pytest.mark.parametrize("origin", ["layer_mean", "absolute"])
def test_the_most_stable_layer_still_has_mean_one(origin):
    rule = {"stability_factor": 80.0, "lr_variability": 0.0, "reference": origin}
    factor = volume_dependent_lr(torch.full((8,), 1e6), NOISE, **rule)
    assert floats(factor) == pytest.approx([1.0] * 8)


@pytest.mark.parametrize("origin", ["layer_mean", "absolute"])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (3, 0), (2, 3, 4, 4)])
def test_layers_of_every_shape(shape, origin):
    factor = volume_dependent_lr(torch.ones(shape), NOISE, reference=origin)
    assert factor.shape == shape
    assert bool(torch.isfinite(factor).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_have_float32_factors(dtype):
    weight = random_weight(20, 20, dtype=dtype)
    factor = volume_dependent_lr(weight, NOISE, **SETTINGS)
    assert factor.dtype == torch.float32
    assert_matches(factor, floats(volume_dependent_lr(weight.float(), NOISE, **SETTINGS)), 1e-6)


def test_nothing_is_modified():
    assert_pure(lambda weight: volume_dependent_lr(weight, NOISE, **SETTINGS), random_weight(5, 7))


# What compiled code computes instead of the exponential function


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.5, 2.0, 3.0, 4.0, 40.0])
def test_polynomial_is_the_exponential_function(monkeypatch, factor):
    weight = torch.cat([torch.zeros(1), torch.logspace(-6, 6, 20001)])
    volume = weight / (weight + 1)
    expected = torch.exp(-factor * volume)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.allclose(stability(weight, torch.tensor(1.0), stability_factor=factor), expected, rtol=1.5e-6, atol=0)
