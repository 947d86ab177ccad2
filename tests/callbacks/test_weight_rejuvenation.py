"""Wiring of weight rejuvenation: when, what becomes of the optimizer and the multipliers, dormant units."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats
from torch import nn

from bio_lightning import (
    BioConfigError,
    BioMonitor,
    Crystallization,
    DalesPrinciple,
    FuzzyLearningRates,
    WeightRejuvenation,
    dale_signs,
    multipliers,
)
from tests.models import CNN, MLP, Transformer, ZooModel, different, fit, identical, make_model, weights_of


class Wide(ZooModel):
    """Enough weights for statistics."""

    shape = (40,)

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.net = nn.Sequential(nn.Linear(40, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 4))
        nn.init.normal_(self.net[2].weight, std=0.3)


class Watching(Wide):
    """Keeps the weights before and after each batch's last hook."""

    def on_before_zero_grad(self, optimizer):
        self.after = [*getattr(self, "after", []), weights_of(self)]


@pytest.mark.parametrize("source", ["init", "lognormal"])
@pytest.mark.parametrize("layer", ["net.0.weight", "net.2.weight"])
def test_new_weights_have_the_initial_distribution_and_both_signs(layer, source):
    initial = weights_of(make_model(Wide))[layer].flatten()
    model = make_model(Wide)
    fit(model, [WeightRejuvenation(every_n_steps=1, dre=1e-6, source=source)], steps=1)
    new = weights_of(model)[layer].flatten()
    assert (new != initial).float().mean() > 0.99, "a tiny dre replaces everything"
    assert 0.4 < (new > 0).float().mean() < 0.6
    if source == "init":
        assert stats.ks_2samp(new.numpy(), initial.numpy()).pvalue > 0.01
    else:
        sizes = (new.abs().log(), initial.abs().log())
        assert sizes[0].mean() == pytest.approx(sizes[1].mean().item(), abs=0.1)
        assert sizes[0].std() == pytest.approx(sizes[1].std().item(), abs=0.1)


def test_initial_distribution_is_that_of_the_start_not_of_today():
    class Growing(Wide):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 0:
                with torch.no_grad():
                    self.net[2].weight.mul_(10)

    model = make_model(Growing)
    fit(model, [WeightRejuvenation(every_n_steps=2, dre=1e-6, include="net.2*")], steps=2)
    assert weights_of(model)["net.2.weight"].std() == pytest.approx(0.3, rel=0.05)


def test_events_fall_on_every_nth_step_and_touch_nothing_else():
    plain, bio = make_model(Wide), make_model(Wide)
    fit(plain, steps=6)
    fit(bio, [WeightRejuvenation(every_n_steps=7, dre=1.0, shrinkage=0.5)], steps=6)
    assert identical(weights_of(plain), weights_of(bio))
    bio, rejuvenation = make_model(Wide), WeightRejuvenation(every_n_steps=6, dre=3.0)
    fit(bio, [rejuvenation], steps=6)
    for name in ("net.0.weight", "net.2.weight"):
        replaced = int(rejuvenation.session.store[name]["replaced_total"])
        changed = (weights_of(plain)[name] != weights_of(bio)[name]).sum().item()
        assert 0 < replaced < weights_of(plain)[name].numel() / 2
        assert changed == pytest.approx(replaced, abs=1)  # a new weight may equal the old one
    assert different(weights_of(plain), weights_of(bio)) == ["net.0.weight", "net.2.weight", "net.4.weight"]


def test_events_are_counted_from_the_start_step_to_the_end_step():
    rejuvenation = WeightRejuvenation(start_step=3, end_step=8, every_n_steps=2, dre=1e-6, include="net.2*")
    totals = []

    class Counting(Wide):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            totals.append(int(rejuvenation.session.store["net.2.weight"]["replaced_total"]))

    fit(make_model(Counting), [rejuvenation], steps=10)
    grown = [step for step, (before, now) in enumerate(itertools.pairwise([0, *totals]), start=1) if now > before]
    assert grown == [5, 7]


