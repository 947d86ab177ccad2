"""What is seen during a step, against the step done by hand: activity, gradients, updates, ranks, ages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as fn

from bio_lightning import BioMonitor, Crystallization, FuzzyLearningRates, WeightRejuvenation
from tests.callbacks.test_bio_monitor import Recorder, record
from tests.cases import all_on
from tests.models import MLP, fit, make_model

LAYERS = ("net.0.weight", "net.2.weight", "net.4.weight")


def by_hand(batches):
    """Weights before, gradients and outputs of a plain SGD step on some batches together, by layer."""
    model = make_model("MLP")
    outputs = {name: [] for name in LAYERS}
    inputs = {name: [] for name in LAYERS}
    for x, y in batches:
        h = x
        for number, module in enumerate(model.net):
            name = f"net.{number}.weight"
            if name in LAYERS:
                inputs[name].append(h.detach())
            h = module(h)
            if name in LAYERS:
                outputs[name].append(h.detach())
        (fn.cross_entropy(h, y) / len(batches)).backward()
    weights = dict(model.named_parameters())
    found = {}
    for name in LAYERS:
        found[name] = {
            "weight": weights[name].detach().double().numpy(),
            "grad": weights[name].grad.double().numpy(),
            "rate": (torch.cat(outputs[name]) > 0).double().mean(0).numpy(),
            "input": torch.cat(inputs[name]).double().numpy(),
        }
    return found


def effective(matrix):
    singular = np.linalg.svd(matrix, compute_uv=False)
    share = singular / singular.sum()
    return np.exp(-(share * np.log(share)).sum())


def stable(matrix):
    singular = np.linalg.svd(matrix, compute_uv=False)
    return (singular**2).sum() / singular.max() ** 2


@pytest.mark.parametrize("accumulate", [1, 3])
def test_first_step_by_hand(accumulate):
    monitor = BioMonitor(alerts=False, rank_every_n_steps=1)
    _, recorder, _ = record([monitor], steps=accumulate, accumulate_grad_batches=accumulate)
    ((step, row),) = recorder.bio
    assert step == 0
    rates, lengths = [], {"grad": 0.0, "weight": 0.0}
    for name, seen in by_hand(make_model("MLP").batches(accumulate)).items():
        weight, grad, rate = seen["weight"], seen["grad"], seen["rate"]
        after = weight - 0.1 * grad
        expected = {
            "weights/gradient_ratio": np.linalg.norm(grad) / np.linalg.norm(weight),
            "weights/update_ratio": 0.1 * np.linalg.norm(grad) / np.linalg.norm(weight),
            "weights/excitation": after.clip(min=0).mean(),
            "weights/rank_stable": stable(after),
            "weights/rank_effective": effective(after),
            "activity/firing_rate_mean": rate.mean(),
            "activity/dormant_fraction_tau_0": (rate == 0).mean(),
            "activity/dormant_fraction_tau_0.1": (rate <= 0.1 * rate.mean()).mean(),
            "activity/input_rank_stable": stable(seen["input"]),
            "activity/input_rank_effective": effective(seen["input"]),
        }
        for tag, value in expected.items():
            assert row[f"bio/{tag}/{name}"] == pytest.approx(value, rel=2e-5), tag
        rates.append(rate)
        for key in lengths:
            lengths[key] += (seen[key] ** 2).sum()
    assert row["bio/activity/firing_rate_mean/overall"] == pytest.approx(np.concatenate(rates).mean())
    dormant = np.concatenate([rate <= 0.1 * rate.mean() for rate in rates]).mean()
    assert row["bio/activity/dormant_fraction_tau_0.1/overall"] == pytest.approx(dormant)
    ratio = (lengths["grad"] / lengths["weight"]) ** 0.5
    assert row["bio/weights/gradient_ratio/overall"] == pytest.approx(ratio, rel=1e-5)
    ranks = [row[f"bio/activity/input_rank_effective/{name}"] for name in LAYERS]
    assert row["bio/activity/input_rank_effective/overall"] == pytest.approx(np.mean(ranks))


class TwoSteps(MLP):
    """One optimizer steps twice in a batch."""

    def __init__(self, optimizer="sgd"):
        super().__init__(optimizer)
        self.automatic_optimization = False
        self.steps = []

    def training_step(self, batch, batch_idx):
        for _ in range(2):
            before = {name: self.get_parameter(name).detach().clone() for name in LAYERS}
            self.optimizers().zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            self.steps.append((before, {name: self.get_parameter(name).grad.clone() for name in LAYERS}))
            self.optimizers().step()


def test_ratios_of_a_batch_with_two_steps_are_relative_to_the_weights_before_both():
    model, recorder, _ = record([BioMonitor(alerts=False)], model=TwoSteps, steps=1)
    ((before, _), (_, grad)) = model.steps
    for name in LAYERS:
        moved = model.get_parameter(name).detach() - before[name]
        for ratio, tensor in (("gradient_ratio", grad[name]), ("update_ratio", moved)):
            expected = (tensor.norm() / before[name].norm()).item()
            assert recorder.last[f"bio/weights/{ratio}/{name}"] == pytest.approx(expected, rel=1e-5)


class NoGradient(MLP):
    """One layer has none, and stays where it is but for its decay."""

    def on_after_backward(self):
        self.before = self.get_parameter(LAYERS[1]).detach().clone()
        self.get_parameter(LAYERS[0]).grad = None
        self.get_parameter(LAYERS[1]).grad.zero_()


def test_updates_of_layers_without_a_gradient():
    model, recorder, _ = record([BioMonitor(alerts=False)], model=NoGradient, optimizer="sgd_decay", steps=1)
    for ratio, expected in (("gradient_ratio", [False, True, True]), ("update_ratio", [True, True, True])):
        assert [f"bio/weights/{ratio}/{layer}" in recorder.last for layer in LAYERS] == expected
    assert recorder.last[f"bio/weights/update_ratio/{LAYERS[0]}"] == 0.0
    assert recorder.last[f"bio/weights/gradient_ratio/{LAYERS[1]}"] == 0.0
    moved = (model.get_parameter(LAYERS[1]).detach() - model.before).norm() / model.before.norm()
    assert recorder.last[f"bio/weights/update_ratio/{LAYERS[1]}"] == pytest.approx(moved.item(), rel=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "sgd_decay"])
@pytest.mark.parametrize("leads", [True, False])
def test_an_update_is_what_multipliers_left_of_it_before_turnover(optimizer, leads):
    """In either mode, wherever the monitor stands in the list; events at every step do not count."""
    plain = record([BioMonitor()], optimizer=optimizer, steps=1)[1].last
    rest = [
        Crystallization(crystal_thresh=1e9, dampening_factor=0.5, ignore_zero_grad=False),
        WeightRejuvenation(every_n_steps=1, dre=0.5),
    ]
    callbacks = [BioMonitor(alerts=False), *rest] if leads else [*rest, BioMonitor(alerts=False)]
    row = record(callbacks, optimizer=optimizer, steps=1)[1].last
    for layer in (*LAYERS, "overall"):
        tag = f"bio/weights/update_ratio/{layer}"
        assert row[tag] == pytest.approx(0.5 * plain[tag], rel=1e-4)
    assert row["bio/weight_rejuvenation/replaced_fraction/overall"] > 0.1


def test_ages_and_lifetimes_follow_the_events():
    before = {}

    class Watch(WeightRejuvenation):
        """Sees which weights an event makes new: nothing shrinks, so the others stay."""

        def finish(self, session, synapses, owner, completed):
            old = synapses.weight.detach().clone()
            super().finish(session, synapses, owner, completed)
            if completed[-1] % 2 == 0:
                before[completed[-1]] = synapses.weight.detach() != old

    callbacks = [Watch(every_n_steps=2, dre=1.0, include="net.2"), FuzzyLearningRates(include="net.2")]
    _, recorder, _ = record([*callbacks, BioMonitor(alerts=False)], steps=7)
    assert sorted(before) == [2, 4, 6]
    age, deaths = torch.zeros(12, 16), 0
    for step, row in recorder.bio:
        age += 1
        if step + 1 in before:
            age[before[step + 1]] = 0
            deaths += int(before[step + 1].sum())
        assert row["bio/weight_rejuvenation/age_mean/net.2.weight"] == pytest.approx(age.mean().item())
        lived = (step + 1) // 2 * 2 * 192
        if deaths:
            lifetime = row["bio/weight_rejuvenation/lifetime_steps/net.2.weight"]
            assert lifetime == pytest.approx(lived / deaths)
            assert row["bio/weight_rejuvenation/lifetime_per_step/net.2.weight"] == pytest.approx(1 / lifetime)
        else:
            assert "bio/weight_rejuvenation/lifetime_steps/net.2.weight" not in row
    assert deaths > 20


def test_ages_survive_a_checkpoint(tmp_path):
    def callbacks():
        return [WeightRejuvenation(every_n_steps=2, dre=1.0), BioMonitor(alerts=False)]

    def run(count, path=None, save=None):
        recorder = Recorder()
        trainer = fit(make_model("MLP"), callbacks(), steps=4, max_epochs=count, logger=recorder, log_every_n_steps=1,
                      ckpt_path=path)  # fmt: skip
        if save:
            trainer.save_checkpoint(save)
        return recorder.last

    whole = run(2)
    run(1, save=tmp_path / "half.ckpt")
    resumed = run(2, path=tmp_path / "half.ckpt")
    for tag in whole:
        if "/weight_rejuvenation/" in tag:
            assert resumed[tag] == whole[tag], tag


def test_births_are_kept_for_a_monitor_alone():
    for callbacks, kept in (([BioMonitor()], True), ([], False)):
        callback = WeightRejuvenation(every_n_steps=2)
        fit(make_model("MLP"), [callback, *callbacks])
        assert [("born" in callback.session.store[name]) for name in LAYERS] == [kept] * 3


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_no_hook_is_left_behind():
    module, recorder, trainer = record([BioMonitor(), *all_on()])
    assert recorder.bio
    assert hooks(module) == 0
    assert all(not optimizer._optimizer_step_post_hooks for optimizer in trainer.optimizers)

    class Fails(MLP):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise RuntimeError("as planned")
            return super().training_step(batch, batch_idx)

    model = make_model(Fails)
    with pytest.raises(RuntimeError, match="as planned"):
        fit(model, [BioMonitor()], logger=Recorder(), log_every_n_steps=1)
    assert hooks(model) == 0


def test_without_a_logger_there_is_no_hook_and_few_where_no_rank_is_due():
    class Look(BioMonitor):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            self.seen = [*getattr(self, "seen", []), hooks(pl_module)]

    for logger, counts in ((False, [0, 0, 0, 0]), (Recorder(), [3, 6, 3, 6])):
        monitor = Look(rank_every_n_steps=2)
        fit(make_model("MLP"), [monitor], steps=4, logger=logger, log_every_n_steps=1)
        assert monitor.seen == counts


def test_a_rank_is_that_of_the_logged_step():
    _, recorder, _ = record([BioMonitor(alerts=False, rank_every_n_steps=2)], steps=4)
    batches = make_model("MLP").batches(4)
    for step, row in recorder.bio:
        tag = "bio/activity/input_rank_stable/net.0.weight"
        assert (tag in row) == (step % 2 == 1)
        if tag in row:
            assert row[tag] == pytest.approx(stable(batches[step][0].double().numpy()), rel=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's tracer looks at what a hidden layer reads
def test_a_layer_without_a_rank_is_left_out():
    """What is compiled is not looked into; the others are."""
    plain = record([BioMonitor(alerts=False, rank_every_n_steps=1)], steps=1)[1].last
    module, recorder = make_model("MLP"), Recorder()
    module.net[2].compile(backend="eager")
    fit(module, [BioMonitor(alerts=False, rank_every_n_steps=1)], steps=1, logger=recorder, log_every_n_steps=1)
    found = {tag: value for tag, value in recorder.last.items() if "/input_rank_stable/" in tag}
    seen = [f"bio/activity/input_rank_stable/{name}" for name in ("net.0.weight", "net.4.weight")]
    assert found == pytest.approx(
        {tag: plain[tag] for tag in seen}
        | {"bio/activity/input_rank_stable/overall": np.mean([plain[tag] for tag in seen])}
    )


def test_hooks_compute_nothing_between_logs():
    from tests.callbacks.test_bio_monitor import Operations

    class Whole(MLP):
        """Counts all operations of a forward, hooks included."""

        def training_step(self, batch, batch_idx):
            with Operations() as operations:
                loss = super().training_step(batch, batch_idx)
            self.counts = [*getattr(self, "counts", []), operations.names.total()]
            return loss

    plain, watched = make_model(Whole), make_model(Whole)
    fit(plain, [])
    fit(watched, [BioMonitor()], logger=Recorder(), log_every_n_steps=3)
    assert [more - count for more, count in zip(watched.counts, plain.counts, strict=True)][:2] == [0, 0]
    assert watched.counts[2] > plain.counts[2]
    assert watched.counts[3:5] == plain.counts[3:5]
