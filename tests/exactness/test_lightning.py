"""What else Lightning does around a step: mechanisms neither disturb it nor are they disturbed."""

from __future__ import annotations

import functools

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as fn
from lightning.pytorch.callbacks import BackboneFinetuning, EarlyStopping, EMAWeightAveraging
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from bio_lightning import DalesPrinciple, FuzzyLearningRates, fold, multipliers
from bio_lightning.callbacks import Mechanism
from bio_lightning.split_layers import GroupSum
from tests.cases import CASES as SETTINGS
from tests.cases import active
from tests.exactness.resuming import BATCHES, CASES, Break, break_off, callbacks_of, everything, train
from tests.models import MLP, OPTIMIZERS, ZooModel, different, fit, make_model, make_trainer, weights_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed",  # resumed runs write their checkpoints elsewhere
    "ignore:The .grad attribute of a Tensor that is not a leaf",  # torch.compile looks at what forward hooks get
)
#: Cases that read firing rates, which come from hooks.
OF_RATES = [case for case in CASES if "activity" in case or "use" in case or "synaptic" in case or case == "all"]
#: Every mechanism in one setting, and in those that read firing rates.
BIO = list(dict.fromkeys([f"{name}-{next(iter(settings.active))}" for name, settings in SETTINGS.items()] + OF_RATES))
PLASTICITY = [case for case in CASES if case.startswith(("fuzzy", "volume", "crystal"))]
OPTIMIZERS_OF_RESUME = ("sgd", "momentum", "adam")


@functools.cache
def plain_start() -> dict[str, torch.Tensor]:
    return weights_of(make_model("MLP"))


def assert_same(one: tuple[ZooModel, pl.Trainer], other: tuple[ZooModel, pl.Trainer]) -> None:
    """Two runs came to the same, and the weights moved."""
    first, second = everything(*one), everything(*other)
    assert first.keys() == second.keys()
    assert different(first, second) == []
    start = plain_start()
    for name, weight in weights_of(fold(one[0])).items():
        if name in start and start[name].shape == weight.shape:
            assert not torch.equal(weight, start[name]), "training has to move the weights"


def sequential(model: ZooModel, count: int = BATCHES) -> DataLoader:
    return DataLoader(model.batches(BATCHES)[:count], batch_size=None)


# ---- gradient clipping -----------------------------------------------------------------------------------------------


def one_step(case: str, optimizer: str, apply_to: str, **clipping) -> dict[str, torch.Tensor]:
    """How far one step moved the weights."""
    name, _, label = case.partition("-")
    model = make_model("MLP", optimizer, double=True)
    before = weights_of(model)
    fit(model, [active(name, label, apply_to=apply_to)] if name != "none" else [], steps=1, **clipping)
    return {name: before[name] - weight for name, weight in weights_of(model).items()}


@pytest.mark.parametrize("case", PLASTICITY)
def test_clipping_sees_scaled_gradients_in_gradient_mode(case):
    scaled = one_step(case, "sgd", "gradient")  # the learning rate times the gradients that clipping will see
    norm = torch.cat([move.flatten() for move in scaled.values()]).norm()
    limit = (norm / 0.1 / 3).item()
    by_norm = one_step(case, "sgd", "gradient", gradient_clip_val=limit)
    by_value = one_step(case, "sgd", "gradient", gradient_clip_val=0.02, gradient_clip_algorithm="value")
    for name, move in scaled.items():
        assert torch.allclose(by_norm[name], move / 3, rtol=1e-5, atol=1e-12)
        assert torch.allclose(by_value[name], move.clamp(-0.002, 0.002), rtol=1e-9)
    assert any((move.abs() > 0.002).any() for move in scaled.values()), "clipping has to bind"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_clipping_sees_raw_gradients_in_update_mode(optimizer):
    clipping = {"gradient_clip_val": 0.3}
    plain, bio = (one_step(case, optimizer, "update", **clipping) for case in ("none", "fuzzy_learning_rates-normal"))
    model = make_model("MLP", optimizer, double=True)
    fit(model, [active("fuzzy_learning_rates", "normal")], steps=1)
    for name, factor in multipliers(model).items():
        assert torch.allclose(bio[name], plain[name] * factor, rtol=1e-6, atol=1e-12)
    assert different(plain, one_step("none", optimizer, "update")), "clipping has to bind"


