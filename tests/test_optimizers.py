"""Who owns a weight, how a multiplier acts on it, and what becomes of its moments."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bio_lightning.events import Change, change_weight
from bio_lightning.kernels import Rule
from bio_lightning.layout import Layout
from bio_lightning.optimizers import Owners, apply_to_for, moments_of, splits_gradient
from tests.models import OPTIMIZERS


class ScaledSGD(torch.optim.SGD):
    """A subclass may do anything with a gradient."""


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "gradient"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "gradient"),
        (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01), "update"),
        (lambda p: ScaledSGD(p, lr=0.1), "update"),
        *[(OPTIMIZERS[name], "update") for name in ("adam", "adamw", "rmsprop", "adagrad")],
        (lambda p: torch.optim.LBFGS(p), "update"),
    ],
)
def test_auto_picks_the_gradient_only_where_it_is_the_learning_rate(make, expected):
    weight = nn.Parameter(torch.zeros(2))
    owner = Owners([make([weight])]).find(weight)
    assert apply_to_for("auto", owner) == expected
    assert apply_to_for("update", owner) == "update"
    assert splits_gradient(owner, "update") == (type(owner.optimizer) is torch.optim.SGD)


def test_owner_is_found_by_group_and_after_groups_have_grown():
    first, second, late = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizers = [torch.optim.SGD([first], lr=0.1), torch.optim.Adam([{"params": [second], "lr": 0.5}])]
    owners = Owners(optimizers)
    assert owners.find(second).index == 1
    assert owners.find(second).group["lr"] == 0.5
    assert owners.find(late) is None
    optimizers[0].add_param_group({"params": [late], "lr": 0.7})
    assert owners.find(late).group["lr"] == 0.7


def stepped(make) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3))
    optimizer = make([weight])
    for _ in range(3):
        weight.grad = torch.randn(4, 3)
        optimizer.step()
    return weight, optimizer


MASK = torch.tensor([[True, False, False]] * 4)
OF_FIRST_ORDER = {"exp_avg", "momentum_buffer", "grad_avg"}


def _changed(block):
    return block.weight, block.operands[0]


def reset_moments(optimizer, weight, mask, how):
    kept, unknown = moments_of(optimizer, weight, how)
    change_weight(Change(Rule(_changed), operands=(mask,)), weight, Layout(weight), kept=kept)
    return unknown


@pytest.mark.parametrize(
    "make",
    [
        *OPTIMIZERS.values(),
        lambda p: torch.optim.Adam(p, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.9),
        lambda p: torch.optim.Adamax(p),
        lambda p: torch.optim.NAdam(p),
        lambda p: torch.optim.RAdam(p),
        lambda p: torch.optim.Adadelta(p),
    ],
)
@pytest.mark.parametrize("how", ["zero", "layer_mean", "keep"])
def test_moments_of_new_synapses(make, how):
    weight, optimizer = stepped(make)
    old = {k: v.clone() if torch.is_tensor(v) else v for k, v in optimizer.state[weight].items()}
    assert reset_moments(optimizer, weight, MASK, how) == []
    for key, new in optimizer.state[weight].items():
        if not torch.is_tensor(new) or new.shape != weight.shape:
            assert new == old[key] if not torch.is_tensor(new) else torch.equal(new, old[key])
            continue
        assert torch.equal(new[~MASK], old[key][~MASK])
        if how == "keep":
            assert torch.equal(new, old[key])
        elif how == "zero" or key in OF_FIRST_ORDER:
            assert new[MASK].eq(0).all()
        else:
            assert torch.allclose(new[MASK], old[key].mean())


def test_unknown_moments_are_named_and_left_alone():
    weight, optimizer = stepped(OPTIMIZERS["adam"])
    optimizer.state[weight]["prodigy"] = torch.ones(4, 3)
    assert reset_moments(optimizer, weight, MASK, "zero") == ["prodigy"]
    assert optimizer.state[weight]["prodigy"].eq(1).all()


def test_nothing_to_reset_before_the_first_step():
    weight = nn.Parameter(torch.zeros(4, 3))
    assert reset_moments(torch.optim.Adam([weight]), weight, MASK, "zero") == []
