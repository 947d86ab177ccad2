"""Precision: loss scaling, skipped steps, narrow and wide weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from bio_lightning import Crystallization, FuzzyLearningRates, SynapticScaling
from bio_lightning.functional import settled_or_strong
from tests.cases import MECHANISMS, neutral
from tests.exactness.runs import SETS, TOGETHER, moved, scaled, state_of, train, unequal
from tests.models import MLP, different, fit, make_model, weights_of


class InFloat32(MLP):
    """Autocast is off, so that scaled and unscaled gradients can be compared bit for bit."""

    def training_step(self, batch, batch_idx):
        with torch.autocast("cpu", enabled=False):
            return super().training_step(batch, batch_idx)


class Overflowing(InFloat32):
    """The loss overflows, or is no number, in two of six batches, and the scaler skips these steps."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * {0: torch.inf, 3: torch.nan}.get(batch_idx % 6, 1.0)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.history = [*getattr(self, "history", []), state_of(self, self.trainer.callbacks, self.trainer.optimizers)]


WAYS = [*((label, "adam") for label in SETS), *((label, "sgd") for label in TOGETHER)]


@pytest.mark.parametrize(("label", "optimizer"), WAYS)
def test_loss_scale_is_invisible(label, optimizer):
    plain, under_scale = make_model(InFloat32, optimizer), make_model(InFloat32, optimizer)
    ends = (
        train(plain, SETS[label](), plain.batches(12)),
        train(under_scale, SETS[label](), plain.batches(12), plugins=scaled()),
    )
    assert unequal(*ends) == []
    assert moved(state_of(make_model(InFloat32), []), ends[0])


@pytest.mark.parametrize(("label", "optimizer"), WAYS)
def test_skipped_steps_leave_no_trace(label, optimizer):
    without, skipping = make_model(InFloat32, optimizer), make_model(Overflowing, optimizer)
    batches = without.batches(18)
    ends = (
        train(without, SETS[label](), [b for i, b in enumerate(batches) if i % 6 not in (0, 3)]),
        train(skipping, SETS[label](), batches, plugins=scaled()),
    )
    assert unequal(*ends) == []
    assert ends[1]["steps"].tolist() == [12]
    for batch, (before, after) in enumerate(itertools.pairwise(skipping.history), start=1):
        # nothing is replaced or projected again because Lightning counted a step
        assert bool(unequal(before, after)) == (batch % 6 not in (0, 3))


@pytest.mark.parametrize("label", TOGETHER)
def test_an_overflow_in_any_micro_batch_skips_the_whole_step(label):
    without, skipping = make_model(InFloat32, "adam"), make_model(Overflowing, "adam")
    batches = without.batches(18)
    ends = (
        train(without, SETS[label](), [b for i, b in enumerate(batches) if i % 6 in (4, 5)], accumulate_grad_batches=2),
        train(skipping, SETS[label](), batches, accumulate_grad_batches=2, plugins=scaled()),
    )
    assert unequal(*ends) == []


def test_masks_in_float16_are_those_of_unscaled_gradients():
    class Recording(MLP):
        def on_before_optimizer_step(self, optimizer):  # comes after the callbacks'
            crystals = bio.session.store
            finite = all(bool(parameter.grad.isfinite().all()) for parameter in self.parameters())
            for name, parameter in self.named_parameters():
                if name in crystals:
                    hit = settled_or_strong(parameter, parameter.grad, crystal_thresh=0.05)
                    counts = self.hits.setdefault(name, torch.zeros_like(parameter))
                    if finite:
                        counts += hit
                    assert torch.allclose(crystals[name]["crystal"], 0.6**counts)
            self.seen += finite

    model, bio = make_model(Recording, "adam"), Crystallization(crystal_thresh=0.05, recovery=0.0, floor=1e-9)
    model.hits, model.seen = {}, 0
    overflowing = MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**18))
    train(model, [bio], model.batches(12), plugins=overflowing)
    assert bio.session.steps == [model.seen]
    assert 0 < model.seen < 12
    assert all(0 < (count > 0).float().mean() < 1 for count in model.hits.values())


def test_steps_that_a_fused_optimizer_skips_leave_no_trace():
    class WithFused(InFloat32):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2, fused=True)

    class Four(WithFused):
        def batches(self, count, size=8, seed=1):
            return [batch for i, batch in enumerate(super().batches(6, size, seed)) if i not in (0, 3)]

    class Skipping(Overflowing, WithFused):
        pass

    without, skipping = make_model(Four), make_model(Skipping)
    callbacks = [[FuzzyLearningRates(distribution="temporal", update_every=1), SynapticScaling()] for _ in range(2)]
    fit(without, callbacks[0], plugins=scaled())
    fit(skipping, callbacks[1], plugins=scaled())
    assert [c[0].session.steps for c in callbacks] == [[4], [4]]
    assert different(weights_of(without), weights_of(skipping)) == []
    first, second = (c[0].session.store for c in callbacks)
    assert all(different(first[name], second[name]) == [] for name in first)


class Fused(MLP):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), fused=True)


def test_fused_optimizers_under_a_scaler_are_refused_where_gradients_are_judged():
    with pytest.raises(Exception, match=r"Crystallization judges gradients.*fused=False"):
        fit(make_model(Fused), [Crystallization()], plugins=scaled())
    fuzzy = FuzzyLearningRates()
    fit(make_model(Fused), [fuzzy, SynapticScaling()], plugins=scaled())
    assert fuzzy.session.steps == [6]


def precision(name):
    return {"plugins": scaled()} if name == "16-mixed" else {"precision": name}


@pytest.mark.parametrize("name", ["16-mixed", "bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("label", SETS)
def test_every_precision_trains(label, name):
    plain, bio = make_model(MLP, "adam"), make_model(MLP, "adam")
    start, batches = state_of(bio, []), bio.batches(6)
    ends = [
        train(model, callbacks, batches, **precision(name)) for model, callbacks in ((plain, []), (bio, SETS[label]()))
    ]
    weights = {name: tensor for name, tensor in ends[1].items() if name.startswith("weight")}
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(name, torch.float32)
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    assert all(torch.isfinite(tensor).all() for tensor in ends[1].values())
    assert unequal(ends[0], {key: ends[1][key] for key in ends[0]}, tolerance=1e-3)
    assert moved({key: tensor.to(dtype) for key, tensor in start.items()}, ends[1])


@pytest.mark.parametrize("name", ["16-mixed", "bf16-mixed", "bf16-true", "64-true"])
def test_neutral_settings_change_no_bit_in_any_precision(name):
    plain, bio = make_model(MLP, "adam"), make_model(MLP, "adam")
    batches = plain.batches(6)
    first = train(plain, [], batches, **precision(name))
    second = train(bio, [neutral(mechanism) for mechanism in MECHANISMS], batches, **precision(name))
    assert unequal(first, {key: second[key] for key in first}) == []


@pytest.mark.parametrize("label", SETS)
def test_double_precision_is_that_of_a_model_in_double(label):
    by_trainer, double = make_model(MLP, "adam"), make_model(MLP, "adam", double=True)
    batches = double.batches(12)
    ends = (
        train(by_trainer, SETS[label](), batches, precision="64-true"),
        train(double, SETS[label](), batches),
    )
    rounding = 1e-6 if label == "weight_splitting-synapses" else 0.0  # the thirds were taken in float32
    assert unequal(*ends, tolerance=rounding) == []
