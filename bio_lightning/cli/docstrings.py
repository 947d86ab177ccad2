"""What docstrings say, for help texts and the JSON schema: one text for Python, command line and editors."""

from __future__ import annotations

import inspect
import re
from typing import Any

__all__ = ["arguments", "summary"]


def summary(documented: Any) -> str:
    """First sentence of a docstring.

    Example:
        >>> summary(summary)
        'First sentence of a docstring.'
    """
    return _plain(inspect.getdoc(documented) or "").partition("\n\n")[0].replace("\n", " ")


def arguments(documented: Any) -> dict[str, str]:
    """The ``Args`` of a function, or of a class and its bases, by name.

    Example:
        >>> arguments(summary), arguments(arguments)["documented"]
        ({}, 'Function or class.')

    Args:
        documented: Function or class.
    """
    found: dict[str, str] = {}
    for owner in reversed(inspect.getmro(documented)) if inspect.isclass(documented) else [documented]:
        doc = inspect.cleandoc(owner.__doc__ or "") if "__doc__" in vars(owner) or not inspect.isclass(owner) else ""
        section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n(?=[ \t]))*)", doc, re.MULTILINE)
        items = re.split(r"^    \*{0,2}(\w+): ", section[1] if section else "", flags=re.MULTILINE)
        found |= {name: _plain(" ".join(text.split())) for name, text in zip(items[1::2], items[2::2], strict=True)}
    return found


def _plain(text: str) -> str:
    """Without the marks of reStructuredText."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "")
