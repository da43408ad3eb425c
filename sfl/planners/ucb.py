"""Who takes part, learned from who finished and how soon (after MAVFL, 2410.10451).

A discounted bandit over devices that stay, with three changes to the paper. Each device is rewarded
for its own success and time instead of the round's, the past counts longer, and devices are tried
out less. Of devices never seen only a few come in at once. The paper takes all of them, so that it
mostly picks whoever came last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log, sqrt

from sfl.planners.decision import Memory
from sfl.planners.fixed import present
from sfl.planners.planner import Planner, Proposal
from sfl.planners.random import drawn
from sfl.planners.state import State
from sfl.planners.told import Outcome

DISCOUNT = 0.98
"""Of what is known, with every decision."""
EXPLORATION = 0.3
"""Of the width of a confidence bound."""
SUCCESS = 0.6
"""The weight of finishing; the rest is that of time."""
SEEN = 1e-6


@dataclass(frozen=True, slots=True)
class _Arms:
    """Discounted picks and rewards by device, and the range of all seconds."""

    counts: Mapping[str, float]
    sums: Mapping[str, float]
    least: float
    most: float

    def bound(self, name: str) -> float:
        """The mean reward, and how much more it may be."""
        count = self.counts[name]
        everything = max(1.0, sum(self.counts.values()))
        return self.sums[name] / count + EXPLORATION * sqrt(2.0 * log(everything) / count)

    @property
    def memory(self) -> Memory:
        return {
            "counts": self.counts,
            "sums": self.sums,
            "seconds": {"least": self.least, "most": self.most},
        }


def propose(state: State) -> Proposal:
    """The devices with the highest bounds, and a few that are new; nobody's cut moves."""
    arms = _learned(state)
    selected = set(_select(state, arms))
    chosen = {
        device.name: replace(present(device), takes_part=device.name in selected)
        for device in state.able
    }
    return Proposal(chosen, arms.memory)


def _select(state: State, arms: _Arms) -> list[str]:
    wanted = min(state.aims.select or len(state.able), len(state.able))
    tried = drawn(state, len(state.able))  # in an order of chance, for equal bounds
    new = [name for name in tried if arms.counts.get(name, 0.0) < SEEN]
    known = [name for name in tried if name not in set(new)]
    known.sort(key=lambda name: -arms.bound(name))
    first = new[: min(state.aims.newcomers, wanted)]
    rest = known + new[len(first) :]
    return first + rest[: wanted - len(first)]


def _learned(state: State) -> _Arms:
    """What was known, discounted, with the last round's outcomes."""
    outcomes = {d.name: d.outcome for d in state.devices if d.outcome is not None}
    counts = {name: DISCOUNT * n for name, n in state.memory.get("counts", {}).items()}
    sums = {name: DISCOUNT * n for name, n in state.memory.get("sums", {}).items()}
    least, most = _range(state, outcomes)
    for name, outcome in outcomes.items():
        counts[name] = counts.get(name, 0.0) + 1.0
        sums[name] = sums.get(name, 0.0) + _reward(outcome, least, most)
    present_names = {device.name for device in state.devices}
    return _Arms(
        {name: n for name, n in counts.items() if name in present_names},
        {name: n for name, n in sums.items() if name in present_names},
        least,
        most,
    )


def _range(state: State, outcomes: Mapping[str, Outcome]) -> tuple[float, float]:
    """Least and most seconds so far; the deadline is the most, where there is one."""
    known = state.memory.get("seconds", {})
    seconds = [outcome.seconds for outcome in outcomes.values()]
    least = min([*seconds, known.get("least", min(seconds, default=0.0))])
    most = max([*seconds, known.get("most", 0.0)])
    return least, state.aims.deadline or most


def _reward(outcome: Outcome, least: float, most: float) -> float:
    """Between SUCCESS - 1 and SUCCESS."""
    late = (outcome.seconds - least) / (most - least) if most > least else 0.0
    return SUCCESS * outcome.success - (1.0 - SUCCESS) * min(max(late, 0.0), 1.0)


UCB = Planner("ucb", propose)
