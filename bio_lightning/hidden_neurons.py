"""Which hidden neurons of recurrent layers a layer reads, followed upstream through an fx graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

__all__ = ["Hidden", "hidden_neurons", "last_hidden", "output_neurons"]

#: Populations of hidden neurons in the order in which they are read, each by the recurrent weight that reads it, too.
Hidden = tuple[str, ...]

_REDUCTIONS = frozenset(("mean", "sum", "amax", torch.mean, torch.sum, torch.amax))


def last_hidden(name: str, module: nn.Module) -> Hidden:
    """Populations in the output of a recurrent layer.

    Example:
        >>> last_hidden("rnn", nn.GRU(2, 3, num_layers=2, bidirectional=True))
        ('rnn.weight_hh_l1', 'rnn.weight_hh_l1_reverse')
    """
    if isinstance(module, nn.RNNCellBase):
        return (f"{name}.weight_hh",)
    return _all_hidden(name, module)[-_directions(module) :]


def output_neurons(module: nn.Module) -> int:
    """Number of neurons in the output of a recurrent layer.

    Example:
        >>> output_neurons(nn.LSTM(2, 3, bidirectional=True))
        6
    """
    size = int(getattr(module, "proj_size", 0)) or int(module.hidden_size)  # type: ignore[arg-type] # of any module
    return size * _directions(module)


def hidden_neurons(
    node: fx.Node, recurrent: Mapping[fx.Node, tuple[str, nn.Module]], keeps: Callable[[fx.Node], bool]
) -> Hidden | None:
    """The hidden neurons in a tensor, or None where it holds anything else, or in another order.

    Indices are followed whatever they pick: of time steps, of sequences, or all neurons. The reader has to compare the
    number of its inputs.

    Args:
        node: The tensor.
        recurrent: Name and module of every call of a recurrent layer.
        keeps: Whether a call keeps neurons apart and in place.
    """
    if node in recurrent:
        name, module = recurrent[node]
        return last_hidden(name, module) if isinstance(module, (nn.RNNCell, nn.GRUCell)) else None
    sources = [argument for argument in node.args if isinstance(argument, fx.Node)]
    if node.target in (torch.cat, torch.concat):
        return _joined(node, recurrent, keeps)
    if len(sources) != 1 or node.all_input_nodes != sources:
        return None
    if node.target is operator.getitem:
        return _picked(sources[0], node.args[1], recurrent, keeps)
    if node.target == "squeeze" and node.args[1:] == (0,):
        return _picked(sources[0], 0, recurrent, keeps)
    if keeps(node) or (node.target in _REDUCTIONS and _dim(node) in (0, 1, -2, -3)):
        return hidden_neurons(sources[0], recurrent, keeps)
    return None


def _joined(
    node: fx.Node, recurrent: Mapping[fx.Node, tuple[str, nn.Module]], keeps: Callable[[fx.Node], bool]
) -> Hidden | None:
    """Populations side by side, as in ``torch.cat((h[-2], h[-1]), dim=1)``."""
    joined: Hidden = ()
    parts = node.args[0]
    for part in parts if isinstance(parts, (list, tuple)) else ():
        found = hidden_neurons(part, recurrent, keeps) if isinstance(part, fx.Node) else None
        if found is None:
            return None
        joined += found
    return joined if _dim(node) in (1, 2, -1) else None


def _picked(
    source: fx.Node, index: Any, recurrent: Mapping[fx.Node, tuple[str, nn.Module]], keeps: Callable[[fx.Node], bool]
) -> Hidden | None:
    """What an index takes: the output of a recurrent layer, one entry of its last state, or some of a tensor."""
    if source in recurrent:
        name, module = recurrent[source]
        # the cell state of an LSTM, at index 1, fires no other neuron
        is_output = index == 0 and isinstance(module, (nn.RNNBase, nn.LSTMCell))
        return last_hidden(name, module) if is_output else None
    owner = _state_of(source, recurrent)
    if owner is not None:
        states = _all_hidden(*owner)
        inside = isinstance(index, int) and -len(states) <= index < len(states)
        return (states[index],) if inside else None
    parts = index if isinstance(index, tuple) else (index,)
    plain = all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts)
    return hidden_neurons(source, recurrent, keeps) if plain else None


def _state_of(node: fx.Node, recurrent: Mapping[fx.Node, tuple[str, nn.Module]]) -> tuple[str, nn.Module] | None:
    """The recurrent layer whose last hidden state ``h_n``, of all layers and directions, a tensor is."""
    path = []
    while node.target is operator.getitem and node not in recurrent:
        path.append(node.args[1])
        node = node.all_input_nodes[0]
    if node not in recurrent:
        return None
    module = recurrent[node][1]
    wanted = [0, 1] if isinstance(module, nn.LSTM) else [1]
    return recurrent[node] if isinstance(module, nn.RNNBase) and path == wanted else None


def _all_hidden(name: str, module: nn.Module) -> Hidden:
    """Populations in the last state ``h_n``, layer by layer, both directions of each."""
    ends = ("", "_reverse")[: _directions(module)]
    assert isinstance(module, nn.RNNBase)  # noqa: S101 - the callers ask
    return tuple(f"{name}.weight_hh_l{layer}{end}" for layer in range(module.num_layers) for end in ends)


def _directions(module: nn.Module) -> int:
    return 2 if getattr(module, "bidirectional", False) else 1


def _dim(node: fx.Node) -> Any:
    """The dimension that a call names, 0 for ``cat`` without one."""
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0 if node.target is torch.cat else None)
    return given[0] if isinstance(given, (list, tuple)) and len(given) == 1 else given
