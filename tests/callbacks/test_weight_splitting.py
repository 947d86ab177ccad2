"""Wiring of weight splitting: the function that is trained, checkpoints, folding."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from bio_lightning import BioConfigError, FuzzyLearningRates, WeightSplitting, fold
from tests import reference
from tests.models import CNN, MLP, Tied, Transformer, ZooModel, different, fit, make_model, make_trainer, weights_of


def outputs(model: nn.Module, like: ZooModel) -> torch.Tensor:
    torch.manual_seed(0)
    return model.eval()(like.batches(1)[0][0])


@pytest.mark.parametrize("gamma", [2, 5])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "sgd_decay"])
@pytest.mark.parametrize("kind", ["MLP", "CNN", "Tied", "TwoOptimizers"])
def test_trains_as_the_plain_net_under_sgd(kind, optimizer, gamma):
    plain, split = make_model(kind, optimizer, double=True), make_model(kind, optimizer, double=True)
    before = weights_of(plain)
    fit(plain, steps=20)
    fit(split, [WeightSplitting(gamma=gamma)], steps=20)
    folded = weights_of(fold(split))
    for name, weight in weights_of(plain).items():
        assert torch.allclose(folded[name], weight, atol=1e-10), name
    assert different(before, weights_of(plain))


def test_equal_multipliers_leave_it_so_and_unequal_ones_do_not():
    plain, split = make_model("MLP", double=True), make_model("MLP", double=True)
    fit(plain)
    fit(split, [WeightSplitting(), FuzzyLearningRates(distribution="baseline")])
    assert torch.allclose(fold(split).net[2].weight, plain.net[2].weight, atol=1e-10)
    unequal = make_model("MLP", double=True)
    fit(unequal, [WeightSplitting(), FuzzyLearningRates(nu=0.5)])
    assert not torch.allclose(fold(unequal).net[2].weight, plain.net[2].weight, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "adagrad"])
def test_under_adaptive_optimizers_a_step_is_shared_too(optimizer):
    plain, split = make_model("MLP", optimizer, double=True), make_model("MLP", optimizer, double=True)
    fit(plain, steps=5)
    fit(split, [WeightSplitting(gamma=3)], steps=5)
    assert torch.allclose(fold(split).net[2].weight, plain.net[2].weight, atol=1e-9)


def test_adamw_decays_a_split_weight_by_a_share():
    class Share(MLP):
        def configure_optimizers(self):
            biases = [p for p in self.parameters() if p.ndim == 1]
            weights = [p for p in self.parameters() if p.ndim > 1]
            groups = [{"params": biases}, {"params": weights, "weight_decay": 0.1 / 2}]
            return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)

    shared, split = make_model(Share, double=True), make_model("MLP", "adamw", double=True)
    fit(shared, steps=5)
    fit(split, [WeightSplitting(gamma=2)], steps=5)
    assert torch.allclose(fold(split).net[2].weight, shared.net[2].weight, atol=1e-8)


def test_shares_are_unequal_positive_and_sum_to_the_weight():
    class Still(MLP):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    before, split = make_model(Still), make_model(Still)
    fit(split, [WeightSplitting(gamma=3)], steps=1)
    parts, weight = dict(split.named_parameters())["net.2.weight"], before.net[2].weight
    assert torch.allclose(parts.sum(dim=0), weight, atol=1e-7)
    assert torch.equal(parts.sign(), weight.sign().expand(3, -1, -1))
    assert not torch.allclose(parts[0], parts[1])
    assert list(split.state_dict()) == list(before.state_dict())


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [{"gamma": 3}, {"mode": "grouped"}, {"mode": "grouped", "activation": "tanh"}])
@pytest.mark.parametrize("kind", [MLP, CNN])
def test_fold_is_exact_and_plain(kind, settings, precision):
    include = "net.0*" if kind is CNN and settings.get("mode") else "*"
    split = make_model(kind, double=precision is torch.float64)
    state = torch.get_rng_state
    fit(split, [WeightSplitting(include=include, **settings)])
    before, random_before = weights_of(split), state()
    folded = fold(split)
    assert torch.equal(state(), random_before)
    tolerance = 1e-5 if precision is torch.float32 else 1e-10
    assert torch.allclose(outputs(folded, split), outputs(split, split), atol=tolerance)
    assert different(before, weights_of(split)) == [], "the model itself is not changed"
    assert all(not module._forward_hooks for module in folded.modules())
    assert all(type(module).__module__.startswith(("torch.nn", "tests")) for module in folded.modules())
    torch.manual_seed(9)
    assert not torch.allclose(
        outputs(make_model(kind, seed=4, double=precision is torch.float64), split), outputs(folded, split)
    )


def test_fold_of_a_grouped_layer_with_activation_is_a_sequential_of_plain_modules():
    split = make_model("MLP")
    fit(split, [WeightSplitting(mode="grouped", activation="relu")])
    replaced = fold(split).net[0]
    assert [type(module) for module in replaced] == [nn.Linear, nn.ReLU, nn.Linear]
    pickle.loads(pickle.dumps(replaced))


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_grouped_sums_units_after_the_activation_and_leaves_the_output_layer_alone(activation):
    split = make_model("MLP", double=True)
    fit(split, [WeightSplitting(mode="grouped", gamma=4, activation=activation)])
    plain = make_model("MLP", double=True)
    plain.load_state_dict(split.state_dict())
    x = split.batches(1)[0][0]
    units = plain.net[0](x)
    units = units.sigmoid() if activation else units
    expected = torch.tensor([reference.sum_groups(row, 4) for row in units.tolist()], dtype=torch.float64)
    assert torch.allclose(split.net[0](x), expected)
    assert torch.equal(split.net[4](x[:, :1].repeat(1, 12)), plain.net[4](x[:, :1].repeat(1, 12)))


def test_grouped_takes_any_rank():
    class Sequences(MLP):
        shape = (3, 6)

        def forward(self, x):
            return super().forward(x).mean(dim=1)

    split = make_model(Sequences, double=True)
    fit(split, [WeightSplitting(mode="grouped", gamma=4)])
    x = split.batches(1)[0][0]
    together = split.net[0](x)
    assert together.shape[1] == 3
    assert all(torch.allclose(together[:, place], split.net[0](x[:, place])) for place in range(3))


def test_output_layer_is_found_wherever_it_is_nested():
    class Nested(ZooModel):
        """Registered back to front."""

        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.tail = nn.ModuleDict({"inner": nn.Sequential(nn.Linear(8, 4))})
            self.body = nn.Linear(6, 8)

        def forward(self, x):
            return self.tail["inner"](self.body(x).relu())

    splitting = WeightSplitting(mode="grouped")
    fit(make_model(Nested), [splitting])
    assert set(splitting.targets) == {"body.weight"}
    assert [s.name for s in splitting.skipped] == ["tail.inner.0.weight"]


def test_units_that_do_not_divide_are_an_error():
    with pytest.raises(
        BioConfigError, match=r"weight_splitting\.gamma: got 5; allowed: a divisor of the 16 units of net\.0"
    ):
        fit(make_model("MLP"), [WeightSplitting(mode="grouped", gamma=5)])


@pytest.mark.parametrize("settings", [{"gamma": 3}, {"mode": "grouped", "activation": "relu"}])
def test_split_stays_after_fit_and_in_test(settings):
    split, callbacks = make_model("MLP"), [WeightSplitting(**settings)]
    trainer = fit(split, callbacks)
    after_fit = outputs(split, split)
    split.train()
    trainer.test(split, DataLoader(split.batches(2), batch_size=None), verbose=False)
    assert torch.equal(outputs(split, split), after_fit)
    plain = make_model("MLP")
    if "mode" in settings:
        plain.load_state_dict(split.state_dict())
        assert not torch.allclose(outputs(plain, plain), after_fit)
    for clone in (copy.deepcopy(split), pickle.loads(pickle.dumps(split))):
        assert torch.equal(outputs(clone, split), after_fit)


@pytest.mark.parametrize("settings", [{"gamma": 3}, {"mode": "grouped", "activation": "relu"}])
def test_checkpoint_can_be_tested_by_a_fresh_module_and_trainer(settings, tmp_path):
    split = make_model("MLP")
    fit(split, [WeightSplitting(**settings)]).save_checkpoint(tmp_path / "split.ckpt")
    fresh = make_model("MLP", seed=7)
    trainer = make_trainer([WeightSplitting(**settings)])
    data = DataLoader(fresh.batches(1), batch_size=None)
    trainer.test(fresh, data, ckpt_path=str(tmp_path / "split.ckpt"), verbose=False)
    assert torch.equal(outputs(fresh, split), outputs(split, split))
    assert "configure_model" not in vars(fresh)


@pytest.mark.parametrize("settings", [{"gamma": 3}, {"mode": "grouped", "activation": "relu"}])
def test_checkpoint_can_be_loaded_run_and_folded_in_a_new_process(settings, tmp_path):
    split = make_model("MLP")
    fit(split, [WeightSplitting(**settings)]).save_checkpoint(tmp_path / "split.ckpt")
    torch.save(outputs(split, split), tmp_path / "expected.pt")
    program = textwrap.dedent(f"""
        import torch
        from bio_lightning import WeightSplitting, fold
        from tests.models import make_model
        checkpoint = torch.load({str(tmp_path / "split.ckpt")!r}, weights_only=True)
        model = WeightSplitting.restore(make_model("MLP", seed=7), checkpoint).eval()
        x = model.batches(1)[0][0]
        expected = torch.load({str(tmp_path / "expected.pt")!r})
        assert torch.equal(model(x), expected)
        assert torch.allclose(fold(model)(x), expected, atol=1e-5)
        print("equal")
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("equal"), done.stderr


