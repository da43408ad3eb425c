"""Whom each node waits for once no byte comes of it, though it is connected: on every hop."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

from edge_server.beats import Beats
from edge_server.host import DeviceHost
from edge_server.server import EdgeServer
from edge_server.stage import StageServer
from edge_server.stage_host import StageRun
from sfl.errors import LinkLost
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.transport.cloud.link import CloudLink
from sfl.transport.device.link import DeviceLink


def heard(seconds: float) -> Any:
    """Of whom a byte came last so many seconds ago."""
    return SimpleNamespace(last_heard=time.monotonic() - seconds)


def of(stats: NodeStats) -> list[tuple[str, str]]:
    return [(own.whom, own.what) for own in stats.snapshot().waits]


def test_a_device_waits_for_its_edge_whatever_it_does_meanwhile() -> None:
    link, posted = object.__new__(DeviceLink), []
    link._stats = NodeStats("d0", "device")
    over = iter([False, False, True])
    line: Any = SimpleNamespace(
        peer="edge at e:1",
        silence=heard(7.0),
        stopped=SimpleNamespace(wait=lambda seconds: next(over)),
        expect_bytes=lambda seconds: None,
        post=posted.append,
    )
    link.line = line
    link._heartbeats(1.0, 60.0)
    (said,) = NodeSnapshot.from_json(posted[0].heartbeat.snapshot).waits
    assert (said.whom, said.what) == ("edge at e:1", "heartbeat") and said.until is not None
    assert round(said.until - said.since) == 60 and len(posted) == 2
    assert of(link._stats) == [], "a link that is over is not waited for"


def test_an_edge_waits_for_its_cloud_its_devices_and_the_stage_behind() -> None:
    stats = NodeStats("e", "edge")
    devices: Any = SimpleNamespace(streams={"d0": heard(8.0), "d1": heard(1.0)})
    cloud = object.__new__(CloudLink)
    cloud.peer, cloud.stream = "cloud at c:1", None
    beats = Beats(stats, cloud, devices)
    beats.listen(cloud.last_heard)
    host = object.__new__(DeviceHost)
    silent, lively = (SimpleNamespace(peer="stage at s:1", stream=heard(s)) for s in (7.0, 1.0))
    links: Any = {"d0": silent, "d1": lively}
    host._onward = links
    beats.listen(host._last_heard_behind)
    stats.waits.derive(beats._silences(60.0))
    assert of(stats) == [("device d0", "heartbeat"), ("stage at s:1", "heartbeat")]
    cloud.stream = heard(9.0)
    stats.waits.derive(beats._silences(60.0))
    assert of(stats)[0] == ("cloud at c:1", "heartbeat")


def test_a_stage_waits_for_the_server_before_it_and_the_stage_behind() -> None:
    stage, run = object.__new__(StageServer), object.__new__(StageRun)
    stage.stats, stage.host = NodeStats("s", "stage"), run
    before: Any = {"d0": heard(6.0), "d1": heard(1.0)}
    behind: Any = {"d0": SimpleNamespace(peer="stage at t:1", stream=heard(8.0))}
    network = SimpleNamespace(idle_timeout=60.0)
    run._streams, run._servers, run._onward = before, {"d0": "e", "d1": "f"}, behind
    first: Any = SimpleNamespace(settings=SimpleNamespace(network=network))
    run._first = first
    stage._show_silences()
    assert of(stage.stats) == [("stage at t:1", "heartbeat"), ("edge e", "heartbeat")]
    run._first = None
    assert run.idle_timeout == 0.0


def test_an_edge_whose_run_is_over_expects_nothing_more_of_its_cloud() -> None:
    """Its devices and the stage behind it may take longer than a cloud may be silent."""

    async def told(is_over: bool) -> object:
        async def follow(words: object) -> None:
            await asyncio.sleep(0.1)

        async def watch(*seconds: float) -> None:
            raise LinkLost("not a byte for 4 s")

        server = object.__new__(EdgeServer)
        server.follower = SimpleNamespace(is_over=is_over, follow=follow)  # type: ignore[assignment]
        network = SimpleNamespace(heartbeat_interval=0.5, idle_timeout=4.0)
        welcome = SimpleNamespace(settings=SimpleNamespace(network=network))
        stream: Any = SimpleNamespace(welcome=welcome, words=lambda: None, watch=watch)
        return await server._follow(stream)

    assert asyncio.run(told(True)) is None
    assert isinstance(asyncio.run(told(False)), LinkLost)
