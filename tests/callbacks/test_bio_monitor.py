"""What the monitor logs, when, and that it costs nothing otherwise."""

from __future__ import annotations

import copy
import csv
import datetime
import fnmatch
import itertools
import os
import pickle
import re
import socket
from collections import Counter

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.multiprocessing
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from lightning.pytorch.strategies import DDPStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from bio_lightning import (
    BioConfigError,
    BioMonitor,
    Crystallization,
    DalesPrinciple,
    FuzzyLearningRates,
    SynapticScaling,
    VolumeDependentLR,
    WeightRejuvenation,
    WeightSplitting,
    functional,
    multipliers,
)
from tests.cases import MECHANISMS, all_on
from tests.checks import as_on_a_device
from tests.models import MLP, ZOO, TwoOptimizers, fit, identical, make_model, make_trainer, weights_of

LAYERS = ("net.0.weight", "net.2.weight", "net.4.weight")
SPREAD = ("multiplier_mean", "multiplier_std", "multiplier_min", "multiplier_max")
QUANTILES = ("multiplier_quantile_0.05", "multiplier_quantile_0.5", "multiplier_quantile_0.95")
RIGID = ("crystallized_fraction", "floor_fraction")
TURNOVER = (
    "replaced_fraction", "replaced_fraction_total", "older_than_100", "older_than_1000", "age_mean", "lifetime_steps",
    "lifetime_per_step",
)  # fmt: skip
WEIGHTS = (
    "log_weight_mean", "log_weight_std", "log_weight_skew", "excitation", "inhibition", "balance",
    "excitatory_fraction", "update_ratio", "gradient_ratio",
)  # fmt: skip
ACTIVITY = (
    "firing_rate_mean", "dormant_fraction_tau_0", "dormant_fraction_tau_0.025", "dormant_fraction_tau_0.1",
)  # fmt: skip
RANKS = ("rank_stable", "rank_effective")


class Recorder(Logger):
    """Remembers what is logged: the metrics of every call, by step."""

    name = "recorder"
    version = 0

    def __init__(self):
        super().__init__()
        self.calls = []

    def log_metrics(self, metrics, step=None):
        self.calls.append((step, dict(metrics)))

    def log_hyperparams(self, *arguments, **keywords):
        pass

    @property
    def bio(self):
        """Calls of the monitor."""
        return [(step, metrics) for step, metrics in self.calls if any(tag.startswith("bio/") for tag in metrics)]

    @property
    def steps(self):
        return [step for step, _ in self.bio]

    @property
    def last(self):
        return self.bio[-1][1]


def record(callbacks, model="MLP", *, optimizer="sgd", every=1, steps=6, **arguments):
    """Train with a recorder; the model, the recorder and the trainer."""
    recorder = Recorder()
    module = make_model(model, optimizer)
    trainer = fit(module, callbacks, steps=steps, logger=recorder, log_every_n_steps=every, **arguments)
    return module, recorder, trainer


def tags(mechanism, statistics, layers):
    return {f"bio/{mechanism}/{statistic}/{layer}" for statistic in statistics for layer in (*layers, "overall")}


def always(layers):
    """Tags that need no mechanism."""
    return tags("weights", WEIGHTS, layers) | tags("activity", ACTIVITY, layers)


def spread(values):
    values = np.concatenate([value.detach().double().numpy().ravel() for value in values])
    return dict(zip(SPREAD, (values.mean(), values.std(), values.min(), values.max()), strict=True))


def assert_logged(row, mechanism, layer, expected, tolerance=1e-6):
    for statistic, value in expected.items():
        assert abs(row[f"bio/{mechanism}/{statistic}/{layer}"] - value) <= tolerance, (mechanism, statistic, layer)


# ---- what ------------------------------------------------------------------------------------------------------------


