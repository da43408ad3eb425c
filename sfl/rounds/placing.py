"""Which edge a device is at: where it may join, and where it goes as a round begins.

The words are those of mobile networks: a device is *handed over* from one edge to another. A
handover keeps the device's part in the run open, as for one that is lost and comes back, so that
nothing is done twice and what both sides remember is gone on from (`sfl.rounds.away`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from sfl.config import RunSettings
from sfl.rounds.away import go_away
from sfl.rounds.changed import changed
from sfl.rounds.messages import DeviceJoined, HandOver, ReportReceived
from sfl.rounds.state import Place, RunState
from sfl.rounds.turn import Turn
from sfl.rounds.values import BEGINNING, RoundTrips

MOST_SENT = 2
"""Times that a device which joins is sent on: to measure, and to the edge that is its own then."""
NEARER = 0.7
"""A device goes to an edge whose round trip is at most such a share of that to its own."""
LEAST_GAIN = 0.002
"""Seconds that its round trip is shorter at least."""


def here(state: RunState) -> list[str]:
    """Edges that are there and have the run's model, by name."""
    others = set(state.models.others)
    return sorted(edge for edge in state.models.said if edge not in others)


def addresses(state: RunState, edges: Iterable[str] | None = None) -> dict[str, str]:
    """Where devices dial these edges; without, all that are there."""
    names = here(state) if edges is None else edges
    return {edge: state.bases[edge].address for edge in names}


def place_of(state: RunState, device: str) -> Place:
    """What is known of where a device is, and was."""
    return state.places.get(device, Place())


def _keep(turn: Turn, device: str, place: Place) -> None:
    turn.state = changed(turn.state, places=turn.state.places.put(device, place))


# -- who joins ------------------------------------------------------------------------------------


def elsewhere(turn: Turn, event: DeviceJoined) -> tuple[str, ...]:
    """The edge that a device is to go to instead of the one that it asks at.

    Several: it is to measure how far they are, and to go to the nearest. None: it is let in here.
    Only who has never been in the run is sent on.
    """
    place, edges = place_of(turn.state, event.device), here(turn.state)
    if place.edge or place.sent >= MOST_SENT or len(edges) < 2:
        return ()
    found = _JOINING[turn.settings.run.placement](turn, event, edges)
    if found in ((), (event.edge,)):
        return ()
    now = turn.state.now
    _keep(turn, event.device, replace(place, sent=place.sent + 1, to=found[0], since=now))
    return found


def _configured(turn: Turn, event: DeviceJoined, edges: list[str]) -> tuple[str, ...]:
    own = _named_edge(turn.settings, event.device)
    return (own,) if own in edges else ()


def _nearest(turn: Turn, event: DeviceJoined, edges: list[str]) -> tuple[str, ...]:
    measured = [(event.round_trips[name], name) for name in edges if name in event.round_trips]
    return (min(measured)[1],) if measured else tuple(edges)


def _least_loaded(turn: Turn, event: DeviceJoined, edges: list[str]) -> tuple[str, ...]:
    """Of edges with equally few the one that it asks at, then the first by name."""
    if place_of(turn.state, event.device).to == event.edge:
        return ()
    loads = _loads(turn, edges, but=event.device)
    return (min(edges, key=lambda name: (loads[name], name != event.edge, name)),)


_Rule = Callable[[Turn, DeviceJoined, list[str]], tuple[str, ...]]
_JOINING: Mapping[str, _Rule] = {
    "configured": _configured,
    "nearest": _nearest,
    "least_loaded": _least_loaded,
}


def _loads(turn: Turn, edges: Collection[str], but: str = "") -> dict[str, int]:
    """Devices at each edge, and on their way there, without one of them.

    Who has not come within `join_timeout` is on its way no more, unless it is waited for.
    """
    state, patience = turn.state, turn.settings.network.join_timeout
    loads = {edge: len(state.roster.at_edge.get(edge, ())) for edge in edges}
    for name, place in state.places.items():
        if place.to not in loads or name in state.roster.devices or name == but:
            continue
        if name in state.away or state.now - place.since <= patience:
            loads[place.to] += 1
    return loads


def _named_edge(settings: RunSettings, device: str) -> str | None:
    return settings.device(device).edge if settings.knows(device) else None


# -- who is there ---------------------------------------------------------------------------------


def settled_at(turn: Turn, device: str, edge: str) -> None:
    """A device is ready at an edge; whether that is another one than before is counted."""
    place = place_of(turn.state, device)
    moved = place.edge not in ("", edge)
    _keep(turn, device, Place(edge, place.handovers + moved, trips=place.trips))


