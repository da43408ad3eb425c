"""Whom a node waits for, for what, since when and until when."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

log = logging.getLogger("sfl.waits")

What = Literal[
    "connection",
    "admission",
    "model",
    "orders",
    "return",
    "join",
    "timing",
    "planning",
    "part",
    "averaging",
    "disk",
    "goodbye",
    "heartbeat",
]
"""For what: a word each, as `/metrics` has it."""
WHATS: tuple[What, ...] = get_args(What)
IN_WORDS: dict[What, str] = {
    "connection": "to be connected",
    "admission": "to be let in",
    "model": "the model's files",
    "orders": "the next round",
    "return": "to be let in again",
    "join": "to be ready",
    "timing": "its timed steps",
    "planning": "a decision",
    "part": "its part of a round",
    "averaging": "an average",
    "disk": "a snapshot to be written",
    "goodbye": "to take the run's end",
    "heartbeat": "a sign of life",
}
"""The same for people, where whoever waits has not said it in words of its own."""

MOST = 16
"""Waits of a node that are shown: those that began first."""
FIRST_LINE, GROWTH, LATEST = 5.0, 2.0, 600.0
"""Seconds until the log has a line of a wait, how lines become rarer, and the longest gap."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A node waits for `whom`, in Unix seconds; `until` is None for as long as whom is heard of.

    `words` say what for; they stay on this node.
    """

    whom: str
    what: What
    since: float
    until: float | None = None
    words: str = ""

    def line(self, now: float) -> str:
        """As the log has it."""
        left = "" if self.until is None else f", {max(0.0, self.until - now):.0f} s left"
        so_far = f"{max(0.0, now - self.since):.0f} s so far"
        return f"waiting for {self.whom}: {self.words or self.what}; {so_far}{left}"


class OpenWait:
    """A wait under way; its end may move."""

    def __init__(self, waits: Waits, number: int) -> None:
        self._waits = waits
        self._number = number

    def extend(self, seconds: float) -> None:
        """It ends so many seconds from now."""
        self._waits.extend(self._number, seconds)

    def close(self) -> None:
        """It is over."""
        self._waits.close(self._number)


class Waits:
    """Those of one node; thread-safe.

    Lengths count by `clock`, which nobody sets; `unix` gives Unix seconds, and may jump.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._unix = unix
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._open: dict[int, Wait] = {}
        self._quiet: set[int] = set()
        self._derived: dict[tuple[str, str], Wait] = {}
        self._due: dict[tuple[str, str, float], tuple[float, float]] = {}
        """When each has its next line, and how long after that it has another."""

    def begin(
        self, whom: str, what: What, words: str, seconds: float | None = None, quiet: bool = False
    ) -> OpenWait:
        """A wait of so many seconds at most; `quiet` where whoever waits tells the log itself."""
        now = self._clock()
        until = None if seconds is None else now + seconds
        with self._lock:
            number = next(self._numbers)
            self._open[number] = Wait(whom, what, now, until, words)
            if quiet:
                self._quiet.add(number)
        return OpenWait(self, number)

    @contextlib.contextmanager
    def on(
        self, whom: str, what: What, words: str, seconds: float | None = None, quiet: bool = False
    ) -> Iterator[OpenWait]:
        """The same for as long as the body takes."""
        wait = self.begin(whom, what, words, seconds, quiet)
        try:
            yield wait
        finally:
            wait.close()

    def extend(self, number: int, seconds: float) -> None:
        """An open wait ends so many seconds from now."""
        with self._lock:
            if number in self._open:
                until = self._clock() + seconds
                self._open[number] = replace(self._open[number], until=until)

    def close(self, number: int) -> None:
        """A wait is over."""
        with self._lock:
            self._open.pop(number, None)
            self._quiet.discard(number)

    def derive(self, waits: Iterable[Wait]) -> None:
        """What follows from a node's state now, in the place of what followed before.

        Where one was there already, for the same in words, its beginning stays.
        """
        shift = self._clock() - self._unix()
        waits = [_shifted(own, shift) for own in waits]
        with self._lock:
            before = self._derived
            self._derived = {key(own): _goes_on(before.get(key(own)), own) for own in waits}

    def all(self) -> tuple[Wait, ...]:
        """Those that began first; one for each whom and what. They began as long ago as they have
        lasted, whatever Unix time was then."""
        shift = self._unix() - self._clock()
        with self._lock:
            found = self._merged([*self._open.values(), *self._derived.values()])[:MOST]
        return tuple(_not_negative(_shifted(own, shift)) for own in found)

    def say(self) -> None:
        """A line in the log for each wait that has been for long, ever more rarely."""
        for line in self._lines(self._clock()):
            log.info("%s", line)

    def _lines(self, now: float) -> list[str]:
        with self._lock:
            loud = [own for number, own in self._open.items() if number not in self._quiet]
            waits = self._merged([*loud, *self._derived.values()])[:MOST]
            found = {(*key(own), own.since): own for own in waits}
            due = {known: self._due.get(known, _first(own)) for known, own in found.items()}
            lines = [own.line(now) for known, own in found.items() if now >= due[known][0]]
            self._due = {
                known: (now + gap, min(LATEST, gap * GROWTH)) if now >= at else (at, gap)
                for known, (at, gap) in due.items()
            }
        return lines

    @staticmethod
    def _merged(waits: Iterable[Wait]) -> list[Wait]:
        found: dict[tuple[str, str], Wait] = {}
        for own in sorted(waits, key=lambda own: own.since):
            found.setdefault(key(own), own)
        return list(found.values())


def silences(
    last_heard: Iterable[tuple[str, float]], idle_timeout: float, now: float, unix: float
) -> Iterator[Wait]:
    """Waits for those of whom no byte has come for so long that a wait has a line in the log.

    `last_heard` and `now` are of one monotonic clock, `unix` is now in Unix seconds.
    """
    for whom, at in last_heard:
        if now - at >= FIRST_LINE:
            since = unix - (now - at)
            yield Wait(whom, "heartbeat", since, since + idle_timeout, IN_WORDS["heartbeat"])


def key(wait: Wait) -> tuple[str, str]:
    """What tells two waits of a node apart."""
    return wait.whom, wait.what


def _shifted(wait: Wait, by: float) -> Wait:
    """The same on another clock."""
    until = None if wait.until is None else wait.until + by
    return replace(wait, since=wait.since + by, until=until)


def _not_negative(wait: Wait) -> Wait:
    """Of a machine whose clock says that it is younger than its wait."""
    until = None if wait.until is None else max(0.0, wait.until)
    return replace(wait, since=max(0.0, wait.since), until=until)


def _first(wait: Wait) -> tuple[float, float]:
    return wait.since + FIRST_LINE, FIRST_LINE * GROWTH


def _goes_on(before: Wait | None, own: Wait) -> Wait:
    """A wait as it is now; what it is computed from gives its beginning only about so."""
    if before is None or before.words != own.words:
        return own
    return replace(own, since=before.since)
