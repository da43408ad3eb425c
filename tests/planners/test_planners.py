"""What holds for every planner, and each one that claims an optimum against brute force."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl.planners import PLANNERS, Aims, Choice, Cut, Decision, Planner, Proposal, State, Why
from sfl.planners.card import delay_and_energy, utility
from sfl.planners.fixed import present
from sfl.planners.fleet import bound, length, within_bound
from sfl.planners.open import drift_plus_penalty, round_energy
from sfl.planners.pairing import pairs
from sfl.planners.random import drawn
from sfl.planners.seconds import alone_seconds, moving_seconds
from sfl.planners.settle import score
from sfl.planners.state import DeviceState, Outcome, placed
from sfl.planners.two_timescale import longest, sparse_bits
from tests.house.planning import fleet, fresh, plans, seeds

few = settings(max_examples=40, deadline=None)
NAMES = sorted(PLANNERS)


@pytest.mark.parametrize("name", NAMES)
@given(seed=seeds, u_shaped=st.booleans(), num_edges=st.integers(1, 2))
@settings(max_examples=25, deadline=None)
def test_every_planner_keeps_to_what_is_legal(name: str, seed: int, u_shaped: bool, num_edges: int):
    """Allowed cuts within memory only; the same again; the same through JSON."""
    state = fleet(seed, u_shaped=u_shaped, num_edges=num_edges, aims=Aims(select=2, energy=1.0))
    decision = PLANNERS[name].decide(state)
    assert decision.devices.keys() == {device.name for device in state.devices}
    for device in state.devices:
        choice = decision.devices[device.name]
        if device.legal:
            assert choice.at in {cut.at for cut in device.legal}
        else:
            assert not choice.takes_part
        assert 0.0 < choice.share <= 1.0 and 0.0 < choice.edge_speed <= 1.0
    assert Decision.from_json(decision.as_json()) == decision
    assert decision.why.seconds >= decision.why.bound * (1 - 1e-9)
    told = State.from_json(state.as_json())
    assert told == state and PLANNERS[name].decide(told) == decision
    assert str(decision.why).startswith("a round of")


def test_every_planner_has_its_line_in_the_registry():
    assert sorted(planner.name for planner in PLANNERS.values()) == NAMES
    assert len(NAMES) == 11


@given(seed=seeds)
@few
def test_who_cannot_take_part_is_left_out(seed: int):
    """A device without memory for any cut is named, and does nothing."""
    state = fleet(seed)
    poor = replace(state.devices[0], memory=1)
    state = replace(state, devices=(poor, *state.devices[1:]))
    for name in NAMES:
        decision = PLANNERS[name].decide(state)
        assert not decision.devices["d0"].takes_part and "d0" not in decision.order


@pytest.mark.parametrize("name", NAMES)
def test_nobody_may_be_able(name: str):
    """No device has the memory for any cut: a decision that says so, and no error."""
    state = fleet(1, aims=Aims(select=2, energy=1.0))
    state = replace(state, devices=tuple(replace(one, memory=1) for one in state.devices))
    decision = PLANNERS[name].decide(state)
    assert not any(one.takes_part for one in decision.devices.values())
    assert Decision.from_json(decision.as_json()) == decision


def test_a_planner_that_proposes_what_is_illegal_is_refused():
    state = fleet(1)
    illegal = Planner("bad", lambda state: Proposal({d.name: Choice(99) for d in state.able}))
    with pytest.raises(ValueError, match="no legal cut"):
        illegal.decide(state)
    with pytest.raises(ValueError, match="a choice is needed"):
        Planner("none", lambda state: Proposal({})).decide(state)


# -- moving ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scan", "mincut", "fleet", "card", "open", "two_timescale"])
@given(seed=seeds, hysteresis=st.sampled_from([0.0, 0.05, 0.3]))
@settings(max_examples=25, deadline=None)
def test_a_move_is_made_only_where_it_pays(name: str, seed: int, hysteresis: float):
    """Never worse than staying; and staying is never worse than its bound allows."""
    aims = Aims(hysteresis=hysteresis, every_rounds=3)
    state = fleet(seed, aims=aims)
    planner = PLANNERS[name]
    decision = planner.decide(state)
    able = {device.name for device in state.able}
    chosen = {name: choice for name, choice in decision.devices.items() if name in able}
    found, why = score(planner, state, chosen), decision.why
    if all(d.at in {cut.at for cut in d.legal} for d in state.able) and why.staying is not None:
        assert found <= why.staying * (1 + 1e-9)
    if why.kept and not why.moved and planner.together:
        best = score(planner, state, planner.propose(state).devices)
        needed = min(why.needed, 1.0)
        assert found * (1 - needed) <= best * (1 + 1e-9)
    if why.moved and not why.kept and planner.together:
        assert why.needed >= hysteresis or why.gain == 1.0 or not why.needed


def test_a_dear_move_waits_until_it_pays():
    """The same gain over more rounds pays for the same move."""
    state = next(
        state
        for state in (fleet(seed, num_devices=1) for seed in range(200))
        if state.able[0].at in {cut.at for cut in state.able[0].legal}
        and PLANNERS["scan"].decide(state).why.moved
    )
    dear = replace(state.able[0], cost=replace(state.able[0].cost, moment_bytes=1e9))
    state = replace(state, devices=(dear,))
    decision = PLANNERS["scan"].decide(state)
    assert decision.why.kept == ("d0",) and decision.devices["d0"].at == dear.at
    lasting = replace(state, aims=replace(state.aims, every_rounds=10**6))
    assert PLANNERS["scan"].decide(lasting).why.moved == ("d0",)


def test_what_a_move_takes():
    """Moments of blocks that change sides travel; blocks that come are read."""
    state = fleet(3, layers=6)
    device = replace(state.devices[0], at=(2, 0))
    link, cost = device.cost.link, device.cost
    assert moving_seconds(device, Choice(2), 6) == 0.0
    assert moving_seconds(device, Choice(1), 6) == pytest.approx(cost.moment_bytes / link.up)
    back = 2 * (cost.moment_bytes / link.down + cost.block_load)
    assert moving_seconds(device, Choice(4), 6) == pytest.approx(back)
    assert moving_seconds(device, Choice(2, 1), 6) == pytest.approx(back / 2)
    assert moving_seconds(replace(device, at=None), Choice(4), 6) == 0.0


# -- optima ----------------------------------------------------------------------------------------


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


# -- who takes part --------------------------------------------------------------------------------


def test_ucb_prefers_who_finishes_and_lets_few_newcomers_in():
    """Devices that fail are soon left out; newcomers come in one by one."""
    state = fresh(fleet(11, num_devices=8, aims=Aims(select=3)))
    state = replace(state, devices=tuple(replace(d, memory=None) for d in state.devices))
    picked: list[set[str]] = []
    for round_ in range(1, 80):
        decision = PLANNERS["ucb"].decide(replace(state, round=round_))
        chosen = {name for name, one in decision.devices.items() if one.takes_part}
        assert len(chosen) == 3
        picked.append(chosen)
        devices = []
        for device in state.devices:
            good = device.name in ("d1", "d2", "d5")
            outcome = Outcome(good, 1.0 if good else 3.0) if device.name in chosen else None
            devices.append(replace(device, outcome=outcome))
        state = replace(state, devices=tuple(devices), memory=decision.memory)
    first_seen = [len(set().union(*picked[: n + 1])) for n in range(6)]
    assert first_seen == [3, 4, 5, 6, 7, 8]
    last = [name for chosen in picked[-30:] for name in chosen]
    assert sum(name in ("d1", "d2", "d5") for name in last) >= 0.8 * len(last)


def test_ucb_forgets_who_left_and_takes_all_where_nothing_is_selected():
    state = replace(fleet(1), memory={"counts": {"gone": 1.0}, "sums": {"gone": 1.0}})
    decision = PLANNERS["ucb"].decide(state)
    assert "gone" not in decision.memory["counts"]
    assert all(decision.devices[device.name].takes_part for device in state.able)


@pytest.mark.parametrize(("num_devices", "num_edges"), [(7, 3), (6, 2), (3, 3), (2, 3), (5, 1)])
def test_pairing_gives_everybody_a_turn(num_devices: int, num_edges: int):
    """Within as many rounds as there have to be, one device at each edge."""
    state = fleet(9, num_devices=num_devices, num_edges=num_edges)
    state = replace(state, devices=tuple(replace(d, memory=None) for d in state.devices))
    for cycle in range(3):
        served: list[str] = []
        for _ in range(-(-num_devices // num_edges)):
            decision = PLANNERS["pairing"].decide(state)
            mine = {n: one for n, one in decision.devices.items() if one.takes_part}
            edges = [one.edge or state.devices[int(n[1:])].edge for n, one in mine.items()]
            assert len(edges) == len(set(edges)) <= num_edges
            served += mine
            state = replace(state, memory=decision.memory)
        assert sorted(served) == sorted(device.name for device in state.devices), cycle


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_pairs_have_the_quickest_slowest_one(seed: int):
    from itertools import permutations

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


def test_random_draws_by_round_and_seed():
    state = fleet(6, num_devices=6, aims=Aims(select=2))
    draws = {tuple(drawn(replace(state, round=number), 2)) for number in range(30)}
    assert len(draws) > 10
    assert drawn(state, 2) == drawn(state, 2)


def test_recorded_repeats_and_says_what_it_cannot():
    state = fleet(6)
    wanted = {d.name: d.choice(d.legal[-1]) for d in state.able}
    again = PLANNERS["recorded"].decide(replace(state, recorded=wanted))
    assert {n: one.at for n, one in again.devices.items()} == {n: c.at for n, c in wanted.items()}
    assert again.why.note == ""
    without = PLANNERS["recorded"].decide(replace(state, recorded={"d0": Choice(99)}))
    assert "d0, d1, d2" in without.why.note


def test_fixed_stays_where_it_is():
    state = fleet(6)
    decision = PLANNERS["fixed"].decide(state)
    for device in state.able:
        legal = {cut.at for cut in device.legal}
        expected = device.at if device.at in legal else device.legal[0].at
        assert decision.devices[device.name].at == expected


# -- the state -------------------------------------------------------------------------------------


def test_what_is_placed_has_the_choices_link_and_memory():
    state = fleet(2)
    device = replace(state.devices[0], cuts=(Cut(2, 0, 777),))
    state = replace(state, devices=(device,))
    (one,) = placed(state, {"d0": Choice(2, share=0.5, gradient_bits=8.0, edge_clock=0.7)})
    assert one.memory == 777 and one.edge_clock == 0.7
    assert one.cost.link.up == device.cost.link.up / 2 and one.cost.bits.gradient == (8.0,)
    assert placed(state, {"d0": Choice(2, takes_part=False)}) == []


def test_a_line_that_is_no_decision_is_refused():
    with pytest.raises(ValueError, match="validation error"):
        Decision.from_json('{"round": 1}')
    with pytest.raises(ValueError, match="validation error"):
        State.from_json("[]")


def test_a_log_line_says_who_moves_and_who_does_not():
    why = Why(2.0, 1.5, "d1", {"up": 0.5}, moved=("d0",), gain=0.25, moving_seconds=3.0)
    assert str(why) == (
        "a round of 2 s; d1 is the slowest (up 0.5); moves d0: gains 25%, costs 3 s once"
    )
    kept = str(replace(why, moved=(), kept=("d0", "d2"), note="so it is"))
    assert kept.endswith("; leaves d0, d2: a move gains too little; so it is")


def test_the_reason_names_the_slowest_and_the_runner_up():
    state = fleet(12, num_devices=3)
    why = PLANNERS["fleet"].decide(state).why
    assert why.slowest in {device.name for device in state.devices}
    assert set(why.parts) == {"device", "up", "edge", "down", "exchange"}
    assert why.runner_up in ("stay", "fewest blocks", "most blocks")
    assert why.runner_up_score is not None and why.runner_up_score >= why.score * (1 - 1e-9)
