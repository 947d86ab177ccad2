"""Data parallel training: ranks equal each other to the bit, and one process on the same batches to rounding.

One group of two processes and one of three run all cases of :mod:`tests.exactness.ddp_cases`.
"""

from __future__ import annotations

import functools
import socket

import pytest
import torch
from torch import Tensor

from tests.exactness.ddp_cases import CASES, run_all
from tests.exactness.runs import moved, state_of, unequal
from tests.models import make_model

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
