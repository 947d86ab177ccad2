"""Groups of processes that train together, started from one that has imported everything already."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

#: Imported once, not once per process.
_PRELOADED = ["tests.exactness.ddp_cases", "tests.exactness.sharded_cases"]


def launch(world: int, work: Callable[..., dict[str, Any]], folder: Path, *args: Any) -> list[dict[str, Any]]:
    """Run ``work(rank, world, *args)`` in every process of a group.

    Args:
        world: Number of processes.
        work: Gives tensors by name.
        folder: Empty, for what the processes hand back.
        args: Further arguments of ``work``.

    Returns:
        What it gave, by rank.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(_PRELOADED)
    torch.multiprocessing.start_processes(
        _work, args=(world, port, str(folder), work, args), nprocs=world, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _work(rank: int, world: int, port: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(world), NODE_RANK="0", LOCAL_RANK=str(rank)
    )
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # what is said once per run drowns the rest
    torch.save(work(rank, world, *args), f"{folder}/{rank}.pt")