def test_shrinkage_reaches_all_other_weights():
    plain, bio = make_model(Wide), make_model(Wide)
    fit(plain, steps=2)
    fit(bio, [WeightRejuvenation(every_n_steps=2, dre=float("inf"), shrinkage=0.25)], steps=2)
    for name in ("net.0.weight", "net.2.weight"):
        assert torch.equal(weights_of(bio)[name], 0.75 * weights_of(plain)[name])


@pytest.mark.parametrize("reference", ["initial", "current"])
def test_scale_is_the_initial_or_the_current_spread(reference):
    class Shrunk(Wide):
        """After the start all weights are a hundred times smaller: tiny by the old scale, usual by the new one."""

        def on_train_start(self):
            with torch.no_grad():
                self.net[2].weight.div_(100)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    model, rejuvenation = make_model(Shrunk), WeightRejuvenation(every_n_steps=1, reference=reference, include="net.2*")
    fit(model, [rejuvenation], steps=1)
    share = int(rejuvenation.session.store["net.2.weight"]["replaced"]) / 5000
    # E exp(-8 abs(z) / scale) over a normal z: 0.94 where the scale is 100 times the spread, 0.098 where they agree
    assert share == pytest.approx({"initial": 0.94, "current": 0.098}[reference], abs=0.02)


@pytest.mark.parametrize("moments", ["zero", "layer_mean", "keep"])
def test_optimizer_moments_of_new_synapses(moments):
    plain, bio = make_model(Wide, "adam"), make_model(Wide, "adam")
    alone = fit(plain, steps=3)
    rejuvenation = WeightRejuvenation(every_n_steps=3, dre=3.0, moments=moments)
    trainer = fit(bio, [rejuvenation], steps=3)
    expected = alone.optimizers[0].state[plain.net[2].weight]
    state = trainer.optimizers[0].state[bio.net[2].weight]
    new = weights_of(plain)["net.2.weight"] != weights_of(bio)["net.2.weight"]
    assert 0.05 < new.float().mean() < 0.6
    for key, fresh in (
        ("exp_avg", 0.0),
        ("exp_avg_sq", expected["exp_avg_sq"].mean() if moments == "layer_mean" else 0.0),
    ):
        assert torch.equal(state[key][~new], expected[key][~new])
        if moments == "keep":
            assert torch.equal(state[key], expected[key])
        else:
            assert torch.allclose(state[key][new], torch.as_tensor(fresh))
    assert state["step"] == expected["step"]


def test_momentum_of_new_synapses_is_forgotten():
    bio = make_model(Wide, "momentum")
    trainer = fit(bio, [WeightRejuvenation(every_n_steps=2, dre=1e-6)], steps=2)
    assert trainer.optimizers[0].state[bio.net[2].weight]["momentum_buffer"].eq(0).float().mean() > 0.99


def test_new_synapses_are_plastic_and_draw_a_new_multiplier():
    everything = {"crystal_thresh": 1e9, "ignore_zero_grad": False, "recovery": 0.0}
    crystallization = Crystallization(**everything)
    callbacks = [crystallization, FuzzyLearningRates(nu=0.5), WeightRejuvenation(every_n_steps=4, dre=3.0)]
    before, bio, plain = make_model(Wide), make_model(Wide), make_model(Wide)
    fit(before, callbacks[:2], steps=4)
    fit(plain, [Crystallization(**everything), FuzzyLearningRates(nu=0.5)], steps=4)
    fit(bio, callbacks, steps=4)
    new = weights_of(plain)["net.2.weight"] != weights_of(bio)["net.2.weight"]
    c = crystallization.session.store["net.2.weight"]["crystal"]
    assert c[new].eq(1).all()
    assert torch.allclose(c[~new], torch.tensor(0.6**4))
    base = multipliers(bio)["net.2.weight"] / c
    old_base = multipliers(before)["net.2.weight"] / 0.6**4
    renormalised = (base / old_base)[~new]
    assert renormalised.std() < 1e-5, "old synapses keep their multiplier, up to the layer's mean"
    assert (base / old_base)[new].std() > 0.3


def test_new_synapses_obey_dale():
    bio = make_model(Wide)
    fit(bio, [WeightRejuvenation(every_n_steps=1, dre=1e-6), DalesPrinciple(excitatory_fraction=0.5)], steps=2)
    signs = dale_signs(bio)["net.2.weight"]
    assert torch.equal(weights_of(bio)["net.2.weight"].sign(), signs.expand(50, 100))


