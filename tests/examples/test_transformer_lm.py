"""The character-level GPT: what its blocks are made of, what it beats, and what it says where something is wrong."""

import re

import pytest
import torch
from torch import nn

import transformer_lm
from bio_lightning import bio_callbacks
from bio_lightning.callbacks import REGISTRY, Mechanism


def test_loss_of_counted_characters():
    """Two characters, each seen once more than it was: worked by hand."""
    train, validation = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 0])
    frequencies = transformer_lm.counted_loss(train, validation, 2, order=1)
    assert frequencies == pytest.approx(-torch.tensor([2 / 5, 3 / 5]).log().mean().item())
    pairs = transformer_lm.counted_loss(train, validation, 2, order=2)
    assert pairs == pytest.approx(-torch.tensor([2 / 5, 1 / 2]).log().mean().item())


def test_next_character_depends_on_no_later_one():
    model = transformer_lm.CharacterGPT(characters=7).eval()
    text = torch.randint(7, (1, 20), generator=torch.Generator().manual_seed(0))
    changed = text.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 7
    with torch.no_grad():
        difference = (model(text) - model(changed)).abs().amax(dim=(0, 2))
    assert difference[:12].max() < 1e-5
    assert difference[12:].min() > 1e-4


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_all_mechanisms_act_on_all_linear_layers_of_the_blocks(tmp_path, monkeypatch, capsys):
    seen = {}

    def callbacks(*arguments):
        seen["callbacks"] = bio_callbacks(*arguments)
        return seen["callbacks"]

    monkeypatch.setattr(transformer_lm, "bio_callbacks", callbacks)
    assert transformer_lm.main(["--config", "all", "--steps", "2", "--out", str(tmp_path)]) == 0
    model = transformer_lm.CharacterGPT(characters=2)
    linear = {f"{n}.weight" for n, layer in model.named_modules() if isinstance(layer, nn.Linear) and "blocks" in n}
    assert len(linear) == 12
    mechanisms = [callback for callback in seen["callbacks"] if isinstance(callback, Mechanism)]
    assert {mechanism.name: set(mechanism.targets) for mechanism in mechanisms} == {
        name: linear for name, callback in REGISTRY.items() if issubclass(callback, Mechanism)
    }
    assert len(capsys.readouterr().out) > 400


@pytest.mark.slow
def test_beats_models_that_count(tmp_path, capsys):
    assert transformer_lm.main(["--steps", "250", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    frequencies, pairs, network = (float(value) for value in re.findall(r"([\d.]+) nats per character", printed))
    assert network < pairs - 0.1 < frequencies - 0.6
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_mistake_in_an_override(capsys):
    assert transformer_lm.main(["fuzzy_learning_rates.nuu=0.3"]) == 2
    assert "error: fuzzy_learning_rates.nuu: got " in capsys.readouterr().err
