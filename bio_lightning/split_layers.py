"""Layers whose connections consist of several synapses, and their way back to plain layers.

Two ways to split. ``synapses``: the parameter ``weight`` gets a leading axis of sub-weights, and the layer's class one
property that sums them, so that name, checkpoint key and forward stay what they were. ``grouped``: a forward hook sums
groups of output units, after an activation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bio_lightning.firing_rates import RateCounter
from bio_lightning.functional._shards import local
from bio_lightning.functional.weight_splitting import sum_groups

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "GroupSum",
    "SplitLayer",
    "fit_to_split",
    "fold",
    "group_outputs",
    "split_layer",
]

Activation = Literal["relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu", "elu"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}


class SplitLayer(nn.Module):
    """What a split layer has beyond the class it had before: ``weight`` reads as the sum of its synapses."""

    @property
    def weight(self) -> Tensor:
        """The summed weight, shape of the unsplit one; the trainable synapses are the parameter of the same name."""
        parameter = self._parameters["weight"]
        assert parameter is not None  # noqa: S101 - an invariant: only layers with a weight are split
        return parameter.sum(dim=0)

    @property
    def synapses_per_connection(self) -> int:
        """Length of the leading axis of the parameter ``weight``."""
        parameter = self._parameters["weight"]
        assert parameter is not None  # noqa: S101 - see weight
        return parameter.shape[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self).__mro__[2],), self.__dict__.copy()


_SPLIT_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _split_class(plain: type[nn.Module]) -> type[nn.Module]:
    """The split variant of a layer's class; a subclass of it, so that ``isinstance`` checks still hold."""
    if plain not in _SPLIT_CLASSES:
        body = {"__doc__": f"{plain.__name__} with split synapses."}
        _SPLIT_CLASSES[plain] = type(f"Split{plain.__name__}", (SplitLayer, plain), body)
    return _SPLIT_CLASSES[plain]


def _rebuild(plain: type[nn.Module]) -> nn.Module:
    split = _split_class(plain)
    return split.__new__(split)


@torch.no_grad()
def split_layer(layer: nn.Module, gamma: int) -> nn.Module:
    """Turn a layer's weight into ``gamma`` equal synapses per connection, in place; the function stays the same.

    Args:
        layer: Linear or convolution, unsplit.
        gamma: Synapses per connection, >= 2.

    Example:
        >>> layer = split_layer(nn.Linear(3, 2), gamma=4)
        >>> dict(layer.named_parameters())["weight"].shape, layer.weight.shape, isinstance(layer, nn.Linear)
        (torch.Size([4, 2, 3]), torch.Size([2, 3]), True)
    """
    weight = layer._parameters["weight"]
    if weight is None or isinstance(layer, SplitLayer):
        raise ValueError(f"{type(layer).__name__} has no plain weight to split")
    parts = torch.stack([weight / gamma] * gamma)
    layer._parameters["weight"] = nn.Parameter(parts, requires_grad=weight.requires_grad)
    layer.__class__ = _split_class(type(layer))
    return layer


