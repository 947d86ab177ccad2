"""Every metric against numpy, and what torchmetrics promises of a metric."""

import pickle

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from bio_lightning import metrics
from bio_lightning.functional._sketch import ACCURACY
from bio_lightning.metrics import (
    CrystallizedFraction,
    ExcitationInhibition,
    MultiplierSpread,
    SignViolations,
    SpineLifetime,
    SynapseSurvival,
)
from tests.metrics.cases import CASES, assert_close, assert_equals_reference, class_name, draws, make


def map_floats(argument, function):
    """An argument, or what a function makes of it where it is a tensor of floats."""
    return function(argument) if isinstance(argument, torch.Tensor) and argument.is_floating_point() else argument


def has_floats(name):
    return all(isinstance(a, torch.Tensor) and a.is_floating_point() for a in draws(name, 1)[0])


every_metric = pytest.mark.parametrize("name", CASES)


def test_every_metric_has_a_case():
    assert {class_name(name) for name in CASES} == set(metrics.__all__)


@every_metric
def test_worked_example(name):
    arguments, expected = CASES[name].example
    metric = make(name)
    metric.update(*arguments)
    assert_close(metric.compute(), expected, tolerance=1e-15)


@every_metric
@pytest.mark.parametrize("count", [1, 2, 7])
def test_several_updates_equal_numpy_on_everything(name, count):
    for seed in range(5):
        updates = draws(name, count, seed)
        metric = make(name)
        for arguments in updates:
            metric.update(*arguments)
        assert_equals_reference(name, metric, updates)


@every_metric
def test_merged_metrics_equal_one_metric(name):
    updates = draws(name, 6)
    first, second = make(name), make(name)
    for index, arguments in enumerate(updates):
        (first if index < 2 else second).update(*arguments)
    first.merge_state(second)
    assert_equals_reference(name, first, updates)


@every_metric
def test_no_synapses(name):
    arguments, expected = CASES[name].empty
    metric = make(name)
    metric.update(*arguments)
    assert_close(metric.compute(), expected, tolerance=0.0)
    updates = draws(name, 2)
    for drawn in updates:
        metric.update(*drawn)
        metric.update(*arguments)
    assert_equals_reference(name, metric, updates)


@every_metric
def test_forward_gives_the_batch_and_accumulates(name):
    updates = draws(name, 3)
    metric = make(name)
    for arguments in updates:
        assert_close(metric(*arguments), CASES[name].reference([arguments]), CASES[name].tolerance)
    assert_equals_reference(name, metric, updates)


@every_metric
def test_pickle_clone_and_reset(name):
    before, after = draws(name, 2, seed=1), draws(name, 2, seed=2)
    metric = make(name)
    for arguments in before:
        metric.update(*arguments)
    for copied in (pickle.loads(pickle.dumps(metric)), metric.clone()):
        for arguments in after:
            copied.update(*arguments)
        assert_equals_reference(name, copied, before + after)
    assert_equals_reference(name, metric, before)
    metric.reset()
    for arguments in after:
        metric.update(*arguments)
    assert_equals_reference(name, metric, after)


@every_metric
def test_states_are_float64_and_reduced_over_processes(name):
    metric = make(name)
    for arguments in draws(name, 2):
        metric.update(*arguments)
    for state, reduction in metric._reductions.items():
        assert getattr(metric, state).dtype == torch.float64
        assert getattr(metric, state).shape == metric._defaults[state].shape  # else ranks could not be added up
        expected = torch.max if state == "extremes" else torch.sum
        assert reduction(torch.tensor([1.0, 2.0, 4.0])) == expected(torch.tensor([1.0, 2.0, 4.0]))