def hear(turn: Turn, event: ReportReceived) -> None:
    """What a device says of edges in the report of its round."""
    report = event.report
    if report is None or not (report.round_trips or report.asks_for):
        return
    place = place_of(turn.state, event.device)
    trips = dict(report.round_trips) or place.trips
    _keep(turn, event.device, replace(place, trips=trips, asks_for=report.asks_for))


# -- as a round begins ----------------------------------------------------------------------------


def handovers(turn: Turn, names: Collection[str]) -> dict[str, str]:
    """Which of the devices of a round that begins go to another edge, and to which.

    A planner's word comes first, then a device's own. What the run's `placement` asks for is done
    where the device's moments are found there as well.
    """
    state, edges = turn.state, here(turn.state)
    if len(edges) < 2:
        return {}
    said = dict(_asked_for(turn, names))
    rest = [name for name in names if name not in said]
    said |= {
        name: edge
        for name, edge in _MOVING[turn.settings.run.placement](turn, rest, edges)
        if _takes_all_along(turn, name, edge)
    }
    return {
        name: edge
        for name, edge in sorted(said.items())
        if edge in edges and edge != state.roster.devices[name].edge
    }


def hand_over(turn: Turn, device: str, to: str) -> None:
    """Have a device go to another edge; its part in the open round waits for it."""
    edge, network = turn.state.roster.devices[device].edge, turn.settings.network
    reason = f"it goes from edge {edge} to edge {to}"
    place = replace(place_of(turn.state, device), to=to, since=turn.state.now, asks_for="")
    _keep(turn, device, place)
    turn.do(HandOver(device, edge, to, reason))
    go_away(turn, device, reason, max(network.rejoin_timeout, network.join_timeout))


def _asked_for(turn: Turn, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """By the planner, or by the device itself."""
    decides = turn.settings.planner.decides
    for name in names:
        choice = turn.state.choices.get(name) if decides else None
        if choice is not None and choice.edge:
            yield name, choice.edge
        elif asked := place_of(turn.state, name).asks_for:
            yield name, asked


def _takes_all_along(turn: Turn, device: str, to: str) -> bool:
    """Whether another edge can go on where this one is: from a store that both have, or since there
    is nothing yet."""
    state = turn.state
    if state.reached.get(device, BEGINNING) == BEGINNING:
        return True
    store = state.bases[state.roster.devices[device].edge].store
    return turn.settings.recovery.snapshots and store != "" and store == state.bases[to].store


def _to_the_nearest(
    turn: Turn, names: Collection[str], edges: list[str]
) -> Iterator[tuple[str, str]]:
    for name in names:
        trips = place_of(turn.state, name).trips
        own = turn.state.roster.devices[name].edge
        measured = [(trips[edge], edge) for edge in edges if edge in trips]
        if own in trips and (best := min(measured))[0] <= _near(trips, own):
            yield name, best[1]


def _to_the_configured(
    turn: Turn, names: Collection[str], edges: list[str]
) -> Iterator[tuple[str, str]]:
    """Who was let in elsewhere because its edge was not there yet, and has never moved since."""
    for name in names:
        own = _named_edge(turn.settings, name)
        if own in edges and not place_of(turn.state, name).handovers:
            yield name, own


def _near(trips: RoundTrips, own: str) -> float:
    return min(NEARER * trips[own], trips[own] - LEAST_GAIN)


def _to_the_least_loaded(
    turn: Turn, names: Collection[str], edges: list[str]
) -> Iterator[tuple[str, str]]:
    """One after the other from the edge with the most, until none has two more than another."""
    state = turn.state
    loads = _loads(turn, edges)
    at: dict[str, list[str]] = {edge: [] for edge in edges}
    for name in sorted(names):
        at.setdefault(state.roster.devices[name].edge, []).append(name)
    while True:
        most = max(edges, key=lambda edge: (loads[edge] if at[edge] else -1, edge))
        least = min(edges, key=lambda edge: (loads[edge], edge))
        if not at[most] or loads[most] - loads[least] < 2:
            return
        loads[most], loads[least] = loads[most] - 1, loads[least] + 1
        yield at[most].pop(), least


_Moving = Callable[[Turn, Collection[str], list[str]], Iterator[tuple[str, str]]]
_MOVING: Mapping[str, _Moving] = {
    "configured": _to_the_configured,
    "nearest": _to_the_nearest,
    "least_loaded": _to_the_least_loaded,
}
