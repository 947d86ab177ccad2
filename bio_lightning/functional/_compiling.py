"""What torch's compiler has to be told."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["computed_once"]


def computed_once(x: Tensor) -> Tensor:
    """The same tensor; the compiler works out once what it is made of, and not at every place that reads it.

    It would otherwise write all of it out at each of these places, and only then find out what is equal: twice the
    work for every level of a formula that reads a level twice. And what there is one of for a row would be worked out
    again for every few elements of it, as far as the compiler knows that a store may have changed what it is made of.
    What several loops read, or loops that are not fused, lies in memory from here on.
    """
    return x.as_strided(x.shape, x.stride()) if torch.compiler.is_compiling() else x
