"""The connection between edge and cloud breaks, on real sockets: the adapter is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.house.federation import finished
from tests.house.fleets import fleet
from tests.house.nodes import ByHand
from tests.house.proxy import Proxy
from tests.house.reference import adapter, assert_same_bits
from tests.house.tls import Guarded
from tests.house.twin import played
from tests.house.waiting import PATIENCE, until


class Behind(ByHand):
    """Nodes whose cloud is behind a proxy, for its edge."""

    proxy: Proxy

    def address(self, kind: str) -> str:
        found = super().address(kind)
        if kind != "cloud":
            return found
        self.proxy = Proxy(found)
        self.proxy.__enter__()
        return self.proxy.address

    def stop(self) -> None:
        super().stop()
        self.proxy.__exit__(None, None, None)

    def rejoined(self) -> int:
        """How often the edge has come back."""
        return self.log("edge").count("joined the cloud again")


class GuardedBehind(Behind, Guarded):
    """The same with TLS."""


def values(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    found = fleet(
        folder,
        run={"rounds": 3, "min_devices": 3},
        codec={"activation": "none", "gradient": "none"},
        training={"local_steps": 12},
        network={"idle_timeout": 5, "heartbeat_interval": 0.5, "rejoin_timeout": 90},
    )
    found["devices"][1]["link"] = {"delay_ms": 120.0}  # so that a round takes seconds
    return found


def in_round(nodes: ByHand, round_: int, name: str = "d1") -> bool:
    """Whether a device is some steps into a round."""
    status = nodes.status()
    here = [device for device in status.get("devices", []) if device["name"] == name]
    return bool(status.get("round") == round_ and here and here[0]["step"] >= 3)


def back(nodes: Behind, times: int) -> None:
    until(lambda: nodes.rejoined() == times, f"the edge is back, {times} in all")


def reset_in_round(nodes: Behind, round_: int) -> None:
    until(lambda: in_round(nodes, round_), f"steps of round {round_}")
    before = nodes.rejoined()
    nodes.proxy.cut()
    back(nodes, before + 1)


def half_open_in_round(nodes: Behind, round_: int) -> None:
    until(lambda: in_round(nodes, round_), f"steps of round {round_}")
    before = nodes.rejoined()
    nodes.proxy.swallows = True
    until(lambda: nodes.log("edge").count("dialling it again") > before, "the edge's look")
    until(lambda: "is away" in nodes.log("cloud"), "the cloud's look")
    nodes.proxy.swallows = False
    back(nodes, before + 1)


def flipped_in_a_part(nodes: Behind, round_: int) -> None:
    until(lambda: in_round(nodes, round_), f"steps of round {round_}")
    before = nodes.rejoined()
    nodes.proxy.flip("up")
    back(nodes, before + 1)


def reset_in_the_last_evaluation(nodes: Behind) -> None:
    until(lambda: "evaluating the last adapter" in nodes.log("cloud"), "the last evaluation")
    nodes.proxy.cut()


@pytest.mark.process
@pytest.mark.parametrize("kind", [Behind, GuardedBehind], ids=["plain", "tls"])
def test_a_connection_to_the_cloud_that_breaks_changes_no_bit(
    tmp_path: Path, kind: type[Behind]
) -> None:
    expected = adapter(finished(played(tmp_path / "twin", values(tmp_path / "twin"))))
    nodes = kind(tmp_path / "real", values(tmp_path / "real"))
    try:
        devices = [nodes.device(number) for number in range(3)]
        reset_in_round(nodes, 1)
        half_open_in_round(nodes, 2)
        if kind is Behind:  # TLS has a check of its own, and ends the connection
            flipped_in_a_part(nodes, 3)
        reset_in_the_last_evaluation(nodes)
        outcome = finished(nodes.outcome())
        assert [nodes.edge.wait(PATIENCE), *(each.wait(PATIENCE) for each in devices)] == [0] * 4
    finally:
        nodes.stop()
    assert_same_bits(adapter(outcome), expected)
    assert outcome.summary["rounds"] == 3
    assert {entry["rounds"] for entry in outcome.summary["devices"]} == {3}
    for name in ("d0", "d1", "d2"):
        assert "joining again" not in nodes.log(name)  # a device notices nothing


def wide(folder: Path) -> dict[str, Any]:
    """Five devices of one edge, and an adapter of more bytes than a stream takes unread."""
    folder.mkdir()
    found = fleet(
        folder,
        5,
        run={"rounds": 2, "min_devices": 5},
        lora={"rank": 32},
        training={"local_steps": 12},
        network={"idle_timeout": 10, "heartbeat_interval": 0.5, "rejoin_timeout": 90},
    )
    found["devices"][1]["link"] = {"delay_ms": 120.0}
    return found


@pytest.mark.process
def test_many_devices_of_an_edge_whose_link_and_process_break_change_no_bit(tmp_path: Path) -> None:
    expected = adapter(finished(played(tmp_path / "twin", wide(tmp_path / "twin"))))
    nodes = Behind(tmp_path / "real", wide(tmp_path / "real"))
    try:
        devices = [nodes.device(number) for number in range(5)]
        reset_in_round(nodes, 1)
        until(lambda: in_round(nodes, 2), "steps of round 2")
        nodes.edge.kill()
        nodes.edge.wait(PATIENCE)
        listen = nodes.edge_address
        nodes.edge_file.write_text(nodes.edge_file.read_text() + f'listen = "{listen}"\n')
        nodes.edge = nodes.start("edge", nodes.edge_file)
        outcome = finished(nodes.outcome())
        assert [nodes.edge.wait(PATIENCE), *(each.wait(PATIENCE) for each in devices)] == [0] * 6
    finally:
        nodes.stop()
    assert_same_bits(adapter(outcome), expected)
    assert "does not read" not in nodes.log("cloud")


@pytest.mark.process
def test_an_edge_that_is_stopped_is_waited_for(tmp_path: Path) -> None:
    expected = adapter(finished(played(tmp_path / "twin", values(tmp_path / "twin"))))
    nodes = Behind(tmp_path / "real", values(tmp_path / "real"))
    try:
        devices = [nodes.device(number) for number in range(3)]
        until(lambda: in_round(nodes, 2), "steps of round 2")
        nodes.edge.terminate()
        assert nodes.edge.wait(PATIENCE) == 130
        until(lambda: "edge edge: it was stopped" in nodes.log("cloud"), "the cloud's word of it")
        listen = nodes.edge_address
        nodes.edge_file.write_text(nodes.edge_file.read_text() + f'listen = "{listen}"\n')
        nodes.edge = nodes.start("edge", nodes.edge_file)
        outcome = finished(nodes.outcome())
        assert [nodes.edge.wait(PATIENCE), *(each.wait(PATIENCE) for each in devices)] == [0] * 4
    finally:
        nodes.stop()
    assert_same_bits(adapter(outcome), expected)
