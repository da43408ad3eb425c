"""What stands at a server's door and says nothing, or too much: bounded, and nobody's run ends."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

from sfl.metrics.stats import NodeStats
from sfl.node.logs import Sparing
from sfl.transport import group
from sfl.transport.device.service import EdgeService
from sfl.transport.frames.wire import EDGE_SESSION
from sfl.transport.security import door
from sfl.transport.security.credentials import new_server
from tests.house import nodes
from tests.house.federation import SFL
from tests.house.fleets import fleet
from tests.house.tls import Guarded
from tests.house.waiting import PATIENCE, at_hand, until

FILES = 256
"""Open files that edge and cloud may have, the hard limit included."""


class Idle:
    """Plain TCP connections that send nothing."""

    def __init__(self, address: str, count: int) -> None:
        host, _, port = address.rpartition(":")
        self._sockets = []
        for _ in range(count):
            own = socket.create_connection((host, int(port)), timeout=10)
            own.setblocking(False)
            self._sockets.append(own)

    def open(self) -> int:
        """How many the server has not closed."""
        return sum(map(self._is_open, self._sockets))

    @staticmethod
    def _is_open(own: socket.socket) -> bool:
        try:
            return own.recv(1) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        for own in self._sockets:
            own.close()


@pytest.fixture
def few_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(nodes, "SFL", ["prlimit", f"--nofile={FILES}:{FILES}", *SFL])
    yield


@pytest.mark.process
def test_idle_connections_and_bad_handshakes_end_nothing(few_files: None, tmp_path: Path) -> None:
    values = fleet(tmp_path, 3, run={"rounds": 1, "min_devices": 3}, training={"local_steps": 5})
    values["network"] = {**values.get("network", {}), "join_timeout": 900}
    nodes = Guarded(tmp_path, values)
    idle: list[Idle] = []
    try:
        devices = [nodes.device(number) for number in range(2)]
        until(lambda: nodes.log("edge").count("joined") == 2, "two devices")
        began = time.monotonic()
        idle = [Idle(nodes.address(node), 400) for node in ("edge", "cloud")]
        for one in idle:
            until(lambda one=one: one.open() <= door.SILENT, "the end of most connections")
        left, seconds = sum(one.open() for one in idle), time.monotonic() - began
        sys.stdout.write(f"{left} of 800 idle connections open after {seconds:.1f} s\n")
        devices.append(nodes.device(2))  # there is room for who has something to say
        host, _, port = nodes.edge_address.rpartition(":")
        for _ in range(250):
            with socket.create_connection((host, int(port)), timeout=10) as own:
                own.sendall(b"GET / HTTP/1.1\r\n\r\n" * 20)
        told = nodes.log("edge").count("a connection was refused")
        sys.stdout.write(f"{told} lines of log for 250 bad handshakes\n")
        outcome = nodes.outcome()
        assert outcome.code == 0, outcome.output + nodes.log("edge")
        assert outcome.summary["faults"] == []
        assert all(process.wait(PATIENCE) == 0 for process in devices)
    finally:
        for one in idle:
            one.close()
        nodes.stop()
    assert "silent connections; closed" in nodes.log("edge")
    assert "silent connections; closed" in nodes.log("cloud")
    assert 1 <= nodes.log("edge").count("a connection was refused") <= 40
    assert "Traceback" not in nodes.log("edge") + nodes.log("cloud")


def test_only_old_and_silent_ones_of_an_address_with_too_many_are_closed() -> None:
    silent = {f"a {number}": float(number) for number in range(door.SILENT + 3)}
    silent |= {f"b {number}": 0.0 for number in range(door.SILENT)}
    assert door._too_many(silent, 100.0) == ["a 0", "a 1", "a 2"]
    assert door._too_many(silent, door.SILENT_SECONDS + 1.0) == ["a 0", "a 1"]


def test_a_connection_whose_calls_have_ended_says_nothing_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One refused call on each would else keep every place of an edge taken for good."""
    closed: list[str] = []
    monkeypatch.setattr(door, "hang_up", lambda descriptor, peer: closed.append(peer))
    connections = {f"10.0.0.9 {number}": number for number in range(door.SILENT + 5)}

    def caller(number: int) -> Any:
        return SimpleNamespace(peer=lambda: f"ipv4:10.0.0.9:{number}")

    async def act() -> None:
        own = door.Door()
        async with own._call(caller(0)):
            for number in range(1, len(connections)):
                async with own._call(caller(number)):
                    pass
            own.look(connections, 0.0)
            assert not closed
            own.look(connections, door.SILENT_SECONDS)
        assert len(closed) == 4 and "10.0.0.9 0" not in closed

    asyncio.run(act())


def test_a_connection_of_ones_own_is_hung_up_and_no_other() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        clients = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(2)]
        accepted = [listener.accept()[0] for _ in clients]
        found = door.own_connections(port)
        names = [f"127.0.0.1 {client.getsockname()[1]}" for client in clients]
        assert found.keys() == set(names)
        door.hang_up(found[names[0]], names[1])  # has become another's
        door.hang_up(found[names[1]], names[1])
        assert clients[1].recv(1) == b""
        clients[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            clients[0].recv(1)
        for own in (*clients, *accepted):
            own.close()


async def _served(act: Any) -> None:
    host: Any = SimpleNamespace(stats=NodeStats("e", "edge"))
    service = EdgeService(host.stats, at_hand(host))
    server = new_server()
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await act(channel)
    finally:
        await server.stop(None)
        service.close()


async def _ending(call: Any) -> tuple[grpc.StatusCode, str]:
    return await call.code(), await call.details()


def test_a_call_without_a_hello_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "HELLO_SECONDS", 0.2)

    async def act(channel: Any) -> None:
        call = channel.stream_stream(EDGE_SESSION.path)()
        code, details = await asyncio.wait_for(_ending(call), PATIENCE)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details == "no hello came within 0.2 s"

    asyncio.run(_served(act))


def test_a_caller_has_so_many_calls_and_no_more() -> None:
    async def act(channel: Any) -> None:
        calls = [channel.stream_stream(EDGE_SESSION.path)() for _ in range(door.CALLS + 5)]
        ends = [asyncio.ensure_future(_ending(call)) for call in calls]
        while sum(end.done() for end in ends) < 5:
            await asyncio.sleep(0.01)
        for end in ends:
            if end.done():
                code, details = end.result()
                assert code is grpc.StatusCode.FAILED_PRECONDITION
                assert f"has {door.CALLS} calls open already" in details
        assert sum(end.done() for end in ends) == 5
        for call in calls:
            call.cancel()
        await asyncio.gather(*ends, return_exceptions=True)

    async def in_time(channel: Any) -> None:
        await asyncio.wait_for(act(channel), PATIENCE)

    asyncio.run(_served(in_time))


def test_few_lines_are_written_of_many_alike(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 7.0
    monkeypatch.setattr("sfl.node.logs.time", SimpleNamespace(monotonic=lambda: now))
    sparing = Sparing(logging.getLogger("sfl.test"), burst=3, seconds=10.0)
    for number in range(50):
        sparing.warning("a", "line %d", number)
    sparing.warning("b", "another")
    assert [r.getMessage() for r in caplog.records] == ["line 0", "line 1", "line 2", "another"]
    now += 10.0
    sparing.warning("a", "line %d", 50)
    assert caplog.records[-1].getMessage() == "line 50 (and 47 more like it before)"
