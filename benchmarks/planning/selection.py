"""Who takes part: bandits, chance, and who knows all, after MAVFL (2410.10451)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import exp, log, sqrt
from statistics import fmean

from benchmarks.planning.drawing import Line, Panel
from benchmarks.planning.rows import table
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost, PassCost, Workload
from sfl.planners import PLANNERS, Aims, Cut, DeviceState, EdgeState, State
from sfl.planners.told import Outcome


@dataclass(frozen=True, slots=True)
class Crowd:
    """Forty devices: how likely each is to finish, and how long it takes."""

    chances: tuple[float, ...]
    seconds: tuple[float, ...]


def crowd(draw: random.Random, steady: bool) -> Crowd:
    """Devices that fail, or a fleet in which nobody does."""
    chances = [1.0 if steady else draw.betavariate(2, 1.2) for _ in range(40)]
    width = 0.05 if steady else 0.6
    return Crowd(tuple(chances), tuple(exp(draw.gauss(2.5, width)) for _ in range(40)))


ROUNDS = 300


@dataclass(frozen=True, slots=True)
class Course:
    """Seconds and successes so far, after each round; how often each device took part."""

    points: list[tuple[float, int]]
    picks: Counter[int]

    @property
    def rate(self) -> float:
        """Successes a second, over all rounds."""
        seconds, count = self.points[-1]
        return count / seconds

    @property
    def regulars(self) -> int:
        """Devices that took part in a twentieth of the rounds, or more."""
        return sum(count >= ROUNDS / 20 for count in self.picks.values())


def course(policy: str, seed: int, steady: bool) -> Course:
    """Rounds of eight devices; a quarter of all devices changes after every 100."""
    draw = random.Random(seed)
    now = crowd(draw, steady)
    deadline = 1.3 * sorted(now.seconds)[-1]
    aims = Aims(hysteresis=0.0, select=8, deadline=deadline)
    state = replace(_arms(aims), seed=seed)
    papers = _PapersBandit(min(now.seconds), deadline)
    count, total, found, picks = 0, 0.0, list[tuple[float, int]](), Counter[int]()
    for number in range(ROUNDS):
        if number and number % 100 == 0 and not steady:
            now = _changed(draw, now)
        state = replace(state, round=number)
        selected = _selected(policy, state, now, papers, deadline)
        picks.update(selected)
        times = {one: now.seconds[one] * exp(draw.gauss(0, 0.15)) for one in selected}
        good = {one: draw.random() < now.chances[one] for one in selected}
        state = _told(state, policy, times, good)
        longest_ = min(max(times.values()), deadline)
        papers.learn(selected, sum(good.values()) / len(good), longest_)
        count, total = count + sum(good.values()), total + longest_
        found.append((total, count))
    return Course(found, picks)


def _arms(aims: Aims) -> State:
    cost = DeviceCost(NodeCost(PassCost(1.0)), LinkCost(1.0, 1.0))
    devices = tuple(DeviceState(f"d{n}", "edge", cost, (Cut(1),)) for n in range(40))
    edge = EdgeState("edge", EdgeCost(NodeCost(PassCost(1.0))))
    return State(1, Workload(2, 1, 1), devices, (edge,), aims)


def _changed(draw: random.Random, now: Crowd) -> Crowd:
    new, moved = crowd(draw, False), set(draw.sample(range(40), 10))
    return Crowd(
        tuple(new.chances[n] if n in moved else now.chances[n] for n in range(40)),
        tuple(new.seconds[n] if n in moved else now.seconds[n] for n in range(40)),
    )


def _told(state: State, policy: str, times: Mapping[int, float], good: Mapping[int, bool]) -> State:
    """With the round's outcomes; who was not in it has none.

    As in a run: who failed is said to have taken as long as the longest that did not.
    """
    if policy != "ucb":
        return state
    memory = PLANNERS["ucb"].propose(state).memory
    longest = max((times[n] for n in times if good[n]), default=0.0)
    devices = tuple(
        replace(d, outcome=_outcome(good[n], times[n], longest) if n in times else None)
        for n, d in enumerate(state.devices)
    )
    return replace(state, devices=devices, memory=memory)


def _outcome(good: bool, seconds: float, longest: float) -> Outcome:
    return Outcome(good, seconds if good else longest)


def _selected(
    policy: str, state: State, now: Crowd, papers: _PapersBandit, deadline: float
) -> list[int]:
    if policy in ("ucb", "random"):
        chosen = PLANNERS[policy].propose(state).devices
        return [int(name[1:]) for name, one in chosen.items() if one.takes_part]
    if policy == "paper":
        return papers.select(state.round, state.seed)
    if policy == "in turn":
        return [(8 * state.round + n) % 40 for n in range(8)]
    if policy == "quickest":
        return sorted(range(40), key=lambda one: now.seconds[one])[:8]
    return _quickest_successes(now) if policy == "oracle" else _most_useful(now, deadline)


def _most_useful(now: Crowd, deadline: float) -> list[int]:
    """The eight best by the paper's utility, of each device alone."""
    least = min(now.seconds)
    value = [
        0.6 * chance - 0.4 * min(1.0, (seconds - least) / (deadline - least))
        for chance, seconds in zip(now.chances, now.seconds, strict=True)
    ]
    return sorted(range(40), key=lambda one: -value[one])[:8]