def test_crystallization_judges_before_clipping():
    states = []
    for clipping in ({}, {"gradient_clip_val": 1e-6}):
        model = make_model("MLP")
        fit(model, [active("crystallization", "gradient")], steps=1, **clipping)
        states.append(multipliers(model))
    assert different(*states) == []
    assert any(state.ne(1).any() for state in states[0].values())


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("case", BIO)
def test_clipping_that_does_not_bind_changes_nothing(case, algorithm):
    clipping = {"gradient_clip_val": 1e6, "gradient_clip_algorithm": algorithm}
    assert_same(train(case, "adam"), train(case, "adam", **clipping))


# ---- learning rate schedulers ----------------------------------------------------------------------------------------


class Scheduled(MLP):
    """Its learning rate falls with every step."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.8**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_multipliers_multiply_the_scheduled_learning_rate(optimizer):
    model, by_hand = make_model(Scheduled, optimizer, double=True), make_model(Scheduled, optimizer, double=True)
    fit(model, [FuzzyLearningRates(nu=0.4)], steps=10)
    factors, configured = multipliers(model), by_hand.configure_optimizers()
    stepper, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for x, y in by_hand.batches(10):
        stepper.zero_grad()
        fn.cross_entropy(by_hand(x), y).backward()
        before = weights_of(by_hand)
        in_gradient = optimizer in ("sgd", "momentum")
        for name, parameter in by_hand.named_parameters():
            if in_gradient and name in factors:
                parameter.grad.mul_(factors[name])
        stepper.step()
        scheduler.step()
        for name, parameter in by_hand.named_parameters():
            if not in_gradient and name in factors:
                parameter.data.copy_(before[name] + factors[name] * (parameter.data - before[name]))
    for name, weight in weights_of(by_hand).items():
        assert torch.allclose(weight, weights_of(model)[name], atol=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS_OF_RESUME)
@pytest.mark.parametrize("case", ["none", "all", "synaptic_scaling-tetzlaff"])
def test_scheduled_runs_resume(case, optimizer, tmp_path):
    resumes(case, optimizer, tmp_path, model=Scheduled)


def resumes(case: str, optimizer: str, folder, others=tuple, call: int = 10, **more) -> None:
    """A run that breaks off goes on exactly; ``others`` makes further callbacks."""
    whole = train(case, optimizer, others=others(), **more)
    path = break_off(case, optimizer, Break("on_train_batch_start", call), folder, others=others(), **more)
    resumed = train(case, optimizer, ckpt_path=path, folder=folder / "resumed", others=others(), **more)
    first, second = everything(*whole), everything(*resumed)
    assert first.keys() == second.keys()
    assert different(first, second) == []
    assert different(torch.load(path, weights_only=True)["state_dict"], weights_of(resumed[0]))


# ---- averaging, checkpoints, stopping --------------------------------------------------------------------------------


class Watches(pl.Callback):
    """Keeps the weights as every batch leaves them."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(weights_of(pl_module))


#: A split is made in ``configure_model``, whatever the module itself does there.
averages = pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")


@averages
@pytest.mark.parametrize("case", BIO)
def test_average_is_that_of_the_weights_after_our_turn(case):
    watch, averaging = Watches(), EMAWeightAveraging(decay=0.9)
    model, _ = train([*callbacks_of(case), watch, averaging], "adam")
    average = watch.seen[0]
    for weights in watch.seen[1:]:
        average = {name: torch.lerp(weights[name], average[name], 0.9) for name in average}
    for name, weight in weights_of(model).items():  # Lightning leaves the average in the model
        assert torch.allclose(weight, average[name], atol=1e-6)
        assert not torch.equal(watch.seen[0][name], watch.seen[-1][name])


