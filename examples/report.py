"""Table and picture of plain and bio runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from runs import Run

__all__ = ["ROWS", "save_figure", "table"]

#: Rows of the table, with the number of decimals.
ROWS = {
    "train loss": 4,
    "train accuracy": 4,
    "test loss": 4,
    "test accuracy": 4,
    "multiplier std": 3,
    "multiplier min": 3,
    "multiplier max": 3,
    "turnover (share of synapses)": 3,
    "crystallized share": 3,
    "Dale violations corrected": 0,
    "time per step (ms)": 2,
}
#: Okabe and Ito's colours, told apart with every kind of colour vision.
COLOURS = {"plain": "#56606b", "bio": "#d55e00"}

STYLE = {
    "font.size": 15,
    "axes.titlesize": 17,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 2.5,
    "legend.frameon": False,
    "legend.fontsize": 17,
}


def table(plain: Sequence[Run], bio: Sequence[Run]) -> str:
    """Markdown table of both; mean ± standard deviation where there are several seeds."""
    rows = [(name, _cell(plain, name, digits), _cell(bio, name, digits)) for name, digits in ROWS.items()]
    rows = [("", "plain", "bio"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"| {name:<{widths[0]}} | {first:>{widths[1]}} | {second:>{widths[2]}} |" for name, first, second in rows]
    rule = f"|{'-' * (widths[0] + 2)}|{'-' * (widths[1] + 1)}:|{'-' * (widths[2] + 1)}:|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _cell(runs: Sequence[Run], row: str, digits: int) -> str:
    values = [run.statistics[row] for run in runs if row in run.statistics]
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def save_figure(path: Path, plain: Sequence[Run], bio: Sequence[Run], title: str) -> None:
    """Draw learning curves, weights and multipliers into one PNG of 1600x900 pixels."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(16, 9), dpi=100, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.2, h_pad=0.15)
        losses, accuracies, weights, multipliers = figure.subplots(2, 2).flat
        _draw_curves(losses, plain, bio, lambda run: run.train_losses)
        losses.set(title="Training loss", xlabel="step", ylabel="cross-entropy", yscale="log")
        losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        losses.yaxis.set_major_formatter("{x:g}")
        losses.yaxis.set_minor_formatter(NullFormatter())
        _draw_curves(accuracies, plain, bio, lambda run: run.test_accuracies)
        accuracies.set(title="Test accuracy", xlabel="step", ylabel="share correct")
        _draw_weights(weights, plain, bio)
        _draw_multipliers(multipliers, bio)
        figure.suptitle(title, x=0.015, ha="left", fontsize=19)
        figure.legend(*losses.get_legend_handles_labels(), loc="upper right", ncols=2, borderaxespad=0.2)
        figure.savefig(path)


def _draw_curves(axes: Axes, plain: Sequence[Run], bio: Sequence[Run], curve: Callable[[Run], list[float]]) -> None:
    """Mean over seeds, and a band from the smallest to the largest."""
    for name, runs in (("plain", plain), ("bio", bio)):
        curves = np.array([curve(run) for run in runs])
        axes.plot(runs[0].steps, curves.mean(axis=0), color=COLOURS[name], label=name)
        axes.fill_between(runs[0].steps, curves.min(axis=0), curves.max(axis=0), color=COLOURS[name], alpha=0.2, lw=0)


def _draw_weights(axes: Axes, plain: Sequence[Run], bio: Sequence[Run]) -> None:
    """All weights of all layers and seeds."""
    values = {name: _joined([run.weights for run in runs]) for name, runs in (("plain", plain), ("bio", bio))}
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins=101)
    for name, weights in values.items():
        axes.hist(weights, edges, density=True, histtype="stepfilled", color=COLOURS[name], alpha=0.12)
        axes.hist(weights, edges, density=True, histtype="step", lw=2, color=COLOURS[name])
    axes.set(title="Weights after training, all layers", xlabel="weight", ylabel="density", yscale="log")


def _draw_multipliers(axes: Axes, bio: Sequence[Run]) -> None:
    """One ridge per layer, the first on top."""
    axes.set_title("Plasticity after training, by layer")
    layers = list(bio[0].multipliers)
    if not layers:
        axes.text(0.5, 0.5, "no mechanism in this config\nkeeps multipliers", ha="center", va="center", color="#444444")
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
        return
    values = [_joined([{name: run.multipliers[name]} for run in bio]) for name in layers]
    edges = np.linspace(0.0, 1.3 * max(layer.max(initial=1.0) for layer in values), 121)
    for row, (name, layer) in enumerate(zip(layers, values, strict=True)):
        counts = np.histogram(layer, edges)[0]
        height = 0.85 * counts / max(1, counts.max())
        axes.stairs(height - row, edges, baseline=-row, fill=True, color=COLOURS["bio"], alpha=0.6)
        label = name.removeprefix("network.").removesuffix(".weight")
        axes.text(0.99 * edges[-1], 0.1 - row, label, ha="right", fontsize=min(15, 110 / len(layers)), color="#333333")
    axes.axvline(1.0, color=COLOURS["plain"], ls="--", lw=2)
    axes.set(xlabel="multiplier of a synapse's learning rate (dashed: plain)", xlim=(0, edges[-1]))
    axes.set(ylim=(0.9 - len(layers), 1), yticks=-np.arange(len(layers)), yticklabels=[])
    axes.tick_params(axis="y", length=0)


def _joined(runs: Sequence[dict[str, Tensor]]) -> np.ndarray:
    """All values in one array, without those of a run that diverged."""
    values = torch.cat([tensor.flatten() for tensors in runs for tensor in tensors.values()])
    return values[values.isfinite()].numpy()
