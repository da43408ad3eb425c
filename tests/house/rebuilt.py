"""Journals that go wrong, and a coordinator that forgets everything before every event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sfl.config import RunSettings
from sfl.report.journal import SqliteJournal
from sfl.rounds import Command, Coordinator, Event, RunState
from sfl.rounds.coordinator import nobody
from sfl.rounds.journal import Entry, Journal, MemoryJournal
from sfl.rounds.plain import state_from_json, to_json

ALWAYS, THEN_EVERY = 60, 997
"""So many first events, then every so many: a rebuilding takes all events since the last mark."""

MOST_DEVICES = 10
"""With more, writing and reading the whole state for every event takes too long for a test."""


def fill_up(journal: SqliteJournal) -> None:
    """As a full disk has it: its file may not grow any more."""
    pages = journal.file.connection.execute("PRAGMA page_count").fetchone()[0]
    journal.file.connection.execute(f"PRAGMA max_page_count = {pages}")


class NeverMarked(MemoryJournal):
    """All of a run is replayed, from its first event."""

    def mark(self, state: RunState) -> None:
        """Not kept."""


class Rebuilt(Coordinator):
    """As a cloud is that is killed between any two events, and starts again from its journal."""

    def __init__(
        self,
        settings: RunSettings,
        now: float = 0.0,
        journal: Journal | None = None,
        hear: Callable[[Entry], object] = nobody,
    ):
        super().__init__(settings, now, journal, hear)
        self._handled = 0

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event, with no memory but the journal."""
        self._handled += 1
        if len(self.settings.devices) > MOST_DEVICES:
            pass
        elif self._handled <= ALWAYS or self._handled % THEN_EVERY == 0:
            rebuilt = self.journal.latest().state(self.settings)
            assert replace(rebuilt, now=self.state.now) == self.state
            self.state = rebuilt
        else:
            self.state = state_from_json(to_json(self.state))
        return super().handle(event, now)
