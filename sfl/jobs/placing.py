"""Which agents a run under way is to be computed by, and at which addresses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from sfl.jobs.values import AgentRole, Needs, Seat, Seats

Place = tuple[AgentRole, str]
"""An agent's role and name."""


def placing(
    run: str, needs: Needs, seats: Seats, cloud: str, edges: Mapping[str, str]
) -> dict[Place, str]:
    """Who computes the run, each with the address that its node dials.

    `cloud` is where the run's cloud listens, empty before it does; `edges` where its edges do, as
    far as they are up. Agents without room for the run are left out.
    """
    if not cloud:
        return {}
    wanted: dict[Place, str] = {}
    for name in needs.edges:
        if _has_room(seats, ("edge", name), run):
            wanted["edge", name] = cloud
    for name in needs.devices:
        if _has_room(seats, ("device", name), run):
            home = needs.home(name, seats["device", name].via)
            if home is not None and (address := edges.get(home)):
                wanted["device", name] = address
    return wanted


def claimed(seats: Seats, under_way: Mapping[str, tuple[Needs, Collection[Place]]]) -> Seats:
    """The agents, each with all runs under way that it is to compute, whether it knows or not.

    `under_way` has a run's needs, and the places that have no part in it any more.
    """
    found = dict(seats)
    for run, (needs, done) in under_way.items():
        for place in (*(_edge(n) for n in needs.edges), *(_device(n) for n in needs.devices)):
            seat = found.get(place)
            if seat is not None and place not in done and _reaches(needs, seat):
                found[place] = replace(seat, runs=seat.runs | {run})
    return found


def out_of_reach(needs: Needs, given_up: Mapping[Place, str]) -> str:
    """Why a run cannot reach its end without those who are `given_up`; empty: it can."""
    for name in needs.edges:
        if ("edge", name) in given_up:
            return f"edge {name}: {given_up['edge', name]}"
    lost = [name for name in needs.devices if ("device", name) in given_up]
    left = len(needs.devices) - len(lost)
    if left >= needs.min_devices:
        return ""
    reasons = "; ".join(f"device {name}: {given_up['device', name]}" for name in lost)
    return f"{left} of at least {needs.min_devices} devices are left; {reasons}"


def _edge(name: str) -> Place:
    return "edge", name


def _device(name: str) -> Place:
    return "device", name


def _reaches(needs: Needs, seat: Seat) -> bool:
    return seat.role == "edge" or needs.home(seat.name, seat.via) is not None


def _has_room(seats: Seats, place: Place, run: str) -> bool:
    seat = seats.get(place)
    return seat is not None and (run in seat.runs or len(seat.runs) < seat.max_runs)
