"""Numbers by tag: of each layer what its metric says alone, overall what one metric of all layers would say."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bio_lightning import metrics
from bio_lightning.metrics import DormantFraction, FiringRate, MultiplierSpread, SynapseSurvival
from bio_lightning.metrics._sums import SumsMetric
from bio_lightning.monitoring import statistics as module
from bio_lightning.monitoring.statistics import FAMILIES, OVERALL, Family, Statistics
from tests.checks import as_on_a_device
from tests.metrics.cases import CASES, draws, make


def on_the_processor(*names):
    """Layers by these names."""
    return [SimpleNamespace(name=name, weight=torch.ones(1)) for name in names]


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
    statistics = Statistics(on_the_processor("a", "empty", "b"))
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
    statistics = Statistics(on_the_processor(*tensors))
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
    statistics = Statistics(on_the_processor("small", "large"))
    activations = {"small": torch.tensor([[0.0, 1.0]]), "large": torch.ones(1, 6)}
    metrics = {}
    for name, each in activations.items():
        metrics[name] = statistics.layer_metric("dormant_fraction", name, units=each.shape[1])
        metrics[name].update(each)
    found = statistics.by_tag({("activity", "dormant_fraction"): metrics})
    values = {layer: found[f"bio/activity/dormant_fraction_tau_0/{layer}"] for layer in ("small", "large", OVERALL)}
    assert values == {"small": 0.5, "large": 0.0, OVERALL: 0.125}
    alone = DormantFraction(units=(2, 6))
    alone.update(*activations.values())
    assert alone.compute()["tau_0"] == 0.125


@pytest.mark.parametrize("order", [("here", "there"), ("there", "here")])
def test_numbers_of_a_family_come_together_at_its_first_layer(order):
    """All states of it, be they numbers or tensors; not at another family with as many layers."""
    layers = {
        "here": SimpleNamespace(name="here", weight=torch.ones(2)),
        "there": SimpleNamespace(name="there", weight=torch.ones(2, device="meta")),
    }
    statistics = Statistics(layers.values())
    state = MultiplierSpread()._state
    seen = {state: [1.0, 2.0, 3.0], "extremes": [-torch.inf, 2], "bins": torch.ones(7)}
    at = {first: {first: seen, second: seen} for first, second in (order, order[::-1])}
    tables = statistics._tables({(name, "plasticity"): families for name, families in at.items()})
    for name, states in tables.items():
        assert {table.device for table in states.values()} == {layers[name[0]].weight.device}
    assert tables["here", "plasticity"][state][-1].tolist() == [2.0, 4.0, 6.0]
    assert tables["here", "plasticity"]["extremes"][-1].tolist() == [-torch.inf, 2.0]


@pytest.mark.parametrize("is_large", [False, True])
def test_observations_of_a_large_layer_are_looked_at_one_after_the_other(monkeypatch, is_large):
    monkeypatch.setattr(module, "_LARGE", 5 if is_large else 6)
    looks = []
    before = []  # looks, whenever an observation is asked for

    def observations():
        for _ in range(3):
            before.append(len(looks))
            yield "g", "firing_rate_mean", (torch.ones(2),)

    monkeypatch.setattr(FiringRate, "observe", lambda self, rate: looks.append(rate) or {})
    layer = SimpleNamespace(name="layer", weight=torch.ones(2, 3))
    Statistics([layer]).series([(layer, observations())])
    assert before == ([0, 1, 2] if is_large else [0, 0, 0])
    assert len(looks) == 3
