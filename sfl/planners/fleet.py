"""All cuts together for edges that devices share: the shortest round, by a binary search on it.

A round is no shorter than the slowest device alone, and no shorter than all that one edge computes
in it. `within_bound` makes the larger of the two as small as it can be, exactly: for a given length
each device takes the cut that leaves least to the edge and still keeps it, and the edge's load
falls as the length grows. Devices of different edges do not meet.

Devices also wait for each other, which that bound does not know. Where they are few, single cuts
are then changed as long as the round gets shorter as events (`sfl/cost/closed_loop.py`).

Where the stage behind the edges may have several places, each is tried for all devices, and then
each device has one of its own. That need not be the optimum: the stage is shared, too. If there are
few plans, all of them are looked at.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import inf, prod

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
STARTS = 3
"""Places of the stage from which on single changes are tried: the best of those that are the same
for all."""
STEPS = 10
"""Of a round, that are simulated for each."""
WORTH = 0.001
"""The least share of a round that a change has to save."""
EVERY = 2000
"""Plans up to which all of them are looked at, where stages may have several places."""


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
    if any(device.stage_range is not None for device in state.able):
        return Proposal(_with_stages(state), state.memory)
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


def _with_stages(state: State) -> dict[str, Choice]:
    """The best of all plans, where these are few. Else the best cuts with the stage at each place,
    the same for all; then single changes."""
    layers = state.workload.num_layers
    ways = {device.name: device.choices(layers) for device in state.able}
    if prod(map(len, ways.values())) <= EVERY:
        every = (dict(zip(ways, chosen, strict=True)) for chosen in product(*ways.values()))
        return min(every, key=lambda choices: length(state, choices))
    starts = [_with_stage(state, place) for place in _places(state)]
    starts.sort(key=lambda choices: length(state, choices))
    if len(state.able) > POLISHED:
        return starts[0]
    found = [_polished(state, state.able, choices) for choices in starts[:STARTS]]
    return min([*starts[:1], *found], key=lambda choices: length(state, choices))


def _places(state: State) -> list[int]:
    ranges = [device.stage_range for device in state.able if device.stage_range is not None]
    return sorted({place for least, most in ranges for place in range(least, most + 1)})


def _with_stage(state: State, place: int) -> dict[str, Choice]:
    """The best cuts with the stage there, or as near as a device may have it."""
    layers, devices = state.workload.num_layers, []
    for device in state.able:
        if device.stage_range is None:
            devices.append(device)
            continue
        own = {stage for choice in device.choices(layers) for stage in choice.stage_cuts}
        nearest = min(own, key=lambda stage: (abs(stage - place), stage))
        devices.append(device.with_stage(nearest, layers))
    chosen = within_bound(replace(state, devices=tuple(devices)))
    free = {device.name for device in state.able if device.stage_range is not None}
    stages = {device.name: device.stage_cuts if device.name in free else () for device in devices}
    return {name: replace(choice, stage_cuts=stages[name]) for name, choice in chosen.items()}


def _polished(
    state: State, devices: Sequence[DeviceState], chosen: Mapping[str, Choice]
) -> dict[str, Choice]:
    """The best change of each device in turn, as long as one shortens the round."""
    edges = sorted({device.edge for device in devices})
    steps, stations = min(state.workload.steps, STEPS), num_stations(len(edges), len(state.stages))
    layers = state.workload.num_layers
    ways = {d.name: {one: _way(state, d, one, edges) for one in d.choices(layers)} for d in devices}

    def seconds(at: Mapping[str, Choice]) -> float:
        each = [ways[name][choice] for name, choice in at.items()]
        ends = round_ends([turns for turns, _ in each], steps, stations)
        return max(end + exchange for end, (_, exchange) in zip(ends, each, strict=True))

    at = {device.name: chosen[device.name] for device in devices}
    best, moved = seconds(at), True
    while moved:
        moved = False
        for device in devices:
            tried = [{**at, device.name: choice} for choice in ways[device.name]]
            found = min(tried, key=seconds)
            if (value := seconds(found)) < best * (1.0 - WORTH):
                best, at, moved = value, found, True
    return dict(at)


def _way(
    state: State, device: DeviceState, choice: Choice, edges: Sequence[str]
) -> tuple[Turns, float]:
    """A step as an edge sees it, and the seconds of the adapter's exchange in one."""
    step, number = step_of(state, device, choice), edges.index(device.edge)
    turns = turns_of(step, choice.edge_speed, number, len(edges))
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
