"""How devices leave an edge, wherever in their stay that is: the cloud is told, nothing is kept,
and they can come back. Real sockets, the real edge and coordinator, and a compute thread that
stands behind a gate.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from device_agent import agent
from edge_server.floor import Floor
from sfl.config import DeviceConfig
from sfl.errors import AdapterRefused, LinkLost, NameInUse, Refused
from sfl.metrics.stats import NodeStats
from sfl.rounds import messages as rounds
from sfl.rounds.values import Assignment, Challenge
from sfl.transport.device import entrance
from sfl.transport.device.line import dial
from sfl.transport.device.link import CameFrom, DeviceLink
from sfl.transport.device.training import Training
from sfl.transport.frames.wire import WIRE_VERSION
from sfl.transport.security.signed import DeviceSignatures
from sfl.v1 import edge_pb2, tensor_pb2
from tests.house.edge import NAME, PATIENCE, QUIET, Cloud, House, dialled, played
from tests.house.links import joined
from tests.house.waiting import until_async


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("at", ["base", "cloud", "session"])
def test_who_hangs_up_before_it_is_let_in_can_come_back(at: str) -> None:
    async def scene(house: House, cloud: Cloud) -> None:
        cloud.mute = at == "cloud"
        await house.hold_up()
        async with dialled(house):
            await until_async(lambda: house.calls)
            if at != "base":
                await until_async(lambda: cloud.told == ["join"])
            if at == "session":
                await until_async(lambda: house.engine._queue)
        await until_async(lambda: house.ended == 1)  # gRPC has cancelled who served it
        # It dials again at once, while the cloud and the compute thread are still at the first.
        async with dialled(house) as call:
            await until_async(lambda: house.calls == 2)
            if at == "base":
                house.load()
            cloud.answer()
            house.gate.set()
            assert (await call.read()).WhichOneof("body") == "welcome"
            await until_async(lambda: NAME in house.service.streams)
            assert cloud.told == (["join"] if at == "base" else ["join", "left", "join"])
            assert set(cloud.coordinator.devices) == set(house.sessions) == house.kept == {NAME}
        await until_async(lambda: not house.sessions)
        assert not cloud.coordinator.devices and not house.kept

    played(scene, loaded=at != "base")


@pytest.mark.parametrize("fails", ["session", "welcome"])
def test_who_is_admitted_and_cannot_come_in_leaves_again(
    monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    class Wire:
        async def write(self, message: Any) -> None:
            raise grpc.aio.UsageError("the RPC is finished")

        async def abort(self, code: Any, details: str) -> None:
            pass

    async def requests() -> AsyncIterator[edge_pb2.DeviceMessage]:
        hello = edge_pb2.DeviceHello(device=NAME, wire_version=WIRE_VERSION)
        yield edge_pb2.DeviceMessage(hello=hello)

    def no_memory(self: Floor, device: str, assignment: Assignment) -> Any:
        raise MemoryError("no room")

    async def scene(house: House, cloud: Cloud) -> None:
        if fails == "session":
            monkeypatch.setattr(Floor, "_open", no_memory)
        # Who has hung up is told nothing any more, and there is no fault in that.
        no_fault = contextlib.nullcontext()
        with pytest.raises(MemoryError) if fails == "session" else no_fault:
            await house.service._session(requests(), cast(Any, Wire()))
        await until_async(lambda: not house.service._cleanups)
        assert cloud.told == ["join", "left"]
        assert not cloud.coordinator.devices and not house.sessions and not house.kept

    played(scene)


def test_who_has_its_welcome_may_ask_for_files_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = entrance.Entrance._end

    def slowly(*given: Any) -> Any:
        time.sleep(0.2)  # snapshots are many
        return ended(*given)

    async def scene(house: House, cloud: Cloud) -> None:
        async with dialled(house) as call:
            assert (await call.read()).WhichOneof("body") == "welcome"
            assert NAME in house.service.streams

    monkeypatch.setattr(entrance.Entrance, "_end", slowly)
    played(scene)


@pytest.mark.parametrize("turns", range(8))
def test_who_comes_back_in_the_very_moment_its_leaving_ends_comes_in(
    monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    waited, wait = itertools.count(1), entrance._alive_until

    async def counted(task: asyncio.Task[Any], context: Any) -> None:
        assert next(waited) < 100, "the loop stands still"
        await wait(task, context)

    class Wire:
        async def write(self, message: Any) -> None:
            asked.set()

    async def scene(house: House, cloud: Cloud) -> None:
        async def requests() -> AsyncIterator[edge_pb2.DeviceMessage]:
            await proven.wait()
            yield edge_pb2.DeviceMessage(proof=edge_pb2.Proof())

        async def leaving() -> None:
            proven.set()
            for _ in range(turns):
                await asyncio.sleep(0)

        house.service.entrance.challenge = Challenge("", "", bytes(32))
        hello = edge_pb2.DeviceHello(device=NAME, wire_version=WIRE_VERSION)
        opening = asyncio.create_task(
            house.service.entrance.open(hello, requests(), cast(Any, Wire()))
        )
        await asked.wait()
        await asyncio.sleep(0.01)  # it waits for the proof
        house.service._cleanups.start(NAME, leaving())
        assert (await opening).device == NAME
        assert cloud.told == ["join"] and not house.service._cleanups

    monkeypatch.setattr(entrance, "_alive_until", counted)
    asked, proven = asyncio.Event(), asyncio.Event()
    played(scene)


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("goodbye", [True, False])
def test_who_leaves_while_the_edge_computes_gives_its_memory_back(goodbye: bool) -> None:
    async def scene(house: House, cloud: Cloud) -> None:
        async with dialled(house) as call:
            await call.read()
            await until_async(lambda: NAME in house.service.streams)
            await house.hold_up()
            if goodbye:
                await call.write(edge_pb2.DeviceMessage(goodbye="done"))
            else:
                await call.done_writing()
            await until_async(lambda: house.engine._queue)  # its session is to be closed
            assert house.kept == {NAME}
        await until_async(lambda: house.ended == 1)
        await house.let_go()
        assert not house.kept and not house.sessions
        assert cloud.told == ["join", "left"]

    played(scene)


@pytest.mark.usefixtures("watched")
def test_the_cloud_is_told_of_who_hangs_up_in_the_middle_of_leaving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    abandon = Training.abandon

    async def scene(house: House, cloud: Cloud) -> None:
        entered, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def slowly(stream: Training) -> None:
            entered.set()
            await go_on.wait()
            await abandon(stream)
            done.set()

        monkeypatch.setattr(Training, "abandon", slowly)
        async with dialled(house) as call:
            await call.read()
            await until_async(lambda: house.slots._streams)
            await house.slots.take(house.service.streams[NAME].tensors)
            await call.write(edge_pb2.DeviceMessage(goodbye="done"))
            await entered.wait()
        await until_async(lambda: house.ended == 1)
        go_on.set()
        await until_async(lambda: not house.sessions)
        assert done.is_set() and not house.kept
        assert (house.slots._free, house.slots._streams) == (2, {})
        assert cloud.told == ["join", "left"]

    played(scene)


@pytest.mark.usefixtures("watched")
def test_who_comes_back_while_it_is_still_leaving_is_let_in_after_that() -> None:
    async def scene(house: House, cloud: Cloud) -> None:
        first = await asyncio.to_thread(joined, house.address, NAME, PATIENCE)
        await until_async(lambda: NAME in house.service.streams)
        old = house.sessions[NAME]
        await house.hold_up()
        closing = asyncio.create_task(asyncio.to_thread(first.close))
        await until_async(lambda: house.engine._queue)
        joining = asyncio.create_task(asyncio.to_thread(joined, house.address, NAME, PATIENCE))
        await until_async(lambda: house.calls == 2)
        house.gate.set()
        second = await joining
        assert second.joined.assignment.plan.num_layers == house.base.folder.num_layers
        assert cloud.told == ["join", "left", "join"]
        assert house.sessions[NAME] is not old and house.kept == {NAME}
        await closing
        await asyncio.to_thread(second.close)
        await until_async(lambda: not house.sessions)
        assert not house.kept

    played(scene)


@pytest.mark.parametrize("where", ["this edge", "another edge"])
def test_a_device_asks_again_for_a_name_that_is_in_use(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    monkeypatch.setattr(agent, "REJOIN_PAUSE", 0.01)
    monkeypatch.setattr(agent.DeviceAgent, "_take_part", lambda self, link: None)
    caplog.set_level("INFO", "sfl.device")
    elsewhere = rounds.DeviceJoined(NAME, "other")

    async def scene(house: House, cloud: Cloud) -> None:
        config = DeviceConfig(name=NAME, edge=house.address, metrics=QUIET)
        if where == "this edge":
            holder = await asyncio.to_thread(joined, house.address, NAME, PATIENCE)
        else:
            cloud.coordinator.handle(elsewhere, 0.0)
        device = agent.DeviceAgent(config, insecure=True)
        running = asyncio.create_task(asyncio.to_thread(device.run, PATIENCE))
        await until_async(lambda: caplog.text.count("asking again") > 1 or running.done())
        assert not running.done() and "connected already" in caplog.text
        if where == "this edge":
            await asyncio.to_thread(holder.close)
        else:
            assert "at edge other" in caplog.text and "left" not in cloud.told
            cloud.coordinator.handle(rounds.DeviceLost(NAME, "gone"), 0.0)
        await running

    played(scene)


def test_a_device_counts_what_it_could_not_compute_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "REJOIN_PAUSE", 0.01)
    ends = iter((AdapterRefused("the loss is nan"), AdapterRefused("the loss is inf"), None))

    def take_part(self: agent.DeviceAgent, link: DeviceLink) -> None:
        if (end := next(ends)) is not None:
            raise end

    monkeypatch.setattr(agent.DeviceAgent, "_take_part", take_part)

    async def scene(house: House, cloud: Cloud) -> None:
        config = DeviceConfig(name=NAME, edge=house.address, metrics=QUIET)
        device = agent.DeviceAgent(config, insecure=True)
        await asyncio.to_thread(device.run, PATIENCE)
        assert device.stats.snapshot().nonfinite_losses == 2

    played(scene)


def test_a_device_does_not_ask_again_where_that_helps_nothing() -> None:
    async def scene(house: House, cloud: Cloud) -> None:
        config = DeviceConfig(name="stranger", edge=house.address, metrics=QUIET)
        device = agent.DeviceAgent(config, insecure=True)
        with pytest.raises(Refused, match="known: attic") as caught:
            await asyncio.to_thread(device.run, PATIENCE)
        assert not isinstance(caught.value, NameInUse)
        assert cloud.told == ["join"]  # who was never in does not leave

    played(scene)


def test_who_is_out_for_good_is_told_why_though_the_run_ends_with_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Told at once, while the compute thread is busy; and so is who asks when all is over."""

    def stay(self: agent.DeviceAgent, link: DeviceLink) -> None:
        for _ in link.orders():
            raise AssertionError("no round was due")

    async def scene(house: House, cloud: Cloud) -> None:
        config = DeviceConfig(name=NAME, edge=house.address, metrics=QUIET)
        device = agent.DeviceAgent(config, insecure=True)
        running = asyncio.create_task(asyncio.to_thread(device.run, PATIENCE))
        await until_async(lambda: NAME in house.service.streams)
        await house.hold_up()
        out = rounds.Evict(NAME, "strike 2 of 2; out for good", final=True)
        await house.follower.hear(out)
        await house.follower.dismiss(True, "every round closed")
        assert NAME in house.sessions  # the thread is still at its job
        with pytest.raises(Refused, match="strike 2 of 2; out for good"):
            await running
        for name, why in ((NAME, "strike 2 of 2; out for good"), ("other", "the run is over")):
            with pytest.raises(Refused, match=why):
                await asyncio.to_thread(joined, house.address, name, PATIENCE)

    monkeypatch.setattr(agent, "REJOIN_PAUSE", 0.01)
    monkeypatch.setattr(agent.DeviceAgent, "_take_part", stay)
    played(scene)


