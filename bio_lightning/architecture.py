"""Forward order of a model's layers, what follows them, and who reads a neuron."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as fn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import fx, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from bio_lightning.errors import BioConfigError, nearest_name
from bio_lightning.hidden_neurons import Hidden, hidden_neurons, output_neurons
from bio_lightning.synapses import is_norm, named_modules, plain_name

__all__ = ["Architecture", "Reader", "trace_architecture"]

#: How attributes of a module begin under which FSDP2 keeps what it knows.
_FSDP_STATE = "__composable_api_state_key"


@dataclasses.dataclass(frozen=True)
class Reader:
    """A layer that reads a neuron: neuron ``i`` is input ``i * block`` to ``(i + 1) * block - 1``."""

    module_name: str
    block: int = 1


@dataclasses.dataclass
class Architecture:
    """What is known of the data flow between a model's layers.

    Args:
        order: Layers in forward order.
        inputs: Layers that read the model's input.
        outputs: Layers whose output, perhaps through activations, is the model's.
        norms: For a layer the norm directly behind it.
        readers: For a layer all layers that read its neurons; missing where that is unknown.
        hidden: For a layer behind recurrent ones the hidden neurons that it reads, each population by the recurrent
            weight that reads it, too; empty where they cannot be told.
        source: How it was found out.
    """

    order: list[str]
    inputs: set[str] = dataclasses.field(default_factory=set)
    outputs: set[str] = dataclasses.field(default_factory=set)
    norms: dict[str, str] = dataclasses.field(default_factory=dict)
    readers: dict[str, tuple[Reader, ...]] = dataclasses.field(default_factory=dict)
    hidden: dict[str, Hidden] = dataclasses.field(default_factory=dict)
    source: str = "registration order"


def trace_architecture(
    model: pl.LightningModule, layers: dict[str, nn.Module], given: Sequence[str] | None = None
) -> Architecture:
    """Find out the forward order by an fx trace, else a dry run on ``example_input_array``, else registration order.

    Neither changes the model or the random state. A model whose parts can be traced but not the whole (no ``forward``,
    or control flow in it) is taken part by part in registration order.

    Args:
        model: The LightningModule.
        layers: Its layers with synapses by name, in registration order.
        given: All of these names in forward order, where tracing would get it wrong.

    Raises:
        BioConfigError: ``given`` does not name every layer once.
    """
    flow = _traced(model, layers)
    if given is not None:
        for name in given:
            if name not in layers:
                raise BioConfigError("forward_order", name, ", ".join(layers), nearest_name(name, layers))
        if sorted(given) != sorted(layers):
            raise BioConfigError("forward_order", tuple(given), "every layer once: " + ", ".join(layers))
        flow.order, flow.inputs, flow.outputs = list(given), {given[0]}, {given[-1]}
        flow.source = "as given"
    return flow


def _traced(model: pl.LightningModule, layers: dict[str, nn.Module]) -> Architecture:
    """Trace a stand-in, since running a user's ``forward`` may leave marks on the model and move any random state."""
    try:
        stand_in = _copy_without_parameters(model)
    except Exception:  # whatever a user's class may raise; the source then says that nothing was traced
        return _with_ends(Architecture(order=list(layers)))
    stand_in._trainer = model._trainer
    for module in list(stand_in.modules()):
        for name, child in module._modules.items():
            module._modules[name] = getattr(child, "_orig_mod", child)  # nobody can look inside compiled code
    modules = named_modules(stand_in)
    with _random_state_kept(), torch.no_grad():
        return _traced_here(stand_in, {name: modules[name] for name in layers})


