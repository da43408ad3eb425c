"""What a simulated round takes, against sums by hand and the closed loop that planners use."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sfl.cost.closed_loop import round_ends
from sfl.cost.predict import turns_of
from sfl.cost.step import step_cost
from sfl.rounds import StartRound
from sfl.simulate.cloud import Cloud
from sfl.simulate.events import Events
from sfl.simulate.floor import Floor
from sfl.simulate.rounds import Parts
from sfl.simulate.worker import Worker
from sfl.stage.orders import ORDERS, Waiting
from sfl.stage.orders.waiting import Ranked
from tests.house.simulated import EDGE, PHONE, configured, file_of, kinds, played

RARELY = {"heartbeat_interval": 1e8, "idle_timeout": 2e8}
"""So that heartbeats take nothing of a link."""
ONE: dict[str, Any] = {"devices": [{"name": "a"}], "run": {"rounds": 1}, "network": RARELY}


def test_one_device_takes_what_its_parts_add_up_to() -> None:
    outcome, heard = played(file_of(**ONE))

    tokens, hidden = 4 * 32, 64
    up, down = tokens * hidden * 4 / (20e6 / 8), tokens * hidden * 4 / (60e6 / 8)
    step = 0.020 + up + 0.010 + 5 * 0.003 + down + 0.010 + 0.040
    values = 8 * (4 * (64 + 64) + 2 * (64 + 128) + (128 + 64))
    adapter = 4.0 * values
    exchange = adapter / (20e6 / 8) + adapter / (60e6 / 8) + 2 * 0.010
    (first, last) = kinds(heard, "RoundBegan")
    assert last.now - first.now == pytest.approx(5 * step + exchange + 0.1, rel=1e-12)
    assert outcome.ok
    assert outcome.steps == 5
    assert outcome.rounds[0].bytes_up == pytest.approx(5 * tokens * hidden * 4 + adapter)


def test_the_coordinator_hears_what_a_real_run_tells_it() -> None:
    _, heard = played(file_of(**ONE))

    names = [type(entry.event).__name__ for entry in heard]
    assert names == [
        "EdgeReady",
        "AdapterReady",
        "DeviceJoined",
        "DeviceReady",
        "RoundBegan",
        "UpdateReceived",
        "ReportReceived",
        "UpdateReceived",
        "AdapterReady",
        "RoundBegan",
        "ReportReceived",
        "RunEnded",
    ]


def _fleet(seed: int, count: int) -> dict[str, Any]:
    draw = random.Random(seed)
    devices = [{"name": f"d{n}", "cut_layer": draw.randint(1, 5)} for n in range(count)]
    classes = [
        {
            **PHONE,
            "name": f"c{n}",
            "devices": [f"d{n}"],
            "block": {"forward_ms": draw.uniform(1, 30), "backward_ms": draw.uniform(1, 60)},
            "up_mbit": draw.uniform(5, 50),
        }
        for n in range(count)
    ]
    edge = {"block": {"forward_ms": 6.0, "backward_ms": 9.0}}
    own = file_of()["simulate"]
    return file_of(
        devices=devices, network=RARELY, simulate={**own, "classes": classes, "edge": edge}
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_shared_edge_serves_as_the_closed_loop_says(seed: int) -> None:
    config, fleet = configured(_fleet(seed, 6))
    parts, events = Parts(fleet, config.settings), Events()
    edge = Floor("edge", ORDERS["first_come"], events)
    ends: dict[str, float] = {}

    def done(worker: Worker, now: float) -> None:
        ends[worker.own.name] = now

    for own in fleet.devices:
        burst = parts.step(own, own.cost, parts.at(own, None), 1, config.settings)
        Worker(own, edge).begin(((burst, 5),), 0.0, done)
    while events.next():
        pass

    steps = [
        step_cost(parts.workload, own.cost, fleet.edge_cost, *parts.at(own, None))
        for own in fleet.devices
    ]
    assert [ends[own.name] for own in fleet.devices] == pytest.approx(
        round_ends([turns_of(step) for step in steps], 5), rel=1e-12
    )
    assert edge.busy == pytest.approx(5 * sum(step.edge for step in steps), rel=1e-12)


def test_a_started_round_is_an_order_of_the_coordinator() -> None:
    config, fleet = configured(file_of())
    cloud = Cloud(config, fleet)
    done: list[object] = []
    plain = cloud.do

    def noted(command: Any) -> None:
        done.append(command)
        plain(command)

    cloud.do = noted  # type: ignore[method-assign]
    cloud.begin()
    while not cloud.over:
        cloud.events.next()

    rounds = [command.round for command in done if isinstance(command, StartRound)]
    assert rounds == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["first_come", "longest_tail", "fair_share"])
def test_an_order_chooses_the_least_by_rank(name: str) -> None:
    order = ORDERS[name]
    assert isinstance(order, Ranked)
    draw = random.Random(3)
    for _ in range(50):
        waiting = [
            Waiting(n, f"d{n}", float(draw.randint(0, 3)), float(draw.randint(0, 3)))
            for n in range(draw.randint(1, 8))
        ]
        draw.shuffle(waiting)
        chosen = waiting[order.choose(waiting)]
        assert order.rank(chosen) == min(map(order.rank, waiting))


def test_an_edge_is_told_by_its_speed() -> None:
    slow = {"block": {"forward_ms": 100.0, "backward_ms": 200.0}}
    own = file_of()["simulate"]
    fast, _ = played(file_of(8))
    late, _ = played(file_of(simulate={**own, "devices": 8, "edge": {**EDGE, **slow}}))

    assert late.seconds > 5 * fast.seconds
    assert late.rounds[0].busiest > 0.9