def _quickest_successes(now: Crowd) -> list[int]:
    """The eight with the most successes a second, all chances and seconds known."""

    def rate(chosen: list[int]) -> float:
        return sum(now.chances[one] for one in chosen) / max(now.seconds[one] for one in chosen)

    order = sorted(range(40), key=lambda one: now.seconds[one])
    likeliest = (sorted(order[:n], key=lambda one: -now.chances[one])[:8] for n in range(8, 41))
    return max(likeliest, key=rate)


class _PapersBandit:
    """MAVFL's: the round's utility for all who were in it, discount 0.9, everybody unseen first."""

    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = least, most
        self._counts, self._sums = [0.0] * 40, [0.0] * 40

    def select(self, round_: int, seed: int) -> list[int]:
        """The eight highest bounds."""
        draw = random.Random(f"{seed} {round_}")
        n = max(1.0, sum(self._counts))
        bounds = [
            s / c + sqrt(2 * log(n) / c) if c > 1e-6 else 1e9
            for c, s in zip(self._counts, self._sums, strict=True)
        ]
        return sorted(range(40), key=lambda one: (-bounds[one], draw.random()))[:8]

    def learn(self, selected: list[int], ratio: float, seconds: float) -> None:
        """One utility for all."""
        late = min(1.0, max(0.0, (seconds - self._least) / (self._most - self._least)))
        utility = 0.6 * ratio - 0.4 * late
        self._counts = [0.9 * one for one in self._counts]
        self._sums = [0.9 * one for one in self._sums]
        for one in selected:
            self._counts[one] += 1.0
            self._sums[one] += utility


POLICIES = {
    "random": "random",
    "in turn": "in turn",
    "quickest": "the quickest eight",
    "paper": "the paper's bandit",
    "ucb": "ucb",
    "useful": "best by the paper's utility, all known",
    "oracle": "most a second, all known",
}


def selection_table() -> None:
    """Successes a second over those of random choice; how many devices take part now and then."""
    print("### Who takes part: 40 devices, 8 a round, 300 rounds, means of 8 seeds\n")
    row = table("fleet", *(f"`{one}`" if one == "ucb" else one for one in POLICIES.values()))
    for title, steady in (("devices fail, a quarter changes", False), ("steady", True)):
        courses = {
            policy: [course(policy, seed, steady) for seed in range(8)] for policy in POLICIES
        }
        rates = {policy: fmean(own.rate for own in known) for policy, known in courses.items()}
        row(title, *(f"{rate / rates['random']:.2f}" for rate in rates.values()))
        regulars = (fmean(own.regulars for own in known) for known in courses.values())
        row("devices in a twentieth of the rounds", *(f"{count:.0f}" for count in regulars))
    print()


def selection_panels() -> list[Panel]:
    """Successes against the seconds that their rounds took."""
    fleets = (("devices fail, a quarter changes", False), ("steady devices", True))
    across, upward = "seconds of all rounds", "successes"
    return [
        Panel(title, across, upward, [_line(policy, steady) for policy in POLICIES])
        for title, steady in fleets
    ]


def _line(policy: str, steady: bool) -> Line:
    """The mean of eight seeds after every tenth round."""
    every = [course(policy, seed, steady).points[9::10] for seed in range(8)]
    xs, ys = (
        [0.0, *(fmean(one[axis] for one in each) for each in zip(*every, strict=True))]
        for axis in (0, 1)
    )
    return Line(POLICIES[policy], xs, ys, ours=policy == "ucb")
