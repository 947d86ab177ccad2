"""An event against what it says of itself: weights, counts, masks and what is kept of changed synapses."""

import pytest
import torch

from bio_lightning.events import change_weight
from bio_lightning.kernels import Block, Rule
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
    mask = torch.zeros_like(weight, dtype=torch.int32)
    count = change_weight(
        Rule(_negated, (("limit", 0.7),)),
        weight,
        Layout(weight),
        kept=((first, "zero"), (second, "mean"), (ones, "one")),
        mask=mask,
        compiled=compiled,
    )
    changed = before[0].abs() > 0.7
    assert 0 < changed.sum() < 30
    assert count.item() == changed.sum().item()
    assert torch.equal(mask.to(torch.bool), changed)
    assert torch.equal(weight, -before[0])
    for kept, old, value in ((first, before[1], 0.0), (second, before[2], before[2].mean()), (ones, before[3], 1.0)):
        assert torch.allclose(kept[changed], torch.as_tensor(value).expand(int(changed.sum())), atol=1e-6)
        assert torch.equal(kept[~changed], old[~changed])
