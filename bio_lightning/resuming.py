"""A checkpoint and the callbacks of today: whose state goes to whom, and what differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from bio_lightning.functional._shards import shard, share_count
from bio_lightning.parameters import parameters
from bio_lightning.plasticity import Store
from bio_lightning.synapses import Synapses

if TYPE_CHECKING:
    from bio_lightning.callbacks.mechanism import Mechanism

__all__ = ["hand_over", "put_in_place"]

State = Mapping[str, Any]


def hand_over(mechanisms: Sequence[Mechanism], states: Mapping[str, Any]) -> None:
    """Give every mechanism its state, also where its patterns have changed, and say all that differs.

    Lightning delivers a state by class and patterns. Where a checkpoint has none under these, the state of the same
    class under patterns that nobody uses any more is taken, weight by weight.

    Args:
        mechanisms: Those of the Trainer.
        states: States of all callbacks in a checkpoint.
    """
    ours = {key: state for key, state in states.items() if _is_ours(state)}
    if not ours:
        rank_zero_info("bio_lightning: the checkpoint holds no state of bio callbacks; theirs starts with its weights")
        return
    present = {mechanism.state_key for mechanism in mechanisms}
    unclaimed = [key for key in ours if key not in present]
    dropped = dict.fromkeys(unclaimed)
    differences = []
    for mechanism in mechanisms:
        keys = [mechanism.state_key]
        if mechanism.state_key not in ours:
            keys = [key for key in unclaimed if key.partition("{")[0] == type(mechanism).__qualname__]
            if keys:
                mechanism.load_state_dict(_merged([ours[key] for key in keys]))
            else:
                differences.append(f"{mechanism.state_key}: not in the checkpoint, on now; its state starts anew")
        for key in keys:
            dropped.pop(key, None)
            differences += _changes(mechanism, ours[key]["arguments"])
    differences += [f"{key}: in the checkpoint, off now; its state is dropped" for key in dropped]
    if differences:
        rank_zero_warn(
            "bio_lightning resumes with another configuration than the checkpoint's; the present one wins, save where"
            " it says otherwise.\n  " + "\n  ".join(differences)
        )


def put_in_place(store: Store, synapses: Mapping[str, Synapses], counts: Collection[str]) -> None:
    """Put what is kept of a weight where the weight is: on its device, and in shards where it is in shards.

    A checkpoint holds it whole, so that any number of processes can go on from it.

    Args:
        store: Tensors by weight and key.
        synapses: The weights by name.
        counts: Keys of what counts synapses.
    """
    for name, held in synapses.items():
        weight, tensors = held.weight, store.get(name, {})
        for key, tensor in tensors.items():
            placed = shard(tensor, weight) if tensor.shape == weight.shape else tensor
            tensors[key] = (share_count(placed, weight) if key in counts else placed).to(weight.device)


def _is_ours(state: Any) -> bool:
    return isinstance(state, Mapping) and state.keys() >= {"arguments", "steps", "weights"}


def _merged(states: Sequence[State]) -> dict[str, Any]:
    weights = {name: dict(tensors) for state in states for name, tensors in state["weights"].items()}
    return {**states[0], "weights": weights}


def _changes(mechanism: Mechanism, saved: State) -> Iterator[str]:
    """A line for every argument that differs; one that the checkpoint does not know had its default."""
    defaults = {
        field.name: field.default
        for field in parameters(mechanism)
        if field.default is not dataclasses.MISSING and not isinstance(field.default, tuple)
    }
    for key, now in mechanism.arguments().items():
        before = saved.get(key, defaults.get(key, now))
        if before != now:
            line = f"{type(mechanism).__name__}.{key}: {before!r} in the checkpoint, {now!r} now"
            settled = key in mechanism.settled_at_start
            yield f"{line}; the checkpoint's wins for what was drawn at the start" if settled else line
