"""Wiring of synaptic scaling: firing rates as measured, both rules."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from bio_lightning import SynapticScaling
from tests.models import CNN, MLP, fit, make_model, make_trainer, weights_of


def test_rates_are_shares_of_positive_inputs_to_the_nonlinearity():
    """At the norm behind a layer, over all training forwards of a step, averaged with 0.99 from the first step on."""
    shares = []

    class Watching(CNN):
        def training_step(self, batch, batch_idx):
            inside = []
            handle = self.net[1].register_forward_hook(lambda m, i, o: inside.append(o.detach()))
            loss = super().training_step(batch, batch_idx)
            handle.remove()
            shares.append((inside[0] > 0).double().mean(dim=(0, 2, 3)))
            return loss

    model = make_model(Watching)
    scaling = SynapticScaling()
    fit(model, [scaling], steps=3)
    expected = shares[0]
    for share in shares[1:]:
        expected = 0.99 * expected + 0.01 * share
    assert torch.allclose(scaling.session.store["net.0.weight"]["rate"].double(), expected, atol=1e-6)
    assert shares[0].std() > 0


def test_rates_cover_every_forward_of_a_step():
    class Twice(MLP):
        def training_step(self, batch, batch_idx):
            self(torch.zeros_like(batch[0]))  # a second forward on other inputs
            with torch.no_grad():
                self(1e3 * batch[0])  # nothing to learn from
            return super().training_step(batch, batch_idx)

    model = make_model(Twice)
    scaling = SynapticScaling()
    first = model.net[0]
    x = model.batches(1)[0][0]
    both = torch.cat([first(torch.zeros_like(x)), first(x)])
    fit(model, [scaling], steps=1)
    expected = (both > 0).float().mean(dim=0)
    assert torch.allclose(scaling.session.store["net.0.weight"]["rate"], expected)


def test_rates_over_micro_batches():
    model, scaling = make_model("MLP"), SynapticScaling()
    batches = model.batches(3, size=4)
    expected = (model.net[0](torch.cat([x for x, _ in batches])) > 0).float().mean(dim=0)
    make_trainer([scaling], max_epochs=1, accumulate_grad_batches=3).fit(model, DataLoader(batches, batch_size=None))
    assert torch.allclose(scaling.session.store["net.0.weight"]["rate"], expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_multiplicative_rule_scales_incoming_weights_from_the_second_step_on(optimizer):
    plain, bio = make_model("MLP", optimizer, double=True), make_model("MLP", optimizer, double=True)
    path: dict[str, list[torch.Tensor]] = {"plain": [], "bio": []}
    for label, model, callbacks in (("plain", plain, []), ("bio", bio, [SynapticScaling(target=0.3, strength=0.5)])):
        rates = (model.net[2](model.net[:2](model.batches(2)[0][0])) > 0).double().mean(dim=0)
        for steps in (1, 2):
            model_at = make_model("MLP", optimizer, double=True)
            fresh = [SynapticScaling(target=0.3, strength=0.5)] if callbacks else []
            trainer = make_trainer(fresh, max_epochs=1, limit_train_batches=steps)
            trainer.fit(model_at, DataLoader(model_at.batches(2), batch_size=None))
            path[label].append(model_at.net[2].weight.detach().clone())
    assert torch.equal(path["plain"][0], path["bio"][0]), "no rate is known in the first step"
    factor = (0.3 / rates.clamp(min=1e-3)).sqrt().clamp(0.5, 2.0)
    moved_plain, moved_bio = (path[label][1] - path[label][0] for label in ("plain", "bio"))
    assert torch.allclose(moved_bio, factor[:, None] * moved_plain, rtol=1e-6, atol=1e-12)
    assert factor.std() > 0.05


class Biased(MLP):
    """Its hidden neurons start too quiet or too loud."""

    shape = (20,)
    bias = 0.0
    target = 0.3

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 4))
        nn.init.constant_(self.net[0].bias, self.bias)

    def configure_optimizers(self):
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), lr=0.02)
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def distance(self) -> float:
        """Mean distance of the firing rates from the target."""
        x = torch.cat([x for x, _ in self.batches(40)])
        return ((self.net[0](x) > 0).float().mean(dim=0) - self.target).abs().mean().item()


class TooQuiet(Biased):
    bias = -1.0


class TooLoud(Biased):
    bias = 1.0


@pytest.mark.parametrize("start", [TooQuiet, TooLoud])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_tetzlaff_brings_rates_to_the_target(optimizer, start):
    plain, bio = make_model(start, optimizer), make_model(start, optimizer)
    before = plain.distance()
    fit(plain, steps=400)
    fit(bio, [SynapticScaling(rule="tetzlaff", target=0.3, include="net.0*")], steps=400)
    assert before > 0.2
    assert bio.distance() < 0.5 * plain.distance()


def test_tetzlaff_reaches_silent_neurons():
    class Silent(MLP):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            nn.init.constant_(self.net[0].bias[:4], -50.0)

    plain, bio = make_model(Silent), make_model(Silent)
    fit(plain, steps=5)
    fit(bio, [SynapticScaling(rule="tetzlaff", rate=10.0)], steps=5)
    before = make_model(Silent).net[0].weight[:4]
    assert torch.equal(plain.net[0].weight[:4], before), "no gradient reaches them"
    assert (bio.net[0].weight[:4] > before).all()


def test_tetzlaff_change_is_not_multiplied_and_is_bounded():
    start = make_model("MLP")
    before = start.net[2].weight.detach()
    plain, bio = make_model("MLP"), make_model("MLP")
    fit(plain, steps=2)
    fit(bio, [SynapticScaling(rule="tetzlaff", rate=1e6, max_change=0.02, target=1.0)], steps=2)
    quiet = (start.net[:3](start.batches(2)[0][0]) > 0).float().mean(dim=0) < 1
    change = (bio.net[2].weight - plain.net[2].weight)[quiet]  # rates are known in the second step
    assert torch.allclose(change.abs(), 0.02 * plain.net[2].weight[quiet].abs(), rtol=1e-3)
    assert (change > 0).all(), "too quiet for a target of 1: excitation grows, inhibition shrinks"
    assert weights_of(bio)["net.2.weight"].sub(before).abs().max() > 0


def test_tetzlaff_step_is_the_learning_rate_of_the_group_times_the_rule():
    class Groups(MLP):
        def configure_optimizers(self):
            layers = ((self.net[0], 0.1), (self.net[2], 0.01), (self.net[4], 0.1))
            return torch.optim.SGD([{"params": list(layer.parameters()), "lr": lr} for layer, lr in layers])

    start, plain, bio = (make_model(Groups, double=True) for _ in range(3))
    fit(plain, steps=2)
    fit(bio, [SynapticScaling(rule="tetzlaff", rate=0.5, target=0.9, max_change=1.0, include="net.[02]*")], steps=2)
    x = start.batches(2)[0][0]
    for name, inner, lr in (("net.0.weight", start.net[:1], 0.1), ("net.2.weight", start.net[:3], 0.01)):
        rate = (inner(x) > 0).double().mean(dim=0)  # of the first step: known in the second
        after = weights_of(plain)[name]
        expected = lr * 0.5 * (0.9 - rate)[:, None] * after.square()
        assert torch.allclose(weights_of(bio)[name] - after, expected, rtol=1e-6, atol=1e-12)


def test_tetzlaff_moves_weights_every_n_steps_from_the_start_step_on():
    class Silent(MLP):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            nn.init.constant_(self.net[0].bias[:4], -50.0)
            self.seen = [self.net[0].weight[:4].detach().clone()]

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.seen.append(self.net[0].weight[:4].detach().clone())

    model = make_model(Silent)
    fit(model, [SynapticScaling(rule="tetzlaff", rate=10.0, start_step=2, every_n_steps=3)], steps=9)
    moved = [step for step in range(9) if not torch.equal(model.seen[step], model.seen[step + 1])]
    assert moved == [2, 5, 8]


def test_forwards_outside_a_training_batch_do_not_count():
    shares = []

    class Elsewhere(MLP):
        def training_step(self, batch, batch_idx):
            shares.append((self.net[0](batch[0]) > 0).float().mean(dim=0))
            return super().training_step(batch, batch_idx)

        def on_train_epoch_start(self):
            self(torch.zeros(64, 6))

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self(torch.ones(64, 6))

    model, scaling = make_model(Elsewhere), SynapticScaling()
    fit(model, [scaling], steps=2)
    expected = 0.99 * shares[0] + 0.01 * shares[1]
    assert torch.allclose(scaling.session.store["net.0.weight"]["rate"], expected)


def test_positive_values_are_counted_exactly_beyond_the_whole_numbers_of_float32():
    from bio_lightning.firing_rates import Gate, RateCounter

    gate = Gate()
    gate.is_open = True
    counter = RateCounter(-1, of_input=False, gate=gate)
    size = (1 << 24) + 1
    counter(torch.nn.Identity(), (), torch.ones(size, 1))
    assert (counter.positive.tolist(), counter.total) == ([float(size)], size)


@pytest.mark.parametrize("kernel", ["eager", "compiled"])
def test_factor_toward_the_layers_mean_is_that_of_the_formula(kernel):
    from bio_lightning.callbacks.synaptic_scaling import SynapticScaling
    from bio_lightning.kernels import Block, Data, finish_together, run
    from tests import reference

    form = SynapticScaling(strength=1.5, min=0.2, max=4.0)._form
    rates, grad = [0.05, 0.2, 0.3, 0.9], torch.ones(4, 5)
    index = torch.arange(4, dtype=torch.int32) * 5, torch.arange(5, dtype=torch.int32)
    data = [Data(operands=(torch.tensor(rates).view(4, 1),))]
    job = run((form,), "gradient", torch.ones(4, 5), grad, index, data, compiled=kernel == "compiled")
    finish_together([((), job)])
    expected = [reference.scaling_factor(a, sum(rates) / 4, strength=1.5, low=0.2, high=4.0) for a in rates]
    assert grad[:, 0].tolist() == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) == 4
    assert form.factor(Block(grad, mean=torch.tensor(0.3), operands=data[0].operands)).shape == (4, 1)
