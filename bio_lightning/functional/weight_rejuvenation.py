"""Weight rejuvenation: weak synapses are removed and new ones grow, as dendritic spines do."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bio_lightning.functional._compiling import computed_once
from bio_lightning.functional._exponential import exp_of_negative
from bio_lightning.functional._layer import computing_dtype, total
from bio_lightning.functional.noise import Draw, Noise
from bio_lightning.functional.quantiles import from_quantiles

__all__ = ["Source", "fresh_synapses", "lognormal_fit", "rejuvenate_weights", "turnover_mask"]

#: Where new synapses come from.
Source = Literal["init", "lognormal", "zero"]


#: Where even the smallest uniform number, 2**-24, is not below ``exp(-x)``.
_NEVER = 16.64


@torch.no_grad()
def turnover_mask(weight: Tensor, noise: Noise | Draw, *, dre: float = 8.0, scale: Tensor | float) -> Tensor:
    r"""Which synapses are replaced, each with a probability that falls with its size.

    .. math:: p = \exp(-dre \cdot |w| / scale)

    Args:
        weight: Any shape.
        noise: Seed, stream and step of the draw.
        dre: Selectivity, > 0; the larger, the fewer synapses are replaced. Infinity replaces none.
        scale: Standard deviation of the layer's weights, > 0.

    Returns:
        bool, the shape of ``weight``.

    Example:
        >>> turnover_mask(torch.tensor([0.0, 9.0]), Noise(), scale=1.0)
        tensor([ True, False])
    """
    size = weight.abs().to(computing_dtype(weight))
    exponent = size * computed_once(dre / torch.as_tensor(scale, dtype=size.dtype, device=size.device))
    if torch.compiler.is_compiling():
        return noise.uniform(weight) < exp_of_negative(exponent.clamp(max=_NEVER), 1.0, squarings=4)
    return noise.uniform(weight) < exponent.neg_().exp_()


@torch.no_grad()
def fresh_synapses(
    weight: Tensor,
    noise: Noise | Draw,
    *,
    source: Source = "init",
    table: Tensor | None = None,
    signs: Tensor | None = None,
    fit: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """A new synapse for every weight.

    Args:
        weight: Any shape.
        noise: Seed, stream and step of the draw.
        source: ``init``: the distribution tabulated in ``table``; ``lognormal``: magnitudes from the log-normal fit of
            the layer's nonzero weights, with random sign; ``zero``: a silent synapse.
        table: Quantiles of the layer's initial weights, from
            :func:`~bio_lightning.functional.quantiles.quantile_table`, or its ``segments``; required by ``init``.
        signs: +1/-1, broadcastable to ``weight``: signs imposed by Dale's principle.
        fit: The layer's :func:`lognormal_fit`, where ``weight`` is only a piece of it.

    Returns:
        The shape and dtype of ``weight``.

    Raises:
        ValueError: ``source`` is ``init`` and no table is given.

    Example:
        >>> fresh_synapses(torch.zeros(2), Noise(), source="zero")
        tensor([0., 0.])
    """
    if source == "zero":
        return torch.zeros_like(weight)
    if source == "init":
        if table is None:
            raise ValueError("source='init' needs the quantile table of the layer's initial weights")
        new = from_quantiles(noise.derive("value").uniform(weight), table)
    else:
        centre, spread = lognormal_fit(weight) if fit is None else fit
        new = torch.exp(centre + spread * noise.derive("value").normal(weight))
        new = torch.where(noise.derive("sign").uniform(weight) < 0.5, -new, new)
    return (new if signs is None else new.abs() * signs).to(weight.dtype)


@torch.no_grad()
def lognormal_fit(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the logarithm of the sizes of a layer's nonzero weights.

    Args:
        weight: Any shape.

    Returns:
        Two 0-dim tensors; minus infinity and 0 for a layer of zeros, whose fitted sizes are then 0.

    Example:
        >>> lognormal_fit(torch.tensor([1.0, -1.0, 0.0]))
        (tensor(0.), tensor(0.))
    """
    size = weight.abs().to(torch.float64)
    alive = size > 0
    count = total(alive)
    logs = torch.where(alive, size, torch.ones_like(size)).log()
    centre = total(logs) / count.clamp(min=1)
    spread = (total(torch.where(alive, logs - centre, torch.zeros_like(logs)).square()) / count.clamp(min=1)).sqrt()
    centre = torch.where(count > 0, centre, -torch.inf)
    return centre.to(computing_dtype(weight)), spread.to(computing_dtype(weight))


@torch.no_grad()
def rejuvenate_weights(
    weight: Tensor,
    noise: Noise | Draw,
    *,
    scale: Tensor | float,
    dre: float = 8.0,
    shrinkage: float = 0.0,
    source: Source = "init",
    table: Tensor | None = None,
    signs: Tensor | None = None,
    fit: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Replace weak weights by fresh synapses and let the others shrink.

    Args:
        weight: Any shape.
        noise: Seed, stream and step of the event.
        scale: Standard deviation of the layer's weights, initial or current, > 0.
        dre: See :func:`turnover_mask`.
        shrinkage: Share that surviving weights lose, in [0, 1).
        source: See :func:`fresh_synapses`.
        table: See :func:`fresh_synapses`.
        signs: See :func:`fresh_synapses`.
        fit: See :func:`fresh_synapses`.

    Returns:
        The new weights and the mask of replaced ones, both in the shape of ``weight``.

    Example:
        >>> weight = torch.tensor([0.0, 9.0])
        >>> new, replaced = rejuvenate_weights(weight, Noise(), scale=1.0, source="zero", shrinkage=0.1)
        >>> new
        tensor([0.0000, 8.1000])

    References:
        Kasai et al., Spine dynamics in the brain, mental disorders and artificial neural networks, Nature Reviews
        Neuroscience 22, 2021; Hofmann et al., Nature Communications 16:5112, 2025; Hernandez-Garcia et al.,
        Reinitializing weights vs units for maintaining plasticity in neural networks, CoLLAs, 2025.
        Deviation: new weights have the layer's initial distribution, both signs.
    """
    replaced = turnover_mask(weight, noise.derive("replace"), dre=dre, scale=scale)
    fresh = fresh_synapses(weight, noise, source=source, table=table, signs=signs, fit=fit)
    return torch.where(replaced, fresh, weight * (1.0 - shrinkage)), replaced
