"""Promises that every mechanism keeps, swept over mechanisms, optimizers and the zoo."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import pickle

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from bio_lightning import BioConfigError, WeightSplitting, fold, multipliers
from tests.cases import ACTIVE, ACTIVE_IDS, CASES, MECHANISMS, active, all_on, neutral
from tests.models import MLP, OPTIMIZERS, ZOO, different, fit, identical, make_model, make_trainer, weights_of

FEW_OPTIMIZERS = ("sgd", "momentum", "adam")
SPLITS_CANNOT_GROUP = {"Transformer": "*linear*", "TwoOptimizers": "body*", "Tied": "hidden*"}


def narrowed(name: str, label: str, model: str) -> dict[str, object]:
    """Patterns that a case needs on a model where the default names layers that cannot be grouped or constrained."""
    if label.startswith("grouped"):
        return {"include": SPLITS_CANNOT_GROUP.get(model, "net*"), "exclude": ()}
    return {}


def runs_on(name: str, label: str, model: str) -> bool:
    """Whether a case has anything to act on; a model of recurrent layers has one Linear layer, the output."""
    if name == "weight_splitting" and label.startswith("grouped"):
        return model != "Recurrent"
    return not (label == "activity" and name == "weight_rejuvenation" and model == "Recurrent")


# ---- neutral settings and the user's random state --------------------------------------------------------------------


@pytest.mark.parametrize("model_name", ZOO)
@pytest.mark.parametrize("name", MECHANISMS)
def test_neutral_setting_changes_no_bit(name, model_name):
    for optimizer in ("momentum", "adamw"):
        plain, bio = make_model(model_name, optimizer), make_model(model_name, optimizer)
        fit(plain)
        fit(bio, [neutral(name)])
        assert different(weights_of(plain), weights_of(bio)) == []
        assert different(weights_of(plain), weights_of(make_model(model_name))), "training must move the weights"


class SmallLoss(MLP):
    """Its gradients are far below its weights."""

    def training_step(self, batch, batch_idx):
        return 1e-3 * super().training_step(batch, batch_idx)


def test_no_weight_past_a_threshold_is_neutral():
    plain, bio = make_model(SmallLoss, "adam"), make_model(SmallLoss, "adam")
    fit(plain)
    fit(bio, [MECHANISMS["crystallization"](crystal_thresh=0.0)])
    assert all(multiplier.eq(1).all() for multiplier in multipliers(bio).values())
    assert identical(weights_of(plain), weights_of(bio))


@pytest.mark.parametrize(("name", "label"), ACTIVE, ids=ACTIVE_IDS)
def test_random_state_of_the_user_is_untouched(name, label):
    plain, bio = make_model("CNN"), make_model("CNN")
    fit(plain)
    after_plain = torch.get_rng_state()
    more = {"include": "net.0*"} if label.startswith("grouped") else {}
    fit(bio, [active(name, label, **more)])
    assert torch.equal(torch.get_rng_state(), after_plain)
    assert bio.seen_random == plain.seen_random


# ---- every mechanism on every optimizer and model --------------------------------------------------------------------


@pytest.mark.parametrize("model_name", ZOO)
@pytest.mark.parametrize(("name", "label"), ACTIVE, ids=ACTIVE_IDS)
def test_acts_on_every_model(name, label, model_name):
    if not runs_on(name, label, model_name):
        with pytest.raises(BioConfigError, match="include"):
            fit(make_model(model_name), [active(name, label)])
        return
    plain, bio = make_model(model_name), make_model(model_name)
    fit(plain, steps=8)
    fit(bio, [active(name, label, **narrowed(name, label, model_name))], steps=8)
    trained = fold(bio) if label == "synapses" else bio
    assert plain.state_dict().keys() == bio.state_dict().keys()
    changed = different(weights_of(plain), weights_of(trained))
    if (name, label) == ("weight_splitting", "synapses"):  # trains as the plain net does: see test_weight_splitting
        assert all(torch.allclose(weights_of(plain)[n], weights_of(trained)[n], atol=1e-5) for n in changed)
    else:
        assert changed
    assert all(torch.isfinite(weight).all() for weight in weights_of(bio).values())


@functools.cache
def plain_run(model_name: str, optimizer: str, double: bool) -> dict[str, torch.Tensor]:
    """Weights of a run without mechanisms; the same for all of them."""
    plain = make_model(model_name, optimizer, double=double)
    fit(plain)
    return weights_of(plain)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model_name", ZOO)
@pytest.mark.parametrize("name", MECHANISMS)
def test_acts_under_every_optimizer_on_every_model(name, model_name, optimizer):
    splits = name == "weight_splitting"  # trains as the plain net, unless Adam and the like divide rounding by rounding
    plain, bio = plain_run(model_name, optimizer, splits), make_model(model_name, optimizer, double=splits)
    fit(bio, [active(name, next(iter(CASES[name].active)))])
    trained = weights_of(fold(bio))
    assert all(torch.isfinite(weight).all() for weight in trained.values())
    if not splits:
        assert different(plain, trained)
    elif optimizer != "adamw":  # whose decay the card explains
        assert all(torch.allclose(plain[n], trained[n], atol=1e-4) for n in trained)


def test_any_combination_works():
    for names in itertools.combinations(MECHANISMS, 2):
        bio = make_model("CNN", "adam")
        callbacks = [c for c in all_on() if c.name in names]
        fit(bio, callbacks, steps=4)
        assert all(torch.isfinite(weight).all() for weight in weights_of(bio).values()), names


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_order_of_the_callback_list_is_irrelevant(optimizer):
    reference = make_model("CNN", optimizer)
    fit(reference, all_on())
    shuffles = [all_on()[::-1], all_on()[3:] + all_on()[:3]]
    for callbacks in shuffles:
        bio = make_model("CNN", optimizer)
        fit(bio, callbacks)
        assert identical(weights_of(reference), weights_of(bio))
        assert identical(multipliers(reference), multipliers(bio))


# ---- the model stays plain -------------------------------------------------------------------------------------------


def hooks_on(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


@pytest.mark.parametrize("model_name", ZOO)
def test_model_stays_plain(model_name):
    callbacks = [c for c in all_on() if c.name != "weight_splitting"]
    bio = make_model(model_name)
    attributes = {name: set(vars(module)) for name, module in bio.named_modules()}
    types = {name: type(module) for name, module in bio.named_modules()}
    keys = list(bio.state_dict())
    trainer = fit(bio, callbacks)
    assert list(bio.state_dict()) == keys
    assert {name: type(module) for name, module in bio.named_modules()} == types
    assert hooks_on(bio) == 0
    assert all(not o._optimizer_step_pre_hooks and not o._optimizer_step_post_hooks for o in trainer.optimizers)
    lightnings_own = {
        "_trainer",
        "_fabric",
        "_hparams",
        "_hparams_name",
        "_current_fx_name",
        "_metric_attributes",
        "_log_hyperparams",
    }
    for name, module in bio.named_modules():
        assert set(vars(module)) - attributes[name] - lightnings_own == set()
    assert identical(weights_of(pickle.loads(pickle.dumps(bio))), weights_of(bio))
    assert identical(weights_of(copy.deepcopy(bio)), weights_of(bio))
    make_model(model_name).load_state_dict(bio.state_dict())


class Crashes(MLP):
    """Raises in the fourth batch."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            raise KeyError("crash")
        return super().training_step(batch, batch_idx)


