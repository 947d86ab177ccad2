"""One training run, and what is kept of it."""

from __future__ import annotations

import dataclasses
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric

from bio_lightning import fold, multipliers
from bio_lightning.callbacks import Mechanism
from bio_lightning.metrics import CrystallizedFraction, MultiplierSpread, SignViolations, Turnover
from data import Images
from models import Classifier

__all__ = ["WARM_UP_STEPS", "Recorder", "Run", "Settings", "train"]

#: Steps that the time per step leaves out: the first ones allocate and compile.
WARM_UP_STEPS = 20
#: Tests per run at least, so that even one epoch gives a curve.
TESTS_PER_RUN = 10
#: Metrics of what mechanisms report, by what they call it.
SYNAPSE_METRICS = {"crystallized_fraction": CrystallizedFraction, "replaced": Turnover, "violations": SignViolations}
#: Rows of the table about synapses: metric, and which of its values.
SYNAPSE_ROWS = {
    "multiplier std": ("multiplier", "std"),
    "multiplier min": ("multiplier", "min"),
    "multiplier max": ("multiplier", "max"),
    "turnover (share of synapses)": ("replaced", "fraction_total"),
    "crystallized share": ("crystallized_fraction", None),
    "Dale violations corrected": ("violations", "corrected"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What both runs of a pair have in common.

    Args:
        model: Name of the network.
        optimizer: Name of the optimizer.
        lr: Learning rate; None for the optimizer's usual one.
        epochs: Number of epochs.
        batch_size: Images per step.
        accelerator: Lightning's name of the device.
    """

    model: str = "mlp"
    optimizer: str = "sgd"
    lr: float | None = None
    epochs: int = 20
    batch_size: int = 32
    accelerator: str = "cpu"


@dataclasses.dataclass
class Run:
    """What a run leaves for the table and the figure.

    Args:
        steps: Steps done at each test.
        train_losses: Mean training loss since the test before.
        test_accuracies: Test accuracy.
        statistics: Numbers for the table, by row; a row that does not apply is absent.
        weights: Trained weights, by parameter name; splits are merged.
        multipliers: Multipliers of the weights that have one.
    """

    steps: list[int]
    train_losses: list[float]
    test_accuracies: list[float]
    statistics: dict[str, float]
    weights: dict[str, Tensor]
    multipliers: dict[str, Tensor]


class Recorder(pl.Callback):
    """Keeps learning curves, the duration of every step, and in the end what became of the synapses.

    It has to be the last callback, so that the duration of a step includes all others.
    """

    def __init__(self) -> None:
        self.multipliers: dict[str, Tensor] = {}
        self.synapse_statistics: dict[str, float] = {}
        self.steps: list[int] = []
        self.train_losses: list[float] = []
        self.test_accuracies: list[float] = []
        self.durations: list[float] = []
        self._losses: list[Tensor] = []
        self._started = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Stop it."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.durations.append(time.perf_counter() - self._started)
        self._losses.append(outputs["loss"].detach())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A point of the curves."""
        self.steps.append(trainer.global_step)
        self.train_losses.append(float(torch.stack(self._losses).mean()))
        self.test_accuracies.append(float(trainer.callback_metrics["accuracy/test"]))
        self._losses.clear()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Synapses, before Lightning moves the model off its device."""
        mechanisms = [callback for callback in trainer.callbacks if isinstance(callback, Mechanism)]
        if mechanisms:
            self.multipliers = {name: multiplier.cpu() for name, multiplier in multipliers(pl_module).items()}
        self.synapse_statistics = synapse_statistics(mechanisms, self.multipliers)


def train(
    settings: Settings, images: Images, callbacks: Sequence[pl.Callback], seed: int, folder: Path, name: str
) -> Run:
    """Train a fresh network; equal seeds give equal networks and equal batches, whatever the callbacks.

    Args:
        settings: What is trained, and how.
        images: The data.
        callbacks: None for a plain run.
        seed: Of initialisation and order of the data.
        folder: Where TensorBoard's log goes, in a subfolder ``name``.
        name: Of the run.
    """
    warnings.filterwarnings("ignore", "The '.*' does not have many workers")  # the data lie in memory already
    pl.seed_everything(seed, verbose=False)
    model = Classifier(settings.model, images.shape, images.classes, settings.optimizer, settings.lr)
    loader = DataLoader(images.train, settings.batch_size, shuffle=True)
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator=settings.accelerator,
        devices=1,
        max_epochs=settings.epochs,
        callbacks=[*callbacks, recorder],
        logger=TensorBoardLogger(folder, name, version=seed, default_hp_metric=False),
        log_every_n_steps=min(10, len(loader)),
        val_check_interval=max(1, len(loader) * min(settings.epochs, TESTS_PER_RUN) // TESTS_PER_RUN),
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader, DataLoader(images.test, batch_size=1000))
    return _keep(recorder, model.cpu().eval(), images)


def _keep(recorder: Recorder, model: Classifier, images: Images) -> Run:
    train_loss, train_accuracy = evaluate(model, images.train)
    test_loss, test_accuracy = evaluate(model, images.test)
    timed = recorder.durations[WARM_UP_STEPS:] or recorder.durations
    return Run(
        steps=recorder.steps,
        train_losses=recorder.train_losses,
        test_accuracies=recorder.test_accuracies,
        statistics={
            "train loss": train_loss,
            "train accuracy": train_accuracy,
            "test loss": test_loss,
            "test accuracy": test_accuracy,
            **recorder.synapse_statistics,
            "time per step (ms)": 1000 * statistics.median(timed),
        },
        weights={name: weight.detach() for name, weight in fold(model).named_parameters() if weight.ndim > 1},
        multipliers=recorder.multipliers,
    )


@torch.no_grad()
def evaluate(model: Classifier, images: TensorDataset) -> tuple[float, float]:
    """Mean loss and accuracy of a trained model."""
    loss, correct = 0.0, 0
    for batch, labels in DataLoader(images, batch_size=1000):
        logits = model(batch)
        loss += float(cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(dim=1) == labels).sum())
    return loss / len(images), correct / len(images)


def synapse_statistics(mechanisms: Sequence[Mechanism], found: dict[str, Tensor]) -> dict[str, float]:
    """What became of the synapses, by row of the table.

    Args:
        mechanisms: Mechanisms of a run, at its end.
        found: Multipliers by parameter name.
    """
    metrics: dict[str, Metric] = {}
    for multiplier in found.values():
        metrics.setdefault("multiplier", MultiplierSpread()).update(multiplier)
    for mechanism in mechanisms:
        for synapses in mechanism.targets.values():
            observed = mechanism.observables(mechanism.session, synapses)
            for family in SYNAPSE_METRICS.keys() & observed:
                metric = metrics.setdefault(family, SYNAPSE_METRICS[family]().to(synapses.weight.device))
                metric.update(*observed[family])
    values = {family: metric.compute() for family, metric in metrics.items()}
    return {
        row: float(values[family][key] if key else values[family])
        for row, (family, key) in SYNAPSE_ROWS.items()
        if family in values
    }
