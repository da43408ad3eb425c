"""Simulated rounds of three tiers, against sums by hand and the closed loop of the cost model."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sfl.cost.closed_loop import round_ends
from sfl.cost.predict import turns_of
from sfl.cost.step import step_cost
from sfl.cost.tiers import num_stations
from sfl.planners.plans import Plan
from sfl.simulate.deep import Deep
from sfl.simulate.events import Events
from sfl.simulate.floor import Floor
from sfl.simulate.rounds import Parts
from sfl.simulate.worker import Worker
from sfl.stage.orders import ORDERS
from tests.house.simulated import EDGE, PHONE, configured, file_of, kinds, played

RARELY = {"heartbeat_interval": 1e8, "idle_timeout": 2e8}
"""So that heartbeats take nothing of a link."""
HOP = {"up_mbit": 4.0, "down_mbit": 2.0, "delay_ms": 5.0}


def tiers(fleet: int = 0, u_shaped: bool = False, **tables: Any) -> dict[str, Any]:
    """A run of three tiers; the stage is three times as quick as its edges."""
    simulate = {
        "stage": {"block": {"forward_ms": 0.5, "backward_ms": 0.5}},
        "devices": fleet,
        **tables.pop("simulate", {}),
    }
    file = file_of(
        run={"rounds": 1, "topology": "three_tier_u_shaped" if u_shaped else "three_tier"},
        stages={"cuts": [3], **HOP},
        network=RARELY,
        simulate=simulate,
    )
    for name, table in tables.items():
        file[name] = {**file.get(name, {}), **table} if isinstance(table, dict) else table
    return file


def test_one_device_takes_what_its_parts_add_up_to() -> None:
    outcome, heard = played(tiers(devices=[{"name": "a"}]))

    message = 4 * 32 * 64 * 4
    link = message / (20e6 / 8) + message / (60e6 / 8) + 2 * 0.010
    hop = message / (4e6 / 8) + message / (2e6 / 8) + 2 * 0.005
    step = 0.020 + link + 2 * 0.003 + hop + 3 * 0.001 + 0.040
    adapter = 4.0 * 8 * (4 * (64 + 64) + 2 * (64 + 128) + (128 + 64))
    there = 3 * adapter / (4e6 / 8) + 0.005 + adapter / (60e6 / 8) + 0.010
    back = max(3 * adapter / (2e6 / 8) + 0.005, adapter / (20e6 / 8) + 0.010)
    (first, last) = kinds(heard, "RoundBegan")
    assert last.now - first.now == pytest.approx(5 * step + there + back + 0.1, rel=1e-12)
    (stage,) = outcome.stages
    assert outcome.ok and stage.name == "stage"
    assert stage.busy == pytest.approx(5 * 3 * 0.001)
    assert stage.hop == pytest.approx((5 * message + 3 * adapter) / (2e6 / 8))
    assert outcome.edges[0].busy == pytest.approx(5 * 2 * 0.003)


def test_the_coordinator_hears_of_the_stages_part() -> None:
    _, heard = played(tiers(devices=[{"name": "a"}]))
    sides = [entry.event.side for entry in kinds(heard, "UpdateReceived")]  # type: ignore[union-attr]
    assert sides == ["device", "edge", "stage"]


@pytest.mark.parametrize("u_shaped", [False, True])
@pytest.mark.parametrize("seed", range(1, 4))
def test_shared_hops_and_a_shared_stage_serve_as_the_closed_loop_says(
    seed: int, u_shaped: bool
) -> None:
    """Six devices at two edges with one stage, each with speeds and cuts of its own.

    With these seeds no two jobs arrive at one moment: who is first then is anybody's.
    """
    draw = random.Random(seed)
    devices = [
        {"name": f"d{n}", "cut_layer": draw.randint(1, 2), "stage_cuts": [draw.randint(3, 5)]}
        for n in range(6)
    ]
    classes = [
        {
            **PHONE,
            "name": f"c{n}",
            "devices": [f"d{n}"],
            "block": {"forward_ms": draw.uniform(1, 30), "backward_ms": draw.uniform(1, 60)},
            "up_mbit": draw.uniform(5, 50),
        }
        for n in range(6)
    ]
    slow = {"block": {"forward_ms": 4.0, "backward_ms": 7.0}}
    simulate = {"classes": classes, "edge": {**slow, "count": 2}, "stage": slow}
    config, fleet = configured(tiers(u_shaped=u_shaped, devices=devices, simulate=simulate))
    parts, events = Parts(fleet, config.settings), Events()
    events.strict = True
    deep = Deep(2, 1)
    floors = {
        name: Floor(name, ORDERS["first_come"], events, place, deep)
        for place, name in enumerate(fleet.edges)
    }
    ends: dict[str, float] = {}

    def done(worker: Worker, now: float) -> None:
        ends[worker.own.name] = now

    for own in fleet.devices:
        burst = parts.step(own, own.cost, parts.at(own, None), 1, config.settings)
        Worker(own, floors[own.edge]).begin(((burst, 5),), 0.0, done)
    while events.next():
        pass

    steps = [
        step_cost(
            parts.workload, own.cost, fleet.edge_cost, *parts.at(own, None), parts.behind(own)
        )
        for own in fleet.devices
    ]
    turns = [
        turns_of(step, 1.0, floors[own.edge].place, 2)
        for step, own in zip(steps, fleet.devices, strict=True)
    ]
    assert [ends[own.name] for own in fleet.devices] == pytest.approx(
        round_ends(turns, 5, num_stations(2, 1)), rel=1e-12
    )
    assert deep.seconds_of(0) == pytest.approx(5 * sum(step.stage for step in steps))


def test_a_fast_stage_with_a_free_hop_is_quicker_and_a_slow_one_is_waited_for() -> None:
    free = {"stages": {"cuts": [3], "up_mbit": 0.0, "down_mbit": 0.0, "delay_ms": 0.0}}
    busy = {"edge": {"block": {"forward_ms": 20.0, "backward_ms": 20.0}, "count": 2}}
    slow = {"stage": {"block": {"forward_ms": 50.0, "backward_ms": 50.0}}}
    two, _ = played(file_of(8, run={"rounds": 1}, network=RARELY, simulate=busy | {"devices": 8}))
    relieved, _ = played(tiers(8, simulate=busy, **free))
    waited, _ = played(tiers(8, simulate=busy | slow, **free))
    assert relieved.seconds < 0.8 * two.seconds
    assert waited.seconds > 1.5 * two.seconds
    assert waited.stages[0].busy > 0.85 * waited.rounds[0].seconds


SCENES: dict[str, dict[str, Any]] = {
    "evaluated": {"simulate": {"eval_examples": 10}},
    "micro-batches": {"training": {"batch_size": 4, "local_steps": 5, "micro_batches": 4}},
    "two stages": {"stages": {"cuts": [3, 4], **HOP}},
    "failing": {
        "simulate": {
            "classes": [
                {
                    **PHONE,
                    "failures": {
                        "crash_hours": 0.02, "restart_seconds": 4.0,
                        "break_hours": 0.02, "break_seconds": 5.0,
                    },
                }
            ]
        },
        "run": {"rounds": 4, "min_devices": 2},
        "network": {"heartbeat_interval": 2.0, "idle_timeout": 8.0, "rejoin_timeout": 10.0},
    },
    "asynchronous": {"run": {"rounds": 8, "mode": "asynchronous"}},
    "fair share": {"edge": {"order": "fair_share"}},
    "clipped": {"training": {"batch_size": 4, "local_steps": 5, "max_grad_norm": 1.0}},
}  # fmt: skip


@pytest.mark.parametrize("u_shaped", [False, True])
@pytest.mark.parametrize("scene", SCENES)
def test_a_run_ends_and_the_same_file_gives_the_same(scene: str, u_shaped: bool) -> None:
    own = {name: dict(table) for name, table in SCENES[scene].items()}
    simulate = {"edge": {**EDGE, "count": 2}, **own.pop("simulate", {})}
    file = tiers(4, u_shaped, simulate=simulate, **own)
    outcome, heard = played(file)
    again, heard_again = played(file)
    assert outcome.ok, outcome.reason
    assert outcome == again and heard == heard_again
    assert all(stage.busy > 0.0 < stage.hop for stage in outcome.stages)
    assert len(outcome.stages) == (2 if scene == "two stages" else 1)


def test_advice_is_taken_from_the_stage_too() -> None:
    _, heard = played(tiers(3, planner={"policy": "advice"}, run={"rounds": 2}))
    lines = [entry.event.line for entry in kinds(heard, "Planned")]  # type: ignore[union-attr]
    plans = [Plan.from_json(line) for line in lines]
    assert plans and all(plan.advice for plan in plans)
    (plan, *_) = plans
    assert plan.state is not None and [own.name for own in plan.state.stages] == ["stage"]
    assert plan.decision.why.parts["hop down"] > plan.decision.why.parts["stage"]
    assert all(cut.cut_layer < 3 for own in plan.state.devices for cut in own.cuts)
