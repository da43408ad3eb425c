"""What happened in a run, in order: enough to be where it was, whatever ended its process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, get_args

from sfl.config import RunSettings
from sfl.rounds.changed import changed
from sfl.rounds.messages import DeviceMoved, Event, Fact, NodeHeard, Report, Tick
from sfl.rounds.state import RunState
from sfl.rounds.step import step


@dataclass(frozen=True, slots=True)
class Entry:
    """An event or a fact, and when it was, in seconds on the run's own clock."""

    now: float
    event: Event | Fact


class Journal(Protocol):
    """Events of one run; one process writes them. Every method raises DiskError."""

    def append(self, entry: Entry) -> None:
        """Keep an event, at the latest with the next `commit`."""

    def tell_time(self, now: float) -> None:
        """The run has been up so long, and nothing else happened."""

    def mark(self, state: RunState) -> None:
        """Keep the state after the latest event: what comes later is all that is replayed."""

    def commit(self, *, durable: bool = False) -> None:
        """What was kept outlives this process, however it ends; if `durable`, a power cut too."""

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
            if isinstance(entry.event, DECIDING):
                state, _ = step(state, entry.event, entry.now, settings)
        return changed(state, now=self.now)


DECIDING = get_args(Event)
"""What decisions go by; all else in a journal is told only."""

PASSING = (DeviceMoved, Report, Tick)
"""Events that tell nothing once the next round has begun; there are many of them."""


def subject(event: Event | Fact) -> str | None:
    """Of what only the latest counts, if the event is one of those."""
    if not isinstance(event, NodeHeard):
        return None
    return f"{event.kind} {event.name}" + (f" {event.life}" if event.life else "")


class MemoryJournal:
    """A journal that ends with its process."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._latest: dict[str, int] = {}
        """Where the latest of each subject is."""
        self._number = 0
        self._marked: RunState | None = None
        self._since = 0
        self._now = 0.0

    def append(self, entry: Entry) -> None:
        """Keep an event."""
        self._number += 1
        if (about := subject(entry.event)) is not None:
            self._entries.pop(self._latest.get(about, 0), None)
            self._latest[about] = self._number
        self._entries[self._number] = entry
        self._now = entry.now

    def tell_time(self, now: float) -> None:
        """The run has been up so long."""
        self._now = now

    def mark(self, state: RunState) -> None:
        """Keep the state after the latest event."""
        for number in range(self._since + 1, self._number + 1):
            if number in self._entries and isinstance(self._entries[number].event, PASSING):
                del self._entries[number]
        self._marked, self._since = state, self._number

    def commit(self, *, durable: bool = False) -> None:
        """Nothing outlives this process."""

    def entries(self) -> Iterator[Entry]:
        """All events."""
        return iter(tuple(self._entries.values()))

    def latest(self) -> Latest:
        """What a state is rebuilt from."""
        since = (entry for number, entry in self._entries.items() if number > self._since)
        return Latest(self._marked, tuple(since), self._now)

    def close(self) -> None:
        """Nothing more comes."""