class CopiesInTraining(MLP):
    """Pickles and copies itself while the hooks are in place."""

    def on_train_batch_start(self, batch, batch_idx):
        self.copies = [copy.deepcopy(self), pickle.loads(pickle.dumps(self))]


def test_hooks_are_removed_after_an_exception():
    bio = make_model(Crashes)
    with pytest.raises(KeyError, match="crash"):
        fit(bio, [active("synaptic_scaling", "multiplicative"), active("fuzzy_learning_rates", "activity")])
    assert hooks_on(bio) == 0
    assert "configure_model" not in vars(bio)


def test_model_can_be_copied_and_pickled_in_training():
    bio = make_model(CopiesInTraining)
    fit(bio, all_on(), steps=2)
    clone = bio.copies[0]
    before = weights_of(bio)
    clone.train()(clone.batches(1)[0][0]).sum().backward()
    assert identical(before, weights_of(bio))


# ---- resume ----------------------------------------------------------------------------------------------------------


def train_epochs(model, callbacks, epochs: int, ckpt_path=None, steps: int = 5) -> pl.Trainer:
    trainer = make_trainer(callbacks, max_epochs=epochs)
    trainer.fit(model, DataLoader(model.batches(steps), batch_size=None), ckpt_path=ckpt_path)
    return trainer


