"""The benchmark: its cheapest table, at its quickest. What it measures is no matter for a test."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "overhead.py"
#: The script without the kernel that takes a minute to compile.
EAGER = "import sys, overhead; overhead.KERNELS = ('eager',); sys.exit(overhead.main())"


def run(*arguments: str) -> subprocess.CompletedProcess:
    call, paths = [sys.executable, "-c", EAGER, *arguments], {"PYTHONPATH": str(SCRIPT.parent)}
    return subprocess.run(call, capture_output=True, text=True, check=False, env={**os.environ, **paths})


def tables(markdown: str) -> dict[str, list[list[str]]]:
    """Rows by heading, header first, rule left out."""
    pieces = re.split(r"^## (.*)\n", markdown, flags=re.MULTILINE)
    found = {}
    for title, text in zip(pieces[1::2], pieces[2::2], strict=True):
        lines = [line for line in text.splitlines() if line.startswith("|")]
        found[title] = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:1] + lines[2:]]
    return found


@pytest.mark.slow
def test_quick_table(tmp_path):
    results = SCRIPT.with_name("RESULTS.md")
    before = results.read_bytes() if results.exists() else None
    done = run("--quick", "--only", "layers", "--out", str(tmp_path / "out.md"))
    assert done.returncode == 0, done.stderr
    assert "checked: neutral settings change no bit" in done.stdout
    assert (results.read_bytes() if results.exists() else None) == before
    markdown = (tmp_path / "out.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in markdown
    found = tables(markdown)
    assert list(found) == ["Machine and versions", "Small layers"]
    assert {"CPU", "memory", "copy bandwidth", "torch", "commit", "date"} <= {
        row[0] for row in found["Machine and versions"]
    }
    header, *rows = found["Small layers"]
    assert header == ["variant", "us per layer", "over predecessor", "asked: at most"]
    assert "all gradient mechanisms, eager" in [row[0] for row in rows]
    assert all(len(row) == len(header) and float(row[1]) > 0 for row in rows)


def test_unknown_table_is_refused():
    done = run("--only", "nothing")
    assert done.returncode == 2
    assert "invalid choice: 'nothing'" in done.stderr
