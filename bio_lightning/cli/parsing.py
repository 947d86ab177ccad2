"""Errors of a command line that can be read."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser

__all__ = ["Brief", "BriefArgumentParser"]


class Brief:
    """A parser whose errors are one line behind a tip, without the usage, which may take a hundred lines more."""

    def print_usage(self, file: Any = None) -> None:
        """Nothing: only errors print it, and ``--help`` has one of its own."""


class BriefArgumentParser(Brief, ArgumentParser):
    """jsonargparse's, with errors that can be read."""
