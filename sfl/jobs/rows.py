"""What operators are shown of runs and agents."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

SILENT = "its cloud: a sign of life"
"""For what a run waits whose cloud is there and writes nothing."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in a list; times in Unix seconds, 0 where there is none yet."""

    run: str
    state: str
    round: int = 0
    rounds: int = 0
    submitted_at: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0
    waits: str = ""
    """For whom or what it waits."""
    waits_since: float = 0.0
    waits_until: float = 0.0
    """When it waits no longer; 0 where nothing is said of that."""
    reason: str = ""
    """How it ended."""


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An agent that is attached."""

    role: str
    name: str
    via: str
    max_runs: int
    runs: tuple[str, ...]
    attached_at: float


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a service stands: its open runs, or the one that was asked for with its status."""

    runs: tuple[RunRow, ...]
    agents: tuple[AgentRow, ...] = ()
    max_runs: int = 0
    """0: no service, a folder with runs."""
    status: str = ""
    """JSON: status.json of the run that was asked for."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        values = dataclasses.asdict(self)
        return {**values, "status": json.loads(self.status) if self.status else None}


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A run that an agent computes; an edge's own address, or that of a device's edge."""

    run: str
    address: str