def test_dale_imposes_no_signs_outside_its_steps():
    bio = make_model(Wide)
    fit(bio, [WeightRejuvenation(every_n_steps=1, dre=1e-6), DalesPrinciple(end_step=0)], steps=2)
    assert 0.4 < (weights_of(bio)["net.2.weight"] > 0).float().mean() < 0.6


def test_nan_is_raised_not_hidden():
    class Poisoned(Wide):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 1:
                with torch.no_grad():
                    self.net[2].weight[3, 3] = float("nan")

    with pytest.raises(RuntimeError, match=r"net\.\d\.weight contains NaN"):
        fit(make_model(Poisoned), [WeightRejuvenation(every_n_steps=2)], steps=3)


def test_nan_that_silences_a_neuron_is_raised_not_renewed():
    class Poisoned(MLP):
        """Goes on training: a neuron that computes NaN never fires."""

        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 1:
                with torch.no_grad():
                    self.net[0].weight[3, 3] = float("nan")

        def forward(self, x):
            return self.net[2:](self.net[1](self.net[0](x)).nan_to_num())

    renewing = WeightRejuvenation(select="activity", every_n_steps=2, dormant_fraction=0.9)
    with pytest.raises(RuntimeError, match=r"net\.0\.weight contains NaN"):
        fit(make_model(Poisoned), [renewing], steps=5)


@pytest.mark.filterwarnings("ignore::bio_lightning.NoEffectWarning")  # which is told as well
def test_readers_have_to_exist_also_where_none_is_read():
    with pytest.raises(BioConfigError, match=r"weight_rejuvenation\.readers: got 'net\.22'.*Did you mean 'net\.2'"):
        fit(make_model(MLP), [WeightRejuvenation(readers={"net.0": ("net.22",)})], steps=1)


def test_an_embedding_of_nothing_but_padding_is_left_out():
    class Empty(Transformer):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.nothing = nn.Embedding(1, 8, padding_idx=0)

        def forward(self, x):
            return super().forward(x) + 0 * self.nothing.weight.sum()

    rejuvenating = WeightRejuvenation(every_n_steps=1, dre=1e-6)
    fit(make_model(Empty), [rejuvenating], steps=2)
    assert "nothing.weight" in [synapses.name for synapses in rejuvenating.skipped]
    assert "embed.weight" in rejuvenating.targets


def test_nan_is_raised_at_the_start():
    model = make_model(Wide)
    with torch.no_grad():
        model.net[2].weight[3, 3] = float("nan")
    with pytest.raises(RuntimeError, match=r"net\.2\.weight contains NaN"):
        fit(model, [WeightRejuvenation(every_n_steps=100)], steps=1)
    assert model.seen_random == [], "before the first step"


def test_layer_without_spread_is_skipped_with_one_notice(caplog):
    class Zeroed(Wide):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            nn.init.zeros_(self.net[4].weight)

    with caplog.at_level("INFO"):
        model, rejuvenation = make_model(Zeroed), WeightRejuvenation(every_n_steps=1, dre=1.0)
        fit(model, [rejuvenation], steps=3)
    told = [r for r in caplog.records if "net.4.weight is not rejuvenated" in r.message]
    assert len(told) == 1
    assert int(rejuvenation.session.store["net.4.weight"]["replaced_total"]) == 0
    assert int(rejuvenation.session.store["net.0.weight"]["replaced_total"]) > 0


# ---- dormant units ---------------------------------------------------------------------------------------------------


