import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from bio_lightning.functional import effective_rank, singular_values, singular_values_of_gram, stable_rank
from tests.checks import assert_pure, random_weight

SHAPES = [(5, 9), (9, 5), (4, 4), (1, 6), (6, 1), (4, 3, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_singular_values_match_scipy(shape, dtype):
    weight = random_weight(*shape, dtype=dtype)
    expected = scipy.linalg.svdvals(weight.double().numpy().reshape(shape[0], -1))
    result = singular_values(weight)
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12)


def test_memory_layout_does_not_matter():
    weight = random_weight(4, 3, 2, 5)
    np.testing.assert_allclose(
        singular_values(weight.to(memory_format=torch.channels_last)).numpy(), singular_values(weight).numpy(), 1e-12
    )


def test_singular_values_from_sums_over_rows():
    matrix = random_weight(40, 7)
    gram = matrix[:10].T @ matrix[:10] + matrix[10:].T @ matrix[10:]
    expected = scipy.linalg.svdvals(matrix.numpy())[::-1]
    np.testing.assert_allclose(singular_values_of_gram(gram).numpy(), expected, rtol=1e-12)


def test_squares_below_rounding_count_as_zero():
    matrix = random_weight(40, 3) @ random_weight(3, 7, seed=1)
    assert (singular_values_of_gram(matrix.T @ matrix) > 0).sum() == 3


@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_match_scipy(shape):
    singular = singular_values(random_weight(*shape))
    share = singular.numpy() / singular.numpy().sum()
    assert effective_rank(singular).item() == pytest.approx(np.exp(scipy.stats.entropy(share)), rel=1e-12)
    matrix = random_weight(*shape).numpy().reshape(shape[0], -1)
    expected = np.linalg.norm(matrix, "fro") ** 2 / np.linalg.norm(matrix, 2) ** 2
    assert stable_rank(singular).item() == pytest.approx(expected, rel=1e-12)


def test_identity_uses_every_direction_and_an_outer_product_one():
    for size in (1, 3, 8):
        identity = singular_values(torch.eye(size))
        outer = singular_values(torch.outer(random_weight(size), random_weight(size, seed=1)))
        for rank in (stable_rank, effective_rank):
            assert rank(identity).item() == pytest.approx(size)
            assert rank(outer).item() == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-200, 1e150])
def test_the_scale_does_not_matter(scale):
    singular = singular_values(random_weight(5, 6))
    for rank in (stable_rank, effective_rank):
        assert rank(singular * scale).item() == pytest.approx(rank(singular).item())


@pytest.mark.parametrize("singular", [torch.zeros(4), torch.empty(0)])
def test_nothing_has_rank_zero(singular):
    assert stable_rank(singular).item() == 0.0
    assert effective_rank(singular).item() == 0.0


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_weights_have_no_singular_values(shape):
    assert singular_values(torch.empty(shape)).shape == (0,)
    assert singular_values_of_gram(torch.empty(0, 0)).shape == (0,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_gives_nan(bad):
    weight = random_weight(3, 3)
    weight[1, 2] = bad
    for singular in (singular_values(weight), singular_values_of_gram(weight)):
        assert singular.isnan().all()
        assert stable_rank(singular).isnan()
        assert effective_rank(singular).isnan()


@pytest.mark.parametrize("shape", [(), (4,)])
def test_a_vector_is_no_matrix(shape):
    with pytest.raises(ValueError, match="weight: got shape"):
        singular_values(torch.ones(shape))


def test_nothing_is_modified():
    weight = random_weight(4, 4)
    assert_pure(singular_values, weight)
    assert_pure(singular_values_of_gram, weight.T @ weight)
    assert_pure(lambda s: (stable_rank(s), effective_rank(s)), singular_values(weight))
