"""Wiring of fuzzy learning rates: what a multiplier does to a step, under every optimizer."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from bio_lightning import FuzzyLearningRates, NoEffectWarning, WeightRejuvenation, WeightSplitting, multipliers
from bio_lightning.functional.distributions import DISTRIBUTIONS
from tests import reference
from tests.checks import assert_matches, floats
from tests.models import MLP, OPTIMIZERS, ZooModel, fit, make_model, weights_of

WEIGHTS = ("net.0.weight", "net.2.weight", "net.4.weight")


def moves(optimizer: str, callbacks=(), steps: int = 1, **arguments) -> dict[str, torch.Tensor]:
    """How far training moves each weight, in float64."""
    model = make_model("MLP", optimizer, double=True)
    before = weights_of(model)
    fit(model, list(callbacks), steps=steps, **arguments)
    after = weights_of(model)
    return {name: after[name] - before[name] for name in before} | {"model": model}


@pytest.mark.parametrize("apply_to", ["update", "auto"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_step_is_multiplier_times_what_the_optimizer_alone_would_do(optimizer, apply_to):
    plain = moves(optimizer)
    bio = moves(optimizer, [FuzzyLearningRates(distribution="uniform", nu=0.9, min=0.0, apply_to=apply_to)])
    for name in WEIGHTS:
        m = multipliers(bio["model"])[name].double()
        assert torch.allclose(bio[name], m * plain[name], rtol=1e-9, atol=1e-14)
        assert m.std() > 0.3, "multipliers must differ"
    for name in ("net.0.bias", "net.2.bias", "net.4.bias"):
        assert torch.equal(bio[name], plain[name])


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_gradient_mode_scales_what_enters_the_momentum_buffer(optimizer):
    """Without weight decay both modes agree on every step: a constant factor commutes with the buffer."""
    rule = {"distribution": "uniform", "nu": 0.9}
    by_gradient = moves(optimizer, [FuzzyLearningRates(**rule, apply_to="gradient")], steps=5)
    by_update = moves(optimizer, [FuzzyLearningRates(**rule, apply_to="update")], steps=5)
    for name in WEIGHTS:
        assert torch.allclose(by_gradient[name], by_update[name], rtol=1e-6, atol=1e-12)


def test_under_adam_update_ratio_follows_the_multiplier():
    rule = {"distribution": "normal", "nu": 0.3}
    plain, auto = moves("adam"), moves("adam", [FuzzyLearningRates(**rule)])
    with pytest.warns(NoEffectWarning, match="Adam divides a constant factor away"):
        gradient = moves("adam", [FuzzyLearningRates(**rule, apply_to="gradient")])
    m = multipliers(auto["model"])["net.2.weight"].double().flatten()
    for moved, follows in ((auto, True), (gradient, False)):
        ratio = (moved["net.2.weight"] / plain["net.2.weight"]).flatten()
        seen = torch.isfinite(ratio)
        correlation = torch.corrcoef(torch.stack([ratio[seen], m[seen]]))[0, 1]
        assert (correlation > 0.99) == follows


@pytest.mark.filterwarnings("ignore::bio_lightning.NoEffectWarning")  # nothing refreshes most of them
@pytest.mark.parametrize("bounds", [(0.5, 2.0), (0.9, 1.05), (0.0, 1e6)])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mean_multiplier_is_one_in_every_layer_after_refresh_and_turnover(distribution, bounds):
    low, high = bounds
    fuzzy = FuzzyLearningRates(distribution=distribution, nu=0.8, min=low, max=high, update_every=2)
    model = make_model("CNN", "adam")
    fit(model, [fuzzy, WeightRejuvenation(every_n_steps=3, dre=2.0)], steps=7)
    found = multipliers(model)
    assert len(found) == len(fuzzy.targets) == 6
    for m in found.values():
        assert abs(m.mean(dtype=torch.float64) - 1) < 1e-6
        assert (m.std() > 0.02) == (distribution != "baseline")


class Motionless(MLP):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.filterwarnings("ignore::bio_lightning.NoEffectWarning")  # the baseline reads no nu
@pytest.mark.parametrize("kernel", ["eager", "compiled"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_new_synapse_draws_what_the_formula_says(monkeypatch, distribution, kernel):
    monkeypatch.setattr("bio_lightning.kernels.CHUNK", 64)  # four rows of sixteen: several chunks
    monkeypatch.setattr("bio_lightning.plasticity.SMALL", 0)
    rule = {"distribution": distribution, "nu": 0.7, "min": 0.6, "max": 1.5, "kernel": kernel}
    before, model = make_model(Motionless), make_model(Motionless)
    fit(before, [FuzzyLearningRates(**rule)], steps=3)
    fuzzy = FuzzyLearningRates(**rule)
    fit(model, [fuzzy, WeightRejuvenation(every_n_steps=3, dre=2.0, kernel=kernel)], steps=3)
    name = "net.2.weight"
    old, weight = weights_of(before)[name], weights_of(model)[name]
    new = floats(old != weight)
    assert 30 < sum(new) < len(new) - 30
    noise, rate = fuzzy.noise(name, 3), fuzzy.session.store[name].get("rate")
    settings = {
        "nu": 0.7,
        "depth": 0.5,
        "rates_per_weight": None if rate is None else floats(rate.unsqueeze(1).expand(12, 16)),
    }
    uniforms, normals = floats(noise.uniform(weight)), floats(noise.normal(weight))
    drawn = reference.draw(distribution, uniforms, normals, weights=floats(weight), **settings)
    kept = floats(multipliers(before)[name])
    if distribution == "temporal":
        births = [d if is_new else b for is_new, d, b in zip(new, drawn, _births(fuzzy, name), strict=True)]
        developed = [reference.temporal(birth, 0.97, age=3 / 100) for birth in births]
        expected = reference.clamp_and_normalize(developed, 0.6, 1.5)
    else:
        fresh = reference.clamp_and_normalize(drawn, 0.6, 1.5)
        mixed = [f if is_new else k for is_new, f, k in zip(new, fresh, kept, strict=True)]
        expected = [m / reference.mean(mixed) for m in mixed]
    assert_matches(multipliers(model)[name], expected, tolerance=1e-4 if distribution == "gamma" else 5e-6)
    assert distribution == "baseline" or max(abs(a - b) for a, b in zip(expected, kept, strict=True)) > 0.1


def _births(fuzzy, name):
    """What was drawn at the start, where the factor is a function of that and of the age."""
    uniforms = floats(fuzzy.noise(name, 0).uniform(torch.empty(12, 16)))
    return [reference.spread_uniform(u, 0.7) for u in uniforms]


def test_spread_falls_with_depth_in_forward_order():
    class Reversed(ZooModel):
        """Registered back to front."""

        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.last, self.middle, self.first = nn.Linear(64, 4), nn.Linear(64, 64), nn.Linear(6, 64)

        def forward(self, x):
            return self.last(self.middle(self.first(x).relu()).relu())

    model = make_model(Reversed)
    fit(model, [FuzzyLearningRates(distribution="layer_adaptive", nu=0.4)])
    # the half-width of a uniform distribution is its standard deviation times the root of 3
    width = {name: m.std().item() * 3**0.5 for name, m in multipliers(model).items()}
    assert width["first.weight"] == pytest.approx(0.4, rel=0.1)
    assert width["middle.weight"] == pytest.approx(0.3, rel=0.1)
    assert width["last.weight"] == pytest.approx(0.2, rel=0.15)


def test_temporal_diversity_declines():
    model = make_model("MLP")
    young = FuzzyLearningRates(distribution="temporal", nu=0.4, decay=0.5, update_every=1, min=0, max=10)
    spread = []
    for steps in (1, 2, 8):
        model = make_model("MLP")
        fit(model, [young], steps=steps)
        spread.append(multipliers(model)["net.2.weight"].std().item())
    assert spread[1] == pytest.approx(spread[0] / 2, rel=0.02)
    assert spread[2] == pytest.approx(spread[0] / 2, rel=0.02), "a quarter of the diversity remains"


class Watching(MLP):
    """Keeps the multipliers after every batch."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen = [*getattr(self, "seen", []), multipliers(self)["net.2.weight"]]


