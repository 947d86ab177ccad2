import math

import pytest
import torch

from bio_lightning.functional import scale_grad, scaling_factor, target_rate, tetzlaff_change
from bio_lightning.functional.synaptic_scaling import MIN_RATE
from tests import reference
from tests.checks import assert_matches, assert_pure, floats, random_rates, random_weight

DTYPES = [torch.float32, torch.float64]
TARGETS = ["layer_mean", 0.3]
# Away from 1, and narrow enough that both bounds are hit by rates on (0, 1).
SETTINGS = {"strength": 0.7, "min": 0.75, "max": 1.5}
TWIN = {"strength": 0.7, "low": 0.75, "high": 1.5}


def wanted(rate, target):
    return reference.mean(floats(rate)) if target == "layer_mean" else target


# Multiplicative


def test_worked_example():
    rate = torch.tensor([0.1, 0.2, 0.3, 0.6, 0.0])
    assert floats(scaling_factor(rate, target=0.3, min=0.0, max=10.0)) == pytest.approx([3.0, 1.5, 1.0, 0.5, 10.0])
    assert floats(scaling_factor(rate, target=0.3)) == pytest.approx([2.0, 1.5, 1.0, 0.5, 2.0])


def test_worked_example_of_the_strength():
    rate = torch.tensor([0.05, 0.2, 0.8])
    assert floats(scaling_factor(rate, target=0.2, strength=0.5)) == pytest.approx([2.0, 1.0, 0.5])


def test_worked_example_of_the_gradient():
    grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    scaled = scale_grad(grad, torch.tensor([0.1, 0.3]))  # mean 0.2: factors 2 and 2/3, one per row
    assert floats(scaled) == pytest.approx([2.0, 4.0, 2.0, 8.0 / 3.0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_scaling_factor_matches_the_reference(target, dtype):
    rate = random_rates(200, dtype=dtype)
    factor = scaling_factor(rate, target=target, **SETTINGS)
    assert (factor.dtype, factor.shape) == (dtype, rate.shape)
    expected = [reference.scaling_factor(a, wanted(rate, target), **TWIN) for a in floats(rate)]
    assert_matches(factor, expected)
    assert min(expected) == 0.75
    assert max(expected) == 1.5
    assert any(0.75 < value < 1.5 for value in expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (6, 5, 3, 3)])
def test_scale_grad_matches_the_reference(shape, target, dtype):
    grad, rate = random_weight(*shape, dtype=dtype), random_rates(6, dtype=dtype)
    scaled = scale_grad(grad, rate, target=target, **SETTINGS)
    assert (scaled.dtype, scaled.shape) == (dtype, grad.shape)
    rows = reference.scale_grad(
        grad.flatten(1).tolist(), floats(rate), target=None if target == "layer_mean" else target, **TWIN
    )
    assert_matches(scaled, [value for row in rows for value in row])


def test_scale_grad_of_a_bias_scales_every_neuron():
    grad, rate = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.1, 0.2, 0.4])
    assert floats(scale_grad(grad, rate, target=0.2)) == pytest.approx([2.0, 1.0, 0.5])


@pytest.mark.parametrize("dtype", DTYPES)
def test_target_rate_is_the_mean_or_the_number(dtype):
    rate = random_rates(30, dtype=dtype)
    assert_matches(target_rate(rate, "layer_mean"), [reference.mean(floats(rate))])
    assert_matches(target_rate(rate, 0.37), [0.37])
    assert target_rate(rate, 0.37).dtype == dtype


def test_quiet_neurons_learn_faster_and_loud_ones_slower():
    rate = torch.linspace(0.01, 0.99, 50)
    factor = scaling_factor(rate, target=0.5, min=0.0, max=1000.0)
    assert bool((factor.diff() < 0).all())
    assert bool(((factor > 1) == (rate < 0.5)).all())


def test_strength_is_the_exponent():
    rate = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    once = scaling_factor(rate, target=0.5, min=0.0, max=1000.0)
    cubed = scaling_factor(rate, target=0.5, strength=3.0, min=0.0, max=1000.0)
    assert_matches(cubed, floats(once * once * once))


def test_the_rates_in_the_ratio_are_at_least_a_thousandth():
    rate = torch.tensor([0.0, 1e-6, 1e-3, 2e-3], dtype=torch.float64)
    assert MIN_RATE == reference.SMALLEST_RATE == 1e-3
    expected = [0.5 / 1e-3, 0.5 / 1e-3, 0.5 / 1e-3, 0.5 / 2e-3]
    assert_matches(scaling_factor(rate, target=0.5, min=0.0, max=1e6), expected)
    assert_matches(scaling_factor(rate, target=1e-9, min=0.0, max=1e6), [1.0, 1.0, 1.0, 0.5])


@pytest.mark.parametrize("target", TARGETS)
def test_neutral_settings_change_no_bit(target):
    grad, rate = random_weight(6, 5, dtype=torch.float32), random_rates(6, dtype=torch.float32)
    assert torch.equal(scale_grad(grad, rate, target=target, strength=0.0), grad)
    assert torch.equal(scale_grad(grad, rate, target=target, min=1.0, max=1.0), grad)


