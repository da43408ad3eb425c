"""Whose turn it is: which of the runs that wait begin now, and what the others wait for.

First come, first served. A run that waits for an agent to attach holds nobody up. One that waits
only for places keeps those that it needs, so that no later run overtakes it there for ever.
"""

from __future__ import annotations

from collections.abc import Sequence

from sfl.jobs.values import Claims, Needs, Seat, Seats, Waiting


def turns(waiting: Sequence[Waiting], seats: Seats, running: int, max_runs: int) -> dict[str, str]:
    """For each run, in the order in which they came, what it waits for; empty: it begins.

    `running` is how many runs are under way, of `max_runs` at once.
    """
    claims, said = Claims(), {}
    for job in waiting:
        said[job.run] = waits = _waits(job.needs, seats, claims, running, max_runs)
        if not waits:
            running += 1
        if not missing(job.needs, seats):
            claims.take(job.run, _wanted(job.needs, seats, claims))
    return said


def missing(needs: Needs, seats: Seats) -> str:
    """Who is to attach before a run can begin; empty: nobody."""
    edges = [name for name in needs.edges if ("edge", name) not in seats]
    if edges:
        return f"edge {', '.join(edges)} to attach"
    here = _here(needs, seats)
    lacking = needs.min_devices - len(here)
    if lacking <= 0:
        return ""
    known = {seat.name for seat in here}
    absent = [name for name in needs.devices if name not in known]
    return f"{lacking} more of the devices {', '.join(absent)} to attach{_elsewhere(needs, seats)}"


def _waits(needs: Needs, seats: Seats, claims: Claims, running: int, max_runs: int) -> str:
    if who := missing(needs, seats):
        return who
    for name in needs.edges:
        if not claims.room(seat := seats["edge", name]):
            return _place(seat, claims)
    here = _here(needs, seats)
    full = [seat for seat in here if not claims.room(seat)]
    if len(here) - len(full) < needs.min_devices:
        return _place(full[0], claims)
    if running >= max_runs:
        return f"a place at the service: {running} of {max_runs} runs are under way"
    return ""


def _place(seat: Seat, claims: Claims) -> str:
    return f"a place at {seat.title}, which has {', '.join(claims.holders(seat))}"


def _here(needs: Needs, seats: Seats) -> list[Seat]:
    """The run's devices that are attached, and reach an edge of it."""
    found = [seats["device", name] for name in needs.devices if ("device", name) in seats]
    return [seat for seat in found if needs.home(seat.name, seat.via) is not None]


def _elsewhere(needs: Needs, seats: Seats) -> str:
    """Devices that are attached through an edge which is not in the run."""
    found = [seats["device", name] for name in needs.devices if ("device", name) in seats]
    strays = [s for s in found if needs.home(s.name, s.via) is None]
    return "".join(f"; {s.name} is at edge {s.via}, which is not in the run" for s in strays)


def _wanted(needs: Needs, seats: Seats, claims: Claims) -> list[Seat]:
    """Whose places a run takes, or keeps until it has them all."""
    edges = [seats["edge", name] for name in needs.edges]
    here = _here(needs, seats)
    free = [seat for seat in here if claims.room(seat)]
    return [*edges, *(free if len(free) >= needs.min_devices else here)]