def test_second_fit_and_second_callback_leave_the_split_alone():
    split, callbacks = make_model("MLP"), [WeightSplitting(gamma=2)]
    fit(split, callbacks)
    fit(split, callbacks)
    assert dict(split.named_parameters())["net.0.weight"].shape == (2, 16, 6)
    with pytest.raises(BioConfigError, match=r"gamma: got 3; allowed: 2, since net\.0 is split already"):
        fit(split, [WeightSplitting(gamma=3)])


def test_layers_made_in_configure_model_are_split():
    class Late(MLP):
        def setup(self, stage):
            self.width = 10

        def configure_model(self):
            if not hasattr(self, "late"):
                self.late = nn.Sequential(nn.Linear(6, self.width), nn.ReLU(), nn.Linear(self.width, 4))

        def forward(self, x):
            return self.late(x)

    split = make_model(Late)
    trainer = fit(split, [WeightSplitting(gamma=2, include="late*")])
    assert dict(split.named_parameters())["late.0.weight"].shape == (2, 10, 6)
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert id(dict(split.named_parameters())["late.0.weight"]) in optimized


def test_attention_output_is_split_and_tied_embedding_is_not():
    split, plain = make_model(Transformer, double=True), make_model(Transformer, double=True)
    fit(split, [WeightSplitting(gamma=2)])
    fit(plain)
    assert dict(split.named_parameters())["block.self_attn.out_proj.weight"].shape == (2, 8, 8)
    assert torch.allclose(outputs(split, split), outputs(plain, plain), atol=1e-9)
    tied, splitting = make_model(Tied), WeightSplitting()
    fit(tied, [splitting])
    assert set(splitting.targets) == {"hidden.weight"}
    assert tied.readout.weight is tied.embed.weight


def test_tied_linear_layers_stay_tied():
    class TwoTied(MLP):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
            self.net[2].weight = self.net[0].weight

    split, plain = make_model(TwoTied, double=True), make_model(TwoTied, double=True)
    fit(split, [WeightSplitting(gamma=3)])
    fit(plain)
    folded = fold(split)
    assert folded.net[0].weight is folded.net[2].weight
    assert torch.allclose(folded.net[0].weight, plain.net[0].weight, atol=1e-9)


def test_spawning_strategies_are_refused():
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp_spawn", callbacks=[WeightSplitting()], logger=False
    )
    with pytest.raises(Exception, match=r"WeightSplitting cannot work with a spawning strategy.*use strategy='ddp'"):
        WeightSplitting().setup(trainer, make_model("MLP"), "fit")


def test_grouped_leaves_the_output_projection_of_attention_alone():
    split, splitting = make_model(Transformer), WeightSplitting(mode="grouped")
    fit(split, [splitting])
    assert set(splitting.targets) == {"block.linear1.weight", "block.linear2.weight"}
    assert torch.allclose(outputs(fold(split), split), outputs(split, split), atol=1e-5)
