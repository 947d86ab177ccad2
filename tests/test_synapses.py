"""Which tensors are synapses, how their axes map to neurons, and selection by pattern."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from bio_lightning import BioConfigError
from bio_lightning.split_layers import split_layer
from bio_lightning.synapses import NEURON_KINDS, find_synapses, plain_name, select
from tests.models import CNN, Recurrent, Tied, Transformer


def only(layer: nn.Module):
    (synapses,) = find_synapses(nn.Sequential(layer))[0].values()
    return synapses


def test_every_kind_is_found_and_nothing_else():
    kinds = {name: s.kind for name, s in find_synapses(Transformer())[0].items()}
    assert kinds == {
        "embed.weight": "embedding",
        "block.self_attn.in_proj_weight": "attention",
        "block.self_attn.out_proj.weight": "linear",
        "block.linear1.weight": "linear",
        "block.linear2.weight": "linear",
        "head.weight": "linear",
    }
    recurrent = find_synapses(Recurrent())[0]
    assert sum(s.kind == "recurrent" for s in recurrent.values()) == 8 + 2
    assert not any("bias" in name for name in recurrent)
    convolutions = [s.kind for s in find_synapses(CNN())[0].values()]
    assert convolutions == ["conv", "conv", "conv_transpose", "conv", "conv", "linear"]


def test_separate_projections_of_attention():
    names = list(find_synapses(nn.MultiheadAttention(8, 2, kdim=6, vdim=4))[0])
    assert names == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 6),
        nn.Conv1d(4, 6, 3),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv3d(4, 6, 1, groups=2),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.ConvTranspose1d(4, 6, 3),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.ConvTranspose3d(4, 6, 2, groups=2),
    ],
    ids=str,
)
def test_axes_agree_with_what_the_layer_computes(layer):
    """A weight belongs to the input channel whose perturbation reaches the output through it, and to that output."""
    synapses = only(layer.double())
    spatial = len(layer.weight.shape) - 2
    x = torch.randn(1, 4, *[5] * spatial, dtype=torch.float64)
    assert (synapses.presynaptic_neurons, synapses.postsynaptic_neurons) == (4, layer(x).shape[1])
    for neuron in range(4):
        gate = torch.zeros(4, dtype=torch.float64)
        gate[neuron] = 1
        masked = layer.weight.detach() * synapses.along_presynaptic(gate)
        only_this = torch.func.functional_call(layer, {"weight": masked, "bias": layer.bias}, (x,))
        silenced = x * gate.view(1, 4, *[1] * spatial)
        assert torch.allclose(only_this, layer(silenced)), "presynaptic"
    for neuron in range(synapses.postsynaptic_neurons):
        gate = torch.zeros(synapses.postsynaptic_neurons, dtype=torch.float64)
        gate[neuron] = 1
        masked = layer.weight.detach() * synapses.along_postsynaptic(gate)
        gated = torch.func.functional_call(layer, {"weight": masked, "bias": layer.bias * gate}, (x,))
        assert torch.allclose(gated, layer(x) * gate.view(1, -1, *[1] * spatial)), "postsynaptic"


def test_split_layer_keeps_its_axes():
    synapses = only(split_layer(nn.Conv2d(4, 6, 3, groups=2), 3))
    assert synapses.gamma == 3
    assert synapses.weight.shape == (3, 6, 2, 3, 3)
    assert (synapses.presynaptic_neurons, synapses.postsynaptic_neurons) == (4, 6)


def test_tied_weight_is_one_tensor_with_the_axes_of_its_neurons():
    synapses = find_synapses(Tied())[0]
    assert list(synapses) == ["embed.weight", "hidden.weight"]
    tied = synapses["embed.weight"]
    assert tied.kind == "linear"
    assert {site.module_name for site in tied.sites} == {"embed", "readout"}
    assert {"embed", "embed.weight", "readout", "readout.weight"} == tied.names


def test_unusable_layers_are_given_with_a_reason():
    model = nn.Sequential(
        nn.Linear(2, 3), nn.Embedding(4, 2, sparse=True), parametrizations.weight_norm(nn.Linear(3, 3))
    )
    found, unusable = find_synapses(model)
    assert list(found) == ["0.weight"]
    assert "sparse" in unusable["1.weight"]
    assert "parametrized" in unusable["2.weight"]


def test_lazy_layers_are_an_error():
    with pytest.raises(RuntimeError, match=r"0\.weight: the lazy layer has no weights yet"):
        find_synapses(nn.Sequential(nn.LazyLinear(3)))


def test_names_are_those_before_compilation():
    model = nn.Sequential(nn.Linear(2, 3))
    model[0] = torch.compile(model[0])
    assert list(find_synapses(model)[0]) == ["0.weight"]
    assert plain_name("a._orig_mod.b._orig_mod.weight") == "a.b.weight"


def chosen(model, include, exclude=(), **more) -> list[str]:
    return [s.name for s in select(find_synapses(model)[0], include, exclude, **more)[0]]


def test_patterns_name_parameters_or_modules():
    model = CNN()
    assert chosen(model, ("net.3",)) == chosen(model, ("net.3.weight",)) == ["net.3.weight"]
    assert chosen(model, ("*",), ("net.1*", "net.9")) == ["net.0.weight", "net.3.weight", "net.6.weight"]
    assert chosen(Tied(), ("readout",)) == ["embed.weight"]
    assert chosen(model, ("net.15", "net.0")) == ["net.0.weight", "net.15.weight"], "order of the model"


def test_unsupported_kinds_are_skipped_and_alone_an_error():
    synapses = find_synapses(Transformer())[0]
    selected, skipped = select(synapses, ("*",), (), NEURON_KINDS, "synaptic_scaling")
    assert [s.name for s in skipped] == ["embed.weight", "block.self_attn.in_proj_weight"]
    assert len(selected) == 4
    with pytest.raises(BioConfigError, match=r"synaptic_scaling\.include.*embed\.weight \(embedding\)"):
        select(synapses, ("embed*",), (), NEURON_KINDS, "synaptic_scaling")


def test_errors_name_the_key_whose_patterns_leave_nothing():
    with pytest.raises(
        BioConfigError, match=r"volume\.exclude: got \('\*',\); allowed: .* at least one of net\.0\.weight"
    ):
        chosen(CNN(), ("net.0", "net.3"), ("*",), owner="volume")
    with pytest.raises(
        BioConfigError, match=r"volume\.include: got \(\); allowed: patterns that name at least .*(?<!only )$"
    ):
        chosen(CNN(), (), owner="volume")
    with pytest.raises(BioConfigError, match=r"dale\.shared: got 'nowhere'; allowed: "):
        chosen(CNN(), ("nowhere",), owner="dale", key="shared")


@pytest.mark.parametrize("pattern", ["net.0.bias", "net.1*", "Net.0", "conv"])
def test_pattern_that_matches_no_synapse_lists_them(pattern):
    model = nn.ModuleDict({"net": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))})
    with pytest.raises(BioConfigError, match=r"one of net\.0\.weight") as caught:
        chosen(model, (pattern,))
    assert caught.value.value == pattern


def test_near_miss_is_suggested():
    with pytest.raises(BioConfigError, match=r"Did you mean 'net\.15\.weight'"):
        chosen(CNN(), ("net.15.weigth",))
