import pytest
import torch

from bio_lightning.functional._layer import (
    add_pieces,
    computing_dtype,
    mean,
    mean_abs,
    pieces,
    ratio,
    row,
    std,
)
from bio_lightning.functional._masks import count, greater
from tests import reference
from tests.checks import TOLERANCE, as_on_a_device, assert_pure, floats, random_weight

DTYPES = [torch.float32, torch.float64]
HALF = [torch.float16, torch.bfloat16]


def test_worked_example():
    x = torch.tensor([[1.0, -3.0], [4.0, 2.0]])
    assert mean(x).item() == 1.0
    assert mean_abs(x).item() == 2.5
    assert std(torch.tensor([1.0, 3.0, 1.0, 3.0])).item() == 1.0  # of the population, not of a sample


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_match_the_reference(dtype):
    x = random_weight(7, 11, dtype=dtype) + 0.3
    for function, twin in ((mean, reference.mean), (mean_abs, reference.mean_abs), (std, reference.std)):
        result = function(x)
        assert (result.dtype, result.shape) == (dtype, ())
        assert result.item() == pytest.approx(twin(floats(x)), rel=TOLERANCE[dtype])


def test_sums_are_taken_in_float64():
    x = torch.tensor([2.0**24, 1.0, 0.0, 0.0, 0.0])  # float32 has no 2^24 + 1; without the 1 the mean rounds down
    assert mean(x).item() == 3355443.5
    assert mean_abs(-x).item() == 3355443.5
    assert std(torch.tensor([2.0**24, 2.0**24 + 2.0])).item() == 1.0


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_averaged_in_float32(dtype):
    x = torch.full((4000,), 100.0, dtype=dtype)  # the sum is beyond float16
    assert computing_dtype(x) == torch.float32
    assert mean(x).dtype == torch.float32
    assert mean(x).item() == 100.0
    assert std(x).item() == 0.0


@pytest.mark.parametrize("function", [mean, mean_abs, std])
def test_an_empty_layer_has_statistic_zero(function):
    assert function(torch.empty(0, 3)).item() == 0.0


@pytest.mark.parametrize("at_zero", [0.0, 1.0])
def test_ratio_has_a_chosen_value_at_zero(at_zero):
    result = ratio(torch.tensor([0.0, 5.0, 6.0, 0.0]), torch.tensor([0.0, 0.0, 3.0, 2.0]), at_zero)
    assert floats(result) == [at_zero, at_zero, 2.0, 0.0]


def test_nothing_is_modified():
    x = random_weight(3, 4)
    assert_pure(lambda tensor: (mean(tensor), mean_abs(tensor), std(tensor), ratio(tensor, tensor, 1.0)), x)


@pytest.mark.parametrize("dtype", [*DTYPES, *HALF, torch.int32])
def test_large_tensors_add_up_piece_by_piece(dtype):
    x = (torch.arange(200_003) % 7 - 3).to(dtype).view(-1, 1).expand(-1, 2)
    assert len(pieces(x)) > 1
    assert torch.equal(torch.cat(pieces(x)), x.flatten())
    total, positive = add_pieces(lambda part: (part.sum(dtype=torch.float64), count(greater(part, 0))), x)
    assert total == x.double().sum().item()
    assert positive == int((x > 0).sum()) > 2**16


def test_sums_on_a_device_are_those_of_the_processor(monkeypatch):
    x = random_weight(700, 900, dtype=torch.float32)

    def sums(part):
        whole = part.to(torch.int64)
        return part.numel(), part.sum(dtype=torch.float64), count(greater(part, 0)), whole.sum()

    at_hand = add_pieces(sums, x)
    as_on_a_device(monkeypatch)
    assert len(pieces(x)) == 1
    elsewhere = add_pieces(sums, x)
    assert [type(number) for number in at_hand] == [float] * 4
    assert [type(number) for number in elsewhere] == [int, *[torch.Tensor] * 3]
    assert at_hand[0] == x.numel()
    assert [float(number) for number in elsewhere] == pytest.approx(at_hand, rel=1e-12)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_row_holds_numbers_of_any_kind_exactly(monkeypatch, elsewhere):
    if elsewhere:
        as_on_a_device(monkeypatch)
    for numbers in ([torch.tensor(3, dtype=torch.int32), 2**24 + 1, 0.1], [torch.tensor(0.5), torch.tensor(1.5)]):
        found = row(numbers, like=torch.ones(1))
        assert found.dtype == torch.float64
        assert found.tolist() == [float(number) for number in numbers]


def test_a_row_lies_where_the_tensor_does():
    x = torch.ones(3)
    with torch.device("meta"):  # the default of new tensors
        assert row(add_pieces(lambda part: (part.sum(),), x), like=x).device == x.device


def test_counts_nothing_that_is_not_a_number_or_not_there():
    assert count(greater(torch.tensor([float("nan"), 0.0, -1.0, 2.0]), 0)) == 1
    assert add_pieces(lambda part: (count(greater(part, 0)),), torch.empty(0)) == [0.0]
