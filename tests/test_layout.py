"""A weight as a matrix in memory order: every element keeps its logical index, whatever its strides."""

import pytest
import torch

from bio_lightning.functional import Noise, element_index
from bio_lightning.layout import Layout

WEIGHTS = {
    "linear": torch.empty(5, 7),
    "conv": torch.empty(6, 4, 3, 2),
    "channels_last": torch.empty(6, 4, 3, 2).to(memory_format=torch.channels_last),
    "transposed": torch.empty(7, 5).t(),
    "one column": torch.empty(5, 1),
    "one row": torch.empty(1, 5),
    "pointwise": torch.empty(6, 4, 1, 1).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_index_is_the_logical_one(weight):
    layout = Layout(weight)
    row, column = layout.index
    assert (row.dtype, column.dtype) == (torch.int32, torch.float32)
    index = row.unsqueeze(1) + column.to(torch.int32)
    assert torch.equal(index, layout.matrix(element_index(weight.shape).to(torch.int32)))
    assert torch.equal(layout.flat_index, index.flatten().to(torch.float32))
    drawn = Noise(1, 2, 3).at(index).uniform(weight)
    assert torch.equal(drawn, layout.matrix(Noise(1, 2, 3).uniform(weight)))


def test_an_index_that_float32_would_round_stays_whole():
    long = 1 << 24
    wide, narrow = (Layout(torch.empty(1, long + extra, dtype=torch.int8)) for extra in (2, 1))
    for layout, dtype in ((wide, torch.int32), (narrow, torch.float32)):
        for index in (layout.index[1], layout.flat_index):
            assert index.dtype == dtype
            assert index[long - 1 :].tolist() == list(range(long - 1, index.numel()))
    # the columns of the second row fit into float32, the indices of its elements do not
    tall = Layout(torch.empty(2, long, dtype=torch.int8))
    assert (tall.index[1].dtype, tall.flat_index.dtype) == (torch.float32, torch.int32)
    assert tall.flat_index[-1] == 2 * long - 1


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_a_matrix_reaches_the_tensor(weight):
    layout = Layout(weight)
    tensor = torch.zeros_like(weight)
    other = torch.zeros(weight.shape)  # contiguous, so for some weights the matrix is a copy
    for target in (tensor, other):
        matrix = layout.matrix(target)
        matrix += torch.arange(weight.numel()).view(matrix.shape)
        layout.write_back(target, matrix)
    assert tensor.unique().numel() == weight.numel()
    assert torch.equal(tensor, other)


def test_channels_last_is_no_copy():
    weight = WEIGHTS["channels_last"]
    assert Layout(weight).matrix(weight).data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("shape", [(6, 1, 1, 1), (1, 4, 1, 1), (6, 4, 1, 1), (1, 1, 1, 1), ()])
@pytest.mark.parametrize("name", ["conv", "channels_last"])
def test_operands_broadcast_as_against_the_weight(name, shape):
    weight, operand = WEIGHTS[name], torch.randn(shape)
    layout = Layout(weight)
    expected = layout.matrix(operand.expand(weight.shape).clone(memory_format=torch.preserve_format))
    assert torch.equal(layout.operand(operand).expand(expected.shape), layout.matrix(operand.expand(weight.shape)))
    both = torch.stack([operand, 2 * operand])
    assert torch.equal(layout.spread(both, 2), torch.stack([expected, 2 * expected]).flatten(1))
    assert torch.equal(layout.spread(both[:1], 2), torch.stack([expected, expected]).flatten(1))


def test_split_weights_have_a_row_per_synapse_and_neuron():
    weight, per_neuron = torch.empty(3, 5, 7), torch.randn(5, 1)
    layout = Layout(weight, leading=2)
    assert layout.matrix(weight).shape == (15, 7)
    assert torch.equal(layout.operand(per_neuron), per_neuron.repeat(3, 1))


def test_a_layout_knows_when_it_no_longer_fits():
    weight = WEIGHTS["conv"]
    layout = Layout(weight)
    assert layout.fits(weight)
    assert not layout.fits(WEIGHTS["channels_last"])
    assert not layout.fits(torch.empty(6, 4, 3, 3))


def test_rows_are_stacked_and_scattered():
    weights = [torch.randn(6, 4, 3, 2).to(memory_format=torch.channels_last) for _ in range(3)]
    layout, before = Layout(weights[0]), [weight.clone() for weight in weights]
    rows = layout.stack(weights)
    layout.scatter(rows * 2, weights)
    assert all(torch.equal(weight, 2 * old) for weight, old in zip(weights, before, strict=True))
