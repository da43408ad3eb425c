"""Whom each node waits for, as the status has it: clocks that differ, bounds, old words."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from sfl.metrics.snapshot import NodeKind, NodeSnapshot
from sfl.metrics.waits import IN_WORDS, WHATS, silences
from sfl.metrics.waits import Wait as Said
from sfl.report.awaited import LastWords
from sfl.report.live import LiveView, status_picture
from sfl.report.projection import RunProjection
from sfl.report.standing import standing
from sfl.report.status import DeviceStatus, RunStatus, Wait
from sfl.rounds import (
    CloudRestarted,
    Coordinator,
    DeviceLost,
    EdgeLost,
    EdgeReady,
    Event,
    Fact,
    Tick,
)
from sfl.rounds.journal import MemoryJournal
from sfl.rounds.messages import NodeHeard
from sfl.rounds.turn import NAMED
from tests.house.lost import deliver, join, settings
from tests.house.retold import assert_told_again

CLOCK = 9e8
"""What a node's own clock shows: years from any other."""


def says(kind: NodeKind, name: str, *waits: Said, age: float = 0.0) -> NodeSnapshot:
    return NodeSnapshot(name, kind, taken_at=CLOCK, age=age, waits=waits)


def orders(seconds: float, whom: str = "edge at e:1") -> Said:
    return Said(whom, "orders", CLOCK - seconds)


class Scene:
    """A run in its first round, heard of as a cloud hears of it."""

    def __init__(self, count: int = 3) -> None:
        self.told, self.journal = RunProjection(), MemoryJournal()
        self.run = Coordinator(settings(count), journal=self.journal, hear=self.told.take)
        self.happens(EdgeReady("e", 4), 0.0)
        for number in range(count):
            join(self.run, f"d{number}", 0.0)

    def happens(self, event: Event | Fact, now: float) -> None:
        if isinstance(event, NodeHeard):
            self.run.tell(event, now)
        else:
            self.run.handle(event, now)

    def hear(self, snapshot: NodeSnapshot, now: float) -> None:
        self.happens(NodeHeard(snapshot.kind, snapshot.name, snapshot.to_json()), now)

    def at(self, now: float) -> RunStatus:
        self.happens(Tick(), now)
        status = standing("t", self.run.settings, self.told, self.run.state)
        assert_told_again(self.told, self.journal, self.run.state, self.run.settings)
        return status

    def of_nodes(self, now: float) -> list[Wait]:
        return [wait for wait in self.at(now).waits if wait.who != "cloud"]


def test_a_wait_has_the_same_length_by_whichever_clock() -> None:
    scene = Scene()
    scene.hear(says("edge", "e", Said("cloud at c:1", "return", CLOCK - 10, CLOCK + 50)), 20.0)
    scene.hear(says("device", "d0", orders(7.0), age=3.0), 20.0)
    assert scene.of_nodes(22.0) == [
        Wait("edge e", "cloud at c:1", IN_WORDS["return"], 12.0, 48.0, kind="return", said=2.0),
        Wait("device d0", "edge at e:1", "the next round", 12.0, None, kind="orders", said=5.0),
    ]
    assert [str(wait) for wait in scene.of_nodes(24.0)] == [
        "edge e waits for cloud at c:1: to be let in again; 14 s so far, 46 s left",
        "device d0 waits for edge at e:1: the next round; 14 s so far, no end, said 7 s ago",
    ]


def test_a_wait_of_a_moment_is_no_news() -> None:
    scene = Scene()
    scene.hear(says("device", "d0", orders(4.9)), 20.0)
    assert scene.of_nodes(30.0) == [], "nor one that was short when it was said last"
    scene.hear(says("device", "d0", orders(5.0)), 20.1)
    assert len(scene.of_nodes(30.0)) == 1
    scene.hear(says("device", "d0"), 21.0)
    assert scene.of_nodes(30.0) == []


def test_who_has_nothing_to_do_comes_last_and_who_waits_longest_first() -> None:
    scene = Scene()
    disk = Said("its disk", "disk", CLOCK - 6, CLOCK + 54)
    scene.hear(says("edge", "e", orders(60.0, "cloud at c:1")), 20.0)
    scene.hear(says("device", "d1", disk), 20.0)
    scene.hear(says("device", "d0", orders(9.0)), 20.0)
    scene.hear(says("device", "d2", replace(disk, since=CLOCK - 8)), 20.0)
    found = [(wait.who, wait.kind) for wait in scene.of_nodes(20.0)]
    assert found == [
        ("device d2", "disk"),
        ("device d1", "disk"),
        ("edge e", "orders"),
        ("device d0", "orders"),
    ]


