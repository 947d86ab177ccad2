"""Types of the examples' options."""

from __future__ import annotations

import argparse
import math

__all__ = ["positive_integer", "positive_number"]


def positive_integer(text: str) -> int:
    """Type of an option."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def positive_number(text: str) -> float:
    """Type of an option."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{value} is not positive and finite")
    return value
