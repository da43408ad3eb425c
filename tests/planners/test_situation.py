"""A planner's state is what the settings allow, what devices told, and what was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfl.config import PlannerSettings, RunSettings
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost, PassCost
from sfl.planners import PLANNERS, Cut, State
from sfl.planners.costs import Costs, NothingSeen, Speeds
from sfl.planners.outset import ModelFacts, guessed_device
from sfl.planners.situation import GUESSED, STAYS, Present, Remembered, decide, state_of, unfit
from sfl.planners.told import Outcome
from tests.house.lost import settings

FACTS = ModelFacts(6, 64, lora_bytes=4e4)
NOTHING = Remembered({}, {})


def run(policy: str = "fleet", **sections: Any) -> RunSettings:
    devices = sections.pop("devices", [{"name": f"d{n}", "cut_layer": 2} for n in range(3)])
    return settings(planner={"policy": policy}, devices=devices, **sections)


def state(config: RunSettings, **own: Any) -> State:
    names = config.names
    costs = Costs.of(config, FACTS, NothingSeen(), names, ["e"])
    there = [Present(name, "e", costs.devices[name], (2, 0), **own) for name in names]
    return state_of(config, 1, costs.workload(5), there, costs.edges, NOTHING)


class Shown:
    """A run whose nodes have shown these costs."""

    def __init__(
        self,
        devices: dict[str, float],
        edges: dict[str, float],
        stages: dict[str, float] | None = None,
    ) -> None:
        self.devices, self.edges, self.stages = devices, edges, stages or {}

    def device_cost(self, name: str) -> DeviceCost | None:
        seconds = self.devices.get(name)
        return None if seconds is None else DeviceCost(node(seconds), LinkCost(1e6, 2e6, 0.5))

    def edge_cost(self, name: str) -> EdgeCost | None:
        seconds = self.edges.get(name)
        return None if seconds is None else EdgeCost(node(seconds))

    def stage_node(self, name: str) -> NodeCost | None:
        seconds = self.stages.get(name)
        return None if seconds is None else node(seconds)

    def noise(self, name: str) -> float:
        return 0.0

    def stage_hop(self, name: str) -> LinkCost | None:
        return None

    def step_tokens(self) -> float | None:
        return 77.4

    def micro_batches(self) -> float | None:
        return 2.1


def node(seconds: float) -> NodeCost:
    return NodeCost(PassCost(seconds, seconds))


def test_cuts_are_those_that_the_ranges_allow() -> None:
    entries = [{"name": "d0", "cut_layer": 2, "cut_range": [2, 4]}, {"name": "d1", "cut_layer": 0}]
    found = state(run(devices=entries)).devices
    assert [cut.at for cut in found[0].cuts] == [(2, 0), (3, 0), (4, 0)]
    assert [cut.at for cut in found[1].cuts] == [(number, 0) for number in range(6)]
    (only,) = state(run("ucb")).devices[0].cuts
    assert only.at == (2, 0)
    assert len(state(run("advice")).devices[0].cuts) == 5


@given(
    st.lists(st.integers(0, 9), unique=True, min_size=1),
    st.none() | st.integers(0, 1000),
)
def test_a_cut_that_was_not_told_or_does_not_fit_is_never_chosen(
    told: list[int], memory: int | None
) -> None:
    cuts = tuple(Cut(number, 0, 100 * number) for number in told)
    found = state(run(), told=cuts, memory=memory)
    fits = {number for number in told if memory is None or 100 * number <= memory}
    legal = fits & set(range(1, 6))
    decision, _ = decide(PLANNERS["fleet"], found, measured=True)
    for device in found.devices:
        choice = decision.devices[device.name]
        assert choice.takes_part == bool(legal)
        assert not legal or choice.cut_layer in legal
        assert (device.name in unfit(found)) == (not legal)


def test_why_nothing_fits_is_said_in_figures() -> None:
    found = state(run(), told=(Cut(1, 0, 300_000_000), Cut(2, 0, 400_000_000)), memory=250_000_000)
    said = "takes no part: the least of its cuts takes 300 MB, and device.memory is 250 MB"
    assert unfit(found) == dict.fromkeys(("d0", "d1", "d2"), said)
    with_other_cuts = state(run(), told=(Cut(9, 0, 1),))
    assert unfit(with_other_cuts)["d0"] == "takes no part: it has no cut of its range"


def test_every_setting_reaches_the_planner() -> None:
    config = settings(
        planner={"policy": "ucb", "select": 2, "newcomers": 2, "deadline": 9.0, "every_rounds": 3},
        run={"rounds": 3, "min_devices": 1, "seed": 5},
    )
    found = state(config, success=0.5, outcome=Outcome(False, 4.0))
    aims = found.aims
    assert (aims.select, aims.newcomers, aims.deadline, aims.every_rounds) == (2, 2, 9.0, 3)
    assert found.seed == 5 and found.workload.steps == 5
    assert found.devices[0].success == 0.5 and found.devices[0].outcome == Outcome(False, 4.0)


def test_before_anything_is_measured_no_cut_moves_for_a_gain() -> None:
    found = state(run(devices=[{"name": f"d{n}", "link": {"up_mbit": 1.0}} for n in range(3)]))
    at = {device.name: device.at for device in found.devices}
    decision, taken_from = decide(PLANNERS["fleet"], found, measured=False)
    assert {name: choice.at for name, choice in decision.devices.items()} == at
    assert decision.why.note == f"{GUESSED}; {STAYS}"
    assert PLANNERS["fleet"].decide(taken_from).devices == decision.devices
    drawn, _ = decide(PLANNERS["random"], found, measured=False)
    assert drawn.devices == PLANNERS["random"].decide(found).devices  # it weighs nothing
    assert drawn.why.note == GUESSED


def test_before_anything_is_measured_who_has_to_move_does() -> None:
    told = tuple(Cut(number, 0, 100 * number) for number in range(1, 6))
    found = state(run(), told=told, memory=100)  # it is at 2
    decision, _ = decide(PLANNERS["fleet"], found, measured=False)
    assert {choice.at for choice in decision.devices.values()} == {(1, 0)}


def test_costs_are_measured_or_like_the_others_or_guessed() -> None:
    links = [{"name": "d0"}, {"name": "d1"}, {"name": "d2", "link": {"down_mbit": 8.0}}]
    config = run(devices=links)
    found = Costs.of(config, FACTS, Shown({"d0": 3.0}, {"e": 1.0}), config.names, ["e", "f"])
    assert found.seen == {"d0"} and found.tokens == 77.4 and found.workload(2).tokens == 77
    assert found.workload(2).micro_batches == 2
    assert found.devices["d1"].node == found.devices["d0"].node == node(3.0)
    assert found.devices["d1"].link == LinkCost(1e6, 2e6, 0.5)
    assert found.devices["d2"].link.down == 1e6 and found.devices["d2"].link.up == 1.25e9
    assert found.edges["f"] == found.edges["e"] and found.edges["e"].node == node(1.0)
    assert {cost.lora_bytes for cost in found.devices.values()} == {4e4}
    guess = Costs.of(config, FACTS, NothingSeen(), config.names, ["e"], Speeds(1e9, 4e9))
    assert guess.seen == frozenset()
    own, edge = guess.devices["d0"].node.block, guess.edges["e"].node.block
    assert own.forward == pytest.approx(4 * edge.forward)


def test_what_has_not_crossed_yet_takes_what_its_codec_usually_does() -> None:
    config = run(codec={"activation": "compact", "gradient": "int8"})
    shown = Shown({"d0": 3.0}, {"e": 1.0})
    found = Costs.of(config, FACTS, shown, config.names, ["e"])
    assert found.devices["d0"].bits.activation == (2.7,)
    assert found.devices["d0"].bits.gradient == (8.2,)
    guess = Costs.of(config, FACTS, NothingSeen(), config.names, ["e"], tokens=55.0)
    assert guess.workload(1).tokens == 55
    assert Costs.of(config, FACTS, shown, config.names, ["e"], tokens=55.0).tokens == 77.4


def test_a_smaller_rank_has_a_smaller_adapter() -> None:
    config = settings(
        lora={"rank": 8},
        aggregation={"strategy": "flexlora"},
        devices=[{"name": "d0", "rank": 2}, {"name": "d1"}],
    )
    small, whole = (guessed_device(FACTS, config, name) for name in config.names)
    assert (small.lora_bytes, whole.lora_bytes) == (1e4, 4e4)
    assert small.moment_bytes == 2 * small.lora_bytes


def test_memory_and_what_was_recorded_are_handed_on() -> None:
    config = run()
    before = Remembered({"counts": {"d0": 2.0}}, {})
    found = state(config)
    again = state_of(
        config,
        1,
        found.workload,
        [Present(d.name, d.edge, d.cost, (2, 0)) for d in found.devices],
        {"e": found.edge("e").cost},
        before,
    )
    assert again == replace(found, memory=before.memory)


class Absurd(Shown):
    """One device's sums make no cost, and it says that a step has a billion micro-batches."""

    def device_cost(self, name: str) -> DeviceCost | None:
        if name == "d0":
            raise ZeroDivisionError
        return super().device_cost(name)

    def micro_batches(self) -> float | None:
        return 1e9


