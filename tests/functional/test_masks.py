"""How many a mask has, in every type that a mask may have."""

import pytest
import torch

from bio_lightning.functional._masks import count, greater, less, surplus

NUMBERS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", NUMBERS)
def test_ones_of_either_sign_are_counted(dtype):
    values = (torch.arange(9_003) % 7 - 2).to(dtype).view(3, -1)  # beyond what half precision counts to
    signs = values.sign()
    positive, negative = int((values > 0).sum()), int((values < 0).sum())
    assert count(greater(values, 0)).item() == count(values > 0).item() == positive
    assert count(less(values, 0)).item() == negative
    assert count(signs).item() == positive + negative
    assert surplus(signs).item() == positive - negative == -surplus(-signs).item() == 2571


def test_nothing_has_none():
    assert count(torch.empty(0)) == surplus(torch.empty(0)) == 0


@pytest.mark.parametrize("function", [count, surplus])
def test_more_than_float32_counts_to(function):
    ones = torch.ones(1).expand((1 << 24) + 3)
    assert function(ones).item() == len(ones)
