"""Agents attach to a service, also through an edge; who breaks the contract costs nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from sfl.errors import NameInUse
from sfl.jobs.rows import HeldRun
from sfl.service.roster import Roster
from sfl.transport.frames.wire import ATTACH, WIRE_VERSION
from sfl.transport.jobs.agents import AgentsDoor, Attachment
from sfl.transport.jobs.attaching import Attaching
from sfl.transport.jobs.relay import Relay
from sfl.transport.security.credentials import bind, new_server
from sfl.v1 import jobs_pb2
from tests.house.waiting import until_async


class Heard:
    """A service that notes what it hears."""

    def __init__(self) -> None:
        self.roster = Roster()
        self.said: list[tuple[Any, ...]] = []

    def attached(self, agent: Attachment) -> None:
        self.roster.enter(agent)
        self.said.append(("attached", agent.name, agent.via, dict(agent.held)))

    def detached(self, agent: Attachment, reason: str) -> None:
        self.roster.leave(agent, reason)
        self.said.append(("detached", agent.name))

    def started(self, agent: Attachment, run: str, address: str) -> None:
        self.said.append(("started", agent.name, run, address))

    def ended(self, agent: Attachment, run: str, exit_code: int, reason: str) -> None:
        self.said.append(("ended", agent.name, run, exit_code, reason))

    def logged(self, agent: Attachment, run: str, offset: int, data: bytes) -> None:
        self.said.append(("logged", agent.name, run, offset, data))


class Doer:
    """An agent that notes what it is told."""

    def __init__(self, *held: HeldRun) -> None:
        self.runs = held
        self.told: list[tuple[Any, ...]] = []

    def held(self) -> Iterable[HeldRun]:
        return self.runs

    def welcomed(self, via: str) -> None:
        self.told.append(("welcomed", via))

    def start(self, run: str, address: str, log_offset: int) -> None:
        self.told.append(("start", run, address, log_offset))

    def stop(self, run: str, reason: str) -> None:
        self.told.append(("stop", run, reason))

    def detached(self) -> None:
        self.told.append(("detached",))


@asynccontextmanager
async def serving(door: Any) -> AsyncIterator[str]:
    server = new_server()
    server.add_generic_rpc_handlers((door.handler(),))
    address = bind(server, "listen", "127.0.0.1:0", False)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


@asynccontextmanager
async def attached(role: Any, name: str, address: str, doer: Doer, relay: Any = None) -> Any:
    agent = Attaching(role, name, address, 2, False, relayed=relay)
    task = asyncio.create_task(agent.run(doer))
    try:
        yield agent
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def play(story: Any) -> None:
    asyncio.run(asyncio.wait_for(story(), 60))


def test_an_agent_through_an_edge_says_and_is_told_all() -> None:
    async def story() -> None:
        heard, relay = Heard(), Relay("e")
        edge, device = Doer(HeldRun("r", "h:1")), Doer()
        async with (
            serving(AgentsDoor(heard)) as service,
            serving(relay) as at_edge,
            attached("edge", "e", service, edge, relay) as edges,
        ):
            await until_async(lambda: edge.told)
            async with attached("device", "d", at_edge, device) as devices:
                await until_async(lambda: device.told)
                assert heard.said == [
                    ("attached", "e", "", {"r": "h:1"}),
                    ("attached", "d", "e", {}),
                ]
                assert edge.told == [("welcomed", "")] and device.told == [("welcomed", "e")]
                for agent in heard.roster:
                    agent.start("r2", "h:2", 7)
                    agent.stop("r", "over")
                await until_async(lambda: len(edge.told) == len(device.told) == 3)
                assert edge.told[1:] == device.told[1:]
                assert device.told[1:] == [("start", "r2", "h:2", 7), ("stop", "r", "over")]
                for own in (edges, devices):
                    own.started("r2", "h:3")
                    await own.logged("r2", 0, b"line\n")
                    own.ended("r2", -9, "killed")
                await until_async(lambda: len(heard.said) == 8)
                for name in ("e", "d"):
                    words = [said for said in heard.said if said[1] == name][1:]
                    assert words == [
                        ("started", name, "r2", "h:3"),
                        ("logged", name, "r2", 0, b"line\n"),
                        ("ended", name, "r2", -9, "killed"),
                    ]
            await until_async(lambda: ("detached", "d") in heard.said)
            assert [agent.name for agent in heard.roster] == ["e"]
        await until_async(lambda: ("detached", "e") in heard.said)

    play(story)


def test_agents_come_back_when_the_way_breaks() -> None:
    async def story() -> None:
        heard, relay = Heard(), Relay("e")
        edge, device = Doer(), Doer()
        async with (
            serving(AgentsDoor(heard)) as service,
            serving(relay) as at_edge,
            attached("edge", "e", service, edge, relay),
            attached("device", "d", at_edge, device),
        ):
            await until_async(lambda: device.told and edge.told)
            found = heard.roster.at(("edge", "e"))
            assert found is not None
            found.end(NameInUse("for a test"))
            await until_async(lambda: edge.told.count(("welcomed", "")) == 2)
            await until_async(lambda: device.told.count(("welcomed", "e")) == 2)
            assert ("detached",) in edge.told and ("detached",) in device.told

    play(story)


def hello(**more: Any) -> jobs_pb2.AgentMessage:
    own = {"role": "device", "name": "d", "wire_version": WIRE_VERSION, "max_runs": 1, **more}
    return jobs_pb2.AgentMessage(hello=jobs_pb2.AgentHello(**own))


OFFENCES = {
    "another version": (hello(wire_version=1), "wire version 1"),
    "no role": (hello(role="cloud"), "an agent is edge or device"),
    "no name": (hello(name="../x"), "a name has letters"),
    "no places": (hello(max_runs=0), "max_runs"),
    "a run that is a path": (
        hello(held=[jobs_pb2.HeldRun(run="../../etc")]),
        "a name has letters",
    ),
    "an address of two lines": (
        hello(held=[jobs_pb2.HeldRun(run="r", address="a\nb")]),
        "an address has the form",
    ),
    "no hello": (jobs_pb2.AgentMessage(left="x"), "begins with a hello"),
}


@pytest.mark.parametrize("offence", OFFENCES)
def test_who_breaks_the_contract_is_told_and_let_go(offence: str) -> None:
    message, why = OFFENCES[offence]

    async def story() -> None:
        heard, other = Heard(), Doer()
        async with (
            serving(AgentsDoor(heard)) as service,
            attached("device", "other", service, other),
            grpc.aio.insecure_channel(service) as channel,
        ):
            await until_async(lambda: other.told)
            call = ATTACH.stub(channel)()
            await call.write(message)
            with pytest.raises(grpc.aio.AioRpcError, match=why):
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert [agent.name for agent in heard.roster] == ["other"]

    play(story)


def test_a_device_speaks_for_nobody_else() -> None:
    async def story() -> None:
        heard = Heard()
        async with (
            serving(AgentsDoor(heard)) as service,
            grpc.aio.insecure_channel(service) as channel,
        ):
            call = ATTACH.stub(channel)()
            await call.write(hello())
            await call.read()
            relayed = hello(name="x")
            relayed.device = "x"
            await call.write(relayed)
            with pytest.raises(grpc.aio.AioRpcError, match="only an edge speaks for others"):
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert not list(heard.roster)

    play(story)


def test_the_same_process_replaces_its_stream_and_another_has_to_wait() -> None:
    async def story() -> None:
        heard = Heard()
        async with (
            serving(AgentsDoor(heard)) as service,
            grpc.aio.insecure_channel(service) as channel,
        ):
            first = ATTACH.stub(channel)()
            await first.write(hello(incarnation=b"1"))
            await first.read()
            another = ATTACH.stub(channel)()
            await another.write(hello(incarnation=b"2"))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await another.read()
            assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
            again = ATTACH.stub(channel)()
            await again.write(hello(incarnation=b"1"))
            await again.read()
            with pytest.raises(grpc.aio.AioRpcError, match="came back on a new stream"):
                while await first.read() is not grpc.aio.EOF:
                    pass
            assert [agent.name for agent in heard.roster] == ["d"]

    play(story)
