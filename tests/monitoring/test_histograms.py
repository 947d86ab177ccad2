"""Histograms against numpy, and what has none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bio_lightning.monitoring.histograms import BINS, histograms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_numpy_counts(dtype):
    rng = np.random.default_rng(0)
    tensors = {
        "a": torch.tensor(rng.normal(size=(30, 40)), dtype=dtype),
        "b": torch.tensor(rng.gamma(2.0, size=999), dtype=dtype),
    }
    for name, found in histograms(tensors).items():
        values = tensors[name].numpy().ravel().astype(np.float64)
        counts, edges = np.histogram(values, BINS)
        assert np.allclose(found.edges, edges, atol=1e-12)
        # a value within rounding of a border may lie on either side
        assert np.abs(np.cumsum(found.counts) - np.cumsum(counts)).max() <= 2
        assert sum(found.counts) == values.size
        assert found.total == pytest.approx(values.sum(), rel=1e-6)
        assert found.squares == pytest.approx((values**2).sum(), rel=1e-6)


def test_whole_numbers_and_half_precision():
    ages = torch.tensor([0, 5, 10, 10], dtype=torch.int32)
    assert histograms({"age": ages}, bins=2)["age"].counts == [1, 3]
    half = torch.tensor([0.0, 0.25, 1.0], dtype=torch.bfloat16)
    assert histograms({"half": half}, bins=4)["half"].counts == [1, 1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_counted_in_full(dtype):
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert histograms({"a": values}) == histograms({"a": values.to(torch.float32)})


def test_one_value_has_a_bin_of_some_width():
    (found,) = histograms({"a": torch.full((3, 3), 2.0)}, bins=4).values()
    assert sum(found.counts) == 9
    assert found.edges[0] < 2 < found.edges[-1]
    assert (found.total, found.squares) == (18, 36)


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([0.0, 1e-40, 5e-39]),
        torch.tensor([0.0, 1e-37, 5e-39]),
        torch.tensor([0.0, 1e-38], dtype=torch.bfloat16),
        torch.tensor([0.0, 5e-324], dtype=torch.float64),
    ],
)
def test_the_smallest_numbers_have_one(values):
    assert sum(histograms({"a": values})["a"].counts) == values.numel()


def test_a_range_that_overflows_has_none():
    assert histograms({"a": torch.tensor([-1e308, 0.0, 1e308], dtype=torch.float64)}) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_without_finite_values_there_is_none(value):
    tensors = {"bad": torch.tensor([1.0, value]), "good": torch.tensor([1.0, 2.0]), "empty": torch.empty(0)}
    assert set(histograms(tensors)) == {"good"}
    assert histograms({"empty": torch.empty(0)}) == {}


def test_multiplier_of_a_neuron_counts_for_every_synapse():
    assert sum(histograms({"a": torch.tensor([[0.5], [2.0]]).expand(2, 7)})["a"].counts) == 14
