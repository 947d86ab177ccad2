"""The table of what acts where: the same at the start of training and without training, and true."""

from __future__ import annotations

import logging

import pytest
import torch

from bio_lightning import (
    BioMonitor,
    Crystallization,
    DalesPrinciple,
    FuzzyLearningRates,
    WeightSplitting,
    bio_callbacks,
)
from bio_lightning.cli.planning import plan_of
from bio_lightning.plan import plan_rows, plan_table
from bio_lightning.session import Session
from tests.cases import all_on
from tests.models import fit, make_model

LAYERS = ("net.0.weight", "net.2.weight", "net.4.weight")
SIZES = (6 * 16, 16 * 12, 12 * 4)


def rows_of(callbacks, model="MLP", optimizer="sgd"):
    """Rows by layer, after a fit of one step."""
    module = make_model(model, optimizer)
    rows = []

    class Look(BioMonitor):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            rows.extend(plan_rows(self.session))

    fit(module, [*callbacks, Look()], steps=1)
    return {row.layer: row for row in rows}


def test_one_row_per_layer_with_what_acts_there():
    rows = rows_of([FuzzyLearningRates(), Crystallization(exclude=("net.0",)), DalesPrinciple()])
    assert tuple(rows) == LAYERS
    assert tuple(row.synapses for row in rows.values()) == SIZES
    assert rows["net.0.weight"].mechanisms == ("FuzzyLearningRates",)
    assert set(rows["net.2.weight"].mechanisms) == {"FuzzyLearningRates", "Crystallization", "DalesPrinciple"}
    assert {(row.kind, row.apply_to, row.kernel) for row in rows.values()} == {("linear", "gradient", "eager")}


@pytest.mark.parametrize(("optimizer", "applied"), [("sgd", "gradient"), ("sgd_decay", "update"), ("adam", "update")])
def test_memory_is_what_is_kept(optimizer, applied):
    rows = rows_of([FuzzyLearningRates(), Crystallization()], optimizer=optimizer)
    tensors = 2 if applied == "gradient" else 3  # base, crystal, and a copy of the weight
    assert {row.apply_to for row in rows.values()} == {applied}
    assert tuple(row.memory for row in rows.values()) == tuple(4 * tensors * size for size in SIZES)


def test_memory_of_a_smaller_state():
    rows = rows_of([FuzzyLearningRates(state_dtype="bfloat16")])
    assert tuple(row.memory for row in rows.values()) == tuple(2 * size for size in SIZES)


def test_split_layers_count_their_synapses_and_their_further_weights():
    count = torch.tensor(3)
    rows = rows_of([WeightSplitting(gamma=3)])
    assert tuple(row.synapses for row in rows.values()) == tuple(3 * size for size in SIZES)
    # two more weights and gradients per connection, and the number of synapses
    expected = tuple(2 * 2 * 4 * size + count.element_size() for size in SIZES)
    assert tuple(row.memory for row in rows.values()) == expected


def test_nothing_acts_where_no_multiplier_or_no_optimizer_does():
    rows = rows_of([DalesPrinciple(include=("net.2",))])
    assert {(row.apply_to, row.kernel) for row in rows.values()} == {("-", "-")}
    assert (rows["net.0.weight"].mechanisms, rows["net.0.weight"].memory) == ((), 0)
    frozen = rows_of([FuzzyLearningRates()], "Frozen", "adam")["net.2.weight"]
    assert (frozen.apply_to, frozen.kernel, frozen.memory) == ("no optimizer", "-", 4 * SIZES[1])


def test_table_numbers_the_mechanisms():
    module = make_model("MLP")  # which a session does not keep
    session = Session(module, [FuzzyLearningRates(), DalesPrinciple(include=("net.2",))])
    session.survey([])
    lines = plan_table(session).splitlines()
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["net.0.weight", "linear", "96", "1"],
        ["net.2.weight", "linear", "192", "1"],
        ["net.4.weight", "linear", "48", "1"],
    ]
    assert lines[2].split()[4] == "2"
    assert lines[4].split() == ["total", "336", "1.3", "KiB"], "the copies that updates might need"
    assert lines[5] == "mechanisms: 1 FuzzyLearningRates, 2 DalesPrinciple"
    assert len({len(line) for line in lines[:5]}) == 1, "columns are aligned"


@pytest.mark.parametrize("model", ["MLP", "CNN", "Transformer", "Frozen", "Tied"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_monitor_prints_at_fit_start_what_the_plan_says(model, optimizer, caplog):
    with caplog.at_level(logging.INFO):
        fit(make_model(model, optimizer), [BioMonitor(), *all_on()], steps=2)
    (message,) = [record.message for record in caplog.records if "what acts where" in record.message]
    planned = plan_of(make_model(model, optimizer), [BioMonitor(), *all_on()])
    assert message == f"bio_lightning: what acts where\n{planned}"


def test_monitor_alone_has_no_table(caplog):
    with caplog.at_level(logging.INFO):
        fit(make_model("MLP"), [BioMonitor()], steps=1)
    assert "what acts where" not in caplog.text


def test_plan_builds_what_the_module_configures_later():
    class Late(type(make_model("MLP"))):
        def __init__(self):
            super().__init__()
            self.made, self.net = self.net, None

        def configure_model(self):
            self.net = self.made

    assert "net.0.weight" in plan_of(Late(), bio_callbacks("default"))


def test_shared_forward_order_reaches_the_split():
    order = ("net.4", "net.2", "net.0")
    callbacks = [FuzzyLearningRates(forward_order=order), WeightSplitting(mode="grouped")]
    module = make_model("MLP")
    module.forward = lambda x: module.net[0](x) if x is None else x
    lines = plan_of(module, callbacks).splitlines()
    split = {line.split()[0] for line in lines[1:4] if line.split()[3:5] == ["1", "2"]}
    assert split == {"net.4.weight", "net.2.weight"}, "the last in the given order is the output layer"
