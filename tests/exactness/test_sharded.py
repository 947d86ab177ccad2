"""Weights in shards, by FSDP2 and tensor parallelism: the same runs as in one process, to rounding.

Groups of two, three and four processes run all cases of :mod:`tests.exactness.sharded_cases`.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from tests.exactness import sharded_cases
from tests.exactness.groups import launch
from tests.exactness.runs import moved, state_of, unequal
from tests.exactness.sharded_cases import CASES, RESUMED_TO, RUNS, Wide, checkpoint, fit, resume_all, run_all, save_all
from tests.models import make_model

pytestmark = pytest.mark.slow

ALL = [(world, name) for world, cases in CASES.items() for name in cases]


@pytest.fixture(scope="module")
def groups(tmp_path_factory) -> dict[int, list[dict[str, dict[str, Tensor]]]]:
    """The state that every case leaves, by number of processes and by rank."""
    return {world: launch(world, run_all, tmp_path_factory.mktemp("ranks")) for world in CASES}


@functools.cache
def in_one_process(world: int, name: str) -> dict[str, Tensor]:
    return CASES[world][name].run()


@pytest.mark.parametrize(("world", "name"), ALL)
def test_shards_equal_one_process_on_the_same_batches(groups, world, name):
    first, *others = (rank[name] for rank in groups[world])
    # counts of replaced weights and signs are compared exactly
    assert unequal(in_one_process(world, name), first, tolerance=1e-9) == []
    assert [unequal(first, other) for other in others] == [[]] * len(others)
    case = CASES[world][name]
    assert moved(state_of(make_model(case.model, case.optimizer, double=True), []), first)


def test_memory_in_a_step_is_that_of_the_shard(groups):
    alone, shards = sharded_cases.memory(), [rank["memory"] for rank in groups[2]]
    model = Wide()
    weight = model.net[2].weight.numel()
    half = 8 * sum(parameter.numel() for parameter in model.parameters()) / 2  # FSDP2 lays all gradients side by side
    assert alone["largest"] >= 8 * weight > half, "the comparison needs a layer that outweighs everything else"
    for shard in shards:
        assert shard["largest"] <= half
        assert shard["kept everything"] == alone["kept everything"] / 2 == 2 * 4 * weight / 2
        assert shard["kept by_activity"] == alone["kept by_activity"] / 2


def test_groups_that_cross_tensor_parallel_processes_are_refused(groups):
    for rank in groups[2]:
        for said in rank["crossing"]:
            assert "leaves a process 8 units of a layer: groups of 16 would cross" in said
            assert "choose a gamma that divides 8" in said


def test_the_monitor_logs_what_it_logs_in_one_process(groups):
    alone, (first, second) = sharded_cases.logs(), (rank["logs"] for rank in groups[2])
    assert unequal(alone, first, tolerance=1e-6) == []
    assert second == {}, "rank zero alone logs"
    tags = {tag.split("/")[2] for tag in first if "/" in tag}
    assert {"multiplier_std", "crystallized_fraction", "replaced_fraction_total", "violations_corrected"} <= tags
    assert {tag.split()[0] for tag in first if "bio/" not in tag} == {"weights", "multipliers"}
    assert any(tag.startswith("histogram bio/plasticity/multiplier/") for tag in first)
    assert any("rank_effective" in tag for tag in first)
    assert any(value > 0 for tag, value in first.items() if "violations_corrected" in tag)
    assert any(value > 0 for tag, value in first.items() if "replaced_fraction/" in tag)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints of two processes and of one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    fit("everything", 0, 0, until=sharded_cases.SAVED_AT, saved=folder / "whole.ckpt")
    return folder, launch(2, save_all, tmp_path_factory.mktemp("saving"), str(folder))


@pytest.fixture(scope="module")
def resumed(checkpoints, tmp_path_factory) -> dict[int, list[dict[str, dict[str, Tensor]]]]:
    """What resuming on one, two and three processes comes to."""
    folder, _ = checkpoints
    return {world: launch(world, resume_all, tmp_path_factory.mktemp("resumed"), str(folder)) for world in (1, 2, 3)}


@functools.cache
def uninterrupted(label: str) -> dict[str, Tensor]:
    return fit(label, 0, 0)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("label", "distributed"), [run for run in RUNS if run[0]])
def test_a_run_on_two_processes_goes_on_with_any_number(checkpoints, resumed, label, distributed, world):
    folder, saving = checkpoints
    name = checkpoint(folder, label, distributed).stem
    for rank, states in enumerate(resumed[world]):
        assert states[name]["steps"].tolist() == [RESUMED_TO]
        assert unequal(uninterrupted(label), states[name], tolerance=1e-9) == []
        if world == 2:
            assert unequal(saving[rank][label], states[name]) == [], "to the bit"


@pytest.mark.parametrize("label", ["everything", "by_activity"])
def test_a_full_checkpoint_is_that_of_one_process(checkpoints, label, tmp_path):
    path = checkpoint(checkpoints[0], label, distributed=False)
    assert unequal(uninterrupted(label), fit(label, 0, 0, ckpt=path), tolerance=1e-9) == []
    fit(label, 0, 0, until=sharded_cases.SAVED_AT, saved=tmp_path / "whole.ckpt")
    ours, theirs = (torch.load(p, weights_only=True)["callbacks"] for p in (path, tmp_path / "whole.ckpt"))
    for key, state in theirs.items():
        for name, tensors in state["weights"].items():
            assert unequal(tensors, ours[key]["weights"][name], tolerance=1e-9) == []


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_checkpoint_of_one_process_goes_on_in_shards(resumed, world):
    for states in resumed[world]:
        assert unequal(uninterrupted("everything"), states["from one process"], tolerance=1e-9) == []


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("distributed", [True, False])
def test_a_checkpoint_without_mechanisms_goes_on_with_them(checkpoints, resumed, distributed, world):
    folder, _ = checkpoints
    alone = fit("everything", 0, 0, ckpt=checkpoint(folder, None, distributed=False))
    for states in resumed[world]:
        name = checkpoint(folder, None, distributed).stem
        assert unequal(alone, states[name], tolerance=1e-9) == []
