"""What cannot work is refused before the first step: by an error that names callback, conflict and remedy."""

from __future__ import annotations

import copy
import types

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelPruning, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from bio_lightning import (
    BioConfigError,
    Crystallization,
    DalesPrinciple,
    FuzzyLearningRates,
    SynapticScaling,
    WeightRejuvenation,
    WeightSplitting,
    fold,
)
from bio_lightning.settings import Settings, refuse_unsupported
from tests.exactness.resuming import train
from tests.models import MLP, TwoOptimizers, different, make_model, weights_of


class Shared(TwoOptimizers):
    """Both optimizers move the head."""

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.head.parameters(), lr=0.1)]


class Newton(MLP):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1)


class Foreign:
    """Behaves as an optimizer, and is none."""

    def __init__(self, parameters) -> None:
        self.inner = torch.optim.SGD(parameters, lr=0.1)
        self.param_groups, self.state, self.defaults = self.inner.param_groups, self.inner.state, self.inner.defaults

    def step(self, closure=None):
        return self.inner.step(closure)

    def zero_grad(self, *_, **__):
        self.inner.zero_grad()

    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, state):
        self.inner.load_state_dict(state)


class WithForeign(MLP):
    def configure_optimizers(self):
        return Foreign(self.parameters())


class Fused(MLP):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, fused=True)


class Lazy(MLP):
    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.net[0] = nn.LazyLinear(16)


class NotANumber(MLP):
    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        with torch.no_grad():
            self.net[2].weight[0, 0] = torch.nan


