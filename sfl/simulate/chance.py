"""Numbers drawn by what they are for: the same key gives the same number, in whatever order."""

from __future__ import annotations

from math import cos, exp, log, pi, sqrt

from sfl.keys import derive_seed

_MASK = (1 << 64) - 1
_UNIT = 2.0**-53


def mixed(value: int) -> int:
    """64 bits that tell nothing of their neighbours' (SplitMix64; Steele et al., OOPSLA 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Chance:
    """Draws of one purpose, by number."""

    __slots__ = ("_base",)

    def __init__(self, *key: str | int) -> None:
        self._base = derive_seed(*key)

    def uniform(self, number: int) -> float:
        """Between 0 and 1, without both."""
        return ((mixed(self._base ^ mixed(number)) >> 11) + 0.5) * _UNIT

    def exponential(self, number: int) -> float:
        """Of mean 1."""
        return -log(self.uniform(number))

    def normal(self, number: int) -> float:
        """Standard normal (Box and Muller)."""
        radius = sqrt(-2.0 * log(self.uniform(2 * number)))
        return radius * cos(2.0 * pi * self.uniform(2 * number + 1))

    def factor(self, number: int, spread: float) -> float:
        """Log-normal of median 1; exactly 1 without spread."""
        return exp(spread * self.normal(number)) if spread else 1.0
