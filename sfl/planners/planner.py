"""A planner: what it proposes, and how its proposals are scored against staying as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sfl.planners.decision import Choice, Decision, Memory
from sfl.planners.settle import settle
from sfl.planners.state import DeviceState, State


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a planner would do if a move cost nothing: a choice for each device that is able."""

    devices: Mapping[str, Choice]
    memory: Memory = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Planner:
    """A policy. `propose` is a pure function, and so is `decide`.

    `alone` scores one device's choice and `together` those of all; a planner that moves cuts for a
    gain has one of the two, and smaller is better. One with neither is obeyed as it is.
    """

    name: str
    propose: Callable[[State], Proposal]
    alone: Callable[[State, DeviceState, Choice], float] | None = None
    together: Callable[[State, Mapping[str, Choice]], float] | None = None

    def decide(self, state: State) -> Decision:
        """The proposal, less the moves that do not pay. Raises ValueError for an illegal one."""
        return settle(self, state)