def test_who_may_come_back_is_not_told_an_old_reason() -> None:
    async def scene(house: House, cloud: Cloud) -> None:
        for ends, why in ((False, "its rows are laid out otherwise"), (True, "the run is over")):
            async with dialled(house) as call:
                assert (await call.read()).WhichOneof("body") == "welcome"
                await until_async(lambda: NAME in house.service.streams)
                if not ends:
                    out = rounds.Evict(NAME, why, final=True)
                    await house.follower.hear(out)
                    assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION
                    assert await call.details() == why
        await until_async(lambda: not house.sessions)
        house.service.finish(Refused(why))
        async with dialled(house) as call:
            assert await call.details() == why

    played(scene)


@pytest.mark.usefixtures("watched")
def test_an_edge_that_ends_waits_for_those_who_leave_and_for_no_answer_from_the_cloud() -> None:
    async def scene(house: House, cloud: Cloud) -> None:
        async with dialled(house) as call:
            await call.read()
            await until_async(lambda: NAME in house.service.streams)
            await house.hold_up()
            await call.write(edge_pb2.DeviceMessage(goodbye="done"))
            await until_async(lambda: house.engine._queue)
        await until_async(lambda: house.ended == 1)
        draining = asyncio.create_task(house.service.drain())
        await asyncio.sleep(0)
        assert not draining.done() and house.kept
        house.gate.set()
        await draining
        assert not house.kept
        cloud.mute = True
        async with dialled(house):
            await until_async(lambda: cloud.told == ["join", "left", "join"])
            await house.service.drain()
        assert not house.sessions and not house.host._admissions

    played(scene)


