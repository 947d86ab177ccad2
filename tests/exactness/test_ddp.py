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

from tests.exactness.ddp_cases import CASES, run_all
from tests.exactness.runs import by_activity, moved, state_of, unequal
from tests.models import MLP, make_model, make_trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[2, 3], ids=["two", "three"])
def ranks(request, tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    """The state that every case leaves, by rank."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(run_all, args=(request.param, port, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


@functools.cache
def in_one_process(name: str) -> dict[str, Tensor]:
    return CASES[name].run()


@pytest.mark.parametrize("name", CASES)
def test_ranks_are_equal_to_the_bit(ranks, name):
    first, *others = (rank[name] for rank in ranks)
    assert [unequal(first, other) for other in others] == [[]] * len(others)
    case = CASES[name]
    start = state_of(make_model(case.model, case.optimizer, double=case.double), [])
    assert moved(start, first)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.double])
def test_ranks_equal_one_process_on_the_same_batches(ranks, name):
    assert unequal(in_one_process(name), ranks[0][name], tolerance=1e-9) == []


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
