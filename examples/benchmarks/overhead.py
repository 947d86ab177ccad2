"""What the mechanisms cost: side by side with plain Lightning, the predecessor, and the speed of memory.

    python examples/benchmarks/overhead.py                 # all tables, into RESULTS.md beside this file
    python examples/benchmarks/overhead.py --quick         # small sizes, for CI: prints, and writes nothing
    python examples/benchmarks/overhead.py --only pass     # one table

Times are medians over interleaved rounds, ratios medians of the ratios within a round. Nothing is timed before the
variants are known to agree. For the predecessor: pip install --no-deps pytorch-bio-transformations==0.0.5
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from agreement import DisagreementError, check
from measure import Table, environment
from passes import Setup
from tables import TABLES
from variants import has_predecessor, known_kernels, quietly

__all__ = ["main"]

KERNELS = ("eager", "compiled")
RESULTS = Path(__file__).with_name("RESULTS.md")
#: Left out by ``--quick``, but not where it is asked for: compiling alone takes longer than all the rest.
SLOW = ("compilation",)
HEADING = """# What the mechanisms cost

Written by `python examples/benchmarks/overhead.py{arguments}`; ratios are to be trusted more than times.
[NOTES.md](NOTES.md) says what stands in the way where less was reached than asked.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 for success, 1 where variants that must agree do not."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(given)
    if not has_predecessor():
        print("the predecessor is left out; pip install --no-deps pytorch-bio-transformations==0.0.5")
    gc.freeze()  # what is imported stays; the collections between variants need not look at it
    with quietly():
        setup = Setup(args.quick, known_kernels(KERNELS), args.accelerator)
        torch.manual_seed(0)
        try:
            check(setup.kernels, quick=setup.quick)
        except DisagreementError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        report = _report(setup, args.only, given)
    out = args.out or (None if args.quick or args.only else RESULTS)
    if out is not None:
        out.write_text(report, encoding="utf-8")
        print(f"written to {out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None  # noqa: S101 - python -OO is not for benchmarks
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, a few minutes; for CI")
    parser.add_argument("--only", choices=list(TABLES), help="one table")
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu", help="default: %(default)s")
    parser.add_argument("--out", type=Path, help=f"file for the tables (default: {RESULTS.name} for a full run)")
    return parser


def _report(setup: Setup, only: str | None, arguments: Sequence[str]) -> str:
    """Measure and print table by table; the whole as Markdown."""
    pieces = [HEADING.format(arguments="".join(f" {argument}" for argument in _shown(arguments)))]
    _add(pieces, environment(setup.device))
    for name in [only] if only else TABLES:
        if setup.quick and name in SLOW and not only:
            print(f"{name} is left out by --quick; --only {name} takes it")
            continue
        start = time.perf_counter()
        table = TABLES[name](setup)
        if table is not None:
            _add(pieces, table)
            print(f"({name}: {time.perf_counter() - start:.0f} s)\n", flush=True)
    return "\n".join(pieces)


def _shown(arguments: Sequence[str]) -> list[str]:
    """The command line without ``--out``, whose path is nobody else's business."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--out")
    return parser.parse_known_args(arguments)[1]


def _add(pieces: list[str], table: Table) -> None:
    pieces.append(table.markdown())
    print(pieces[-1], flush=True)


if __name__ == "__main__":
    sys.exit(main())