def test_averaged_weights_keep_their_signs():
    model, trainer = train([DalesPrinciple(), EMAWeightAveraging(decay=0.9)], "adam")
    for name, signs in trainer.callbacks[0].session.store.items():
        assert (weights_of(model)[name] * signs["signs"] >= 0).all()


@averages
@pytest.mark.parametrize("optimizer", OPTIMIZERS_OF_RESUME)
@pytest.mark.parametrize("case", ["none", "all"])
def test_averaging_runs_resume(case, optimizer, tmp_path):
    resumes(case, optimizer, tmp_path, others=lambda: (EMAWeightAveraging(decay=0.9),))


@pytest.mark.parametrize("case", BIO)
def test_checkpoints_within_an_epoch_hold_the_weights_after_our_turn(case, tmp_path):
    watch = Watches()
    train([*callbacks_of(case), watch], "momentum", folder=tmp_path, every=3)
    for step in (3, 6, 9, 12):
        checkpoint = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        assert different(checkpoint["state_dict"], watch.seen[step - 1]) == []
        states = [state for key, state in checkpoint["callbacks"].items() if "weights" in state]
        assert all(state["steps"] == [step] for state in states)


class Logs(MLP):
    """What it logs never improves."""

    def training_step(self, batch, batch_idx):
        self.log("still", 1.0, on_epoch=True, on_step=False)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("case", BIO)
def test_early_stopping_ends_as_the_last_epoch_does(case):
    stopping = EarlyStopping("still", patience=1, check_on_train_epoch_end=True)
    stopped = train([*callbacks_of(case), stopping], model=Logs, max_epochs=9)
    assert stopping.stopped_epoch == 1
    assert_same(train(case, model=Logs, max_epochs=2), stopped)
    hooks = [hook for layer in stopped[0].modules() for hook in layer._forward_hooks.values()]
    assert all(isinstance(hook, GroupSum) for hook in hooks), "those of a split stay"


# ---- short runs, validation, several runs ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", BIO)
def test_overfitting_batches_are_a_short_epoch(case):
    whole, few = make_model("MLP"), make_model("MLP")
    trainers = []
    for model, loader, arguments in ((whole, sequential(whole, 2), {}), (few, sequential(few), {"overfit_batches": 2})):
        trainers.append(make_trainer(callbacks_of(case), max_epochs=3, **arguments))
        trainers[-1].fit(model, loader)
    assert_same((whole, trainers[0]), (few, trainers[1]))


@pytest.mark.parametrize("case", BIO)
def test_a_development_run_trains_as_any(case):
    assert_same(train(case, max_steps=3), train(case, fast_dev_run=3))


class Validated(MLP):
    def validation_step(self, batch, batch_idx):
        with torch.enable_grad():  # as for gradients with respect to the input
            self(batch[0])


@pytest.mark.parametrize("case", BIO)
def test_validation_leaves_no_trace(case):
    model = make_model(Validated)
    other = [(torch.ones(64, 6), None)] * 3
    validation = {"validation": DataLoader(other, batch_size=None), "num_sanity_val_steps": 2, "val_check_interval": 3}
    assert_same(train(case), train(case, model=model, inference_mode=False, **validation))


@pytest.mark.parametrize("case", BIO)
def test_a_bare_trainer_trains_as_any(case):
    model = make_model("MLP")
    bare = pl.Trainer(barebones=True, accelerator="cpu", max_epochs=1, callbacks=callbacks_of(case))
    bare.fit(model, sequential(model))
    other = make_model("MLP")
    assert_same((other, fit(other, callbacks_of(case), steps=BATCHES)), (model, bare))


@pytest.mark.parametrize("case", BIO)
def test_two_fits_in_a_row_are_one(case):
    once, same_trainer, new_trainer = (make_model("MLP") for _ in range(3))
    whole = make_trainer(callbacks_of(case), max_epochs=2)
    whole.fit(once, sequential(once))
    trainer = make_trainer(callbacks_of(case), max_epochs=1)
    trainer.fit(same_trainer, sequential(same_trainer))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(same_trainer, sequential(same_trainer))
    assert_same((once, whole), (same_trainer, trainer))
    callbacks = callbacks_of(case)
    for _ in range(2):
        latest = make_trainer(callbacks, max_epochs=1)
        latest.fit(new_trainer, sequential(new_trainer))
    assert_same((once, whole), (new_trainer, latest))


