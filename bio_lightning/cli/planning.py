"""Who acts where on a model that is not trained."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from bio_lightning.callbacks import BioCallback, WeightSplitting
from bio_lightning.errors import BioConfigError, nearest_name
from bio_lightning.plan import plan_table
from bio_lightning.session import Session
from bio_lightning.settings import agree

__all__ = ["load_model", "plan_of"]

_MODEL = "--model"


def load_model(named: str) -> pl.LightningModule:
    """The LightningModule that ``module:name`` stands for.

    Args:
        named: A class or function that gives one without arguments, or a module itself. The working directory is
            searched, too.

    Raises:
        BioConfigError: There is none, or what the user's code raises on the way to it.

    Example:
        >>> type(load_model("lightning.pytorch.demos.boring_classes:BoringModel")).__name__
        'BoringModel'
    """
    module_name, colon, name = named.partition(":")
    if not (module_name and colon and name):
        raise BioConfigError(_MODEL, named, "module:Class, as in my_project.models:Classifier")
    module = _imported(module_name, named)
    if not hasattr(module, name):
        models = [key for key, value in vars(module).items() if _is_model_class(value)]
        allowed = f"a name in {module_name}; its LightningModules: {', '.join(models) or 'none'}"
        nearest = nearest_name(name, models)
        raise BioConfigError(_MODEL, named, allowed, nearest and f"{module_name}:{nearest}")
    found = getattr(module, name)
    model = _made(found, named) if callable(found) and not isinstance(found, pl.LightningModule) else found
    if not isinstance(model, pl.LightningModule):
        raise BioConfigError(_MODEL, named, f"a LightningModule, not {type(model).__name__}")
    return model


def plan_of(model: pl.LightningModule, callbacks: Sequence[BioCallback]) -> str:
    """The table of :func:`bio_lightning.plan.plan_table`, as at the start of training.

    Args:
        model: A fresh model; changed in place, as training would.
        callbacks: The bio callbacks.

    Raises:
        BioConfigError: A pattern or setting does not suit the model.
    """
    session = Session(model, callbacks)
    if is_overridden("configure_model", model, pl.LightningModule):
        with _users_code(type(model).__name__, "a model that can configure itself"):
            model.configure_model()
    for mechanism in session.mechanisms:
        if isinstance(mechanism, WeightSplitting):
            mechanism.split(model, agree(session.mechanisms).forward_order)
    session.survey(_optimizers(model))
    session.start()
    return plan_table(session)


def _made(make: Callable[[], Any], named: str) -> Any:
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        allowed = f"what can be called without arguments ({error}); a function that gives the model will do"
        raise BioConfigError(_MODEL, named, allowed) from None
    with _users_code(named, "a model that can be made"):
        return make()


@contextlib.contextmanager
def _users_code(named: str, allowed: str) -> Iterator[None]:
    """Where anything may be raised."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise BioConfigError(_MODEL, named, f"{allowed} ({type(error).__name__}: {error})") from error


def _imported(module_name: str, named: str) -> Any:
    if module_name.endswith(".py") or not all(map(str.isidentifier, module_name.split("."))):
        dotted = module_name.removeprefix("./").removesuffix(".py").replace("/", ".")
        nearest = f"{dotted}:{named.partition(':')[2]}" if all(map(str.isidentifier, dotted.split("."))) else None
        raise BioConfigError(_MODEL, named, "module:Class, the module as one imports it", nearest)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with _users_code(named, "a module that can be imported"):
            return importlib.import_module(module_name)
    except BioConfigError as refused:
        missing = refused.__cause__
        if not isinstance(missing, ModuleNotFoundError) or not f"{module_name}.".startswith(f"{missing.name}."):
            raise
    nearest = nearest_name(module_name, [path.stem for path in Path.cwd().glob("*.py")])
    allowed = "a module that can be imported from here"
    raise BioConfigError(_MODEL, named, allowed, nearest and f"{nearest}:{named.partition(':')[2]}")


def _is_model_class(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, pl.LightningModule) and value is not pl.LightningModule


def _optimizers(model: pl.LightningModule) -> list[Optimizer]:
    """Those that the model configures; none where it needs a Trainer for that."""
    try:
        configured = model.configure_optimizers()
    except Exception as error:  # the user's code may raise anything
        rank_zero_warn(f"apply_to as set, since the optimizers are not known without a Trainer ({error})")
        return []
    return list(_flat(configured))


def _flat(configured: Any) -> Iterable[Optimizer]:
    """All forms that Lightning accepts."""
    if isinstance(configured, Optimizer):
        yield configured
    elif isinstance(configured, dict):
        yield from _flat(configured["optimizer"])
    elif isinstance(configured, (list, tuple)):
        for item in configured:
            yield from _flat(item)
