"""Who takes part, learned from who finished and how soon (after MAVFL, 2410.10451).

A discounted bandit over devices that stay, with four changes to the paper. Each device is known by
its own successes and times, instead of the round's. Those that take part are chosen together, for
the most successes a second, instead of each for a weighted sum of both. The past counts longer, and
devices are tried out less. Of devices never seen only a few come in at once. The paper takes all of
them, so that it mostly picks whoever came last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappush, heapreplace
from math import exp, log, sqrt
from statistics import fmean

from sfl.planners.decision import Memory
from sfl.planners.fixed import present
from sfl.planners.planner import Planner, Proposal
from sfl.planners.random import drawn
from sfl.planners.state import State
from sfl.planners.told import Outcome

DISCOUNT = 0.98
"""Of what is known, with every decision."""
CHANCE = 0.2
"""Of the width of a confidence bound, that a device is thought to finish more often."""
QUICK = 0.05
"""The same for its time, in its logarithm: so who was slow once is tried again after long."""
SEEN = 1e-6
SOONEST = 1e-3
"""Seconds: below that no two devices differ."""


@dataclass(frozen=True, slots=True)
class _Arms:
    """Discounted rounds by device, those that it finished, and the logarithms of their seconds."""

    rounds: Mapping[str, float]
    finished: Mapping[str, float]
    logs: Mapping[str, float]

    @property
    def memory(self) -> Memory:
        return {"rounds": self.rounds, "finished": self.finished, "logs": self.logs}


@dataclass(frozen=True, slots=True, order=True)
class _Hope:
    """A device as it may be at best: how likely it finishes, and in which time."""

    chance: float
    place: int
    """For equal chances."""
    seconds: float
    name: str


def propose(state: State) -> Proposal:
    """Those with the most successes a second, and a few that are new; nobody's cut moves."""
    arms = _learned(state)
    selected = set(_select(state, arms))
    chosen = {
        device.name: replace(present(device), takes_part=device.name in selected)
        for device in state.able
    }
    return Proposal(chosen, arms.memory)


def _select(state: State, arms: _Arms) -> list[str]:
    wanted = min(state.aims.select or len(state.able), len(state.able))
    tried = drawn(state, len(state.able))  # in an order of chance, for equal hopes
    new = [name for name in tried if arms.rounds.get(name, 0.0) < SEEN]
    known = [name for name in tried if arms.rounds.get(name, 0.0) >= SEEN]
    first = new[: min(state.aims.newcomers, wanted)]
    count = wanted - len(first)
    if len(known) <= count:
        return first + known + new[len(first) : wanted - len(known)]
    return first + (_best(list(_hopes(known, arms)), count) if count else [])


def _hopes(known: Sequence[str], arms: _Arms) -> Iterator[_Hope]:
    """Who has never finished counts as taking as long as the others."""
    logs = {
        name: arms.logs[name] / arms.finished[name]
        for name in known
        if arms.finished.get(name, 0.0) >= SEEN
    }
    usual = fmean(logs.values()) if logs else 0.0
    everything = 2.0 * log(max(2.0, sum(arms.rounds.values())))
    for place, name in enumerate(known):
        width = sqrt(everything / arms.rounds[name])
        chance = min(1.0, arms.finished.get(name, 0.0) / arms.rounds[name] + CHANCE * width)
        yield _Hope(chance, -place, exp(logs.get(name, usual) - QUICK * width), name)


def _best(hopes: Sequence[_Hope], count: int) -> list[str]:
    """The so many with the most successes a second, in a round as long as its slowest device.

    They are the likeliest of the quickest n, for the best n. Exact for given hopes: O(n log n).
    """
    likeliest: list[_Hope] = []
    best, rate, total = list[_Hope](), -1.0, 0.0
    for hope in sorted(hopes, key=lambda one: one.seconds):
        total += hope.chance
        if len(likeliest) < count:
            heappush(likeliest, hope)
        else:
            total -= heapreplace(likeliest, hope).chance if likeliest[0] < hope else hope.chance
        if len(likeliest) == count and total / hope.seconds > rate:
            best, rate = list(likeliest), total / hope.seconds
    return [hope.name for hope in best]


def _learned(state: State) -> _Arms:
    """What was known, discounted, with the last round's outcomes."""
    there = {device.name for device in state.devices}
    rounds, finished, logs = (
        {name: DISCOUNT * n for name, n in state.memory.get(table, {}).items() if name in there}
        for table in ("rounds", "finished", "logs")
    )
    for device in state.devices:
        name, outcome = device.name, device.outcome
        if outcome is None:
            continue
        rounds[name] = rounds.get(name, 0.0) + 1.0
        if _succeeded(outcome, state.aims.deadline):
            finished[name] = finished.get(name, 0.0) + 1.0
            logs[name] = logs.get(name, 0.0) + log(max(SOONEST, outcome.seconds))
    return _Arms(rounds, finished, logs)


def _succeeded(outcome: Outcome, deadline: float | None) -> bool:
    return outcome.success and (deadline is None or outcome.seconds <= deadline)


UCB = Planner("ucb", propose)