def resumed_equals_uninterrupted(model_name, optimizer, callbacks, tmp_path) -> None:
    whole = make_model(model_name, optimizer)
    uninterrupted = train_epochs(whole, callbacks(), 2)
    half = make_model(model_name, optimizer)
    path = str(tmp_path / "half.ckpt")
    train_epochs(half, callbacks(), 1).save_checkpoint(path)
    torch.load(path, weights_only=True)
    second = make_model(model_name, optimizer, seed=99)
    resumed = train_epochs(second, callbacks(), 2, ckpt_path=path)
    assert different(weights_of(whole), weights_of(second)) == []
    assert different(weights_of(whole), weights_of(half)), "the second half must move the weights"
    states = [
        c.state_dict() for trainer in (uninterrupted, resumed) for c in trainer.callbacks if hasattr(c, "targets")
    ]
    for one, two in zip(states[: len(states) // 2], states[len(states) // 2 :], strict=True):
        assert one["steps"] == two["steps"]
        for name, tensors in one["weights"].items():
            assert different(tensors, two["weights"][name]) == []
    assert identical(multipliers(whole), multipliers(second))


@pytest.mark.parametrize("optimizer", FEW_OPTIMIZERS)
@pytest.mark.parametrize(("name", "label"), ACTIVE, ids=ACTIVE_IDS)
def test_resume_equals_uninterrupted(name, label, optimizer, tmp_path):
    resumed_equals_uninterrupted("MLP", optimizer, lambda: [active(name, label)], tmp_path)


@pytest.mark.parametrize("optimizer", FEW_OPTIMIZERS)
@pytest.mark.parametrize("model_name", ["MLP", "Recurrent", "Tied", "TwoOptimizers"])
def test_resume_equals_uninterrupted_with_everything_on(model_name, optimizer, tmp_path):
    resumed_equals_uninterrupted(model_name, optimizer, all_on, tmp_path)


def test_resume_with_other_arguments_says_which(tmp_path):
    path = str(tmp_path / "half.ckpt")
    train_epochs(make_model("MLP"), [active("crystallization", "gradient")], 1).save_checkpoint(path)
    with pytest.warns(UserWarning, match=r"recovery: 0\.2 in the checkpoint, 0\.5 now"):
        train_epochs(make_model("MLP"), [active("crystallization", "gradient", recovery=0.5)], 2, ckpt_path=path)


def test_checkpoint_without_bio_state_can_start_it(tmp_path):
    path = str(tmp_path / "plain.ckpt")
    train_epochs(make_model("MLP"), [], 1).save_checkpoint(path)
    bio = make_model("MLP")
    train_epochs(bio, [c for c in all_on() if c.name != "weight_splitting"], 2, ckpt_path=path)
    assert set(multipliers(bio)) == {"net.0.weight", "net.2.weight", "net.4.weight"}


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, arguments) for name in MECHANISMS for arguments in CASES[name].errors],
    ids=lambda value: str(value),
)
def test_wrong_arguments_are_named(name, arguments):
    key, value = list(arguments.items())[-1]
    with pytest.raises(BioConfigError) as caught:
        MECHANISMS[name](**arguments)
    assert caught.value.key == key
    assert repr(value) in str(caught.value) or str(value) in str(caught.value)
    assert caught.value.allowed


@pytest.mark.parametrize("name", MECHANISMS)
def test_pattern_that_matches_nothing_lists_what_exists(name):
    label = next(iter(CASES[name].active))
    for key in ("include", "exclude"):
        with pytest.raises(BioConfigError, match=r"net\.0\.weight") as caught:
            fit(make_model("MLP"), [active(name, label, **{key: ("net.7*",)})])
        assert caught.value.key == f"{name}.{key}"


def test_callbacks_repr_rebuilds_them():
    for name, label in ACTIVE:
        callback = active(name, label)
        assert eval(repr(callback), dict(MECHANISMS_BY_CLASS)).arguments() == callback.arguments()


