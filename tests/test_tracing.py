"""Forward order, norms and readers: by fx, by a dry run, by registration."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from bio_lightning import BioConfigError
from bio_lightning.architecture import Reader, trace_architecture
from bio_lightning.split_layers import split_layer
from bio_lightning.synapses import find_synapses
from tests.models import CNN, MLP, Recurrent, Tied, Transformer, ZooModel, identical, weights_of


def trace(model: nn.Module):
    synapses = find_synapses(model)[0].values()
    return trace_architecture(model, {site.module_name: site.module for s in synapses for site in s.sites})


class BackToFront(ZooModel):
    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.last, self.middle, self.first = nn.Linear(5, 4), nn.Linear(5, 5), nn.Linear(6, 5)

    def forward(self, x):
        return self.last(torch.relu(self.middle(self.first(x).relu())))


class Branching(BackToFront):
    """fx cannot follow a decision on values."""

    example_input_array = torch.zeros(2, 6)

    def forward(self, x):
        return super().forward(x) if x.sum() >= 0 else x


class Unguided(Branching):
    example_input_array = None


@pytest.mark.parametrize(
    ("kind", "source", "order"),
    [
        (BackToFront, "fx trace", ["first", "middle", "last"]),
        (Branching, "dry run on example_input_array", ["first", "middle", "last"]),
        (Unguided, "fx trace of the parts, in registration order", ["last", "middle", "first"]),
    ],
)
def test_forward_order(kind, source, order):
    flow = trace(kind())
    assert flow.source == source
    assert flow.order == order
    assert flow.inputs == {order[0]}
    assert flow.outputs == {order[-1]}


@pytest.mark.parametrize("kind", [BackToFront, Branching, Unguided, CNN])
def test_tracing_leaves_no_trace(kind):
    model = kind()
    model.train()
    if kind is Branching:
        model.first = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    before, random_before = weights_of(model), torch.get_rng_state()
    trace(model)
    assert identical(weights_of(model), before)
    assert torch.equal(torch.get_rng_state(), random_before)
    assert all(module.training for module in model.modules())
    assert all(not module._forward_hooks for module in model.modules())


def test_norms_and_readers_of_a_convolutional_net():
    flow = trace(CNN())
    assert flow.norms == {"net.0": "net.1"}
    assert flow.readers["net.0"] == (Reader("net.3"),)
    assert flow.readers["net.3"] == (Reader("net.6"),)
    assert "net.6" not in flow.readers, "Flatten(2) makes channels of a map a sequence"


def test_flattened_maps_are_read_in_blocks():
    class Flattened(ZooModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.ReLU())
            self.head = nn.Linear(5, 2)

        def forward(self, x):
            return self.head(self.net(x))

    flow = trace(Flattened())
    assert flow.readers["net.0"] == (Reader("net.3", block=0),)
    assert flow.readers["net.3"] == (Reader("head"),)
    assert flow.outputs == {"head"}


def test_a_residual_stream_has_unknown_readers():
    class Residual(BackToFront):
        def forward(self, x):
            hidden = self.first(x)
            return self.last(hidden + self.middle(hidden.relu()))

    flow = trace(Residual())
    assert "first" not in flow.readers
    assert "middle" not in flow.readers


def test_two_readers_are_both_found():
    class Fork(BackToFront):
        def forward(self, x):
            hidden = self.first(x).relu()
            return self.last(hidden), self.middle(hidden)

    assert set(trace(Fork()).readers["first"]) == {Reader("last"), Reader("middle")}
    assert trace(Fork()).outputs == {"last", "middle"}


def test_a_module_without_forward_is_taken_part_by_part():
    class NoForward(ZooModel):
        forward = pl.LightningModule.forward

        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 5))
            self.decoder = nn.Linear(5, 4)

    flow = trace(NoForward())
    assert flow.order == ["encoder.0", "encoder.3", "decoder"]
    assert flow.norms == {"encoder.0": "encoder.1"}
    assert flow.readers == {"encoder.0": (Reader("encoder.3"),)}


def test_untraceable_forward_gives_no_readers():
    class Slices(MLP):
        def forward(self, x):
            return self.net[2:](self.net[0](x).flip(1))

    assert trace(Slices()).readers == {}


def test_inner_layers_of_torch_modules_are_in_order():
    flow = trace(Transformer())
    assert flow.order == [
        "embed",
        "block.self_attn",
        "block.self_attn.out_proj",
        "block.linear1",
        "block.linear2",
        "head",
    ]
    assert flow.inputs == {"embed"}
    assert trace(Recurrent()).order == ["rnn", "gru", "head"]
    assert trace(Tied()).order == ["embed", "hidden", "readout"]


class Reads(ZooModel):
    """A head on what ``read`` takes of a recurrent layer's output."""

    def __init__(self, rnn: nn.Module, head: nn.Module, read) -> None:
        super().__init__()
        self.rnn, self.head, self.read = rnn, head, read
        self.act, self.pool = nn.ReLU(), nn.AvgPool1d(1)

    def forward(self, x):
        return self.head(self.read(self, self.rnn(x)))


