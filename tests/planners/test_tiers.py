"""Planners of three tiers: cuts move as the hop slows, and a stage costs what it has shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sfl.config import RunSettings
from sfl.config.ranges import check_ranges, ways_of
from sfl.cost.shown import Crossed, PassKey, Shown, Sums
from sfl.cost.values import (
    DeviceCost,
    EdgeCost,
    LinkCost,
    NodeCost,
    PassCost,
    StageCost,
    ValueBits,
    Workload,
)
from sfl.errors import ConfigError
from sfl.planners import PLANNERS, Cut, State
from sfl.planners.costs import Costs, NothingSeen, Speeds
from sfl.planners.observed import DeviceReport, EdgeReport, Observations, StageReport
from sfl.planners.outset import NO_LIMIT, ModelFacts
from sfl.planners.plans import Plan
from sfl.planners.situation import Present, Remembered, state_of
from sfl.planners.state import Aims, DeviceState, EdgeState, StageState, foretold
from tests.house.lost import settings

LAYERS, STAGE_CUT = 8, 6
EDGE = NodeCost(PassCost(1e-5, 2e-5))
FACTS = ModelFacts(LAYERS, 64, lora_bytes=4e4, head=PassCost(1e6, 2e6))
TIERS = {"run": {"topology": "three_tier"}, "stages": {"cuts": [STAGE_CUT]}}


def scene(hop: float, devices: int = 1, pieces: int = 4, slower: float = 1.2) -> State:
    """Devices so many times as slow as the edge and the stage, with a fast link of their own."""
    cost = DeviceCost(EDGE.slower(slower), LinkCost(1e8, 1e8))
    cuts = tuple(Cut(cut) for cut in range(1, STAGE_CUT))
    return State(
        1,
        Workload(LAYERS, 64, 400, 5, micro_batches=pieces, window=pieces),
        tuple(
            DeviceState(f"d{n}", "e", cost, cuts, stage_cuts=(STAGE_CUT,)) for n in range(devices)
        ),
        (EdgeState("e", EdgeCost(EDGE)),),
        Aims(hysteresis=0.0),
        stages=(StageState("stage", StageCost(EDGE, LinkCost(hop, hop))),),
    )


def cuts(policy: str, state: State) -> list[int]:
    return [own.cut_layer for own in PLANNERS[policy].decide(state).devices.values()]


def test_a_pipeline_is_balanced_until_the_hop_is_what_it_waits_for() -> None:
    """Then a device keeps as little as it may, since it is the slower one of the two."""
    found = [cuts("scan", scene(hop)) for hop in (1e9, 1e7, 3e6, 1e6, 1e5)]
    assert found == [[3], [3], [2], [1], [1]]


def test_devices_relieve_an_edge_only_while_the_edge_is_what_they_wait_for() -> None:
    fast, middle, slow = (cuts("fleet", scene(hop, 6, 1, 3.0)) for hop in (1e9, 3e6, 3e5))
    assert fast == [4] * 6 and slow == [1] * 6
    assert sum(slow) < sum(middle) < sum(fast)


def test_no_cut_is_better_than_scans_and_fleet_is_no_worse_than_one_for_all() -> None:
    for hop in (1e8, 2e6, 3e5):
        state = scene(hop, 3, 1, 2.0)
        (device, *_) = state.devices
        every = {
            cut: foretold(state, {one.name: one.choice(cut) for one in state.devices}).seconds
            for cut in device.legal
        }
        decision = PLANNERS["fleet"].decide(state)
        assert decision.why.seconds <= min(every.values()) * (1 + 1e-9)
        one = scene(hop)
        alone = min(
            foretold(one, {"d0": one.devices[0].choice(cut)}).seconds for cut in device.legal
        )
        assert PLANNERS["scan"].decide(one).why.seconds == pytest.approx(alone)


@pytest.mark.parametrize("policy", sorted(PLANNERS.built_in))
def test_every_planner_decides_with_stages_and_from_its_own_line_again(policy: str) -> None:
    state = scene(1e6, 3, 1).rounded()
    decision = PLANNERS[policy].decide(state)
    told = decision.why.parts
    if policy != "recorded":
        assert {"hop up", "stage", "hop down"} <= set(told) and told["stage"] > 0.0
    line = Plan(decision, False, state).as_json()
    again = Plan.from_json(line)
    assert again.state == state
    assert PLANNERS[policy].decide(again.state).devices == decision.devices


def test_what_mincut_says_is_what_scan_does() -> None:
    state = scene(1e6)
    decision = PLANNERS["mincut"].decide(state)
    assert decision.devices == PLANNERS["scan"].decide(state).devices
    assert "one by one" in decision.why.note


# -- what it costs ---------------------------------------------------------------------------------


def run(**sections: Any) -> RunSettings:
    entries = [{"name": "d0", "cut_layer": 2}, {"name": "d1", "cut_layer": 1, "stage_cuts": [4]}]
    tables: dict[str, Any] = {"devices": entries, **TIERS, **sections}
    return settings(**tables)


def test_cuts_end_before_a_devices_own_stage() -> None:
    config = run()
    assert [cut for cut, _ in ways_of(config, "d0", LAYERS)] == [1, 2, 3, 4, 5]
    assert [cut for cut, _ in ways_of(config, "d1", LAYERS)] == [1, 2, 3]
    u_shaped = run(
        run={"topology": "three_tier_u_shaped"},
        devices=[{"name": "d0", "cut_layer": 5, "tail_range": [0, 3]}],
    )
    assert ways_of(u_shaped, "d0", LAYERS)[-2:] == ((5, 0), (5, 1))
    assert all(cut < STAGE_CUT and tail < 2 for cut, tail in ways_of(u_shaped, "d0", LAYERS))


def test_a_range_that_reaches_a_stage_is_told() -> None:
    wide = run(devices=[{"name": "d0", "cut_layer": 2, "cut_range": [1, 6]}])
    with pytest.raises(ConfigError, match="a stage begins after 6 blocks") as raised:
        check_ranges(wide, LAYERS)
    assert raised.value.field == "devices.d0.cut_range" and "[1, 5]" in raised.value.fix
    check_ranges(run(devices=[{"name": "d0", "cut_layer": 2, "cut_range": [1, 5]}]), LAYERS)
    u_shaped = run(
        run={"topology": "three_tier_u_shaped"},
        devices=[{"name": "d0", "cut_layer": 2, "tail_range": [0, 2]}],
    )
    with pytest.raises(ConfigError, match="a stage begins after 6 blocks of 8") as raised:
        check_ranges(u_shaped, LAYERS)
    assert raised.value.field == "devices.d0.tail_range"


def test_a_stage_that_has_shown_nothing_is_as_quick_as_an_edge_or_as_stated() -> None:
    config = run(stages={"cuts": [6], "up_mbit": 8.0, "delay_ms": 20.0})
    guess = Costs.of(config, FACTS, NothingSeen(), config.names, ["e"])
    (stage,) = guess.stages.values()
    assert stage.hop == LinkCost(1e6, NO_LIMIT, 0.02)
    assert stage.node == guess.edges["e"].node
    stated = Costs.of(config, FACTS, NothingSeen(), config.names, ["e"], Speeds(stage=1e9))
    assert stated.stages["stage"].node.block.forward == pytest.approx(FACTS.block.forward / 1e9)
    assert Costs.of(settings(), FACTS, NothingSeen(), ["d0"], ["e"]).stages == {}
    deeper = run(stages={"cuts": [4, 6]}, devices=[{"name": "d0", "cut_layer": 2}])
    found = Costs.of(deeper, FACTS, NothingSeen(), ["d0"], ["e"])
    assert list(found.stages) == ["stage", "stage2"]


def test_bits_of_the_hop_are_of_its_own_codec() -> None:
    same = run(codec={"activation": "int8", "gradient": "int8"})
    assert Costs.of(same, FACTS, NothingSeen(), ["d0"], ["e"]).devices["d0"].hop_bits is None
    own = run(codec={"activation": "int8", "gradient": "int8", "stage_activation": "fp16"})
    found = Costs.of(own, FACTS, NothingSeen(), ["d0"], ["e"]).devices["d0"]
    assert found.hop_bits == ValueBits((16.0,), (8.2,), (16.0,), (8.2,))


def test_the_state_has_each_devices_stages() -> None:
    config = run(planner={"policy": "advice"})
    costs = Costs.of(config, FACTS, NothingSeen(), config.names, ["e"])
    there = [Present(name, "e", costs.devices[name], (1, 0)) for name in config.names]
    found = state_of(
        config, 1, costs.workload(5), there, costs.edges, Remembered({}, {}), costs.stages
    )
    assert [device.stage_cuts for device in found.devices] == [(6,), (4,)]
    assert found.stages == (StageState("stage", costs.stages["stage"]),)
    alone = {name: device.alone for name, device in foretold(found, _at(found)).devices.items()}
    assert alone["d1"]["stage"] > alone["d0"]["stage"]  # four blocks, and two


def _at(state: State) -> Any:
    return {device.name: device.choice(device.legal[0]) for device in state.devices}


# -- what it has shown -----------------------------------------------------------------------------


def passes(count: int, forward: float = 0.2, backward: float = 0.3) -> Shown:
    """So many steps of 100 tokens through two blocks and the head."""
    return Shown(
        {
            PassKey("forward", blocks=2): times(count, forward),
            PassKey("forward", head=True): times(count, 0.05),
            PassKey("backward", blocks=2, head=True): times(count, backward),
            PassKey("step", blocks=2): times(count, 0.02),
        },
        threads=2,
    )


def times(count: int, seconds: float) -> Sums:
    return sum([Sums.of(100, seconds)] * count, Sums())


def told(count: int, started: float = 1.0, name: str = "stage", **own: float) -> StageReport:
    return StageReport(name, passes(count, **own), started, "float32")


def test_a_stage_costs_what_it_has_timed() -> None:
    seen = Observations().with_round((), stages=[told(5)])
    node = seen.stage_node("stage")
    assert node is not None and (node.threads, node.dtype) == (2, "float32")
    both = node.forward(100, 2) + node.backward(100, 2) + 100 * node.head.both
    assert both + node.step.seconds(2) == pytest.approx(0.2 + 0.05 + 0.3 + 0.02)
    assert Observations().stage_node("stage") is None
    # The only one may be called anything; of two each has its name.
    other = Observations().with_round((), stages=[told(5, name="cellar")])
    assert other.stage_node("stage") == node
    two = other.with_round((), stages=[told(5, name="attic")])
    assert two.stage_node("stage") is None and two.stage_node("attic") == node


def test_later_rounds_of_a_stage_count_for_more_and_a_new_process_begins_anew() -> None:
    seen = Observations().with_round((), stages=[told(5)])
    shown = passes(5).passes
    slower = {key: own + passes(5, 2.0, 3.0).passes[key] for key, own in shown.items()}
    later = seen.with_round((), stages=[replace(told(5), shown=Shown(slower, threads=2))])
    first, second = seen.stage_node("stage"), later.stage_node("stage")
    assert first is not None and second is not None
    assert second.block.both > 3 * first.block.both
    assert later.stages["stage"].last.passes == slower
    again = later.with_round((), stages=[told(5, started=2.0)])
    found = again.stage_node("stage")
    assert found is not None and first.block.both < found.block.both < second.block.both
    moved = StageReport("stage", replace(passes(5), threads=4), 3.0, "float32")
    alone = again.with_round((), stages=[moved]).stage_node("stage")
    assert alone is not None and alone.block == first.block and alone.threads == 4


def test_measured_stages_are_used_and_their_hop_is_as_stated() -> None:
    config = run(stages={"cuts": [6], "up_mbit": 8.0, "down_mbit": 8.0})
    seen = Observations().with_round((), stages=[told(5)])
    found = Costs.of(config, FACTS, seen, config.names, ["e"])
    assert found.stages == {"stage": StageCost(seen.stage_node("stage"), LinkCost(1e6, 1e6))}


def over(rate: float, count: int = 4) -> Sums:
    sizes = range(1000, 1000 * (count + 1), 1000)
    return sum((Sums.of(size, size / rate) for size in sizes), Sums())


def test_a_hop_costs_what_was_measured_of_all_edges_and_of_the_stage_before() -> None:
    hop = Shown(up=over(2e5), down=over(4e5))
    edges = [EdgeReport(name, hop, 1.0) for name in ("north", "south")]
    seen = Observations().with_round((), edges)
    found = seen.stage_hop("stage")
    assert found is not None and (found.up, found.down) == pytest.approx((2e5, 4e5))
    assert Observations().stage_hop("stage") is None and seen.stage_hop("stage2") is None
    config = run(stages={"cuts": [6], "up_mbit": 8.0})
    assert Costs.of(config, FACTS, seen, config.names, ["e"]).stages["stage"].hop == found
    # A later round counts for more, and what was told before is not told again.
    more = replace(hop, up=hop.up + over(1e4))
    slower = [replace(own, shown=more) for own in edges]
    later = seen.with_round((), slower).stage_hop("stage")
    assert later is not None and later.up < 2e4 and later.down == pytest.approx(4e5)
    again = seen.with_round((), edges).stage_hop("stage")
    assert again == found
    deep = seen.with_round((), stages=[replace(told(5), shown=Shown(up=over(1e5), down=over(1e5)))])
    behind = deep.stage_hop("stage2")
    assert behind is not None and behind.up == pytest.approx(1e5)


def test_what_a_device_waits_for_a_stage_is_not_taken_for_threads_that_wait() -> None:
    """A device that has its edge for itself: what nothing else explains may be the hop."""

    def report(rounds: int) -> DeviceReport:
        own = {
            PassKey("forward", blocks=2, embedding=True): times(5 * rounds, 0.1),
            PassKey("backward", blocks=2): times(5 * rounds, 0.1),
        }
        link = times(5 * rounds, 0.01)
        crossed = {("activation", 2): Crossed(5 * rounds, 500, 500)}
        shown = Shown(own, link, link, crossed)
        return DeviceReport("d0", "e", shown, {}, 30.0, 5, 500, 1.0)

    two = Observations().with_round([report(1)]).with_round([report(2)])
    assert two.devices["d0"].handover is not None
    three = Observations().with_round([report(1)], stages=[told(5)])
    three = three.with_round([report(2)], stages=[told(10)])
    assert three.devices["d0"].handover is None
