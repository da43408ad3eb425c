"""Messages to a server and their answers, with both ends' times; what the link takes, of them.

A device has them of the link to its edge, a server of its hop to the stage behind it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

from sfl.cost.queueing import Sent, sums_of, transfers
from sfl.cost.shown import NO_SUMS, Sums

FEW = 8
"""Messages that a link is looked at for."""
FEW_BESIDE = 64
"""Messages that nobody answers, between two that are."""
TIMED_FRAME_BYTES = 1 << 17
"""Of an adapter in one frame between device and edge, so that it takes several."""
FEW_BYTES = 1 << 16
"""Bytes that tell a link's rate, where they follow others."""
MOST = 512
"""A device's messages that are kept until somebody looks, and that may be under way."""
KEPT_OF_ALL, MOST_OF_ALL = 64, 1 << 14
"""The same of a server, whose hop has those of all its devices, and is looked at every second."""


@dataclass(frozen=True, slots=True)
class Held:
    """What an edge says with an answer: when what it answers was there, and when it was ready to be
    sent; in seconds of the edge's clock."""

    arrived: float
    ready: float


@dataclass(frozen=True, slots=True)
class Posted:
    """A message under way: when it was handed over, its bytes, and whether it was the only one."""

    at: float
    num_bytes: int
    alone: bool
    before: tuple[tuple[float, int], ...]


class Burst:
    """Frames of one message that follow one another: what the link takes for them, by the clock of
    who receives them alone. The first one tells when the second one's bytes began to come."""

    def __init__(self) -> None:
        self._began = 0.0
        self._bytes = 0

    def frame(self, at: float, num_bytes: int, first: bool, last: bool) -> Sums:
        """A frame was there, whole, at that time; the last one says what all but the first took.

        Of few bytes nothing is said: a receiver that was late finds all of them at once.
        """
        if first:
            self._began, self._bytes = at, 0
            return NO_SUMS
        self._bytes += num_bytes
        told = last and self._bytes >= FEW_BYTES and at > self._began
        return Sums.of(self._bytes, at - self._began) if told else NO_SUMS


class LinkTimes:
    """Matches answers to what they answer; thread-safe. Seconds are of the sender's clock."""

    def __init__(self, kept: int = MOST, most: int = MOST) -> None:
        """The latest `kept` messages are looked at, and `most` may be under way."""
        self._lock = threading.Lock()
        self._most = most
        self._under_way: dict[Hashable, Posted] = {}
        self._up: deque[Sent] = deque(maxlen=kept)
        self._down: deque[Sent] = deque(maxlen=kept)
        self._sums = (Sums(), Sums())
        self._beside: deque[tuple[float, int]] = deque(maxlen=FEW_BESIDE)
        self._burst = Burst()

    def adapter(self, at: float, num_bytes: int, first: bool, last: bool) -> None:
        """A frame of an adapter came down."""
        with self._lock:
            up, down = self._sums
            self._sums = up, down + self._burst.frame(at, num_bytes, first, last)

    def beside(self, at: float, num_bytes: int) -> None:
        """A message goes out that nobody answers; what comes next may wait behind it."""
        with self._lock:
            self._beside.append((at, num_bytes))

    def posted(self, key: Hashable, at: float, num_bytes: int) -> None:
        """A message goes out; its answer will have the same key."""
        with self._lock:
            if len(self._under_way) >= self._most:
                self._under_way.clear()  # of a link that broke
            alone = not self._under_way
            self._under_way[key] = Posted(at, num_bytes, alone, tuple(self._beside))
            self._beside.clear()

    def answered(self, key: Hashable, at: float, num_bytes: int, held: Held) -> None:
        """Its answer is there, whole."""
        with self._lock:
            posted = self._under_way.pop(key, None)
            if posted is None:
                return
            alone = posted.alone
            self._up.append(Sent(posted.at, held.arrived, posted.num_bytes, alone, posted.before))
            self._down.append(Sent(held.ready, at, num_bytes, alone))

    def forget(self) -> None:
        """The link broke: no answer comes to what is under way, and who answers next has a clock of
        its own."""
        with self._lock:
            self._under_way.clear()
            self._up.clear()
            self._down.clear()

    def sums(self) -> tuple[Sums, Sums]:
        """Up and down since the process began, without what messages waited.

        A few messages tell little: they are kept until there are more.
        """
        with self._lock:
            if len(self._up) < FEW:
                return self._sums
            known = list(self._up), list(self._down)
            self._up.clear()
            self._down.clear()
            found = transfers(*known)
            up, down = self._sums
            self._sums = up + sums_of(found, True), down + sums_of(found, False)
            return self._sums
