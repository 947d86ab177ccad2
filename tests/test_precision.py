"""Precision: loss scaling, skipped steps, narrow and wide weights."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from bio_lightning import Crystallization, FuzzyLearningRates, SynapticScaling, multipliers
from tests.cases import all_on
from tests.models import MLP, different, fit, make_model, weights_of


def scaled() -> MixedPrecision:
    """16-mixed on the CPU, with a scale that is a power of two and so changes no bit of a mantissa."""
    return MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))


class InFloat32(MLP):
    """Autocast is off, so that scaled and unscaled gradients can be compared bit for bit."""

    def training_step(self, batch, batch_idx):
        with torch.autocast("cpu", enabled=False):
            return super().training_step(batch, batch_idx)


class Overflowing(InFloat32):
    """The loss overflows in two of six batches, and the scaler skips these steps."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if batch_idx in (0, 3) else loss


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_loss_scale_is_invisible(optimizer):
    plain, under_scale = make_model(InFloat32, optimizer), make_model(InFloat32, optimizer)
    fit(plain, all_on())
    fit(under_scale, all_on(), plugins=scaled())
    assert different(weights_of(plain), weights_of(under_scale)) == []
    assert different(multipliers(plain), multipliers(under_scale)) == []
    assert any((m < 0.7).any() for m in multipliers(plain).values()), "something must crystallize"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_skipped_steps_leave_no_trace(optimizer):
    class Four(InFloat32):
        def batches(self, count, size=8, seed=1):
            return [batch for i, batch in enumerate(super().batches(6, size, seed)) if i not in (0, 3)]

    without, skipping = make_model(Four, optimizer), make_model(Overflowing, optimizer)
    callbacks = [*all_on()[:4], *all_on()[5:]], [*all_on()[:4], *all_on()[5:]]
    fit(without, callbacks[0], steps=6)
    fit(skipping, callbacks[1], steps=6, plugins=scaled())
    assert [c.session.steps for c in (callbacks[0][0], callbacks[1][0])] == [[4], [4]]
    assert different(weights_of(without), weights_of(skipping)) == []
    first, second = (c[0].session.store for c in callbacks)
    for name in first:
        assert different(first[name], second[name]) == [], name


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


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_train(precision):
    bio = make_model("MLP", "adam")
    before = weights_of(bio)
    fit(bio, all_on()[:-1], precision=precision)
    after = weights_of(bio)
    assert after["net.0.weight"].dtype == {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(
        precision, torch.float32
    )
    assert all(torch.isfinite(weight).all() for weight in after.values())
    assert not torch.allclose(after["net.2.weight"].float(), before["net.2.weight"], atol=1e-3)
