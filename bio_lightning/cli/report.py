"""A page that compares runs: one HTML file, readable without a server."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from bio_lightning.cli.charts import chart, colour_of, tidy
from bio_lightning.cli.event_files import Run

__all__ = ["page"]

_OVERALL = "overall"
_OF_LIGHTNING = ("epoch", "hp_metric", "_hparams_/")
_TRAINING = "training"
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --faint: #8883; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1120px; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.keys { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; padding: 0; list-style: none; }
.keys svg { width: 2.2rem; height: .7rem; margin-right: .4rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; padding: .6rem; }
figcaption { font-weight: 600; margin-bottom: .3rem; overflow-wrap: anywhere; }
figure.image { grid-column: 1 / -1; } figure.image img { max-width: 100%; }
svg text { font-size: 10.5px; fill: currentColor; }
svg .grid { stroke: var(--faint); } svg polyline { fill: none; stroke-width: 1.8; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem .8rem; border-bottom: 1px solid var(--faint); text-align: right; }
td:first-child, th:first-child { text-align: left; } .empty { opacity: .7; }
summary { cursor: pointer; font-weight: 600; margin-top: 1.2rem; }
tbody tr.group th { text-align: left; padding-top: .9rem; }
"""


def page(runs: Sequence[Run], title: str = "bio_lightning: runs") -> str:
    """The page: a key to the runs, how training went, a table that compares them, and a panel for every overall series.

    Args:
        runs: At least one.
        title: Heading of the page.

    Example:
        >>> "<title>one</title>" in page([Run("a", {"loss": [(0, 1.0)]}, {}, {}, 0.0)], "one")
        True
    """
    groups = _groups(runs)
    training = _section(_TRAINING, groups.get(_TRAINING, []), runs)
    panels = "".join(_section(group, tags, runs) for group, tags in groups.items() if group != _TRAINING)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(title)}</h1>\n{_keys(runs)}\n{training}<h2>Comparison</h2>{_comparison(runs, groups)}"
        f"{_settings(runs)}\n{panels}</body></html>\n"
    )


def _groups(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Tags by the mechanism that they tell of, first what training itself logs; layers only all together."""
    groups: dict[str, list[str]] = {_TRAINING: []}
    for tag in sorted({tag for run in runs for tag in run.scalars}):
        parts = tag.split("/")
        if parts[0] != "bio":
            groups[_TRAINING] += [tag] if not tag.startswith(_OF_LIGHTNING) else []
        elif parts[-1] == _OVERALL:
            groups.setdefault(parts[1], []).append(tag)
    return {group: tags for group, tags in groups.items() if tags}


def _short(tag: str) -> str:
    """``bio/<mechanism>/<statistic>/overall`` under the mechanism's heading."""
    return tag.split("/", 2)[2].removesuffix(f"/{_OVERALL}") if tag.startswith("bio/") else tag


def _keys(runs: Iterable[Run]) -> str:
    items = []
    for number, run in enumerate(runs):
        colour, dashes = colour_of(number)
        line = f'<polyline points="0,5 40,5" stroke="{colour}" stroke-dasharray="{dashes}"/>'
        items.append(f'<li><svg viewBox="0 0 40 10" aria-hidden="true">{line}</svg>{escape(run.name)}</li>')
    return f'<ul class="keys">{"".join(items)}</ul>'


def _comparison(runs: Sequence[Run], groups: dict[str, list[str]]) -> str:
    """Last values."""
    rows = [
        _row("last step", [str(max((points[-1][0] for points in run.scalars.values()), default="-")) for run in runs]),
        _row("minutes", [tidy(run.seconds / 60) for run in runs]),
    ]
    for group, tags in groups.items():
        rows.append(_heading(f"{group}, last value", runs))
        rows += [_row(_short(tag), [_last(run, tag) for run in runs]) for tag in tags]
    return _table(runs, rows)


def _settings(runs: Sequence[Run]) -> str:
    """Those hyperparameters in which the runs differ, folded up: of runs with other mechanisms they are many."""
    keys = dict.fromkeys(key for run in runs for key in run.hyperparameters)
    settings = {key: [str(run.hyperparameters.get(key, "-")) for run in runs] for key in sorted(keys)}
    rows = [_row(key, values) for key, values in settings.items() if len(set(values)) > 1]
    if not rows:
        return ""
    summary = f"settings that differ ({len(rows)})"
    return f"<details><summary>{summary}</summary>{_table(runs, rows)}</details>"


def _table(runs: Sequence[Run], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    body = "\n".join(rows)
    return f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _heading(text: str, runs: Sequence[Run]) -> str:
    return f'<tr class="group"><th colspan="{len(runs) + 1}">{escape(text)}</th></tr>'


def _row(name: str, cells: Iterable[str]) -> str:
    return f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _last(run: Run, tag: str) -> str:
    points = run.scalars.get(tag)
    return tidy(points[-1][1]) if points else "-"


def _section(group: str, tags: Sequence[str], runs: Sequence[Run]) -> str:
    panels = []
    for tag in tags:
        series = {number: run.scalars[tag] for number, run in enumerate(runs) if tag in run.scalars}
        panels.append(f"<figure><figcaption>{escape(_short(tag))}</figcaption>{chart(tag, series)}</figure>")
    return f'<h2>{escape(group)}</h2><div class="panels">{"".join(panels)}{_images(group, runs)}</div>\n'


def _images(group: str, runs: Sequence[Run]) -> str:
    """The last overview figures of the runs, which the monitor draws."""
    figures = []
    for run in runs if group == _TRAINING else ():
        for tag, image in run.images.items():
            if tag.startswith("bio/") and "overview" in tag:
                kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
                source = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
                caption = escape(f"{run.name}: {tag}")
                figures.append(
                    f'<figure class="image"><figcaption>{caption}</figcaption>'
                    f'<img alt="{caption}" src="{source}"></figure>'
                )
    return "".join(figures)
