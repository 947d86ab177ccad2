"""LightningCLI with the synapses of a run among its options."""

from __future__ import annotations

import sys
from argparse import SUPPRESS
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ActionParser, ArgumentParser, Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from bio_lightning.callbacks import REGISTRY, PlasticityMechanism
from bio_lightning.cli.docstrings import arguments
from bio_lightning.cli.parsing import Brief
from bio_lightning.config import bio_callbacks, check_names
from bio_lightning.errors import BioConfigError
from bio_lightning.parameters import default_of, describe, parameters
from bio_lightning.settings import Settings

__all__ = ["BioCLI"]


class _BioArgumentParser(Brief, LightningArgumentParser):
    """Says of an unknown key under ``bio`` what the library says of it elsewhere."""

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Refuse flags that name no key."""
        flags = sys.argv[1:] if args is None else list(args)
        for flag, following in zip(flags, [*flags[1:], None], strict=True):
            option, equals, value = flag.partition("=")
            text = value if equals else following
            if option == "--bio" and not Path(str(text)).is_file():
                self.error(f"bio: got {text!r}; allowed: a YAML file; a preset is chosen by --bio.preset={text}")
            section, _, key = option.removeprefix("--bio.").partition(".")
            if option.startswith("--bio.") and section in REGISTRY and not key:
                self.error(f"bio.{section}: got {text!r}; allowed: its keys, as in --bio.{section}.enabled=false")
            if option.startswith("--bio."):
                self._refuse_unknown({section: {key: text} if key else text})
        return super().parse_args(args, *rest, **options)

    def validate(self, namespace: Namespace, *rest: Any, **options: Any) -> None:
        """Refuse keys of files that name none."""
        chosen = namespace.get(namespace.get("subcommand") or "", namespace)
        self._refuse_unknown(chosen.get("bio"))
        super().validate(namespace, *rest, **options)

    def _refuse_unknown(self, given: Any) -> None:
        try:
            check_names(_sections(given), beside=("preset",))
        except BioConfigError as error:
            self.error(str(_under_bio(error)))


class BioCLI(LightningCLI):
    """LightningCLI that takes a whole configuration of synapses under ``bio``, in YAML and as flags.

    ``bio`` has the sections and keys of a configuration file, and ``preset``, the name of a preset or file that the
    others change. What is on joins the callbacks of ``trainer.callbacks``, where each mechanism may as well be listed
    by its ``class_path``; for that alone Lightning's own class will do. What cannot be accepted is an error of the
    command line, exit status 2. Needs ``jsonargparse[signatures]``.

    Example:
        A program, and two commands that run it::

            from bio_lightning.cli.lightning_cli import BioCLI
            BioCLI(Classifier, Images)

            python main.py fit --config callbacks.yaml --bio.dales_principle.enabled=true
            python main.py fit --config callbacks.yaml --bio.preset=default --bio.crystallization.enabled=false
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"parser_class": _BioArgumentParser, **options})

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Lightning's own arguments, and ours."""
        super().add_default_arguments_to_parser(parser)
        parser.add_argument("--bio", action=ActionParser(parser=_bio_parser()), title="Synapses of the model")

    def instantiate_classes(self) -> None:
        """Say what a callback by its ``class_path`` does not accept, which jsonargparse buries in a traceback."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if not isinstance(error.__cause__, BioConfigError):
                raise
            self._parser(self.subcommand).error(str(error.__cause__))

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add the callbacks that ``bio`` switches on to those of the Trainer."""
        callbacks = self._get(self.config_init, "trainer")["callbacks"] or []
        listed = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        ours = self._bio_callbacks()
        for callback in ours:
            if callback.state_key in {each.state_key for each in listed}:
                self._parser(self.subcommand).error(
                    f"bio: {type(callback).__name__} is on here and in trainer.callbacks; switch it off in one place,"
                    " or let both include layers of their own"
                )
        return super().instantiate_trainer(callbacks=[*listed, *ours], **kwargs)

    def _bio_callbacks(self) -> list[pl.Callback]:
        sections = _sections(self._get(self.config, "bio"))
        preset = sections.pop("preset", None)
        try:
            return list(bio_callbacks(sections) if preset is None else bio_callbacks(preset, sections))
        except BioConfigError as error:
            self._parser(self.subcommand).error(str(_under_bio(error, preset)))


def _under_bio(error: BioConfigError, preset: object = None) -> BioConfigError:
    """The same error under the name that its key has in the app."""
    if error.key == "bio":
        return error
    key = "preset" if error.key in ("source", preset) else error.key
    return BioConfigError(f"bio.{key}", error.value, error.allowed, error.nearest)


def _sections(given: Any) -> dict[str, Any]:
    """What is given under ``bio``, less the path of a file."""
    given = given.as_dict() if isinstance(given, Namespace) else {} if given is None else given
    if not isinstance(given, Mapping):
        raise BioConfigError("bio", given, "a mapping of sections, as in crystallization: {enabled: true}")
    return {key: value for key, value in given.items() if key != "__path__"}


def _bio_parser() -> ArgumentParser:
    """Every key of a configuration. Values are left to the library's own checks, and what is not given is absent."""
    parser = ArgumentParser()

    def add(name: str, text: str) -> None:
        parser.add_argument(f"--{name}", type=Any, default=SUPPRESS, help=text.replace("%", "%%"))

    add("preset", "Name of a preset, or a YAML file, which the other options change.")
    for key in ("seed", *Settings._fields):
        add(key, f"{arguments(PlasticityMechanism)[key]} For every section that does not set its own.")
    for section, callback in REGISTRY.items():
        texts = arguments(callback)
        add(f"{section}.enabled", f"Whether {callback.__name__} is on.")
        for field in parameters(callback):
            text = f"{texts[field.name]} Accepts {describe(field)}. Default: {default_of(field)}."
            add(f"{section}.{field.name}", text)
    return parser
