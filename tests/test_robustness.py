"""What users do besides one plain fit: several fits, tuners, copies, compiled and frozen parts, exceptions."""

from __future__ import annotations

import copy
import gc
import random
import types
import weakref

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import strategies
from lightning.pytorch.callbacks import LearningRateFinder, StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from bio_lightning import (
    BioConfigError,
    BioMonitor,
    Crystallization,
    DalesPrinciple,
    FuzzyLearningRates,
    SynapticScaling,
    WeightRejuvenation,
    WeightSplitting,
    fold,
    multipliers,
)
from bio_lightning.settings import Settings, refuse_unsupported
from tests.cases import neutral
from tests.models import MLP, ZooModel, different, fit, make_model, make_trainer, weights_of

EVERYTHING = {"crystal_thresh": 1e9, "ignore_zero_grad": False, "floor": 1e-9, "recovery": 0.0}


def epochs(model, callbacks, count: int, ckpt_path=None, batches: int = 4, **arguments) -> pl.Trainer:
    trainer = make_trainer(callbacks, max_epochs=count, **arguments)
    trainer.fit(model, DataLoader(model.batches(batches), batch_size=None), ckpt_path=ckpt_path)
    return trainer


def test_a_tuners_checkpoint_is_no_resume(tmp_path):
    class Tuned(MLP):
        lr = 0.1

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

        def train_dataloader(self):
            return DataLoader(self.batches(20), batch_size=None)

        def on_train_batch_start(self, batch, batch_idx):
            self.zeros = (dict(self.named_parameters())["net.2.weight"] == 0).float().mean()

    finder = LearningRateFinder(num_training_steps=5, max_lr=0.11, min_lr=0.1)
    model = make_model(Tuned)
    make_trainer([finder, DalesPrinciple()], max_steps=1, default_root_dir=tmp_path, logger=False).fit(model)
    assert model.zeros < 0.05, "signs are given, not projected"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_multipliers_redrawn_for_readers_of_dormant_units_are_saved(optimizer, tmp_path):
    def callbacks():
        return [
            FuzzyLearningRates(nu=0.4),
            WeightRejuvenation(select="activity", dormant_fraction=1.0, every_n_steps=2),
        ]

    whole, half, resumed = (make_model("MLP", optimizer) for _ in range(3))
    epochs(whole, callbacks(), 2)
    path = str(tmp_path / "half.ckpt")
    epochs(half, callbacks(), 1).save_checkpoint(path)
    epochs(resumed, callbacks(), 2, ckpt_path=path)
    assert different(weights_of(whole), weights_of(resumed)) == []
    assert different(multipliers(whole), multipliers(resumed)) == []
    assert not torch.equal(multipliers(whole)["net.4.weight"], multipliers_at_start()["net.4.weight"])


def multipliers_at_start() -> dict[str, torch.Tensor]:
    model = make_model("MLP")
    fit(model, [FuzzyLearningRates(nu=0.4)], steps=1)
    return multipliers(model)


def test_steps_go_on_after_a_resume_and_start_anew_on_another_model(tmp_path):
    path, callbacks = str(tmp_path / "c.ckpt"), [DalesPrinciple()]
    epochs(make_model("MLP"), [DalesPrinciple()], 1).save_checkpoint(path)
    model = make_model("MLP")
    epochs(model, callbacks, 2, ckpt_path=path)
    assert callbacks[0].session.steps == [8]
    epochs(model, callbacks, 1)
    assert callbacks[0].session.steps == [12]
    other = make_model("MLP", seed=3)
    epochs(other, callbacks, 1)
    assert callbacks[0].session.steps == [4]
    assert weights_of(other)["net.2.weight"].ne(0).float().mean() > 0.8


def test_state_survives_another_order_and_a_monitor_in_the_second_fit():
    model, fuzzy, crystal = make_model("MLP"), FuzzyLearningRates(), Crystallization(**EVERYTHING)
    fit(model, [fuzzy, crystal], steps=3)
    fit(model, [BioMonitor(), crystal, fuzzy], steps=1)
    assert crystal.session.steps == [4]
    assert torch.allclose(crystal.session.store["net.2.weight"]["crystal"], torch.tensor(0.6**4))


def test_a_copy_of_a_used_callback_is_unused():
    dale = DalesPrinciple(excitatory_fraction=0.5)
    fit(make_model("MLP"), [dale], steps=3)
    copied = copy.deepcopy(dale)
    assert copied.arguments() == dale.arguments()
    assert (copied.targets, copied.state_dict()) == ({}, {})
    other = make_model("MLP", seed=1)
    fit(other, [copied], steps=1)
    assert copied.session.steps == [1]
    assert weights_of(other)["net.2.weight"].ne(0).float().mean() > 0.8


