"""Every metric in two processes gives what one process with all updates would give."""

import datetime

import torch.distributed
import torch.multiprocessing

from tests.metrics.cases import CASES, assert_equals_reference, draws, make


def compute_in_one_of_two_processes(rank: int, store: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    for name in CASES:
        updates = draws(name, 5)
        metric = make(name)
        for arguments in updates[:2] if rank == 0 else updates[2:]:
            metric.update(*arguments)
        assert_equals_reference(name, metric, updates)
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    torch.multiprocessing.spawn(compute_in_one_of_two_processes, args=(str(tmp_path / "store"),), nprocs=2)
