import numpy as np
import pytest
import torch

from bio_lightning.functional._sketch import ACCURACY, BINS, sketch, sketched_quantiles
from tests.checks import assert_pure

PROBABILITIES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
DISTRIBUTIONS = {
    "narrow": lambda rng, n: rng.normal(1, 0.02, n),
    "lognormal": lambda rng, n: rng.lognormal(0, 1.5, n),
    "uniform": lambda rng, n: rng.uniform(0, 2, n),
    "wide": lambda rng, n: 10 ** rng.uniform(-5.9, 5.9, n),
    "clamped": lambda rng, n: np.clip(rng.lognormal(0, 0.8, n), 0.5, 2.0),
    "zeros": lambda rng, n: rng.choice([0.0, 0.3, 1.0], n),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("size", [1, 2, 101, 20_000])
def test_quantiles_match_numpy_within_the_accuracy(name, size):
    values = DISTRIBUTIONS[name](np.random.default_rng(size), size)
    expected = np.quantile(values, PROBABILITIES, method="lower")
    result = sketched_quantiles(sketch(torch.as_tensor(values)), PROBABILITIES)
    np.testing.assert_allclose(result.numpy(), expected, rtol=ACCURACY * (1 + 1e-9))


def test_counts_add_up():
    values = torch.as_tensor(np.random.default_rng(0).lognormal(0, 1, size=(30, 10)))
    assert torch.equal(sketch(values[:7]) + sketch(values[7:]), sketch(values))
    assert sketch(values).sum() == 300


def test_ends():
    counts = sketch(torch.tensor([0.0, 1e-9, -1.0, 1e9, float("inf")]))
    assert counts[0] == 3
    assert counts[-1] == 2
    assert counts.shape == (BINS,)
    assert sketched_quantiles(counts, (0.5,)).item() == 0.0
    for end in (1e-6, 1e6):
        assert sketched_quantiles(sketch(torch.tensor([end])), (0.5,)).item() == pytest.approx(end, rel=ACCURACY)
    assert sketched_quantiles(counts, (1.0,)).item() == pytest.approx(1e6, rel=ACCURACY)


def test_nothing_counts_nothing_and_nan_at_an_end():
    assert sketch(torch.empty(0)).sum() == 0
    nan = torch.tensor([float("nan")])
    for bad in (nan, -nan):  # they differ in their sign bit
        counts = sketch(bad)
        assert counts.sum() == counts[0] + counts[-1] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_modified(dtype):
    values = torch.rand(9, dtype=dtype)
    assert_pure(sketch, values)
    assert_pure(lambda counts: sketched_quantiles(counts, (0.1, 0.9)), sketch(values))


def test_large_tensors_are_counted_as_a_whole():
    values = torch.rand(2_200_000, generator=torch.Generator().manual_seed(0)) + 0.5
    assert sketch(values).sum() == 2_200_000
    assert torch.equal(sketch(values), sketch(values[:7]) + sketch(values[7:]))
