"""What goes wrong, with a type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["BioConfigError", "NoEffectWarning", "SynapseWarning"]


class BioConfigError(ValueError):
    """A setting that cannot be accepted.

    Args:
        key: Path of the setting, as in ``fuzzy_learning_rates.nu``.
        value: What was given.
        allowed: What would be accepted, in words.
        nearest: The name that was probably meant, if any.

    Example:
        >>> raise BioConfigError("dales_principle.axes", "pre", "axis, seed", nearest="axis")
        Traceback (most recent call last):
        ...
        bio_lightning.errors.BioConfigError: dales_principle.axes: got 'pre'; allowed: axis, seed. Did you mean 'axis'?
    """

    def __init__(self, key: str, value: object, allowed: str, nearest: str | None = None) -> None:
        hint = f". Did you mean {nearest!r}?" if nearest else ""
        super().__init__(f"{key}: got {value!r}; allowed: {allowed}{hint}")
        self.key, self.value, self.allowed, self.nearest = key, value, allowed, nearest

    def __reduce__(self) -> tuple[type[BioConfigError], tuple[str, object, str, str | None]]:
        return type(self), (self.key, self.value, self.allowed, self.nearest)

    def under(self, section: str) -> BioConfigError:
        """The same error with the section's name in front of the key."""
        return BioConfigError(f"{section}.{self.key}", self.value, self.allowed, self.nearest)


class NoEffectWarning(UserWarning):
    """Something that the user asked for changes nothing."""


class SynapseWarning(UserWarning):
    """Something that the synapses do, and the user may not want; from ``BioMonitor(alerts=True)``."""


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The most similar of ``names``, whatever their case, or None when none is similar.

    Example:
        >>> nearest_name("cristallization", ["crystallization", "dales_principle"])
        'crystallization'
    """
    by_sound = {each.casefold(): each for each in names}
    matches = difflib.get_close_matches(str(name).casefold(), by_sound, n=1, cutoff=0.6)
    return by_sound[matches[0]] if matches else None
