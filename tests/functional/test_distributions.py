import math

import pytest
import torch
from scipy import stats

from bio_lightning.functional import Draw, Noise, distributions
from tests import reference
from tests.checks import assert_matches, assert_pure, floats, random_rates, random_weight, standard_error

DTYPES = [torch.float32, torch.float64]
NUS = [0.16, 0.8]
NOISE = Noise(seed=1, stream=2, step=3)
SIZE = 1 << 15
MANY = torch.empty(SIZE)
NOT_SIGNIFICANT = 1e-3
# The draw's own accuracy is that of float32, whatever the dtype of the weight.
DRAW_TOLERANCE = 2e-6
# The gamma goes through a table; its error is that of interpolating it.
GAMMA_TOLERANCE = 1e-5


def uniform_law(half_width):
    return stats.uniform(1.0 - half_width, 2.0 * half_width)


# Each name, its draw of SIZE factors before clamping, and the law they follow.
LAWS = {
    "uniform": (lambda nu: distributions.uniform(MANY, NOISE, nu), uniform_law),
    "normal": (lambda nu: distributions.normal(MANY, NOISE, nu), lambda nu: stats.norm(1.0, nu)),
    "lognormal": (
        lambda nu: distributions.lognormal(MANY, NOISE, nu),
        lambda nu: stats.lognorm(s=nu, scale=math.exp(-(nu**2) / 2.0)),
    ),
    "gamma": (
        lambda nu: distributions.gamma(MANY, NOISE, nu),
        lambda nu: stats.gamma(a=1.0 / nu**2, scale=nu**2),
    ),
    "beta": (
        lambda nu: distributions.beta(MANY, NOISE, nu),
        lambda nu: stats.beta(2, 2, loc=1.0 - nu * math.sqrt(5.0), scale=2.0 * nu * math.sqrt(5.0)),
    ),
    "first layer": (lambda nu: distributions.layer_adaptive(MANY, NOISE, nu, 0.0), uniform_law),
    "middle layer": (
        lambda nu: distributions.layer_adaptive(MANY, NOISE, nu, 0.5),
        lambda nu: uniform_law(0.75 * nu),
    ),
    "last layer": (lambda nu: distributions.layer_adaptive(MANY, NOISE, nu, 1.0), lambda nu: uniform_law(nu / 2.0)),
    "equal weights": (lambda nu: distributions.weight_adaptive(torch.ones(SIZE), NOISE, nu), uniform_law),
    "equal rates": (lambda nu: distributions.activity(MANY, NOISE, nu, torch.full((SIZE,), 0.2)), uniform_law),
    "newborn": (lambda nu: distributions.temporal(distributions.uniform(MANY, NOISE, nu), 0.97, 0.0), uniform_law),
    "young": (
        lambda nu: distributions.temporal(distributions.uniform(MANY, NOISE, nu), 0.9, 3.0),
        lambda nu: uniform_law(0.729 * nu),
    ),
    "adult": (
        lambda nu: distributions.temporal(distributions.uniform(MANY, NOISE, nu), 0.9, 1000.0),
        lambda nu: uniform_law(0.25 * nu),
    ),
}
# The standard deviation that the rule states, as a multiple of nu; none for those that are compared with scipy's alone.
STATED_SPREAD = {"normal": 1.0, "gamma": 1.0, "beta": 1.0, "uniform": 1.0 / math.sqrt(3.0)}


def test_the_ten_names():
    assert distributions.DISTRIBUTIONS == (
        "baseline",
        "uniform",
        "normal",
        "lognormal",
        "gamma",
        "beta",
        "layer_adaptive",
        "weight_adaptive",
        "temporal",
        "activity",
    )
    for name in distributions.DISTRIBUTIONS:
        assert callable(getattr(distributions, name))


# Worked examples: the uniform is replaced by numbers that can be followed by head


@pytest.fixture
def quarters(monkeypatch):
    """Every draw yields the uniforms 1/4, 1/2, 3/4 in turn, and the normals of these ranks."""
    uniform, normal = torch.tensor([0.25, 0.5, 0.75]), torch.tensor([-0.6744898, 0.0, 0.6744898])
    monkeypatch.setattr(Draw, "uniform", lambda _self, like: uniform.expand(like.shape))
    monkeypatch.setattr(Draw, "normal", lambda _self, like: normal.expand(like.shape))
    return torch.empty(3)


