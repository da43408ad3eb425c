"""Who takes part: the most successes a second, by what each device has shown itself."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfl.planners import PLANNERS, Aims, State
from sfl.planners.told import Outcome
from sfl.planners.ucb import _best, _Hope
from tests.house.planning import fleet

HOPES = st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 10)), min_size=1, max_size=8)


def crowd(count: int, **aims: float) -> State:
    state = fleet(11, num_devices=count, aims=Aims(**aims))  # type: ignore[arg-type]
    return replace(state, devices=tuple(replace(d, memory=None) for d in state.devices))


def chosen(state: State) -> set[str]:
    decision = PLANNERS["ucb"].decide(state)
    return {name for name, own in decision.devices.items() if own.takes_part}


def successes(policy: str, seed: int, steady: bool) -> float:
    """A second: 20 devices, 4 a round, 120 rounds, as a run tells them."""
    draw = random.Random(seed)
    chances = [1.0 if steady else draw.betavariate(2, 1.2) for _ in range(20)]
    seconds = [exp(draw.gauss(2.5, 0.05 if steady else 0.6)) for _ in range(20)]
    state, count, total = replace(crowd(20, select=4), seed=seed), 0, 0.0
    for round_ in range(1, 121):
        decision = PLANNERS[policy].decide(replace(state, round=round_))
        names = [d.name for d in state.devices]
        taking = [n for n, name in enumerate(names) if decision.devices[name].takes_part]
        took = {n: seconds[n] * exp(draw.gauss(0, 0.15)) for n in taking}
        good = {n: draw.random() < chances[n] for n in taking}
        longest = max((took[n] for n in taking if good[n]), default=0.0)
        told = {n: Outcome(good[n], took[n] if good[n] else longest) for n in taking}
        devices = tuple(replace(d, outcome=told.get(n)) for n, d in enumerate(state.devices))
        state = replace(state, devices=devices, memory=decision.memory)
        count, total = count + sum(good.values()), total + max(took.values())
    return count / total


@pytest.mark.parametrize(("steady", "least"), [(False, 1.4), (True, 1.0)])
def test_it_beats_chance_where_devices_fail_and_is_no_worse_where_none_does(
    steady: bool, least: float
) -> None:
    ours, chance = (
        sum(successes(policy, seed, steady) for seed in range(5)) for policy in ("ucb", "random")
    )
    assert ours >= least * chance


@given(HOPES, st.integers(1, 8))
def test_those_are_chosen_that_have_the_most_successes_a_second(
    drawn: list[tuple[float, float]], count: int
) -> None:
    hopes = [_Hope(p, -n, s, f"d{n}") for n, (p, s) in enumerate(drawn)]
    count = min(count, len(hopes))

    def rate(those: tuple[_Hope, ...]) -> float:
        return sum(own.chance for own in those) / max(own.seconds for own in those)

    found = set(_best(hopes, count))
    best = max(rate(those) for those in combinations(hopes, count))
    assert len(found) == count
    assert rate(tuple(own for own in hopes if own.name in found)) == pytest.approx(best)


@pytest.mark.parametrize(("select", "newcomers"), [(1, 1), (2, 1), (3, 3), (8, 1), (0, 1)])
def test_so_many_take_part_as_are_asked_for(select: int, newcomers: int) -> None:
    state = crowd(8, select=select, newcomers=newcomers)
    for round_ in range(1, 12):
        now = replace(state, round=round_)
        decision, taking = PLANNERS["ucb"].decide(now), chosen(now)
        assert len(taking) == (select or 8)
        outcomes = {name: Outcome(True, 1.0) for name in taking}
        devices = tuple(replace(d, outcome=outcomes.get(d.name)) for d in state.devices)
        state = replace(state, devices=devices, memory=decision.memory)


def test_a_success_after_the_deadline_is_none() -> None:
    state = crowd(4, select=2, deadline=5.0)
    outcomes = {"d0": Outcome(True, 4.0), "d1": Outcome(True, 6.0), "d2": Outcome(False, 4.0)}
    devices = tuple(replace(d, outcome=outcomes.get(d.name)) for d in state.devices)
    memory = PLANNERS["ucb"].decide(replace(state, devices=devices)).memory
    assert memory["rounds"] == {"d0": 1.0, "d1": 1.0, "d2": 1.0}
    assert memory["finished"] == {"d0": 1.0}


def test_who_was_slow_once_is_tried_again_after_long() -> None:
    """What is known of a device that is left out fades, and with that what keeps it out."""
    state, tried = crowd(3, select=1), set[str]()
    seconds = {"d0": 1.0, "d1": 1.0, "d2": 3.0}
    for round_ in range(1, 400):
        now = replace(state, round=round_)
        decision, (taking,) = PLANNERS["ucb"].decide(now), chosen(now)
        tried |= {taking} if round_ > 20 else set()
        told = Outcome(True, seconds[taking])
        devices = tuple(replace(d, outcome=told if d.name == taking else None) for d in now.devices)
        state = replace(state, devices=devices, memory=decision.memory)
    assert tried == {"d0", "d1", "d2"}
