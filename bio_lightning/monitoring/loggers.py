"""Which logger takes what: histograms, figures, the configuration and the dashboard; the rest is left out there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from torch.utils.tensorboard.summary import Summary, hparams  # type: ignore[attr-defined] # tensorboard's own

from bio_lightning.monitoring.histograms import Histogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CONFIGURATION",
    "log_figures",
    "log_histograms",
    "log_numbers",
    "log_run",
    "takes_figures",
    "takes_histograms",
]

#: MLflow refuses more numbers at a time.
_MLFLOW_BATCH = 1000
#: Tag of the configuration as text.
CONFIGURATION = "bio/configuration"


def takes_histograms(logger: Logger) -> bool:
    """Whether a logger shows histograms: TensorBoard's and W&B's do."""
    return isinstance(logger, (TensorBoardLogger, WandbLogger))


def takes_figures(logger: Logger) -> bool:
    """Whether a logger keeps pictures: TensorBoard's, W&B's and MLflow's do, and beside a CSV there is room."""
    return isinstance(logger, (TensorBoardLogger, WandbLogger, MLFlowLogger, CSVLogger))


def log_numbers(loggers: Iterable[Logger], numbers: Mapping[str, float], step: int) -> None:
    """Hand numbers to every logger.

    Args:
        loggers: The Trainer's.
        numbers: By tag.
        step: On the axis of Lightning's own logs.
    """
    items = list(numbers.items())
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and _takes_tags_as_they_are(logger):
            # as one event: a writer takes as long for one number as for all of them
            values = [Summary.Value(tag=tag, simple_value=number) for tag, number in items]
            logger.experiment._get_file_writer().add_summary(Summary(value=values), step)
            continue
        size = _MLFLOW_BATCH if isinstance(logger, MLFlowLogger) else max(len(items), 1)
        for first in range(0, len(items), size):
            logger.log_metrics(dict(items[first : first + size]), step=step)


def _takes_tags_as_they_are(logger: TensorBoardLogger) -> bool:
    return type(logger).log_metrics is TensorBoardLogger.log_metrics and not logger._prefix


def log_histograms(loggers: Iterable[Logger], histograms: Mapping[str, Histogram], step: int) -> None:
    """Hand histograms to every logger that shows them.

    Args:
        loggers: The Trainer's.
        histograms: By tag.
        step: On the axis of Lightning's own logs.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for tag, histogram in histograms.items():
                _add_histogram(logger.experiment, tag, histogram, step)
        elif isinstance(logger, WandbLogger):
            import wandb

            shown: dict[str, Any] = {
                tag: wandb.Histogram(np_histogram=(each.counts, each.edges)) for tag, each in histograms.items()
            }
            logger.log_metrics(shown, step=step)


def log_figures(loggers: Iterable[Logger], figures: Mapping[str, Figure], step: int) -> None:
    """Hand figures to every logger that keeps them.

    MLflow gets artifacts ``<tag>/<step>.png``, and a CSV's folder the same files.

    Args:
        loggers: The Trainer's.
        figures: By tag.
        step: On the axis of Lightning's own logs.
    """
    for logger in loggers:
        for tag, figure in figures.items():
            file = f"{tag}/{step:08}.png"
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(tag, figure, step)
            elif isinstance(logger, WandbLogger):
                logger.log_image(tag, [figure], step=step)
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_figure(logger.run_id, figure, file)
            elif isinstance(logger, CSVLogger):
                path = Path(logger.log_dir, file)
                path.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(path)


def log_run(
    loggers: Iterable[Logger],
    parameters: Mapping[str, Any],
    *,
    module: Mapping[str, Any],
    text: str,
    layout: Mapping[str, Any],
    headlines: Iterable[str],
) -> None:
    """Describe a run to every logger: hyperparameters to all, the rest to TensorBoard.

    Args:
        loggers: The Trainer's.
        parameters: Flat hyperparameters of the bio callbacks.
        module: Hyperparameters that Lightning logs by itself. TensorBoard reads the first list of a run only, so that
            both have to be in it.
        text: The configuration.
        layout: Of the custom-scalars tab.
        headlines: Tags by which the HParams tab compares runs.
    """
    for logger in loggers:
        if not isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(parameters))
            continue
        logger.log_hyperparams(dict(parameters), metrics={})  # hparams.yaml alone
        writer = logger.experiment
        writer.add_text(CONFIGURATION, f"```yaml\n{text}\n```", 0)
        writer.add_custom_scalars(layout)
        together = {**logger._sanitize_params(dict(module)), **parameters}
        together = {key: str(value) if isinstance(value, bool) else value for key, value in together.items()}  # not 1.0
        make: Any = hparams  # torch gives it no types
        for summary in make(together, dict.fromkeys(headlines, 0.0)):
            writer._get_file_writer().add_summary(summary, 0)


def _add_histogram(writer: Any, tag: str, histogram: Histogram, step: int) -> None:
    """TensorBoard gives a bin's right border, and needs an empty bin for the first left one."""
    writer.add_histogram_raw(
        tag,
        min=histogram.edges[0],
        max=histogram.edges[-1],
        num=sum(histogram.counts),
        sum=histogram.total,
        sum_squares=histogram.squares,
        bucket_limits=histogram.edges,
        bucket_counts=[0.0, *histogram.counts],
        global_step=step,
    )
