"""Wiring of volume-dependent learning rates."""

from __future__ import annotations

import pytest
import torch

from bio_lightning import VolumeDependentLR
from bio_lightning.functional import Noise, stream, volume_dependent_lr
from tests.models import MLP, OPTIMIZERS, fit, make_model, weights_of

RULE = {"stability_factor": 3.0, "lr_variability": 0.5}


def step_factors(optimizer: str, callback: VolumeDependentLR, steps: int) -> list[torch.Tensor]:
    """Factor of each step, from the moves of a plain twin that starts every step where the bio run is."""
    path = []

    class Watching(MLP):
        def on_train_batch_start(self, batch, batch_idx):
            path.append(weights_of(self))

    bio = make_model(Watching, optimizer, double=True)
    fit(bio, [callback], steps=steps)
    path.append(weights_of(bio))
    factors = []
    for step in range(steps):
        plain = make_model("MLP", optimizer, double=True)
        plain.load_state_dict(path[step])
        optimizer_alone = OPTIMIZERS[optimizer](plain.parameters())
        plain.training_step(plain.batches(steps)[step], step).backward()
        optimizer_alone.step()
        moved_plain = plain.net[2].weight.detach() - path[step]["net.2.weight"]
        factors.append((path[step + 1]["net.2.weight"] - path[step]["net.2.weight"]) / moved_plain)
    return factors


@pytest.mark.parametrize("more", [{}, {"reference": "absolute", "normalize": False, "base_lr": 0.4}])
@pytest.mark.parametrize("optimizer", ["sgd", "sgd_decay"])  # by gradient, by update
def test_factor_is_the_function_of_the_weight_before_the_step(optimizer, more):
    rule = {**RULE, **more}
    callback = VolumeDependentLR(**rule, seed=3)
    model = make_model("MLP", double=True)
    factors = step_factors(optimizer, callback, steps=2)
    noise = Noise(3, stream("volume_dependent_lr", "", "net.2.weight"), 0)
    expected = volume_dependent_lr(model.net[2].weight.detach(), noise, **rule)
    seen = torch.isfinite(factors[0])
    assert torch.allclose(factors[0][seen], expected[seen], rtol=1e-6)
    assert expected.std() > 0.3 * expected.mean()
    relative = [f[seen & torch.isfinite(factors[1])] for f in factors]
    assert not torch.allclose(relative[0], relative[1], rtol=0.1), "drawn anew each step"


def test_noise_is_held_between_draws():
    callback = VolumeDependentLR(stability_factor=0.0, lr_variability=0.5, every_n_steps=2)
    factors = step_factors("sgd", callback, steps=4)
    seen = torch.stack([torch.isfinite(f) for f in factors]).all(dim=0)
    first, second, third, fourth = (f[seen] for f in factors)
    assert torch.allclose(first, second, rtol=1e-6)
    assert torch.allclose(third, fourth, rtol=1e-6)
    assert not torch.allclose(second, third, rtol=0.1)


def test_draws_are_counted_from_the_start_step():
    callback = VolumeDependentLR(stability_factor=0.0, lr_variability=0.5, every_n_steps=2, start_step=1)
    factors = step_factors("sgd", callback, steps=5)
    seen = torch.stack([torch.isfinite(f) for f in factors]).all(dim=0)
    before, first, second, third, fourth = (f[seen] for f in factors)
    assert torch.allclose(before, torch.ones(()).double())
    assert torch.allclose(first, second, rtol=1e-6)
    assert torch.allclose(third, fourth, rtol=1e-6)
    assert not torch.allclose(second, third, rtol=0.1)


def test_mean_learning_rate_is_kept():
    (factor,) = step_factors("sgd", VolumeDependentLR(stability_factor=3.0, lr_variability=0.0), steps=1)
    assert factor[torch.isfinite(factor)].mean() == pytest.approx(1, abs=0.05)
