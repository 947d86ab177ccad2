import math

import numpy as np
import pytest
import torch
from scipy import stats

from bio_lightning.functional import Noise
from bio_lightning.functional.quantiles import from_quantiles, gamma_quantiles, interpolate, quantile_table, segments
from tests import reference
from tests.checks import assert_matches, assert_pure, floats, random_weight

DTYPES = [torch.float32, torch.float64]
NUS = [0.05, 0.16, 0.8, 1.5]
# Of the interpolated gamma quantiles: relative where they are large, absolute where they are small.
GAMMA_ERROR = {"rel": 3e-5, "abs": 4e-6}
SIZE = 1 << 15
UNIFORM = Noise(1, 2, 3).uniform(torch.empty(SIZE))


def test_worked_example():
    table = quantile_table(torch.tensor([[3.0, 1.0], [2.0, 4.0]]), points=4)
    assert floats(table) == [1.0, 2.0, 3.0, 4.0]
    assert floats(from_quantiles(torch.tensor([0.0, 0.5, 1.0]), table)) == [1.0, 2.5, 4.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("points", [2, 7, 1025])
def test_segments_give_the_same_values_as_the_table(dtype, points):
    table = quantile_table(random_weight(500, dtype=dtype), points)
    packed = segments(table)
    assert packed.dtype == (torch.float64 if dtype == torch.float64 else torch.int64)
    ends = torch.tensor([2.0**-24, 1 - 2.0**-24])
    for uniform in (UNIFORM, ends):
        assert torch.equal(from_quantiles(uniform, packed), from_quantiles(uniform, table))


def test_interpolate_clamps_to_the_ends():
    table = torch.tensor([1.0, 3.0, 7.0])
    assert floats(interpolate(table, torch.tensor([-1.0, 0.0, 0.25, 1.5, 2.0, 9.0]))) == [1.0, 1.0, 1.5, 5.0, 7.0, 7.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("elements", "points"), [(1, 2), (2, 7), (100, 31), (37, 1025)])
def test_quantile_table_matches_the_reference(dtype, elements, points):
    values = random_weight(elements, dtype=dtype)
    table = quantile_table(values, points)
    assert table.dtype == dtype
    assert table.shape == (points,)
    assert_matches(table, reference.quantile_table(floats(values), points))


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantile_table_matches_numpy(dtype):
    values = random_weight(12, 25, dtype=dtype)
    expected = np.quantile(values.numpy().ravel(), np.linspace(0, 1, 1025))
    assert_matches(quantile_table(values), expected.tolist())


def test_quantile_table_is_sorted_and_ends_at_the_extremes():
    values = random_weight(1000)
    table = quantile_table(values)
    assert bool((table.diff() >= 0).all())
    assert (table[0], table[-1]) == (values.min(), values.max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_quantile_table_of_half_precision_is_float32(dtype):
    values = random_weight(50, dtype=dtype)
    table = quantile_table(values, 5)
    assert table.dtype == torch.float32
    assert_matches(table, reference.quantile_table(floats(values), 5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_quantiles_matches_the_reference(dtype):
    table = quantile_table(random_weight(300, dtype=dtype), 17)
    uniform = UNIFORM[:500].to(dtype)
    assert_matches(
        from_quantiles(uniform, table), [reference.from_quantiles(u, floats(table)) for u in floats(uniform)]
    )


@pytest.mark.parametrize(
    "distribution", [stats.norm(0.0, 0.1), stats.uniform(-0.3, 0.6), stats.expon(scale=2.0)], ids=lambda d: d.dist.name
)
def test_a_table_reproduces_the_distribution_it_was_taken_from(distribution):
    values = torch.from_numpy(distribution.rvs(20000, random_state=0))
    drawn = from_quantiles(UNIFORM, quantile_table(values).float())
    assert stats.ks_2samp(drawn.numpy(), values.numpy()).pvalue > 1e-3
    assert drawn.std().item() == pytest.approx(values.std().item(), rel=0.02)
    assert drawn.mean().item() == pytest.approx(values.mean().item(), abs=0.02 * values.std().item())


def test_a_table_of_one_value_returns_it():
    table = quantile_table(torch.tensor([2.5]))
    assert torch.equal(from_quantiles(UNIFORM, table), torch.full((SIZE,), 2.5))


# Gamma


def test_gamma_with_standard_deviation_one_is_the_exponential_distribution():
    normal = torch.tensor([-3.0, 0.0, 1.0, 4.0], dtype=torch.float64)
    tails = [0.5 * math.erfc(z / math.sqrt(2.0)) for z in floats(normal)]
    assert floats(gamma_quantiles(normal, 1.0)) == pytest.approx([-math.log(tail) for tail in tails], **GAMMA_ERROR)


@pytest.mark.parametrize("nu", NUS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gamma_quantiles_match_the_reference(nu, dtype):
    normal = torch.linspace(-4.0, 4.0, 41, dtype=dtype)
    probabilities = [0.5 * math.erfc(-z / math.sqrt(2.0)) for z in floats(normal)]
    expected = [reference.gamma_quantile(p, nu) for p in probabilities]
    actual = gamma_quantiles(normal, nu)
    assert actual.dtype == dtype
    assert floats(actual) == pytest.approx(expected, **GAMMA_ERROR)


@pytest.mark.parametrize("nu", [0.01, *NUS])
def test_gamma_quantiles_match_scipy_out_to_the_last_uniform(nu):
    normal = torch.linspace(-5.3, 5.3, 501, dtype=torch.float64)
    expected = stats.gamma.ppf(stats.norm.cdf(normal.numpy()), a=1 / nu**2, scale=nu**2)
    assert floats(gamma_quantiles(normal, nu)) == pytest.approx(expected.tolist(), **GAMMA_ERROR)


@pytest.mark.parametrize("nu", NUS)
def test_gamma_keeps_the_order_of_its_input(nu):
    normal = torch.linspace(-5.3, 5.3, 1001)
    assert bool((gamma_quantiles(normal, nu).diff() >= 0).all())


def test_nothing_is_modified():
    table = quantile_table(random_weight(30, dtype=torch.float32))
    assert_pure(lambda values: quantile_table(values, 9), random_weight(5, 6))
    assert_pure(from_quantiles, UNIFORM[:9], table)
    assert_pure(lambda normal: gamma_quantiles(normal, 0.16), torch.linspace(-3, 3, 9))


def test_gamma_quantiles_do_not_change_between_calls():
    normal = torch.linspace(-3, 3, 9)
    first = gamma_quantiles(normal, 0.16)
    gamma_quantiles(normal, 0.8).zero_()
    gamma_quantiles(normal, 0.16).zero_()
    assert torch.equal(gamma_quantiles(normal, 0.16), first)