MECHANISMS_BY_CLASS = {cls.__name__: cls for cls in MECHANISMS.values()}


def test_two_callbacks_of_a_class_may_share_a_model_but_not_a_weight():
    first, second = ("net.0*",), ("net.2*",)
    bio = make_model("MLP")
    make = MECHANISMS["fuzzy_learning_rates"]
    fit(
        bio, [make(include=first, nu=0.1, distribution="uniform"), make(include=second, nu=0.9, distribution="uniform")]
    )
    spread = {name: multiplier.std().item() for name, multiplier in multipliers(bio).items()}
    assert spread["net.2.weight"] > 4 * spread["net.0.weight"]
    with pytest.raises(Exception, match=r"two FuzzyLearningRates callbacks act on net\.0\.weight"):
        fit(make_model("MLP"), [make(include=first), make(include=("net.*",))])


def test_states_of_two_callbacks_of_a_class_are_kept_apart_by_their_patterns():
    kind = type(all_on()[0])
    keys = [kind(**patterns).state_key for patterns in ({}, {"include": "net.0"}, {"exclude": "net.0"})]
    assert len(set(keys)) == 3
    # as Lightning itself would put it, so that checkpoints from before the key was cached still find their callback
    assert keys[2] == kind()._generate_state_key(include=["*"], exclude=["net.0"])


def test_settings_of_the_shared_pass_must_agree():
    callbacks = [active("fuzzy_learning_rates", "gamma", apply_to="update"),
                 active("crystallization", "gradient", apply_to="gradient")]  # fmt: skip
    with pytest.raises(Exception, match="FuzzyLearningRates sets 'update'") as caught:
        fit(make_model("MLP"), callbacks)
    assert "Crystallization sets 'gradient'" in str(caught.value)


def test_same_stream_is_not_used_twice():
    bio = make_model("MLP")
    fit(bio, [active("fuzzy_learning_rates", "normal")])
    one, two = (multipliers(bio)[name].flatten()[:48] for name in ("net.0.weight", "net.2.weight"))
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 0.5


def test_buffer_round_trip_of_the_whole_trainer_state():
    bio = make_model("MLP")
    trainer = fit(bio, all_on())
    buffer = io.BytesIO()
    torch.save({c.state_key: c.state_dict() for c in trainer.callbacks if hasattr(c, "targets")}, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert set(loaded) == {c.state_key for c in all_on()}
    assert isinstance(all_on()[-1], WeightSplitting)


def test_averaging_has_to_come_after():
    averaging = pl.callbacks.EMAWeightAveraging()
    fit(make_model("MLP"), [active("dales_principle", "plain"), averaging])
    with pytest.raises(Exception, match="DalesPrinciple must come before WeightAveraging"):
        fit(make_model("MLP"), [averaging, active("dales_principle", "plain")])


def test_given_forward_order_is_shared():
    order = ("net.4", "net.2", "net.0")
    splitting = MECHANISMS["weight_splitting"](mode="grouped")
    fuzzy = MECHANISMS["fuzzy_learning_rates"](distribution="layer_adaptive", nu=0.9, forward_order=order)
    fit(make_model("MLP"), [splitting, fuzzy])
    assert set(splitting.targets) == {"net.2.weight", "net.4.weight"}, "net.0 is the output layer now"


def test_resume_with_other_multipliers_draws_them_anew(tmp_path):
    path = str(tmp_path / "half.ckpt")
    train_epochs(make_model("MLP"), [active("fuzzy_learning_rates", "weight_adaptive")], 1).save_checkpoint(path)
    fresh, resumed = make_model("MLP"), make_model("MLP")
    wide = {"nu": 0.9, "update_every": 100}
    train_epochs(fresh, [active("fuzzy_learning_rates", "weight_adaptive", **wide)], 1)
    with pytest.warns(UserWarning, match=r"nu: 0\.4 in the checkpoint, 0\.9 now"):
        train_epochs(resumed, [active("fuzzy_learning_rates", "weight_adaptive", **wide)], 2, ckpt_path=path)
    spread = [multipliers(model)["net.2.weight"].std() for model in (fresh, resumed)]
    assert spread[1] == pytest.approx(spread[0].item(), rel=0.1)
