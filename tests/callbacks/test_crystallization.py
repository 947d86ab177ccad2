"""Wiring of crystallization: which gradient is judged, how often, and what hits do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bio_lightning import Crystallization, FuzzyLearningRates, SynapticScaling, VolumeDependentLR, multipliers
from tests import reference
from tests.models import MLP, fit, make_model, weights_of


class Recording(MLP):
    """Keeps the raw gradients and the weights of every step."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.history: list[tuple[torch.Tensor, torch.Tensor]] = []

    def backward(self, loss):
        loss.backward()
        weight = self.net[2].weight
        self.history.append((weight.detach().clone(), weight.grad.clone()))


RULE = {"dampening_factor": 0.5, "floor": 0.2, "recovery": 0.3}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_equals_the_reference_on_raw_gradients_whatever_else_is_on(optimizer):
    model = make_model(Recording, optimizer, double=True)
    others = [FuzzyLearningRates(nu=0.8), VolumeDependentLR(), SynapticScaling(target=0.1)]
    alone = Crystallization(crystal_thresh=0.05, **RULE)
    fit(model, [*others, alone], steps=6)
    c = [1.0] * (12 * 16)
    for weight, grad in model.history:
        hits = reference.settled_or_strong(
            weight.flatten().tolist(), grad.flatten().tolist(), crystal_thresh=0.05, ignore_zero_grad=True
        )
        c = [reference.crystallize(old, hit, **RULE) for old, hit in zip(c, hits, strict=True)]
    expected = torch.tensor(c).view(12, 16)
    assert torch.allclose(alone.session.store["net.2.weight"]["crystal"], expected, atol=1e-6)
    assert (expected < 0.5).any(), "something must crystallize"
    assert (expected > 0.9).any(), "something must stay plastic"


def test_crystallized_weights_move_less():
    plain, bio = make_model("MLP", double=True), make_model("MLP", double=True)
    before = weights_of(plain)["net.2.weight"]
    fit(plain, steps=1)
    fit(bio, [Crystallization(crystal_thresh=1e9, ignore_zero_grad=False, dampening_factor=0.25)], steps=1)
    moved_plain = weights_of(plain)["net.2.weight"] - before
    moved = weights_of(bio)["net.2.weight"] - before
    assert torch.allclose(moved, 0.25 * moved_plain, atol=1e-12)
    assert moved_plain.abs().max() > 0


def test_dead_units_do_not_crystallize_unless_asked():
    class Dead(MLP):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            nn.init.constant_(self.net[2].bias[:6], -50.0)

    for ignore, expected in ((True, 1.0), (False, 0.6**4)):
        model = make_model(Dead)
        fit(model, [Crystallization(ignore_zero_grad=ignore, recovery=0.0)], steps=4)
        assert multipliers(model)["net.2.weight"][:6].eq(1).all() == (expected == 1.0)
        assert torch.allclose(multipliers(model)["net.2.weight"][:6], torch.tensor(expected))


def test_state_changes_every_n_steps_but_acts_on_every_step():
    everything = {"crystal_thresh": 1e9, "ignore_zero_grad": False, "floor": 1e-9, "recovery": 0.0}
    model = make_model("MLP")
    fit(model, [Crystallization(every_n_steps=3, **everything)], steps=7)
    assert torch.allclose(multipliers(model)["net.2.weight"], torch.tensor(0.6**3))  # steps 0, 3, 6
    held, each = make_model("MLP"), make_model("MLP")
    fit(held, [Crystallization(every_n_steps=100, **everything)], steps=3)
    fit(each, [Crystallization(every_n_steps=1, dampening_factor=1.0, **everything)], steps=3)
    assert not torch.equal(weights_of(held)["net.2.weight"], weights_of(each)["net.2.weight"])


def test_state_rests_outside_its_steps():
    everything = {"crystal_thresh": 1e9, "ignore_zero_grad": False, "floor": 1e-9, "recovery": 0.0}
    model = make_model("MLP")
    fit(model, [Crystallization(start_step=2, end_step=4, **everything)], steps=7)
    assert torch.allclose(multipliers(model)["net.2.weight"], torch.tensor(0.6**2))


def test_use_crystallizes_between_busy_neurons():
    class Busy(MLP):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            for layer in (self.net[0], self.net[2]):
                nn.init.constant_(layer.bias, -50.0)
                nn.init.constant_(layer.bias[:2], 50.0)  # the first two neurons always fire, the others never

    model = make_model(Busy)
    fit(model, [Crystallization(criterion="use", include="net.2*", recovery=0.0)], steps=3)
    c = multipliers(model)["net.2.weight"]
    assert torch.allclose(c[:2, :2], torch.tensor(0.6**2))  # rates are known from the second step on
    assert c[2:].eq(1).all()
    assert c[:, 2:].eq(1).all()


def test_non_finite_gradients_leave_no_trace():
    class Exploding(MLP):
        def backward(self, loss):
            loss.backward()
            self.net[2].weight.grad[0, 0] = float("nan")
            self.net[2].weight.grad[1, 1] = float("inf")

    model = make_model(Exploding)
    crystallization = Crystallization(crystal_thresh=1e9, recovery=0.0)
    fit(model, [crystallization], steps=1)
    c = multipliers(model)["net.2.weight"]
    assert c[0, 0] == c[1, 1] == 1
    assert c.mean() < 0.9
