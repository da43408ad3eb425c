"""Nodes that are stopped, as a service manager stops them, and started again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.house.nodes import ByHand
from tests.house.waiting import PATIENCE, until

pytestmark = pytest.mark.process


def in_round(nodes: ByHand, number: int) -> Callable[[], bool]:
    def reached() -> bool:
        status = nodes.status()
        return status.get("round", 0) >= number and any(d["step"] > 2 for d in status["devices"])

    return reached


def test_a_device_that_is_stopped_finishes_its_step_and_may_come_back(
    by_hand: Callable[..., ByHand],
) -> None:
    nodes = by_hand(slow="d0", count=1, run={"min_devices": 1}, training={"local_steps": 20})
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
