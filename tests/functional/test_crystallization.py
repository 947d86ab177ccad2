import math

import pytest
import torch

from bio_lightning.functional import crystallize, frequently_used, settled_or_strong
from tests import reference
from tests.checks import assert_matches, assert_pure, floats, random_rates, random_weight

DTYPES = [torch.float32, torch.float64]
# Settings at which every term decides something.
SETTINGS = {"dampening_factor": 0.6, "floor": 0.25, "recovery": 0.3}
NEVER = {"dampening_factor": 1.0, "recovery": 0.0}


# Which synapses


def test_worked_example():
    weight = torch.tensor([1.0, -1.0, 2.0, -2.0, 4.0])  # mean size 2
    grad = torch.tensor([0.05, -0.15, 0.15, 2.5, -2.0])
    hit = settled_or_strong(weight, grad, crystal_thresh=0.1)
    # Well optimised, neither, well optimised, strong, neither (2.0 is no more than the mean).
    assert hit.tolist() == [True, False, True, True, False]


def test_the_default_threshold():
    weight = torch.ones(2, dtype=torch.float64)
    assert settled_or_strong(weight, torch.tensor([4.4e-5, 4.6e-5]).double()).tolist() == [True, False]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ignore_zero_grad", [True, False])
def test_settled_or_strong_matches_the_reference(ignore_zero_grad, dtype):
    weight = random_weight(20, 15, dtype=dtype)
    grad = random_weight(20, 15, seed=1, dtype=dtype)
    grad[::3] *= 0.1
    grad[::4] = 0.0
    weight[1, ::4] = 0.0
    settings = {"crystal_thresh": 0.2, "ignore_zero_grad": ignore_zero_grad}
    hit = settled_or_strong(weight, grad, **settings)
    assert (hit.dtype, hit.shape) == (torch.bool, weight.shape)
    expected = reference.settled_or_strong(floats(weight), floats(grad), **settings)
    assert_matches(hit, expected)
    assert 0.1 < reference.mean(expected) < 0.9


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ignore_zero_grad", [True, False])
def test_a_gradient_that_is_not_finite_never_crystallizes(bad, ignore_zero_grad):
    weight = torch.tensor([1.0, 1.0, 0.0])
    grad = torch.tensor([bad, 5.0, bad])
    hit = settled_or_strong(weight, grad, crystal_thresh=1e9, ignore_zero_grad=ignore_zero_grad)
    assert hit.tolist() == [False, True, False]


def test_a_zero_gradient_crystallizes_only_on_request():
    weight = torch.tensor([1.0, -1.0, 0.0])
    grad = torch.tensor([0.0, -0.0, 0.0])
    assert settled_or_strong(weight, grad).tolist() == [False, False, False]
    assert settled_or_strong(weight, grad, ignore_zero_grad=False).tolist() == [True, True, False]


def test_a_layer_of_zeros_has_no_strong_signals():
    grad = torch.tensor([0.0, 1e-9, 3.0, -3.0])
    assert not settled_or_strong(torch.zeros(4), grad, ignore_zero_grad=False).any()


def test_only_strong_signals_without_a_threshold():
    weight, grad = random_weight(100), random_weight(100, seed=1) * 2.0
    hit = settled_or_strong(weight, grad, crystal_thresh=0.0)
    assert torch.equal(hit, grad.abs() > weight.abs().mean())


def test_the_rule_does_not_depend_on_scale_or_sign():
    weight, grad = random_weight(300), random_weight(300, seed=1)
    hit = settled_or_strong(weight, grad, crystal_thresh=0.3)
    assert torch.equal(settled_or_strong(weight * 2.0**-9, grad * 2.0**-9, crystal_thresh=0.3), hit)
    assert torch.equal(settled_or_strong(-weight, grad, crystal_thresh=0.3), hit)
    assert torch.equal(settled_or_strong(weight, -grad, crystal_thresh=0.3), hit)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_layers(shape):
    empty = torch.empty(shape)
    assert settled_or_strong(empty, empty).shape == shape
    assert crystallize(empty, empty.bool()).shape == shape


@pytest.mark.parametrize("ignore_zero_grad", [True, False])
def test_compiled_code_judges_alike(monkeypatch, ignore_zero_grad):
    special = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, 1e-9, 0.3, -3.0])
    grad, weight = special.repeat(6), torch.tensor([0.0, 1e-45, 0.01, -0.5, 2.0, math.inf]).repeat_interleave(9)
    crystal = torch.linspace(0.1, 1.0, 54)
    settings = {"crystal_thresh": 0.7, "ignore_zero_grad": ignore_zero_grad, "average": torch.tensor([0.4])}

    def judged():
        mask = settled_or_strong(weight, grad, **settings)
        return [mask, crystallize(crystal, mask, **SETTINGS), crystallize(crystal, mask.float(), **SETTINGS)]

    eager = judged()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = judged()
    assert 10 < eager[0].sum() < 44
    assert torch.equal(eager[0], compiled[0])
    assert torch.equal(eager[1], eager[2])
    assert torch.allclose(eager[1], compiled[1], rtol=1e-6, atol=0)
    assert torch.equal(compiled[1], compiled[2])


