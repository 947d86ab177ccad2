"""Look inside: what the mechanisms of a fitted LightningModule know of its weights."""

from __future__ import annotations

from torch import Tensor, nn

from bio_lightning.functional._shards import whole
from bio_lightning.session import Session

__all__ = ["dale_signs", "multipliers"]


def multipliers(pl_module: nn.Module) -> dict[str, Tensor]:
    """Current stored multiplier of every weight that has one, during and after ``fit``.

    The multiplier is the product of the fuzzy factor and the crystallization factor. What is drawn anew each step
    (volume) or belongs to a neuron (scaling) is not part of it. Where a strategy shards weights, all ranks have to ask.

    Args:
        pl_module: The LightningModule that was fitted.

    Returns:
        Tensors by parameter name, the shape of the weight; ``(gamma, *shape)`` where it is split.

    Raises:
        ValueError: No Trainer with bio callbacks has run on the module.
    """
    session = Session.of(pl_module)
    found = {}
    for name, synapses in session.synapses.items():
        step = session.step_of(synapses)
        kept = [m.part(session, [synapses], step) for m in session.acting(synapses) if m.keeps_multiplier]
        weight = synapses.weight.detach()
        factor = session.plasticity.factor([part for part in kept if part is not None], weight)
        if factor is not None:
            found[name] = whole(factor.detach()).clone()
    return found


def dale_signs(pl_module: nn.Module) -> dict[str, Tensor]:
    """Sign of every presynaptic neuron, by the name of the weight that reads it.

    Args:
        pl_module: The LightningModule that was fitted.

    Returns:
        +1/-1, shape ``(neurons,)``; postsynaptic neurons where ``axis`` is ``postsynaptic``.

    Raises:
        ValueError: No Trainer with bio callbacks has run on the module.
    """
    store = Session.of(pl_module).store
    return {name: tensors["signs"].clone() for name, tensors in store.items() if "signs" in tensors}
