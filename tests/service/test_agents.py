"""What agents say that cannot be, and how much of it: whom that costs anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sfl.errors import LinkLost, ProtocolError
from sfl.service.nodes import Nodes
from sfl.service.roster import Roster
from sfl.transport.frames.wire import WIRE_VERSION
from sfl.transport.jobs.agents import Attachment, _Line
from sfl.transport.jobs.mail import MOST, Mail
from sfl.v1 import jobs_pb2

LIES: dict[str, dict[str, Any]] = {
    "address": {"started": jobs_pb2.NodeStarted(run="r", address="x" * 301)},
    "reason": {"ended": jobs_pb2.NodeEnded(run="r", exit_code=1, reason="x" * 100_000)},
    "body": {},
}


def hello(role: str, name: str) -> jobs_pb2.AgentHello:
    return jobs_pb2.AgentHello(
        role=role, name=name, wire_version=WIRE_VERSION, max_runs=1, incarnation=b"x" * 16
    )


async def said(lie: dict[str, Any], of: str) -> AsyncIterator[jobs_pb2.AgentMessage]:
    """Two devices come in, then somebody says what cannot be read."""
    for name in ("good", "bad"):
        yield jobs_pb2.AgentMessage(device=name, hello=hello("device", name))
    yield jobs_pb2.AgentMessage(device=of, **lie)
    yield jobs_pb2.AgentMessage(device="good", heartbeat=jobs_pb2.Alive())


@pytest.mark.parametrize("lie", LIES)
def test_what_a_device_says_costs_no_other_of_its_edge(tmp_path: Path, lie: str) -> None:
    roster, mail = Roster(), Mail[Any]()
    nodes = Nodes(tmp_path, roster, {})
    own = Attachment(hello("edge", "e"), mail)
    nodes.attached(own)
    line = _Line(nodes, own, mail)
    asyncio.run(line.read(said(LIES[lie], "bad")))
    told = [mail._waiting.get_nowait() for _ in range(mail._waiting.qsize())]
    assert [one.WhichOneof("body") for one in told if one.device == "good"] == ["welcome"]
    refused = [one for one in told if one.device == "bad" and one.refused]
    # A reason that is too long is cut, and read.
    assert bool(refused) is (lie != "reason")
    there = {agent.name for agent in roster}
    assert there == ({"e", "good", "bad"} if lie == "reason" else {"e", "good"})


def test_what_an_edge_says_for_itself_ends_its_stream(tmp_path: Path) -> None:
    roster, mail = Roster(), Mail[Any]()
    own = Attachment(hello("edge", "e"), mail)
    line = _Line(Nodes(tmp_path, roster, {}), own, mail)
    with pytest.raises(ProtocolError, match="host:port"):
        asyncio.run(line.read(said(LIES["address"], "")))


def test_logs_that_wait_leave_room_for_all_else() -> None:
    async def scene() -> None:
        mail: Mail[str] = Mail()
        writers = [asyncio.create_task(mail.put("log")) for _ in range(2 * MOST)]
        await asyncio.sleep(0)
        for _ in range(MOST // 4):
            mail.post("heartbeat")
        taken = mail.messages()
        found = [await anext(taken) for _ in range(len(writers) + MOST // 4)]
        assert found.count("log") == len(writers) and found.count("heartbeat") == MOST // 4

    asyncio.run(scene())


@pytest.mark.parametrize("how", ["closed", "ended"])
def test_who_waits_for_room_goes_on_when_the_stream_breaks(how: str) -> None:
    async def scene() -> None:
        mail: Mail[str] = Mail(2)
        mail.post("log")
        waiting = asyncio.create_task(mail.put("log"))
        await asyncio.sleep(0)
        assert not waiting.done()
        mail.close() if how == "closed" else mail.end(LinkLost("it broke"))
        async with asyncio.timeout(5):
            await waiting

    asyncio.run(scene())