def test_of_those_that_are_not_connected_nothing_is_said_but_what_the_cloud_waits_for() -> None:
    scene = Scene()
    for name in ("d0", "d1", "d2"):
        scene.hear(says("device", name, orders(9.0)), 20.0)
    scene.hear(says("edge", "e", orders(9.0, "cloud at c:1")), 20.0)
    scene.happens(DeviceLost("d1", "killed"), 21.0)
    assert [wait.who for wait in scene.of_nodes(22.0)] == ["edge e", "device d0", "device d2"]
    join(scene.run, "d1", 23.0)
    assert len(scene.of_nodes(23.0)) == 3, "until it says so again"
    scene.happens(EdgeLost("e", "it broke"), 24.0)
    status = scene.at(25.0)
    assert {(wait.who, wait.kind) for wait in status.waits} == {("cloud", "return")}


def test_a_word_older_than_any_link_is_none_and_a_restarted_cloud_has_heard_nobody() -> None:
    scene = Scene()
    scene.hear(says("edge", "e", orders(9.0)), 20.0)
    idle = scene.run.settings.network.idle_timeout
    assert len(scene.of_nodes(20.0 + idle - 1.0)) == 1
    assert scene.of_nodes(20.0 + idle) == []
    scene.hear(says("edge", "e", orders(9.0)), 85.0)
    scene.happens(CloudRestarted(), 86.0)
    assert scene.of_nodes(86.5) == []


def test_who_does_not_say_when_it_said_so_has_no_waits() -> None:
    scene = Scene()
    scene.hear(NodeSnapshot("e", "edge", waits=(orders(9.0),)), 20.0)
    assert scene.of_nodes(20.0) == []


def test_of_the_cloud_only_that_is_added_which_its_state_does_not_tell() -> None:
    scene = Scene(1)
    silent = Said("edge e", "heartbeat", CLOCK - 6, CLOCK + 54)
    scene.hear(says("cloud", "cloud", Said("device d0", "part", CLOCK - 9), silent), 20.0)
    assert [(wait.who, wait.whom, wait.kind) for wait in scene.at(20.0).waits] == [
        ("cloud", "device d0", "part"),
        ("cloud", "edge e", "heartbeat"),
    ]


def test_the_first_few_are_shown_and_how_many_more_there_are() -> None:
    scene = Scene(count=3 * NAMED)
    for number in range(NAMED + 2):
        scene.happens(DeviceLost(f"d{number}", "killed"), 20.0)
    for number in range(NAMED + 2, 3 * NAMED):
        scene.hear(says("device", f"d{number}", orders(9.0)), 20.0)
    status = scene.at(20.0)
    kinds = [wait.kind for wait in status.waits]
    assert kinds == ["return"] * NAMED + ["part"] * NAMED + ["orders"] * NAMED
    assert status.more_waits == 2 + 2 * (2 * NAMED - 2) - 2 * NAMED
    assert f"+{status.more_waits} more waits" in picture(status, all_waits=True)


def picture(status: RunStatus, all_waits: bool = False) -> str:
    console = Console(width=140, record=True, file=StringIO())
    console.print(status_picture(status, 7.0, 140, all_waits=all_waits))
    return console.export_text()


def test_a_status_of_an_older_version_is_read_and_one_without_an_end_as_well(
    tmp_path: Path,
) -> None:
    path = tmp_path / "status.json"
    status = RunStatus("t", "training", 1, 3, waits=(Wait("device d0", "e", "orders", 9.0),))
    status.write(path)
    values = json.loads(path.read_text())
    assert values["waits"][0]["seconds_left"] is None
    assert RunStatus.read(path) == status
    del values["more_waits"]
    old = {"who": "cloud", "whom": "d", "what": "w", "seconds": 1.0, "seconds_left": 2.0}
    path.write_text(json.dumps({**values, "waits": [{**old, "away": True, "kind": "return"}]}))
    read = RunStatus.read(path)
    assert read is not None and read.more_waits == 0
    assert read.waits == (Wait("cloud", "d", "w", 1.0, 2.0, away=True, kind="return"),)


def test_a_picture_says_who_waits_for_whom() -> None:
    scene = Scene()
    deliver(scene.run, "d0", 15.0)
    scene.happens(DeviceLost("d1", "killed"), 18.0)
    scene.hear(says("edge", "e", Said("device d2", "heartbeat", CLOCK - 6, CLOCK + 54)), 20.0)
    scene.hear(says("device", "d0", orders(9.0)), 12.0)
    status = scene.at(20.0)
    rows = [" ".join(row.split()) for row in picture(status, all_waits=True).splitlines()]
    for row in (
        "cloud device d1 killed 2.0 s ago in 18.0 s",
        "cloud device d2 its part of round 1 20.0 s ago in 1 min 20 s",
        "edge e device d2 a sign of life 6.0 s ago in 54.0 s",
        "device d0 edge at e:1 the next round 17.0 s ago (said 8.0 s ago) no end",
    ):
        assert row in rows, rows
    lines = [line.strip() for line in picture(status).splitlines() if "…" in line]
    assert lines == [
        "… cloud waits for device d1: killed; 2 s so far, 18 s left",
        "… edge e waits for device d2: a sign of life; 6 s so far, 54 s left",
        "… device d0 waits for edge at e:1: the next round; 17 s so far, no end, said 8 s ago",
    ], "the phase tells the others"