def test_what_one_device_says_harms_no_other() -> None:
    config = run()
    shown = Absurd({"d1": 2e-5, "d2": 2e-5}, {"e": 1e-5})
    costs = Costs.of(config, FACTS, shown, config.names, ["e"])
    assert costs.seen == {"d1", "d2"} and costs.devices["d0"].node == costs.devices["d1"].node
    assert costs.workload(5).micro_batches == config.training.batch_size


def test_a_budget_of_energy_counts_stated_watts_where_nobody_measures() -> None:
    shown = Shown({f"d{n}": 2e-5 for n in range(3)}, {"e": 1e-5})

    def decided(**own: Any) -> tuple[float, float, str]:
        planner = {"policy": "open", "energy_budget": 1e-6, **own}
        config = run().model_copy(update={"planner": PlannerSettings(**planner)})
        costs = Costs.of(config, FACTS, shown, config.names, ["e"])
        there = [Present(name, "e", costs.devices[name], (2, 0)) for name in config.names]
        own_state = state_of(config, 2, costs.workload(5), there, costs.edges, NOTHING)
        decision = PLANNERS["open"].decide(own_state)
        queue = decision.memory["energy"]["queue"]
        return decision.why.joules, queue, decision.why.energy_source

    joules, queue, source = decided()
    assert joules > 0.0 and queue == pytest.approx(joules - 1e-6) and source == "modelled"
    assert decided(device_watts=50.0, edge_watts=1000.0, radio_watts=10.0)[0] > 5.0 * joules


def test_an_edges_slowest_clock_is_as_stated() -> None:
    config = run().model_copy(
        update={"planner": PlannerSettings(policy="card", edge_least_clock=0.4, weight=0.0)}
    )
    shown = Shown({f"d{n}": 2e-5 for n in range(3)}, {"e": 1e-5})
    costs = Costs.of(config, FACTS, shown, config.names, ["e"])
    assert costs.edges["e"].clock.least == 0.4
    there = [Present(name, "e", costs.devices[name], (2, 0)) for name in config.names]
    own_state = state_of(config, 2, costs.workload(5), there, costs.edges, NOTHING)
    clocks = {choice.edge_clock for choice in PLANNERS["card"].decide(own_state).devices.values()}
    assert clocks == {0.4}