@pytest.mark.usefixtures("quarters")
class TestWorkedExamples:
    def test_uniform(self):
        assert floats(distributions.uniform(torch.empty(3), NOISE, 0.5)) == [0.75, 1.0, 1.25]

    def test_normal(self):
        factor = distributions.normal(torch.empty(3), NOISE, 0.5)
        assert floats(factor) == pytest.approx([1.0 - 0.5 * 0.6744898, 1.0, 1.0 + 0.5 * 0.6744898], abs=1e-6)

    def test_lognormal(self):
        factor = distributions.lognormal(torch.empty(3), NOISE, 1.0)
        median = math.exp(-0.5)
        assert floats(factor) == pytest.approx([median / 1.9630311, median, median * 1.9630311], abs=1e-6)

    def test_gamma_with_standard_deviation_one_is_exponential(self):
        factor = distributions.gamma(torch.empty(3), NOISE, 1.0)
        assert floats(factor) == pytest.approx([-math.log(0.75), math.log(2.0), math.log(4.0)], abs=1e-5)

    def test_beta(self):
        # 3 b^2 - 2 b^3 = 1/4 at b = 0.3263518, so 2 b - 1 = -0.3472964.
        step = 0.2 * math.sqrt(5.0) * 0.3472964
        factor = distributions.beta(torch.empty(3), NOISE, 0.2)
        assert floats(factor) == pytest.approx([1.0 - step, 1.0, 1.0 + step], abs=1e-6)

    def test_layer_adaptive(self):
        assert floats(distributions.layer_adaptive(torch.empty(3), NOISE, 0.5, 1.0)) == [0.875, 1.0, 1.125]

    def test_weight_adaptive(self):
        # Mean size 2: half-widths nu times 1.5 (clamped), 1 and 0.5 (clamped).
        weight = torch.tensor([-0.5, 2.0, 3.5])
        assert floats(distributions.weight_adaptive(weight, NOISE, 0.5)) == [0.625, 1.0, 1.125]

    def test_activity(self):
        # Mean rate 0.5, relative rates 0.25, 0.5, 2.25: half-widths nu times 1.5 (clamped), 1.5 and 0.5 (clamped).
        rate = torch.tensor([[0.125], [0.25], [1.125]])
        factor = distributions.activity(torch.empty(3, 3), NOISE, 0.5, rate)
        assert factor[:, 0].tolist() == [0.625, 0.625, 0.875]
        assert factor[:, 2].tolist() == [1.375, 1.375, 1.125]

    def test_temporal(self):
        birth = distributions.uniform(torch.empty(3), NOISE, 0.5)
        assert floats(distributions.temporal(birth, decay=0.5, age=1.0)) == [0.875, 1.0, 1.125]
        assert floats(distributions.temporal(birth, decay=0.5, age=9.0)) == [0.9375, 1.0, 1.0625]


