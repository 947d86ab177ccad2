"""Wiring of Dale's principle: whose sign, when it is given, and that it stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from bio_lightning import BioConfigError, DalesPrinciple, WeightRejuvenation, WeightSplitting, dale_signs
from tests.models import (
    CNN,
    MLP,
    OPTIMIZERS,
    Frozen,
    Recurrent,
    Transformer,
    ZooModel,
    different,
    fit,
    make_model,
    make_trainer,
    weights_of,
)


def one_sign(weights: torch.Tensor) -> bool:
    """Whether no two of these weights have opposite signs."""
    return not bool((weights > 0).any() and (weights < 0).any())


def watched(kind: type[ZooModel]) -> type[ZooModel]:
    """The model with a list ``broken`` of steps after which some neuron's outgoing weights had both signs."""

    class Watched(kind):  # type: ignore[valid-type, misc]
        def on_before_zero_grad(self, optimizer):
            self.seen = [*getattr(self, "seen", []), self.broken_neurons()]

        def broken_neurons(self) -> int:
            return 0

    return Watched


class WatchedMLP(watched(MLP)):
    def broken_neurons(self) -> int:
        return sum(
            not one_sign(layer.weight[:, j]) for layer in (self.net[2], self.net[4]) for j in range(layer.in_features)
        )


class WatchedCNN(watched(CNN)):
    """net.3 is a grouped convolution, net.6 a grouped transposed one."""

    def broken_neurons(self) -> int:
        broken = 0
        grouped = self.net[3].weight  # (8, 2, 3, 3): outputs 2k and 2k+1 read inputs 2k and 2k+1
        for channel in range(8):
            group, position = divmod(channel, 2)
            broken += not one_sign(grouped[2 * group : 2 * group + 2, position])
        broken += sum(not one_sign(self.net[6].weight[channel]) for channel in range(8))
        broken += sum(not one_sign(layer.weight[:, j]) for layer in (self.net[9], self.net[12], self.net[15])
                      for j in range(layer.weight.shape[1]))  # fmt: skip
        return broken


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", [WatchedMLP, WatchedCNN])
def test_every_neuron_keeps_one_sign_over_200_steps(kind, optimizer):
    free, bio = make_model(kind, optimizer), make_model(kind, optimizer)
    dale = DalesPrinciple(excitatory_fraction=0.6)
    fit(bio, [dale], steps=201)  # the first 200 steps have been looked at when the last one begins
    assert len(bio.seen) == 201
    assert bio.seen == [0] * 201
    assert sum(int(dale.session.store[name]["violations"]) for name in dale.targets) > 0, "something was enforced"
    fit(free, steps=2)
    assert min(free.seen) > 0, "without the callback neurons have both signs"
    for signs in dale_signs(bio).values():
        assert int((signs > 0).sum()) == round(0.6 * len(signs))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_follow_the_neurons_signs(optimizer):
    bio = make_model("MLP", optimizer)
    fit(bio, [DalesPrinciple(excitatory_fraction=0.5)], steps=10)
    for name, signs in dale_signs(bio).items():
        assert (weights_of(bio)[name] * signs >= 0).all()
        assert weights_of(bio)[name].ne(0).float().mean() > 0.5