@pytest.mark.parametrize(
    ("start", "expected"),
    [(0, [False, False, True, False, False, True]), (2, [False, False, False, False, True, False])],
)
def test_weight_adaptive_is_refreshed_when_due(start, expected):
    model = make_model(Watching)
    fit(model, [FuzzyLearningRates(distribution="weight_adaptive", update_every=3, start_step=start)], steps=7)
    assert [not torch.equal(one, two) for one, two in itertools.pairwise(model.seen)] == expected


def test_every_refresh_draws_anew():
    class Still(Watching):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    model = make_model(Still)
    fit(model, [FuzzyLearningRates(distribution="weight_adaptive", nu=0.4, update_every=1)], steps=4)
    correlation = torch.corrcoef(torch.stack([m.flatten() for m in model.seen]))
    assert (correlation - torch.eye(4)).abs().max() < 0.3


def test_temporal_ages_from_the_start_step_every_n_steps():
    rule = {"distribution": "temporal", "nu": 0.4, "decay": 0.5, "update_every": 2, "min": 0, "max": 10}
    model = make_model(Watching)
    fit(model, [FuzzyLearningRates(**rule, start_step=1, every_n_steps=2)], steps=7)
    spread = torch.stack([m.std() for m in model.seen])  # at steps 1 to 7: at the beginning of a pair of steps
    expected = torch.tensor([1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25])
    assert torch.allclose(spread / spread[0], expected, rtol=0.02)


