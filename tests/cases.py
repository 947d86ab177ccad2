"""One entry per mechanism: what the sweeps run with. A mechanism without an entry fails every sweep by KeyError."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bio_lightning.callbacks import REGISTRY, BioCallback, Mechanism


@dataclass(frozen=True)
class Case:
    """Settings of one mechanism.

    Args:
        neutral: Settings under which nothing may change.
        active: Settings under which the run must change, by a label.
        kinds_missing: Zoo models that have no layer the mechanism acts on, in all or one of the settings.
        errors: Wrong arguments, with the key that the error must name.
        sensitive: Settings under which a few steps show every other setting that something reads.
        others: For every setting of its own a value that is neither the default nor the one above.
    """

    neutral: dict[str, Any]
    active: dict[str, dict[str, Any]]
    without: dict[str, tuple[str, ...]] = field(default_factory=dict)
    errors: tuple[dict[str, Any], ...] = ()
    sensitive: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {
    "fuzzy_learning_rates": Case(
        neutral={"distribution": "baseline"},
        active={
            **{
                name: {"distribution": name, "nu": 0.4}
                for name in ("uniform", "normal", "lognormal", "gamma", "beta", "layer_adaptive")
            },
            **{
                name: {"distribution": name, "nu": 0.4, "update_every": 2}
                for name in ("weight_adaptive", "temporal", "activity")
            },
        },
        errors=({"distribution": "lognormall"}, {"nu": -0.1}, {"min": 1.5}, {"max": 0.5}, {"decay": 0.0},
                {"update_every": 0}),
        sensitive={"nu": 0.8, "update_every": 2},
        others={
            "distribution": "gamma", "nu": 0.4, "min": 0.8, "max": 1.2, "update_every": 1, "every_n_steps": 3,
            "decay": 0.5,
        },
    ),
    "volume_dependent_lr": Case(
        neutral={"stability_factor": 0.0, "lr_variability": 0.0},
        active={
            "relative": {"stability_factor": 3.0},
            "absolute": {"reference": "absolute", "normalize": False, "base_lr": 0.5},
            "held": {"every_n_steps": 3},
        },
        errors=({"base_lr": 0.0}, {"stability_factor": -1.0}, {"stability_factor": 81.0}, {"lr_variability": -0.1},
                {"reference": "mean"}),
        others={
            "base_lr": 0.5, "stability_factor": 1.0, "lr_variability": 0.1, "reference": "absolute",
            "normalize": False, "every_n_steps": 3,
        },
    ),
    "synaptic_scaling": Case(
        neutral={"strength": 0.0},
        active={
            "multiplicative": {"target": 0.2, "strength": 0.7},
            "tetzlaff": {"rule": "tetzlaff", "target": 0.9, "rate": 50.0, "max_change": 0.1},
        },
        errors=({"target": 0.0}, {"target": "mean"}, {"strength": -1}, {"rule": "hebb"}, {"max_change": 2.0}),
        sensitive={"target": 0.2, "rate": 0.5},
        others={
            "rule": "tetzlaff", "target": 0.4, "strength": 0.5, "min": 0.9, "max": 1.1, "rate": 0.1,
            "max_change": 0.0001, "every_n_steps": 3,
        },
    ),
    "crystallization": Case(
        neutral={"dampening_factor": 1.0},
        active={
            "gradient": {"crystal_thresh": 0.1, "recovery": 0.2},
            "use": {"criterion": "use", "use_thresh": 0.8},
        },
        errors=({"dampening_factor": 0.0}, {"floor": 0.0}, {"recovery": 1.5}, {"criterion": "used"}),
        sensitive={"crystal_thresh": 0.1, "use_thresh": 0.8, "recovery": 0.2},
        others={
            "criterion": "use", "dampening_factor": 0.3, "crystal_thresh": 0.01, "use_thresh": 1.1, "floor": 0.5,
            "recovery": 0.1, "ignore_zero_grad": False, "every_n_steps": 2,
        },
    ),
    "weight_rejuvenation": Case(
        neutral={"dre": float("inf"), "every_n_steps": 1},
        active={
            "initial": {"dre": 2.0, "every_n_steps": 2, "shrinkage": 0.05},
            "current": {"dre": 2.0, "every_n_steps": 2, "reference": "current", "moments": "zero"},
            "lognormal": {"dre": 2.0, "every_n_steps": 3, "source": "lognormal", "moments": "keep"},
            "zero": {"dre": 2.0, "every_n_steps": 3, "source": "zero"},
            "activity": {"select": "activity", "dormant_fraction": 1.0, "every_n_steps": 2},
        },
        errors=({"dre": 0.0}, {"shrinkage": 1.0}, {"select": "size"}, {"dormant_fraction": -0.1}, {"moments": "mean"}),
        sensitive={"every_n_steps": 2, "dre": 2.0, "dormant_fraction": 1.0, "source": "lognormal"},
        others={
            "select": "activity", "dre": 1.0, "reference": "current", "shrinkage": 0.1, "source": "zero",
            "dormant_fraction": 0.5, "readers": {"net.0": ()}, "moments": "zero", "every_n_steps": 3,
        },
    ),
    "dales_principle": Case(
        neutral={"end_step": 0},
        active={
            "plain": {},
            "balanced": {"balanced": True, "excitatory_fraction": 0.6},
            "input": {"input_layer": True},
            "rows": {"axis": "postsynaptic"},
            "late": {"start_step": 2, "every_n_steps": 2},
        },
        errors=({"excitatory_fraction": 1.2}, {"axis": "pre"}, {"on_mismatch": "ignore"}, {"shared": "qkv"}),
        sensitive={"excitatory_fraction": 0.6},
        others={
            "excitatory_fraction": 0.3, "balanced": True, "input_layer": True, "axis": "postsynaptic",
            "every_n_steps": 4,
        },
    ),
    "weight_splitting": Case(
        neutral={"gamma": 1},
        active={
            "synapses": {"gamma": 3},
            "grouped": {"gamma": 2, "mode": "grouped"},
            "grouped_activation": {"gamma": 2, "mode": "grouped", "activation": "relu"},
        },
        errors=({"gamma": 0}, {"mode": "units"}, {"activation": "relu"}, {"mode": "grouped", "activation": "swish"}),
        sensitive={"gamma": 2},
        others={"gamma": 4, "mode": "grouped"},
    ),
}  # fmt: skip

MECHANISMS: dict[str, type[Mechanism]] = {
    name: callback for name, callback in REGISTRY.items() if issubclass(callback, Mechanism)
}
ACTIVE = [(name, label) for name in MECHANISMS for label in CASES[name].active]
ACTIVE_IDS = [f"{name}-{label}" for name, label in ACTIVE]


def active(name: str, label: str, **more: Any) -> BioCallback:
    """The callback of one active case."""
    return MECHANISMS[name](**{**CASES[name].active[label], **more})


def neutral(name: str, **more: Any) -> BioCallback:
    """The callback at its neutral setting."""
    return MECHANISMS[name](**{**CASES[name].neutral, **more})


def all_on(**more: Any) -> list[BioCallback]:
    """All seven mechanisms at settings where every one of them acts within a few steps."""
    return [
        MECHANISMS["fuzzy_learning_rates"](distribution="weight_adaptive", nu=0.4, update_every=2, **more),
        MECHANISMS["volume_dependent_lr"](**more),
        MECHANISMS["synaptic_scaling"](rule="multiplicative", target=0.3, **more),
        MECHANISMS["crystallization"](crystal_thresh=0.05, **more),
        MECHANISMS["weight_rejuvenation"](every_n_steps=2, dre=3.0, shrinkage=0.02, **more),
        MECHANISMS["dales_principle"](**more),
        MECHANISMS["weight_splitting"](gamma=2, **more),
    ]
