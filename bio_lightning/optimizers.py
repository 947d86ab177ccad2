"""What callbacks need to know of optimizers: whose weight it is, how a multiplier acts, which moments a synapse has."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bio_lightning.events import MEAN, ZERO, Kept

__all__ = ["ApplyTo", "Owner", "Owners", "apply_to_for", "moments_of", "split_moments", "splits_gradient"]

ApplyTo = Literal["auto", "gradient", "update"]
Moments = Literal["zero", "layer_mean", "keep"]

#: Per-element optimizer state that averages gradients or updates: a new synapse has moved nowhere yet.
_FIRST_MOMENTS = frozenset(("exp_avg", "momentum_buffer", "grad_avg", "prev", "mu", "ax"))
#: Per-element optimizer state that averages squared or absolute gradients or updates.
_SECOND_MOMENTS = frozenset(
    ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta", "exp_inf", "step_size", "eta")
)


@dataclasses.dataclass(frozen=True)
class Owner:
    """The optimizer, its number and the parameter group that a weight belongs to."""

    index: int
    optimizer: Optimizer
    group: dict[str, Any]


class Owners:
    """Finds the owner of a parameter.

    Args:
        optimizers: In the order of ``configure_optimizers``.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        self.version = 0  # how often the groups have changed
        self._groups: list[tuple[int, int]] = []
        self._by_id: dict[int, Owner] = {}

    def find(self, parameter: nn.Parameter) -> Owner | None:
        """Owner of a parameter, None where no optimizer has it."""
        self.refresh()
        return self._by_id.get(id(parameter))

    def refresh(self) -> None:
        """Look at the groups again."""
        groups = [(id(g), len(g["params"])) for optimizer in self.optimizers for g in optimizer.param_groups]
        if groups != self._groups:  # groups grow when layers are unfrozen, and are new after a restore
            self._groups = groups
            self.version += 1
            self._by_id = {
                id(member): Owner(index, optimizer, group)
                for index, optimizer in enumerate(self.optimizers)
                for group in optimizer.param_groups
                for member in group["params"]
            }


def apply_to_for(setting: ApplyTo, owner: Owner) -> Literal["gradient", "update"]:
    """Whether multipliers scale the gradient or the update, for one parameter group.

    ``auto`` picks the gradient only where that is the same as scaling the learning rate: SGD without weight decay.
    """
    if setting != "auto":
        return setting
    return "gradient" if _is_sgd(owner) and not owner.group["weight_decay"] else "update"


def splits_gradient(owner: Owner, mode: Literal["gradient", "update"]) -> bool:
    """Whether a synapse's share of its connection's step is taken off the gradient, rather than off the update.

    For SGD always: weight decay then acts on every synapse in full, and their sum decays as the unsplit weight would.
    """
    return mode == "gradient" or _is_sgd(owner)


def _is_sgd(owner: Owner) -> bool:
    """A subclass of SGD may do anything with a gradient."""
    return type(owner.optimizer) is torch.optim.SGD


def moments_of(optimizer: Optimizer, parameter: nn.Parameter, how: Moments) -> tuple[list[Kept], list[str]]:
    """The optimizer's memory of every synapse, with what becomes of it where the synapse is new.

    Args:
        optimizer: Owner of ``parameter``.
        parameter: The weight tensor.
        how: ``zero``: all moments 0; ``layer_mean``: first moments 0, second moments the layer's mean; ``keep``.

    Returns:
        The moments with their fills, and names of per-element states that are neither a known first nor a known second
        moment, and stay as they are.
    """
    kept: list[Kept] = []
    unknown = []
    for name, state in optimizer.state.get(parameter, {}).items():
        if how == "keep" or not isinstance(state, Tensor) or state.ndim == 0 or state.shape != parameter.shape:
            continue
        if name not in _FIRST_MOMENTS and name not in _SECOND_MOMENTS:
            unknown.append(name)
        else:
            kept.append(Kept(state, ZERO if name in _FIRST_MOMENTS or how == "zero" else MEAN))
    return kept, unknown


@torch.no_grad()
def split_moments(optimizer: Optimizer, parameter: nn.Parameter, *, divided: bool) -> None:
    """Give every synapse the optimizer's memory of its connection, where that is of a time before the split.

    Args:
        optimizer: Owner of ``parameter``.
        parameter: Synapses, split along the first axis.
        divided: Whether the gradient of a synapse is its share of the connection's.
    """
    gamma = parameter.shape[0]
    for name, state in optimizer.state.get(parameter, {}).items():
        if isinstance(state, Tensor) and state.ndim > 0 and state.shape == parameter.shape[1:]:
            power = 2 if name in _SECOND_MOMENTS else 1
            optimizer.state[parameter][name] = torch.stack([state / gamma**power if divided else state] * gamma)
