"""How many directions a matrix really uses: two ranks that noise does not fill up."""

from __future__ import annotations

import torch
from torch import Tensor

from bio_lightning.functional._layer import ratio

__all__ = ["effective_rank", "singular_values", "singular_values_of_gram", "stable_rank"]


@torch.no_grad()
def singular_values(weight: Tensor) -> Tensor:
    """Singular values of a weight, all axes behind the first taken as one.

    Args:
        weight: Shape ``(out, in, ...)``, at least two axes.

    Returns:
        float64, shape ``(min(out, in * ...),)``, falling; NaN everywhere if a weight is not finite.

    Raises:
        ValueError: ``weight`` has fewer than two axes.

    Example:
        >>> singular_values(torch.tensor([[0.0, 3.0], [4.0, 0.0]]))
        tensor([4., 3.], dtype=torch.float64)
    """
    if weight.dim() < 2:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}; allowed: two axes or more")
    matrix = weight.reshape(weight.shape[0], weight.shape[1:].numel()).to(torch.float64)
    matrix, poison = _finite(matrix)
    singular: Tensor = torch.linalg.svdvals(matrix)
    return singular + poison


@torch.no_grad()
def singular_values_of_gram(gram: Tensor) -> Tensor:
    r"""Singular values of a matrix :math:`A` from :math:`A^\top A`, which is a sum over the rows of :math:`A`.

    Squaring loses what is small: singular values below about 1e-8 of the largest count as 0.

    Args:
        gram: Symmetric, shape ``(n, n)``.

    Returns:
        float64, shape ``(n,)``, rising; NaN everywhere if an entry is not finite.

    Example:
        >>> rows = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
        >>> singular_values_of_gram(rows.T @ rows)
        tensor([3., 4.], dtype=torch.float64)
    """
    matrix, poison = _finite(gram.to(torch.float64))
    squares: Tensor = torch.linalg.eigvalsh(matrix)
    if len(squares):
        noise = torch.finfo(torch.float64).eps * len(squares) * squares[-1]
        squares = torch.where(squares > noise, squares, torch.zeros_like(squares))
    return squares.sqrt() + poison


@torch.no_grad()
def stable_rank(singular: Tensor) -> Tensor:
    r"""Squared Frobenius norm over squared spectral norm.

    .. math:: \sum_i \sigma_i^2 / \max_i \sigma_i^2

    Args:
        singular: Singular values, shape ``(n,)``.

    Returns:
        0-dim, in [1, n] and never above the rank; 0 for a matrix of zeros.

    Example:
        >>> stable_rank(torch.tensor([2.0, 1.0]))
        tensor(1.2500)

    References:
        Rudelson and Vershynin, Sampling from large matrices: an approach through geometric functional analysis,
        Journal of the ACM 54, 2007.
    """
    if singular.numel() == 0:
        return singular.new_zeros(())
    return ratio(singular, singular.amax(), at_zero=0.0).square().sum()


@torch.no_grad()
def effective_rank(singular: Tensor) -> Tensor:
    r"""Exponential of the entropy of the singular values.

    .. math:: \exp\Big(-\sum_i p_i \ln p_i\Big) \qquad p_i = \sigma_i / \sum_j \sigma_j

    Args:
        singular: Singular values, shape ``(n,)``.

    Returns:
        0-dim, in [1, n] and never above the rank; 0 for a matrix of zeros.

    Example:
        >>> effective_rank(torch.tensor([1.0, 1.0, 0.0]))
        tensor(2.)

    References:
        Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO, 2007.
    """
    total = singular.sum()
    share = ratio(singular, total, at_zero=0.0)
    return torch.where(total == 0, torch.zeros_like(total), (-torch.special.xlogy(share, share).sum()).exp())


def _finite(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix, or zeros and NaN where an entry is not finite: decompositions refuse such entries."""
    finite = matrix.isfinite().all()
    zero = matrix.new_zeros(())
    return torch.where(finite, matrix, zero), torch.where(finite, zero, torch.nan)