def test_of_more_than_a_few_a_live_view_says_how_many() -> None:
    waits = tuple(Wait("cloud", f"device d{n}", "killed", 1.0, 9.0, away=True) for n in range(5))
    assert "… +2 more: sfl status" in picture(RunStatus("t", "training", 1, 3, waits=waits))


def test_lines_say_a_wait_once_for_as_long_as_it_lasts() -> None:
    output = StringIO()
    away = Wait("cloud", "device d1", "killed", 1.0, 59.0, away=True, kind="return")
    idle = Wait("device d0", "edge at e:1", "the next round", 9.0, kind="orders")
    part = Wait("cloud", "device d2", "its part", 9.0, 1.0)
    status = RunStatus("t", "training", 1, 3, waits=(away, part, idle))
    with LiveView(Console(file=output, width=200)) as view:
        for seconds in (1.0, 2.0):
            view.update(replace(status, waits=(replace(away, seconds=seconds), part, idle)))
        view.update(replace(status, waits=(part,)))
        view.update(status)
    said = "cloud waits for device d1: killed; 1 s so far, 59 s left"
    assert [line for line in output.getvalue().splitlines() if "waits for" in line] == [said] * 2


def test_a_peer_of_whom_no_byte_comes_is_waited_for_until_its_link_counts_as_lost() -> None:
    heard = [("edge e", 100.0), ("edge f", 96.0), ("edge g", 95.0), ("edge h", 50.0)]
    found = list(silences(heard, 60.0, now=100.0, unix=5000.0))
    assert [(own.whom, own.what, own.since, own.until) for own in found] == [
        ("edge g", "heartbeat", 4995.0, 5055.0),
        ("edge h", "heartbeat", 4950.0, 5010.0),
    ]


@pytest.mark.parametrize("what", WHATS)
def test_all_that_is_waited_for_has_words(what: str) -> None:
    assert IN_WORDS[what]  # type: ignore[index]


def test_words_of_a_node_take_the_place_of_those_before() -> None:
    words, state = LastWords(), Scene().run.state
    words.heard(says("edge", "e", orders(9.0)), 0.0)
    words.heard(says("edge", "e", orders(19.0)), 0.0)
    assert [wait.seconds for wait in words.waits(state, 60.0)] == [19.0]
    words.forget_all()
    assert not list(words.waits(state, 60.0))


def test_what_a_device_said_before_it_joined_says_nothing_of_it() -> None:
    """Its edge may tell the words of its last process again, or was lost with them."""
    scene = Scene()
    scene.hear(says("device", "d0", orders(9.0)), 20.0)
    scene.happens(EdgeLost("e", "it broke"), 24.0)
    scene.happens(EdgeReady("e", 4), 30.0)
    join(scene.run, "d0", 30.0)
    assert scene.of_nodes(31.0) == []
    scene.happens(DeviceLost("d1", "killed"), 32.0)
    join(scene.run, "d1", 33.0)
    scene.hear(says("device", "d1", orders(9.0), age=4.0), 34.0)
    assert scene.of_nodes(35.0) == []
    scene.hear(says("device", "d1", orders(9.0), age=0.5), 35.0)
    assert [wait.who for wait in scene.of_nodes(35.0)] == ["device d1"]


def test_an_older_word_is_known_as_such() -> None:
    words = LastWords()
    words.heard(says("device", "d0"), 30.0)
    assert words.has_newer(says("device", "d0", orders(9.0), age=25.0), 30.1)
    assert not words.has_newer(says("device", "d0", age=0.05), 30.1)
    assert not words.has_newer(says("device", "d1", age=25.0), 30.1)


def test_a_status_of_a_newer_version_is_read_without_what_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    wait, device = Wait("device d0", "e", "orders", 9.0), DeviceStatus("d0")
    status = RunStatus("t", "training", 1, 3, devices=(device,), waits=(wait,))
    status.write(path)
    values = json.loads(path.read_text())
    for part in (values, values["cloud"], values["devices"][0], values["waits"][0]):
        part["of_tomorrow"] = 1
    path.write_text(json.dumps(values))
    assert RunStatus.read(path) == status