def test_a_collection_keeps_metrics_apart():
    """It takes metrics for one whose states agree in name and, after the first update, in value."""
    alone = [make(name) for name in CASES if name != "DormantFraction layers"]  # told apart by its number of units
    others = [CrystallizedFraction(below=0.3), SynapseSurvival(older_than=70), SynapseSurvival(older_than=80)]
    names = [tuple(metric._defaults) for metric in (*alone, *others)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("together", [True, False])
def test_numbers_of_metrics_in_a_collection(together):
    collection = MetricCollection({"s": SignViolations(), "l": SpineLifetime()}, compute_groups=together)
    collection.update(corrected=0, replaced=0, synapses=100, steps=1)
    collection.update(corrected=7, replaced=3, synapses=100, steps=10)
    computed = {key: round(value.item(), 6) for key, value in collection.compute().items()}
    assert computed["corrected"] == 7
    assert computed["per_synapse"] == 0.035
    assert computed["steps"] == pytest.approx(1100 / 3)


@every_metric
def test_inputs_are_left_alone(name):
    for arguments in draws(name, 2):
        copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        metric = make(name)
        metric.update(*arguments)
        metric.compute()
        for one, other in zip(arguments, copies, strict=True):
            assert one is other or torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@every_metric
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_precision(name, dtype):
    updates = [tuple(map_floats(a, lambda x: x.to(dtype)) for a in arguments) for arguments in draws(name, 3)]
    metric = make(name)
    for arguments in updates:
        metric.update(*arguments)
    exact = [tuple(map_floats(a, lambda x: x.to(torch.float64)) for a in arguments) for arguments in updates]
    assert_equals_reference(name, metric, exact)


@pytest.mark.parametrize("name", [name for name in CASES if has_floats(name) and name != "CrystallizedFraction"])
def test_nan_is_not_hidden(name):
    first, *others = draws(name, 3)
    metric = make(name)
    for position in range(len(first)):
        spoiled = [map_floats(a, torch.clone) for a in first]
        spoiled[position].view(-1)[-1] = float("nan")
        metric.reset()
        metric.update(*spoiled)
        for arguments in others:
            metric.update(*arguments)
        computed = metric.compute()
        assert all(value.isnan() for value in (computed.values() if isinstance(computed, dict) else [computed]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_spread_of_every_precision(dtype):
    multiplier = torch.as_tensor(np.random.default_rng(0).lognormal(0, 0.3, size=(40, 30))).to(dtype)
    metric = MultiplierSpread()
    metric.update(multiplier)
    exact = multiplier.to(torch.float64).numpy()
    expected = {"mean": exact.mean(), "std": exact.std(), "min": exact.min(), "max": exact.max()}
    assert_close(metric.compute(), expected, tolerance=1e-7)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64])
def test_spread_of_what_is_no_float(dtype):
    metric = MultiplierSpread()
    metric.update(torch.tensor([1, 0, 1, 1], dtype=dtype))
    assert_close(metric.compute(), {"mean": 0.75, "std": 0.4330127019, "min": 0.0, "max": 1.0}, tolerance=1e-9)


def test_few_weak_inhibitory_synapses_are_not_lost():
    weight = torch.linspace(0.0, 0.1, 60_000)
    weight[0] = -1e-6
    metric = ExcitationInhibition()
    metric.update(weight)
    assert metric.compute()["inhibition"].item() == pytest.approx(1e-6 / weight.numel(), rel=1e-5)


def test_narrow_spread_around_one_is_not_lost():
    deviation = np.random.default_rng(0).normal(0, 1e-6, size=100_000)
    metric = MultiplierSpread()
    metric.update(torch.as_tensor(1 + deviation))
    assert abs(metric.compute()["std"].item() / (1 + deviation).std() - 1) < 1e-9


def test_constant_multipliers_have_no_spread():
    metric = MultiplierSpread()
    metric.update(torch.full((1000,), 0.3))
    assert metric.compute()["std"] < 1e-7  # rounding may leave a variance of -1e-17, whose root would be nan
    neutral = MultiplierSpread()
    neutral.update(torch.ones(7, 9))
    assert_close(neutral.compute(), {"mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0}, tolerance=0.0)


def test_broadcast_multipliers_count_every_synapse():
    per_neuron = torch.tensor([[0.5], [2.0]]).expand(2, 30)
    metric = MultiplierSpread()
    metric.update(per_neuron)
    metric.update(torch.ones(60))
    assert_close(metric.compute(), {"mean": 1.125, "std": 0.5448623679, "min": 0.5, "max": 2.0}, tolerance=1e-9)


def test_threshold_of_crystallized_synapses():
    strict = CrystallizedFraction(below=0.1)
    strict.update(torch.tensor([0.05, 0.1, 0.2, 1.0]))
    assert strict.compute() == 0.25
    for below in (0.0, 1.5, -0.1):
        with pytest.raises(ValueError, match=f"below: got {below}"):
            CrystallizedFraction(below=below)


def test_quantiles_of_a_narrow_spread():
    multiplier = np.random.default_rng(0).normal(1, 0.16, size=20_000)
    metric = MultiplierSpread(quantiles=(0.05, 0.5, 0.95))
    metric.update(torch.as_tensor(multiplier))
    computed = metric.compute()
    for probability in (0.05, 0.5, 0.95):
        exact = np.quantile(multiplier, probability, method="lower")
        assert abs(computed[f"quantile_{probability}"].item() / exact - 1) <= ACCURACY


def test_what_is_computed_of_nothing_is_not_kept():
    metric = MultiplierSpread(sync_on_compute=False)
    MultiplierSpread.compute(metric)  # without torchmetrics' warning
    metric.update(torch.tensor([0.25, 0.5]))
    computed = metric.compute()
    assert (computed["min"], computed["max"]) == (0.25, 0.5)


def test_quantiles_stay_between_the_ends():
    for value in (1.303, 0.207, 0.9, 3e-9, 5e8):
        metric = MultiplierSpread(quantiles=(0, 0.5, 1))
        metric.update(torch.tensor([value, value], dtype=torch.float64))
        computed = metric.compute()
        assert {computed[f"quantile_{p}"].item() for p in ("0", "0.5", "1")} == {value}


def test_quantiles_are_not_kept_unless_asked_for():
    assert "bins" not in MultiplierSpread().metric_state
    for quantiles in ((1.5,), (0.5, -0.1)):
        with pytest.raises(ValueError, match="quantiles: got "):
            MultiplierSpread(quantiles=quantiles)


def test_layers_may_have_their_own_limit():
    crystallized = CrystallizedFraction(below=0.5)
    crystallized.update(torch.tensor([0.1, 0.3, 0.9]), below=0.2)
    crystallized.update(torch.tensor([0.4, 0.6]))
    assert crystallized.compute() == 2 / 5


@pytest.mark.parametrize("metric", [ExcitationInhibition(), MultiplierSpread(), CrystallizedFraction()])
def test_tensors_of_another_device_are_refused(metric):
    """To fetch them would be to wait for the device, unseen, at every update."""
    with pytest.raises(RuntimeError, match="device"):
        metric.update(torch.ones(3, device="meta"))
