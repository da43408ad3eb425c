"""Shares of one thing, and the least number at which they fit."""

from __future__ import annotations

from collections.abc import Callable

HALVINGS = 60
HIGHEST = 1e30
"""Beyond it nothing fits that ever would."""


def least_that_fits(
    used: Callable[[float], float], low: float, high: float, halvings: int = HALVINGS
) -> float:
    """The least number at which `used`, which falls with it, is 1 at most.

    It is not `low`, where more is used. `high` is a first guess.
    """
    while used(high) > 1.0 and high < HIGHEST:
        low, high = high, 4.0 * high
    for _ in range(halvings):
        middle = (low + high) / 2.0
        if used(middle) > 1.0:
            low = middle
        else:
            high = middle
    return high