def test_exact_tags_with_everything_on():
    _, recorder, _ = record([BioMonitor(rank_every_n_steps=3), *all_on()])
    behind = LAYERS[1:]  # Dale's principle leaves the input layer alone
    expected = (
        tags("fuzzy_learning_rates", SPREAD, LAYERS)
        | tags("volume_dependent_lr", SPREAD, LAYERS)
        | tags("synaptic_scaling", (*SPREAD, "firing_rate_mean"), LAYERS)
        | tags("crystallization", (*SPREAD, *RIGID), LAYERS)
        | tags("weight_rejuvenation", TURNOVER, LAYERS)
        | tags("dales_principle", ("violations_corrected", "violations_per_synapse"), behind)
        | tags("weight_splitting", ("synapse_spread",), LAYERS)
        | tags("plasticity", (*SPREAD, *QUANTILES), LAYERS)
        | tags("weights", RANKS, LAYERS)
        | tags("activity", ("input_rank_stable", "input_rank_effective"), LAYERS)
        | always(LAYERS)
    )
    assert set(recorder.last) == expected
    assert all(type(value) is float for value in recorder.last.values())


def test_only_mechanisms_that_are_on():
    for name, expected in {
        "fuzzy_learning_rates": {"fuzzy_learning_rates", "plasticity"},
        "weight_rejuvenation": {"weight_rejuvenation"},
        "dales_principle": {"dales_principle"},
        "weight_splitting": {"weight_splitting"},
    }.items():
        _, recorder, _ = record([MECHANISMS[name](), BioMonitor()], steps=2)
        assert {tag.split("/")[1] for tag in recorder.last} == expected | {"weights", "activity"}
    for callbacks in ([WeightSplitting(mode="grouped"), BioMonitor(alerts=False)], [BioMonitor()]):
        assert set(record(callbacks, steps=2)[1].last) == always(LAYERS)


@pytest.mark.parametrize(
    "callback",
    [
        FuzzyLearningRates(distribution="activity"),
        Crystallization(criterion="use"),
        WeightRejuvenation(select="activity"),
        SynapticScaling(rule="tetzlaff"),
    ],
    ids=lambda callback: callback.name,
)
def test_firing_rates_of_every_mechanism_that_reads_them(callback):
    _, recorder, _ = record([callback, BioMonitor()])
    store = callback.session.store
    rates = {name: store[name]["rate"].double().numpy() for name in callback.targets}
    tag = f"bio/{callback.name}/firing_rate_mean"
    assert {t for t in recorder.last if t.startswith(tag)} == {f"{tag}/{layer}" for layer in (*rates, "overall")}
    for name, rate in rates.items():
        assert abs(recorder.last[f"{tag}/{name}"] - rate.mean()) < 1e-6
    assert abs(recorder.last[f"{tag}/overall"] - np.concatenate(list(rates.values())).mean()) < 1e-6