LAST, BOTH = ("rnn.weight_hh_l1",), ("rnn.weight_hh_l1", "rnn.weight_hh_l1_reverse")
GRU, LSTM = nn.GRU(6, 5, num_layers=2), nn.LSTM(6, 5, num_layers=2)
TWO_WAYS = nn.GRU(6, 5, num_layers=2, bidirectional=True)


@pytest.mark.parametrize(
    ("rnn", "read", "expected"),
    [
        (GRU, lambda m, out: out[0], LAST),
        (LSTM, lambda m, out: out[0][:, -1], LAST),
        (LSTM, lambda m, out: m.act(out[0]).mean(dim=1), LAST),
        (LSTM, lambda m, out: torch.relu(out[0][-1, :, :]), LAST),
        (GRU, lambda m, out: out[1][-1], LAST),
        (GRU, lambda m, out: out[1][0], ("rnn.weight_hh_l0",)),
        (LSTM, lambda m, out: out[1][0][-1], LAST),
        (nn.RNN(6, 5), lambda m, out: out[1].squeeze(0), ("rnn.weight_hh_l0",)),
        (TWO_WAYS, lambda m, out: out[0], BOTH),
        (TWO_WAYS, lambda m, out: torch.cat((out[1][-2], out[1][-1]), dim=1), BOTH),
        (TWO_WAYS, lambda m, out: torch.cat([out[1][3], out[1][2]], -1), tuple(reversed(BOTH))),
        (nn.GRUCell(6, 5), lambda m, out: out, ("rnn.weight_hh",)),
        (nn.LSTMCell(6, 5), lambda m, out: out[0], ("rnn.weight_hh",)),
        (LSTM, lambda m, out: out[1][1][-1], ()),  # the cell state
        (nn.LSTMCell(6, 5), lambda m, out: out[1], ()),
        (GRU, lambda m, out: out[0].flip(-1), ()),
        (GRU, lambda m, out: m.pool(out[0]), ()),
        (GRU, lambda m, out: out[0][:, -1] + out[1][-1], ()),
        (GRU, lambda m, out: out[0][:, :, [4, 3, 2, 1, 0]], ()),
        (GRU, lambda m, out: out[0].mean(dim=-1), ()),
        (GRU, lambda m, out: torch.cat((out[0], out[0].flip(-1)), -1), ()),
    ],
)
def test_hidden_neurons_are_followed_to_the_layer_that_reads_them(rnn, read, expected):
    flow = trace(Reads(rnn, nn.Linear(5, 4), read))
    assert flow.source == "fx trace"
    assert flow.hidden == {"head": expected}


def test_hidden_neurons_between_recurrent_layers_and_with_layers_in_between():
    assert trace(Recurrent()).hidden == {"gru": BOTH, "head": ("gru.weight_hh_l0",)}
    behind = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4))
    assert trace(Reads(GRU, behind, lambda m, out: out[0])).hidden == {"head.1": LAST}
    attention = Reads(GRU, nn.TransformerEncoderLayer(5, 1, 8), lambda m, out: out[0])
    assert trace(attention).hidden == {"head.self_attn": ()}


@pytest.mark.parametrize(("second", "expected"), [(1, LAST), (0, ())])
def test_two_calls_have_to_read_the_same_hidden_neurons(second, expected):
    class Twice(Reads):
        def forward(self, x):
            state = self.rnn(x)[1]
            return self.head(state[1]), self.head(state[second])

    assert trace(Twice(GRU, nn.Linear(5, 4), None)).hidden == {"head": expected}


def test_without_a_trace_hidden_neurons_are_doubtful_where_the_sizes_agree():
    def read(model, out):
        return out[0] if out[0].sum() > -1e9 else out[0].flip(-1)

    model = Reads(GRU, nn.Linear(5, 4), read)
    assert trace(model).hidden == {"head": ()}
    model.example_input_array = torch.zeros(2, 3, 6)
    assert trace(model).source == "dry run on example_input_array"
    assert trace(model).hidden == {"head": ()}
    model.head = nn.Linear(4, 4)
    model.example_input_array = None
    assert trace(model).hidden == {}


def test_split_layers_and_own_subclasses_are_layers_too():
    class MyLinear(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    model = BackToFront()
    model.middle = MyLinear(5, 5)
    split_layer(model.first, 2)
    assert trace(model).source == "fx trace"
    assert trace(model).readers["first"] == (Reader("middle"),)


def test_dry_run_finds_the_norm_behind_a_layer():
    model = Branching()
    model.first = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5))
    assert trace(model).norms == {"first.0": "first.1"}


def test_order_can_be_given():
    model = Unguided()
    layers = {s.module_name: s.module for s in find_synapses(model)[0].values()}
    flow = trace_architecture(model, layers, ["first", "middle", "last"])
    assert (flow.order, flow.inputs, flow.outputs) == (["first", "middle", "last"], {"first"}, {"last"})
    with pytest.raises(BioConfigError, match=r"forward_order: got 'midle'.*Did you mean 'middle'"):
        trace_architecture(model, layers, ["first", "midle", "last"])
    with pytest.raises(BioConfigError, match="every layer once: last, middle, first"):
        trace_architecture(model, layers, ["first", "last"])
