"""Pictures of the synapses; matplotlib is needed here alone."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bio_lightning.errors import BioConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Snapshot", "balance", "density", "figures", "overview", "require_matplotlib", "turnover"]

#: Okabe and Ito's colours, told apart with every kind of colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b2a500")
_EXCITATION, _INHIBITION = COLOURS[1], COLOURS[0]
#: Points of a layer that a density is drawn from, evenly chosen; more cannot be told apart.
_POINTS = 50_000
_NOTHING = "nothing to show"
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "font.size": 9,
}

Points = Sequence[tuple[int, float]]


class Snapshot(NamedTuple):
    """What figures are drawn from.

    Args:
        weights: By layer.
        multipliers: Of the same shapes, by layer; none where nothing scales learning.
        balance: Mean excitation and inhibition per synapse, by layer.
        turnover: Steps and shares replaced in all events, by layer; none where nothing is replaced.
    """

    weights: Mapping[str, Tensor]
    multipliers: Mapping[str, Tensor]
    balance: Mapping[str, tuple[float, float]]
    turnover: Mapping[str, Points]


def require_matplotlib(key: str, value: object) -> None:
    """Check that figures can be drawn.

    Args:
        key: The setting that asks for them.
        value: What it is set to.

    Raises:
        BioConfigError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        remedy = 'null where matplotlib is not installed; pip install "bio_lightning[figures]"'
        raise BioConfigError(key, value, remedy)


def figures(snapshot: Snapshot) -> dict[str, Figure]:
    """All figures, by tag."""
    drawn = {"overview": overview(snapshot), "excitation_and_inhibition": balance(snapshot.balance)}
    if snapshot.multipliers:
        drawn["weight_against_multiplier"] = density(snapshot.weights, snapshot.multipliers)
    if snapshot.turnover:
        drawn["turnover"] = turnover(snapshot.turnover)
    return {f"bio/figures/{name}": figure for name, figure in drawn.items()}


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """In our style, and nothing else of the user's."""

    @functools.wraps(draw)
    def styled(*arguments: Any) -> Figure:
        import matplotlib as mpl

        with mpl.rc_context(_STYLE):
            return draw(*arguments)

    return styled


@_styled
def density(weights: Mapping[str, Tensor], multipliers: Mapping[str, Tensor]) -> Figure:
    """Weight against multiplier, one panel per layer; darker where there are more synapses."""
    columns = min(len(multipliers), 3)
    figure, panels = _panels(len(multipliers), columns)
    for axes, (name, multiplier) in zip(panels, multipliers.items(), strict=True):
        _draw_density(axes, [weights[name]], [multiplier])
        axes.set_title(name)
    return figure


@_styled
def turnover(series: Mapping[str, Points]) -> Figure:
    """Share of synapses replaced in all events, over time, a line per layer."""
    figure, (axes,) = _panels(1, 1)
    _draw_lines(axes, series)
    axes.set(title="Turnover", ylabel="synapses replaced, as a share of all")
    return figure


@_styled
def balance(values: Mapping[str, tuple[float, float]]) -> Figure:
    """Mean excitation and inhibition per synapse, a pair of bars per layer."""
    figure, (axes,) = _panels(1, 1, height=max(2.5, 0.5 * len(values) + 1.5))
    _draw_balance(axes, values)
    axes.set_title("Excitation and inhibition")
    return figure


@_styled
def overview(snapshot: Snapshot) -> Figure:
    """Everything there is in one panel: multipliers by layer, their density over weights, turnover, balance."""
    draws: dict[str, Callable[[Axes], None]] = {}
    if snapshot.multipliers:
        weights = [snapshot.weights[name] for name in snapshot.multipliers]
        draws["Multipliers of the learning rate"] = lambda axes: _draw_multipliers(axes, snapshot.multipliers)
        multipliers = list(snapshot.multipliers.values())
        draws["Weight against multiplier, all layers"] = lambda axes: _draw_density(axes, weights, multipliers)
    if snapshot.turnover:
        draws["Turnover: synapses replaced, as a share of all"] = lambda axes: _draw_lines(axes, snapshot.turnover)
    draws["Excitation and inhibition"] = lambda axes: _draw_balance(axes, snapshot.balance)
    figure, panels = _panels(len(draws), min(len(draws), 2))
    for axes, (title, draw) in zip(panels, draws.items(), strict=True):
        draw(axes)
        axes.set_title(title)
    return figure


