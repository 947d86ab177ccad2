"""An event against what it says of itself: weights, counts and what is kept of changed synapses."""

import pytest
import torch

from bio_lightning.events import MEAN, ONE, ZERO, Change, Kept, change_weight, draw, whole_number
from bio_lightning.functional.noise import Noise
from bio_lightning.kernels import Block, Form, Rule
from bio_lightning.layout import Layout


def _negated(block: Block, *, limit: float):
    return -block.weight, block.weight.abs() > limit


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("permuted", [False, True])
def test_everything_changes_where_the_rule_says_and_is_counted(monkeypatch, compiled, permuted):
    monkeypatch.setattr("bio_lightning.kernels.CHUNK", 12)  # two rows: several chunks
    torch.manual_seed(0)

    def tensor():
        made = torch.randn(6, 5)
        return made.t().contiguous().t() if permuted else made

    weight, first, second, ones = (tensor() for _ in range(4))
    before = [t.clone() for t in (weight, first, second, ones)]
    number = change_weight(
        Change(Rule(_negated, (("limit", 0.7),))),
        weight,
        Layout(weight),
        kept=(Kept(first, ZERO), Kept(second, MEAN), Kept(ones, ONE)),
        compiled=compiled,
    )
    changed = before[0].abs() > 0.7
    assert 0 < changed.sum() < 30
    assert number.item() == changed.sum().item()
    assert torch.equal(weight, -before[0])
    for kept, old, value in ((first, before[1], 0.0), (second, before[2], before[2].mean()), (ones, before[3], 1.0)):
        assert torch.allclose(kept[changed], torch.as_tensor(value).expand(int(changed.sum())), atol=1e-6)
        assert torch.equal(kept[~changed], old[~changed])


@pytest.mark.parametrize("compiled", [False, True])
def test_a_weight_that_is_nan_shows_in_the_count_and_an_infinite_one_does_not(compiled):
    change = Change(Rule(_negated, (("limit", 0.7),)))
    for value, seen in ((torch.inf, False), (torch.nan, True)):
        weight = torch.full((6, 5), 0.5)
        weight[4, 3] = value
        counted = change_weight(change, weight, Layout(weight), compiled=compiled)
        assert bool(counted.isnan()) == seen
        assert int(whole_number(counted, weight)) == (0 if seen else 1)


def _drawn(block: Block):
    return 1.0 + block.draw.uniform(block.weight) * block.weight


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("permuted", [False, True])
def test_what_is_drawn_sees_the_changed_weight_and_gets_mean_one(monkeypatch, compiled, permuted):
    monkeypatch.setattr("bio_lightning.kernels.CHUNK", 12)
    monkeypatch.setattr("bio_lightning.events.CHUNK", 12)
    torch.manual_seed(0)
    weight, multiplier = (torch.randn(5, 6).t() if permuted else torch.randn(6, 5) for _ in range(2))
    changed, old, after = weight.abs() > 0.7, multiplier.clone(), -weight
    kept = Kept(multiplier, Form(factor=Rule(_drawn)), noise=Noise(1, 2, 3), has_mean_one=True)
    change_weight(Change(Rule(_negated, (("limit", 0.7),))), weight, Layout(weight), kept=[kept], compiled=compiled)
    mixed = torch.where(changed, 1.0 + Noise(1, 2, 3).uniform(weight) * after, old)
    assert 0 < changed.sum() < 30
    assert torch.allclose(multiplier, mixed / mixed.mean(), rtol=1e-5)
    draw(kept, weight, Layout(weight))
    mixed = 1.0 + Noise(1, 2, 3).uniform(weight) * after
    assert torch.allclose(multiplier, mixed / mixed.mean(), rtol=1e-5)
