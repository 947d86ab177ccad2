"""What figures show, and what happens without matplotlib."""

from __future__ import annotations

import sys

import pytest
import torch

from bio_lightning import BioConfigError, BioMonitor, bio_callbacks
from bio_lightning.monitoring.figures import Snapshot, balance, density, figures, overview, turnover


def snapshot(**changes):
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(20, 30, generator=generator) for name in ("first", "second")}
    full = Snapshot(
        weights,
        {name: 1 + 0.1 * weight for name, weight in weights.items()},
        {"first": (0.3, 0.1), "second": (0.2, 0.4)},
        {"first": [(9, 0.1), (19, 0.2)], "second": [(9, 0.0), (19, 0.4)]},
    )
    return full._replace(**changes)


def test_density_has_a_panel_per_layer_that_counts_every_synapse():
    found = snapshot()
    panels = density(found.weights, found.multipliers).axes
    assert [axes.get_title("left") for axes in panels] == ["first", "second"]
    for axes in panels:
        (cells,) = axes.collections
        assert cells.get_array().sum() == 600


def test_what_is_not_finite_is_not_drawn():
    weights = {"a": torch.tensor([1.0, float("nan"), 2.0, float("inf")])}
    (axes,) = density(weights, {"a": torch.ones(4)}).axes
    assert axes.collections[0].get_array().sum() == 2
    for empty in ({"a": torch.full((3,), float("nan"))}, {"a": torch.empty(0)}):
        (axes,) = density(empty, {"a": torch.ones_like(empty["a"])}).axes
        assert axes.texts[0].get_text() == "nothing to show"


def test_large_layers_are_thinned_alike():
    weights = torch.arange(1_000_000.0)
    (axes,) = density({"a": weights}, {"a": weights}).axes
    assert axes.collections[0].get_array().sum() == 50_000
    offsets = axes.collections[0].get_offsets()
    assert abs(offsets[:, 0] - offsets[:, 1]).max() < 1e-3 * 1_000_000 + 1e5


def test_turnover_has_a_line_per_layer():
    (axes,) = turnover(snapshot().turnover).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {"first": [[9, 0.1], [19, 0.2]], "second": [[9, 0.0], [19, 0.4]]}


def test_balance_has_a_pair_of_bars_per_layer():
    (axes,) = balance(snapshot().balance).axes
    excitation, inhibition = ([bar.get_width() for bar in bars] for bars in axes.containers)
    assert excitation == [0.3, 0.2]
    assert inhibition == [-0.1, -0.4]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]


def test_overview_shows_all_four():
    titles = [axes.get_title("left") for axes in overview(snapshot()).axes]
    assert titles == ["Multipliers of the learning rate", "Weight against multiplier, all layers",
                      "Turnover: synapses replaced, as a share of all", "Excitation and inhibition"]  # fmt: skip


def test_without_mechanisms_there_is_something_to_show_all_the_same():
    found = figures(snapshot(multipliers={}, turnover={}))
    assert set(found) == {"bio/figures/overview", "bio/figures/excitation_and_inhibition"}
    (axes,) = found["bio/figures/overview"].axes
    assert axes.get_title("left") == "Excitation and inhibition"


def test_without_matplotlib_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    with pytest.raises(
        BioConfigError, match=r"figure_every_n_epochs: got 2; .*pip install \"bio_lightning\[figures\]\""
    ):
        BioMonitor(figure_every_n_epochs=2)
    with pytest.raises(BioConfigError, match=r"^bio_monitor\.figure_every_n_epochs: got 2"):
        bio_callbacks("default", ["bio_monitor.figure_every_n_epochs=2"])
    assert BioMonitor().figure_every_n_epochs is None
