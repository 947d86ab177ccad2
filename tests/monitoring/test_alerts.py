"""Each alert: when it comes, that it names layer and remedy, that it comes once, and when it stays away."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from bio_lightning import (
    BioMonitor,
    Crystallization,
    DalesPrinciple,
    FuzzyLearningRates,
    SynapseWarning,
    SynapticScaling,
    WeightRejuvenation,
    WeightSplitting,
)
from tests.callbacks.test_bio_monitor import Recorder
from tests.models import MLP, fit, make_model


def alerts(callbacks, model=MLP, steps=8, **arguments):
    """Texts of all alerts of a run that logs every step; other warnings are errors."""
    monitor = BioMonitor(**{"alert_patience": 4, **arguments})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SynapseWarning)
        fit(make_model(model), [*callbacks, monitor], steps=steps, logger=Recorder(), log_every_n_steps=1)
    return [str(warning.message) for warning in caught if warning.category is SynapseWarning]


RIGID = {"crystal_thresh": 1e9, "recovery": 0.0, "floor": 0.5}


def test_crystallized_at_the_floor():
    texts = alerts([Crystallization(**RIGID)])
    assert len(texts) == 3, "once for each layer"
    for layer, text in zip(("net.0", "net.2", "net.4"), texts, strict=True):
        assert text.startswith("bio_lightning: ")
        assert f"of the synapses of {layer}.weight are crystallized at the floor" in text
        assert "crystallization.recovery" in text


def test_share_is_a_threshold():
    assert alerts([Crystallization(**RIGID, include="net.0")], alert_share=1.0) == []
    assert len(alerts([Crystallization(**RIGID, include="net.0")], alert_share=0.9)) == 1


def test_high_floor_is_not_where_untouched_synapses_are():
    assert (
        alerts([Crystallization(crystal_thresh=0.0, floor=0.9, dampening_factor=0.5, include="net.0")], steps=3) == []
    )


class Silent(MLP):
    """Most units of the first two layers never fire, and no unit of the last one."""

    def __init__(self, optimizer="sgd"):
        super().__init__(optimizer)
        for layer, quiet in ((self.net[0], 12), (self.net[2], 9), (self.net[4], 4)):
            nn.init.constant_(layer.bias[:quiet], -100.0)


def test_dormant_units():
    texts = alerts([], model=Silent)
    assert len(texts) == 2, "an output layer has no dormant units"
    for layer, share, text in zip(("net.0", "net.2"), ("75%", "75%"), texts, strict=True):
        assert f"{share} of the units of {layer}.weight are dormant" in text
        assert "weight_rejuvenation.select=activity" in text
    assert alerts([], model=Silent, alert_share=0.8) == []


def test_turnover_that_stalls():
    never = WeightRejuvenation(dre=1e9, every_n_steps=2, include="net.2")
    (text,) = alerts([never])
    assert "no synapse of net.2.weight has been replaced for 4 steps" in text
    assert "weight_rejuvenation.dre" in text
    assert alerts([WeightRejuvenation(dre=1.0, every_n_steps=2, include="net.2")]) == []
    assert alerts([never], steps=4) == [], "4 logs span 3 steps"


def test_turnover_is_given_time_for_two_events():
    rare = WeightRejuvenation(dre=1e9, every_n_steps=5, include="net.2")
    assert alerts([rare], steps=10) == []
    assert len(alerts([rare], steps=12)) == 1


def test_no_dormant_unit_to_renew_is_fine():
    assert alerts([WeightRejuvenation(select="activity", dormant_fraction=0.0, every_n_steps=1)], alert_share=1.0) == []


@pytest.mark.parametrize(
    "callback",
    [FuzzyLearningRates(distribution="baseline", include="net.0"), SynapticScaling(strength=0.0, include="net.0"),
     SynapticScaling(rule="tetzlaff", rate=0.0, include="net.0"),
     Crystallization(dampening_factor=1.0, include="net.0")],
    ids=lambda callback: callback.name,
)  # fmt: skip
def test_mechanism_without_effect(callback):
    (text,) = alerts([callback])
    assert f"{callback.name} has had no effect on net.0.weight for 4 steps" in text
    assert f"{callback.name}.exclude" in text


def test_dale_without_effect():
    class Consistent(MLP):
        """Moves no weight."""

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    texts = alerts([DalesPrinciple()], model=Consistent)
    assert [text for text in texts if "no weight tried to change its sign" in text] == texts
    assert len(texts) == 2
    assert alerts([DalesPrinciple(input_layer=True, include="net.0")], alert_patience=100) == []


def test_mechanism_that_rests_or_works_is_fine():
    assert alerts([FuzzyLearningRates()]) == []
    assert alerts([SynapticScaling(rule="tetzlaff")]) == []
    late = FuzzyLearningRates(distribution="baseline", start_step=6)
    assert alerts([late]) == [], "outside its schedule it is not expected to do anything"
    assert len(alerts([late], steps=14)) == 3


def test_split_synapses_that_learn_alike():
    alike = WeightSplitting(gamma=3, include="net.2")
    (text,) = alerts([alike])
    assert "weight_splitting has had no effect on net.2.weight for 4 steps" in text
    assert "every connection learns as one weight would" in text
    assert "add fuzzy_learning_rates" in text
    assert "weight_splitting.exclude" in text
    assert alerts([alike], steps=4) == [], "4 logs span 3 steps"
    factor_of_the_neuron = SynapticScaling(target=0.2)
    texts = alerts([factor_of_the_neuron, WeightSplitting(gamma=7)])
    assert len(texts) == 3, "is the same for all its synapses, also where their mean would be rounded"
    assert len(alerts([FuzzyLearningRates(), WeightSplitting(gamma=1)])) == 3


def test_split_synapses_with_plasticity_of_their_own():
    assert alerts([WeightSplitting(), FuzzyLearningRates()]) == []
    assert alerts([WeightSplitting(), Crystallization(crystal_thresh=0.1)]) == []
    for moving in (WeightRejuvenation(every_n_steps=2, dre=1.0), SynapticScaling(rule="tetzlaff")):
        assert alerts([WeightSplitting(), moving]) == [], "moves every synapse by itself"
    late = FuzzyLearningRates(start_step=6)
    assert alerts([WeightSplitting(), late], steps=14) == [], "is yet to act"
    early = FuzzyLearningRates(end_step=2)
    assert alerts([WeightSplitting(), early], steps=14) == [], "has acted"


def test_grouped_units_are_never_without_effect():
    assert alerts([WeightSplitting(mode="grouped")], alert_share=1.0) == []


def test_frozen_layers_are_left_in_peace():
    class Frozen(MLP):
        def __init__(self, optimizer="sgd"):
            super().__init__(optimizer)
            self.net[2].requires_grad_(False)

    assert alerts([WeightRejuvenation(dre=1e9, every_n_steps=2, include="net.2")], model=Frozen) == []

    class SilentAndFrozen(Silent):
        def __init__(self, optimizer="sgd"):
            super().__init__(optimizer)
            self.net[0].requires_grad_(False)

    (text,) = alerts([], model=SilentAndFrozen)
    assert "net.2.weight" in text


def test_can_be_switched_off():
    assert alerts([Crystallization(**RIGID)], alerts=False, alert_patience=1000) == []
