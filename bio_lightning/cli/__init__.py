"""Look at configurations, plan and compare runs, without writing a program: the command ``bio-lightning``."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException

from bio_lightning.cli.commands import COMMANDS
from bio_lightning.cli.docstrings import arguments, summary
from bio_lightning.cli.parsing import BriefArgumentParser
from bio_lightning.errors import BioConfigError, nearest_name

__all__ = ["main"]

_BY_NAME = {command.__name__: command for command in COMMANDS}
_POSITIONAL, _ANY_NUMBER = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL


def main(given: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        given: Its arguments; those of the process by default.

    Returns:
        The exit status: 0, or 2 for what the user can put right.
    """
    words = sys.argv[1:] if given is None else list(given)
    try:
        parsed = _parser().parse_args(_ordered(words))
    except BioConfigError as error:
        return _refuse(error)
    except SystemExit as stop:  # after its own message
        return int(stop.code or 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_warning
            _call(_BY_NAME[parsed.command], dict(parsed[parsed.command]))
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as in "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, RuntimeError, MisconfigurationException) as error:
        return _refuse(error)
    return 0


def _ordered(words: Sequence[str]) -> list[str]:
    """The command, its options, and then all other words: argparse takes these only where they stand in one row.

    Raises:
        BioConfigError: There is no such command or option, or an argument is missing.
    """
    name = words[0] if words else None
    if name is not None and name.startswith("-"):
        return list(words)
    if name not in _BY_NAME:
        raise BioConfigError("command", name, ", ".join(_BY_NAME), name and nearest_name(name, _BY_NAME))
    options: list[str] = []
    others: list[str] = []
    takes_next = False
    dashes = words.index("--") if "--" in words else len(words)
    for word in words[1:dashes]:
        is_option = word.startswith("-")
        (options if is_option or takes_next else others).append(word)
        takes_next = is_option and "=" not in word
    others += words[dashes + 1 :]
    given = {option.partition("=")[0] for option in options if option.startswith("-")}
    if not given & {"-h", "--help"}:
        _check_complete(_BY_NAME[name], given, len(others))
    if dashes < len(words):
        return [name, *options, "--", *others]
    without_value = [options.pop()] if takes_next else []
    return [name, *options, *others, *without_value]


def _check_complete(command: Callable[..., Any], options: Collection[str], others: int) -> None:
    """Whether all is there that a command needs, and no option that it lacks; jsonargparse has other names for them."""
    parameters = inspect.signature(command).parameters.values()
    by_place = [p.name for p in parameters if p.kind is _POSITIONAL and p.default is p.empty]
    named = {f"--{p.name}": p for p in parameters if p.name not in by_place and p.kind is not _ANY_NUMBER}
    for option in options:
        if option not in named:
            allowed = ", ".join(named) or "no option but --help"
            raise BioConfigError(command.__name__, option, allowed, nearest_name(option, named))
    missing = {name: name for name in by_place[others:]}
    missing |= {key: p.name for key, p in named.items() if p.default is p.empty and key not in options}
    shown = next(iter(missing), None)
    if shown is not None:
        raise BioConfigError(shown, None, arguments(command)[missing[shown]].rstrip("."))


def _parser() -> ArgumentParser:
    parser = BriefArgumentParser(prog="bio-lightning", description=summary(sys.modules[__name__]))
    subcommands = parser.add_subcommands(dest="command")
    for command in COMMANDS:
        text = summary(command)
        own = BriefArgumentParser(description=text)
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


def _refuse(error: Exception) -> int:
    sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
    return 2


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    sys.stderr.write(f"warning: {message}\n")
