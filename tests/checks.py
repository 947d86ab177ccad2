"""What the tests of plain tensors share: comparison with lists of floats, and checks that hold for every function."""

import math
import sys

import torch

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}


def floats(tensor):
    """The elements of a tensor as a flat list, in logical order."""
    return tensor.flatten().tolist()


def assert_matches(actual, expected, tolerance=None):
    """A tensor equals the flat list of numbers that a reference computed, within the rounding of the tensor's dtype."""
    tolerance = TOLERANCE.get(actual.dtype, 0.0) if tolerance is None else tolerance
    wanted = torch.tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual.flatten(), wanted, rtol=tolerance, atol=tolerance)


def assert_pure(function, *tensors):
    """The inputs keep their bits, torch's random state is not touched, and the same call gives the same bits."""
    before = [tensor.clone() for tensor in tensors]
    state = torch.get_rng_state()
    first = function(*tensors)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    second = function(*tensors)
    torch.set_rng_state(state)
    for one, other in zip(as_tuple(first), as_tuple(second), strict=True):
        assert torch.equal(one, other)
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def random_weight(*shape, seed=0, dtype=torch.float64, scale=1.0):
    """Normal weights of both signs from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def random_rates(*shape, seed=0, dtype=torch.float64):
    """Firing rates in [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)


def standard_error(values, spread):
    """Of the mean of independent draws with this standard deviation."""
    return spread / math.sqrt(len(values))


def as_on_a_device(monkeypatch):
    """Numbers are treated as if a device had them."""
    for name, module in sys.modules.items():
        if name.startswith("bio_lightning.") and hasattr(module, "is_at_hand"):
            monkeypatch.setattr(module, "is_at_hand", lambda _tensor: False)