class Stochastic(MLP):
    """Its forward draws from Python's generator, counts its calls in a buffer, and keeps what it saw."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, x):
        self.calls += 1
        y = self.net(x) if random.random() < 0.5 else self.net(-x)
        self.seen.append(y.detach())
        return y


@pytest.mark.parametrize("example", [None, torch.zeros(2, 6)])
def test_tracing_leaves_no_mark_on_model_or_generators(example):
    runs = []
    for callbacks in ([], [neutral("fuzzy_learning_rates")]):
        random.seed(0)
        model = make_model(Stochastic)
        model.example_input_array = example
        fit(model, callbacks)
        runs.append((weights_of(model), torch.cat(model.seen)))
    assert different(runs[0][0], runs[1][0]) == []
    assert torch.equal(runs[0][1], runs[1][1])
    assert runs[1][0]["calls"] == 6


def test_layers_behind_a_frozen_norm_have_rates():
    class FrozenNorm(MLP):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))

        def on_train_epoch_start(self):
            self.net[1].eval()

    scaling = SynapticScaling()
    fit(make_model(FrozenNorm), [scaling])
    assert all("rate" in tensors for tensors in scaling.session.store.values())


def test_compiled_code_counts_even_where_it_was_compiled_without_hooks():
    def compiled() -> ZooModel:
        model = make_model("MLP")
        model.net = torch.compile(model.net, backend="eager")
        return model

    fit(compiled(), steps=2)
    scaling = SynapticScaling()
    fit(compiled(), [scaling], steps=2)
    assert all("rate" in tensors for tensors in scaling.session.store.values())


def test_counting_in_channels_last_breaks_no_compiled_graph():
    class ChannelsLast(ZooModel):
        shape = (2, 6, 6)

        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 4), nn.ReLU(), nn.Flatten())
            self.net.to(memory_format=torch.channels_last)

    def rates(whole: bool) -> list:
        model, scaling = make_model(ChannelsLast), SynapticScaling()
        if whole:
            model.net = torch.compile(model.net, backend="aot_eager", fullgraph=True)
        fit(model, [scaling], steps=2)
        return [tensors["rate"] for tensors in scaling.session.store.values()]

    eager = rates(whole=False)
    assert len(eager) > 0
    assert all(map(torch.allclose, eager, rates(whole=True)))


def test_rates_cover_manually_accumulated_batches():
    class Manual(MLP):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx))
            if batch_idx % 2:
                self.optimizers().step()
                self.optimizers().zero_grad()

    model, scaling = make_model(Manual), SynapticScaling()
    expected = (model.net[0](torch.cat([x for x, _ in model.batches(2)])) > 0).float().mean(dim=0)
    fit(model, [scaling], steps=2)
    assert torch.allclose(scaling.session.store["net.0.weight"]["rate"], expected)


def test_an_optimizer_step_that_is_skipped_by_the_user_changes_no_state():
    class EverySecond(MLP):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            if batch_idx % 2:
                optimizer.step(closure=optimizer_closure)
            else:
                optimizer_closure()

    model, crystal = make_model(EverySecond), Crystallization(**EVERYTHING)
    fit(model, [crystal], steps=6)
    assert crystal.session.steps == [3]
    assert torch.allclose(multipliers(model)["net.2.weight"], torch.tensor(0.6**3))


def test_a_weight_of_two_optimizers_is_refused():
    class Twice(MLP):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.Adam(self.parameters()), torch.optim.Adam(self.parameters())]

    with pytest.raises(Exception, match=r"net\.0\.weight belongs to several optimizers"):
        fit(make_model(Twice), [FuzzyLearningRates()])


def test_multipliers_are_the_same_after_testing():
    model = make_model("MLP")
    trainer = fit(model, [FuzzyLearningRates(distribution="temporal", update_every=1, decay=0.5)])
    before = multipliers(model)
    trainer.test(model, DataLoader(model.batches(1), batch_size=None), verbose=False)
    assert different(before, multipliers(model)) == []


def test_trained_shares_of_a_split_are_kept_by_new_callbacks():
    class Still(MLP):
        def on_train_start(self):
            self.at_start = weights_of(self)

    model = make_model(Still)
    fit(model, [WeightSplitting(), FuzzyLearningRates()])
    trained = weights_of(model)
    fit(model, [WeightSplitting(seed=3)])
    assert different(model.at_start, trained) == []


@pytest.mark.parametrize("fresh_callback", [True, False])
def test_a_model_that_was_split_for_a_test_starts_with_unequal_shares(fresh_callback):
    class Still(MLP):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    model, whole, splitting = make_model(Still, double=True), make_model(Still, double=True), WeightSplitting(gamma=3)
    make_trainer([splitting]).test(model, DataLoader(model.batches(1), batch_size=None), verbose=False)
    fit(model, [WeightSplitting(gamma=3) if fresh_callback else splitting], steps=1)
    parts = weights_of(model)["net.2.weight"]
    assert (parts[0] != parts[1]).float().mean() > 0.99
    assert torch.allclose(parts.sum(dim=0), weights_of(whole)["net.2.weight"], atol=1e-12)


def test_fitted_models_are_collected():
    model = make_model("MLP")
    fit(model, [FuzzyLearningRates(), SynapticScaling()])
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


class Boom(pl.Callback):
    def setup(self, trainer, pl_module, stage):
        raise KeyError("boom")


def test_an_exception_before_configure_model_leaves_no_wrapper():
    model = make_model("MLP")
    with pytest.raises(KeyError, match="boom"):
        fit(model, [WeightSplitting(), Boom()])
    assert "configure_model" not in vars(model)


def test_a_split_that_fails_splits_nothing():
    model = make_model("MLP")
    with pytest.raises(BioConfigError, match=r"divisor of the 12 units of net\.2"):
        fit(model, [WeightSplitting(mode="grouped", gamma=8)])
    assert all(not module._forward_hooks for module in model.modules())
    fit(model, [WeightSplitting(mode="grouped", gamma=4)])


def test_fold_in_training_has_no_hooks():
    class Folding(MLP):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.folded = fold(self)

    model = make_model(Folding)
    fit(model, [SynapticScaling(), WeightSplitting()], steps=1)
    assert all(not module._forward_hooks for module in model.folded.modules())


def test_embedding_max_norm_is_no_move_of_the_optimizer():
    class Bounded(MLP):
        shape = (5,)
        integers = True

        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.embed = nn.Embedding(11, 8, max_norm=0.5)
            self.head = nn.Linear(8, 4)
            nn.init.constant_(self.embed.weight, 5.0)

        def forward(self, x):
            return self.head(self.embed(x).mean(dim=1))

    model = make_model(Bounded, "adam")
    frozen = Crystallization(**{**EVERYTHING, "dampening_factor": 1e-6}, include="embed*")
    used = torch.cat([x for x, _ in model.batches(1)]).unique()
    fit(model, [frozen], steps=1)
    assert torch.allclose(model.embed.weight[used].norm(dim=1), torch.tensor(0.5), atol=1e-3)


def test_empty_layers_are_left_alone():
    class Empty(MLP):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.empty = nn.Linear(1, 5)
            self.empty.weight = nn.Parameter(torch.zeros(5, 0))

    rejuvenation = WeightRejuvenation(every_n_steps=1)
    fit(make_model(Empty), [rejuvenation], steps=2)
    assert "empty.weight" not in rejuvenation.targets


def test_swa_with_splitting_is_refused():
    with pytest.raises(Exception, match="WeightSplitting cannot work with StochasticWeightAveraging"):
        fit(make_model("MLP"), [WeightSplitting(), StochasticWeightAveraging(1e-2)])


def test_a_schedule_that_never_acts_is_an_error():
    with pytest.raises(
        BioConfigError, match=r"end_step: got 5; allowed: null, 0 \(never acts\), or more than start_step"
    ):
        DalesPrinciple(start_step=10, end_step=5)


def test_state_changes_every_n_steps_from_the_start_step_on():
    class Watching(MLP):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.seen = [*getattr(self, "seen", []), multipliers(self)["net.2.weight"].max().item()]

    model = make_model(Watching)
    fit(model, [Crystallization(**EVERYTHING, start_step=1, every_n_steps=3)], steps=6)
    assert model.seen == pytest.approx([1, 0.6, 0.6, 0.6, 0.36, 0.36])


SHARDING = (
    strategies.FSDPStrategy,
    strategies.DeepSpeedStrategy,
    strategies.XLAStrategy,
    strategies.SingleDeviceXLAStrategy,
)


@pytest.mark.parametrize("strategy", SHARDING)
def test_sharding_strategies_are_refused(strategy):
    def check(used: type) -> None:
        # most of them cannot be made without their hardware or package
        trainer = types.SimpleNamespace(callbacks=[fuzzy], strategy=used.__new__(used), optimizers=[])
        refuse_unsupported(trainer, Settings(), [fuzzy])

    fuzzy = FuzzyLearningRates()
    with pytest.raises(
        Exception, match=rf"does not support {strategy.__name__}, .*use ModelParallelStrategy.*DDP, or a single device"
    ):
        check(strategy)
    for supported in (strategies.DDPStrategy, strategies.ModelParallelStrategy):
        check(supported)


def test_lbfgs_has_no_gradient_mode():
    class Newton(MLP):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1)

    with pytest.raises(Exception, match=r"apply_to='gradient' cannot work with LBFGS; use 'update' or 'auto'"):
        fit(make_model(Newton), [FuzzyLearningRates(apply_to="gradient")])
    fit(make_model(Newton), [FuzzyLearningRates(apply_to="update")], steps=2)
