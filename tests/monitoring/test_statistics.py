"""Numbers by tag: of each layer what its metric says alone, overall what one metric of all layers would say."""

from functools import partial

import pytest
import torch
from torch import Tensor

from bio_lightning import metrics
from bio_lightning.metrics import DormantFraction, MultiplierSpread, SynapseSurvival
from bio_lightning.metrics._sums import SumsMetric
from bio_lightning.monitoring.statistics import FAMILIES, OVERALL, Family, Statistics
from tests.checks import as_on_a_device
from tests.metrics.cases import CASES, draws, make

#: Metrics whose states add up over layers.
ADDING = [name for name in CASES if isinstance(make(name), SumsMetric)]


def computed(metric):
    """By name."""
    numbers = metric.compute()
    return {"": numbers} if isinstance(numbers, Tensor) else numbers


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("name", ADDING)
def test_each_layer_and_all_together_say_what_one_metric_would(monkeypatch, name, elsewhere):
    monkeypatch.setitem(FAMILIES, "case", Family(partial(getattr(metrics, name.split()[0]), **CASES[name].settings)))
    if elsewhere:
        as_on_a_device(monkeypatch)
    statistics = Statistics()
    series, expected = {}, {}
    for group, seed in (("first", 1), ("second", 2)):
        layers = dict(zip(("a", "empty", "b"), draws(name, 3, seed), strict=True))
        layers["empty"] = CASES[name].empty[0]
        series[group, "case"] = {layer: statistics.observe("case", *values) for layer, values in layers.items()}
        for layer, updates in {**{key: [value] for key, value in layers.items()}, OVERALL: layers.values()}.items():
            metric = make(name)
            for values in updates:
                metric.update(*values)
            expected |= {f"bio/{group}/{key}/{layer}": number.item() for key, number in computed(metric).items()}
    for _ in range(2):  # nothing is left of what was computed before
        assert statistics.by_tag(series) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("family", "prefix", "make", "layers", "others"),
    [
        ("plasticity", "multiplier_", lambda: MultiplierSpread(quantiles=(0.05, 0.5, 0.95)), [0.1, 0.9, 5.0], ()),
        ("age", "", SynapseSurvival, [3, 150, 2000], (20_000,)),
    ],
)
def test_layers_and_all_of_them_together(family, prefix, make, layers, others):
    tensors = {
        f"layer{place}": (scale * torch.arange(1, 20 + 30 * place) / 10).to(torch.tensor(scale).dtype)
        for place, scale in enumerate(layers)
    }
    statistics = Statistics()
    seen = {name: statistics.observe(family, tensor, *others) for name, tensor in tensors.items()}
    found = statistics.by_tag({("g", family): seen})
    expected = {}
    for name, tensor in {**tensors, OVERALL: torch.cat(list(tensors.values()))}.items():
        metric = make()
        metric.update(tensor, *others)
        expected |= {f"bio/g/{prefix}{key}/{name}": value.item() for key, value in metric.compute().items()}
    assert found == pytest.approx(expected, rel=1e-12)
    assert len(set(found.values())) > len(layers)


def test_every_unit_counts_once():
    """Of two units one is dormant, of six none: one of eight, where a mean of layers would say one of four."""
    statistics = Statistics()
    activations = {"small": torch.tensor([[0.0, 1.0]]), "large": torch.ones(1, 6)}
    metrics = {}
    for name, each in activations.items():
        metrics[name] = statistics.layer_metric("dormant_fraction", name, torch.device("cpu"), units=each.shape[1])
        metrics[name].update(each)
    found = statistics.by_tag({("activity", "dormant_fraction"): metrics})
    values = {layer: found[f"bio/activity/dormant_fraction_tau_0/{layer}"] for layer in ("small", "large", OVERALL)}
    assert values == {"small": 0.5, "large": 0.0, OVERALL: 0.125}
    alone = DormantFraction(units=(2, 6))
    alone.update(*activations.values())
    assert alone.compute()["tau_0"] == 0.125


def on_device(*numbers):
    """Numbers on a device whose values nobody can look at."""
    return [torch.tensor(float(number), device="meta") for number in numbers]


@pytest.mark.parametrize("order", [("here", "there"), ("there", "here")])
def test_numbers_come_together_where_some_already_are(order):
    """All states of a family, be they numbers or tensors; and of another family with as many layers elsewhere."""
    statistics = Statistics()
    state = MultiplierSpread()._state
    seen = {
        "here": {state: [1.0, 2.0, 3.0], "extremes": [-torch.inf, -torch.inf], "bins": torch.ones(7)},
        "there": {state: on_device(1, 2, 3), "extremes": [-1.0, 2.0], "bins": torch.ones(7)},
    }
    tables = statistics._tables(
        {
            ("there", "plasticity"): {name: seen[name] for name in order},
            ("here", "plasticity"): {"a": seen["here"], "b": seen["here"]},
        }
    )
    assert {table.device.type for table in tables["there", "plasticity"].values()} == {"meta"}
    assert {table.device.type for table in tables["here", "plasticity"].values()} == {"cpu"}
    assert tables["here", "plasticity"][state][-1].tolist() == [2.0, 4.0, 6.0]
