"""Which tensors of a model are synapses: layers, pre- and postsynaptic axes, selection by pattern."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from bio_lightning.errors import BioConfigError, nearest_name
from bio_lightning.functional._shards import cut

__all__ = [
    "ALL_KINDS",
    "NEURON_KINDS",
    "Kind",
    "Synapses",
    "find_synapses",
    "is_norm",
    "named_modules",
    "plain_name",
    "recompile_for_hooks",
    "select",
]

Kind = Literal["linear", "conv", "conv_transpose", "embedding", "attention", "recurrent"]
ALL_KINDS: frozenset[Kind] = frozenset(("linear", "conv", "conv_transpose", "embedding", "attention", "recurrent"))
#: Layers whose output channels are neurons with a firing rate.
NEURON_KINDS: frozenset[Kind] = frozenset(("linear", "conv", "conv_transpose"))


def plain_name(name: str) -> str:
    """A parameter's or module's name as it was before ``torch.compile`` wrapped its submodule.

    Example:
        >>> plain_name("net._orig_mod.0.weight")
        'net.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules of a model by :func:`plain_name`; for a compiled one the module inside."""
    return {plain_name(name): module for name, module in model.named_modules()}


def recompile_for_hooks(model: nn.Module) -> None:
    """Make compiled code see that forward hooks have come or gone; it does not look by itself."""
    if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules()):
        torch.compiler.reset()


@dataclasses.dataclass(eq=False)
class Synapses:
    """One weight tensor of a model, and how its axes map to neurons.

    Args:
        name: Qualified parameter name, without ``_orig_mod``.
        module: The layer.
        module_name: Its qualified name.
        attribute: The parameter's name in the layer.
        kind: Family of the layer.
        sites: Every layer that uses the tensor, this one first; several where the weight is tied.
    """

    name: str
    module: nn.Module
    module_name: str
    attribute: str
    kind: Kind
    sites: tuple[Synapses, ...] = ()

    @property
    def weight(self) -> nn.Parameter:
        """The parameter as the optimizer sees it: with leading axis ``gamma`` where the layer is split."""
        parameter = self.module._parameters.get(self.attribute)
        if parameter is None:
            raise RuntimeError(f"{self.name}: the parameter was removed from its layer during training")
        return parameter

    @property
    def names(self) -> set[str]:
        """Every name by which a pattern can select the tensor: parameter and layer, of all sites."""
        return {n for site in (self, *self.sites) for n in (site.name, site.module_name)}

    @property
    def gamma(self) -> int:
        """Synapses per connection: 1 unless the layer is split."""
        split = hasattr(type(self.module), "synapses_per_connection")  # a module's own getattr is slow to fail
        return cast("int", self.module.synapses_per_connection) if split else 1

    @property
    def padding_row(self) -> int | None:
        """Row of an embedding's padding token, a constant zero and no synapse."""
        rows = (getattr(site.module, "padding_idx", None) for site in (self, *self.sites))
        return next((row for row in rows if row is not None), None)

    @property
    def shape(self) -> torch.Size:
        """Shape of the layer's weight, without the axis of a split."""
        return self.weight.shape[1:] if self.gamma > 1 else self.weight.shape

    @property
    def groups(self) -> int:
        """Groups of a convolution."""
        return int(getattr(self.module, "groups", 1)) if self.kind in ("conv", "conv_transpose") else 1

    @property
    def presynaptic_neurons(self) -> int:
        """Number of neurons that the layer reads."""
        return self.shape[0] if self.kind == "conv_transpose" else self.shape[1] * self.groups

    @property
    def postsynaptic_neurons(self) -> int:
        """Number of rows: of neurons, or of gates in a recurrent layer and projections in attention."""
        return self.shape[1] * self.groups if self.kind == "conv_transpose" else self.shape[0]

    def along_presynaptic(self, values: Tensor) -> Tensor:
        """One value per presynaptic neuron, shaped to broadcast against the weight, or this process's part of it.

        Values of several layers like this one have one more axis in front.
        """
        if self.kind == "conv_transpose":
            return self._per_row(values)
        return self._spread(values, repeats=self.shape[0] // self.groups)

    def along_postsynaptic(self, values: Tensor) -> Tensor:
        """One value per postsynaptic neuron, likewise."""
        if self.kind == "conv_transpose":
            return self._spread(values, repeats=self.shape[0] // self.groups)
        return self._per_row(values)

    def _per_row(self, values: Tensor) -> Tensor:
        weight = self.weight
        return cut(values.view(*values.shape, *(1,) * (weight.ndim - (2 if self.gamma > 1 else 1))), weight)

    def _spread(self, values: Tensor, repeats: int) -> Tensor:
        """Values of axis 1, which holds only one group's neurons; the group follows from the position on axis 0."""
        rows = values.view(*values.shape[:-1], self.groups, -1)
        if self.groups > 1:
            rows = rows.repeat_interleave(repeats, dim=-2)
        return cut(rows.view(*rows.shape, *(1,) * (len(self.shape) - 2)), self.weight)


def _weights_of(module: nn.Module) -> Iterator[tuple[str, Kind]]:
    """Parameter names of a module's own synapses."""
    if isinstance(module, nn.Linear):
        yield "weight", "linear"
    elif isinstance(module, _ConvTransposeNd):
        yield "weight", "conv_transpose"
    elif isinstance(module, _ConvNd):
        yield "weight", "conv"
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        yield "weight", "embedding"
    elif isinstance(module, nn.MultiheadAttention):
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            yield name, "attention"
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        for name in module._parameters:
            if name.startswith("weight_"):
                yield name, "recurrent"


def find_synapses(model: nn.Module) -> tuple[dict[str, Synapses], dict[str, str]]:
    """All synapses of a model in registration order, and the weights that look like synapses but cannot be used.

    A tied weight is one entry under its first name. Where one of its layers has neurons (a Linear tied to an
    Embedding), that layer gives the axes.

    Returns:
        Synapses by name, and for every unusable layer the reason.

    Raises:
        RuntimeError: A lazy layer has no weights yet.
    """
    sites: dict[int, list[Synapses]] = {}
    unusable: dict[str, str] = {}
    for raw_name, module in model.named_modules():
        module_name = plain_name(raw_name)
        for attribute, kind in _weights_of(module):
            name = f"{module_name}.{attribute}".removeprefix(".")
            parameter = module._parameters.get(attribute)
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise RuntimeError(
                    f"{name}: the lazy layer has no weights yet, which bio callbacks need; run one forward pass before"
                    " fitting"
                )
            if parameter is not None and parameter.numel() == 0:
                unusable[name] = "it has no weights"
            elif parameter is not None and getattr(module, "sparse", False):
                unusable[name] = "its gradients are sparse (sparse=True)"
            elif parameter is not None and not parameter.is_floating_point():
                unusable[name] = f"its weights are no real numbers ({parameter.dtype})"
            elif parameter is not None:
                sites.setdefault(id(parameter), []).append(Synapses(name, module, module_name, attribute, kind))
            elif kind != "attention":
                unusable[name] = "its weight is not a plain parameter (parametrized?)"
    found = {}
    for uses in sites.values():
        main = next((use for use in uses if use.kind != "embedding"), uses[0])
        others = tuple(use for use in uses if use is not main)
        found[uses[0].name] = dataclasses.replace(main, name=uses[0].name, sites=(main, *others))
    return found, unusable


def is_norm(module: nn.Module) -> bool:
    """Whether the module normalises its input and keeps its shape."""
    return isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm))


