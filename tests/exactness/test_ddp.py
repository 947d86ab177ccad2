"""Data parallel training: ranks equal each other to the bit, and one process on the same batches to rounding.

One group of two processes and one of three run all cases of :mod:`tests.exactness.ddp_cases`.
"""

from __future__ import annotations

import functools
import socket

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from tests.exactness.ddp_cases import CASES, GLOBAL_BATCH, HUGE, cases_of, run_all, unrelated
from tests.exactness.runs import by_activity, moved, state_of, unequal
from tests.models import MLP, make_model, make_trainer

pytestmark = pytest.mark.slow


WORLDS = (2, 3)
RUNS = [(world, name) for world in WORLDS for name in cases_of(world)]


@pytest.fixture(scope="module")
def groups(tmp_path_factory) -> dict[int, list[dict[str, dict[str, Tensor]]]]:
    """The state that every case leaves, by number of processes and by rank."""
    return {world: launch(world, tmp_path_factory.mktemp("ranks")) for world in WORLDS}


def launch(world, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(run_all, args=(world, port, str(folder)), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


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