def test_a_new_stream_of_the_same_process_ends_the_old_one_at_once() -> None:
    async def scene(house: House, cloud: Cloud) -> None:
        def join(incarnation: bytes) -> DeviceLink:
            line = dial(house.address, NodeStats(NAME, "device"), PATIENCE, insecure=True)
            try:
                signatures, came_from = DeviceSignatures(NAME), CameFrom("", incarnation)
                return DeviceLink.join(line, signatures, PATIENCE, came_from=came_from)
            except BaseException:
                line.close()
                raise

        first = await asyncio.to_thread(join, b"one")
        await until_async(lambda: NAME in house.service.streams)
        with pytest.raises(NameInUse, match="connected already"):
            await asyncio.to_thread(join, b"two")
        second = await asyncio.to_thread(join, b"one")
        with pytest.raises(LinkLost, match="came back on a new stream"):
            await asyncio.to_thread(first.receive)
        await until_async(lambda: NAME in house.service.streams)
        assert cloud.told == ["join", "left", "join"]
        late = edge_pb2.DeviceMessage(report=tensor_pb2.RoundReport(round=1, device=NAME))
        await asyncio.to_thread(first.line.post, late)
        await asyncio.sleep(0.2)
        assert cloud.told == ["join", "left", "join"] and NAME in house.service.streams
        for link in (first, second):
            await asyncio.to_thread(link.close)

    played(scene)
