"""The monitor: logs what the synapses do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from bio_lightning.callbacks.base import BioCallback
from bio_lightning.callbacks.mechanism import Observables
from bio_lightning.functional._shards import groups_of, whole
from bio_lightning.metrics import CrystallizedFraction, FiringRate, MultiplierSpread, SignViolations, Turnover
from bio_lightning.plan import plan_table
from bio_lightning.session import Session
from bio_lightning.synapses import Synapses, select

__all__ = ["METRICS", "BioMonitor"]

#: What turns the observables of a mechanism into statistics, by family: the first part of the statistic's name.
METRICS: dict[str, type[Metric]] = {
    "multiplier": MultiplierSpread,
    "crystallized_fraction": CrystallizedFraction,
    "replaced": Turnover,
    "violations": SignViolations,
    "firing_rate_mean": FiringRate,
}
_OVERALL = "overall"


class BioMonitor(BioCallback):
    """Log what every mechanism does, through whatever loggers the Trainer has.

    A tag is ``bio/<mechanism>/<statistic>/<layer>``, the layer being the name of its weight, or ``overall``. It is
    logged when Lightning logs, every ``log_every_n_steps`` steps, on the same axis; where no optimizer stepped in that
    batch, after the next step. Without a logger, or between those steps, nothing is computed.

    ===========================  =====================================  =====================================
    ``<statistic>``              ``<mechanism>``                        unit
    ===========================  =====================================  =====================================
    ``multiplier_mean``          each with multipliers; ``plasticity``  factor on the learning rate
    ``multiplier_std``           the same                               factor on the learning rate
    ``multiplier_min``           the same                               factor on the learning rate
    ``multiplier_max``           the same                               factor on the learning rate
    ``crystallized_fraction``    ``crystallization``                    share of synapses that lost over half
    ``replaced_fraction``        ``weight_rejuvenation``                share of synapses, in the last event
    ``replaced_fraction_total``  ``weight_rejuvenation``                share of synapses, in all events
    ``violations_corrected``     ``dales_principle``                    weights put back, in all steps
    ``violations_per_synapse``   ``dales_principle``                    the same, divided by the synapses
    ``firing_rate_mean``         each that reads firing rates           share of positive inputs
    ===========================  =====================================  =====================================

    ``plasticity`` is the product of all multipliers that acted in the step just done. What is drawn anew each step is
    computed again for the log, from the weights after the step. Outside its schedule a mechanism still reports what it
    keeps; a ``plasticity`` of 1 then says that nothing acts.

    When training starts, a table says once which mechanisms act on which layers, and what memory that takes; see
    :func:`bio_lightning.plan.plan_table`.

    Args:
        include: fnmatch patterns on qualified parameter or module names: layers with a series of their own, which
            ``overall`` combines; a bare string is one pattern.
        exclude: Patterns to leave out again.

    Raises:
        BioConfigError: A pattern matches nothing.

    Example:
        >>> BioMonitor(exclude=("head",)).include
        ('*',)
    """

    name: ClassVar[str] = "bio_monitor"

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._names: list[str] = []
        self._metrics: dict[tuple[str, str, str], Metric] = {}
        self._due = False
        self._is_sharded = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the layers."""
        super().on_fit_start(trainer, pl_module)
        chosen, _ = select(self.session.synapses, self.include, self.exclude, owner=self.name)
        self._names = [synapses.name for synapses in chosen]
        self._is_sharded = any(groups_of(synapses.weight) for synapses in chosen)
        self._metrics.clear()
        self._due = False
        if not self.session.mechanisms:
            self.session.tell("BioMonitor has nothing to log: no mechanism is on")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say which mechanism acts where."""
        super().on_train_start(trainer, pl_module)
        if self.session.mechanisms:
            self.session.tell(f"what acts where\n{plan_table(self.session)}")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, where it is due."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # every rank knows the same of a weight, unless each holds a shard of it
        if not trainer.loggers or not (trainer.is_global_zero or self._is_sharded):
            return
        self._due = self._due or _lightning_logs(trainer)
        if self._due and self.session.stepped:
            self._due = False
            self._log(trainer)

    def _log(self, trainer: pl.Trainer) -> None:
        statistics = self._statistics()
        if statistics and trainer.is_global_zero:
            # one transfer for all of them
            values = torch.stack(list(statistics.values())).tolist()
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            for logger in trainer.loggers:
                logger.log_metrics(dict(zip(statistics, values, strict=True)), step=step)

    @torch.no_grad()
    def _statistics(self) -> dict[str, Tensor]:
        """0-dim float64 tensors by tag."""
        series: dict[tuple[str, str], dict[str, Metric]] = {}
        for name in self._names:
            synapses = self.session.synapses[name]
            for mechanism, observed in _observed(self.session, synapses):
                for family, values in observed.items():
                    metric = self._metric(mechanism, family, synapses)
                    metric.update(*(whole(value) if isinstance(value, Tensor) else value for value in values))
                    series.setdefault((mechanism, family), {})[name] = metric
        for metrics in series.values():
            metrics[_OVERALL] = _merged(metrics.values())
        return {
            f"bio/{mechanism}/{statistic}/{layer}": value
            for (mechanism, family), metrics in series.items()
            for layer, metric in metrics.items()
            for statistic, value in _named(family, metric.compute())
        }

    def _metric(self, mechanism: str, family: str, synapses: Synapses) -> Metric:
        """An empty metric; kept from one log to the next, since making one costs more than its maths."""
        key = (mechanism, family, synapses.name)
        if key not in self._metrics:
            # rank zero alone computes: there is nobody to wait for
            self._metrics[key] = METRICS[family](sync_on_compute=False).to(synapses.weight.device)
        self._metrics[key].reset()
        return self._metrics[key]


def _lightning_logs(trainer: pl.Trainer) -> bool:
    """Whether Lightning logs in this batch."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined] # set by Lightning's setup
        return True
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined] # set by Lightning's connector
    return every > 0 and (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % every == 0


def _observed(session: Session, synapses: Synapses) -> Iterator[tuple[str, Observables]]:
    """What each mechanism on a weight has to report, and what their factors on its learning rate come to."""
    acting = session.acting(synapses)
    for mechanism in acting:
        yield mechanism.name, mechanism.observables(session, synapses)
    scaling = [mechanism for mechanism in acting if mechanism.scales_learning]
    if scaling:
        weight = synapses.weight
        parts = session.parts(synapses, max(session.step_of(synapses) - 1, 0))
        factor = session.plasticity.factor(parts, weight.detach())
        yield "plasticity", {"multiplier": (torch.ones_like(weight) if factor is None else factor,)}


def _merged(metrics: Iterable[Metric]) -> Metric:
    """One metric that has seen what all of them have seen."""
    first, *others = metrics
    merged = first.clone()
    for metric in others:
        merged.merge_state(metric)
    return merged


def _named(family: str, computed: Tensor | dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names of statistics and their values."""
    if isinstance(computed, Tensor):
        yield family, computed
    else:
        for key, value in computed.items():
            yield f"{family}_{key}", value
