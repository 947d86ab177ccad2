"""Several optimizers, stepped by hand at different rates: each moves and counts for its own weights only."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as fn
from torch import nn

from bio_lightning import Crystallization, FuzzyLearningRates
from tests.exactness.runs import SETS, TOGETHER, moved, scaled, state_of, train, unequal
from tests.models import CLASSES, MLP, OPTIMIZERS, ZooModel, make_model

EVERY = 3  # batches per step of the generator


class GAN(ZooModel):
    """The discriminator steps in every batch, the generator in every third; keeps the state after every batch."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6))
        self.discriminator = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1))
        self.history: list[dict[str, torch.Tensor]] = []

    def forward(self, x):
        return self.discriminator(self.generator(x))

    def configure_optimizers(self):
        make = OPTIMIZERS[self.optimizer]
        return [make(self.generator.parameters()), make(self.discriminator.parameters())]

    def verdict(self, x, real: bool):
        logits = self.discriminator(x)
        return fn.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def training_step(self, batch, batch_idx):
        generator, discriminator = self.optimizers()
        x = batch[0]
        self.manual_backward(self.verdict(x, True) + self.verdict(self.generator(x.flip(0)).detach(), False))
        discriminator.step()
        discriminator.zero_grad()
        if batch_idx % EVERY == 0:
            self.manual_backward(self.verdict(self.generator(x), True))  # leaves gradients on the discriminator, too
            generator.step()
            generator.zero_grad()
        discriminator.zero_grad()

    def on_train_batch_start(self, batch, batch_idx):
        self.keep()

    def on_train_end(self):
        self.keep()

    def keep(self):
        self.history.append(state_of(self, self.trainer.callbacks, self.trainer.optimizers))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("label", SETS)
def test_a_gan_moves_only_what_steps(label, optimizer):
    model = make_model(GAN, optimizer, double=True)
    train(model, SETS[label](), model.batches(12))
    history = [
        {
            part: {n: t for n, t in state.items() if part in n or n.startswith(f"optimizer {number}")}
            for number, part in enumerate(("generator", "discriminator"))
        }
        for state in model.history
    ]
    for batch, (before, after) in enumerate(itertools.pairwise(history)):
        stepped = ["generator", "discriminator"] if batch % EVERY == 0 else ["discriminator"]
        assert [part for part in before if unequal(before[part], after[part])] == stepped
    assert [state["steps"].tolist() for state in model.history] == [[-(-n // EVERY), n] for n in range(13)]
    assert moved(model.history[0], model.history[-1])


# ---- two networks in one module, and each in a module of its own -----------------------------------------------------


class Pair(ZooModel):
    """Two networks that share nothing; the second steps in every third batch, or not where its loss overflows."""

    overflows: tuple[int, ...] = ()

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.automatic_optimization = False
        self.first, self.second = (
            nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, CLASSES))
            for _ in range(2)
        )

    def forward(self, x):
        return self.first(x) + self.second(x)

    def configure_optimizers(self):
        return [OPTIMIZERS[self.optimizer](part.parameters()) for part in (self.first, self.second)]

    def loss(self, part, batch):
        with torch.autocast("cpu", enabled=False):
            return fn.cross_entropy(part(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        first.zero_grad()
        self.manual_backward(self.loss(self.first, batch))
        first.step()
        if batch_idx % EVERY == 0:
            second.zero_grad()
            self.manual_backward(self.loss(self.second, batch) * (torch.inf if batch_idx in self.overflows else 1.0))
            second.step()


class Overflowing(Pair):
    overflows = (3,)


class Alone(Pair):
    """Only one of them trains, by automatic optimization."""

    trained = ""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.automatic_optimization = True

    def configure_optimizers(self):
        return OPTIMIZERS[self.optimizer](getattr(self, self.trained).parameters())

    def training_step(self, batch, batch_idx):
        return self.loss(getattr(self, self.trained), batch)


class First(Alone):
    trained = "first"


class Second(Alone):
    trained = "second"


@pytest.mark.parametrize(
    ("label", "kind", "arguments"),
    [
        *((label, Pair, {}) for label in SETS),
        *((label, Overflowing, {"plugins": scaled}) for label in TOGETHER),
    ],
)
def test_two_optimizers_train_as_each_does_alone(label, kind, arguments):
    pair = make_model(kind, "adam", double=True)
    batches = pair.batches(18)
    both = train(pair, SETS[label](), batches, **{key: make() for key, make in arguments.items()})
    mine = {
        "first": batches,
        "second": [b for i, b in enumerate(batches) if i % EVERY == 0 and i not in kind.overflows],
    }
    for number, (alone, part) in enumerate(((First, "first"), (Second, "second"))):
        end = train(make_model(alone, "adam", double=True), SETS[label](), mine[part])
        start = state_of(make_model(alone, "adam", double=True), [])
        assert both["steps"][number] == end["steps"][0] == len(mine[part])
        ends = [{name: tensor for name, tensor in state.items() if f" {part}." in name} for state in (both, end, start)]
        assert unequal(*ends[:2]) == []
        assert moved(ends[2], ends[1])


# ---- steps of their own kind -----------------------------------------------------------------------------------------


def test_a_step_with_several_closures_is_one_step():
    class Newton(MLP):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)

    model = make_model(Newton)
    crystal = Crystallization(crystal_thresh=1e9, ignore_zero_grad=False, floor=1e-9, recovery=0.0)
    train(model, [crystal], model.batches(3))
    assert crystal.session.steps == [3]
    assert torch.allclose(crystal.session.store["net.2.weight"]["crystal"], torch.tensor(0.6**3))


def test_a_step_that_lightning_does_not_see_is_refused():
    class Raw(MLP):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx))
            self.optimizers(use_pl_optimizer=False).step()

    model = make_model(Raw)
    with pytest.raises(Exception, match=r"SGD stepped without Lightning.*self\.optimizers\(\)"):
        train(model, [FuzzyLearningRates()], model.batches(1))