class Predicts(MLP):
    def predict_step(self, batch, batch_idx):
        return self(batch[0])


@pytest.mark.parametrize("case", BIO)
def test_test_and_predict_run_the_trained_function(case):
    model, trainer = train(case, "adam", model=Predicts)
    before = everything(model, trainer)
    expected = fold(model).eval()(model.batches(1)[0][0])
    for runner in (trainer, make_trainer(callbacks_of(case))):
        (predicted,) = runner.predict(model, sequential(model, 1))
        assert torch.allclose(predicted, expected, atol=1e-5)
        runner.test(model, sequential(model, 1), verbose=False)
    assert different(before, everything(model, trainer)) == []


# ---- compiled modules ------------------------------------------------------------------------------------------------


class Compiled(MLP):
    """Its submodule is compiled in one of three ways; in a checkpoint names are those of the plain module."""

    way = "wrapped"

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        if self.way == "wrapped":
            self.net = torch.compile(self.net, backend="eager")
        elif self.way == "in place":
            self.net.compile(backend="eager")
        else:
            self.compile(backend="eager")

    def on_save_checkpoint(self, checkpoint):
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name.replace("_orig_mod.", ""): weight for name, weight in weights.items()}

    def on_load_checkpoint(self, checkpoint):
        to_mine = {name.replace("_orig_mod.", ""): name for name in self.state_dict()}
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {to_mine[name]: weight for name, weight in weights.items()}


class CompiledInPlace(Compiled):
    way = "in place"


class CompiledWhole(Compiled):
    way = "whole"


WAYS = (Compiled, CompiledInPlace, CompiledWhole)


def plain_names(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name if name.startswith("multi") else name.replace("_orig_mod.", ""): found[name] for name in found}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", [*OF_RATES, "weight_rejuvenation-initial", "weight_splitting-grouped"])
def test_compiled_modules_train_as_eager_ones(case, way):
    eager, compiled = train(case, "adam"), train(case, "adam", model=way)
    first, second = everything(*eager), plain_names(everything(*compiled))
    assert first.keys() == second.keys()
    assert different(first, second) == []
    for callback in compiled[1].callbacks:
        if isinstance(callback, Mechanism):
            assert all("_orig_mod" not in name for name in callback.state_dict()["weights"])


def test_a_compiled_lightning_module_trains_as_an_eager_one():
    model = make_model("MLP", "adam")
    trainer = make_trainer(callbacks_of("all"), max_epochs=1)
    trainer.fit(torch.compile(model, backend="eager"), sequential(model))
    eager = make_model("MLP", "adam")
    assert_same((eager, fit(eager, callbacks_of("all"), steps=BATCHES)), (model, trainer))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_compiled_and_eager_runs_resume_each_other(optimizer, way, tmp_path):
    whole = everything(*train("all", optimizer))
    for number, (first, second) in enumerate((("MLP", way), (way, "MLP"))):
        folder = tmp_path / str(number)
        path = break_off("all", optimizer, Break("on_train_batch_start", 6), folder, model=first)
        resumed = train("all", optimizer, model=second, ckpt_path=path, folder=folder / "resumed")
        assert different(whole, plain_names(everything(*resumed))) == []


# ---- activation checkpointing ----------------------------------------------------------------------------------------


class Calls(MLP):
    """Calls its hidden layers twice, once under a checkpoint if at all."""

    reentrant: bool | None = None

    def forward(self, x):
        hidden = self.net[:4]
        inner = hidden if self.reentrant is None else functools.partial(
            checkpoint, hidden, use_reentrant=self.reentrant
        )  # fmt: skip
        return self.net[4](inner(x.clone().requires_grad_()) + hidden(-x))


class Reentrant(Calls):
    reentrant = True


class NotReentrant(Calls):
    reentrant = False


