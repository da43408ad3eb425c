"""Every wait of a run on real processes: in the status, in /metrics, and in the log."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

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
    nodes = by_hand(slow="d0", count=2, run={"min_devices": 2}, training={"local_steps": 200})
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
