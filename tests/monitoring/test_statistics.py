"""Numbers by tag: of each layer what its metric says alone, overall what one metric of all layers would say."""

import pytest
import torch

from bio_lightning.metrics import DormantFraction, MultiplierSpread, SynapseSurvival
from bio_lightning.monitoring.statistics import OVERALL, Statistics

CPU = torch.device("cpu")


def numbers(group, family, updates, **settings):
    statistics = Statistics()
    metrics = {name: statistics.metric(group, family, name, CPU, **settings.get(name, {})) for name in updates}
    for name, values in updates.items():
        metrics[name].update(*values)
    return statistics.by_tag({(group, family): metrics})


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
    found = numbers("g", family, {name: (tensor, *others) for name, tensor in tensors.items()})
    expected = {}
    for name, tensor in {**tensors, OVERALL: torch.cat(list(tensors.values()))}.items():
        metric = make()
        metric.update(tensor, *others)
        expected |= {f"bio/g/{prefix}{key}/{name}": value.item() for key, value in metric.compute().items()}
    assert found == pytest.approx(expected, rel=1e-12)
    assert len(set(found.values())) > len(layers)


def test_every_unit_counts_once():
    """Of two units one is dormant, of six none: one of eight, where a mean of layers would say one of four."""
    settings = {"small": {"units": 2}, "large": {"units": 6}}
    found = numbers(
        "activity",
        "dormant_fraction",
        {"small": (torch.tensor([[0.0, 1.0]]),), "large": (torch.ones(1, 6),)},
        **settings,
    )
    values = {layer: found[f"bio/activity/dormant_fraction_tau_0/{layer}"] for layer in ("small", "large", OVERALL)}
    assert values == {"small": 0.5, "large": 0.0, OVERALL: 0.125}
    alone = DormantFraction(units=(2, 6))
    alone.update(torch.tensor([[0.0, 1.0]]), torch.ones(1, 6))
    assert alone.compute()["tau_0"] == 0.125
