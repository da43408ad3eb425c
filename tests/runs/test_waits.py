"""Every wait of a run on real processes: in the status, in /metrics, and in the log."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

from sfl.jobs.rows import SILENT
from tests.house.federation import sfl
from tests.house.nodes import ByHand
from tests.house.waiting import until

pytestmark = pytest.mark.process


def measured(nodes: ByHand, name: str, whom: str, what: str, device: str = "") -> bool:
    """Whether a node's /metrics has the beginning of a wait."""
    if "metrics at http" not in nodes.log(name):
        return False
    labels = f'device="{device}",what="{what}",whom="{whom}[^"]*"'
    found = re.search(f"sfl_wait_start_timestamp_seconds{{{labels}}} (\\S+)", nodes.metrics(name))
    return found is not None and float(found[1]) > 1e9


def told(nodes: ByHand, whom: str, kind: str) -> bool:
    """Whether the status has a wait of the cloud, with both its times."""
    waits = [own for own in nodes.status().get("waits", ()) if own["kind"] == kind]
    return any(
        own["who"] == "cloud" and own["whom"] == whom and own["what"] and own["seconds_left"] > 0
        for own in waits
    )


def test_every_wait_is_in_status_metrics_and_log(by_hand: Callable[..., ByHand]) -> None:
    nodes = by_hand("all", count=2, run={"min_devices": 2}, training={"local_steps": 80})
    nodes.device(0)
    until(lambda: told(nodes, "device d1", "join"), "the cloud's wait for a device")
    assert measured(nodes, "cloud", "device d1", "join")
    until(lambda: measured(nodes, "edge", "cloud at ", "orders"), "the edge's wait")
    until(lambda: measured(nodes, "edge", "edge at ", "orders", "d0"), "the device's wait")
    line = r"waiting for device d1: to be ready; \d+ s so far, \d+ s left"
    until(lambda: re.search(line, nodes.log("cloud")) is not None, "its line")
    line = r"waiting for edge at \S+: the next round; \d+ s so far"
    until(lambda: re.search(line, nodes.log("d0")) is not None, "the device's line")

    killed = nodes.device(1)
    until(lambda: told(nodes, "device d0", "part"), "a round")
    until(lambda: not measured(nodes, "edge", "cloud at ", "orders"), "the end of a wait")
    killed.kill()
    until(lambda: told(nodes, "device d1", "return"), "the cloud's wait for a lost device")
    assert measured(nodes, "cloud", "device d1", "return")
    line = r"waiting for device d1: .*; \d+ s so far, \d+ s left"
    until(lambda: len(re.findall(line, nodes.log("cloud"))) > 1, "its line")
    again = nodes.device(1)
    until(lambda: not told(nodes, "device d1", "return"), "the device to be back")

    nodes.cloud.kill()
    until(lambda: measured(nodes, "edge", "cloud at ", "return"), "the edge's wait for its cloud")
    ends = re.search(
        'sfl_wait_end_timestamp_seconds{device="",what="return",whom="cloud at [^"]*"}',
        nodes.metrics("edge"),
    )
    assert ends is not None
    line = r"waiting for cloud at \S+ \(\d+ s left\)"
    until(lambda: re.search(line, nodes.log("edge")) is not None, "its line")
    nodes.edge.kill()
    line = r"waiting for edge at \S+ \(\d+ s left\)"
    until(lambda: re.search(line, nodes.log("d1")) is not None, "the device's line")
    again.kill()


def shown(nodes: ByHand, *options: str) -> str:
    """What `sfl status` prints of the run."""
    done = sfl("status", "t", "--output-dir", nodes.folder / "runs", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_of(nodes: ByHand, who: str, whom: str, kind: str) -> dict[str, Any] | None:
    """A node's wait as `status.json` has it."""
    for own in nodes.status().get("waits", ()):
        if (own["who"], own["kind"]) == (who, kind) and own["whom"].startswith(whom):
            found: dict[str, Any] = own
            return found
    return None


def test_the_status_says_of_every_node_whom_it_waits_for(by_hand: Callable[..., ByHand]) -> None:
    nodes = by_hand("all", count=2, run={"min_devices": 2}, training={"local_steps": 80})
    nodes.device(0)
    device = until(lambda: wait_of(nodes, "device d0", "edge at ", "orders"), "the device's wait")
    edge = until(lambda: wait_of(nodes, "edge edge", "cloud at ", "orders"), "the edge's wait")
    for own in (device, edge):
        assert own["what"] == "the next round" and own["seconds_left"] is None
        assert own["seconds"] >= 5.0 > own["said"] >= 0.0
    lines = [" ".join(line.split()) for line in shown(nodes).splitlines()]
    time, address = r"[\d.]+ s", r"at 127\.0\.0\.1:\d+"
    for line in (
        rf"cloud device d1 to be ready {time} ago in .+",
        rf"edge edge cloud {address} the next round {time} ago no end",
        rf"device d0 edge {address} the next round {time} ago no end",
    ):
        assert any(re.fullmatch(line, own) for own in lines), lines

    stopped = nodes.device(1)
    until(lambda: any(own["step"] for own in nodes.status()["devices"]), "a round")
    assert wait_of(nodes, "device d0", "edge at ", "orders") is None
    os.kill(stopped.pid, signal.SIGSTOP)
    edge = until(lambda: wait_of(nodes, "edge edge", "device d1", "heartbeat"), "the edge's wait")
    assert edge["seconds"] >= 5.0 and 0.0 < edge["seconds_left"] <= 55.0
    assert re.search(r"waiting for device d1: a sign of life; \d+ s so far", nodes.log("edge"))
    until(lambda: measured(nodes, "edge", "device d1", "heartbeat"), "its metric")
    os.kill(nodes.edge.pid, signal.SIGSTOP)
    until(lambda: wait_of(nodes, "cloud", "edge edge", "heartbeat"), "the cloud's wait")
    told = json.loads(shown(nodes, "--format", "json"))["status"]["waits"]
    (old,) = [own for own in told if own["who"] == "edge edge" and own["kind"] == "heartbeat"]
    assert old["said"] >= 5.0, "its last word is old"
    assert re.search(r"device d1 +a sign of life .* ago \(said .* ago\) ", shown(nodes))
    os.kill(nodes.cloud.pid, signal.SIGSTOP)
    line = rf"waits for {SILENT}, (\d+ min )?[\d.]+ s"
    until(lambda: re.search(line, " ".join(shown(nodes).split())), "that the cloud is silent")
