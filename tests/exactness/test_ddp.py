"""Data parallel training: ranks equal each other to the bit, and one process on the same batches to rounding.

One group of two processes and one of three run all cases of :mod:`tests.exactness.ddp_cases`.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from tests.exactness.ddp_cases import (
    BREAKS,
    CASES,
    GLOBAL_BATCH,
    HUGE,
    after_step,
    be_killed,
    be_terminated,
    break_off_all,
    cases_of,
    go_on,
    run_all,
    step_by_step,
    unrelated,
)
from tests.exactness.groups import launch
from tests.exactness.resuming import BATCHES, EPOCHS
from tests.exactness.runs import by_activity, moved, state_of, unequal
from tests.models import MLP, make_model, make_trainer

pytestmark = pytest.mark.slow


WORLDS = (2, 3)
RUNS = [(world, name) for world in WORLDS for name in cases_of(world)]


@pytest.fixture(scope="module")
def groups(tmp_path_factory) -> dict[int, list[dict[str, dict[str, Tensor]]]]:
    """The state that every case leaves, by number of processes and by rank."""
    return {world: launch(world, run_all, tmp_path_factory.mktemp("ranks")) for world in WORLDS}


@functools.cache
def in_one_process(name: str) -> dict[str, Tensor]:
    return CASES[name].run()


@pytest.mark.parametrize(("world", "name"), RUNS)
def test_ranks_are_equal_to_the_bit(groups, world, name):
    first, *others = (rank[name] for rank in groups[world])
    assert [unequal(first, other) for other in others] == [[]] * len(others)
    case = CASES[name]
    start = state_of(make_model(case.model, case.optimizer, double=case.double), [])
    assert moved(start, first)


@pytest.mark.parametrize(("world", "name"), [run for run in RUNS if CASES[run[1]].double])
def test_ranks_equal_one_process_on_the_same_batches(groups, world, name):
    assert unequal(in_one_process(name), groups[world][0][name], tolerance=1e-9) == []


@pytest.mark.parametrize("world", WORLDS)
def test_unrelated_runs_in_a_group_share_nothing(groups, world):
    ranks = groups[world]
    for rank, states in enumerate(ranks):
        assert unequal(states["unrelated"], unrelated(rank, world), tolerance=1e-9) == []
    assert unequal(ranks[0]["unrelated"], ranks[1]["unrelated"], tolerance=1e-3)


@pytest.mark.parametrize("world", WORLDS)
def test_a_step_is_skipped_where_the_loss_of_one_rank_overflows(groups, world):
    case = CASES["everything-overflowing"]
    wrong = [(x[:, 0] > HUGE).nonzero().flatten().tolist() for x, _ in MLP().double().batches(case.steps, GLOBAL_BATCH)]
    skipped = [samples for samples in wrong if samples]
    assert any(len({sample * world // GLOBAL_BATCH for sample in samples}) == 1 for samples in skipped)
    assert groups[world][0]["everything-overflowing"]["steps"].tolist() == [case.steps - len(skipped)]


class Sharded(MLP):
    """Its loader gives every rank its share of each batch."""

    def train_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return DataLoader([tuple(t.chunk(world)[rank] for t in b) for b in self.batches(20, 12)], batch_size=None)


def test_spawned_processes_train_and_save_as_one_process_does(tmp_path):
    def checkpoint(folder, **arguments):
        model = make_model(Sharded, "adam", double=True)
        callbacks = [c for c in by_activity() if c.name != "weight_splitting"]
        saving = ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
        trainer = make_trainer(
            [*callbacks, saving], max_epochs=1, enable_checkpointing=True, use_distributed_sampler=False, **arguments
        )
        trainer.fit(model)
        saved = torch.load(folder / "last.ckpt", weights_only=True)
        weights = {f"weight {name}": weight for name, weight in saved["state_dict"].items()}
        assert unequal(state_of(model, []), weights) == [], "the weights come back from the spawned process"
        assert moved(state_of(make_model(Sharded, double=True), []), weights)
        parts = ("state_dict", "optimizer_states", "callbacks")
        return {n: t for part in parts for n, t in flat(part, saved[part]) if "ModelCheckpoint" not in n}

    alone = checkpoint(tmp_path / "alone")
    spawned = checkpoint(tmp_path / "spawned", strategy="ddp_spawn", devices=2)
    assert unequal(alone, spawned, tolerance=1e-9) == []
    assert {"crystal", "base", "signs", "rate"} <= {name.split()[-1] for name in alone}


def flat(name, value):
    """Tensors and numbers of nested dicts and lists, with their paths."""
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(f"{name} {key}", item)
    elif isinstance(value, (int, float, Tensor)):
        yield name, torch.as_tensor(value)


# ---- runs that break off ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    """States of runs with and without a break, by rank."""
    return launch(2, break_off_all, tmp_path_factory.mktemp("ranks"), str(tmp_path_factory.mktemp("checkpoints")))


@pytest.mark.parametrize("name", BREAKS)
def test_a_run_that_broke_off_goes_on_to_the_bit(broken_off, name):
    for states in broken_off:
        whole, resumed = states[f"{name} uninterrupted"], states[f"{name} resumed"]
        assert unequal(whole, resumed) == []
        assert 0 < states[f"{name} broken off"]["step"] < EPOCHS * BATCHES
        assert moved(state_of(make_model(MLP, seed=99), []), resumed)


def test_after_all_processes_were_told_to_end_a_new_group_goes_on(broken_off, tmp_path):
    for name in ("terminated", "ranks", "checkpoints"):
        (tmp_path / name).mkdir()
    ended = launch(2, be_terminated, tmp_path / "terminated", str(tmp_path / "checkpoints"))
    assert all(states["ended"] for states in ended)
    for rank, states in enumerate(launch(2, go_on, tmp_path / "ranks", str(tmp_path / "checkpoints"))):
        assert unequal(broken_off[rank]["all-adam uninterrupted"], states["resumed"]) == []


def test_after_a_process_was_killed_a_new_group_goes_on(broken_off, tmp_path):
    for name in ("killed", "ranks", "checkpoints"):
        (tmp_path / name).mkdir()
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGKILL"):
        launch(2, be_killed, tmp_path / "killed", str(tmp_path / "checkpoints"))
    for rank, states in enumerate(launch(2, go_on, tmp_path / "ranks", str(tmp_path / "checkpoints"))):
        assert unequal(broken_off[rank]["all-adam uninterrupted"], states["resumed"]) == []


# ---- one step in float32 ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> Path:
    """Checkpoints of two processes after every step, in float32."""
    folder = tmp_path_factory.mktemp("steps")
    launch(2, step_by_step, tmp_path_factory.mktemp("ranks"), str(folder))
    return folder


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # one process writes its checkpoints elsewhere
@pytest.mark.parametrize("step", [1, 2, 5, 9, 14])
@pytest.mark.parametrize("label", ["everything", "by_activity"])
def test_a_step_in_float32_is_that_of_one_process(steps, label, step, tmp_path):
    before = steps / label / f"step={step - 1}.ckpt"
    alone = torch.load(after_step(label, step, before if step > 1 else None, tmp_path), weights_only=True)
    group = torch.load(steps / label / f"step={step}.ckpt", weights_only=True)
    assert alone["global_step"] == group["global_step"] == step
    assert _numbers(alone).keys() == _numbers(group).keys()
    off = differing(alone, group)
    # a weight at a threshold may fall on either side of it
    assert sum(off.values()) <= 2, off
    if step > 1:
        assert sum(differing(torch.load(before, weights_only=True), group).values()) > 100, "the step has to matter"


def differing(first: dict, second: dict) -> dict[str, int]:
    """How many numbers differ by more than rounding, by where they are."""
    one, other = _numbers(first), _numbers(second)
    same = {n: torch.isclose(one[n], other[n], rtol=1e-4, atol=1e-6) for n in one.keys() & other.keys()}
    found = {name: int((~equal).sum()) for name, equal in same.items()}
    return {name: number for name, number in found.items() if number}


def _numbers(checkpoint: dict) -> dict[str, Tensor]:
    """All that a checkpoint holds of the training, by place."""
    parts = [flat(part, checkpoint[part]) for part in ("state_dict", "optimizer_states", "callbacks")]
    return {n: t.double() for found in parts for n, t in found if "ModelCheckpoint" not in n}
