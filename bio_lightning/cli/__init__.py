"""Look at configurations, plan and compare runs, without writing a program: the command ``bio-lightning``."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException

from bio_lightning.cli.commands import COMMANDS
from bio_lightning.cli.docstrings import arguments, summary
from bio_lightning.errors import nearest_name

__all__ = ["main"]

_POSITIONAL, _ANY_NUMBER = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL


def main(given: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        given: Its arguments; those of the process by default.

    Returns:
        The exit status: 0, or 2 for what the user can put right.
    """
    words = sys.argv[1:] if given is None else list(given)
    commands = {command.__name__: command for command in COMMANDS}
    if words and not words[0].startswith("-") and words[0] not in commands:
        nearest = nearest_name(words[0], commands)
        return _refuse(f"command: got {words[0]!r}; allowed: {', '.join(commands)}", nearest)
    try:
        parsed = _parser().parse_args(words)
    except SystemExit as stop:  # after its own message
        return int(stop.code or 0)
    command = commands[parsed.command]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_warning
            _call(command, dict(parsed[parsed.command]))
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as in "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, RuntimeError, MisconfigurationException) as error:
        return _refuse(" ".join(str(error).split()))
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="bio-lightning", description=summary(sys.modules[__name__]))
    subcommands = parser.add_subcommands(dest="command")
    for command in COMMANDS:
        text = summary(command)
        own = ArgumentParser(description=text)
        texts = arguments(command)
        for parameter in inspect.signature(command).parameters.values():
            _add(own, parameter, texts[parameter.name])
        subcommands.add_subcommand(command.__name__, own, help=text)
    return parser


def _add(parser: ArgumentParser, parameter: inspect.Parameter, text: str) -> None:
    if parameter.kind is _ANY_NUMBER:
        parser.add_argument(parameter.name, nargs="*", default=[], help=text)
    elif parameter.kind is _POSITIONAL and parameter.default is parameter.empty:
        parser.add_argument(parameter.name, type=str, help=text)
    else:
        required = parameter.default is parameter.empty
        default = None if required else parameter.default
        parser.add_argument(f"--{parameter.name}", type=str, required=required, default=default, help=text)


def _call(command: Callable[..., Any], values: dict[str, Any]) -> None:
    """Hand parsed values to the parameters that they belong to."""
    parameters = inspect.signature(command).parameters.values()
    by_place = [values.pop(p.name) for p in parameters if p.kind is _POSITIONAL and p.default is p.empty]
    for parameter in parameters:
        if parameter.kind is _ANY_NUMBER:
            by_place += values.pop(parameter.name)
    command(*by_place, **values)


def _refuse(message: str, nearest: str | None = None) -> int:
    sys.stderr.write(f"error: {message}" + (f". Did you mean {nearest!r}?" if nearest else "") + "\n")
    return 2


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    sys.stderr.write(f"warning: {message}\n")
