"""Dale's principle: all outgoing weights of a neuron have one sign."""

from __future__ import annotations

import torch
from torch import Tensor

from bio_lightning.functional._layer import computing_dtype, ratio, total
from bio_lightning.functional.noise import Noise

__all__ = ["dalian_network_initialization", "enforce_dales_principle", "random_signs"]


@torch.no_grad()
def random_signs(neurons: int, noise: Noise, *, excitatory_fraction: float = 0.8, like: Tensor | None = None) -> Tensor:
    """+1 for exactly ``round(excitatory_fraction * neurons)`` neurons, -1 for the others, in random order.

    Args:
        neurons: How many presynaptic neurons.
        noise: Seed, stream and step of the draw.
        excitatory_fraction: Share of excitatory neurons, in [0, 1].
        like: Tensor whose device the result shares.

    Returns:
        float32, shape ``(neurons,)``.

    Example:
        >>> int(random_signs(10, Noise()).sum())
        6
    """
    device = None if like is None else like.device
    rank = noise.uniform(torch.empty(neurons, device=device)).argsort(stable=True).argsort()
    return torch.where(rank < round(excitatory_fraction * neurons), 1.0, -1.0)


@torch.no_grad()
def dalian_network_initialization(weight: Tensor, signs: Tensor, *, balanced: bool = False) -> Tensor:
    r"""Give every weight the sign of its neuron: w <- abs(w) s, without a redraw.

    Args:
        weight: Any shape.
        signs: +1/-1, broadcastable to ``weight``; for ``(out, in)`` one sign per *column*, shape ``(1, in)``.
        balanced: Scale inhibitory magnitudes so that the layer's weights sum to zero, then the layer to its old norm; a
            layer with weights of one sign only is left as it is.

    Returns:
        The shape and dtype of ``weight``.

    Example:
        >>> dalian_network_initialization(torch.tensor([[1.0, 2.0], [-3.0, -4.0]]), torch.tensor([[1.0, -1.0]]))
        tensor([[ 1., -2.],
                [ 3., -4.]])

    References:
        Song et al., Training excitatory-inhibitory recurrent neural networks, PLoS Computational Biology 12, 2016;
        Cornford et al., Learning to live with Dale's principle, ICLR 2021.
    """
    signed = weight.abs().to(computing_dtype(weight)) * signs
    if balanced:
        zero = torch.zeros_like(signed)
        excitation = total(torch.where(signed > 0, signed, zero))
        inhibition = total(torch.where(signed < 0, -signed, zero))
        norm = total(signed.to(torch.float64).square()).sqrt()
        gain = ratio(excitation, inhibition, at_zero=1.0)
        gain = torch.where(excitation > 0, gain, torch.ones_like(gain)).to(signed.dtype)
        signed = torch.where(signed < 0, signed * gain, signed)
        new_norm = total(signed.to(torch.float64).square()).sqrt()
        signed = signed * ratio(norm, new_norm, at_zero=1.0).to(signed.dtype)
    return signed.to(weight.dtype)


@torch.no_grad()
def enforce_dales_principle(weight: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    r"""Project onto the allowed signs: :math:`w \leftarrow \max(0, w s)\, s`.

    Args:
        weight: Any shape.
        signs: +1/-1, broadcastable to ``weight``.

    Returns:
        The projected weights and the mask of the weights that had the wrong sign (now 0).

    Example:
        >>> enforce_dales_principle(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, -1.0]]))
        (tensor([[1., 0.]]), tensor([[False,  True]]))
    """
    wrong = weight * signs < 0
    return weight.masked_fill(wrong, 0.0), wrong
