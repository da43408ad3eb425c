"""What agents tell a service (`AgentsDoor`'s host)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sfl.service.logs import NodeLogs
from sfl.service.placements import Placements
from sfl.service.roster import Roster
from sfl.service.run import LiveRun
from sfl.transport.jobs.agents import Attachment

NOT_HERE = "this service does not run it"


class Nodes:
    """Hears agents; what they say of a run that is not under way makes them leave it."""

    def __init__(self, output_dir: Path, roster: Roster, live: Mapping[str, LiveRun]) -> None:
        self._output_dir = output_dir
        self._roster = roster
        self._live = live
        self._writers: set[tuple[str, str]] = set()
        """(run, name) of those who have computed a run, and may send the rest of its log."""

    def attached(self, agent: Attachment) -> None:
        """One is there, perhaps with runs that it computes. Raises NameInUse."""
        self._roster.enter(agent)
        for run in agent.held:
            if (placements := self._of(agent, run)) is not None:
                placements.attached(agent)
                self._writers.add((run, agent.name))
            else:
                agent.stop(run, NOT_HERE)

    def detached(self, agent: Attachment, reason: str) -> None:
        """It has gone; what it computes goes on."""
        self._roster.leave(agent, reason)

    def started(self, agent: Attachment, run: str, address: str) -> None:
        """Its node of a run is up."""
        if (placements := self._of(agent, run)) is not None:
            placements.started(agent, address)
            self._writers.add((run, agent.name))

    def ended(self, agent: Attachment, run: str, exit_code: int, reason: str) -> None:
        """Its node of a run has ended: its place is free."""
        agent.held.pop(run, None)
        if (placements := self._of(agent, run)) is not None:
            placements.ended(agent, exit_code, reason)
        else:
            self._writers.discard((run, agent.name))

    def logged(self, agent: Attachment, run: str, offset: int, data: bytes) -> None:
        """Its node of a run has written that to its log, perhaps after the run's end."""
        if (run, agent.name) in self._writers or self._of(agent, run) is not None:
            NodeLogs.of(self._output_dir / run).take(agent.name, offset, data)

    def let_go(self, run: str, reason: str) -> None:
        """A run is over: whoever computes it leaves it."""
        for agent in self._roster:
            if run in agent.held:
                agent.stop(run, reason)

    def leaving(self, run: str) -> bool:
        """Whether an agent has yet to leave a run, and to send the last of its log."""
        return any(run in agent.held for agent in self._roster)

    def _of(self, agent: Attachment, run: str) -> Placements | None:
        """The nodes of a run that is under way, if the agent is to compute one of them."""
        if (live := self._live.get(run)) is None:
            return None
        names = live.needs.edges if agent.role == "edge" else live.needs.devices
        return live.placements if agent.name in names else None
