"""What happened in a run, in order: enough to be where it was, whatever ended its process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from sfl.config import RunSettings
from sfl.rounds.messages import DeviceMoved, Event, Tick
from sfl.rounds.state import RunState
from sfl.rounds.step import step


@dataclass(frozen=True, slots=True)
class Entry:
    """An event, and when it was, in seconds on the run's own clock."""

    now: float
    event: Event


class Journal(Protocol):
    """Events of one run; one process writes them. Every method raises DiskError."""

    def append(self, entry: Entry) -> None:
        """Keep an event, at the latest with the next `commit`."""

    def tell_time(self, now: float) -> None:
        """The run has been up so long, and nothing else happened."""

    def mark(self, state: RunState) -> None:
        """Keep the state after the latest event: what comes later is all that is replayed."""

    def commit(self) -> None:
        """What was kept outlives this process, however it ends."""

    def entries(self) -> Iterator[Entry]:
        """All events; before the last mark, without those that nobody looks at later."""

    def latest(self) -> Latest:
        """What a state is rebuilt from."""

    def close(self) -> None:
        """Nothing more comes."""


@dataclass(frozen=True, slots=True)
class Latest:
    """The state at the last mark, if there is one, the events since, and the time it is."""

    marked: RunState | None
    entries: tuple[Entry, ...]
    now: float

    def state(self, settings: RunSettings) -> RunState:
        """Where the run is: its deadlines are as far away as when it was last heard of."""
        state = RunState.begin(settings) if self.marked is None else self.marked
        for entry in self.entries:
            state, _ = step(state, entry.event, entry.now, settings)
        return replace(state, now=self.now)


PASSING = (DeviceMoved, Tick)
"""Events that tell nothing once a round is over; there are many of them."""


class MemoryJournal:
    """A journal that ends with its process."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._marked: RunState | None = None
        self._since = 0
        self._now = 0.0

    def append(self, entry: Entry) -> None:
        """Keep an event."""
        self._entries.append(entry)
        self._now = entry.now

    def tell_time(self, now: float) -> None:
        """The run has been up so long."""
        self._now = now

    def mark(self, state: RunState) -> None:
        """Keep the state after the latest event."""
        self._entries = [entry for entry in self._entries if not isinstance(entry.event, PASSING)]
        self._marked, self._since = state, len(self._entries)

    def commit(self) -> None:
        """Nothing outlives this process."""

    def entries(self) -> Iterator[Entry]:
        """All events."""
        return iter(self._entries)

    def latest(self) -> Latest:
        """What a state is rebuilt from."""
        return Latest(self._marked, tuple(self._entries[self._since :]), self._now)

    def close(self) -> None:
        """Nothing more comes."""
