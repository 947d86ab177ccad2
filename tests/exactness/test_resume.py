"""Runs that were broken off go on as if they had not been: exceptions, SIGTERM, kill -9, in the middle of an epoch."""

from __future__ import annotations

import functools
import random
import signal
import time
import warnings
import zlib

import lightning.pytorch as pl
import pytest
import torch

from bio_lightning import (
    Crystallization,
    DalesPrinciple,
    FuzzyLearningRates,
    SynapticScaling,
    VolumeDependentLR,
    WeightSplitting,
    dale_signs,
    fold,
    multipliers,
)
from bio_lightning.callbacks import Mechanism
from tests.cases import all_on
from tests.exactness.resuming import (
    BATCHES,
    CASES,
    EPOCHS,
    Break,
    BrokeOffError,
    Shuffled,
    break_off,
    callbacks_of,
    everything,
    last_checkpoint,
    start,
    train,
)
from tests.models import ZooModel, different, make_model, weights_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed",  # the resumed run writes its checkpoints elsewhere
    "ignore:Using ModelCheckpoint with manual optimization",  # and saves the weights after the step, as it should
)

OPTIMIZERS = ("sgd", "momentum", "adam")
#: Around everything that the callbacks do in a step; a few of these moments are before ours in the list, some after.
HOOKS = ("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
         "on_before_optimizer_step", "on_train_batch_end", "on_save_checkpoint")  # fmt: skip


def some_moment(*seed: str, how: str = "raise") -> Break:
    """A moment of the run, another one for every test, the same at every repetition; after the first checkpoint."""
    generator = random.Random(zlib.crc32(repr(seed).encode()))
    hook = generator.choice(HOOKS)
    latest = EPOCHS * BATCHES - 2 if hook != "on_save_checkpoint" else EPOCHS * BATCHES // 2 - 1
    return Break(hook, generator.randint(4, latest), how, generator.random() < 0.5)


@functools.cache
def uninterrupted(case: str, optimizer: str, model: str = "MLP", **more) -> dict[str, torch.Tensor]:
    return everything(*train(case, optimizer, model=model, **more))


def goes_on_exactly(case: str, optimizer: str, when: Break, folder, **more) -> None:
    whole = uninterrupted(case, optimizer, **more)
    path = break_off(case, optimizer, when, folder, **more)
    checkpoint = torch.load(path, weights_only=True)
    model, trainer = train(case, optimizer, ckpt_path=path, folder=folder / "resumed", **more)
    resumed = everything(model, trainer)
    assert resumed.keys() == whole.keys()
    assert different(whole, resumed) == [], when
    assert 0 < checkpoint["global_step"] < trainer.global_step, "the run has to break off before its end"
    assert any(
        not torch.equal(weight, checkpoint["state_dict"][name]) for name, weight in model.state_dict().items()
    ), "what follows has to move the weights"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", CASES)
def test_after_an_exception(case, optimizer, tmp_path):
    goes_on_exactly(case, optimizer, some_moment(case, optimizer), tmp_path)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("case", CASES)
def test_after_the_end_of_the_process(case, how, tmp_path):
    optimizer = OPTIMIZERS[zlib.crc32(case.encode()) % len(OPTIMIZERS)]
    goes_on_exactly(case, optimizer, some_moment(case, how, how=how), tmp_path)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", ["none", "all"])
def test_after_a_kill_at_any_time(case, optimizer, tmp_path):
    more = {"every": 1, "max_epochs": 30}
    process = start(case, optimizer, folder=tmp_path, **more)
    late = random.Random(zlib.crc32(f"{case} {optimizer}".encode())).randint(10, 60)
    while process.exitcode is None and sum(1 for _ in tmp_path.glob("*.ckpt")) < late:
        time.sleep(0.001)
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    path = last_checkpoint(tmp_path)
    resumed = everything(*train(case, optimizer, ckpt_path=path, folder=tmp_path / "resumed", **more))
    assert different(uninterrupted(case, optimizer, max_epochs=30), resumed) == [], path


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("MLP", {"accumulate_grad_batches": 2, "every": 1}),
        ("TwoOptimizers", {"every": 1}),  # while the second one's rates are half counted
        ("Recurrent", {}),
        ("Tied", {}),
    ],
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", ["none", "all"])
def test_on_every_path_of_a_step(case, optimizer, model, more, tmp_path):
    when = Break("on_train_batch_start", 11, first=False)
    goes_on_exactly(case, optimizer, when, tmp_path, model=model, **more)


