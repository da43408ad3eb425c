"""As many devices as edges in each round, one at each edge; everybody in as few rounds as can be.

After SplitLLM (2501.13318), which pairs users and edges anew in each round. With N devices on M
edges a cycle takes N / M rounds, rounded up. Devices of like length share a round, which makes the
sum of the rounds least where all edges are alike. Within a round the pairs are those whose slowest
one is the quickest.
"""

from __future__ import annotations

from dataclasses import replace

from sfl.planners.decision import Choice
from sfl.planners.fixed import present
from sfl.planners.planner import Planner, Proposal
from sfl.planners.seconds import alone_seconds
from sfl.planners.state import DeviceState, State

TURNS = "turns"
"""The table of rounds that each device has had."""


def propose(state: State) -> Proposal:
    """The devices whose turn it is, each with its edge."""
    turns = dict(state.memory.get(TURNS, {}))
    waiting = _waiting(state, turns)
    group = waiting[: len(state.edges)]
    edges = pairs(state, group)
    chosen = {}
    for device in state.able:
        edge = edges.get(device.name)
        elsewhere = "" if edge is None or edge == device.edge else edge
        chosen[device.name] = replace(present(device), edge=elsewhere, takes_part=edge is not None)
    fewest = min(turns.get(device.name, 0.0) for device in state.able) if state.able else 0.0
    table = {
        device.name: max(turns.get(device.name, 0.0), fewest) + (device.name in edges)
        for device in state.able
    }
    return Proposal(chosen, {TURNS: table})


def _waiting(state: State, turns: dict[str, float]) -> list[DeviceState]:
    """Those who have had the fewest turns, the longest first."""
    fewest = min((turns.get(device.name, 0.0) for device in state.able), default=0.0)
    due = [device for device in state.able if turns.get(device.name, 0.0) <= fewest]
    return sorted(due, key=lambda one: (-alone_seconds(state, one, present(one)), one.name))


def pairs(state: State, group: list[DeviceState]) -> dict[str, str]:
    """An edge of its own for each device, so that the slowest pair is as quick as can be."""
    names = [edge.name for edge in state.edges]
    seconds = [[_at(state, device, edge) for edge in names] for device in group]
    lengths = sorted({value for row in seconds for value in row})
    low, high = 0, len(lengths) - 1
    while low < high:
        middle = (low + high) // 2
        if _matching(seconds, lengths[middle]) is not None:
            high = middle
        else:
            low = middle + 1
    found = _matching(seconds, lengths[low]) if lengths else {}
    assert found is not None
    return {group[row].name: names[column] for row, column in found.items()}


def _at(state: State, device: DeviceState, edge: str) -> float:
    choice: Choice = replace(present(device), edge=edge)
    return alone_seconds(state, device, choice)


def _matching(seconds: list[list[float]], most: float) -> dict[int, int] | None:
    """A column for each row with at most that many seconds, or None."""
    holders: dict[int, int] = {}

    def place(row: int, seen: set[int]) -> bool:
        for column, value in enumerate(seconds[row]):
            if value <= most and column not in seen:
                seen.add(column)
                if column not in holders or place(holders[column], seen):
                    holders[column] = row
                    return True
        return False

    if not all(place(row, set()) for row in range(len(seconds))):
        return None
    return {row: column for column, row in holders.items()}


PAIRING = Planner("pairing", propose)
