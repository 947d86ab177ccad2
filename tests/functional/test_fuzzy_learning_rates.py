import pytest
import torch

from bio_lightning.functional import Noise, distributions, fuzzy_learning_rates, normalize_multipliers
from tests import reference
from tests.checks import TOLERANCE, assert_matches, assert_pure, floats, random_rates, random_weight

DTYPES = [torch.float32, torch.float64]
NUS = [0.16, 0.8]
BOUNDS = [(0.95, 1.05), (0.5, 2.0), (0.0, 1e6)]
NOISE = Noise(seed=1, stream=2, step=3)
# Every argument of every distribution away from its neutral value.
SETTINGS = {"depth": 0.7, "decay": 0.9, "age": 4.0}
TABLE_TOLERANCE = 2e-5  # of the gamma's quantile table
ROUNDING = 3e-7  # of a float32 mean


def test_worked_example(monkeypatch):
    draws = torch.tensor([0.0, 0.5, 0.75, 1.0])
    monkeypatch.setattr(Noise, "uniform", lambda _self, _like, _index=None: draws)
    m = fuzzy_learning_rates(torch.empty(4), NOISE, distribution="uniform", nu=0.5, min=0.75, max=1.25)
    # Factors 0.5, 1, 1.25, 1.5 are clamped to 0.75, 1, 1.25, 1.25: mean 1.0625.
    assert floats(m) == pytest.approx([0.75 / 1.0625, 1.0 / 1.0625, 1.25 / 1.0625, 1.25 / 1.0625], rel=1e-6)


def test_normalize_worked_example():
    assert floats(normalize_multipliers(torch.tensor([1.0, 2.0, 3.0]))) == [0.5, 1.0, 1.5]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("distribution", distributions.DISTRIBUTIONS)
def test_matches_the_reference(distribution, bounds, dtype):
    low, high = bounds
    weight, rate = random_weight(10, 12, dtype=dtype), random_rates(10, 1, dtype=dtype)
    m = fuzzy_learning_rates(weight, NOISE, distribution=distribution, nu=0.8, min=low, max=high, rate=rate, **SETTINGS)
    assert m.shape == weight.shape
    factors = reference.draw(
        distribution,
        floats(NOISE.uniform(weight)),
        floats(NOISE.normal(weight)),
        0.8,
        weights=floats(weight),
        rates_per_weight=floats(rate.expand(10, 12)),
        **SETTINGS,
    )
    expected = reference.clamp_and_normalize(factors, low, high)
    assert_matches(m, expected, TABLE_TOLERANCE if distribution == "gamma" else TOLERANCE[m.dtype])


