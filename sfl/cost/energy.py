"""Joules, each marked as measured or modelled, and the model that stands in where none is measured.

A device draws a constant power while it computes, while it sends, while it receives and while it
waits. An edge's power grows with the third power of its clock (CMOS at a voltage that follows the
clock), so that a computation's energy grows with the square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["measured", "modelled"]


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules, and where the number is from. A sum is measured only where all of it is."""

    joules: float
    source: Source = "modelled"

    def __add__(self, other: Energy) -> Energy:
        both = self.source == other.source == "measured"
        return Energy(self.joules + other.joules, "measured" if both else "modelled")


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Watts of a device above nothing at all, by what it does. `source`: whether they were read."""

    compute: float = 0.0
    send: float = 0.0
    receive: float = 0.0
    idle: float = 0.0
    source: Source = "modelled"

    def energy(self, compute: float, send: float, receive: float, waiting: float = 0.0) -> Energy:
        """Of so many seconds of each."""
        joules = self.compute * compute + self.send * send + self.receive * receive
        return Energy(joules + self.idle * waiting, self.source)


@dataclass(frozen=True, slots=True)
class ClockRange:
    """An edge's clock as a share of its fastest, and its watts while it computes at that one.

    `settable`: whether a chosen clock is put into effect. Where not, it is advice.
    """

    least: float = 1.0
    watts: float = 0.0
    source: Source = "modelled"
    settable: bool = False

    def energy(self, seconds: float, clock: float = 1.0) -> Energy:
        """Of what takes `seconds` at the fastest clock, at another one."""
        return Energy(self.watts * clock * clock * seconds, self.source)


NO_POWER = PowerModel()
FIXED_CLOCK = ClockRange()


def mean_power(start: Energy, end: Energy, seconds: float) -> float:
    """Watts between two readings of a counter."""
    return (end.joules - start.joules) / seconds
