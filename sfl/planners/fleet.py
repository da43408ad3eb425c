"""All cuts together for edges that devices share: the shortest round, by a binary search on it.

A round is no shorter than the slowest device alone, and no shorter than all that one edge computes
in it. `within_bound` makes the larger of the two as small as it can be, exactly: for a given length
each device takes the cut that leaves least to the edge and still keeps it, and the edge's load
falls as the length grows. Devices of different edges do not meet.

Devices also wait for each other, which that bound does not know. Where they are few, single cuts
are then changed as long as the round gets shorter as events (`sfl/cost/closed_loop.py`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from sfl.cost.closed_loop import Turns, round_ends
from sfl.cost.predict import turns_of
from sfl.cost.tiers import num_stations
from sfl.planners.decision import Choice
from sfl.planners.planner import Planner, Proposal
from sfl.planners.seconds import (
    alone_seconds,
    edge_seconds,
    exchange_of,
    moving_seconds,
    step_of,
)
from sfl.planners.state import DeviceState, State, foretold
from sfl.planners.told import Cut

POLISHED = 16
"""Devices at an edge up to which single changes are tried."""
STEPS = 10
"""Of a round, that are simulated for each."""
WORTH = 0.001
"""The least share of a round that a change has to save."""


@dataclass(frozen=True, slots=True)
class Row:
    """One device's cuts that no other one beats both ways: ever longer, ever less for the edge.

    `every` has all its legal cuts: seconds of a round alone, the edge's part of it, and the cut.
    """

    device: DeviceState
    lengths: tuple[float, ...]
    loads: tuple[float, ...]
    cuts: tuple[Cut, ...]
    every: tuple[tuple[float, float, Cut], ...]

    def within(self, length: float) -> int:
        """Index of the least load within that length; -1 where nothing is."""
        return bisect_right(self.lengths, length) - 1


def propose(state: State) -> Proposal:
    """The best cuts for each edge; a device stays where its move would shorten nothing."""
    chosen = within_bound(state)
    for name, devices in state.at_edges().items():
        if 1 < len(devices) <= POLISHED and not state.edge(name).load:
            chosen |= _polished(state, devices, chosen)
    return Proposal(chosen, state.memory)


def within_bound(state: State) -> dict[str, Choice]:
    """The cuts with the least bound on the round."""
    chosen: dict[str, Choice] = {}
    for name, devices in state.at_edges().items():
        edge = state.edge(name)
        rows = [row(state, device) for device in devices]
        least = shortest(rows, edge.load)
        chosen |= _at(rows, least, edge.load, state.workload.num_layers)
    return chosen


def row(state: State, device: DeviceState) -> Row:
    """What each of its cuts means for itself and for the edge."""
    every, steps = [], state.workload.steps
    for cut in device.legal:
        choice = device.choice(cut)
        step, exchange = step_of(state, device, choice), exchange_of(state, device, choice)
        every.append((steps * step.seconds + exchange, steps * step.edge, cut))
    every.sort()
    useful, least = [], inf
    for entry in every:
        if entry[1] < least:
            least = entry[1]
            useful.append(entry)
    lengths, loads, cuts = zip(*useful, strict=True)
    return Row(device, lengths, loads, cuts, tuple(every))


def shortest(rows: Sequence[Row], load: float = 0.0) -> float:
    """The least possible length of a round at one edge that has `load` seconds to do beside it."""
    lengths = sorted({length for each in rows for length in each.lengths})
    first = bisect_right(lengths, max(each.lengths[0] for each in rows)) - 1
    low, high = first, len(lengths) - 1
    while low < high:  # the first length that the edge keeps too
        middle = (low + high) // 2
        if _load(rows, lengths[middle]) + load <= lengths[middle]:
            high = middle
        else:
            low = middle + 1
    best = max(lengths[low], _load(rows, lengths[low]) + load)
    if low > first:
        best = min(best, _load(rows, lengths[low - 1]) + load)
    return best


def _load(rows: Sequence[Row], length: float) -> float:
    """The least that an edge has to do, where each device is to keep that length."""
    return sum(each.loads[each.within(length)] for each in rows)


def _at(rows: Sequence[Row], length: float, load: float, layers: int) -> dict[str, Choice]:
    """Cuts that keep the length. The dearest moves are left out first, as long as it is kept."""
    index = {each.device.name: each.within(length) for each in rows}
    chosen = {name: each.cuts[index[name]] for name, each in zip(index, rows, strict=True)}
    room = length * (1 + 1e-12) - load - _load(rows, length)

    def cost(each: Row) -> float:
        choice = each.device.choice(chosen[each.device.name])
        return -moving_seconds(each.device, choice, layers)

    for each in sorted(rows, key=cost):
        more = _staying(each, length)
        name = each.device.name
        if more is not None and more[0] - each.loads[index[name]] <= room:
            room -= more[0] - each.loads[index[name]]
            chosen[name] = more[1]
    return {each.device.name: each.device.choice(chosen[each.device.name]) for each in rows}


def _staying(each: Row, length: float) -> tuple[float, Cut] | None:
    """The load and the cut, where the present one keeps the length."""
    for seconds, load, cut in each.every:
        if cut.at == each.device.at and seconds <= length:
            return load, cut
    return None


def _polished(
    state: State, devices: Sequence[DeviceState], chosen: Mapping[str, Choice]
) -> dict[str, Choice]:
    """The best change of each device in turn, as long as one shortens the round."""
    steps, stations = min(state.workload.steps, STEPS), num_stations(1, len(state.stages))
    ways = {d.name: {cut.at: _way(state, d, d.choice(cut)) for cut in d.legal} for d in devices}

    def seconds(at: Mapping[str, tuple[int, int]]) -> float:
        each = [ways[name][cut] for name, cut in at.items()]
        ends = round_ends([turns for turns, _ in each], steps, stations)
        return max(end + exchange for end, (_, exchange) in zip(ends, each, strict=True))

    at = {device.name: chosen[device.name].at for device in devices}
    best, moved = seconds(at), True
    while moved:
        moved = False
        for device in devices:
            tried = [{**at, device.name: cut.at} for cut in device.legal]
            found = min(tried, key=seconds)
            if (value := seconds(found)) < best * (1.0 - WORTH):
                best, at, moved = value, found, True
    return {device.name: Choice(*at[device.name]) for device in devices}


def _way(state: State, device: DeviceState, choice: Choice) -> tuple[Turns, float]:
    """A step as an edge sees it, and the seconds of the adapter's exchange in one."""
    turns = turns_of(step_of(state, device, choice), choice.edge_speed)
    steps = min(state.workload.steps, STEPS) / state.workload.steps
    return turns, steps * exchange_of(state, device, choice)


def length(state: State, choices: Mapping[str, Choice]) -> float:
    """What `fleet` makes small: seconds of a round as events, or their bound if that is longer."""
    return max(foretold(state, choices).seconds, bound(state, choices))


def bound(state: State, choices: Mapping[str, Choice]) -> float:
    """The slowest device alone or the busiest edge, in seconds a round.

    Who takes no part does not count.
    """
    loads = {edge.name: edge.load for edge in state.edges}
    longest = 0.0
    for device in state.able:
        choice = choices[device.name]
        if choice.takes_part:
            loads[choice.edge or device.edge] += edge_seconds(state, device, choice)
            longest = max(longest, alone_seconds(state, device, choice))
    return max(longest, *loads.values())


FLEET = Planner("fleet", propose, together=length)