def _copy_without_parameters(model: pl.LightningModule) -> pl.LightningModule:
    """A copy that shares the parameters.

    Where these are spread over processes, it is without hooks and FSDP2's classes, which would send and receive.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return copy.deepcopy(model, memo)
    for module in reversed(list(model.modules())):  # children before their parents
        own = vars(module)
        memo.update((id(value), type(value)()) for key, value in own.items() if key.endswith("_hooks"))
        memo.update((id(value), value) for value in own.values() if isinstance(value, DeviceMesh))
        if isinstance(module, FSDPModule):
            plain = type(module).__mro__[2]
            copied: nn.Module = object.__new__(plain)
            memo[id(module)] = copied
            kept = {key: value for key, value in own.items() if key != "_trainer" and not key.startswith(_FSDP_STATE)}
            copied.__dict__.update(copy.deepcopy(kept, memo))
    return copy.deepcopy(model, memo)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    arrays = sys.modules.get("numpy")  # what is not loaded has no random state
    python, numbers = random.getstate(), arrays.random.get_state() if arrays else None
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            random.setstate(python)
            if arrays:
                arrays.random.set_state(numbers)


def _with_ends(flow: Architecture) -> Architecture:
    flow.inputs, flow.outputs = set(flow.order[:1]), set(flow.order[-1:])
    return flow


def _traced_here(model: pl.LightningModule, layers: dict[str, nn.Module]) -> Architecture:
    whole = _trace(model, "", layers)
    if whole is not None:
        return whole
    if getattr(model, "example_input_array", None) is not None:
        return _with_doubts(_dry_run(model, layers), layers)
    parts = _trace_parts(model, "", layers)
    if is_overridden("forward", model, pl.LightningModule):
        parts.readers.clear()  # a forward that cannot be traced may use the parts in any way
        parts.hidden.clear()
    parts.order += [name for name in layers if name not in parts.order]
    return _with_doubts(_with_ends(parts), layers)


def _with_doubts(flow: Architecture, layers: dict[str, nn.Module]) -> Architecture:
    """Layers that come behind a recurrent one and have its size may read its neurons, or others of their number."""
    for before, name in itertools.pairwise(flow.order):
        inputs = getattr(layers[name], "in_features", getattr(layers[name], "input_size", None))
        if isinstance(layers[before], _RECURRENT) and inputs == output_neurons(layers[before]):
            flow.hidden.setdefault(name, ())
    return flow


# ---- fx -------------------------------------------------------------------------------------------------------------

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_POOLING = (
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)  # fmt: skip
#: Modules and functions that keep neurons apart and in place; pooling does on feature maps only.
_KEEPS_NEURONS = (
    nn.modules.activation.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
    nn.Threshold, nn.Identity, nn.modules.dropout._DropoutNd, *_POOLING,
)  # fmt: skip
_POOLING_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    (
        fn.max_pool1d, fn.max_pool2d, fn.max_pool3d, fn.avg_pool1d, fn.avg_pool2d, fn.avg_pool3d,
        fn.adaptive_avg_pool1d, fn.adaptive_avg_pool2d, fn.adaptive_avg_pool3d,
    )
)  # fmt: skip
_KEEPING_FUNCTIONS: frozenset[Callable[..., Any]] = _POOLING_FUNCTIONS | frozenset(
    (
        fn.relu, fn.relu6, fn.leaky_relu, fn.elu, fn.selu, fn.celu, fn.gelu, fn.silu, fn.mish, fn.softplus,
        fn.softsign, fn.hardtanh, fn.hardswish, fn.hardsigmoid, fn.dropout, torch.relu, torch.tanh, torch.sigmoid,
    )
)  # fmt: skip
_KEEPING_METHODS = frozenset(("relu", "tanh", "sigmoid", "contiguous", "to", "float"))


class _Tracer(fx.Tracer):
    """Looks inside everything but layers with synapses, whatever their class, and torch's own modules."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self._layers = set(layers.values())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self._layers or super().is_leaf_module(m, module_qualified_name)


