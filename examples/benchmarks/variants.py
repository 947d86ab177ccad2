"""What the benchmark compares: kernels and mechanisms of this library, and the predecessor."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import nn

from bio_lightning import BioConfigError, bio_callbacks

__all__ = [
    "ALL_MECHANISMS",
    "GRADIENT_MECHANISMS",
    "PredecessorCalls",
    "callbacks_for",
    "convert",
    "has_predecessor",
    "known_kernels",
    "predecessor_passes",
    "quietly",
]

GRADIENT_MECHANISMS = ("fuzzy_learning_rates", "volume_dependent_lr", "synaptic_scaling", "crystallization")
ALL_MECHANISMS = (*GRADIENT_MECHANISMS, "weight_rejuvenation", "dales_principle")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what Lightning says at every fit."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
        yield
    logger.setLevel(level)


def known_kernels(wanted: Sequence[str]) -> list[str]:
    """Those of the kernels that this version of the library has; the others are named in a printed line."""
    return [kernel for kernel in wanted if _is_known(kernel)]


def _is_known(kernel: str) -> bool:
    try:
        callbacks_for(kernel, GRADIENT_MECHANISMS)
    except BioConfigError as error:
        print(f"kernel {kernel!r} is left out: {error}")
        return False
    return True


#: Unused callbacks by configuration, to be copied: checking a configuration takes longer than a small fit.
_PROTOTYPES: dict[str, list[pl.Callback]] = {}


def callbacks_for(
    kernel: str, mechanisms: Sequence[str], settings: Mapping[str, Mapping[str, Any]] | None = None
) -> list[pl.Callback]:
    """Fresh callbacks.

    Args:
        kernel: For the whole configuration.
        mechanisms: Sections that are on.
        settings: What differs from the defaults, by section.
    """
    sections = {name: {"enabled": True, **(settings or {}).get(name, {})} for name in mechanisms}
    config = {"kernel": kernel, **sections}
    if repr(config) not in _PROTOTYPES:
        _PROTOTYPES[repr(config)] = list(bio_callbacks(config))
    return copy.deepcopy(_PROTOTYPES[repr(config)])


def has_predecessor() -> bool:
    """Whether the predecessor can be imported."""
    return importlib.util.find_spec("bio_transformations") is not None


def convert(network: nn.Module) -> nn.Module:
    """The network with the predecessor's mechanisms, converted in place as its README shows."""
    converter = importlib.import_module("bio_transformations").BioConverter
    converted: nn.Module = converter(
        fuzzy_learning_rate_factor_nu=0.16, crystal_thresh=4.5e-05, rejuvenation_parameter_dre=8.0
    )(network)
    return converted


def predecessor_passes(network: Any) -> None:
    """The predecessor's three calls between backward and the optimizer's step, in its README's order."""
    network.volume_dependent_lr()
    network.fuzzy_learning_rates()
    network.crystallize()


class PredecessorCalls(pl.Callback):
    """The predecessor in Lightning: its calls where its README puts them."""

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Between backward and the optimizer's step."""
        predecessor_passes(pl_module.network)
