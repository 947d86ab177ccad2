"""An event against what it says of itself: weights, counts and what is kept of changed synapses."""

import pytest
import torch

from bio_lightning.events import MEAN, ONE, ZERO, Change, Kept, change_weight, draw, number_of, silence
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
    counted = change_weight(
        Change(Rule(_negated, (("limit", 0.7),))),
        weight,
        Layout(weight),
        kept=(Kept(first, ZERO), Kept(second, MEAN), Kept(ones, ONE)),
        compiled=compiled,
    )
    changed = before[0].abs() > 0.7
    assert 0 < changed.sum() < 30
    assert int(number_of(counted, weight)) == changed.sum()
    assert not counted[1].isnan()
    assert torch.equal(weight, -before[0])
    for kept, old, value in ((first, before[1], 0.0), (second, before[2], before[2].mean()), (ones, before[3], 1.0)):
        assert torch.allclose(kept[changed], torch.as_tensor(value).expand(int(changed.sum())), atol=1e-6)
        assert torch.equal(kept[~changed], old[~changed])


@pytest.mark.parametrize("compiled", [False, True])
def test_a_weight_that_is_nan_shows_and_leaves_the_count(compiled):
    change = Change(Rule(_negated, (("limit", 0.7),)))
    for values, number in (((torch.nan,), 0), ((torch.inf,), 1), ((torch.inf, -torch.inf), 2), ((torch.nan, 2.0), 1)):
        weight = torch.full((6, 5), 0.5)
        weight[4, : len(values)] = torch.tensor(values)
        counted = change_weight(change, weight, Layout(weight), compiled=compiled)
        assert counted[1].isnan() or torch.nan not in values
        assert not counted[1].isnan() or values != (torch.inf,)
        assert int(number_of(counted, weight)) == number


@pytest.mark.parametrize("compiled", [False, True])
def test_silence_leaves_nan_to_be_found(compiled):
    weight, mask = torch.ones(3, 4), torch.tensor([[True, True, False, False]])
    weight[1, 0] = weight[2, 3] = torch.nan
    counted = change_weight(silence(mask), weight, Layout(weight), compiled=compiled)
    assert int(number_of(counted, weight)) == 5
    assert weight.isnan().nonzero().tolist() == [[1, 0], [2, 3]]
    assert weight.nan_to_num().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0]]


@pytest.mark.parametrize("compiled", [False, True])
def test_half_precision_is_brought_to_mean_one_but_for_rounding(compiled):
    torch.manual_seed(0)
    weight, multiplier = torch.randn(64, 64), torch.rand(64, 64).mul_(2).to(torch.bfloat16)
    kept = Kept(multiplier, Form(factor=Rule(_uniform)), noise=Noise(1, 2, 3), has_mean_one=True)
    change_weight(Change(Rule(_negated, (("limit", 2.0),))), weight, Layout(weight), kept=[kept], compiled=compiled)
    assert multiplier.double().mean().item() == pytest.approx(1.0, abs=1e-4)


def _uniform(block: Block):
    return 2.0 * block.draw.uniform(block.weight)


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
