"""Every metric in two processes gives what one process with all updates would give."""

import datetime

import torch.distributed
import torch.multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from bio_lightning.functional import dormancy_score
from bio_lightning.metrics import ActivationRank, DormantFraction, SignViolations, SpineLifetime, Turnover
from tests.metrics.cases import CASES, assert_close, assert_equals_reference, draws, make

SHARDABLE = [
    "CrystallizedFraction", "ExcitationInhibition", "FiringRate", "GradientRatio", "LogNormality", "MultiplierSpread",
    "MultiplierSpread quantiles", "SynapseSurvival", "UpdateRatio",
]  # fmt: skip


def of_tensors(arguments, function):
    return [function(each) if isinstance(each, torch.Tensor) else each for each in arguments]


def all_updates_count(rank: int) -> None:
    for name in CASES:
        updates = draws(name, 5)
        metric = make(name)
        for arguments in updates[:2] if rank == 0 else updates[2:]:
            metric.update(*arguments)
        assert_equals_reference(name, metric, updates)


def a_process_may_have_nothing(rank: int) -> None:
    for name in CASES:
        updates = draws(name, 2)
        metric = make(name)
        for arguments in updates if rank == 1 else []:
            metric.update(*arguments)
        assert_equals_reference(name, metric, updates)


def what_all_have_is_not_doubled(rank: int) -> None:
    for name in CASES:
        updates = draws(name, 2)
        metric = make(name)
        for arguments in updates:
            metric.update(*arguments)
        expected = CASES[name].reference(updates)
        if name == "SignViolations":
            expected["corrected"] *= 2  # a number, not a share
        assert_close(metric.compute(), expected, CASES[name].tolerance)


def shards_make_a_whole(rank: int) -> None:
    for name in SHARDABLE:
        (whole,) = draws(name, 1, seed=3)
        assert len(whole[0]) > 1
        metric = make(name)
        metric.update(*of_tensors(whole, lambda tensor: tensor[:1] if rank == 0 else tensor[1:]))
        assert_equals_reference(name, metric, [whole])


def a_distributed_tensor_is_seen_whole(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    for name in (*SHARDABLE, "WeightRank"):
        (whole,) = draws(name, 1, seed=3)
        metric = make(name, sync_on_compute=False)
        metric.update(*of_tensors(whole, lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)])))
        assert_equals_reference(name, metric, [whole])


def a_number_in_parts_is_added_up(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))

    def number(mine: int) -> DTensor:
        return DTensor.from_local(torch.tensor(mine), mesh, [Partial()])

    violations, turnover, lifetime = (
        metric(sync_on_compute=False) for metric in (SignViolations, Turnover, SpineLifetime)
    )
    violations.update(number(3 + rank), synapses=10)
    turnover.update(number(3 + rank), number(5), synapses=10)
    lifetime.update(number(3 + rank), synapses=10, steps=5)
    assert_close(violations.compute(), {"corrected": 7.0, "per_synapse": 0.7})
    assert_close(turnover.compute(), {"fraction": 0.7, "fraction_total": 1.0})
    assert_close(lifetime.compute(), {"steps": 50 / 7, "per_step": 7 / 50})


def a_score_may_be_of_sums_over_shards(rank: int) -> None:
    mesh, activity = init_device_mesh("cpu", (2,)), torch.arange(12.0).view(4, 3)
    score = dormancy_score(distribute_tensor(activity, mesh, [Shard(0)]).sum(0))
    torch.testing.assert_close(score.full_tensor(), dormancy_score(activity.sum(0)))


def activity_anywhere_counts(rank: int) -> None:
    hidden = torch.zeros(1, 4)
    hidden[0, rank] = 1.0
    dormant, activation_rank = DormantFraction(units=4), ActivationRank(units=4)
    for metric in (dormant, activation_rank):
        metric.update(hidden)
    assert dormant.compute()["tau_0"] == 0.5
    assert_close(activation_rank.compute(), {"stable": 2.0, "effective": 2.0})


SCENARIOS = (
    all_updates_count,
    a_process_may_have_nothing,
    what_all_have_is_not_doubled,
    shards_make_a_whole,
    a_distributed_tensor_is_seen_whole,
    a_number_in_parts_is_added_up,
    a_score_may_be_of_sums_over_shards,
    activity_anywhere_counts,
)


def in_one_of_two_processes(rank: int, store: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    for scenario in SCENARIOS:
        scenario(rank)
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    torch.multiprocessing.spawn(in_one_of_two_processes, args=(str(tmp_path / "store"),), nprocs=2)