def fit_to_split(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Pre-hook of ``load_state_dict``: split the weights of a plain checkpoint as the layers of a model are split.

    Their shares are equal.

    Raises:
        ValueError: The checkpoint's layers are split in another way.
    """
    for name, parameter in module.named_parameters():
        saved = state_dict.get(prefix + name)
        if saved is None or saved.shape == parameter.shape:
            continue
        layer = module.get_submodule(name.rpartition(".")[0])
        gamma = layer.synapses_per_connection if isinstance(layer, SplitLayer) else 1
        plain = parameter.shape[1:] if gamma > 1 else parameter.shape
        if gamma > 1 and saved.shape == plain:
            state_dict[prefix + name] = torch.stack([saved / gamma] * gamma)
        elif saved.shape[1:] == plain:
            raise ValueError(
                f"WeightSplitting: {name} has {len(saved)} synapses per connection in the checkpoint, {gamma} in the"
                f" model; resume with WeightSplitting(mode='synapses', gamma={len(saved)}), or load the weights of"
                " fold(WeightSplitting.restore(model, checkpoint)) and fit without ckpt_path"
            )


class GroupSum(nn.Module):
    """Forward hook that applies an activation and gives every unit the sum over its group.

    Args:
        gamma: Units per group.
        dim: Dimension of the units, counted from the end.
        activation: Name of an activation, or None.

    Raises:
        ValueError: Tensor parallelism has left a process units that do not divide into groups.
    """

    def __init__(self, gamma: int, dim: int, activation: Activation | None = None) -> None:
        super().__init__()
        self.gamma, self.dim, self.activation_name = gamma, dim, activation
        self.activation = ACTIVATIONS[activation]() if activation else nn.Identity()

    def forward(self, output: Tensor) -> Tensor:
        """Grouped output, the shape of ``output``."""
        return sum_groups(self.activation(output), self.gamma, self.dim)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """As a module ``(output)``, or as a forward hook ``(layer, inputs, output)``."""
        units = local(args[-1]).shape[self.dim]
        if units % self.gamma:  # a layer's own units do divide
            raise ValueError(
                f"WeightSplitting(mode='grouped') cannot work with tensor parallelism that leaves a process {units}"
                f" units of a layer: groups of {self.gamma} would cross processes; choose a gamma that divides {units},"
                " or exclude the layer"
            )
        result: Tensor = super().__call__(args[-1], **kwargs)
        return result


def group_hook(layer: nn.Module) -> GroupSum | None:
    """The layer's group hook, if it has one."""
    return next((hook for hook in layer._forward_hooks.values() if isinstance(hook, GroupSum)), None)


def group_outputs(layer: nn.Module, gamma: int, activation: Activation | None = None) -> nn.Module:
    """Sum groups of ``gamma`` output units of a layer, after ``activation``, in place by a forward hook.

    Example:
        >>> layer = group_outputs(nn.Linear(3, 4), gamma=2)
        >>> out = layer(torch.ones(1, 3))
        >>> bool(out[0, 0] == out[0, 1])
        True
    """
    spatial = len(layer.kernel_size) if isinstance(layer, _ConvNd) else 0
    layer.register_forward_hook(GroupSum(gamma, -1 - spatial, activation))
    return layer


def fold(module: nn.Module) -> nn.Module:
    """A plain copy of a model, equal in function: splits merged, group sums folded in, no hooks of ours.

    Outputs agree to 1e-5 in float32 and 1e-10 in float64. A grouped layer with an activation becomes
    ``nn.Sequential(layer, activation, group sum)``, all plain modules; its checkpoint keys change accordingly.

    Args:
        module: Any module, split or not; it is not changed.

    Returns:
        The copy.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> plain = fold(nn.Sequential(split_layer(net[0], 2), net[1], group_outputs(net[2], 2)))
        >>> type(plain[0]), plain[0].weight.shape, len(plain[2]._forward_hooks)
        (<class 'torch.nn.modules.linear.Linear'>, torch.Size([4, 3]), 0)
    """
    module = copy.deepcopy(module)
    for part in module.modules():
        for key in [key for key, hook in part._forward_hooks.items() if isinstance(hook, RateCounter)]:
            del part._forward_hooks[key]  # the model is in training
    if group_hook(module) is not None:
        module = _fold_groups(module)
    replaced: dict[nn.Module, nn.Module] = {}
    for child in list(module.modules()):
        for name, layer in child._modules.items():
            if layer is not None and group_hook(layer) is not None:
                replaced[layer] = _fold_groups(layer)
            if layer in replaced:
                child._modules[name] = replaced[layer]
    merged: dict[int, nn.Parameter] = {}
    for layer in module.modules():
        if isinstance(layer, SplitLayer):
            _merge(layer, merged)
    return module


@torch.no_grad()
def _merge(layer: SplitLayer, merged: dict[int, nn.Parameter]) -> None:
    """Replace synapses by their sum; layers that share a weight share the sum."""
    parts = layer._parameters["weight"]
    if id(parts) not in merged:
        merged[id(parts)] = nn.Parameter(layer.weight, requires_grad=bool(parts is not None and parts.requires_grad))
    layer.__class__ = type(layer).__mro__[2]
    layer._parameters["weight"] = merged[id(parts)]


@torch.no_grad()
def _fold_groups(layer: nn.Module) -> nn.Module:
    hook = group_hook(layer)
    if hook is None:
        return layer
    for key in [key for key, found in layer._forward_hooks.items() if found is hook]:
        del layer._forward_hooks[key]
    if hook.activation_name is not None:
        return nn.Sequential(layer, ACTIVATIONS[hook.activation_name](), _group_sum_layer(layer, hook.gamma))
    for name, dim in (("weight", -layer_rank(layer)), ("bias", -1)):
        parameter = layer._parameters[name]
        if parameter is not None:
            parameter.copy_(sum_groups(parameter, hook.gamma, dim))
    return layer


def layer_rank(layer: nn.Module) -> int:
    """Number of dimensions of the layer's unsplit weight."""
    return len(layer.kernel_size) + 2 if isinstance(layer, _ConvNd) else 2


def _group_sum_layer(layer: nn.Module, gamma: int) -> nn.Module:
    """A frozen plain layer that sums groups: block matrix for Linear, grouped 1x1 convolution for convolutions."""
    weight = cast(Tensor, layer.weight)
    units = weight.shape[0]
    block = weight.new_ones(gamma, gamma)
    if isinstance(layer, _ConvNd):
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(layer.kernel_size) - 1]
        plain: nn.Module = convolution(units, units, 1, groups=units // gamma, bias=False, device="meta")
        values = block.repeat(units // gamma, 1).view(units, gamma, *(1,) * len(layer.kernel_size))
    else:
        plain = nn.Linear(units, units, bias=False, device="meta")  # initialising there draws no random numbers
        values = torch.eye(units // gamma).to(weight).kron(block)
    plain._parameters["weight"] = nn.Parameter(values)
    return plain.requires_grad_(False).train(layer.training)
