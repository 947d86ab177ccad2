"""Nothing that the mechanisms do in a step waits for a device, but for what a logging step asks for."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bio_lightning import BioMonitor, DalesPrinciple, WeightRejuvenation
from tests.cases import MECHANISMS, all_on
from tests.checks import as_on_a_device
from tests.models import fit, make_model

#: What has to read a value or a size that only the device knows.
WAITS = ("_local_scalar_dense", "item", "nonzero", "equal", "masked_select", "unique", "_unique2", "is_nonzero")


class Watch(TorchDispatchMode):
    """Notes the operations that would wait."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        index = args[1] if name.startswith("index") and len(args) > 1 else ()
        by_mask = any(torch.is_tensor(i) and i.dtype in (torch.bool, torch.uint8) for i in index)
        moved = name == "_to_copy" and kwargs and kwargs.get("device") is not None and not kwargs.get("non_blocking")
        if name in WAITS or by_mask or moved:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


class First(pl.Callback):
    """Starts watching when the second batch begins: first steps may look at what stays as it is."""

    def __init__(self, watch):
        self.watch, self.steps = watch, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            self.watch.__enter__()


class Last(pl.Callback):
    """Stops watching when the last batch has ended."""

    def __init__(self, watch, last):
        self.watch, self.last = watch, last

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.last:
            self.watch.__exit__(None, None, None)


def waits(monkeypatch, callbacks, optimizer, steps=6, **trainer):
    as_on_a_device(monkeypatch)
    watch = Watch()
    fit(make_model("MLP", optimizer), [First(watch), *callbacks, Last(watch, steps - 1)], steps=steps, **trainer)
    return watch.waits


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["all", *MECHANISMS])
def test_steps_do_not_wait(monkeypatch, name, optimizer):
    callbacks = all_on() if name == "all" else [c for c in all_on() if c.name == name]
    assert waits(monkeypatch, callbacks, optimizer) == waits(monkeypatch, [], optimizer)


def test_events_do_not_wait(monkeypatch):
    callbacks = [
        WeightRejuvenation(every_n_steps=1, source="lognormal", reference="current"),
        DalesPrinciple(every_n_steps=1),
    ]
    assert waits(monkeypatch, callbacks, "adam") == waits(monkeypatch, [], "adam")


def test_a_step_that_does_not_log_does_not_wait_with_a_monitor(monkeypatch):
    plain = waits(monkeypatch, [], "sgd")
    assert waits(monkeypatch, [*all_on(), BioMonitor()], "sgd", log_every_n_steps=1000) == plain


def test_what_waits_is_seen(monkeypatch):
    class Waiting(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            next(pl_module.parameters()).sum().item()

    plain = waits(monkeypatch, [], "sgd")
    assert len(waits(monkeypatch, [Waiting()], "sgd")) == len(plain) + 5
