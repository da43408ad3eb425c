"""Whom a node waits for: in its statistics, in /metrics, and in its log."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from sfl.errors import ProtocolError
from sfl.metrics import NodeSnapshot, NodeStats
from sfl.metrics.table import METRICS
from sfl.metrics.waits import MOST, WHATS, Wait, Waits
from tests.house.clock import Clock


def lines(waits: Waits, clock: Clock, caplog: pytest.LogCaptureFixture, seconds: int) -> list[Any]:
    """What is said while so many seconds pass, each second looked at."""
    found = []
    for _ in range(seconds):
        clock.now += 1.0
        caplog.clear()
        with caplog.at_level(logging.INFO):
            waits.say()
        found += [(clock.now, record.getMessage()) for record in caplog.records]
    return found


def test_a_wait_is_there_for_as_long_as_it_lasts() -> None:
    clock = Clock()
    clock.now = 100.0
    waits = Waits(clock, clock)
    with waits.on("edge at e:1", "admission", "to be let in", 10.0) as wait:
        assert waits.all() == (Wait("edge at e:1", "admission", 100.0, 110.0, "to be let in"),)
        clock.now = 104.0
        wait.extend(10.0)
        assert waits.all()[0].until == 114.0
        with waits.on("edge", "model", "files"):
            assert [own.what for own in waits.all()] == ["admission", "model"]
    assert waits.all() == ()
    wait.extend(1.0)
    assert waits.all() == ()


def test_of_many_waits_alike_the_first_is_shown() -> None:
    clock = Clock()
    clock.now = 1.0
    waits = Waits(clock, clock)
    for number in range(3 * MOST):
        clock.now += 1.0
        waits.begin("cloud", "admission", f"device {number}")
    assert [own.since for own in waits.all()] == [2.0]
    waits.derive(Wait(f"device {n}", "part", float(n)) for n in range(3 * MOST))
    assert len(waits.all()) == MOST
    assert NodeSnapshot.from_json(with_waits(waits).to_json()).waits == bare(waits)


def test_what_follows_from_a_state_keeps_its_beginning() -> None:
    waits = Waits(lambda: 0.0, lambda: 0.0)
    waits.derive([Wait("device a", "part", 5.0, 20.0)])
    waits.derive([Wait("device a", "part", 5.2, 21.0), Wait("device b", "part", 6.0)])
    assert [(own.whom, own.since, own.until) for own in waits.all()] == [
        ("device a", 5.0, 21.0),
        ("device b", 6.0, None),
    ]
    waits.derive(())
    assert waits.all() == ()


def test_what_is_waited_for_next_has_its_own_beginning_and_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    waits = Waits(clock, clock)
    said = []
    for round_ in (1, 2):
        waits.derive([Wait("device a", "part", clock.now, None, f"its part of round {round_}")])
        said += lines(waits, clock, caplog, 20)
    assert said == [
        (5.0, "waiting for device a: its part of round 1; 5 s so far"),
        (15.0, "waiting for device a: its part of round 1; 15 s so far"),
        (25.0, "waiting for device a: its part of round 2; 5 s so far"),
        (35.0, "waiting for device a: its part of round 2; 15 s so far"),
    ]


def test_lines_become_rarer_and_end_with_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    waits = Waits(clock, clock)
    quiet = waits.on("cloud", "connection", "dialled", 9.0, quiet=True)
    with quiet, waits.on("device a", "return", "killed", 60.0):
        assert lines(waits, clock, caplog, 40) == [
            (5.0, "waiting for device a: killed; 5 s so far, 55 s left"),
            (15.0, "waiting for device a: killed; 15 s so far, 45 s left"),
            (35.0, "waiting for device a: killed; 35 s so far, 25 s left"),
        ]
    assert lines(waits, clock, caplog, 40) == []
    waits.begin("edge", "orders", "the next round")
    assert lines(waits, clock, caplog, 6) == [
        (85.0, "waiting for edge: the next round; 5 s so far")
    ]


def with_waits(waits: Waits) -> NodeSnapshot:
    stats = NodeStats("n", "device")
    stats.waits = waits
    return stats.snapshot()


def bare(waits: Waits) -> tuple[Wait, ...]:
    """As they travel: without words."""
    return tuple(Wait(own.whom, own.what, own.since, own.until) for own in waits.all())


def test_waits_travel_and_are_shown_with_whom_and_what() -> None:
    waits = Waits(lambda: 100.0, lambda: 100.0)
    waits.begin("edge at e:1", "return", "to be let in again", 60.0)
    waits.begin("edge at e:1", "orders", "the next round")
    snapshot = with_waits(waits)
    assert NodeSnapshot.from_json(snapshot.to_json()) == (
        NodeSnapshot.from_dict({**snapshot.to_dict()})
    )
    read = {metric.name: list(metric.read(snapshot)) for metric in METRICS}
    assert read["sfl_wait_start_timestamp_seconds"] == [
        (("edge at e:1", "return"), 100.0),
        (("edge at e:1", "orders"), 100.0),
    ]
    assert read["sfl_wait_end_timestamp_seconds"] == [(("edge at e:1", "return"), 160.0)]


@pytest.mark.parametrize(
    "waits",
    [
        {},
        "x",
        [1],
        [[]],
        [["e", "part", 1.0]],
        [["", "part", 1.0, None]],
        [["e\n", "part", 1.0, None]],
        [["e" * 200, "part", 1.0, None]],
        [["e", "part", -1.0, None]],
        [["e", "part", 1.0, "x"]],
        [["e", "part", 1.0, None]] * (MOST + 1),
    ],
)
def test_a_peers_waits_are_refused_unless_they_are_some(waits: Any) -> None:
    text = json.dumps({**NodeSnapshot("d", "device").to_dict(), "waits": waits})
    with pytest.raises(ProtocolError, match="malformed"):
        NodeSnapshot.from_json(text)


def test_waits_of_another_version_for_what_is_not_known_are_left_out() -> None:
    values = NodeSnapshot("d", "device").to_dict()
    values["waits"] = [["e", "a new thing", 1.0, None], ["e", "part", 2.0, 3.0]]
    assert NodeSnapshot.from_dict(values).waits == (Wait("e", "part", 2.0, 3.0),)
    del values["waits"]
    assert NodeSnapshot.from_dict(values).waits == ()
    assert len(set(WHATS)) == len(WHATS)


@pytest.mark.parametrize("set_by", [1.7e9, -3600.0, -1e6])
def test_a_wait_is_as_long_as_it_lasts_whatever_the_time_is_set_to(
    set_by: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock, unix = Clock(), Clock()
    clock.now, unix.now = 50.0, 1e6
    waits = Waits(clock, unix)
    waits.begin("edge", "return", "to be back", 60.0)
    waits.derive([Wait("device a", "heartbeat", unix.now - 5.0, unix.now + 55.0)])
    clock.now, unix.now = 70.0, unix.now + 20.0 + set_by
    first, second = waits.all()
    assert (unix.now - first.since, unix.now - second.since) == (min(25.0, unix.now), 20.0) or (
        unix.now == 20.0 and first.since == second.since == 0.0
    )
    with caplog.at_level(logging.INFO):
        waits.say()
    assert "waiting for edge: to be back; 20 s so far, 40 s left" in caplog.messages
    assert NodeSnapshot.from_json(with_waits(waits).to_json()).waits == bare(waits)
