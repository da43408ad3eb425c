"""The agents that are attached to a service, and what it asks of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from sfl.errors import LinkLost, NameInUse
from sfl.jobs.placing import Place
from sfl.jobs.rows import AgentRow
from sfl.jobs.values import Seats
from sfl.transport.jobs.agents import Attachment

log = logging.getLogger("sfl.service")


class Roster:
    """By role and name, one each."""

    def __init__(self) -> None:
        self._agents: dict[Place, Attachment] = {}

    def __iter__(self) -> Iterator[Attachment]:
        return iter([*self._agents.values()])

    def at(self, place: Place) -> Attachment | None:
        """The agent of that role and name, if it is there."""
        return self._agents.get(place)

    @property
    def seats(self) -> Seats:
        """What decisions know of them."""
        return {place: agent.seat for place, agent in self._agents.items()}

    def enter(self, agent: Attachment) -> None:
        """One is there; a stream of the same process replaces one that is half open.

        Raises NameInUse.
        """
        place = (agent.role, agent.name)
        old = self._agents.get(place)
        if old is not None:
            if not agent.incarnation or agent.incarnation != old.incarnation:
                raise NameInUse(f"an agent named {agent.name!r} is attached already")
            old.end(LinkLost("the agent came back on a new stream"))
        self._agents[place] = agent
        through = f" through edge {agent.via}" if agent.via else ""
        log.info("%s is attached%s", agent.seat.title, through)

    def leave(self, agent: Attachment, reason: str) -> None:
        """It has gone."""
        place = (agent.role, agent.name)
        if self._agents.get(place) is agent:
            del self._agents[place]
            log.info("%s is not attached any more: %s", agent.seat.title, reason)

    def rows(self) -> tuple[AgentRow, ...]:
        """What operators are shown, edges first."""
        agents = sorted(self._agents.values(), key=lambda a: (a.role == "device", a.name))
        return tuple(
            AgentRow(a.role, a.name, a.via, a.max_runs, tuple(sorted(a.held)), a.attached_at)
            for a in agents
        )
