"""What an edge tells of its own costs with each heartbeat."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from edge_server.beats import Beats
from sfl.cost.energy import Energy
from sfl.cost.shown import PassKey, Shown, Sums
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stages import StagesSaid
from sfl.metrics.stats import NodeStats
from sfl.plan import MOST_STAGES
from sfl.transport.cloud.words import Beat
from tests.house.clock import Clock

PASSES = {PassKey("forward", blocks=3): Sums.of(100, 0.5)}


@pytest.mark.parametrize(
    ("energy", "told"),
    [
        (None, Shown(threads=2)),
        (Energy(7.5, "measured"), Shown(PASSES, energy=Energy(7.5, "measured"), threads=2)),
    ],
)
def test_passes_are_told_beside_joules_alone(
    monkeypatch: pytest.MonkeyPatch, energy: Energy | None, told: Shown
) -> None:
    """Else they would cross with every heartbeat, for nobody: each device's go with its report."""
    monkeypatch.setattr(NodeStats, "costs", lambda own: Shown(PASSES, energy=energy, threads=2))
    beats: list[Beat] = []
    cloud: Any = SimpleNamespace(post=beats.append)
    Beats(NodeStats("e", "edge"), cloud, SimpleNamespace()).send()  # type: ignore[arg-type]
    assert NodeSnapshot.from_json(beats[0].snapshot).costs == told


def told_by(beats: Beats, posted: list[Beat]) -> list[str]:
    """Of whom one beat tells, beside the edge itself."""

    async def one() -> None:
        task = asyncio.create_task(beats.run(60.0, 60.0))
        await asyncio.sleep(0.01)
        task.cancel()

    posted.clear()
    asyncio.run(one())
    return [NodeSnapshot.from_json(text).name for text in posted[0].devices]


def test_of_a_device_that_is_gone_its_last_word_is_told_once() -> None:
    posted: list[Beat] = []
    cloud: Any = SimpleNamespace(post=posted.append)
    service: Any = SimpleNamespace(streams={})
    beats = Beats(NodeStats("e", "edge"), cloud, service)
    for name in ("d0", "d1"):
        beats.heard(name, NodeSnapshot(name, "device"))
    assert told_by(beats, posted) == told_by(beats, posted) == ["d0", "d1"]
    beats.left("d1")
    assert told_by(beats, posted) == ["d0", "d1"]
    assert told_by(beats, posted) == ["d0"]
    assert [one.name for one in beats.devices()] == ["d0", "d1"], "as it was last"
    beats.heard("d1", NodeSnapshot("d1", "device"))
    assert told_by(beats, posted) == ["d1", "d0"], "d0 was told of last"


def test_more_devices_than_a_message_has_room_for_take_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    posted: list[Beat] = []
    cloud: Any = SimpleNamespace(post=posted.append)
    beats = Beats(NodeStats("e", "edge"), cloud, SimpleNamespace(streams={}))  # type: ignore[arg-type]
    names = [f"d{number}" for number in range(5)]
    for name in names:
        beats.heard(name, NodeSnapshot(name, "device"))
    told_by(beats, posted)
    (one, *_) = (len(text.encode()) for text in posted[0].devices)
    most = 2 * one + 100  # an age may have more digits
    monkeypatch.setattr("edge_server.beats.MOST_BYTES", most)
    told = []
    for _ in range(5):
        told += told_by(beats, posted)
        assert sum(len(text.encode()) for text in posted[0].devices) <= most
    assert told == names * 2
    beats.left("d4")
    told = [name for _ in range(5) for name in told_by(beats, posted)]
    assert told.count("d4") == 1
    monkeypatch.setattr("edge_server.beats.MOST_BYTES", 1)
    assert len(told_by(beats, posted)) == 1, "one at least"


def test_stages_are_told_with_their_age_and_as_long_as_they_are_heard_of() -> None:
    clock = Clock()
    stages = StagesSaid(clock)
    stages.heard(NodeSnapshot("s", "stage", age=2.0))
    clock.now += 3.0
    assert [(own.name, own.age) for own in stages.latest(60.0)] == [("s", 5.0)]
    for number in range(10):
        stages.heard(NodeSnapshot(f"s{number}", "stage"))
    assert len(stages.latest(60.0)) == MOST_STAGES
    clock.now += 60.0
    assert stages.latest(60.0) == []
