"""What is particular to the ratios of updates and of gradients to weights."""

import math

import pytest
import torch

from bio_lightning.metrics import GradientRatio, UpdateRatio


def test_update_is_relative_to_the_weights_before():
    metric = UpdateRatio()
    metric.update(before=torch.tensor([1.0]), after=torch.tensor([3.0]))
    assert metric.compute() == 2.0
    metric.reset()
    metric.update(before=torch.tensor([3.0]), after=torch.tensor([1.0]))
    assert metric.compute().item() == pytest.approx(2 / 3)


def test_large_layers_weigh_more():
    metric = GradientRatio()
    metric.update(torch.ones(99), torch.ones(99))
    metric.update(torch.zeros(1), torch.ones(1))
    assert metric.compute().item() == pytest.approx(0.99**0.5)


@pytest.mark.parametrize("ratio", [UpdateRatio, GradientRatio])
def test_zero_weights(ratio):
    still, moving = ratio(), ratio()
    still.update(torch.zeros(3), torch.zeros(3))
    assert still.compute() == 0.0
    zero, other = torch.zeros(3), torch.ones(3)
    moving.update(*((zero, other) if ratio is UpdateRatio else (other, zero)))
    assert moving.compute() == math.inf


def test_small_gradients_are_not_lost():
    metric = GradientRatio()
    metric.update(torch.full((4,), 1e-30), torch.full((4,), 1e-2))
    assert metric.compute().item() == pytest.approx(1e-28, rel=1e-6, abs=0.0)


@pytest.mark.parametrize(("size", "reference"), [(1e-12, 1e-3), (1e-9, 1e25), (3e18, 1.0), (0.1, 0.37)])
def test_many_values_of_any_size_count(size, reference):
    """Also where their squares, or the sum of these, are not in float32's range, or add up to one rounded way."""
    metric = GradientRatio()
    metric.update(torch.full((300_000,), size), torch.full((300_000,), reference))
    assert metric.compute().item() == pytest.approx(size / reference, rel=1e-6, abs=0.0)


def test_squares_beyond_half_precision():
    metric = GradientRatio()
    metric.update(torch.full((4,), 600.0, dtype=torch.float16), torch.full((4,), 300.0, dtype=torch.float16))
    assert metric.compute() == 2.0


def test_updates_beyond_half_precision():
    before = torch.tensor([4e4, 1.0], dtype=torch.float16)
    metric = UpdateRatio()
    metric.update(before, -before)  # the difference is beyond float16
    assert metric.compute().item() == pytest.approx(2.0)


@pytest.mark.parametrize("ratio", [UpdateRatio, GradientRatio])
def test_shapes_have_to_agree(ratio):
    with pytest.raises(ValueError, match=r"shapes: got \(3, 1\) and \(3,\)"):
        ratio().update(torch.ones(3, 1), torch.ones(3))


def test_squares_that_are_known_are_not_summed_again():
    before, after = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 6.0])
    metric = UpdateRatio()
    assert metric.observe(before, after) == metric.observe(before, after, reference=25.0)
    assert list(metric.observe(before, after, reference=100.0).values()) == [[4.0, 100.0]]