def scaler() -> list[MixedPrecision]:
    return [MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu"))]


#: Callbacks, further callbacks, and what else; and the callback, the conflict and the remedy that the error names.
REFUSALS = {
    "two of a class on one weight": (
        lambda: [Crystallization(include="net.0*"), Crystallization(include="net.*")], {},
        "Crystallization", "net.0.weight", "separate them by include/exclude",
    ),
    "settings of the pass": (
        lambda: [FuzzyLearningRates(apply_to="update"), Crystallization(apply_to="gradient")], {},
        "FuzzyLearningRates", "apply_to", "set it in one of them",
    ),
    "averaging before": (
        lambda: [EMAWeightAveraging(), DalesPrinciple()], {},
        "DalesPrinciple", "WeightAveraging", "must come before",
    ),
    "averaging between": (
        lambda: [FuzzyLearningRates(), WeightAveraging(), DalesPrinciple()], {},
        "DalesPrinciple", "WeightAveraging", "must come before",
    ),
    "stochastic averaging of a split": (
        lambda: [WeightSplitting(), StochasticWeightAveraging(0.1)], {},
        "WeightSplitting", "StochasticWeightAveraging", "use EMAWeightAveraging",
    ),
    "pruning": (
        lambda: [SynapticScaling(), ModelPruning("l1_unstructured", amount=0.1)], {},
        "SynapticScaling", "ModelPruning", "prune afterwards",
    ),
    "a spawned split": (
        lambda: [WeightSplitting()], {"strategy": "ddp_spawn"},
        "WeightSplitting", "spawning strategy", "strategy='ddp'",
    ),
    "a split in shards": (
        lambda: [WeightSplitting()], {"strategy": ModelParallelStrategy(1, 1, process_group_backend="gloo")},
        "WeightSplitting(mode='synapses')", "ModelParallelStrategy", "use mode='grouped', or strategy='ddp'",
    ),
    "a weight of two optimizers": (
        lambda: [WeightRejuvenation(include="head*")], {"model": Shared},
        "WeightRejuvenation", "head.0.weight belongs to several optimizers", "give it to one, or exclude it",
    ),
    "newton": (
        lambda: [Crystallization(), FuzzyLearningRates(apply_to="gradient")], {"model": Newton},
        "FuzzyLearningRates", "LBFGS", "use 'update' or 'auto'",
    ),
    "foreign optimizer": (
        lambda: [FuzzyLearningRates()], {"model": WithForeign},
        "FuzzyLearningRates", "cannot see when Foreign steps", "derive it from torch.optim.Optimizer",
    ),
    "fused optimizer under a scaler": (
        lambda: [Crystallization()], {"model": Fused, "plugins": scaler},
        "Crystallization", "SGD unscales them only inside", "fused=False",
    ),
    "lazy layer": (
        lambda: [DalesPrinciple()], {"model": Lazy},
        "bio callbacks", "net.0.weight: the lazy layer has no weights yet", "run one forward pass before fitting",
    ),
    "nan": (
        lambda: [WeightRejuvenation()], {"model": NotANumber},
        "WeightRejuvenation", "net.2.weight contains NaN", "detect_anomaly",
    ),
    "units that do not divide": (
        lambda: [WeightSplitting(gamma=5, mode="grouped")], {},
        "weight_splitting.gamma", "16 units of net.0", "or exclude that layer",
    ),
    "balance without inhibition": (
        lambda: [DalesPrinciple(balanced=True, excitatory_fraction=1e-6)], {},
        "dales_principle.balanced", "net.2.weight", "an excitatory_fraction that leaves",
    ),
    "nothing but an input layer": (
        lambda: [DalesPrinciple(include="net.0*")], {},
        "dales_principle.include", "net.0*", "input_layer: true",
    ),
    "unknown readers": (
        lambda: [WeightRejuvenation(select="activity", readers={"net.0": ("net.9",)})], {},
        "weight_rejuvenation.readers", "net.9", "names of layers",
    ),
}  # fmt: skip


class Steps(pl.Callback):
    """Whether an optimizer stepped."""

    def __init__(self) -> None:
        self.stepped = False

    def on_train_start(self, trainer, pl_module):
        for optimizer in trainer.optimizers:
            step = optimizer.step

            def noted(*args, step=step, **kwargs):
                self.stepped = True
                return step(*args, **kwargs)

            optimizer.step = noted


def test_steps_are_seen():
    watch = Steps()
    train([watch])
    assert watch.stepped


@pytest.fixture(autouse=True)
def _no_group_left():
    """A strategy that is refused has made its group of processes by then, which later tests would take for theirs."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("name", REFUSALS)
def test_refused_before_the_first_step(name):
    callbacks, more, *words = REFUSALS[name]
    more = {key: value() if key == "plugins" else value for key, value in more.items()}
    model = make_model(more.pop("model", MLP))
    start, watch = copy.deepcopy(model), Steps()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of several types; the words are what counts
        train([*callbacks(), watch], model=model, **more)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    if name not in ("lazy layer", "nan", "averaging before", "averaging between"):
        assert different(weights_of(start), weights_of(fold(model))) == []
    assert not watch.stepped or name == "fused optimizer under a scaler"  # inside the step, before a weight moves


@pytest.mark.parametrize("strategy", ["FSDPStrategy", "DeepSpeedStrategy", "XLAStrategy"])
def test_sharding_is_refused(strategy):
    callbacks = [FuzzyLearningRates(), DalesPrinciple()]
    # most of them cannot be made without their hardware or package
    used = getattr(pl.strategies, strategy)
    trainer = types.SimpleNamespace(callbacks=callbacks, strategy=used.__new__(used), optimizers=[])
    with pytest.raises(MisconfigurationException) as caught:
        refuse_unsupported(trainer, Settings(), callbacks)
    for words in ("FuzzyLearningRates, DalesPrinciple", strategy, "use ModelParallelStrategy with fully_shard (FSDP2)"):
        assert words in str(caught.value)


def saved(callback: WeightSplitting | DalesPrinciple | None, path) -> str:
    train([callback] if callback else [], max_epochs=1)[1].save_checkpoint(path / "first.ckpt")
    return str(path / "first.ckpt")


@pytest.mark.parametrize("now", [WeightSplitting(gamma=3), WeightSplitting(mode="grouped"), FuzzyLearningRates()])
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_with_another_split_is_refused(now, tmp_path):
    path, watch = saved(WeightSplitting(gamma=2), tmp_path), Steps()
    with pytest.raises(ValueError, match=r"WeightSplitting: net\.0\.weight has 2 synapses per connection") as caught:
        train([now, watch], ckpt_path=path)
    assert "resume with WeightSplitting(mode='synapses', gamma=2), or load the weights of fold" in str(caught.value)
    assert not watch.stepped


def test_signs_that_contradict_a_checkpoint_are_refused_where_asked(tmp_path):
    path, watch = saved(None, tmp_path), Steps()
    with pytest.raises(MisconfigurationException, match=r"DalesPrinciple: \d+ weights of net\.2\.weight") as caught:
        train([DalesPrinciple(on_mismatch="refuse"), watch], ckpt_path=path)
    assert "set on_mismatch='project'" in str(caught.value)
    assert not watch.stepped


def test_a_model_that_is_split_in_another_way_is_refused():
    model, watch = train([WeightSplitting(gamma=2)])[0], Steps()
    trained = weights_of(model)
    with pytest.raises(BioConfigError, match=r"weight_splitting\.gamma: got 3; allowed: 2, since net\.0 is split"):
        train([WeightSplitting(gamma=3), watch], model=model)
    assert different(trained, weights_of(model)) == []
    assert not watch.stepped


def test_weights_that_are_no_real_numbers_are_left_alone(caplog):
    class Odd(MLP):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.waves = nn.Linear(3, 3, dtype=torch.complex64)
            self.packed = nn.Linear(3, 3)
            self.packed.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)

    rejuvenation = WeightRejuvenation()
    with caplog.at_level("INFO"):
        train([rejuvenation], model=Odd)
    assert set(rejuvenation.targets) == {"net.0.weight", "net.2.weight", "net.4.weight"}
    for layer in ("waves.weight", "packed.weight"):
        assert f"{layer} is left alone: its weights are no real numbers" in caplog.text
