"""What each logger gets: real CSV files; Lightning's own W&B and MLflow loggers, with stand-ins for what they call."""

from __future__ import annotations

import csv
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers import mlflow as lightning_mlflow
from lightning.pytorch.loggers import wandb as lightning_wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bio_lightning import BioMonitor
from tests.callbacks.test_bio_monitor import Recorder
from tests.cases import all_on
from tests.models import fit, make_model

LAYERS = ("net.0.weight", "net.2.weight", "net.4.weight")
FIGURES = {f"bio/figures/{name}" for name in ("overview", "excitation_and_inhibition", "weight_against_multiplier",
                                              "turnover")}  # fmt: skip
HISTOGRAMS = {
    f"bio/{what}/{layer}"
    for what in ("weights/weight", "plasticity/multiplier", "activity/firing_rate", "weight_rejuvenation/age")
    for layer in LAYERS
}


def train(*loggers):
    """A run in which everything is due; the numbers that any logger gets, by step."""
    recorder = Recorder()
    monitor = BioMonitor(alerts=False, histogram_every_n_steps=3, rank_every_n_steps=3, figure_every_n_epochs=1)
    fit(make_model("MLP"), [*all_on(), monitor], logger=[*loggers, recorder], log_every_n_steps=2)
    return dict(recorder.bio)


# ---- W&B -------------------------------------------------------------------------------------------------------------


class Histogram:
    """As wandb's, which takes what ``numpy.histogram`` gives, and at most 512 bins."""

    def __init__(self, sequence=None, np_histogram=None, num_bins=64):
        assert sequence is None
        self.histogram, self.bins = np_histogram
        assert len(self.bins) == len(self.histogram) + 1 <= 513


class Image:
    """As wandb's, which takes a matplotlib figure among others."""

    def __init__(self, data_or_path, mode=None, caption=None):
        assert data_or_path.savefig
        self.figure = data_or_path


class Run:
    """As wandb's."""

    def __init__(self):
        self.logged, self.config = [], types.SimpleNamespace(update=self.configure)

    def configure(self, params, allow_val_change=None):
        assert allow_val_change
        self.params = dict(params)

    def log(self, data, step=None, commit=None):
        assert all(isinstance(key, str) for key in data)
        self.logged.append(data)

    def of(self, kind):
        return {
            (tag, data["trainer/global_step"]): value
            for data in self.logged
            for tag, value in data.items()
            if isinstance(value, kind)
        }


@pytest.fixture
def wandb(monkeypatch):
    module = types.ModuleType("wandb")
    module.Histogram, module.Image, module.run = Histogram, Image, None
    lib, run = types.ModuleType("wandb.sdk.lib"), types.ModuleType("wandb.wandb_run")
    lib.RunDisabled, run.Run = type("RunDisabled", (), {}), Run
    for each in (module, types.ModuleType("wandb.sdk"), lib, run):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    monkeypatch.setattr(lightning_wandb, "_WANDB_AVAILABLE", True)
    return Run()


def test_wandb_gets_numbers_histograms_figures_and_configuration(wandb):
    numbers = train(WandbLogger(experiment=wandb))
    scalars = wandb.of(float)
    assert scalars == {(tag, step): value for step, row in numbers.items() for tag, value in row.items()}
    histograms = wandb.of(Histogram)
    assert set(histograms) == {(tag, step) for tag in HISTOGRAMS for step in (2, 5)}
    assert sum(histograms["bio/weights/weight/net.0.weight", 2].histogram) == 2 * 96
    assert {(tag, step) for tag, step in wandb.of(list) if isinstance(wandb.of(list)[tag, step][0], Image)} == {
        (tag, 5) for tag in FIGURES
    }
    assert wandb.params["crystallization.floor"] == 0.05
    assert wandb.params["weight_rejuvenation.every_n_steps"] == 2


# ---- MLflow ----------------------------------------------------------------------------------------------------------


