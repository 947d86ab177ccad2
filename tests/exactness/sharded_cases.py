"""What one group of processes runs with weights in shards, and one process with whole ones on the same batches."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode

from bio_lightning import BioMonitor, WeightSplitting, kernels, plasticity
from bio_lightning.callbacks import BioCallback, bio_monitor
from bio_lightning.monitoring import loggers
from bio_lightning.monitoring.figures import Snapshot
from bio_lightning.monitoring.histograms import Histogram
from bio_lightning.session import Session
from tests.cases import CASES as MECHANISM_CASES
from tests.exactness.resuming import Shuffled
from tests.exactness.runs import MODELS, SETS, TOGETHER, state_of, train
from tests.models import CLASSES, MLP, ZooModel, make_model, make_trainer

GLOBAL_BATCH = 12


def fully_sharded(kind: type[ZooModel]) -> type[ZooModel]:
    """The model with FSDP2 where there is more than one process."""

    def configure_model(self: ZooModel) -> None:
        if self.device_mesh is not None:
            for layer in self.modules():
                if kind is MLP and isinstance(layer, nn.Linear):  # layer by layer, as one does with large ones
                    fully_shard(layer, mesh=self.device_mesh["data_parallel"])
            fully_shard(self, mesh=self.device_mesh["data_parallel"])

    return type(f"FullySharded{kind.__name__}", (kind,), {"configure_model": configure_model})


class Uneven(ZooModel):
    """Rows that do not divide by two or three, and shards without any."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.net = nn.Sequential(nn.Linear(6, 15), nn.ReLU(), nn.Linear(15, 11), nn.ReLU())
        self.head, self.gain = nn.Linear(11, CLASSES), nn.Linear(11, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(x)
        return self.head(x) * (1 + self.gain(x))


class Validating(Uneven):
    """FSDP2 leaves the weights of its outermost group whole after a forward that no backward follows."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.register_buffer("validated", torch.zeros(()))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validated += self(torch.ones_like(batch[0][:1])).sum()  # also before training: of Dale's weights


class TensorParallel(MLP):
    """The first layer is cut by its neurons, the second by its inputs; with more processes than two also by FSDP2."""

    hands_on_tensors = True

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            plan = {"net.0": ColwiseParallel(use_local_output=self.hands_on_tensors), "net.2": RowwiseParallel()}
            parallelize_module(self, self.device_mesh["tensor_parallel"], plan)
            if self.device_mesh["data_parallel"].size() > 1:
                fully_shard(self, mesh=self.device_mesh["data_parallel"])


class Hybrid(Uneven):
    """Two replicas of two shards each."""

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            fully_shard(self, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards")))


ShardedMLP, ShardedUneven, ShardedValidating = map(fully_sharded, (MLP, Uneven, Validating))


def callbacks_of(label: str, kernel: str | None = None) -> list[BioCallback]:
    """Without the one mechanism that refuses shards."""
    callbacks = [c for c in SETS[label]() if c.name != "weight_splitting" or c.mode == "grouped"]
    for callback in callbacks:
        if hasattr(callback, "kernel"):
            callback.kernel = kernel
    return callbacks


def arguments_of(world: int, tensor_parallel: int = 1, distributed: bool = True) -> dict[str, Any]:
    """Arguments of the Trainer in a process of a group; none for one process with whole weights."""
    if world == 0:
        return {}
    strategy = ModelParallelStrategy(
        world // tensor_parallel,
        tensor_parallel,
        save_distributed_checkpoint=distributed,
        process_group_backend="gloo",
        timeout=datetime.timedelta(seconds=60),
    )
    return {"strategy": strategy, "devices": world}


@dataclass(frozen=True)
class Case:
    """One run.

    Args:
        label: Which mechanisms.
        optimizer: Which optimizer.
        model: Which model.
        steps: Number of batches.
        tensor_parallel: Number of processes that see the same samples.
        trainer: Arguments of the Trainer.
        kernel: How passes run; without one as the library chooses, eager for so few weights.
    """

    label: str
    optimizer: str = "sgd"
    model: type[ZooModel] = ShardedUneven
    steps: int = 12
    tensor_parallel: int = 1
    trainer: Mapping[str, Any] = field(default_factory=dict)
    kernel: str | None = None

    def run(self, rank: int = 0, world: int = 0) -> dict[str, Tensor]:
        """Train on this rank's share of every batch."""
        model = make_model(self.model, self.optimizer, double=True)
        parts, mine = max(world // self.tensor_parallel, 1), rank // self.tensor_parallel
        shares = [tuple(t.chunk(parts)[mine] for t in batch) for batch in model.batches(self.steps, GLOBAL_BATCH)]
        arguments = {**arguments_of(world, self.tensor_parallel), **self.trainer}
        if self.model is ShardedValidating:  # before training, in the middle of the epoch, and at its end
            arguments |= {"validation": shares[:2], "val_check_interval": 4}
        with mock.patch.object(plasticity, "SMALL", plasticity.SMALL if self.kernel is None else 0):
            state = train(model, callbacks_of(self.label, self.kernel), shares, **arguments)
        assert self.kernel is None or (kernels._compiled.cache_info().currsize and not kernels._failed), "not eagerly"
        return state


_BOTH = ("everything", "by_activity")
_ALONE = [label for label in SETS if label not in TOGETHER and label != "weight_splitting-synapses"]
_FIRST = [f"{name}-{next(iter(case.active))}" for name, case in MECHANISM_CASES.items() if name != "weight_splitting"]
_GROUPED = "weight_splitting-grouped"


def _model_of(label: str) -> type[ZooModel]:
    """Units in groups have to divide."""
    return ShardedMLP if label.startswith(_GROUPED) else ShardedUneven


#: By number of processes.
CASES: dict[int, dict[str, Case]] = {
    2: {
        **{f"alone-{label}": Case(label, model=_model_of(label)) for label in _ALONE},
        **{f"{label}-adam": Case(label, "adam") for label in TOGETHER},
        **{f"{label}-long": Case(label, "momentum", steps=200) for label in _BOTH},
        **{f"everything-{name}": Case("everything", "adam", fully_sharded(model)) for name, model in MODELS.items()},
        **{f"by_activity-{name}": Case("by_activity", "adam", fully_sharded(MODELS[name]))
           for name in ("PlainCNN", "PlainTransformer")},
        **{f"{label}-accumulating": Case(label, "adam", trainer={"accumulate_grad_batches": 3}) for label in _BOTH},
        **{f"{label}-compiled": Case(label, "adam", kernel="compiled")
           for label in ("volume_dependent_lr-relative", "weight_rejuvenation-current")},
        **{f"{label}-validating": Case(label, "adam", ShardedValidating) for label in _BOTH},
        **{f"{label}-tensor-parallel": Case(label, "adam", TensorParallel, tensor_parallel=2)
           for label in (*_BOTH, _GROUPED)},
    },
    3: {
        **{f"alone-{label}": Case(label, "momentum") for label in _FIRST},
        **{f"{label}-adam": Case(label, "adam") for label in TOGETHER},
    },
    4: {
        **{f"{label}-2d": Case(label, "adam", TensorParallel, tensor_parallel=2) for label in _BOTH},
        **{f"{label}-hybrid": Case(label, "adam", Hybrid) for label in _BOTH},
    },
}  # fmt: skip


# ---- memory and logs -------------------------------------------------------------------------------------------------


class Wide(ZooModel):
    """Weights of three shapes, larger than anything else that there is."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.net = nn.Sequential(nn.Linear(6, 120), nn.ReLU(), nn.Linear(120, 64), nn.ReLU(), nn.Linear(64, CLASSES))


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operation has made."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # the same comes again for this process's part
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and not isinstance(tensor, FakeTensor):  # which takes no memory
                self.size = max(self.size, tensor.untyped_storage().nbytes())
        return result


@contextlib.contextmanager
def _measured(largest: Largest) -> Iterator[None]:
    """Watch what the callbacks do in the steps, and only that."""

    def watched(name: str) -> Callable[..., Any]:
        original = getattr(Session, name)

        def inside(*args: Any) -> Any:
            with largest:
                return original(*args)

        return inside

    with contextlib.ExitStack() as stack:
        for name in ("run_pass", "_after_step", "batch_end"):
            stack.enter_context(mock.patch.object(Session, name, watched(name)))
        yield


def memory(rank: int = 0, world: int = 0) -> dict[str, Tensor]:
    """Bytes of the largest tensor that the mechanisms make in a step, and of all that they keep of synapses."""
    largest, found = Largest(), {}
    for label in _BOTH:
        model = make_model(fully_sharded(Wide), "adam", double=True)
        callbacks = callbacks_of(label)
        trainer = make_trainer(callbacks, max_steps=8, use_distributed_sampler=False, **arguments_of(world))
        with _measured(largest):
            trainer.fit(model, Shuffled(model.batches(4)))
        store = callbacks[0].session.store["net.2.weight"]
        kept = [tensor for key, tensor in store.items() if key in ("base", "crystal")]
        parts = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in kept]
        found[f"kept {label}"] = torch.tensor(sum(part.numel() * part.element_size() for part in parts))
    return {**found, "largest": torch.tensor(largest.size)}


class Log(DummyLogger):
    """Remembers what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Tensor] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.seen |= {f"{tag} {step}": torch.tensor(value, dtype=torch.float64) for tag, value in metrics.items()}


def logs(rank: int = 0, world: int = 0) -> dict[str, Tensor]:
    """What the monitor logs: numbers, sums behind its histograms, and those of what its figures show."""
    model, log = make_model(ShardedValidating, "adam", double=True), Log()
    shares = [tuple(t.chunk(max(world, 1))[rank] for t in batch) for batch in model.batches(6, GLOBAL_BATCH)]
    arguments = {**arguments_of(world), "logger": log, "log_every_n_steps": 2, "validation": shares[:2]}
    monitor = BioMonitor(rank_every_n_steps=3, histogram_every_n_steps=3, figure_every_n_epochs=1)

    def keep_histograms(_loggers: Any, histograms: Mapping[str, Histogram], step: int) -> None:
        log.log_metrics({f"histogram {tag}": histogram.squares for tag, histogram in histograms.items()}, step)

    def keep_figures(seen: Snapshot) -> dict[str, Any]:
        for what in ("weights", "multipliers"):
            log.log_metrics({f"{what} {name}": t.square().sum().item() for name, t in getattr(seen, what).items()})
        return {}

    with (
        mock.patch.object(loggers, "takes_histograms", return_value=True),
        mock.patch.object(loggers, "takes_figures", return_value=True),
        mock.patch.object(loggers, "log_histograms", keep_histograms),
        mock.patch.object(bio_monitor, "figures", keep_figures),
    ):
        train(model, [*callbacks_of("everything"), monitor], shares, **arguments)
    return log.seen


def crossing(rank: int, world: int, hands_on_tensors: bool) -> str:
    """What is said where groups of units cross tensor-parallel processes."""
    model = make_model(TensorParallel, double=True)
    model.hands_on_tensors = hands_on_tensors
    splitting = WeightSplitting(mode="grouped", gamma=model.net[0].out_features, include=("net.0.*",))
    try:
        train(model, [splitting], model.batches(1), **arguments_of(world, tensor_parallel=world))
    except ValueError as error:  # all processes raise it, so their group goes on
        return str(error)
    return ""


def run_all(rank: int, world: int) -> dict[str, Any]:
    """All cases in one process of a group."""
    states: dict[str, Any] = {name: case.run(rank, world) for name, case in CASES[world].items()}
    if world == 2:
        states |= {"memory": memory(rank, world), "logs": logs(rank, world)}
        states["crossing"] = [crossing(rank, world, hands_on_tensors) for hands_on_tensors in (True, False)]
    return states


# ---- checkpoints -----------------------------------------------------------------------------------------------------

SAVED_AT, RESUMED_TO = 10, 16


def fit(
    label: str | None, rank: int, world: int, *, until: int = RESUMED_TO, distributed: bool = True, **paths: Path | None
) -> dict[str, Tensor]:
    """Train, from the checkpoint ``ckpt`` where it is given; save one as ``saved`` where that is."""
    ckpt, saved = paths.get("ckpt"), paths.get("saved")
    model = make_model(ShardedUneven, "adam", seed=9 if ckpt else 0, double=True)
    shares = [tuple(t.chunk(max(world, 1))[rank] for t in batch) for batch in model.batches(7, GLOBAL_BATCH)]
    callbacks = [] if label is None else callbacks_of(label)
    arguments = arguments_of(world, distributed=distributed)
    trainer = make_trainer(callbacks, max_steps=until, use_distributed_sampler=False, **arguments)
    trainer.fit(model, Shuffled(shares), ckpt_path=ckpt, weights_only=True)
    if saved:
        trainer.save_checkpoint(saved)
    return state_of(model, callbacks, trainer.optimizers)


def checkpoint(folder: str, label: str | None, distributed: bool) -> Path:
    """Where a run on two processes saves its state."""
    return Path(folder) / f"{label}-{'distributed' if distributed else 'full'}.ckpt"


RUNS = [(label, distributed) for label in (*_BOTH, None) for distributed in (True, False)]


def save_all(rank: int, world: int, folder: str) -> dict[str, Any]:
    """Save a checkpoint of every kind, and train without a break."""
    states = {}
    for label, distributed in RUNS:
        fit(label, rank, world, until=SAVED_AT, distributed=distributed, saved=checkpoint(folder, label, distributed))
        states[str(label)] = fit(label, rank, world)
    return states


def resume_all(rank: int, world: int, folder: str) -> dict[str, Any]:
    """Go on from every checkpoint; from one without mechanisms with them."""
    states = {}
    for label, distributed in RUNS:
        path = checkpoint(folder, label, distributed)
        states[path.stem] = fit(label or "everything", rank, world, distributed=distributed, ckpt=path)
    states["from one process"] = fit("everything", rank, world, ckpt=Path(folder) / "whole.ckpt")
    return states