# By use


def test_worked_example_of_use():
    pre = torch.tensor([[0.1, 0.2, 0.9]])  # mean 0.4: above 0.6 only the last
    post = torch.tensor([[0.7], [0.1]])  # mean 0.4: above 0.6 only the first
    assert frequently_used(pre, post).tolist() == [[False, False, True], [False, False, False]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("use_thresh", [0.5, 1.0, 1.5])
def test_frequently_used_matches_the_reference(use_thresh, dtype):
    pre, post = random_rates(1, 12, dtype=dtype), random_rates(10, 1, seed=1, dtype=dtype)
    rows = reference.frequently_used(floats(pre), floats(post), use_thresh)
    used = frequently_used(pre, post, use_thresh=use_thresh)
    assert used.tolist() == rows
    assert 0.0 < used.float().mean() < 1.0


def test_silent_layers_are_not_used():
    silent, loud = torch.zeros(1, 4), torch.tensor([[0.9], [0.1]])
    assert not frequently_used(silent, loud).any()
    assert not frequently_used(loud.T, silent.T).any()


# What it does to c


def test_worked_example_of_the_rigidity():
    crystal = torch.tensor([1.0, 0.3, 0.5, 1.0])
    hit = torch.tensor([True, True, False, False])
    # 1 * 0.6; 0.3 * 0.6 is below the floor; half of what is lost comes back; nothing is lost.
    assert floats(crystallize(crystal, hit, floor=0.25, recovery=0.5)) == pytest.approx([0.6, 0.25, 0.75, 1.0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_crystallize_matches_the_reference(dtype):
    crystal = (1.0 - random_rates(20, 15)).to(dtype)
    hit = random_weight(20, 15) > 0
    new = crystallize(crystal, hit, **SETTINGS)
    assert (new.dtype, new.shape) == (dtype, crystal.shape)
    expected = [reference.crystallize(c, h, **SETTINGS) for c, h in zip(floats(crystal), floats(hit), strict=True)]
    assert_matches(new, expected)
    assert 0.25 in expected


def test_the_defaults_match_the_reference():
    crystal, hit = torch.tensor([1.0, 0.06, 0.5], dtype=torch.float64), torch.tensor([True, True, False])
    assert_matches(crystallize(crystal, hit), [0.6, 0.05, 0.505])


def test_outside_the_mask_nothing_changes_without_recovery():
    crystal, hit = random_rates(100, dtype=torch.float32), random_weight(100) > 0
    new = crystallize(crystal, hit, dampening_factor=0.5, floor=0.01, recovery=0.0)
    assert torch.equal(new[~hit], crystal[~hit])
    assert bool((new[hit] != crystal[hit]).all())


def test_neutral_settings_change_no_bit():
    crystal = random_rates(100, dtype=torch.float32).clamp(min=0.05)
    assert torch.equal(crystallize(crystal, random_weight(100) > 0, **NEVER), crystal)
    assert torch.equal(crystallize(torch.ones(100), torch.zeros(100, dtype=torch.bool)), torch.ones(100))


def test_repeated_hits_end_at_the_floor_and_rest_brings_plasticity_back():
    crystal, always, never = torch.ones(3), torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    for _ in range(20):
        crystal = crystallize(crystal, always, **SETTINGS)
    assert torch.equal(crystal, torch.full((3,), 0.25))
    for _ in range(10):
        crystal = crystallize(crystal, never, **SETTINGS)
    assert floats(crystal) == pytest.approx([1.0 - 0.75 * 0.7**10] * 3)


def test_rigidity_stays_between_floor_and_one():
    generator = torch.Generator().manual_seed(0)
    crystal = torch.ones(200)
    for _ in range(200):
        crystal = crystallize(crystal, torch.rand(200, generator=generator) < 0.5, **SETTINGS)
        assert crystal.min() >= 0.25
        assert crystal.max() <= 1.0


def test_a_value_below_the_floor_is_raised_only_when_hit():
    old = torch.tensor([0.1, 0.1])
    assert floats(crystallize(old, torch.tensor([True, False]), floor=0.25, recovery=0.0)) == pytest.approx([0.25, 0.1])


def test_nothing_is_modified():
    weight, grad = random_weight(6, 5), random_weight(6, 5, seed=1)
    assert_pure(settled_or_strong, weight, grad)
    assert_pure(frequently_used, random_rates(1, 5), random_rates(6, 1))
    assert_pure(lambda crystal, hit: crystallize(crystal, hit, **SETTINGS), random_rates(6, 5), weight > 0)