def test_start_keeps_magnitudes():
    class Still(MLP):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    before, bio = weights_of(make_model(Still)), make_model(Still)
    fit(bio, [DalesPrinciple()], steps=1)
    signs = dale_signs(bio)["net.2.weight"]
    assert torch.equal(weights_of(bio)["net.2.weight"], before["net.2.weight"].abs() * signs)
    assert torch.equal(weights_of(bio)["net.0.weight"], before["net.0.weight"]), "pixels are not neurons"
    balanced = make_model(Still)
    fit(balanced, [DalesPrinciple(balanced=True)], steps=1)
    weight = weights_of(balanced)["net.2.weight"]
    assert weight.sum().abs() < 1e-4
    assert weight.norm() == pytest.approx(before["net.2.weight"].norm().item(), rel=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_balance_needs_excitation_and_inhibition(fraction):
    with pytest.raises(BioConfigError, match=r"excitatory_fraction: got .*a number in \(0, 1\) with balanced: true"):
        DalesPrinciple(balanced=True, excitatory_fraction=fraction)


def test_balance_needs_both_kinds_of_neurons_in_a_layer():
    few = DalesPrinciple(balanced=True, excitatory_fraction=1e-6)
    with pytest.raises(BioConfigError, match=r"dales_principle\.balanced.*excitatory and inhibitory"):
        fit(make_model("MLP"), [few])


def test_input_layer_and_rows():
    bio = make_model("MLP")
    fit(bio, [DalesPrinciple(input_layer=True)])
    assert set(dale_signs(bio)) == {"net.0.weight", "net.2.weight", "net.4.weight"}
    assert all(one_sign(weights_of(bio)["net.0.weight"][:, j]) for j in range(6))
    rows = make_model("MLP")
    fit(rows, [DalesPrinciple(axis="postsynaptic")])
    assert all(one_sign(row) for row in weights_of(rows)["net.2.weight"])
    assert len(dale_signs(rows)["net.2.weight"]) == 12


def test_only_the_input_layer_is_an_error():
    with pytest.raises(BioConfigError, match="behind the input layer"):
        fit(make_model("MLP"), [DalesPrinciple(include="net.0*")])


def test_recurrent_columns_have_one_sign_over_all_gates():
    bio = make_model(Recurrent)
    fit(bio, [DalesPrinciple(excitatory_fraction=0.6)], steps=8)
    weights, signs = weights_of(bio), dale_signs(bio)
    assert "rnn.weight_ih_l0" not in signs, "reads the model's input"
    assert "rnn.weight_ih_l0_reverse" not in signs
    for name in (
        "rnn.weight_hh_l0",
        "rnn.weight_hh_l1_reverse",
        "rnn.weight_ih_l1",
        "gru.weight_ih_l0",
        "gru.weight_hh_l0",
    ):
        assert (weights[name] * signs[name] >= 0).all()
        assert one_sign(signs[name]) is False
    # the second layer reads the hidden neurons of both directions of the first
    hidden = torch.cat([signs["rnn.weight_hh_l0"], signs["rnn.weight_hh_l0_reverse"]])
    assert torch.equal(signs["rnn.weight_ih_l1"], hidden)
    assert torch.equal(signs["rnn.weight_ih_l1_reverse"], hidden)
    # and so do the layers behind
    hidden = torch.cat([signs["rnn.weight_hh_l1"], signs["rnn.weight_hh_l1_reverse"]])
    assert torch.equal(signs["gru.weight_ih_l0"], hidden)
    assert torch.equal(signs["head.weight"], signs["gru.weight_hh_l0"])


class Branched(ZooModel):
    """Three heads: on the hidden neurons as they are, in an order that the trace does not follow, and on some."""

    shape = (5, 6)

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.rnn = nn.GRU(6, 32, batch_first=True)
        self.head, self.other, self.third = nn.Linear(32, 4), nn.Linear(32, 4), nn.Linear(7, 4)

    def forward(self, x):
        last = self.rnn(x)[0][:, -1]
        return self.head(last) + self.other(last.flip(-1).flip(-1)) + self.third(last[:, :7])


@pytest.mark.parametrize(
    "shared", [("head", "other"), ("rnn.weight_hh*", "other"), ("rnn.weight_hh*", "head", "other")]
)
def test_what_a_trace_cannot_follow_is_said_and_can_be_grouped(shared, caplog):
    with caplog.at_level("INFO"):
        alone = make_model(Branched)
        fit(alone, [DalesPrinciple(excitatory_fraction=0.5)], steps=1)
    assert caplog.text.count("other.weight may read hidden neurons of a recurrent layer") == 1
    assert caplog.text.count("third.weight may read") == 1
    assert "head.weight may read" not in caplog.text
    signs = dale_signs(alone)
    assert torch.equal(signs["head.weight"], signs["rnn.weight_hh_l0"])
    assert not torch.equal(signs["other.weight"], signs["rnn.weight_hh_l0"])
    caplog.clear()
    with caplog.at_level("INFO"):
        grouped = make_model(Branched)
        fit(grouped, [DalesPrinciple(excitatory_fraction=0.5, shared=(shared,))], steps=1)
    assert "other.weight may read" not in caplog.text
    signs = dale_signs(grouped)
    assert all(torch.equal(signs[name], signs["rnn.weight_hh_l0"]) for name in ("head.weight", "other.weight"))


def test_attention_columns_and_shared_groups():
    bio = make_model(Transformer)
    fit(bio, [DalesPrinciple(excitatory_fraction=0.5)], steps=4)
    signs = dale_signs(bio)
    assert "embed.weight" not in signs
    assert all(one_sign(weights_of(bio)["block.self_attn.in_proj_weight"][:, j]) for j in range(8))
    assert not torch.equal(signs["block.self_attn.in_proj_weight"], signs["block.linear1.weight"])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_group_shares_one_draw(seed):
    names = ("block.self_attn.in_proj_weight", "block.linear1.weight", "head.weight")
    found = []
    for shared in ((), (names,)):
        bio = make_model(Transformer)
        fit(bio, [DalesPrinciple(excitatory_fraction=0.5, seed=seed, shared=shared)], steps=1)
        found.append({tuple(dale_signs(bio)[name].tolist()) for name in names})
    assert [len(signs) for signs in found] == [3, 1]


def test_groups_of_different_size_or_overlap_are_errors():
    with pytest.raises(BioConfigError, match="same number of neurons"):
        fit(make_model("MLP"), [DalesPrinciple(shared=(("net.2", "net.4"),))])
    with pytest.raises(BioConfigError, match="one group only"):
        fit(make_model("MLP"), [DalesPrinciple(shared=(("net.2",), ("net.2*",)))])


def test_groups_of_incoming_weights_are_an_error():
    with pytest.raises(BioConfigError, match=r"shared: got .*an empty list with axis: postsynaptic"):
        DalesPrinciple(axis="postsynaptic", shared=(("q", "k"),))


def test_frozen_layer_gets_its_signs_when_it_thaws():
    class Thawing(Frozen):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

        def on_train_batch_start(self, batch, batch_idx):
            self.net[2].requires_grad_(batch_idx >= 3)
            if batch_idx == 3:
                self.frozen = weights_of(self)["net.2.weight"]

    before, bio = weights_of(make_model(Thawing)), make_model(Thawing)
    fit(bio, [DalesPrinciple()], steps=6)
    assert torch.equal(bio.frozen, before["net.2.weight"])
    weight = weights_of(bio)["net.2.weight"]
    assert (weight * dale_signs(bio)["net.2.weight"] >= 0).all()
    assert weight.ne(0).float().mean() > 0.8, "given signs, not projected to zero"


def train(model, callbacks, epochs, ckpt_path=None):
    trainer = make_trainer(callbacks, max_epochs=epochs)
    trainer.fit(model, DataLoader(model.batches(4), batch_size=None), ckpt_path=ckpt_path)
    return trainer


def test_start_is_not_repeated_on_resume_and_on_a_second_fit(tmp_path):
    path = str(tmp_path / "bio.ckpt")
    bio, callbacks = make_model("MLP"), [DalesPrinciple(balanced=True)]
    train(bio, callbacks, 1).save_checkpoint(path)
    trained = weights_of(bio)

    class Still(MLP):
        def on_train_start(self):
            self.at_start = weights_of(self)

    resumed = make_model(Still)
    train(resumed, [DalesPrinciple(balanced=True)], 2, ckpt_path=path)
    assert different(resumed.at_start, trained) == []
    signs = dale_signs(bio)
    train(bio, callbacks, 1)
    assert all(torch.equal(signs[name], dale_signs(bio)[name]) for name in signs)


def test_weights_of_a_plain_checkpoint_are_projected_or_refused(tmp_path):
    path = str(tmp_path / "plain.ckpt")
    train(make_model("MLP"), [], 1).save_checkpoint(path)

    class Still(MLP):
        def on_train_start(self):
            self.at_start = weights_of(self)

    bio = make_model(Still)
    train(bio, [DalesPrinciple()], 2, ckpt_path=path)
    plain = torch.load(path, weights_only=True)["state_dict"]["net.2.weight"]
    signs = dale_signs(bio)["net.2.weight"]
    assert torch.equal(bio.at_start["net.2.weight"], torch.where(plain * signs > 0, plain, torch.zeros(())))
    with pytest.raises(Exception, match=r"contradict their neuron's sign.*on_mismatch='project'"):
        train(make_model("MLP"), [DalesPrinciple(on_mismatch="refuse")], 2, ckpt_path=path)


@pytest.mark.parametrize("window", [{"start_step": 100}, {"end_step": 0}])
def test_weights_of_a_plain_checkpoint_are_left_alone_outside_the_steps(window, tmp_path):
    path = str(tmp_path / "plain.ckpt")
    train(make_model("MLP"), [], 1).save_checkpoint(path)
    plain, bio = make_model("MLP"), make_model("MLP")
    train(plain, [], 2, ckpt_path=path)
    train(bio, [DalesPrinciple(**window)], 2, ckpt_path=path)
    assert different(weights_of(plain), weights_of(bio)) == []


def test_projection_comes_after_rejuvenation():
    def weights(*callbacks):
        bio = make_model("MLP", "adam")
        fit(bio, [DalesPrinciple(excitatory_fraction=0.5), *callbacks], steps=6)
        return weights_of(bio)["net.2.weight"]

    # so selective that it would replace nothing but the zeros of the projection, were these made before
    turnover = WeightRejuvenation(every_n_steps=6, dre=1e9)
    assert (weights() == 0).any()
    assert torch.equal(weights(turnover), weights())


def test_with_splitting_and_rejuvenation():
    bio = make_model("MLP")
    fit(bio, [WeightSplitting(gamma=3), DalesPrinciple(), WeightRejuvenation(every_n_steps=2, dre=1.0)], steps=6)
    parts = weights_of(bio)["net.2.weight"]
    assert parts.shape == (3, 12, 16)
    assert (parts * dale_signs(bio)["net.2.weight"] >= 0).all()


def test_seeds_draw_other_signs():
    signs = []
    for seed in (0, 0, 1):
        bio = make_model("MLP")
        fit(bio, [DalesPrinciple(seed=seed, excitatory_fraction=0.5)], steps=1)
        signs.append(dale_signs(bio)["net.2.weight"])
    assert torch.equal(signs[0], signs[1])
    assert not torch.equal(signs[0], signs[2])


def test_no_module_of_the_layers_is_left_changed():
    bio = make_model("CNN")
    fit(bio, [DalesPrinciple()])
    assert all(type(module).__module__.startswith(("torch.nn", "tests.models")) for module in bio.modules())
    assert isinstance(bio.net[0], nn.Conv2d)
