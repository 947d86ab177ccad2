"""Gradient accumulation: micro-batches equal one batch, for every mechanism, however an accumulation ends."""

from __future__ import annotations

import functools

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from tests.exactness.runs import MODELS, SETS, TOGETHER, moved, scaled, state_of, train, unequal
from tests.models import MLP, make_model

pytestmark = pytest.mark.filterwarnings("ignore:`training_step` returned `None`")


@functools.cache
def plain_run() -> dict[str, torch.Tensor]:
    model = make_model(MLP, "sgd", double=True)
    return train(model, [], model.batches(200, 6))


@pytest.mark.parametrize("label", SETS)
def test_micro_batches_equal_one_batch_over_200_steps(label):
    ends = []
    for size, accumulated in ((6, 1), (2, 3)):
        model = make_model(MLP, "sgd", double=True)
        batches = model.batches(200 * accumulated, size)
        ends.append(train(model, SETS[label](), batches, accumulate_grad_batches=accumulated))
    assert unequal(*ends, tolerance=1e-9) == []
    assert ends[0]["steps"].tolist() == [200]
    assert moved(ends[0], state_of(make_model(MLP, double=True), []))
    assert unequal(plain_run(), {name: ends[0][name] for name in plain_run()}, 1e-3), "the mechanism acts"


def combinations():
    """Where activity decides, a model has to have layers of neurons."""
    return [(label, name) for label in TOGETHER for name in MODELS if (label, name) != ("by_activity", "Recurrent")]


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize(("label", "model_name"), combinations())
def test_micro_batches_equal_one_batch_on_every_model(label, model_name, optimizer):
    ends = []
    for size, accumulated in ((6, 1), (2, 3)):
        model = make_model(MODELS[model_name], optimizer, double=True)
        batches = model.batches(12 * accumulated, size)
        ends.append(train(model, TOGETHER[label](), batches, accumulate_grad_batches=accumulated))
    assert unequal(*ends, tolerance=1e-9) == []


# ---- accumulations of any length, with micro-batches that give no loss -----------------------------------------------


class Silent(MLP):
    """No loss where the first target is negative."""

    def training_step(self, batch, batch_idx):
        return None if batch[1][0] < 0 else super().training_step(batch, batch_idx)


class Summed(MLP):
    """A batch is a whole accumulation and the number by which Lightning divides its losses."""

    def training_step(self, batch, batch_idx):
        parts, divisor = batch
        losses = [super(Summed, self).training_step(part, batch_idx) for part in parts if part[1][0] >= 0]
        return sum(losses) / divisor if losses else None


LENGTHS = {0: 1, 1: 3, 2: 2}  # by epoch
SILENT = (1, 3, 6)  # alone, first and last in its accumulation, depending on the epoch


def micro_batches(model, silent=SILENT):
    batches = model.batches(7, 3)
    return [(x, torch.full_like(y, -1) if place in silent else y) for place, (x, y) in enumerate(batches)]


def whole_batches(model, silent=SILENT):
    """What three epochs come to."""
    parts = micro_batches(model, silent)
    return [(parts[i : i + n], n) for n in LENGTHS.values() for i in range(0, len(parts), n)]


def train_three_epochs(model, callbacks, batches, **arguments):
    lengths = GradientAccumulationScheduler(LENGTHS)
    return train(model, [lengths, *callbacks], batches, max_epochs=3, **arguments)


@pytest.mark.parametrize(
    ("label", "optimizer"),
    [*((label, "adam") for label in SETS), *((label, name) for label in TOGETHER for name in ("sgd", "momentum"))],
)
def test_an_accumulation_of_any_length_is_the_sum_of_its_losses_over_the_full_length(label, optimizer):
    accumulated, whole = (make_model(kind, optimizer, double=True) for kind in (Silent, Summed))
    ends = (
        train_three_epochs(accumulated, SETS[label](), micro_batches(accumulated)),
        train(whole, SETS[label](), whole_batches(whole)),
    )
    assert unequal(*ends, tolerance=1e-9) == []
    assert ends[0]["steps"].tolist() == [7 + 3 + 4]


def fused(kind):
    class Fused(kind):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2, fused=True)

    return Fused


@pytest.mark.parametrize(
    ("label", "change"), [*((label, lambda kind: kind) for label in TOGETHER), ("by_activity", fused)]
)
def test_lightning_leaves_out_a_scaled_step_whose_last_micro_batch_has_no_loss(label, change):
    accumulated, whole = (make_model(change(kind), "adam", double=True) for kind in (Silent, Summed))
    stepped = [(parts, n) for parts, n in whole_batches(whole) if parts[-1][1][0] >= 0]
    ends = (
        train_three_epochs(accumulated, SETS[label](), micro_batches(accumulated), plugins=scaled()),
        train(whole, SETS[label](), stepped),
    )
    assert unequal(*ends, tolerance=1e-9) == []
    assert ends[0]["steps"].tolist() == [len(stepped)]


# ---- one step in float32 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "optimizer"),
    [*((label, "sgd") for label in SETS), *((label, "adam") for label in TOGETHER)],
)
def test_a_step_in_float32_is_equal_to_rounding(label, optimizer):
    ends = []
    for size, accumulated in ((24, 1), (4, 6)):
        model = make_model(MLP, optimizer)
        ends.append(train(model, SETS[label](), model.batches(accumulated, size), accumulate_grad_batches=accumulated))
    assert unequal(*ends, tolerance=1e-5) == []