def _trace(root: nn.Module, prefix: str, layers: dict[str, nn.Module]) -> Architecture | None:
    """Fx trace of one module, or None where it cannot be traced."""
    try:
        graph = _Tracer(layers).trace(root)
    except Exception:  # whatever a user's forward may raise on a stand-in for numbers
        return None
    modules = dict(root.named_modules())
    flow = Architecture(order=[], source="fx trace")
    walk = _Walk(flow, modules, prefix, layers)
    for node in graph.nodes:
        if node.op == "call_module":
            flow.order += [n for n in walk.layers_in(node) if n not in flow.order]
    for node in graph.nodes:
        walk.note(node)
    walk.note_hidden(graph)
    # a weight used outside its layer's forward is not seen by the trace
    return flow if set(flow.order) >= {n for n in layers if n.startswith(prefix)} else None


@dataclasses.dataclass
class _Walk:
    """Reads an fx graph into an :class:`Architecture`."""

    flow: Architecture
    modules: dict[str, nn.Module]
    prefix: str
    layers: dict[str, nn.Module]

    def name(self, node: fx.Node) -> str:
        return plain_name(f"{self.prefix}{node.target}")

    def layers_in(self, node: fx.Node) -> list[str]:
        """Layers with synapses in a called module: itself, or those inside a leaf such as a transformer layer."""
        if node.op != "call_module":
            return []
        name = self.name(node)
        return [layer for layer in self.layers if layer == name or layer.startswith(f"{name}.")]

    def note(self, node: fx.Node) -> None:
        """Record where a layer's input comes from and where its neurons go."""
        inside = self.layers_in(node)
        if not inside:
            return
        if not any(self._reaches_layer(source) for source in node.all_input_nodes):
            self.flow.inputs.add(inside[0])
        if len(inside) > 1 or inside[0] != self.name(node):
            return  # inside a leaf module the trace sees nothing
        layer = inside[0]
        following = list(node.users)
        if len(following) == 1 and following[0].op == "call_module":
            behind = self.modules[str(following[0].target)]
            if is_norm(behind):
                self.flow.norms[layer] = self.name(following[0])
        found = list(self._readers(node, 1, spatial=not isinstance(self.layers[layer], nn.Linear)))
        if "output" in found:
            self.flow.outputs.add(layer)
        readers = tuple(reader for reader in found if isinstance(reader, Reader))
        if len(readers) == len(found) and readers and layer not in self.flow.readers:
            self.flow.readers[layer] = readers

    def note_hidden(self, graph: fx.Graph) -> None:
        """Record which layers read hidden neurons of recurrent ones."""
        recurrent = {
            node: (self.name(node), self.layers[self.name(node)])
            for node in graph.nodes
            if node.op == "call_module" and isinstance(self.layers.get(self.name(node)), _RECURRENT)
        }
        seen: dict[str, set[Hidden]] = {}
        for node in graph.nodes:
            inside = self.layers_in(node)
            source = node.args[0] if inside and node.args else None
            if isinstance(source, fx.Node) and self._nearest_layers(source) & set(recurrent):
                module = self.layers[inside[0]] if inside == [self.name(node)] else None
                found = hidden_neurons(source, recurrent, self._keeps_units)
                known = found if isinstance(module, (nn.Linear, *_RECURRENT)) else None
                seen.setdefault(inside[0], set()).add(known or ())
        # a layer that is called several times has to read the same neurons each time
        self.flow.hidden.update({name: found.pop() if len(found) == 1 else () for name, found in seen.items()})

    def _nearest_layers(self, node: fx.Node) -> set[fx.Node]:
        """Calls of layers upstream with no other layer in between."""
        found, seen, stack = set(), set(), [node]
        while stack:
            current = stack.pop()
            if self.layers_in(current):
                found.add(current)
            elif current not in seen:
                seen.add(current)
                stack += current.all_input_nodes
        return found

    def _keeps_units(self, node: fx.Node) -> bool:
        """Whether a call keeps the neurons of sequences, whose last dimension pooling would mix."""
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        pools = isinstance(module, _POOLING) or node.target in _POOLING_FUNCTIONS
        return self._keeps_neurons(node) and not pools

    def _reaches_layer(self, node: fx.Node) -> bool:
        """Whether a layer lies anywhere upstream."""
        seen, stack = set(), [node]
        while stack:
            current = stack.pop()
            if self.layers_in(current):
                return True
            if current not in seen:
                seen.add(current)
                stack += current.all_input_nodes
        return False

    def _readers(self, node: fx.Node, block: int, spatial: bool) -> Iterator[Reader | str]:
        """Who reads a node's neurons: a Reader, ``"output"``, or ``"unknown"``."""
        for user in node.users:
            if user.op == "output":
                yield "output"
            elif self.layers_in(user) == [self.name(user)] and user.op == "call_module":
                yield self._reader(self.name(user), flat=block == 0, spatial=spatial)
            elif self._flattens(user) and spatial:
                yield from self._readers(user, 0, spatial=False)
            elif self._keeps_neurons(user):
                yield from self._readers(user, block, spatial)
            else:
                yield "unknown"

    def _reader(self, name: str, flat: bool, spatial: bool) -> Reader | str:
        """``block`` 0 stands for flattened feature maps; the size follows from the reader's inputs."""
        module = self.layers[name]
        if isinstance(module, nn.Linear):
            return "unknown" if spatial else Reader(name, block=0 if flat else 1)
        if isinstance(module, nn.modules.conv._ConvNd) and spatial:
            return Reader(name)
        return "unknown"

    def _keeps_neurons(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            return is_norm(module) or isinstance(module, _KEEPS_NEURONS)
        if node.op == "call_function":
            return node.target in _KEEPING_FUNCTIONS
        return node.op == "call_method" and node.target in _KEEPING_METHODS

    def _flattens(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            return isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1
        if node.target not in (torch.flatten, "flatten"):
            return False
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim")
        return bool(start == 1) and len(node.args) < 3 and "end_dim" not in node.kwargs


def _trace_parts(module: nn.Module, prefix: str, layers: dict[str, nn.Module]) -> Architecture:
    """Trace the children one by one, deeper where a child cannot be traced."""
    total = Architecture(order=[], source="fx trace of the parts, in registration order")
    for child_name, child in module.named_children():
        path = plain_name(f"{prefix}{child_name}")
        below = [name for name in layers if name == path or name.startswith(f"{path}.")]
        if not below:
            continue
        inner = {name: layers[name] for name in below if name != path}
        part = _trace(child, f"{path}.", inner) if inner else Architecture(order=[])
        if part is None:
            part = _trace_parts(child, f"{path}.", layers)
            part.readers.clear()
            part.hidden.clear()
        if path in below:
            part.order.insert(0, path)
        total.order += [name for name in part.order if name not in total.order]
        total.norms.update(part.norms)
        total.readers.update(part.readers)
        total.hidden.update(part.hidden)
    return total


# ---- dry run --------------------------------------------------------------------------------------------------------


def _dry_run(model: nn.Module, layers: dict[str, nn.Module]) -> Architecture:
    """One forward pass in evaluation mode with hooks that watch the order of calls."""
    flow = Architecture(order=[], source="dry run on example_input_array")
    last_output: dict[int, str] = {}
    keep = []  # a freed tensor's id could be reused
    names = {id(module): name for name, module in layers.items()}

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        keep.append((inputs, output))
        name = names.get(id(module))
        if name is not None and name not in flow.order:
            flow.order.append(name)
            last_output[id(output)] = name
        elif is_norm(module) and inputs and id(inputs[0]) in last_output:
            flow.norms.setdefault(last_output[id(inputs[0])], modules[id(module)])

    modules = {id(module): plain_name(name) for name, module in model.named_modules()}
    training = [module for module in model.modules() if module.training]
    handles = [module.register_forward_hook(watch) for module in model.modules()]
    try:
        model.eval()
        example = copy.deepcopy(model.example_input_array)
        device = next(model.parameters()).device
        example = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), example)
        if isinstance(example, dict):
            model(**example)
        else:
            model(*example) if isinstance(example, tuple) else model(example)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    flow.order += [name for name in layers if name not in flow.order]
    return _with_ends(flow)
