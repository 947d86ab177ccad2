"""Line charts as SVG, for a page that needs neither scripts nor a server."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["COLOURS", "chart", "colour_of", "tidy"]

#: Okabe and Ito's colours, told apart with every kind of colour vision.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b2a500")
_WIDTH, _HEIGHT = 340, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 8, 22

Points = Sequence[tuple[float, float]]


def colour_of(number: int) -> tuple[str, str]:
    """Colour and dash pattern of a run; runs beyond the colours are dashed.

    Example:
        >>> colour_of(0), colour_of(8)
        (('#d55e00', 'none'), ('#d55e00', '6 3'))
    """
    dashes = ("none", "6 3", "2 2", "8 3 2 3")
    return COLOURS[number % len(COLOURS)], dashes[number // len(COLOURS) % len(dashes)]


def tidy(value: float) -> str:
    """A number in few letters.

    Example:
        >>> tidy(0.123456), tidy(1234567.0), tidy(3.0), tidy(float("nan"))
        ('0.1235', '1.235e+06', '3', 'nan')
    """
    return f"{value:.4g}"


def chart(label: str, series: Mapping[int, Points]) -> str:
    """One panel.

    Args:
        label: What it shows, for those who do not see it.
        series: Points by number of the run; a gap where a value is not finite.
    """
    finite = [point for points in series.values() for point in points if math.isfinite(point[1])]
    if not finite:
        return '<p class="empty">no finite value</p>'
    (left, right), (low, high) = _range([x for x, _ in finite]), _range([y for _, y in finite])
    lines = [_line(number, points, (left, right), (low, high)) for number, points in series.items()]
    axes = [
        f'<text x="{_LEFT - 6}" y="{_place(y, low, high, _HEIGHT - _BOTTOM, _TOP) + 4:.1f}" text-anchor="end">'
        f'{tidy(y)}</text><line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" '
        f'y1="{_place(y, low, high, _HEIGHT - _BOTTOM, _TOP):.1f}" '
        f'y2="{_place(y, low, high, _HEIGHT - _BOTTOM, _TOP):.1f}"/>'
        for y in _ticks(low, high)
    ]
    axes += [
        f'<text x="{_place(x, left, right, _LEFT, _WIDTH - _RIGHT):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{tidy(x)}</text>"
        for x in _ticks(left, right, most=4)
    ]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(axes)}{''.join(lines)}</svg>"
    )


def _line(number: int, points: Points, across: tuple[float, float], up: tuple[float, float]) -> str:
    colour, dashes = colour_of(number)
    style = f'stroke="{colour}" stroke-dasharray="{dashes}"'
    drawn = []
    for piece in _pieces(points):
        places = [
            (_place(x, *across, _LEFT, _WIDTH - _RIGHT), _place(y, *up, _HEIGHT - _BOTTOM, _TOP)) for x, y in piece
        ]
        if len(places) == 1:
            drawn.append(f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3" fill="{colour}"/>')
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            drawn.append(f'<polyline points="{path}" {style}/>')
    return "".join(drawn)


def _pieces(points: Points) -> list[list[tuple[float, float]]]:
    """The stretches between values that are not finite."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            pieces[-1].append((x, y))
        else:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest value, apart where they are equal."""
    low, high = min(values), max(values)
    spare = abs(low) * 0.05 or 0.5
    return (low, high) if low < high else (low - spare, high + spare)


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (value - low) / (high - low) * (end - start)


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within a range."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
