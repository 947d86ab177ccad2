"""What is particular to ages and lifetimes."""

import math

import numpy as np
import pytest
import torch

from bio_lightning.metrics import SpineLifetime, SynapseSurvival


def test_ages_and_masks_of_a_simulated_turnover():
    """Half of the synapses die with probability 1/20 per step, half with 1/80: lifetimes that no exponential fits."""
    rng = np.random.default_rng(0)
    hazard = np.repeat([1 / 20, 1 / 80], 2000)
    age = np.zeros(4000, dtype=np.int64)
    lifetime, died_at = SpineLifetime(), []
    for step in range(600):
        age += 1
        replaced = rng.uniform(size=4000) < hazard
        if step >= 300:  # steady by then
            lifetime.update(torch.as_tensor(replaced).sum(), synapses=4000, steps=1)
            died_at.append(age[replaced])
        age[replaced] = 0
    assert lifetime.compute()["per_step"].item() == pytest.approx(hazard.mean(), rel=0.02)
    assert lifetime.compute()["steps"].item() == pytest.approx(np.concatenate(died_at).mean(), rel=0.02)
    survival = SynapseSurvival(older_than=(10, 60))
    survival.update(torch.as_tensor(600 - age), now=600)
    for steps in (10, 60):
        expected = ((1 - hazard) ** (steps + 1)).mean()
        assert survival.compute()[f"older_than_{steps}"].item() == pytest.approx(expected, abs=0.03)


def test_the_old_who_have_not_died_count():
    metric = SpineLifetime()
    for _ in range(5):
        metric.update(replaced=1, synapses=10, steps=10)  # one place turns over, nine never do
    assert metric.compute()["steps"] == 100.0  # not 10, the age of all that died


def test_nothing_replaced():
    metric = SpineLifetime()
    metric.update(0, synapses=9, steps=7)
    assert {key: value.item() for key, value in metric.compute().items()} == {"steps": math.inf, "per_step": 0.0}


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("now", [101, 300, 2**31 + 99])
def test_births_of_any_integer_type(dtype, now):
    metric = SynapseSurvival(older_than=(0, 100, 10**6))
    born = min(now - 101, torch.iinfo(dtype).max)
    metric.update(torch.full((1000,), born, dtype=dtype), now)
    age = now - born
    expected = {f"older_than_{steps}": float(age > steps) for steps in (0, 100, 10**6)} | {"age_mean": float(age)}
    assert {key: value.item() for key, value in metric.compute().items()} == expected


def test_no_limit_is_beyond_what_a_type_holds():
    metric = SynapseSurvival(older_than=(5, 2**31, 2**32 - 5))
    metric.update(torch.tensor([2**31 - 1, 2**31 - 8, 0], dtype=torch.int32), now=2**31 - 1)
    assert [value.item() for value in metric.compute().values()][:3] == [pytest.approx(2 / 3), 0.0, 0.0]
    metric.reset()
    metric.update(torch.tensor([10, 2, 0], dtype=torch.int32), now=10)  # 32 bits would take the last limit for 15
    assert [value.item() for value in metric.compute().values()][:3] == [pytest.approx(2 / 3), 0.0, 0.0]


@pytest.mark.parametrize("older_than", [-1, 2.5, (), (3, -3), (1.0,)])
def test_older_than_out_of_range(older_than):
    with pytest.raises(ValueError, match="older_than: got "):
        SynapseSurvival(older_than=older_than)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_births_are_integers(dtype):
    with pytest.raises(ValueError, match=f"born: got {dtype}"):
        SynapseSurvival().update(torch.ones(3, dtype=dtype), now=1)


@pytest.mark.parametrize("steps", [-1, -3])
def test_steps_out_of_range(steps):
    with pytest.raises(ValueError, match=f"steps: got {steps}"):
        SpineLifetime().update(1, synapses=3, steps=steps)