class Dormant(MLP):
    """The first three hidden units never fire."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        nn.init.constant_(self.net[0].bias[:3], -50.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_dormant_units_start_anew(optimizer):
    plain, bio = make_model(Dormant, optimizer), make_model(Dormant, optimizer)
    fit(plain, steps=4)
    rejuvenation = WeightRejuvenation(select="activity", every_n_steps=4, include="net.0*")
    trainer = fit(bio, [rejuvenation], steps=4)
    old, new = weights_of(plain), weights_of(bio)
    assert (new["net.0.weight"][:3] != old["net.0.weight"][:3]).all()
    assert torch.equal(new["net.0.weight"][3:], old["net.0.weight"][3:])
    assert new["net.0.bias"][:3].eq(0).all()
    assert torch.equal(new["net.0.bias"][3:], old["net.0.bias"][3:])
    assert new["net.2.weight"][:, :3].eq(0).all()
    assert torch.equal(new["net.2.weight"][:, 3:], old["net.2.weight"][:, 3:])
    assert int(rejuvenation.session.store["net.0.weight"]["replaced"]) == 3 * 6
    if optimizer == "adam":
        for parameter, part in ((bio.net[0].weight, slice(0, 3)), (bio.net[0].bias, slice(0, 3))):
            assert trainer.optimizers[0].state[parameter]["exp_avg"][part].eq(0).all()
        assert trainer.optimizers[0].state[bio.net[2].weight]["exp_avg"][:, :3].eq(0).all()
        assert trainer.optimizers[0].state[bio.net[2].weight]["exp_avg"][:, 3:].ne(0).any()


def test_a_silenced_synapse_is_neither_replaced_nor_new():
    rejuvenation = WeightRejuvenation(select="activity", every_n_steps=4, include=("net.0*", "net.2*"))
    fit(make_model(Dormant), [rejuvenation, BioMonitor(alerts=False)], steps=4)
    store = rejuvenation.session.store
    assert store["net.0.weight"]["born"][:3].eq(4).all()
    born, replaced = store["net.2.weight"]["born"], int(store["net.2.weight"]["replaced_total"])
    assert int((born == 4).sum()) == replaced < born.numel(), "only those of its own dormant units"


def test_every_due_step_counts_in_the_time_that_synapses_lived():
    class Hasty(MLP):
        """Four steps in every batch."""

        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for _ in range(4):
                self.optimizers().zero_grad()
                self.manual_backward(self(batch[0]).square().mean())
                self.optimizers().step()

    rejuvenation = WeightRejuvenation(every_n_steps=2)
    fit(make_model(Hasty), [rejuvenation], steps=12)
    assert rejuvenation.session.steps == [48]
    assert int(rejuvenation.session.store["net.2.weight"]["lived"]) == 48


def test_dormant_is_relative_to_the_layers_mean_rate():
    model, rejuvenation = (
        make_model("MLP"),
        WeightRejuvenation(select="activity", every_n_steps=1, dormant_fraction=0.6, include="net.0*"),
    )
    rate = (model.net[0](model.batches(1)[0][0]) > 0).float().mean(dim=0)
    expected = int((rate < 0.6 * rate.mean()).sum())
    assert 0 < expected < int((rate < 0.6).sum())
    fit(model, [rejuvenation], steps=1)
    assert int(rejuvenation.session.store["net.0.weight"]["replaced"]) == 6 * expected


def test_a_renewed_unit_gets_time_to_find_its_rate():
    rejuvenation = WeightRejuvenation(select="activity", every_n_steps=1, include="net.0*")
    fit(make_model(Dormant), [rejuvenation], steps=2)
    assert int(rejuvenation.session.store["net.0.weight"]["replaced_total"]) == 3 * 6


def test_other_weights_of_a_layer_with_dormant_units_shrink():
    plain, bio = make_model(Dormant), make_model(Dormant)
    fit(plain, steps=4)
    fit(bio, [WeightRejuvenation(select="activity", every_n_steps=4, include="net.0*", shrinkage=0.25)], steps=4)
    assert torch.equal(weights_of(bio)["net.0.weight"][3:], 0.75 * weights_of(plain)["net.0.weight"][3:])
    assert torch.equal(weights_of(bio)["net.2.weight"][:, 3:], weights_of(plain)["net.2.weight"][:, 3:])


def test_renewed_units_obey_dale():
    class Quiet(Wide):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            nn.init.constant_(self.net[2].bias[:5], -50.0)

    bio, turnover = make_model(Quiet), WeightRejuvenation(select="activity", every_n_steps=2, include="net.2*")
    fit(bio, [turnover, DalesPrinciple(excitatory_fraction=0.5)], steps=2)
    assert int(turnover.session.store["net.2.weight"]["replaced"]) >= 5 * 100
    signs = dale_signs(bio)["net.2.weight"]
    assert torch.equal(weights_of(bio)["net.2.weight"][:5].sign(), signs.expand(5, 100))


def test_moments_around_renewed_units_are_reset():
    plain, bio = make_model("MLP", "adam"), make_model("MLP", "adam")
    alone = fit(plain, steps=3).optimizers[0].state
    turnover = WeightRejuvenation(select="activity", every_n_steps=3, dormant_fraction=1.0, include="net.0*")
    state = fit(bio, [turnover], steps=3).optimizers[0].state
    new = weights_of(bio)["net.2.weight"].eq(0).all(dim=0)
    assert 0 < new.sum() < 16
    for old_parameter, parameter, mask in (
        (plain.net[0].weight, bio.net[0].weight, new[:, None].expand(16, 6)),
        (plain.net[0].bias, bio.net[0].bias, new),
        (plain.net[2].weight, bio.net[2].weight, new.expand(12, 16)),
    ):
        old, now = alone[old_parameter], state[parameter]
        assert old["exp_avg"][mask].ne(0).any(), "they fired before"
        assert now["exp_avg"][mask].eq(0).all()
        assert torch.allclose(now["exp_avg_sq"][mask], old["exp_avg_sq"].mean(), rtol=1e-5)
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(now[key][~mask], old[key][~mask])


def test_feature_maps_are_followed_through_norm_pooling_and_flattening():
    class Flattened(CNN):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.net = nn.Sequential(
                nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 8),
                nn.ReLU(), nn.Linear(8, 4),
            )  # fmt: skip
            nn.init.constant_(self.net[1].bias[2:3], -50.0)

    bio = make_model(Flattened)
    fit(bio, [WeightRejuvenation(select="activity", every_n_steps=2, include="net.0*")], steps=2)
    assert weights_of(bio)["net.5.weight"][:, 8:12].eq(0).all()
    assert weights_of(bio)["net.5.weight"][:, :8].ne(0).all()
    assert weights_of(bio)["net.5.weight"][:, 12:].ne(0).all()


class Residual(Dormant):
    """What reads the first layer cannot be told: its output is added to something."""

    def forward(self, x):
        hidden = self.net[0](x)
        return self.net[2:](hidden + hidden.flip(1))


def test_unknown_readers_are_said_and_can_be_given(caplog):
    plain = make_model(Residual)
    fit(plain, steps=2)
    rule = {"select": "activity", "every_n_steps": 2, "include": "net.0*", "dormant_fraction": 0.3}
    with caplog.at_level("INFO"):
        bio = make_model(Residual)
        fit(bio, [WeightRejuvenation(**rule)], steps=2)
    assert "who reads net.0 is unknown" in caplog.text
    assert different(weights_of(plain), weights_of(bio)) == ["net.0.weight", "net.0.bias"]
    given = make_model(Residual)
    fit(given, [WeightRejuvenation(**rule, readers={"net.0": ["net.2"]})], steps=2)
    assert weights_of(given)["net.2.weight"][:, :3].eq(0).all()


def test_unknown_names_among_readers_are_an_error():
    rule = {"select": "activity", "include": "net.0*"}
    with pytest.raises(BioConfigError, match=r"weight_rejuvenation\.readers: got 'net\.22'.*Did you mean 'net\.2'"):
        fit(make_model(Residual), [WeightRejuvenation(**rule, readers={"net.0": ["net.22"]})])


def test_output_layer_is_never_dormant():
    model, rejuvenation = make_model("MLP"), WeightRejuvenation(select="activity")
    fit(model, [rejuvenation], steps=1)
    assert set(rejuvenation.targets) == {"net.0.weight", "net.2.weight"}
    assert [s.name for s in rejuvenation.skipped] == ["net.4.weight"]


def test_padding_row_of_an_embedding_stays_zero():
    class Padded(Transformer):
        def __init__(self, optimizer: str = "sgd") -> None:
            super().__init__(optimizer)
            self.embed = nn.Embedding(11, 8, padding_idx=3)

    bio = make_model(Padded)
    fit(bio, [WeightRejuvenation(every_n_steps=1, dre=1e-6)], steps=2)
    assert weights_of(bio)["embed.weight"][3].eq(0).all()
    assert weights_of(bio)["embed.weight"][4:].ne(0).all()
