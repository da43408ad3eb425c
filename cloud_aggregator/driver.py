"""Feeds the coordinator with what happens, and has done what it says."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from cloud_aggregator.averaging import Averaging
from cloud_aggregator.clock import RunClock
from cloud_aggregator.effects import Effects
from cloud_aggregator.records import RunRecords
from sfl.errors import RunFailed, SflError
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.node.causes import another_may_help, cause_of
from sfl.rounds import (
    Aggregate,
    Command,
    Coordinator,
    Event,
    Evict,
    Fact,
    Fault,
    FinishRun,
    NodeHeard,
    Planned,
    PlanRound,
    Reduce,
    Update,
    UpdatesRefused,
    UseModel,
)
from sfl.transport.group import aside, watched

if TYPE_CHECKING:
    from cloud_aggregator.planning import Planning
    from sfl.report.traces import StepTraces

log = logging.getLogger("sfl.cloud")


class Driver:
    """Events in, commands done; `over` is why the run has ended. For a running event loop."""

    def __init__(
        self,
        coordinator: Coordinator,
        effects: Effects,
        averaging: Averaging,
        planning: Planning | None,
        records: RunRecords,
        stats: NodeStats,
        traces: StepTraces | None,
        clock: RunClock,
    ) -> None:
        """`planning` is None where no planner decides."""
        self.over: asyncio.Future[FinishRun] = asyncio.get_running_loop().create_future()
        self._coordinator = coordinator
        self._effects = effects
        self._averaging = averaging
        self._planning = planning
        self._records = records
        self._stats = stats
        self._traces = traces
        self._clock = clock
        self._aggregation: asyncio.Task[None] | None = None
        self._decision: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[None]] = set()

    def happened(self, event: Event) -> None:
        """Tell the coordinator, and do what it says; what cannot be done ends the run."""
        if self.over.done():
            return
        try:
            commands = self._coordinator.handle(event, self._clock.now())
            self._stats.buffered = self._coordinator.buffered
            for command in commands:
                self.do(command)
            if any(isinstance(command, UseModel) for command in commands):
                self._averaging.keep_beginning()
                self.happened(self._averaging.first())
            for command in commands:
                if isinstance(command, PlanRound):
                    self._plan(command)
        except Exception as error:  # noqa: BLE001 - no peer's fault, and half done
            self.failed(cause_of(error))

    def heard(self, snapshot: NodeSnapshot) -> None:
        """A node's statistics; older ones than are known, as by another edge, change nothing."""
        try:
            if self._records.told.words.has_newer(snapshot, self._clock.now()):
                return
            life = self._records.told.statistics.life_of(snapshot)
            self.tell(NodeHeard(snapshot.kind, snapshot.name, snapshot.to_json(), life))
        except Exception as error:  # noqa: BLE001 - no peer's fault
            self.failed(cause_of(error))

    def keep(self) -> None:
        """The journal has all that was heard: what is settled by it comes after it.

        A run that is over has committed the last of it, and closed its journal.
        """
        if self.over.done():
            return
        try:
            self._coordinator.journal.commit()
        except Exception as error:  # noqa: BLE001 - no peer's fault
            self.failed(cause_of(error))

    def tell(self, fact: Fact) -> None:
        """What decides nothing is kept, too. Raises DiskError."""
        self._coordinator.tell(fact, self._clock.now())

    def say(self, command: Evict | Fault) -> None:
        """Do what the cloud itself has decided, and tell it; what cannot be done ends the run."""
        try:
            self.tell(command)
            self.do(command)
        except Exception as error:  # noqa: BLE001 - no peer's fault
            self.failed(cause_of(error))

    def failed(self, error: SflError) -> None:
        """What this process cannot get over ends the run, unless another process may."""
        if not another_may_help(error):
            self.do(FinishRun(False, str(error)))
        elif not self.over.done():
            self.over.set_exception(error)

    def do(self, command: Command) -> None:
        """Do one command. Raises what keeps it from being done."""
        match command:
            case FinishRun():
                if not self.over.done():
                    self.over.set_result(command)
            case PlanRound():
                pass  # asked once all else is done
            case Aggregate():
                # Looked up now: whoever offends while a round is averaged is forgotten meanwhile.
                updates = self._coordinator.updates_of(command)
                self._aggregation = watched(self._aggregate(command, updates), self.failed)
            case Reduce():
                updates = self._coordinator.updates_of(command)
                task = watched(self._ask_for_sums(command, updates), self.failed)
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
            case _:
                self._effects.do(command)

    def _plan(self, command: PlanRound) -> None:
        """Have the planner decide, off the loop.

        One that was not waited for, and still decides on a round before, is not asked meanwhile.
        """
        assert self._planning is not None, "nobody asks where there is none"
        if self._decision is not None:
            why = "still decides on an earlier round"
            self.happened(self._planning.stays(command, self._coordinator, why))
            return
        decide = self._planning.asked(command, self._coordinator)
        self._decision = watched(self._decide(decide), self.failed)

    async def _decide(self, decide: Callable[[], Planned]) -> None:
        planned = await aside(decide)
        self._decision = None  # what happens now may ask again
        self.happened(planned)

    def close(self) -> None:
        """The run is over for this process: nobody waits for its planner any more."""
        if self._decision is not None:
            self._decision.cancel()

    async def _ask_for_sums(self, command: Reduce, updates: Mapping[str, Update]) -> None:
        """Judge updates that edges keep by their lengths, and have the others added up."""
        examined = await aside(self._averaging.examine, command, updates)
        state = self._coordinator.state
        if (state.round, state.open.reduction.number) != (command.round, command.number):
            return  # somebody was left out meanwhile, and edges are asked anew
        if refused := examined.verdict.refused:
            self.happened(UpdatesRefused(command.round, refused))
        else:
            self._effects.ask_for_sums(self._averaging.sums.ask(command, examined))

    async def _aggregate(self, command: Aggregate, updates: Mapping[str, Update]) -> None:
        """Average what is in the spool, off the loop, and keep the result."""
        began = time.time()
        try:
            examined = await aside(self._averaging.examine, command, updates)
            if (nearest := examined.verdict.nearest) is not None:
                longest = "round %d: the longest update, of device %s, is %.3f of its bound"
                log.info(longest, command.round, *nearest)
            if refused := examined.verdict.refused:
                self.happened(UpdatesRefused(command.round, refused))
                return
            for device, note in examined.verdict.notes.items():
                fault = Fault(command.round, device, note)
                if not self._records.told.faults.has(fault):  # by a cloud that was stopped then
                    self.say(fault)
            ready = await aside(self._averaging.average, command, examined)
        except Exception as error:  # noqa: BLE001 - ends the run, with its reason
            cause = cause_of(error)
            kind = type(cause) if another_may_help(cause) else RunFailed
            self.failed(kind(f"round {command.round} could not be averaged: {cause}"))
            return
        self.heard(self._stats.snapshot())
        if self._traces is not None:
            self._traces.add(self._records.told.rounds.timelines(command.round), began)
        servers = self._records.told.statistics.servers()
        staleness = self._staleness(command, updates)
        self._stats.staleness = fmean(staleness.values()) if staleness else None
        told = tuple(server.to_json() for server in servers)
        self.happened(replace(ready, servers=told, staleness=staleness))
        needed = self._coordinator.state.needed_adapter
        self._records.keep(command.round, needed)
        self._averaging.forget_before(command.round, needed)
        if self._averaging.is_kept_twice:
            await aside(self._averaging.mirror.sync)
            self.keep()
            if not self.over.done():  # else the journal may still name what would be removed
                await aside(self._averaging.mirror.prune)

    def _staleness(self, command: Aggregate, updates: Mapping[str, Update]) -> dict[str, int]:
        """Of each update that counts; nothing to tell where none may be late."""
        if not self._coordinator.settings.counts_late_updates:
            return {}
        return {name: update.staleness(command.round) for name, update in updates.items()}