def test_how_far_homeostasis_moves_weights():
    scaling = SynapticScaling(rule="tetzlaff", rate=3.0, max_change=1.0, target=0.9)
    model, recorder, _ = record([scaling, BioMonitor()])
    for name in scaling.targets:
        weight, rate = weights_of(model)[name].double(), scaling.session.store[name]["rate"].double()
        change = 0.1 * 3.0 * (0.9 - rate).view(-1, 1) * weight.square()
        expected = (change.square().sum() / weight.square().sum()).sqrt().item()
        assert recorder.last[f"bio/synaptic_scaling/update_ratio/{name}"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_how_differently_the_synapses_of_a_connection_learn(optimizer):
    """Against the moves of the weights themselves: all synapses of a connection have one gradient."""
    before = {}

    class Remembers(MLP):
        def on_train_batch_start(self, batch, batch_idx):
            before.update({name: weight.detach().clone() for name, weight in self.named_parameters()})

    splitting, fuzzy = WeightSplitting(gamma=3), FuzzyLearningRates(nu=0.4, end_step=6)  # after the step that is logged
    model, recorder, _ = record([splitting, fuzzy, BioMonitor()], Remembers, optimizer=optimizer)
    squares = np.zeros(2)
    for name in LAYERS:
        moved = (dict(model.named_parameters())[name].detach() - before[name]).double()
        share = moved / moved.mean(dim=0)  # of the mean of its connection
        factor = splitting.session.store[name]["base"].double()
        learns = moved.abs().amin(dim=0) > 1e-5  # elsewhere rounding
        assert learns.double().mean() > 0.5
        torch.testing.assert_close(share[:, learns], (factor / factor.mean(dim=0))[:, learns], rtol=0.02, atol=0.0)
        of_layer = np.array([(factor - factor.mean(dim=0)).square().sum(), factor.square().sum()])
        squares += of_layer
        expected = np.sqrt(of_layer[0] / (of_layer[1] - of_layer[0]))
        assert recorder.last[f"bio/weight_splitting/synapse_spread/{name}"] == pytest.approx(expected, rel=1e-5)
    overall = np.sqrt(squares[0] / (squares[1] - squares[0]))
    assert recorder.last["bio/weight_splitting/synapse_spread/overall"] == pytest.approx(overall, rel=1e-5)


def factors_of(scaling, synapses):
    rate = scaling.session.store[synapses.name]["scaling_rate"]
    settings = {key: getattr(scaling, key) for key in ("target", "strength", "min", "max")}
    return functional.scaling_factor(rate, **settings).unsqueeze(1).expand_as(synapses.weight)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("split", [False, True])
def test_values_equal_the_state(optimizer, split):
    callbacks = [c for c in all_on() if split or c.name != "weight_splitting"]
    module, recorder, _ = record([*callbacks, BioMonitor(alerts=False)], optimizer=optimizer)
    by_name = {callback.name: callback for callback in callbacks}
    session, row = callbacks[0].session, recorder.last
    parts = {
        name: {} for name in ("fuzzy_learning_rates", "volume_dependent_lr", "synaptic_scaling", "crystallization")
    }
    for name in LAYERS:
        synapses, tensors = session.synapses[name], session.store[name]
        parts["fuzzy_learning_rates"][name] = tensors["base"]
        parts["crystallization"][name] = tensors["crystal"]
        parts["synaptic_scaling"][name] = factors_of(by_name["synaptic_scaling"], synapses)
        # six steps are done, so the last one was number 5
        volume = by_name["volume_dependent_lr"]
        parts["volume_dependent_lr"][name] = session.plasticity.factor(
            [volume.part(session, [synapses], 5)], synapses.weight.detach()
        )
        product = parts["volume_dependent_lr"][name] * parts["synaptic_scaling"][name] * multipliers(module)[name]
        assert_logged(row, "plasticity", name, spread([product]), 1e-5)
        rejuvenated = {"replaced_fraction": tensors["replaced"], "replaced_fraction_total": tensors["replaced_total"]}
        numel = synapses.weight.numel()
        assert_logged(row, "weight_rejuvenation", name, {k: v.item() / numel for k, v in rejuvenated.items()})
        hard = (tensors["crystal"] < 0.5).double().mean().item()
        assert_logged(row, "crystallization", name, {"crystallized_fraction": hard})
    for mechanism, factors in parts.items():
        for name, factor in factors.items():
            assert_logged(row, mechanism, name, spread([factor]))
        assert_logged(row, mechanism, "overall", spread(factors.values()))
    assert row["bio/weight_rejuvenation/replaced_fraction_total/overall"] > 0
    assert 0 < row["bio/crystallization/crystallized_fraction/overall"] < 1


@pytest.mark.parametrize("model", ZOO)
def test_every_layer_of_every_model(model):
    callbacks = [c for c in all_on() if c.name != "weight_splitting"]
    _, recorder, _ = record([*callbacks, BioMonitor()], model, optimizer="adam", steps=4)
    assert all(np.isfinite(value) for value in recorder.last.values())
    for callback in callbacks:
        logged = {tag.rsplit("/")[-1] for tag in recorder.last if f"/{callback.name}/" in tag}
        if callback.name == "synaptic_scaling":  # an unused layer has no rate
            assert logged <= {*callback.targets, "overall"}
        else:
            assert logged == {*callback.targets, "overall"}


def test_no_violations_before_there_are_signs():
    _, recorder, _ = record([DalesPrinciple(start_step=4, input_layer=True), BioMonitor()], optimizer="adam", steps=9)
    series = [row["bio/dales_principle/violations_corrected/overall"] for _, row in recorder.bio]
    assert series[:5] == [0] * 5
    assert series[-1] > 0


def test_violations_are_counted_over_all_steps():
    callback = DalesPrinciple(input_layer=True)
    _, recorder, _ = record([callback, BioMonitor(alerts=False)], "CNN", optimizer="adam")
    session = callback.session
    counts = {name: session.store[name]["violations"].item() for name in callback.targets}
    sizes = {name: session.synapses[name].weight.numel() for name in callback.targets}
    for name, count in counts.items():
        expected = {"violations_corrected": count, "violations_per_synapse": count / sizes[name]}
        assert_logged(recorder.last, callback.name, name, expected, 1e-9)
    total = {"violations_corrected": sum(counts.values())}
    total["violations_per_synapse"] = total["violations_corrected"] / sum(sizes.values())
    assert_logged(recorder.last, callback.name, "overall", total, 1e-9)
    assert total["violations_corrected"] > 0
    series = [row[f"bio/{callback.name}/violations_corrected/overall"] for _, row in recorder.bio]
    assert series == sorted(series)
    assert series[0] < series[-1]


def test_turnover_is_that_of_the_last_event():
    callback = WeightRejuvenation(every_n_steps=3, dre=2.0)
    _, recorder, _ = record([BioMonitor(), callback], steps=7)
    last, total = (
        [row[f"bio/weight_rejuvenation/{statistic}/overall"] for _, row in recorder.bio]
        for statistic in ("replaced_fraction", "replaced_fraction_total")
    )
    first, second = last[2], last[5]
    assert first > 0
    assert second > 0
    assert first != second
    assert last == [0, 0, first, first, first, second, second]
    assert np.allclose(total, [0, 0, first, first, first, first + second, first + second], atol=1e-12)


def test_mechanism_outside_its_schedule_reports_what_it_keeps():
    callbacks = [FuzzyLearningRates(end_step=2), VolumeDependentLR(start_step=1, end_step=3), BioMonitor()]
    module, recorder, _ = record(callbacks, steps=5)
    kept = spread([multipliers(module)["net.0.weight"]])
    for _, row in recorder.bio:
        assert_logged(row, "fuzzy_learning_rates", "net.0.weight", kept)
    drawn = [("bio/volume_dependent_lr/multiplier_std/overall" in row) for _, row in recorder.bio]
    assert drawn == [False, True, True, False, False]
    spreads = [row["bio/plasticity/multiplier_std/overall"] for _, row in recorder.bio]
    assert all(value > 0 for value in spreads[:3])
    assert spreads[3:] == [0, 0]
    assert_logged(recorder.last, "plasticity", "overall", dict(zip(SPREAD, (1, 0, 1, 1), strict=True)), 0)
    assert_logged(recorder.bio[0][1], "plasticity", "net.0.weight", kept)


def test_factor_of_a_neuron_counts_for_every_synapse():
    callback = SynapticScaling(target=0.3)
    _, recorder, _ = record([callback, BioMonitor()])
    factors = {}
    for name, synapses in callback.targets.items():
        factors[name] = factors_of(callback, synapses)
    factors["overall"] = torch.cat([factor.flatten() for factor in factors.values()])
    for mechanism in (callback.name, "plasticity"):
        for layer, factor in factors.items():
            assert_logged(recorder.last, mechanism, layer, spread([factor]))


def test_two_callbacks_of_a_class_share_the_overall_series():
    first, second = FuzzyLearningRates(include="net.0", nu=0.1), FuzzyLearningRates(include="net.2", nu=0.4)
    module, recorder, _ = record([first, second, BioMonitor()], steps=2)
    expected = tags("fuzzy_learning_rates", SPREAD, LAYERS[:2]) | tags("plasticity", (*SPREAD, *QUANTILES), LAYERS[:2])
    assert set(recorder.last) == expected | always(LAYERS)
    both = [multipliers(module)[name] for name in LAYERS[:2]]
    assert_logged(recorder.last, "fuzzy_learning_rates", "overall", spread(both))


# ---- which layers ----------------------------------------------------------------------------------------------------


def test_excluded_layers_have_no_series():
    module, recorder, _ = record([Crystallization(crystal_thresh=0.1), BioMonitor(exclude="net.2", alerts=False)])
    shown = (LAYERS[0], LAYERS[2])
    of_all = tags("plasticity", (*SPREAD, *QUANTILES), shown) | always(shown)
    assert set(recorder.last) == tags("crystallization", (*SPREAD, *RIGID), shown) | of_all
    selected = spread([multipliers(module)[name] for name in shown])
    assert_logged(recorder.last, "crystallization", "overall", selected)
    _, only, _ = record([FuzzyLearningRates(), BioMonitor(include=("net.4",))])
    of_all = tags("plasticity", (*SPREAD, *QUANTILES), LAYERS[2:]) | always(LAYERS[2:])
    assert set(only.last) == tags("fuzzy_learning_rates", SPREAD, LAYERS[2:]) | of_all


@pytest.mark.parametrize("logger", [False, True])
def test_pattern_that_matches_nothing_lists_what_exists(logger):
    with pytest.raises(BioConfigError, match=r"net\.0\.weight") as caught:
        fit(make_model("MLP"), [BioMonitor(exclude="net.7")], logger=Recorder() if logger else False)
    assert caught.value.key == "bio_monitor.exclude"


# ---- when ------------------------------------------------------------------------------------------------------------


class LogsItself(MLP):
    """Logs its loss, so that Lightning's own steps can be compared."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


@pytest.mark.parametrize(
    ("every", "accumulate", "batches", "expected"),
    [
        (1, 1, 4, [0, 1, 2, 3]),
        (3, 1, 10, [2, 5, 8]),
        (1, 3, 7, [0, 1, 2]),  # the last accumulation is short
        (2, 3, 14, [1, 3]),
        (4, 3, 7, []),
        (0, 1, 4, []),
    ],
)
@pytest.mark.parametrize("leads", [False, True])
def test_logs_when_lightning_does(every, accumulate, batches, expected, leads):
    callbacks = [FuzzyLearningRates(), BioMonitor()]
    _, recorder, _ = record(
        callbacks[::-1] if leads else callbacks,
        LogsItself,
        every=every,
        steps=batches,
        accumulate_grad_batches=accumulate,
    )
    assert recorder.steps == expected
    assert recorder.steps == [step for step, metrics in recorder.calls if "loss" in metrics]


def test_epochs_share_the_axis():
    _, recorder, _ = record([FuzzyLearningRates(), BioMonitor()], LogsItself, every=2, steps=3, max_epochs=3)
    assert recorder.steps == [1, 3, 5, 7]
    assert recorder.steps == [step for step, metrics in recorder.calls if "loss" in metrics]


class StepsRarely(TwoOptimizers):
    """Never steps in a batch that completes a multiple of two."""

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self(batch[0]).square().mean())
        if batch_idx in (2, 4, 8):
            self.optimizers()[0].step()


def test_waits_for_the_next_optimizer_step():
    _, recorder, _ = record([FuzzyLearningRates(), BioMonitor()], StepsRarely, every=2, steps=12)
    # due in batches 1, 3, 5, 7, 9, 11; steps in 2, 4 and 8
    assert recorder.steps == [2, 4, 8]


def test_a_second_fit_starts_anew():
    monitor, callback = BioMonitor(), FuzzyLearningRates()
    for _ in range(2):  # due in batch 3, and no step after it
        _, recorder, _ = record([callback, monitor], StepsRarely, every=4, steps=4)
        assert recorder.steps == []


# ---- what it costs ---------------------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts the operations on tensors."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.names[function.name()] += 1
        return function(*arguments, **(keywords or {}))


class Watched(BioMonitor):
    """Notes which operations it caused in every batch; must not lead."""

    def on_train_batch_start(self, *arguments):
        with Operations() as self.operations:
            super().on_train_batch_start(*arguments)

    def on_before_optimizer_step(self, *arguments):
        with self.operations:
            super().on_before_optimizer_step(*arguments)

    def on_train_batch_end(self, *arguments):
        with self.operations:
            super().on_train_batch_end(*arguments)
        self.seen = [*getattr(self, "seen", []), self.operations.names]


@pytest.fixture
def asked(monkeypatch):
    """Counts how often mechanisms are asked for what they observe."""
    counter = Counter()
    for mechanism in MECHANISMS.values():

        def observables(self, session, synapses, original=mechanism.observables):
            counter[self.name] += 1
            return original(self, session, synapses)

        monkeypatch.setattr(mechanism, "observables", observables)
    return counter


def test_without_a_logger_nothing_is_computed(asked):
    monitor = Watched()
    fit(make_model("MLP"), [*all_on(), monitor], log_every_n_steps=1, logger=False)
    assert monitor.seen == [Counter()] * 6
    assert not asked


def test_between_logs_nothing_is_computed(asked):
    monitor = Watched()
    record([*all_on(), monitor], every=3, steps=7)
    assert [bool(names) for names in monitor.seen] == [False, False, True, False, False, True, False]
    names = MECHANISMS.keys() - {"dales_principle"}
    assert asked >= Counter(dict.fromkeys(names, 2 * len(LAYERS)))
    assert asked["dales_principle"] == 2 * len(LAYERS[1:])


def test_numbers_leave_the_device_together(monkeypatch):
    as_on_a_device(monkeypatch)
    monitor = Watched()
    record([*all_on(), monitor], steps=3)
    for names in monitor.seen:
        assert not names["aten::_local_scalar_dense"]  # what item() and bool() run
        assert not names["aten::item"]  # what is seen of them in inference mode
        assert not names["aten::is_nonzero"]


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_changes_no_bit_of_training(optimizer):
    plain, states = make_model("CNN", optimizer), []
    fit(plain, all_on())
    states.append(torch.get_rng_state())
    for callbacks in ([BioMonitor(), *all_on()], [*all_on(), BioMonitor()]):
        module, recorder, _ = record(callbacks, "CNN", optimizer=optimizer)
        assert identical(weights_of(plain), weights_of(module))
        assert identical(multipliers(plain), multipliers(module))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert len(recorder.bio) == 6


def test_order_of_the_callback_list_is_irrelevant():
    rows = []
    for position in (0, 3, 7):
        callbacks = all_on()
        callbacks.insert(position, BioMonitor())
        rows.append(record(callbacks)[1].bio)
    for one, other in itertools.pairwise(rows):
        assert one == other


# ---- loggers and trainers --------------------------------------------------------------------------------------------


def test_tensorboard_reads_the_tags_back(tmp_path):
    recorder, board = Recorder(), TensorBoardLogger(tmp_path, name="run", version=0)
    fit(make_model("MLP"), [*all_on(), BioMonitor()], logger=[board, recorder], log_every_n_steps=2)
    board.finalize("success")
    events = EventAccumulator(board.log_dir)
    events.Reload()
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("bio/")} == set(recorder.last)
    for tag in recorder.last:
        read = [(event.step, event.value) for event in events.Scalars(tag)]
        logged = [(step, row[tag]) for step, row in recorder.bio if tag in row]
        assert [step for step, _ in read] == [step for step, _ in logged]
        assert np.allclose([value for _, value in read], [value for _, value in logged], rtol=1e-6)


def test_csv_has_a_column_for_every_tag(tmp_path):
    recorder, logger = Recorder(), CSVLogger(tmp_path, name="run", version=0, flush_logs_every_n_steps=1)
    callbacks = [FuzzyLearningRates(), VolumeDependentLR(start_step=2), BioMonitor()]  # a series that begins late
    fit(make_model("MLP"), callbacks, logger=[logger, recorder], log_every_n_steps=1)
    logger.finalize("success")
    with open(os.path.join(logger.log_dir, "metrics.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == recorder.steps == [0, 1, 2, 3, 4, 5]
    for row, (_, logged) in zip(rows, recorder.bio, strict=True):
        assert {tag: float(row[tag]) for tag in logged} == pytest.approx(logged, rel=1e-6)


def test_development_run_exercises_it():
    monitor = Watched()
    model = make_model("MLP")
    trainer = make_trainer([*all_on(), monitor], fast_dev_run=2, logger=Recorder())
    trainer.fit(model, DataLoader(model.batches(5), batch_size=None))
    assert isinstance(trainer.loggers[0], DummyLogger)
    assert [bool(names) for names in monitor.seen] == [True, True]


def test_bare_trainer_logs_nothing():
    monitor = Watched()
    model = make_model("MLP")
    trainer = pl.Trainer(barebones=True, accelerator="cpu", max_steps=3, callbacks=[FuzzyLearningRates(), monitor])
    trainer.fit(model, DataLoader(model.batches(5), batch_size=None))
    assert monitor.seen == [Counter()] * 3


def test_survives_copies():
    monitor = BioMonitor(exclude="net.2")
    record([FuzzyLearningRates(), monitor])
    for copied in (copy.deepcopy(monitor), pickle.loads(pickle.dumps(monitor)), eval(repr(monitor))):
        assert copied.exclude == ("net.2",)
        assert record([FuzzyLearningRates(), copied])[1].last == record([FuzzyLearningRates(), monitor])[1].last


def test_docstring_lists_every_statistic():
    listed = re.findall(r"^    ``([\w*]+)``  ", BioMonitor.__doc__, re.MULTILINE)
    _, recorder, _ = record([*all_on(), BioMonitor(rank_every_n_steps=1)])
    logged = {tag.split("/")[2] for tag in recorder.last}
    assert [name for name in listed if not fnmatch.filter(logged, name)] == []
    assert [name for name in logged if not any(fnmatch.fnmatchcase(name, each) for each in listed)] == []


# ---- two processes ---------------------------------------------------------------------------------------------------


class WithSpareLayer(MLP):
    """One of its layers is never run, so that it has weights and no activity."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.spare = nn.Linear(6, 5)


def train_one_of_two_processes(rank: int, port: int, path: str) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", NODE_RANK="0", LOCAL_RANK=str(rank)
    )
    torch.set_num_threads(1)
    impatient = DDPStrategy(timeout=datetime.timedelta(seconds=60), find_unused_parameters=True)
    torch.save(monitored(path, rank, 2, strategy=impatient, devices=2), f"{path}/{rank}.pt")


