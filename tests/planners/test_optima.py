"""Each planner that claims an optimum, against looking at everything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl.planners import PLANNERS, Aims, Choice, Cut, State
from sfl.planners.card import delay_and_energy, utility
from sfl.planners.fixed import present
from sfl.planners.fleet import bound, length, within_bound
from sfl.planners.open import drift_plus_penalty, round_energy
from sfl.planners.pairing import pairs
from sfl.planners.seconds import alone_seconds
from sfl.planners.state import DeviceState
from sfl.planners.two_timescale import longest, sparse_bits
from tests.house.planning import fleet, fresh, plans, seeds

few = settings(max_examples=40, deadline=None)


@given(seed=seeds, u_shaped=st.booleans())
@few
def test_scan_and_mincut_are_each_devices_optimum(seed: int, u_shaped: bool):
    state = fresh(fleet(seed, u_shaped=u_shaped))
    for name in ("scan", "mincut"):
        decision = PLANNERS[name].decide(state)
        for device in state.able:
            found = alone_seconds(state, device, decision.devices[device.name])
            every = [alone_seconds(state, device, device.choice(cut)) for cut in device.legal]
            assert found == pytest.approx(min(every), rel=1e-9)


@given(seed=seeds, u_shaped=st.booleans(), num_edges=st.integers(1, 2))
@few
def test_fleet_is_the_optimum_over_all_cut_vectors(seed: int, u_shaped: bool, num_edges: int):
    layers = 5 if u_shaped else 7
    state = fleet(seed, layers=layers, u_shaped=u_shaped, num_edges=num_edges)
    bounded = within_bound(state)  # who need not move stays
    best = min(bound(state, plan) for plan in plans(state))
    assert bound(state, bounded) == pytest.approx(best, rel=1e-9)
    assert length(state, PLANNERS["fleet"].propose(state).devices) <= length(state, bounded) * 1.001
    foretold = PLANNERS["fleet"].decide(fresh(state)).why
    assert foretold.seconds >= foretold.bound * (1 - 1e-9)


def test_fleet_leaves_alone_who_need_not_move():
    """Two devices wait for a third: they stay where they are, if the edge has time for them."""
    state = fleet(5, num_devices=3)
    slowest = replace(state.devices[0], memory=None)
    state = replace(state, devices=(slowest, *state.devices[1:]))
    best = PLANNERS["fleet"].propose(fresh(state)).devices
    settled = replace(state, devices=tuple(replace(d, at=best[d.name].at) for d in state.devices))
    assert PLANNERS["fleet"].decide(settled).why.moved == ()


@given(seed=seeds, weight=st.floats(0.05, 0.95))
@settings(max_examples=15, deadline=None)
def test_cards_closed_form_is_at_least_as_good_as_a_grid(seed: int, weight: float):
    state = fresh(fleet(seed, num_devices=1, aims=Aims(weight=weight)))
    decision = PLANNERS["card"].decide(state)
    for device in state.able:
        least = state.edge(device.edge).cost.clock.least
        clocks = [least + (1 - least) * number / 60 for number in range(61)]
        grid = min(
            utility(state, device, replace(device.choice(cut), edge_clock=clock))
            for cut in device.legal
            for clock in clocks
        )
        assert utility(state, device, decision.devices[device.name]) <= grid + 1e-9


def test_card_trades_delay_for_energy():
    """All weight on delay: the fastest clock. None: the least energy that is possible."""
    state = fresh(fleet(8, num_devices=1))
    (device,) = state.able
    hasty, thrifty = (
        PLANNERS["card"].decide(replace(state, aims=Aims(weight=weight))).devices["d0"]
        for weight in (1.0, 0.0)
    )
    assert hasty.edge_clock == 1.0
    fast, slow = (delay_and_energy(state, device, one) for one in (hasty, thrifty))
    assert fast[0] <= slow[0] and slow[1] <= fast[1]


@pytest.mark.process
@given(seed=seeds, overdrawn=st.floats(0.0, 20.0))
@settings(max_examples=10, deadline=None)
def test_open_is_close_to_joint_enumeration(seed: int, overdrawn: float):
    """Cuts enumerated, shares by a grid: nothing there is better by more than a per mille."""
    state = fresh(fleet(seed, num_devices=2, layers=4, aims=Aims(energy=1.0)))
    state = replace(state, memory={"energy": {"queue": overdrawn}})
    proposal = PLANNERS["open"].propose(state)
    found = drift_plus_penalty(state, proposal.devices)
    assert sum(choice.edge_clock for choice in proposal.devices.values()) <= 1.0 + 1e-9
    best = inf
    for plan in plans(state):
        for first in range(1, 20):
            for second in range(1, 21 - first):
                shares = dict(zip(plan, (first / 20, second / 20), strict=True))
                tried = {n: replace(one, edge_clock=shares[n]) for n, one in plan.items()}
                best = min(best, drift_plus_penalty(state, tried))
    assert found <= best * (1 + 1e-3)


def test_opens_queue_holds_the_long_run_to_the_budget():
    """Energy of the second half keeps to the budget; the more delay counts, the less it is."""
    state = fresh(fleet(4, num_devices=3, layers=5))
    greedy = round_energy(state, PLANNERS["open"].propose(state).devices)
    over = replace(state, memory={"energy": {"queue": 1e9}})
    least = round_energy(over, PLANNERS["open"].propose(over).devices)
    budget = (greedy + least) / 2
    delays = []
    for value in (1.0, 30.0):
        now = replace(state, aims=Aims(energy=budget, delay_value=value), memory={})
        joules, queues, seconds = [], [], []
        for _ in range(400):
            proposal = PLANNERS["open"].propose(now)
            joules.append(round_energy(now, proposal.devices))
            seconds.append(sum(alone_seconds(now, d, proposal.devices[d.name]) for d in now.able))
            queues.append(proposal.memory["energy"]["queue"])
            now = replace(now, memory=proposal.memory)
        assert sum(joules[200:]) / 200 <= 1.02 * budget
        delays.append((sum(seconds) / 400, queues[-1]))
    assert delays[1][0] <= delays[0][0] and delays[1][1] >= delays[0][1]


@pytest.mark.parametrize("value", [0.1, 1.0, 30.0])
def test_open_keeps_its_budget_from_the_first_rounds_on(value: float):
    """All 100 rounds count, also those in which the queue would have had to fill."""
    state = fresh(fleet(4, num_devices=3, layers=5))
    greedy = round_energy(state, PLANNERS["open"].propose(state).devices)
    over = replace(state, memory={"energy": {"queue": 1e9}})
    least = round_energy(over, PLANNERS["open"].propose(over).devices)
    budget = (greedy + 3 * least) / 4
    now, joules = replace(state, aims=Aims(energy=budget, delay_value=value)), 0.0
    for number in range(100):
        proposal = PLANNERS["open"].propose(_faded(now, number))
        joules += round_energy(_faded(now, number), proposal.devices)
        now = replace(now, memory=proposal.memory)
    assert joules / 100 <= 1.02 * budget
    assert now.memory["energy"]["rounds"] == 100


def _faded(state: State, number: int) -> State:
    """Links that are twice as fast in one round as in the next."""
    factor = 1.0 + number % 2
    devices = []
    for device in state.devices:
        link = device.cost.link
        faster = replace(link, up=factor * link.up, down=factor * link.down)
        devices.append(replace(device, cost=replace(device.cost, link=faster)))
    return replace(state, devices=tuple(devices))


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_two_timescales_are_the_optimum_of_their_model(seed: int):
    """Every cut vector, with shares by bisection on its own, is no shorter."""
    state = fresh(fleet(seed, num_devices=2, layers=5))
    proposal = PLANNERS["two_timescale"].propose(state)
    assert sum(one.share for one in proposal.devices.values()) <= 1.0 + 1e-6
    found = longest(state, proposal.devices)
    best = inf
    for plan in plans(state):
        at = tuple(replace(d, cuts=_only(d, plan[d.name])) for d in state.able)
        coded = PLANNERS["two_timescale"].propose(replace(state, devices=at)).devices
        for part in range(1, 40):
            split = dict(zip(coded, (part / 40, 1 - part / 40), strict=False))
            tried = {n: replace(one, share=split[n]) for n, one in coded.items()}
            best = min(best, longest(state, tried))
    assert found <= best * (1 + 1e-6)


def _only(device: DeviceState, choice: Choice) -> tuple[Cut, ...]:
    return tuple(cut for cut in device.legal if cut.at == choice.at)


def test_two_timescales_move_cuts_rarely_and_code_where_it_saves():
    aims = Aims(slow_rounds=3, keep=0.05, keep_bits=4)
    state = fleet(2, aims=aims)
    ages = []
    for _ in range(4):
        decision = PLANNERS["two_timescale"].decide(state)
        ages.append(decision.memory["age"]["decisions"])
        state = replace(state, memory=decision.memory)
    assert ages == [1.0, 2.0, 3.0, 4.0]
    assert (
        "slow timescale"
        in PLANNERS["two_timescale"]
        .decide(replace(state, memory={"age": {"decisions": 1.0}}))
        .why.note
    )
    assert sparse_bits(aims) == pytest.approx(0.2864 + 0.2, abs=1e-3)
    chosen = decision.devices["d0"]
    assert chosen.activation == "topk(0.05) | stochastic(4) | zstd"
    assert chosen.activation_bits is not None


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_pairs_have_the_quickest_slowest_one(seed: int):
    state = fleet(seed, num_devices=3, num_edges=3)
    group = list(state.able)
    found = pairs(state, group)

    def slowest(edges: tuple[str, ...]) -> float:
        return max(
            alone_seconds(state, d, replace(present(d), edge=e))
            for d, e in zip(group, edges, strict=True)
        )

    names = [edge.name for edge in state.edges]
    best = min(slowest(way) for way in permutations(names, len(group)))
    assert slowest(tuple(found[d.name] for d in group)) == pytest.approx(best)


@given(seed=seeds, shape=st.sampled_from([(5, 2), (6, 2), (6, 3), (7, 3)]))
@settings(max_examples=20, deadline=None)
def test_pairing_has_the_quickest_groups_where_edges_are_alike(seed: int, shape: tuple[int, int]):
    """Of all ways to share the devices out to as few rounds as can be."""
    count, num_edges = shape
    state = fleet(seed, num_devices=count, num_edges=num_edges)
    free = tuple(replace(one, memory=None, edge="e0") for one in state.devices)
    alike = tuple(replace(state.edges[0], name=edge.name) for edge in state.edges)
    state = replace(state, devices=free, edges=alike)
    seconds = {d.name: alone_seconds(state, d, present(d)) for d in free}
    rounds = -(-count // num_edges)
    found, now = 0.0, state
    for _ in range(rounds):
        proposal = PLANNERS["pairing"].propose(now)
        found += max(seconds[n] for n, one in proposal.devices.items() if one.takes_part)
        now = replace(now, memory=proposal.memory)
    best = min(
        sum(max(seconds[name] for name in group) for group in way)
        for way in _groups(sorted(seconds), rounds, num_edges)
    )
    assert found == pytest.approx(best)


def _groups(names: list[str], rounds: int, most: int) -> Iterator[list[tuple[str, ...]]]:
    """All ways to share names out to that many groups."""
    if not names:
        yield []
        return
    if len(names) > rounds * most:
        return
    first, rest = names[0], names[1:]
    for size in range(most):
        for others in combinations(rest, size):
            left = [name for name in rest if name not in others]
            for way in _groups(left, rounds - 1, most):
                yield [(first, *others), *way]
