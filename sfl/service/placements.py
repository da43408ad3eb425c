"""The nodes of one run on the agents of a service: who is asked, who is up, who has given up."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from sfl.errors import ConfigError
from sfl.jobs.placing import Place, placing
from sfl.jobs.values import Needs
from sfl.node.restarts import MEANT, Restarts
from sfl.service.roster import Roster
from sfl.transport.jobs.agents import Attachment

log = logging.getLogger("sfl.service")

STAYS_SO = frozenset({0, ConfigError.exit_code, 130, *(-number for number in MEANT)})
"""Exit codes of a node that is not asked again: done, a mistake, or stopped on purpose."""


def may_be_asked_again(exit_code: int | None) -> bool:
    """Whether another process of a node may get further: also where it has lost its peers."""
    return exit_code is not None and exit_code not in STAYS_SO


@dataclass(slots=True)
class _Node:
    """One agent's part in the run."""

    title: str
    code: int | None = None
    reason: str = ""
    address: str = ""
    """An edge's own, once it is up."""
    returns: bool = True
    asked: Attachment | None = None
    """Who was asked on this stream, and for which address."""
    asked_for: str = ""

    def exit_code(self) -> int | None:
        return self.code

    def failure(self) -> str:
        return self.reason

    def start_again(self, line: str) -> None:
        """Ask its agent again, with the next look."""
        log.info("%s", line)
        self.code, self.asked = None, None


@dataclass(slots=True)
class Placements:
    """Of one run."""

    run: str
    needs: Needs
    roster: Roster
    restarts: Restarts
    log_size: Callable[[str], int]
    """Bytes that are known of a node's log."""
    _nodes: dict[Place, _Node] = field(default_factory=dict)

    def look(self, cloud: str, now: float) -> None:
        """Ask whoever is to compute the run and does not; `cloud` is where its cloud listens."""
        self.restarts.look(self._nodes.values(), now)
        edges = {name: node.address for (role, name), node in self._nodes.items() if role == "edge"}
        seats = self.roster.seats
        for place, address in placing(self.run, self.needs, seats, cloud, edges).items():
            self._ask(place, address)

    def started(self, agent: Attachment, address: str) -> None:
        """A node is up."""
        node = self._node((agent.role, agent.name))
        node.code = None
        if agent.role == "edge":
            node.address = address
            agent.held[self.run] = address

    def ended(self, agent: Attachment, code: int, reason: str) -> None:
        """A node has ended."""
        node = self._node((agent.role, agent.name))
        if code:
            log.info("run %s: %s: %s", self.run, agent.seat.title, reason)
        node.code, node.reason = code, reason
        if agent.role == "edge" and not may_be_asked_again(code):
            node.address = ""

    def attached(self, agent: Attachment) -> None:
        """An agent is there, and may compute the run already."""
        if self.run in agent.held and agent.role == "edge":
            self._node((agent.role, agent.name)).address = agent.held[self.run]

    @property
    def done(self) -> list[Place]:
        """Who has no part in the run any more."""
        nodes = self._nodes.items()
        return [p for p, n in nodes if n.code is not None and not self.restarts.will_return(n)]

    @property
    def given_up(self) -> dict[Place, str]:
        """Who does not compute the run any more, with the reason."""
        return {
            place: node.reason
            for place, node in self._nodes.items()
            if node.code not in (None, 0) and not self.restarts.will_return(node)
        }

    def _ask(self, place: Place, address: str) -> None:
        node, agent = self._node(place), self.roster.at(place)
        if agent is None or node.code is not None:
            return
        if node.asked is agent and node.asked_for == address:
            return
        node.asked, node.asked_for = agent, address
        agent.held.setdefault(self.run, "" if agent.role == "edge" else address)
        agent.start(self.run, address, self.log_size(agent.name))

    def _node(self, place: Place) -> _Node:
        if place not in self._nodes:
            title = f"run {self.run}: {place[0]} {place[1]}"
            self._nodes[place] = _Node(title)
        return self._nodes[place]