def test_activity_gives_silent_neurons_the_widest_spread():
    class Uneven(MLP):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.net[0] = nn.Linear(6, 64)
            self.net[2] = nn.Linear(64, 12)
            nn.init.constant_(self.net[0].bias[:32], -50.0)  # never fires
            nn.init.constant_(self.net[0].bias[32:], 50.0)  # always fires

    model = make_model(Uneven)
    fit(model, [FuzzyLearningRates(distribution="activity", nu=0.2, update_every=2)], steps=4)
    m = multipliers(model)["net.0.weight"]
    assert (m[:32] - 1).abs().max() > 0.25  # nu * 1.5
    assert (m[32:] - 1).abs().max() < 0.12  # nu * 0.5


def test_bfloat16_state_is_stored_in_half_the_bytes():
    fuzzy = FuzzyLearningRates(distribution="uniform", nu=0.3, state_dtype="bfloat16")
    model = make_model("MLP")
    fit(model, [fuzzy])
    assert fuzzy.session.store["net.0.weight"]["base"].dtype == torch.bfloat16
    assert multipliers(model)["net.0.weight"].mean() == pytest.approx(1, abs=0.01)


def test_split_synapses_have_a_multiplier_each():
    model = make_model("MLP")
    fit(model, [FuzzyLearningRates(), WeightSplitting(gamma=3)])
    assert multipliers(model)["net.2.weight"].shape == (3, 12, 16)
    assert not torch.equal(multipliers(model)["net.2.weight"][0], multipliers(model)["net.2.weight"][1])


def test_no_effect_outside_its_steps():
    plain = moves("sgd", steps=4)
    for window in ({"end_step": 0}, {"start_step": 4}):
        bio = moves("sgd", [FuzzyLearningRates(nu=0.5, **window)], steps=4)
        assert all(torch.equal(bio[name], plain[name]) for name in WEIGHTS)
    late = moves("sgd", [FuzzyLearningRates(nu=0.5, start_step=3)], steps=4)
    assert not torch.equal(late["net.2.weight"], plain["net.2.weight"])


def test_multipliers_of_an_unknown_module_are_an_error():
    with pytest.raises(ValueError, match="no Trainer with bio callbacks has run on this MLP"):
        multipliers(make_model("MLP"))
