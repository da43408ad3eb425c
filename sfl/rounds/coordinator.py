"""A run's state between its steps, and the journal that it can be rebuilt from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from sfl.config import RunSettings
from sfl.rounds.buffer import Update
from sfl.rounds.journal import Entry, Journal, MemoryJournal
from sfl.rounds.messages import (
    AdapterReady,
    Aggregate,
    CloudRestarted,
    Command,
    DeviceMoved,
    DeviceReady,
    Event,
    Fact,
    NodeHeard,
    Reduce,
    Report,
    ReportReceived,
    RunEnded,
    Tick,
    facts_of,
)
from sfl.rounds.open_round import Progress
from sfl.rounds.roster import Device
from sfl.rounds.state import Phase, RunState
from sfl.rounds.step import step
from sfl.rounds.strikes import Strikes
from sfl.rounds.values import EdgeBase

TELLING = (DeviceReady, ReportReceived, CloudRestarted)
"""Events that records are made of, also where they come too late for a round."""

AT_ONCE = (Tick, AdapterReady)
"""Events whose time is kept at once, also where they change nothing else."""


def _acts(command: Command) -> bool:
    """Whether anybody but the log hears of it, so that the journal has to have its event before."""
    return not isinstance(command, Report)


def nobody(entry: Entry) -> None:
    """Hears of what was kept, and tells nobody."""


class Coordinator:
    """Holds the state; `handle` is its only door, `now` its only clock (seconds).

    `hear` is called with all that the journal has, in its order.
    """

    def __init__(
        self,
        settings: RunSettings,
        now: float = 0.0,
        journal: Journal | None = None,
        hear: Callable[[Entry], object] = nobody,
        state: RunState | None = None,
    ) -> None:
        """`state` is where the run is already, by the same journal."""
        self.settings = settings
        self.state = RunState.begin(settings, now) if state is None else state
        self.journal: Journal = MemoryJournal() if journal is None else journal
        self._hear = hear
        self._unheard: deque[Entry] = deque()
        """What could not be kept yet; the journal has it with its next commit."""

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event; return what is to be done, in order, once the journal has the event.

        That a device moved, and what is only said in the log, waits for the next commit. It comes
        with the next tick at the latest. Raises DiskError.
        """
        before = self.state
        self.state, commands = step(before, event, now, self.settings)
        entries = [Entry(now, fact) for fact in facts_of(commands)] if commands else []
        waits = isinstance(event, DeviceMoved)
        if not self.state.differs_in_time_only(before) or isinstance(event, TELLING):
            entries.insert(0, Entry(now, event))
        else:
            waits = not isinstance(event, AT_ONCE)
            self.journal.tell_time(now)  # a stranger that asks all day fills no disk
        self._append(*entries)
        if self.state.round != before.round:
            self.journal.mark(self.state)
        elif not waits or any(_acts(command) for command in commands):
            # What an adapter was made of is dropped next.
            self.journal.commit(durable=isinstance(event, AdapterReady))
        self._hear_all()
        return commands

    def tell(self, fact: Fact, now: float) -> None:
        """Keep what decides nothing; statistics and words wait for the next commit.

        The end of the run is heard of also where it cannot be kept. Raises DiskError.
        """
        behind = bool(self._unheard)
        self._append(Entry(now, fact))
        try:
            if behind or not isinstance(fact, NodeHeard | Report):
                self.journal.commit()
        finally:
            if isinstance(fact, RunEnded):
                self._hear_all()
        self._hear_all()

    def _append(self, *entries: Entry) -> None:
        for entry in entries:
            self.journal.append(entry)
            self._unheard.append(entry)

    def _hear_all(self) -> None:
        while self._unheard:
            self._hear(self._unheard.popleft())

    @property
    def phase(self) -> Phase:
        """Where the run is."""
        return self.state.phase

    @property
    def round(self) -> int:
        """The open round, or the last one that was."""
        return self.state.round

    @property
    def num_layers(self) -> int | None:
        """Blocks of the run's model, once it is chosen."""
        return self.state.num_layers

    @property
    def devices(self) -> Mapping[str, Device]:
        """Those that are connected."""
        return self.state.roster.devices

    def base_of(self, device: str) -> EdgeBase:
        """What the edge of a connected device can compute."""
        return self.state.bases[self.devices[device].edge]

    @property
    def progress(self) -> Mapping[str, Progress]:
        """How far each device of the open round is."""
        return self.state.open.progress

    def part_of(self, device: str) -> Progress | None:
        """How far a device is in its round, if it is in one."""
        return self.state.part_of(device)

    def updates_of(self, command: Aggregate | Reduce) -> dict[str, Update]:
        """What an average is made of, by device."""
        late, awaited = self.state.buffer.merging, self.state.open.progress
        return {
            name: late[name] if name in late else Update.of(name, awaited[name])
            for name in command.contributions
        }

    @property
    def buffered(self) -> int | None:
        """Devices whose updates wait for an average; None where no update may be late."""
        waiting = self.state.buffer.waiting
        return len(waiting) if self.settings.counts_late_updates else None

    @property
    def strikes(self) -> Strikes:
        """Who offended how often."""
        return self.state.strikes
