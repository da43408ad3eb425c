"""What a service knows of its runs and of the agents that compute them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sfl.config import RunConfig

JobState = Literal["queued", "running", "stopping", "finished", "failed", "stopped"]
OPEN: tuple[JobState, ...] = ("queued", "running", "stopping")
"""States of a run that has not ended."""
OVER: tuple[JobState, ...] = ("finished", "failed", "stopped")

AgentRole = Literal["edge", "device"]


@dataclass(frozen=True, slots=True)
class Job:
    """A run as the queue has it; times in Unix seconds, 0 where there is none yet."""

    run: str
    key: str
    settings: str
    """TOML."""
    state: JobState = "queued"
    submitted_at: float = 0.0
    submitted_by: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0
    waits: str = ""
    """For whom or what it waits."""
    waits_since: float = 0.0
    reason: str = ""
    """How it ended, or why it is stopped."""
    address: str = ""
    """Where its cloud listens."""

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state in OVER


@dataclass(frozen=True, slots=True)
class Needs:
    """Who computes a run: all of its edges, and at least some of its devices."""

    edges: tuple[str, ...]
    devices: tuple[str, ...]
    min_devices: int

    @classmethod
    def of(cls, config: RunConfig) -> Needs:
        """Of a run's settings."""
        return cls(config.edges, config.names, config.min_devices)

    def home(self, device: str, via: str) -> str | None:
        """The edge that serves a device, which is relayed by the edge `via`, if by any.

        None where it cannot reach an edge of the run.
        """
        if via:
            return via if via in self.edges else None
        return self.edges[self.devices.index(device) % len(self.edges)]


@dataclass(frozen=True, slots=True)
class Seat:
    """An agent, with the room that it has."""

    role: AgentRole
    name: str
    max_runs: int
    via: str = ""
    """The edge that relays it."""
    runs: frozenset[str] = frozenset()
    """Those that it computes, or has yet to leave."""

    @property
    def title(self) -> str:
        """Role and name, for a line."""
        return f"{self.role} {self.name}"


Seats = Mapping[tuple[AgentRole, str], Seat]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run that has not begun, and who is to compute it."""

    run: str
    needs: Needs


@dataclass(slots=True)
class Claims:
    """Places that runs which come earlier keep for themselves, by agent."""

    of: dict[tuple[AgentRole, str], list[str]] = field(default_factory=dict)

    def take(self, run: str, seats: list[Seat]) -> None:
        """A place at each of these is this run's."""
        for seat in seats:
            self.of.setdefault((seat.role, seat.name), []).append(run)

    def room(self, seat: Seat) -> bool:
        """Whether an agent has a place left."""
        return len(seat.runs) + len(self.of.get((seat.role, seat.name), ())) < seat.max_runs

    def holders(self, seat: Seat) -> list[str]:
        """The runs that have an agent's places."""
        return [*sorted(seat.runs), *self.of.get((seat.role, seat.name), ())]
