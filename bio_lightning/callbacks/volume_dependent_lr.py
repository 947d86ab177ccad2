"""Volume-dependent learning rates: wiring."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from bio_lightning import functional
from bio_lightning.callbacks.base import ReadWith
from bio_lightning.callbacks.mechanism import PlasticityMechanism
from bio_lightning.kernels import Block, Form, Rule
from bio_lightning.parameters import number
from bio_lightning.plasticity import Part
from bio_lightning.session import Session
from bio_lightning.synapses import Synapses

__all__ = ["VolumeDependentLR"]


class VolumeDependentLR(PlasticityMechanism):
    """Let large weights learn slowly and steadily, small ones fast and erratically.

    The maths: :func:`bio_lightning.functional.volume_dependent_lr`; the card: ``cards/volume_dependent_lr.md``.
    ``every_n_steps`` is how often the noise is drawn anew; the volume follows the weight at every step.

    Args:
        base_lr: Factor at volume 0 with ``normalize: false``; without effect otherwise. > 0.
        stability_factor: How much slower large weights learn; in [0, 80], and 0 is neutral.
        lr_variability: Standard deviation of the factor relative to its mean; >= 0, and 0 is neutral.
        reference: The weight of half the largest volume: ``layer_mean`` absolute weight, or ``absolute`` (1).
        normalize: Keep the layer's mean learning rate what the optimizer says.

    Raises:
        BioConfigError: A value is out of range.

    Example:
        >>> VolumeDependentLR(stability_factor=1.0).reference
        'layer_mean'
    """

    name: ClassVar[str] = "volume_dependent_lr"
    order: ClassVar[int] = 30
    read_with: ClassVar[ReadWith] = {"base_lr": ("normalize", (False,))}

    base_lr: float = number(0.1, gt=0)
    stability_factor: float = number(2.0, ge=0, le=80)
    lr_variability: float = number(0.2, ge=0)
    reference: Literal["layer_mean", "absolute"] = "layer_mean"
    normalize: bool = True

    def part(self, session: Session, layers: Sequence[Synapses], step: int) -> Part:
        """Factor of this step, a function of the weight before it."""
        drawn = step - (step - self.start_step) % self.every_n_steps
        return Part(self._form, noise=self.noises(layers, drawn))

    @functools.cached_property
    def _form(self) -> Form:
        relative = self.reference == "layer_mean"
        volume = (("stability_factor", self.stability_factor), ("reference", self.reference))
        factor = (("base_lr", self.base_lr), ("lr_variability", self.lr_variability), ("normalize", self.normalize))
        return Form(
            factor=Rule(_factor, (*volume, *factor), reads_average=relative),
            statistic=Rule(_stability, volume, reads_average=relative) if self.normalize else None,
        )


def _stability(block: Block, **volume: Any) -> Tensor:
    return functional.stability(block.weight, block.average, **volume)


def _factor(block: Block, **settings: Any) -> Tensor:
    assert block.draw is not None  # noqa: S101 - the pass gives it
    return functional.volume_dependent_lr(
        block.weight, block.draw, average=block.average, average_stability=block.mean, **settings
    )