def _matching(patterns: Sequence[str], synapses: Iterable[Synapses]) -> dict[str, list[Synapses]]:
    every = list(synapses)
    return {p: [s for s in every if any(fnmatch.fnmatchcase(n, p) for n in s.names)] for p in patterns}


def select(
    synapses: dict[str, Synapses],
    include: Sequence[str],
    exclude: Sequence[str],
    kinds: frozenset[Kind] = ALL_KINDS,
    owner: str = "",
    key: str = "include",
) -> tuple[list[Synapses], list[Synapses]]:
    """The synapses that a mechanism acts on.

    Args:
        synapses: All synapses of the model by name.
        include: fnmatch patterns on qualified parameter or module names.
        exclude: Patterns to leave out again.
        kinds: Kinds of layers that the mechanism acts on.
        owner: Who asks, for error messages.
        key: Where the patterns in ``include`` come from, likewise.

    Returns:
        Selected synapses, and those that the patterns name but the mechanism does not act on.

    Raises:
        BioConfigError: A pattern matches nothing, or ``include`` names only layers that the mechanism skips.
    """
    included, excluded = _matching(include, synapses.values()), _matching(exclude, synapses.values())
    prefix = f"{owner}." if owner else ""
    for given, matches in ((key, included), ("exclude", excluded)):
        for pattern, matched in matches.items():
            if not matched:
                known = "a pattern that matches one of " + (", ".join(synapses) or "(the model has no synapses)")
                raise BioConfigError(prefix + given, pattern, known, nearest_name(pattern, synapses))
    left_out = {s.name for matched in excluded.values() for s in matched}
    named = {s.name: s for matched in included.values() for s in matched if s.name not in left_out}
    ordered = [s for name, s in synapses.items() if name in named]
    chosen = [s for s in ordered if s.kind in kinds]
    if left_out and not ordered:
        names = ", ".join(dict.fromkeys(s.name for matched in included.values() for s in matched))
        raise BioConfigError(f"{prefix}exclude", tuple(exclude), f"patterns that leave at least one of {names}")
    if not chosen:
        allowed = f"patterns that name at least one layer of kind {', '.join(sorted(kinds))}"
        only = ", ".join(f"{s.name} ({s.kind})" for s in ordered)
        raise BioConfigError(prefix + key, tuple(include), f"{allowed}; these name only {only}" if only else allowed)
    return chosen, [s for s in ordered if s.kind not in kinds]