@pytest.mark.parametrize("case", CASES)
def test_the_same_callbacks_and_model_go_on(case, tmp_path):
    """In a notebook: what a step left undone must not leak into the next."""
    callbacks, model = callbacks_of(case), make_model("MLP", "momentum")
    when = Break("on_train_batch_end", 10)  # the optimizer has stepped, and our callbacks have not had their turn
    with pytest.raises(BrokeOffError):
        train(callbacks, model=model, folder=tmp_path, when=when)
    path = last_checkpoint(tmp_path)
    again = everything(*train(callbacks, model=model, folder=tmp_path / "resumed", ckpt_path=path))
    assert different(uninterrupted(case, "momentum"), again) == []


# ---- other callbacks than the checkpoint's ---------------------------------------------------------------------------


def saved(callbacks: list, path, optimizer: str = "adam") -> str:
    """Checkpoint after the first epoch."""
    train(callbacks, optimizer, max_epochs=1)[1].save_checkpoint(path / "first.ckpt")
    return str(path / "first.ckpt")


def messages(caught: list) -> list[str]:
    """What the library warned of."""
    return [str(warning.message) for warning in caught if "bio_lightning" in str(warning.message)]


def test_every_difference_is_listed_with_the_value_that_wins(tmp_path):
    before = [
        FuzzyLearningRates(nu=0.4),
        Crystallization(crystal_thresh=0.1, recovery=0.2, include="net*"),
        DalesPrinciple(),
        SynapticScaling(),
    ]
    now = [
        FuzzyLearningRates(nu=0.9, start_step=3),
        Crystallization(crystal_thresh=0.1, recovery=0.5, exclude="net.4*"),
        DalesPrinciple(seed=4, every_n_steps=2),
        VolumeDependentLR(),
    ]
    path = saved(before, tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(now, "adam", ckpt_path=path)
    (message,) = messages(caught)
    first, *lines = message.split("\n  ")
    assert "the present one wins, save where it says otherwise" in first
    assert sorted(lines) == [
        "Crystallization.exclude: [] in the checkpoint, ['net.4*'] now",
        "Crystallization.include: ['net*'] in the checkpoint, ['*'] now",
        "Crystallization.recovery: 0.2 in the checkpoint, 0.5 now",
        "DalesPrinciple.every_n_steps: 1 in the checkpoint, 2 now",
        "DalesPrinciple.seed: 0 in the checkpoint, 4 now; the checkpoint's wins for what was drawn at the start",
        "FuzzyLearningRates.nu: 0.4 in the checkpoint, 0.9 now",
        "FuzzyLearningRates.start_step: 0 in the checkpoint, 3 now",
        "SynapticScaling{'include': ['*'], 'exclude': []}: in the checkpoint, off now; its state is dropped",
        "VolumeDependentLR{'include': ['*'], 'exclude': []}: not in the checkpoint, on now; its state starts anew",
    ]


def test_one_of_two_callbacks_of_a_class_that_is_off_is_listed(tmp_path):
    path = saved([Crystallization(include="net.0*"), Crystallization(include="net.2*")], tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train([Crystallization(include="net.0*")], "adam", ckpt_path=path)
    (message,) = messages(caught)
    line = "Crystallization{'include': ['net.2*'], 'exclude': []}: in the checkpoint, off now; its state is dropped"
    assert message.split("\n  ")[1:] == [line]


@pytest.mark.parametrize("case", CASES[1:])
def test_without_a_difference_nothing_is_said(case, tmp_path):
    path = saved(callbacks_of(case), tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(case, "adam", ckpt_path=path)
    assert messages(caught) == []


class AtStart(pl.Callback):
    """Looks at the state before the first step."""

    def on_train_start(self, trainer, pl_module):
        self.multipliers, self.signs = multipliers(pl_module), dale_signs(pl_module)
        self.weights = weights_of(pl_module)


def resumed_with(now: list, path: str, optimizer: str = "adam") -> AtStart:
    start_of_run = AtStart()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train([*now, start_of_run], optimizer, ckpt_path=path)
    return start_of_run


def test_state_stays_with_its_weights_where_patterns_change(tmp_path):
    one, two = (
        Crystallization(crystal_thresh=0.1, include="net.0*"),
        Crystallization(crystal_thresh=0.1, exclude="net.0*"),
    )
    path = saved([Crystallization(crystal_thresh=0.1)], tmp_path)
    state = next(iter(torch.load(path, weights_only=True)["callbacks"].values()))
    found = resumed_with([one, two], path).multipliers
    assert found.keys() == state["weights"].keys()
    for name, tensors in state["weights"].items():
        assert torch.equal(found[name], tensors["crystal"])
        assert not tensors["crystal"].eq(1).all()
    assert one.session.steps == [EPOCHS * BATCHES], "counting goes on"


def test_present_precision_of_the_state_wins(tmp_path):
    path = saved([Crystallization(crystal_thresh=0.1)], tmp_path)
    crystal = Crystallization(crystal_thresh=0.1, state_dtype="bfloat16")
    resumed_with([crystal], path)
    assert {tensors["crystal"].dtype for tensors in crystal.session.store.values()} == {torch.bfloat16}


def test_signs_of_the_checkpoint_win_unless_they_are_those_of_other_neurons(tmp_path):
    dale = DalesPrinciple()
    path = saved([dale], tmp_path)
    signs = {name: tensors["signs"] for name, tensors in dale.state_dict()["weights"].items()}
    assert different(signs, resumed_with([DalesPrinciple(seed=5, excitatory_fraction=0.5)], path).signs) == []
    rows = resumed_with([DalesPrinciple(axis="postsynaptic")], path)
    for name, row_signs in rows.signs.items():
        assert row_signs.shape == rows.weights[name].shape[:1]
        assert (rows.weights[name] * row_signs[:, None] >= 0).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", CASES[1:])
def test_a_plain_checkpoint_starts_every_mechanism(case, optimizer, tmp_path):
    path = saved([], tmp_path, optimizer)
    plain = train("none", optimizer, ckpt_path=path)[0]
    bio, trainer = train(case, optimizer, ckpt_path=path)
    assert all(torch.isfinite(weight).all() for weight in weights_of(bio).values())
    if case == "weight_splitting-synapses":  # trains as the plain net does
        assert all(torch.allclose(plain.state_dict()[n], w, atol=1e-5) for n, w in fold(bio).state_dict().items())
        parts = weights_of(bio)["net.2.weight"]
        assert (parts[0] != parts[1]).float().mean() > 0.99
    else:
        assert different(weights_of(plain), weights_of(fold(bio) if case == "all" else bio))
    assert next(c for c in trainer.callbacks if isinstance(c, Mechanism)).session.steps == [BATCHES]


def plain_epoch(model: ZooModel, checkpoint: dict) -> dict[str, torch.Tensor]:
    """The epoch after a checkpoint by hand, in plain torch."""
    optimizer = model.configure_optimizers()
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    for batch in Shuffled(model.batches(BATCHES)):
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()
    return weights_of(model)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_checkpoint_with_mechanisms_goes_on_without(optimizer, tmp_path):
    path = saved([callback for callback in all_on() if callback.name != "weight_splitting"], tmp_path, optimizer)
    checkpoint = torch.load(path, weights_only=True)
    by_hand = make_model("MLP", optimizer)
    by_hand.load_state_dict(checkpoint["state_dict"])
    resumed, _ = train("none", optimizer, ckpt_path=path)
    assert different(plain_epoch(by_hand, checkpoint), weights_of(resumed)) == []
    assert different(checkpoint["state_dict"], weights_of(resumed)), "training has to move the weights"


def test_a_split_checkpoint_goes_on_without_after_folding(tmp_path):
    split, trainer = train([WeightSplitting()], max_epochs=1)
    trainer.save_checkpoint(tmp_path / "split.ckpt")
    checkpoint = torch.load(tmp_path / "split.ckpt", weights_only=True)
    plain = make_model("MLP", seed=3)
    plain.load_state_dict(fold(WeightSplitting.restore(make_model("MLP"), checkpoint)).state_dict())
    summed = {name: w.sum(dim=0) if w.ndim == 3 else w for name, w in checkpoint["state_dict"].items()}
    assert different(summed, weights_of(plain)) == []
    train("none", model=plain)
    assert all(not torch.equal(w, plain.state_dict()[n]) for n, w in fold(split).state_dict().items())