def _panels(count: int, columns: int, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = -(-count // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(4.8 * columns, height * rows), dpi=100, layout=layout)
    return figure, [figure.add_subplot(rows, columns, number + 1) for number in range(count)]


def _draw_density(axes: Axes, weights: Sequence[Tensor], multipliers: Sequence[Tensor]) -> None:
    axes.set(xlabel="weight", ylabel="multiplier")
    across = torch.cat([_some(weight) for weight in weights] or [torch.empty(0)])
    up = torch.cat([_some(multiplier) for multiplier in multipliers] or [torch.empty(0)])
    finite = across.isfinite() & up.isfinite()
    if not bool(finite.any()):
        _say_nothing(axes)
        return
    axes.hexbin(across[finite].numpy(), up[finite].numpy(), gridsize=50, bins="log", mincnt=1, cmap="viridis_r")


def _draw_multipliers(axes: Axes, multipliers: Mapping[str, Tensor]) -> None:
    """One ridge per layer, the first on top."""
    values = {name: _some(multiplier) for name, multiplier in multipliers.items()}
    values = {name: each[each.isfinite()] for name, each in values.items()}
    if not any(each.numel() for each in values.values()):
        _say_nothing(axes)
        return
    right = 1.1 * max(1.0, *(float(each.max()) for each in values.values() if each.numel()))
    edges = torch.linspace(0, right, 101)
    for row, (name, each) in enumerate(values.items()):
        counts = torch.histogram(each.float(), edges).hist
        axes.stairs((0.85 * counts / counts.max().clamp(min=1) - row).numpy(), edges.numpy(), baseline=-row, fill=True,
                    color=COLOURS[row % len(COLOURS)], alpha=0.7)  # fmt: skip
        axes.text(right, 0.1 - row, name, ha="right", fontsize=8)
    axes.axvline(1.0, color="#555555", ls="--", lw=1)
    axes.set(xlabel="multiplier (dashed: neutral)", yticks=[], xlim=(0, right), ylim=(1 - len(values), 1))


def _draw_lines(axes: Axes, series: Mapping[str, Points]) -> None:
    axes.set_xlabel("step")
    for number, (name, points) in enumerate(series.items()):
        colour, dashed = COLOURS[number % len(COLOURS)], "--" if number >= len(COLOURS) else "-"
        axes.plot([step for step, _ in points], [value for _, value in points], dashed, color=colour, label=name)
    axes.legend(fontsize=8)


def _draw_balance(axes: Axes, values: Mapping[str, tuple[float, float]]) -> None:
    """Excitation to the right, inhibition to the left, the first layer on top."""
    rows = [-row for row in range(len(values))]
    axes.barh(rows, [excitation for excitation, _ in values.values()], color=_EXCITATION)
    axes.barh(rows, [-inhibition for _, inhibition in values.values()], color=_INHIBITION)
    axes.axvline(0, color="#555555", lw=1)
    axes.set(xlabel="inhibition to the left, excitation to the right, per synapse")
    axes.set_yticks(rows, list(values), fontsize=8)


def _some(tensor: Tensor) -> Tensor:
    """Evenly chosen elements, on the CPU; the same ones of all tensors of a shape."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // _POINTS)].float().cpu()


def _say_nothing(axes: Any) -> None:
    axes.text(0.5, 0.5, _NOTHING, ha="center", va="center", transform=axes.transAxes, color="#777777")
    axes.set(xticks=[], yticks=[])