def monitored(path, first=0, ranks=1, **arguments):
    """What is logged of four steps, by two processes or of two micro-batches each."""
    callbacks = [c for c in all_on() if c.name not in ("weight_splitting", "crystallization")]
    board = TensorBoardLogger(path, name="board", version=0)
    recorder = Recorder()
    callbacks.append(BioMonitor(alerts=False, rank_every_n_steps=4, histogram_every_n_steps=4))
    loggers = {"logger": [recorder, board], "log_every_n_steps": 2, "use_distributed_sampler": False, "max_epochs": 1}
    trainer = make_trainer(callbacks, **loggers, **arguments)
    model = make_model(WithSpareLayer)
    trainer.fit(model, DataLoader(model.batches(8)[first::ranks], batch_size=None))
    if not trainer.is_global_zero:
        return {"rows": recorder.bio}
    board.experiment.close()
    events = EventAccumulator(board.log_dir)
    events.Reload()
    histograms = {tag: events.Histograms(tag)[-1].histogram_value for tag in events.Tags()["histograms"]}
    return {"rows": recorder.bio, "histograms": {tag: (h.num, h.sum) for tag, h in histograms.items()}}


@pytest.mark.slow
def test_two_processes_log_what_one_logs_of_all_their_batches(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train_one_of_two_processes, args=(port, str(tmp_path)), nprocs=2)
    zero, one = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert one["rows"] == []
    alone = monitored(tmp_path / "alone", accumulate_grad_batches=2)
    assert [step for step, _ in zero["rows"]] == [step for step, _ in alone["rows"]] == [1, 3]
    spare = {tag.split("/")[1] for tag in alone["rows"][0][1] if tag.endswith("/spare.weight")}
    assert "weights" in spare
    assert "activity" not in spare
    for (_, together), (_, expected) in zip(zero["rows"], alone["rows"], strict=True):
        assert together == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert zero["histograms"].keys() == alone["histograms"].keys()
    for tag, numbers in zero["histograms"].items():
        assert numbers == pytest.approx(alone["histograms"][tag], rel=1e-4, abs=1e-5), tag