class Client:
    """As mlflow's ``MlflowClient``, which refuses more than 1,000 metrics or 100 parameters at a time."""

    def __init__(self, tracking_uri=None):
        self.metrics, self.params, self.figures = [], {}, {}

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id="1", lifecycle_stage="active")

    def create_run(self, experiment_id, tags=None):
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="run"))

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        assert run_id == "run"
        assert len(metrics) <= 1000
        assert len(params) <= 100
        self.metrics += metrics
        self.params.update({param.key: param.value for param in params})

    def log_figure(self, run_id, figure, artifact_file):
        assert run_id == "run"
        assert figure.savefig
        self.figures[artifact_file] = figure

    def get_run(self, run_id):
        return None


@pytest.fixture
def mlflow(monkeypatch):
    def module(name, **attributes):
        made = types.ModuleType(name)
        vars(made).update(attributes)
        monkeypatch.setitem(sys.modules, name, made)

    record = types.SimpleNamespace
    module("mlflow", set_tracking_uri=lambda uri: None)
    module("mlflow.tracking", MlflowClient=Client, context=None)
    module("mlflow.entities", Metric=record, Param=record)
    module("mlflow.utils")
    module("mlflow.utils.mlflow_tags", MLFLOW_RUN_NAME="mlflow.runName")
    monkeypatch.setattr(lightning_mlflow, "_MLFLOW_AVAILABLE", True)
    monkeypatch.setattr(lightning_mlflow, "_get_resolve_tags", lambda: lambda tags: tags)


@pytest.mark.usefixtures("mlflow")
def test_mlflow_gets_numbers_figures_and_configuration(tmp_path):
    logger = MLFlowLogger(save_dir=str(tmp_path))
    numbers = train(logger)
    client = logger.experiment
    logged = {(metric.key, metric.step): metric.value for metric in client.metrics}
    assert logged == {(tag, step): value for step, row in numbers.items() for tag, value in row.items()}
    assert set(client.figures) == {f"{tag}/00000005.png" for tag in FIGURES}
    assert client.params["crystallization.floor"] == "0.05"


@pytest.mark.usefixtures("mlflow")
def test_mlflow_gets_no_more_at_a_time_than_it_takes(tmp_path):
    from bio_lightning.monitoring.loggers import log_numbers

    logger = MLFlowLogger(save_dir=str(tmp_path))
    log_numbers([logger], {f"bio/weights/balance/{number}": 0.5 for number in range(2345)}, 7)
    assert len(logger.experiment.metrics) == 2345


# ---- CSV, and what knows nothing -------------------------------------------------------------------------------------


def test_csv_gets_numbers_figures_and_configuration(tmp_path):
    logger = CSVLogger(tmp_path, name="run", version=0, flush_logs_every_n_steps=1)
    numbers = train(logger)
    logger.finalize("success")
    folder = Path(logger.log_dir)
    with open(folder / "metrics.csv", newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert rows.keys() == numbers.keys()
    for step, row in numbers.items():
        assert {tag: float(rows[step][tag]) for tag in row} == pytest.approx(row, rel=1e-6)
    for tag in FIGURES:
        assert (folder / tag / "00000005.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((folder / "hparams.yaml").read_text())["crystallization.floor"] == 0.05


def test_other_loggers_get_numbers_alone():
    numbers = train()
    assert sorted(numbers) == [1, 2, 3, 5]
    assert all(type(value) is float and not np.isinf(value) for row in numbers.values() for value in row.values())
    assert {tag.split("/")[2] for tag in numbers[2]} == {"rank_stable", "rank_effective", "input_rank_stable",
                                                        "input_rank_effective"}  # fmt: skip


def test_tensorboard_puts_its_prefix_in_front(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run", version=0, prefix="first")
    fit(make_model("MLP"), [BioMonitor()], steps=1, logger=logger, log_every_n_steps=1)
    logger.experiment.close()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert "first-bio/weights/balance/overall" in events.Tags()["scalars"]
    assert "bio/weights/balance/overall" not in events.Tags()["scalars"]
