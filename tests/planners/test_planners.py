"""What holds for every planner, and each one that claims an optimum against brute force."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl.planners import PLANNERS, Aims, Choice, Cut, Decision, Planner, Proposal, State, Why
from sfl.planners.random import drawn
from sfl.planners.seconds import moving_seconds
from sfl.planners.settle import score
from sfl.planners.state import placed
from sfl.planners.told import Outcome
from tests.house.planning import fleet, fresh, seeds

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
    for lasts in ({"every_rounds": 10**6}, {"pays_back": 10**6}):
        lasting = replace(state, aims=replace(state.aims, **lasts))
        assert PLANNERS["scan"].decide(lasting).why.moved == ("d0",)


@pytest.mark.parametrize("name", ["scan", "fleet"])
def test_who_is_noisy_moves_for_more_than_its_noise_only(name: str):
    """Among many plans one always looks better by chance."""
    state = next(
        state
        for state in (fleet(seed, num_devices=1) for seed in range(200))
        if state.able[0].at in {cut.at for cut in state.able[0].legal}
        and PLANNERS[name].decide(state).why.moved
    )
    gain = PLANNERS[name].decide(state).why.gain
    needed = PLANNERS[name].decide(state).why.needed
    for noise, moves in ((0.9 * (gain - needed), True), (1.1 * (gain - needed), False)):
        noisy = replace(state, devices=(replace(state.devices[0], noise=noise),))
        decision = PLANNERS[name].decide(noisy)
        assert bool(decision.why.moved) is moves
        assert not moves or decision.why.needed == pytest.approx(needed + noise)


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
    state = replace(fleet(1), memory={"rounds": {"gone": 1.0}, "finished": {"gone": 1.0}})
    decision = PLANNERS["ucb"].decide(state)
    assert "gone" not in decision.memory["rounds"]
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
