"""Runs that were broken off go on as if they had not been: exceptions, SIGTERM, kill -9, in the middle of an epoch."""

from __future__ import annotations

import functools
import random
import signal
import time
import zlib

import pytest
import torch

from tests.exactness.resuming import (
    BATCHES,
    CASES,
    EPOCHS,
    Break,
    BrokeOffError,
    break_off,
    callbacks_of,
    everything,
    last_checkpoint,
    start,
    train,
)
from tests.models import different, make_model

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
        ("TwoOptimizers", {"every": 3}),  # counts the steps of both: the second one's rates are half counted
        ("Recurrent", {}),
        ("Tied", {}),
    ],
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", ["none", "all"])
def test_on_every_path_of_a_step(case, optimizer, model, more, tmp_path):
    when = Break("on_train_batch_start", 12, first=False)
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
