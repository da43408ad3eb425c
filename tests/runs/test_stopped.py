"""Nodes that are stopped, as a service manager stops them, and started again."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pytest

from tests.house.fleets import fleet
from tests.house.nodes import ByHand
from tests.house.waiting import PATIENCE, until


class Serviced(ByHand):
    """Nodes whose cloud goes on at the same address with the same command."""

    def options(self, name: str) -> list[str]:
        if name != "cloud":
            return []
        return ["--resume", "auto", "--set", f"cloud.listen=127.0.0.1:{self._port}"]

    @cached_property
    def _port(self) -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port: int = free.getsockname()[1]
            return port


pytestmark = pytest.mark.process


def in_round(nodes: ByHand, number: int) -> Callable[[], bool]:
    def reached() -> bool:
        status = nodes.status()  # in which a device may still be at the end of the round before
        steps = [device["step"] for device in status.get("devices", [])]
        return status.get("round", 0) >= number and any(2 < step < 12 for step in steps)

    return reached


def test_a_device_that_is_stopped_finishes_its_step_and_may_come_back(
    by_hand: Callable[..., ByHand],
) -> None:
    nodes = by_hand("d0", count=1, run={"min_devices": 1}, training={"local_steps": 15})
    device = nodes.device(0)
    until(in_round(nodes, 2), "steps of round 2")
    device.terminate()
    assert device.wait(PATIENCE) == 130
    assert "SIGTERM: this step is finished first, for at most 10 s" in nodes.log("d0")
    assert "Traceback" not in nodes.log("d0")
    until(lambda: any(w["away"] for w in nodes.status()["waits"]), "a wait for the device")
    assert nodes.device(0).wait(2 * PATIENCE) == 0, nodes.log("d0")
    outcome = nodes.outcome()
    assert outcome.code == 0, outcome.output
    assert "SIGTERM" in nodes.log("cloud")
    assert (outcome.summary["failure"], outcome.summary["rounds"]) == (None, 3)
    assert outcome.summary["faults"] == []


def test_a_cloud_that_is_stopped_goes_on_as_a_service_does(
    tmp_path: Path,
) -> None:
    """Edge and device wait for the next process, which the service manager starts as before."""
    values = fleet(tmp_path, 1, run={"min_devices": 1}, training={"local_steps": 20})
    values["devices"][0]["link"] = {"delay_ms": 40}  # so that a round takes a while
    nodes = Serviced(tmp_path, values)
    try:
        stop_and_start(nodes)
    finally:
        nodes.stop()


def stop_and_start(nodes: ByHand) -> None:
    device = nodes.device(0)
    until(in_round(nodes, 2), "steps of round 2")
    nodes.cloud.terminate()
    assert nodes.cloud.wait(PATIENCE) == 130
    waits = "the cloud was stopped, and may be back; dialling it again for 60 s"
    until(lambda: waits in nodes.log("edge"), "the edge's word")
    nodes.cloud = nodes.start("cloud", nodes.config)
    outcome = nodes.outcome()
    assert outcome.code == 0, outcome.output + nodes.log("edge")
    assert (device.wait(PATIENCE), nodes.edge.wait(PATIENCE)) == (0, 0)
    assert (outcome.summary["failure"], outcome.summary["rounds"]) == (None, 3)
    assert outcome.summary["faults"] == []
    for name in ("cloud", "edge", "d0"):
        assert "Traceback" not in nodes.log(name)