@pytest.mark.parametrize("model", [Reentrant, NotReentrant])
@pytest.mark.parametrize("case", OF_RATES)
def test_firing_rates_count_a_checkpointed_forward_once(case, model):
    whole, checkpointed = train(case, model=Calls), train(case, model=model)
    assert_same(whole, checkpointed)
    stores = [c.session.store for c in checkpointed[1].callbacks if isinstance(c, Mechanism)]
    assert any("rate" in tensors for tensors in stores[0].values())


# ---- layers that come and freeze -------------------------------------------------------------------------------------


class Late(ZooModel):
    """Its layers are made in ``configure_model``."""

    def configure_model(self):
        if not hasattr(self, "net"):
            torch.manual_seed(0)
            self.net = make_model("MLP").net


@pytest.mark.parametrize("case", BIO)
def test_layers_made_in_configure_model_train_as_others(case, tmp_path):
    assert_same(train(case, "adam"), train(case, "adam", model=Late))


@pytest.mark.parametrize("case", ["none", "all"])
def test_layers_made_in_configure_model_resume(case, tmp_path):
    resumes(case, "momentum", tmp_path, model=Late)


class Backbone(MLP):
    """Hidden layers that thaw, and a head."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.backbone = self.net[:4]

    def configure_optimizers(self):
        return OPTIMIZERS[self.optimizer]([p for p in self.net.parameters() if p.requires_grad])


class Finetuning(BackboneFinetuning):
    """Restores on a resume what is trainable; Lightning's own restores the optimizer alone."""

    def on_fit_start(self, trainer, pl_module):
        super().on_fit_start(trainer, pl_module)
        if len(trainer.optimizers[0].param_groups) > 1:
            pl_module.backbone.requires_grad_(True)


def finetuning() -> tuple[pl.Callback, ...]:
    return (Finetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.01, should_align=False),)


@pytest.mark.parametrize("case", BIO)
def test_frozen_layers_rest_until_they_thaw(case):
    watch = Watches()
    callbacks = [*callbacks_of(case), *finetuning(), watch]
    train(callbacks, model=Backbone, max_epochs=3)
    backbone = [name for name in watch.seen[0] if name.startswith(("net.0.", "net.2.")) and name.endswith("weight")]
    for name in backbone:
        frozen = [seen[name] for seen in watch.seen[:BATCHES]]
        assert all(torch.equal(weight, frozen[0]) for weight in frozen)
        assert not torch.equal(watch.seen[-1][name], frozen[0])
    for name, signs in {n: t for c in callbacks[:1] for n, t in c.session.store.items() if "signs" in t}.items():
        spread = callbacks[0].session.synapses[name]
        along = spread.along_postsynaptic if "rows" in case else spread.along_presynaptic
        assert (spread.weight * along(signs["signs"]) >= 0).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS_OF_RESUME)
@pytest.mark.parametrize("case", ["none", "all"])
@pytest.mark.parametrize("call", [6, 10], ids=["before the thaw", "after it"])
def test_finetuning_runs_resume(case, optimizer, call, tmp_path):
    resumes(case, optimizer, tmp_path, others=finetuning, call=call, model=Backbone)


# ---- two callbacks of a class ----------------------------------------------------------------------------------------


def pair(case: str) -> tuple[str, str]:
    """Two layers on which a mechanism acts: not the input layer for Dale's principle, not the output for others."""
    return ("net.2*", "net.4*") if case.startswith("dales") else ("net.0*", "net.2*")


@pytest.mark.parametrize("case", [case for case in BIO if case not in ("all", "fuzzy_learning_rates-layer_adaptive")])
def test_two_callbacks_on_two_layers_are_one_on_both(case, tmp_path):
    """All but the distribution that depends on the place among a callback's layers."""
    name, _, label = case.partition("-")
    layers = pair(case)

    def two():
        return [active(name, label, include=layer) for layer in layers]

    one = train([active(name, label, include=layers)], "adam")
    both = train(two(), "adam", folder=tmp_path)
    assert_same(one, both)
    resumed = train(two(), "adam", ckpt_path=str(tmp_path / "step=4.ckpt"), folder=tmp_path / "resumed")
    assert_same(both, resumed)
