"""How long planners take to decide."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from benchmarks.planning.rows import table
from benchmarks.planning.shared_edge import shared_edge
from sfl.planners import PLANNERS, State


def time_table() -> None:
    """CPU milliseconds of a proposal, and of a decision with its reasons."""
    print("### CPU milliseconds, proposal and decision, eleven legal cuts each\n")
    sizes = (6, 100, 1200)
    row = table("planner", *(f"{size} devices" for size in sizes))
    base = shared_edge(5e12, 100.0, 2.1)
    for name, planner in PLANNERS.items():
        cells = []
        for size in sizes:
            state = _many(base, size)
            cells.append(f"{_taken(planner.propose, state)}, {_taken(planner.decide, state)}")
        row(f"`{name}`", *cells)
    print()


def _many(base: State, size: int) -> State:
    devices = tuple(
        replace(base.devices[n % 6], name=f"d{n}", at=(1 + n % 11, 0)) for n in range(size)
    )
    return replace(base, devices=devices)


def _taken(work: Callable[[State], object], state: State) -> str:
    best = float("inf")
    for _ in range(2):
        fresh = replace(state, devices=tuple(replace(one) for one in state.devices))
        begin = time.process_time()
        work(fresh)
        best = min(best, 1e3 * (time.process_time() - begin))
    return f"{best:.1f}" if best < 10 else f"{best:.0f}"
