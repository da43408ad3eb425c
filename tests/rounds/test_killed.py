"""The cloud is killed between any two writes of its journal: what it says next is the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from sfl.config import RunSettings
from sfl.report.journal import SqliteJournal
from sfl.rounds import CloudRestarted, Command, Coordinator, DeviceJoined, EdgeReady, Event
from sfl.rounds.coordinator import nobody
from tests.house.any_order import AnyOrder
from tests.house.lost import settings

WRITES = ("append", "tell_time", "mark", "commit")


class Killed(Coordinator):
    """Looks, before and after each write, at what a killed process would leave."""

    def __init__(self, config: RunSettings, folder: Path) -> None:
        (folder / "run").mkdir()
        self.folder, self.numbers, self.looked = folder, count(), 0
        self._left: list[Path] = []
        journal = SqliteJournal(folder / "run")
        for name in WRITES:
            setattr(journal, name, self._watched(getattr(journal, name)))
        super().__init__(config, 0.0, journal, nobody)

    def _watched(self, write: Callable[..., None]) -> Callable[..., None]:
        def watched(*given: Any, **named: Any) -> None:
            self._look()
            write(*given, **named)
            self._look()

        return watched

    def _look(self) -> None:
        aside = self.folder / str(next(self.numbers))
        shutil.copytree(self.folder / "run", aside)
        self._left.append(aside)

    def handle(self, event: Event, now: float) -> list[Command]:
        before = self.state
        commands = super().handle(event, now)
        left, self._left = self._left, []
        for aside in left:
            self._goes_on(aside, before, event, now, commands)
            shutil.rmtree(aside)
        self.looked += len(left)
        return commands

    def _goes_on(
        self, aside: Path, before: Any, event: Event, now: float, commands: list[Command]
    ) -> None:
        """The next process knows all of the event or nothing of it, and goes on as this one."""
        journal = SqliteJournal(aside)
        state = journal.latest().state(self.settings)
        other = Coordinator(self.settings, journal=journal, state=replace(state, now=now))
        if replace(state, now=0.0) != replace(self.state, now=0.0):
            assert replace(state, now=0.0) == replace(before, now=0.0)
            assert other.handle(event, now) == commands  # who was not answered says it again
            assert replace(other.state, now=0.0) == replace(self.state, now=0.0)
        again = Coordinator(self.settings, state=self.state).handle(CloudRestarted(), now)
        assert other.handle(CloudRestarted(), now) == again
        journal.close()


class KilledAtAnyWrite(AnyOrder):
    """Losses, returns, restarts and replays in any order, each write of them looked at."""

    @initialize(count=st.integers(1, 3))
    def begin(self, count: int) -> None:
        self.aside = TemporaryDirectory()
        self.names = [f"d{n}" for n in range(count)]
        self.coordinator = Killed(settings(count, rejoin=1000.0), Path(self.aside.name))
        self.happens(EdgeReady("e", 4))
        for name in self.names:
            self.join(name)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "coordinator"):
            assert self.coordinator.looked > 0
            self.coordinator.journal.close()
            self.aside.cleanup()


KilledAtAnyWrite.TestCase.settings = hypothesis_settings(
    max_examples=4, stateful_step_count=15, deadline=None
)
TestKilledAtAnyWrite = KilledAtAnyWrite.TestCase
TestKilledAtAnyWrite.pytestmark = [pytest.mark.process]  # it takes seconds


def test_every_kind_of_write_is_looked_at(tmp_path: Path) -> None:
    coordinator = Killed(settings(1), tmp_path)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    before = coordinator.looked
    assert before >= 4  # an event and its commit, before and after each
    coordinator.handle(DeviceJoined("d0", "e"), 1.0)
    assert coordinator.looked > before
