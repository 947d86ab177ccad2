"""The monitor: logs what the synapses do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import lightning.pytorch as pl
from torch.optim import Optimizer

from bio_lightning.callbacks.base import BioCallback, ReadWith
from bio_lightning.functional._shards import groups_of
from bio_lightning.monitoring import dashboard, loggers
from bio_lightning.monitoring.alerts import Alerts
from bio_lightning.monitoring.figures import figures, require_matplotlib
from bio_lightning.monitoring.histograms import histograms
from bio_lightning.monitoring.probes import Probes
from bio_lightning.monitoring.statistics import Series, Statistics, joined
from bio_lightning.monitoring.views import observed, ranks_of, rates_of, shown_tensors, snapshot
from bio_lightning.parameters import number
from bio_lightning.plan import plan_table
from bio_lightning.synapses import Synapses, select

__all__ = ["BioMonitor"]


class BioMonitor(BioCallback):
    """Log what the synapses do, through whatever loggers the Trainer has.

    A tag is ``bio/<group>/<statistic>/<layer>``: the group is a mechanism, ``plasticity`` (the product of all
    multipliers that acted in the step just done), ``weights`` or ``activity``; the layer is the name of its weight, or
    ``overall``. Numbers are logged when Lightning logs, every ``log_every_n_steps`` steps, on the same axis; where no
    optimizer stepped in that batch, after the next step. Without a logger, or between those steps, nothing is computed.

    ===========================  =====================================  =====================================
    ``<statistic>``              ``<group>``                            unit
    ===========================  =====================================  =====================================
    ``multiplier_mean``          each with multipliers; ``plasticity``  factor on the learning rate
    ``multiplier_std``           the same                               factor on the learning rate
    ``multiplier_min``           the same                               factor on the learning rate
    ``multiplier_max``           the same                               factor on the learning rate
    ``multiplier_quantile_*``    ``plasticity``                         factor on the learning rate
    ``crystallized_fraction``    ``crystallization``                    share of synapses that lost over half
    ``floor_fraction``           ``crystallization``                    share that a hit takes to the floor
    ``replaced_fraction``        ``weight_rejuvenation``                share of synapses, in the last event
    ``replaced_fraction_total``  ``weight_rejuvenation``                share of synapses, in all events
    ``older_than_*``             ``weight_rejuvenation``                share of synapses older than N steps
    ``age_mean``                 ``weight_rejuvenation``                steps
    ``lifetime_steps``           ``weight_rejuvenation``                steps, from the first replacement on
    ``lifetime_per_step``        ``weight_rejuvenation``                share of synapses replaced per step
    ``violations_corrected``     ``dales_principle``                    weights put back, in all steps
    ``violations_per_synapse``   ``dales_principle``                    the same, divided by the synapses
    ``synapse_spread``           ``weight_splitting``                   deviation from a connection's mean factor
    ``firing_rate_mean``         each that reads rates; ``activity``    share of positive inputs
    ``dormant_fraction_tau_*``   ``activity``                           share of units, in the logged step
    ``input_rank_stable``        ``activity``                           directions that a layer reads
    ``input_rank_effective``     ``activity``                           the same
    ``log_weight_mean``          ``weights``                            of ``ln abs(w)``
    ``log_weight_std``           ``weights``                            of ``ln abs(w)``
    ``log_weight_skew``          ``weights``                            0: log-normal
    ``excitation``               ``weights``                            mean positive weight per synapse
    ``inhibition``               ``weights``                            mean negative weight per synapse
    ``balance``                  ``weights``                            -1 inhibition alone, 1 excitation alone
    ``excitatory_fraction``      ``weights``                            share of weights that are not 0
    ``rank_stable``              ``weights``                            directions, at most min(out, in)
    ``rank_effective``           ``weights``                            the same
    ``update_ratio``             ``weights``; tetzlaff's rule           length of the step over that of weights
    ``gradient_ratio``           ``weights``                            length of the gradient over the same
    ===========================  =====================================  =====================================

    What is drawn anew each step is computed again for the log, from the weights after the step. Outside its schedule a
    mechanism still reports what it keeps; a ``plasticity`` of 1 then says that nothing acts. ``activity`` is what the
    forwards of the logged step show. Gradients are those that the optimizer gets, before clipping; an update is what
    optimizer and multipliers made of them, before rejuvenation and Dale's principle.

    When training starts, a table says once which mechanisms act on which layers, and what memory that takes; see
    :func:`bio_lightning.plan.plan_table`. TensorBoard also gets a custom-scalars layout, and the configuration as text
    and as hyperparameters, which every logger gets.

    Args:
        include: fnmatch patterns on qualified parameter or module names: layers with a series of their own, which
            ``overall`` combines; a bare string is one pattern.
        exclude: Patterns to leave out again.
        histogram_every_n_steps: Steps between histograms of weights, multipliers, firing rates and ages, >= 1, for
            TensorBoard and W&B; null for none.
        rank_every_n_steps: Steps between ranks, >= 1, which take a decomposition of every layer; null for none.
        figure_every_n_epochs: Epochs between figures, >= 1, for TensorBoard, W&B, MLflow and a CSV's folder; null for
            none. They need matplotlib: ``pip install "bio_lightning[figures]"``.
        alerts: Warn, once for each layer, of what may be unwanted: synapses crystallized at the floor, dormant units,
            a turnover that stalls, a mechanism without effect.
        alert_share: Share of a layer beyond which the first two of these are worth a warning, in [0, 1].
        alert_patience: Steps after which the other two are, >= 1.

    Raises:
        BioConfigError: A pattern matches nothing, a value is out of range, or figures are asked for and matplotlib is
            not installed.

    Warns:
        SynapseWarning: See ``alerts``.

    Example:
        >>> BioMonitor(exclude=("head",), histogram_every_n_steps=100).include
        ('*',)
    """

    name: ClassVar[str] = "bio_monitor"
    reads_ages: ClassVar[bool] = True
    read_with: ClassVar[ReadWith] = dict.fromkeys(("alert_share", "alert_patience"), ("alerts", (True,)))

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    histogram_every_n_steps: int | None = number(1000, ge=1)
    rank_every_n_steps: int | None = number(10_000, ge=1)
    figure_every_n_epochs: int | None = number(None, ge=1)
    alerts: bool = True
    alert_share: float = number(0.5, ge=0, le=1)
    alert_patience: int = number(1000, ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.figure_every_n_epochs is not None:
            require_matplotlib("figure_every_n_epochs", self.figure_every_n_epochs)
        self._layers: list[Synapses] = []
        self._statistics = Statistics([])
        self._probes: Probes | None = None
        self._alerts: Alerts | None = None
        self._turnover: dict[str, list[tuple[int, float]]] = {}
        self._is_sharded = False
        self._due = dict.fromkeys(("numbers", "ranks", "histograms"), False)

    # ---- start and end ----------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Describe the run, before Lightning logs its own hyperparameters."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero and trainer.loggers:
            configuration = dashboard.configuration(self.session.callbacks)
            loggers.log_run(
                trainer.loggers,
                dashboard.hyperparameters(dashboard.configuration(self.session.mechanisms)),  # what changes training
                module=pl_module.hparams_initial if pl_module._log_hyperparams else {},
                text=dashboard.as_text(configuration),
                layout=dashboard.layout(self.session.mechanisms),
                headlines=dashboard.headlines(self.session.mechanisms),
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the layers, and prepare to look at them."""
        super().on_fit_start(trainer, pl_module)
        self._layers, _ = select(self.session.synapses, self.include, self.exclude, owner=self.name)
        self._is_sharded = any(groups_of(layer.weight) for layer in self._layers)
        self._statistics = Statistics(self._layers)
        self._alerts = Alerts(self.session, self.alert_share, self.alert_patience) if self.alerts else None
        self._turnover.clear()
        self._due.update(dict.fromkeys(self._due, False))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say which mechanism acts where."""
        super().on_train_start(trainer, pl_module)
        if self.session.mechanisms:
            self.session.tell(f"what acts where\n{plan_table(self.session)}")
        if trainer.loggers:
            self._probes = Probes(self.session, self._layers, self._statistics)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave no hook behind."""
        self._remove_probes()
        super().teardown(trainer, pl_module, stage)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._remove_probes()
        super().on_exception(trainer, pl_module, exception)

    def _remove_probes(self) -> None:
        if self._probes is not None:
            self._probes.remove()
            self._probes = None

    # ---- one training step: every rank decides alike ----------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at the step that begins, where it will be logged."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._probes is None:
            return
        count = _batches_that_stepped(trainer) + 1
        self._due["numbers"] |= _lightning_logs(trainer, count)
        self._due["ranks"] |= _falls_on(count, self.rank_every_n_steps)
        if _falls_on(count, self.histogram_every_n_steps):
            self._due["histograms"] |= any(map(loggers.takes_histograms, trainer.loggers))
        if any(self._due.values()):
            moves = self._due["numbers"] and self._looks(trainer)
            self._probes.open(moves=moves, ranks=self._due["ranks"])

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the gradients."""
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self._probes is not None:
            self._probes.see_gradients(trainer, optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, where it is due."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._probes is None or not any(self._due.values()) or not self.session.stepped:
            return
        self._log(trainer, self._probes, _batches_that_stepped(trainer))
        self._probes.close()
        self._due.update(dict.fromkeys(self._due, False))

    def _log(self, trainer: pl.Trainer, probes: Probes, step: int) -> None:
        activity = probes.activity()
        if not self._looks(trainer):
            return
        numbers = self._statistics.by_tag(joined(self._chosen(activity, probes)))
        shown = shown_tensors(self.session, self._layers) if self._due["histograms"] else {}
        if not trainer.is_global_zero:
            return
        loggers.log_numbers(trainer.loggers, numbers, step)
        if self._alerts is not None:
            self._alerts.look(numbers)
        if self.figure_every_n_epochs is not None:
            self._remember(numbers, step)
        if self._due["histograms"]:
            loggers.log_histograms(trainer.loggers, histograms({**shown, **rates_of(activity)}), step)

    def _looks(self, trainer: pl.Trainer) -> bool:
        """Whether this rank looks at weights: of whole ones all ranks know the same, of shards each knows its own."""
        return trainer.is_global_zero or self._is_sharded

    def _chosen(self, activity: Series, probes: Probes) -> Iterable[Series]:
        """The series that are due."""
        if self._due["ranks"]:
            yield {key: layers for key, layers in activity.items() if key[1] == "input_rank"}
            matrices = [layer for layer in self._layers if layer.weight.ndim > 1]
            yield self._statistics.series((layer, ranks_of(layer)) for layer in matrices)
        if self._due["numbers"]:
            yield {key: layers for key, layers in activity.items() if key[1] != "input_rank"}
            yield probes.moves()
            yield self._statistics.series((layer, observed(self.session, layer)) for layer in self._layers)

    # ---- figures ----------------------------------------------------------------------------------------------------

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, where it is due."""
        due = _falls_on(trainer.current_epoch + 1, self.figure_every_n_epochs)
        if not due or not self._looks(trainer) or not any(map(loggers.takes_figures, trainer.loggers)):
            return
        seen = snapshot(self.session, self._layers, self._turnover)
        if trainer.is_global_zero:
            loggers.log_figures(trainer.loggers, figures(seen), _batches_that_stepped(trainer) - 1)

    def _remember(self, numbers: dict[str, float], step: int) -> None:
        """The course of turnover."""
        for tag, value in numbers.items():
            statistic, layer = tag.split("/", 3)[2:]
            if statistic == "replaced_fraction_total":
                self._turnover.setdefault(layer, []).append((step, value))


def _batches_that_stepped(trainer: pl.Trainer) -> int:
    """The axis of Lightning's own logs."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def _lightning_logs(trainer: pl.Trainer, count: int) -> bool:
    """Whether Lightning logs in a batch, which is the count-th that steps."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined] # set by Lightning's setup
        return True
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined] # set by Lightning's connector
    return every > 0 and count % every == 0


def _falls_on(count: int, every: int | None) -> bool:
    return every is not None and count % every == 0