# Against the reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nu", NUS)
@pytest.mark.parametrize("name", ["uniform", "normal", "lognormal", "gamma", "beta"])
def test_independent_draws_match_the_reference(name, nu, dtype):
    weight = random_weight(12, 25, dtype=dtype)
    factor = getattr(distributions, name)(weight, NOISE, nu)
    assert (factor.dtype, factor.shape) == (torch.float32, weight.shape)
    expected = reference.draw(
        name, floats(NOISE.uniform(weight)), floats(NOISE.normal(weight)), nu, weights=floats(weight)
    )
    assert_matches(factor, expected, GAMMA_TOLERANCE if name == "gamma" else DRAW_TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_layer_adaptive_matches_the_reference(depth, dtype):
    weight = random_weight(12, 25, dtype=dtype)
    factor = distributions.layer_adaptive(weight, NOISE, 0.8, depth)
    uniforms = floats(NOISE.uniform(weight))
    assert_matches(factor, reference.draw("layer_adaptive", uniforms, [], 0.8, weights=floats(weight), depth=depth))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nu", NUS)
def test_weight_adaptive_matches_the_reference(nu, dtype):
    weight = random_weight(12, 25, dtype=dtype)
    factor = distributions.weight_adaptive(weight, NOISE, nu)
    assert (factor.dtype, factor.shape) == (dtype, weight.shape)
    uniforms = floats(NOISE.uniform(weight))
    assert_matches(factor, reference.draw("weight_adaptive", uniforms, [], nu, weights=floats(weight)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nu", NUS)
def test_activity_matches_the_reference(nu, dtype):
    weight, rate = random_weight(12, 25, dtype=dtype), random_rates(12, 1, dtype=dtype)
    factor = distributions.activity(weight, NOISE, nu, rate)
    assert factor.shape == weight.shape
    per_weight = floats(rate.expand(12, 25))
    uniforms = floats(NOISE.uniform(weight))
    assert_matches(factor, reference.draw("activity", uniforms, [], nu, weights=[], rates_per_weight=per_weight))


@pytest.mark.parametrize(("decay", "age"), [(0.97, 0.0), (0.97, 20.0), (0.5, 2.5), (0.5, 40.0), (1.0, 40.0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_temporal_matches_the_reference(decay, age, dtype):
    birth = 1.0 + 0.8 * random_weight(300, dtype=dtype)
    expected = [reference.temporal(value, decay, age) for value in floats(birth)]
    assert_matches(distributions.temporal(birth, decay, age), expected)


# Statistics before clamping


@pytest.mark.parametrize("nu", NUS)
@pytest.mark.parametrize("name", LAWS)
def test_a_draw_follows_its_law(name, nu):
    draw, law = LAWS[name]
    factor, expected = draw(nu).double().numpy(), law(nu)
    assert stats.kstest(factor, expected.cdf).pvalue > NOT_SIGNIFICANT


@pytest.mark.parametrize("nu", NUS)
@pytest.mark.parametrize("name", LAWS)
def test_a_draw_has_mean_one_and_the_spread_of_its_law(name, nu):
    draw, law = LAWS[name]
    factor, expected = draw(nu).double().numpy(), law(nu)
    assert expected.mean() == pytest.approx(1.0, abs=1e-9)
    assert factor.mean() == pytest.approx(1.0, abs=4.0 * standard_error(factor, expected.std()))
    kurtosis = float(expected.stats(moments="k")) + 3.0
    spread_error = expected.std() * math.sqrt((kurtosis - 1.0) / (4.0 * SIZE))
    assert factor.std() == pytest.approx(expected.std(), abs=4.0 * spread_error)
    if name in STATED_SPREAD:
        assert factor.std() == pytest.approx(nu * STATED_SPREAD[name], rel=0.03)


def test_lognormal_spread_is_near_nu_when_nu_is_small():
    assert distributions.lognormal(MANY, NOISE, 0.05).std().item() == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize("nu", NUS)
def test_bounded_draws_stay_within_their_bounds(nu):
    for factor, width in (
        (distributions.uniform(MANY, NOISE, nu), nu),
        (distributions.beta(MANY, NOISE, nu), nu * math.sqrt(5.0)),
    ):
        assert 0.99 * width < (factor - 1.0).abs().max().item() <= width * (1.0 + 1e-6)


def test_positive_draws_are_positive():
    assert bool((distributions.lognormal(MANY, NOISE, 0.8) > 0).all())
    assert bool((distributions.gamma(MANY, NOISE, 0.8) > 0).all())


# What the adaptive spreads follow


def test_small_weights_vary_most():
    sizes = torch.tensor([0.0, 0.5, 1.0, 1.5, 4.0])  # mean 1.4
    weight = sizes.repeat_interleave(2000) * torch.tensor([1.0, -1.0]).repeat(5000)
    factor = distributions.weight_adaptive(weight, NOISE, 0.4).view(5, 2000)
    widths = reference.weight_half_widths(floats(sizes), 0.4)
    for row, width in zip(factor, widths, strict=True):
        assert stats.kstest(row.numpy(), uniform_law(width).cdf).pvalue > NOT_SIGNIFICANT
    assert widths == sorted(widths, reverse=True)


def test_weight_adaptive_does_not_depend_on_the_scale_of_the_layer():
    weight = random_weight(500)
    scaled = distributions.weight_adaptive(weight * 1e-4, NOISE, 0.4)
    assert_matches(scaled, floats(distributions.weight_adaptive(weight, NOISE, 0.4)))


def test_incoming_weights_of_quiet_neurons_vary_most():
    rate = torch.tensor([[0.0], [0.2], [0.25], [0.8]])  # mean 0.3125
    factor = distributions.activity(torch.empty(4, 4000), NOISE, 0.4, rate)
    widths = reference.activity_half_widths(floats(rate), 0.4)
    for row, width in zip(factor, widths, strict=True):
        assert stats.kstest(row.numpy(), uniform_law(width).cdf).pvalue > NOT_SIGNIFICANT
        assert len(row.unique()) > 3900  # a draw per weight, only the spread is the neuron's
    assert widths == sorted(widths, reverse=True)


def test_a_factor_develops_along_a_straight_line_to_a_quarter_of_its_deviation():
    birth = distributions.uniform(torch.empty(100), NOISE, 0.4)
    before = birth
    for age in range(1, 80):
        now = distributions.temporal(birth, 0.97, float(age))
        assert bool(((now - 1.0).abs() <= (before - 1.0).abs()).all())
        before = now
    assert_matches(before - 1.0, floats((birth - 1.0) * 0.25), 1e-6)


# Neutral and degenerate inputs


@pytest.mark.parametrize("name", distributions.DISTRIBUTIONS)
def test_no_spread_gives_exactly_one(name):
    weight, rate = random_weight(4, 5, dtype=torch.float32), random_rates(4, 1, dtype=torch.float32)
    factor = {
        "baseline": lambda: distributions.baseline(weight),
        "layer_adaptive": lambda: distributions.layer_adaptive(weight, NOISE, 0.0, 0.5),
        "temporal": lambda: distributions.temporal(distributions.uniform(weight, NOISE, 0.0), 0.97, 3.0),
        "activity": lambda: distributions.activity(weight, NOISE, 0.0, rate),
    }.get(name, lambda: getattr(distributions, name)(weight, NOISE, 0.0))()
    assert torch.equal(factor, torch.ones(4, 5))


def test_no_decay_changes_nothing():
    birth = torch.tensor([0.5, 0.75, 1.5])
    assert torch.equal(distributions.temporal(birth, 1.0, 50.0), birth)


def test_a_layer_of_zeros_or_of_silent_neurons_has_the_average_spread():
    zeros, average = torch.zeros(3, 4), distributions.uniform(torch.zeros(3, 4), NOISE, 0.4)
    assert torch.equal(distributions.weight_adaptive(zeros, NOISE, 0.4), average)
    assert torch.equal(distributions.activity(zeros, NOISE, 0.4, torch.zeros(3, 1)), average)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_no_elements_draw_no_factors(shape):
    empty = torch.empty(shape)
    for name in ("uniform", "normal", "lognormal", "gamma", "beta", "weight_adaptive"):
        assert getattr(distributions, name)(empty, NOISE, 0.16).shape == shape
    assert distributions.baseline(empty).shape == shape
    assert distributions.activity(empty, NOISE, 0.16, torch.empty(shape)).shape == shape


def test_a_draw_is_a_function_of_the_noise():
    weight, other = torch.empty(100), NOISE._replace(step=4)
    for name in ("uniform", "normal", "lognormal", "gamma", "beta"):
        draw = getattr(distributions, name)
        assert_pure(lambda like, draw=draw: draw(like, NOISE, 0.16), torch.ones(3, 4))
        assert (draw(weight, NOISE, 0.16) != draw(weight, other, 0.16)).float().mean() > 0.99
    assert_pure(lambda like: distributions.weight_adaptive(like, NOISE, 0.16), random_weight(3, 4))
    assert_pure(
        lambda like, rate: distributions.activity(like, NOISE, 0.16, rate), torch.ones(3, 4), random_rates(3, 1)
    )
    assert_pure(lambda birth: distributions.temporal(birth, 0.9, 2.0), random_rates(3, 4))
