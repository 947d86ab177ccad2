"""Clocks, the memory limit, tables, and what the machine is."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import math
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

__all__ = [
    "PASS_BYTES",
    "Table",
    "Timings",
    "available_memory",
    "copy_time",
    "environment",
    "interleave",
    "milliseconds",
    "ratio",
    "significant",
    "timed",
]

#: Memory traffic of a gradient pass per float32 weight: the weight read three times (layer statistics, normaliser,
#: pass), gradient and multiplier read and written.
PASS_BYTES = 28
#: Largest buffer that is copied to find the memory limit; more bytes are copied by repetition.
_LARGEST_COPY = 2**28

#: Seconds in every round, by variant.
Timings = dict[str, list[float]]


def timed(work: Callable[[], object]) -> float:
    """Seconds that some work takes, to its end on the GPU where there is one."""
    _synchronize()
    start = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleave(variants: Mapping[str, Callable[[], float]], rounds: int) -> Timings:
    """Measure all variants once per round, so that a slow minute of the machine hits all of them.

    A first round warms up (compilation, caches, allocator) and does not count. The order turns from round to round.

    Args:
        variants: By name, what measures a variant once and returns seconds.
        rounds: Rounds that count.
    """
    names = list(variants)
    timings: Timings = {name: [] for name in names}
    for number in range(rounds + 1):
        turn = number % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            seconds = variants[name]()
            if number > 0:
                timings[name].append(seconds)
    return timings


def ratio(timings: Timings, name: str, base: str) -> str:
    """Median over the rounds of one variant's time over another's in the same round; a dash where one is missing."""
    if not timings.get(name) or not timings.get(base):
        return "-"
    return significant(statistics.median(a / b for a, b in zip(timings[name], timings[base], strict=True)))


def significant(value: float) -> str:
    """Three significant digits, without an exponent."""
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, 2 - magnitude)}f}"


def milliseconds(timings: Timings, name: str) -> str:
    """Median over the rounds."""
    return significant(1000 * statistics.median(timings[name]))


def copy_time(traffic: int, device: str = "cpu") -> Callable[[], float]:
    """What measures the memory limit: a copy that reads and writes ``traffic`` bytes in all.

    Args:
        traffic: Bytes read plus bytes written.
        device: Where.
    """
    size = max(1, min(traffic // 2, _LARGEST_COPY) // 4)
    repeats, rest = divmod(max(1, traffic // 8), size)

    def measure() -> float:
        source, target = torch.ones(size, device=device), torch.zeros(size, device=device)

        def copy() -> None:
            for _ in range(repeats):
                target.copy_(source)
            target[:rest].copy_(source[:rest])

        return statistics.median(timed(copy) for _ in range(3))

    return measure


def available_memory() -> int | None:
    """Bytes that a new tensor may take, where Linux says so."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)


@dataclasses.dataclass
class Table:
    """A table of results.

    Args:
        title: Heading.
        columns: Names of the columns; the first names a row.
        rows: Cells.
        note: How to read it.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """The table with its heading, columns aligned."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        texts = [" | ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)) for line in lines]
        rule = "|".join("-" * (width + 2) for width in widths)
        body = "\n".join([f"| {texts[0]} |", f"|{rule}|", *(f"| {text} |" for text in texts[1:])])
        return f"## {self.title}\n\n{self.note + chr(10) * 2 if self.note else ''}{body}\n"


def environment(device: str) -> Table:
    """Machine, versions, commit and date."""
    traffic = 2**28
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    rows: list[Sequence[str]] = [
        ("CPU", f"{_cpu_model()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"),
        ("memory", f"{memory / 2**30:.0f} GiB"),
        ("device", torch.cuda.get_device_name() if device == "cuda" else "CPU"),
        ("copy bandwidth", f"{traffic / copy_time(traffic, device)() / 1e9:.1f} GB/s, read plus written"),
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        *((name, _version(name)) for name in ("torch", "lightning", "bio_lightning", "pytorch-bio-transformations")),
        ("commit", _commit()),
        ("date", datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")),
    ]
    return Table("Machine and versions", ("what", "value"), rows)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Commit of the checkout that this file lies in, and whether something in it was changed since."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    answers = []
    for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        call = [git, "-C", str(Path(__file__).parent), *command]
        done = subprocess.run(call, capture_output=True, text=True, check=False)  # noqa: S603 - fixed arguments
        if done.returncode != 0:
            return "unknown"
        answers.append(done.stdout.strip())
    return answers[0] + (" with changes" if answers[1] else "")
