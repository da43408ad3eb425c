"""`plans.jsonl`: a line for each decision, with the state that it was taken from.

A line is a `Decision` with two more keys: `advice`, whether it was only said, and `state`. So any
decision can be taken again: `PLANNERS[decision.policy].decide(state)` gives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic_core import from_json, to_json

from sfl.planners.decision import Choice, Decision

if TYPE_CHECKING:
    from sfl.planners.state import State

NAMED = 3
"""Devices that a few words name."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One line. `state` is None where the line has none."""

    decision: Decision
    advice: bool = False
    state: State | None = None

    def as_json(self) -> str:
        """The line."""
        rest = "" if self.state is None else f',"state":{self.state.as_json()}'
        return f'{self.decision.as_json()[:-1]},"advice":{str(self.advice).lower()}{rest}}}'

    @staticmethod
    def from_json(line: str | bytes, *, with_state: bool = True) -> Plan:
        """The same back, or without its state, which takes longest. Raises ValueError."""
        values = from_json(line)
        if not isinstance(values, dict):
            raise ValueError("a decision is a JSON object")
        told = values.pop("state", None) if with_state else None
        state = None if told is None else _state(to_json(told))
        return Plan(Decision.from_json(line), values.get("advice") is True, state)

    @property
    def in_short(self) -> str:
        """A few words for somebody who looks on."""
        why = self.decision.why
        line = f"round {self.decision.round} by {self.decision.policy}"
        line += " (advice)" if self.advice else ""
        line += f": {why.seconds:.3g} s"
        if why.slowest:
            line += f", waits for {why.slowest}"
        if why.moved:
            more = len(why.moved) - NAMED
            line += f"; moves {', '.join(why.moved[:NAMED])}"
            line += f" and {more} more" if more > 0 else ""
        return line

    def __str__(self) -> str:
        """One line of a log."""
        what = "would be" if self.advice else "is"
        return f"round {self.decision.round} {what} planned: {self.decision.why}"


def _state(line: bytes) -> State:
    from sfl.planners.state import State  # only few who read plans ask for it

    return State.from_json(line)


def recorded_for(plans: Iterable[Plan], round_: int) -> Mapping[str, Choice]:
    """What was chosen for each device for a round, or last before it."""
    chosen: dict[str, Choice] = {}
    for plan in plans:
        if plan.decision.round <= round_:
            chosen |= plan.decision.devices
    return chosen
