import math

import pytest
import torch
from scipy import stats

from bio_lightning.functional import Noise, split_weights, sum_groups, synapse_shares
from tests import reference
from tests.checks import assert_matches, assert_pure, floats, random_weight

DTYPES = [torch.float32, torch.float64]
GAMMAS = [1, 2, 3, 5]
NOISE = Noise(seed=1, stream=2, step=3)
ROUNDING = 1e-6  # the shares are float32
MANY = 5000


# Synapses


def test_worked_example(monkeypatch):
    uniforms = torch.tensor([[0.0, 0.5], [1.0, 0.5]])
    monkeypatch.setattr(Noise, "uniform", lambda _self, _like, _index=None: uniforms)
    assert synapse_shares(torch.empty(2), 2, NOISE).tolist() == [[0.25, 0.5], [0.75, 0.5]]
    assert split_weights(torch.tensor([4.0, -2.0]), 2, NOISE).tolist() == [[1.0, -1.0], [3.0, -1.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2, 2), (7,)])
def test_parts_match_the_reference(shape, gamma, dtype):
    weight = random_weight(*shape, dtype=dtype)
    parts = split_weights(weight, gamma, NOISE)
    assert (parts.dtype, parts.shape) == (dtype, (gamma, *shape))
    uniforms = NOISE.uniform(torch.empty(gamma, weight.numel())).tolist()
    expected = reference.split_weights(floats(weight), uniforms)
    assert_matches(parts, [value for part in expected for value in part], ROUNDING)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_parts_sum_to_the_whole_and_have_its_sign(gamma, dtype):
    weight = random_weight(30, 20, dtype=dtype)
    parts = split_weights(weight, gamma, NOISE)
    assert_matches(parts.double().sum(dim=0), floats(weight), ROUNDING)
    assert torch.equal(parts.sign(), weight.sign().expand(gamma, 30, 20))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_in_float64_the_function_is_that_of_the_unsplit_weight_to_float64(gamma):
    weight = random_weight(30, 20)
    assert_matches(split_weights(weight, gamma, NOISE).sum(dim=0), floats(weight))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_shares_are_positive_and_sum_to_one(gamma):
    shares = synapse_shares(torch.empty(30, 20), gamma, NOISE)
    assert shares.shape == (gamma, 30, 20)
    assert bool((shares > 0).all())
    assert_matches(shares.double().sum(dim=0), [1.0] * 600, ROUNDING)


@pytest.mark.parametrize("gamma", [2, 3, 5])
def test_shares_are_unequal_within_a_connection_and_between_connections(gamma):
    shares = synapse_shares(torch.empty(MANY), gamma, NOISE)
    assert len(shares.unique()) > 0.9 * shares.numel()
    low, high = 0.5 / (0.5 + 1.5 * (gamma - 1)), 1.5 / (1.5 + 0.5 * (gamma - 1))
    assert low < shares.min().item() < shares.max().item() < high
    spread = (shares.max(dim=0).values / shares.min(dim=0).values).mean().item()
    assert 1.3 < spread < 3.0


@pytest.mark.parametrize("gamma", [2, 3, 5])
def test_no_synapse_is_favoured(gamma):
    shares = synapse_shares(torch.empty(MANY), gamma, NOISE)
    assert floats(shares.mean(dim=1)) == pytest.approx([1.0 / gamma] * gamma, abs=0.2 / gamma / math.sqrt(50))
    assert stats.ks_2samp(shares[0].numpy(), shares[-1].numpy()).pvalue > 1e-3


def test_one_synapse_is_the_weight_itself():
    weight = random_weight(6, 5, dtype=torch.float32)
    assert torch.equal(split_weights(weight, 1, NOISE), weight.unsqueeze(0))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_zeros_split_into_zeros(gamma):
    assert torch.equal(split_weights(torch.zeros(3, 4), gamma, NOISE), torch.zeros(gamma, 3, 4))


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0)])
def test_layers_of_every_shape(shape):
    parts = split_weights(torch.ones(shape), 3, NOISE)
    assert parts.shape == (3, *shape)
    assert bool(torch.isfinite(parts).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(dtype):
    weight = random_weight(6, 5, dtype=dtype)
    parts = split_weights(weight, 3, NOISE)
    assert parts.dtype == dtype
    assert_matches(parts.double().sum(dim=0), floats(weight), 0.02)


def test_nothing_is_modified():
    assert_pure(lambda weight: split_weights(weight, 3, NOISE), random_weight(6, 5))
    assert_pure(lambda units: sum_groups(units, 3), random_weight(4, 6))


# Groups


def test_worked_example_of_the_groups():
    units = torch.tensor([[1.0, 2.0, 3.0, 10.0, 20.0, 30.0]])
    assert sum_groups(units, 3).tolist() == [[6.0, 6.0, 6.0, 60.0, 60.0, 60.0]]
    assert sum_groups(units, 2).tolist() == [[3.0, 3.0, 13.0, 13.0, 50.0, 50.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", [1, 2, 3, 6])
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((6,), -1), ((6,), 0), ((4, 6), -1), ((4, 6), 1), ((2, 5, 6), -1), ((2, 6, 3, 4), 1), ((2, 6, 3, 4), -3)],
)
def test_group_sums_match_the_reference(shape, dim, gamma, dtype):
    x = random_weight(*shape, dtype=dtype)
    summed = sum_groups(x, gamma, dim)
    assert (summed.dtype, summed.shape) == (dtype, x.shape)
    rows = x.movedim(dim, -1).flatten(0, -2).tolist() if len(shape) > 1 else [x.tolist()]
    expected = [value for row in rows for value in reference.sum_groups(row, gamma)]
    assert_matches(summed.movedim(dim, -1), expected)


def test_groups_of_one_change_no_bit():
    x = random_weight(4, 6, dtype=torch.float32)
    assert torch.equal(sum_groups(x, 1), x)


def test_a_gradient_flows_to_every_unit_of_a_group():
    x = random_weight(2, 6).requires_grad_()
    (sum_groups(x, 3) * torch.arange(6.0)).sum().backward()
    assert x.grad.tolist() == [[3.0, 3.0, 3.0, 12.0, 12.0, 12.0]] * 2


def test_channels_last_inputs_have_the_same_sums():
    x = random_weight(2, 6, 3, 4)
    assert torch.equal(sum_groups(x.to(memory_format=torch.channels_last), 3, 1), sum_groups(x, 3, 1))


@pytest.mark.parametrize("shape", [(0, 6), (4, 0)])
def test_groups_of_empty_outputs(shape):
    assert sum_groups(torch.empty(shape), 3).shape == shape


@pytest.mark.parametrize(("units", "gamma"), [(7, 2), (2, 3)])
def test_units_that_do_not_divide_are_an_error(units, gamma):
    with pytest.raises(ValueError, match=f"{units} units do not divide into groups of {gamma}"):
        sum_groups(torch.zeros(1, units), gamma)
