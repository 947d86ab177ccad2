"""Fine-tuning: split from a plain checkpoint, trained, and folded into a plain one."""

import re

import pytest
import torch

import finetune
from data import load
from models import Classifier
from runs import evaluate


def test_split_and_fold(tmp_path, capsys):
    assert finetune.main(["--epochs", "2", "--out", str(tmp_path), "--gamma", "2"]) == 0
    printed = capsys.readouterr().out
    differences = [float(value) for value in re.findall(r"differ by at most (\S+),", printed)]
    largest = [float(value) for value in re.findall(r"of up to (\S+)", printed)]
    assert len(differences) == 2
    assert all(difference <= 1e-5 * size for difference, size in zip(differences, largest, strict=True))
    assert "split, (2, 120, 64)" in printed
    assert "folded, (120, 64)" in printed
    before, after = (float(value) for value in re.findall(r"(\S+) of the lying digits", printed))
    assert after > before + 0.3

    digits = load("digits")
    lying = finetune._on_their_side(digits)
    states = [torch.load(tmp_path / "finetuned.pt"), torch.load(tmp_path / "pretrained.ckpt")["state_dict"]]
    assert states[0].keys() == states[1].keys()
    accuracies = []
    for state in states:
        model = Classifier("mlp", digits.shape, digits.classes).eval()
        model.load_state_dict(state)
        accuracies.append(evaluate(model, lying.test)[1])
    assert accuracies == [pytest.approx(after, abs=1e-3), pytest.approx(before, abs=1e-3)]


def test_unequal_outputs_are_an_error():
    outputs = torch.tensor([1.0, 2.0])
    finetune._assert_equal("the same", outputs, outputs + 1e-6)
    for other in (outputs + 1e-3, torch.tensor([1.0, torch.nan])):
        with pytest.raises(AssertionError, match="another: outputs differ by "):
            finetune._assert_equal("another", outputs, other)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["weight_splitting.gamma=0"], "weight_splitting.gamma: got 0"),
        (["weight_splitting.mode=grouped"], "leave weight_splitting on, in mode synapses"),
        (["weight_splitting.enabled=false"], "leave weight_splitting on, in mode synapses"),
        (["weight_splitting.include=nowhere", "--epochs", "1"], "weight_splitting.include: got 'nowhere'"),
    ],
)
def test_mistakes_in_overrides(tmp_path, capsys, words, said):
    assert finetune.main([*words, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--epochs", "0"], ["--epochs", "-1"], ["--gamma", "0"]])
def test_mistakes_in_options(capsys, words):
    with pytest.raises(SystemExit):
        finetune.main(words)
    assert "is not positive" in capsys.readouterr().err


def test_a_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert finetune.main(["--epochs", "1", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