def test_the_defaults_match_the_reference():
    weight = random_weight(20, 20)
    factors = reference.draw("lognormal", [], floats(NOISE.normal(weight)), 0.16, weights=[])
    assert_matches(fuzzy_learning_rates(weight, NOISE), reference.clamp_and_normalize(factors, 0.5, 2.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalize_matches_the_reference(dtype):
    m = random_rates(300, dtype=dtype)
    average = reference.mean(floats(m))
    assert_matches(normalize_multipliers(m), [value / average for value in floats(m)])


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("nu", NUS)
@pytest.mark.parametrize("distribution", distributions.DISTRIBUTIONS)
def test_the_mean_is_one_in_every_layer(distribution, nu, bounds):
    low, high = bounds
    rate = random_rates(64, 1, dtype=torch.float32)
    for seed, scale in ((0, 1.0), (1, 1e-3)):
        weight = random_weight(64, 100, seed=seed, scale=scale, dtype=torch.float32)
        m = fuzzy_learning_rates(
            weight, NOISE._replace(seed=seed), distribution=distribution, nu=nu, min=low, max=high, rate=rate
        )
        assert m.double().mean().item() == pytest.approx(1.0, abs=ROUNDING)
        assert bool((m >= 0).all())
        assert bool(torch.isfinite(m).all())


@pytest.mark.parametrize("distribution", [name for name in distributions.DISTRIBUTIONS if name != "baseline"])
def test_every_distribution_but_baseline_is_diverse_from_the_first_step(distribution):
    m = fuzzy_learning_rates(torch.zeros(50, 50), NOISE._replace(step=0), distribution=distribution)
    assert m.std().item() > 0.04
    assert len(m.unique()) > 2000


@pytest.mark.parametrize("distribution", ["normal", "lognormal", "gamma", "beta"])
def test_the_bounds_are_reached_and_kept(distribution):
    m = fuzzy_learning_rates(torch.empty(5000), NOISE, distribution=distribution, nu=0.8, min=0.5, max=2.0)
    assert (m.max() / m.min()).item() == pytest.approx(4.0, rel=1e-6)
    for bound in (m.min(), m.max()):
        assert (m == bound).sum() > 50


def test_the_standard_deviation_is_nu_where_nothing_is_clamped():
    for distribution in ("normal", "lognormal", "gamma", "beta"):
        m = fuzzy_learning_rates(torch.empty(20000), NOISE, distribution=distribution)
        assert m.std().item() == pytest.approx(0.16, rel=0.02)


@pytest.mark.parametrize("distribution", distributions.DISTRIBUTIONS)
def test_no_spread_gives_exactly_one(distribution):
    m = fuzzy_learning_rates(random_weight(5, 7, dtype=torch.float32), NOISE, distribution=distribution, nu=0.0)
    assert torch.equal(m, torch.ones(5, 7))


def test_baseline_is_one_whatever_the_other_arguments():
    m = fuzzy_learning_rates(random_weight(5, 7), NOISE, distribution="baseline", nu=0.8, **SETTINGS)
    assert torch.equal(m, torch.ones(5, 7))


def test_without_rates_every_neuron_is_average():
    weight = random_weight(5, 7, dtype=torch.float32)
    expected = fuzzy_learning_rates(weight, NOISE, distribution="uniform", nu=0.4)
    assert torch.equal(fuzzy_learning_rates(weight, NOISE, distribution="activity", nu=0.4), expected)


@pytest.mark.parametrize("distribution", distributions.DISTRIBUTIONS)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (3, 0), (2, 3, 4, 4)])
def test_layers_of_every_shape_and_of_zeros(shape, distribution):
    m = fuzzy_learning_rates(torch.zeros(shape), NOISE, distribution=distribution, nu=0.8)
    assert m.shape == shape
    assert bool(torch.isfinite(m).all())


def test_factors_of_zero_are_left_alone_by_the_normalisation():
    assert torch.equal(normalize_multipliers(torch.zeros(3)), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("distribution", distributions.DISTRIBUTIONS)
def test_half_precision_weights_have_float32_multipliers(distribution, dtype):
    m = fuzzy_learning_rates(random_weight(20, 20, dtype=dtype), NOISE, distribution=distribution)
    assert m.dtype == torch.float32
    assert m.double().mean().item() == pytest.approx(1.0, abs=ROUNDING)


def test_memory_format_does_not_change_the_multipliers():
    weight = random_weight(4, 3, 5, 5, dtype=torch.float32)
    channels_last = weight.to(memory_format=torch.channels_last)
    for distribution in ("lognormal", "weight_adaptive"):
        m = fuzzy_learning_rates(channels_last, NOISE, distribution=distribution)
        assert_matches(m, floats(fuzzy_learning_rates(weight, NOISE, distribution=distribution)))


@pytest.mark.parametrize("distribution", distributions.DISTRIBUTIONS)
def test_nothing_is_modified(distribution):
    weight, rate = random_weight(5, 7), random_rates(5, 1)
    assert_pure(lambda w, a: fuzzy_learning_rates(w, NOISE, distribution=distribution, rate=a), weight, rate)


def test_an_unknown_distribution_is_an_error():
    with pytest.raises(KeyError, match="cauchy"):
        fuzzy_learning_rates(torch.zeros(3), NOISE, distribution="cauchy")
