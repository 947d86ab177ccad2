"""What all bio callbacks share: Lightning's hooks, handed on to the session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from bio_lightning.parameters import Parametrized, default_of, parameters
from bio_lightning.plan import decisions
from bio_lightning.session import Session

__all__ = ["BioCallback", "ReadWith"]

#: Settings that are read under some values of another setting only: by key that setting, and these values.
ReadWith = Mapping[str, tuple[str, tuple[object, ...]]]


class BioCallback(Parametrized, pl.Callback):
    """A Lightning callback that joins the session of its Trainer and LightningModule.

    Annotated attributes of subclasses are the constructor's keywords and, by name, the keys of the YAML section.
    """

    #: Section in YAML, first part of tags, stem of files.
    name: ClassVar[str]
    is_mechanism: ClassVar[bool] = False
    #: Whether it asks how old synapses are, so that their births have to be kept.
    reads_ages: ClassVar[bool] = False
    #: Which of its settings only a mode reads that another setting chooses.
    read_with: ClassVar[ReadWith] = {}

    def __post_init__(self) -> None:
        self._session: Session | None = None
        self._restored: dict[str, Any] = {}
        super().__post_init__()

    @property
    def session(self) -> Session:
        """What the bio callbacks of the Trainer share."""
        if self._session is None:
            raise RuntimeError(f"{type(self).__name__} has not been set up by a Trainer")
        return self._session

    def __getstate__(self) -> dict[str, Any]:
        # a copy is a callback that has not been used: a session belongs to one model and one process
        return {field.name: getattr(self, field.name) for field in parameters(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def idle_settings(self) -> Iterator[str]:
        """Settings away from their default that the mode in force does not read: a line for each, with the mode."""
        defaults = {field.name: default_of(field) for field in parameters(self)}
        for key, (mode, values) in self.read_with.items():
            value, now = getattr(self, key), getattr(self, mode)
            if value != defaults[key] and now not in values:
                yield (
                    f"{self.name}.{key}: {_as_yaml(value)} has no effect with {mode}: {_as_yaml(now)}; it is read with"
                    f" {mode}: {', '.join(map(_as_yaml, values))}"
                )

    # ---- Lightning's hooks: the leader runs the session, and afterwards each callback may look ----------------------

    def _leads(self) -> bool:
        return self.session.callbacks[0] is self

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Join the session of a fit; build what must exist before the optimizer."""
        self.build(trainer, pl_module)
        if stage != "fit":
            return
        listed: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined] # set by Lightning's connector
        callbacks = [callback for callback in listed if isinstance(callback, BioCallback)]
        previous = self._session
        self._session = Session.join(pl_module, callbacks)
        if previous is not None and previous is not self._session:
            self._restored = {}
        if self._leads():
            self.session.expect_weights()

    def build(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Change the model's structure, before ``configure_optimizers`` and before a checkpoint is loaded."""

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember that the weights are not fresh, and compare the configurations."""
        resumes = trainer.state.fn == TrainerFn.FITTING and checkpoint["global_step"] > 0  # 0: a tuner's checkpoint
        if resumes and self._leads():
            self.session.resume(checkpoint["callbacks"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find synapses; initialise Dale's signs and split values on a fresh start."""
        if self._leads():
            self.session.begin(trainer)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where the strategy restores late: initialise before the first forward."""
        if self._leads():
            self.session.settle()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the state after every restore."""
        if self._leads():
            self.session.ready()
            for decision in decisions(self.session, trainer.optimizers):
                self.session.tell(decision)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A new step."""
        if self._leads():
            self.session.batch_start()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Crystallization and gradient scaling."""
        if self._leads():
            self.session.after_backward(trainer)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """The same where ``on_after_backward`` is too early."""
        if self._leads():
            self.session.before_optimizer_step(trainer, optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Rejuvenation and Dale's principle."""
        if self._leads():
            self.session.batch_end(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove all hooks from the model."""
        if stage == "fit":
            self._end()
        self._let_go()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove all hooks from the model; ``teardown`` is not called after an exception."""
        self._end()
        self._let_go()

    def _end(self) -> None:
        if self._session is not None and self._leads():
            self.session.end()

    def _let_go(self) -> None:
        """Drop what Lightning binds to the model, which the session must not keep alive."""
        for bound in ("log", "log_dict"):
            self.__dict__.pop(bound, None)


def _as_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
