"""Cuts of devices and of the stage behind their edges, chosen together, against looking at all."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from sfl.config import RunSettings
from sfl.config.ranges import check_ranges, plans_of, ways_of
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost, PassCost, StageCost, Workload
from sfl.errors import ConfigError
from sfl.planners import PLANNERS, Cut, State, fleet
from sfl.planners.comparison import compare
from sfl.planners.fleet import length
from sfl.planners.plans import Plan
from sfl.planners.seconds import alone_seconds
from sfl.planners.situation import stage_range
from sfl.planners.state import Aims, DeviceState, EdgeState, StageState
from tests.house.lost import settings

LAYERS = 6
SEEDS = range(12)


def scene(seed: int, devices: int = 2) -> State:
    """Nodes and links that differ by decades; even seeds have one edge, odd ones two."""
    draw, num_edges = random.Random(seed), 1 + seed % 2

    def node(slow: float, fast: float) -> NodeCost:
        pace = 10 ** draw.uniform(slow, fast)
        return NodeCost(PassCost(pace, 1.6 * pace), head=PassCost(pace, pace))

    def link() -> LinkCost:
        return LinkCost(10 ** draw.uniform(5, 8), 10 ** draw.uniform(5, 8), draw.uniform(0, 0.01))

    edge = EdgeCost(node(-6, -4.5))
    return State(
        1,
        Workload(LAYERS, 64, 256, 5),
        tuple(device(draw, n, num_edges, node(-5.5, -4), link()) for n in range(devices)),
        tuple(EdgeState(f"e{number}", edge) for number in range(num_edges)),
        Aims(hysteresis=0.0),
        stages=(StageState("stage", StageCost(node(-6.5, -4.5), link())),),
    )


def device(
    draw: random.Random, number: int, num_edges: int, node: NodeCost, link: LinkCost
) -> DeviceState:
    least = draw.randint(2, 4)
    most = draw.randint(least, LAYERS - 1)
    cost = DeviceCost(node, link, lora_bytes=4e4, moment_bytes=8e4)
    cuts = tuple(Cut(cut) for cut in range(1, most))
    edge = f"e{number % num_edges}"
    return DeviceState(
        f"d{number}", edge, cost, cuts, stage_cuts=(least,), stage_range=(least, most)
    )


def least(state: State) -> float:
    """The shortest of all plans."""
    names = [own.name for own in state.devices]
    ways = product(*(own.choices(LAYERS) for own in state.devices))
    return min(length(state, dict(zip(names, way, strict=True))) for way in ways)


@pytest.mark.parametrize("seed", SEEDS)
def test_scan_is_each_device_s_optimum_over_both_cuts(seed: int) -> None:
    state = scene(seed, 3)
    decision = PLANNERS["scan"].decide(state)
    for own in state.devices:
        found = alone_seconds(state, own, decision.devices[own.name])
        every = [alone_seconds(state, own, choice) for choice in own.choices(LAYERS)]
        assert found == pytest.approx(min(every), rel=1e-9)
        assert decision.devices[own.name].stage_cuts


@pytest.mark.parametrize("seed", SEEDS)
def test_fleet_is_the_optimum_over_both_cuts_of_a_few_devices(seed: int) -> None:
    state = scene(seed)
    decision = PLANNERS["fleet"].decide(state)
    assert length(state, decision.devices) == pytest.approx(least(state), rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_fleet_searches_is_near_the_optimum(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "EVERY", 0)
    state = scene(seed)
    found = PLANNERS["fleet"].propose(state).devices
    assert length(state, found) <= 1.05 * least(state)
    monkeypatch.setattr(fleet, "POLISHED", 0)  # as where they are many
    many = PLANNERS["fleet"].propose(state).devices
    assert length(state, found) <= length(state, many) * 1.001


def test_devices_may_have_stages_at_places_of_their_own_and_one_that_may_not_move() -> None:
    state = scene(3)
    fixed, free = state.devices
    state = replace(state, devices=(fixed.with_stage(fixed.stage_cuts[0], LAYERS), free))
    chosen = PLANNERS["fleet"].decide(state).devices
    assert chosen["d0"].stage_cuts == () and chosen["d1"].stage_cuts
    with pytest.raises(ValueError, match="no place of its stage"):
        illegal = replace(chosen["d1"], stage_cuts=(LAYERS,))
        planner = replace(
            PLANNERS["fleet"],
            propose=lambda _: replace(
                PLANNERS["fleet"].propose(state), devices={**chosen, "d1": illegal}
            ),
        )
        planner.decide(state)


def test_a_decision_with_places_of_stages_is_taken_from_its_line_again_and_compared() -> None:
    state = scene(4).rounded()
    decision = PLANNERS["fleet"].decide(state)
    again = Plan.from_json(Plan(decision, False, state).as_json())
    assert again.state == state and again.decision == decision
    configured = {own.name: (1, 0) for own in state.devices}
    compared = compare(state, decision, configured)
    assert all(compared.foretold.seconds <= rival.seconds * 1.001 for rival in compared.rivals)
    assert {"as configured", "each device alone", "fewest blocks"} <= {
        rival.name for rival in compared.rivals
    }


def test_who_stays_has_its_stage_where_it_is() -> None:
    state = scene(4)
    there = tuple(replace(own, at=(1, 0)) for own in state.devices)
    staying = replace(state, devices=there).staying()
    assert all(own.choices(LAYERS) == [own.choice(Cut(1))] for own in staying.devices)


# -- what a file may say ---------------------------------------------------------------------------


def run(policy: str = "advice", **own: Any) -> RunSettings:
    tiers = {"run": {"topology": "three_tier"}, "stages": {"cuts": [3]}}
    entry = {"name": "d0", "cut_layer": 2, **own}
    config: RunSettings = settings(devices=[entry], planner={"policy": "advice"}, **tiers)
    planner = config.planner.model_copy(update={"policy": policy})
    return config.model_copy(update={"planner": planner})


def test_cuts_are_those_that_go_with_a_place_of_the_stage() -> None:
    config = run("fleet", stage_cut_range=[2, 4])
    assert ways_of(config, "d0", LAYERS) == ((1, 0), (2, 0), (3, 0))
    plans = {(plan.cut_layer, plan.stage_cuts) for plan in plans_of(config, "d0", LAYERS)}
    assert plans == {(1, (2,)), (1, (3,)), (1, (4,)), (2, (3,)), (2, (4,)), (3, (4,))}
    assert stage_range(config, "d0") == (2, 4)
    assert stage_range(run("off", stage_cut_range=[2, 4]), "d0") is None


@pytest.mark.parametrize(
    ("own", "field", "most"),
    [
        ({"stage_cut_range": [2, 6]}, "stage_cut_range", "[2, 5]"),
        ({"stage_cut_range": [2, 4], "cut_range": [1, 4]}, "cut_range", "[1, 3]"),
    ],
)
def test_a_range_beyond_the_model_is_told(own: dict[str, Any], field: str, most: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_ranges(run(**own), LAYERS)
    assert raised.value.field == f"devices.d0.{field}" and most in raised.value.fix
    check_ranges(run(stage_cut_range=[2, 5], cut_range=[1, 4]), LAYERS)