@pytest.mark.parametrize("value", [0.0, 1e-5, 0.25, 1.0])
def test_a_layer_of_equal_rates_is_left_alone(value):
    grad = random_weight(6, 5, dtype=torch.float32)
    assert torch.equal(scale_grad(grad, torch.full((6,), value)), grad)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_empty_layers(shape):
    assert scale_grad(torch.empty(shape), random_rates(shape[0])).shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_gradient_keeps_its_dtype(dtype):
    grad, rate = random_weight(6, 5, dtype=dtype), random_rates(6, dtype=torch.float32)
    scaled = scale_grad(grad, rate, **SETTINGS)
    assert scaled.dtype == dtype
    assert_matches(scaled, floats(scale_grad(grad.double(), rate.double(), **SETTINGS)), 0.01)


def test_nothing_is_modified():
    grad, rate = random_weight(6, 5), random_rates(6)
    assert_pure(lambda g, a: scale_grad(g, a, **SETTINGS), grad, rate)
    assert_pure(lambda a: scaling_factor(a, **SETTINGS), rate)


# Tetzlaff


def test_worked_example_of_tetzlaff():
    weight = torch.tensor([2.0, -2.0, 1.0, -1.0])
    rate = torch.tensor([0.1, 0.1, 0.5, 0.5])
    change = tetzlaff_change(weight, rate, target=0.3, step_size=0.1, max_change=1.0)
    # Too quiet: excitation grows and inhibition shrinks. Too loud: the other way round.
    assert floats(change) == pytest.approx([0.08, 0.08, -0.02, -0.02])


def test_worked_example_of_the_largest_change():
    weight = torch.tensor([2.0, -2.0, 0.01])
    change = tetzlaff_change(weight, torch.tensor(0.1), target=0.3, step_size=1.0, max_change=0.1)
    assert floats(change) == pytest.approx([0.2, 0.2, 0.2 * 0.0001])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_change", [0.05, 1.0])
def test_tetzlaff_matches_the_reference(max_change, dtype):
    weight, rate = random_weight(20, 15, dtype=dtype), random_rates(20, 1, dtype=dtype)
    change = tetzlaff_change(weight, rate, target=0.4, step_size=0.3, max_change=max_change)
    assert (change.dtype, change.shape) == (dtype, weight.shape)
    settings = {"step_size": 0.3, "max_change": max_change}
    pairs = zip(floats(weight), floats(rate.expand(20, 15)), strict=True)
    expected = [reference.tetzlaff_change(w, a, 0.4, **settings) for w, a in pairs]
    assert_matches(change, expected)
    clamped = [math.isclose(abs(d), max_change * abs(w)) for d, w in zip(expected, floats(weight), strict=True)]
    assert any(clamped) == (max_change == 0.05)
    assert not all(clamped)


def test_the_default_limit_is_one_percent_of_the_weight():
    weight = torch.tensor([4.0, -4.0], dtype=torch.float64)
    assert_matches(tetzlaff_change(weight, torch.tensor(0.0), target=1.0, step_size=9.0), [0.04, 0.04])


def test_a_target_may_differ_per_neuron():
    weight = torch.ones(2, 2, dtype=torch.float64)
    rate, target = torch.tensor([[0.25], [0.25]]), torch.tensor([[0.25], [0.5]])
    change = tetzlaff_change(weight, rate, target=target, step_size=1.0, max_change=1.0)
    assert_matches(change, [0.0, 0.0, 0.25, 0.25])


def test_tetzlaff_leaves_alone_what_it_has_no_reason_to_change():
    weight, rate = random_weight(6, 5), random_rates(6, 1)
    nothing = torch.zeros(6, 5, dtype=torch.float64)
    assert torch.equal(tetzlaff_change(weight, rate, target=0.4, step_size=0.0), nothing)
    assert torch.equal(tetzlaff_change(weight, rate, target=0.4, step_size=1.0, max_change=0.0), nothing)
    assert torch.equal(tetzlaff_change(weight, rate, target=rate, step_size=1.0), nothing)
    assert torch.equal(tetzlaff_change(nothing, rate, target=0.4, step_size=1.0), nothing)
    assert tetzlaff_change(torch.empty(0, 5), torch.empty(0, 1), target=0.4, step_size=1.0).shape == (0, 5)


def test_no_change_can_flip_the_sign_of_a_weight():
    weight = random_weight(20, 15)
    new = weight + tetzlaff_change(weight, torch.tensor(0.9), target=0.1, step_size=1e6, max_change=1.0)
    assert bool((new * weight >= 0).all())


def test_tetzlaff_modifies_nothing():
    assert_pure(lambda w, a: tetzlaff_change(w, a, target=0.4, step_size=0.3), random_weight(6, 5), random_rates(6, 1))
