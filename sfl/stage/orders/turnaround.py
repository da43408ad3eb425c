"""How long a device takes from an answer to what it sends next: its link and its own blocks."""

from __future__ import annotations

SHARE = 0.3
"""How much of the mean a new measurement is."""


class Turnaround:
    """A running mean, from answers that nothing else was in flight beside; times are arguments."""

    def __init__(self) -> None:
        self._answered: float | None = None
        self._seconds = 0.0

    def begin_round(self) -> None:
        """What comes next answers nothing of this round."""
        self._answered = None

    def answered(self, now: float) -> None:
        """The device has got an answer, or soon will."""
        self._answered = now

    def arrived(self, now: float, in_flight: int) -> None:
        """Its next activation is there, with so many others unanswered."""
        if self._answered is None or in_flight:
            return
        seconds = now - self._answered
        self._seconds += (seconds - self._seconds) * (SHARE if self._seconds else 1.0)

    def tail(self, steps: int) -> float:
        """Seconds that the device needs by itself for so many steps, one at the least."""
        return max(1, steps) * self._seconds
