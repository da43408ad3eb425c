"""Calls without a socket end as gRPC's do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from sfl.transport.frames.wire import (
    CLOUD_SESSION,
    EDGE_FETCH_FILE,
    EDGE_LIST_FILES,
    generic_handler,
)
from sfl.transport.inproc import Channel, Services
from sfl.v1 import cloud_pb2, edge_pb2
from tests.house.waiting import PATIENCE

SOON = 0.05


class Slow:
    """Answers nothing, or one piece and nothing more, and knows when nobody waits any more."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def list_files(self, request: Any, context: Any) -> edge_pb2.FileList:
        if request.device != "quick":
            await self._stand_still("list")
        return edge_pb2.FileList()

    async def fetch_file(self, request: Any, context: Any) -> AsyncIterator[edge_pb2.FileChunk]:
        yield edge_pb2.FileChunk(data=b"a")
        await self._stand_still("fetch")

    async def _stand_still(self, what: str) -> None:
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            self.ended.append(what)
            raise


def called(caller: Callable[[Channel], None]) -> Slow:
    """Who was called, by `caller` on a thread."""

    async def run() -> Slow:
        slow, services = Slow(), Services()
        behaviours: Any = {EDGE_LIST_FILES: slow.list_files, EDGE_FETCH_FILE: slow.fetch_file}
        services.serve("edge", generic_handler(EDGE_LIST_FILES.service, behaviours))
        await asyncio.to_thread(caller, services.channel("edge"))
        await asyncio.sleep(2 * SOON)  # what is over is cancelled on this loop
        return slow

    return asyncio.run(run())


def test_a_call_that_takes_too_long_ends_on_both_sides() -> None:
    def caller(channel: Channel) -> None:
        listing: Any = EDGE_LIST_FILES.stub(channel)  # type: ignore[arg-type]
        with pytest.raises(grpc.RpcError) as caught:
            listing(edge_pb2.FilesRequest(device="d"), timeout=SOON)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    assert called(caller).ended == ["list"]


def test_what_came_in_time_is_there() -> None:
    def caller(channel: Channel) -> None:
        fetching: Any = EDGE_FETCH_FILE.stub(channel)  # type: ignore[arg-type]
        call = fetching(edge_pb2.FileRequest(device="d", name="n"), timeout=SOON)
        assert next(call).data == b"a"
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    assert called(caller).ended == ["fetch"]


def test_a_call_that_is_answered_is_not_ended_afterwards() -> None:
    def caller(channel: Channel) -> None:
        listing: Any = EDGE_LIST_FILES.stub(channel)  # type: ignore[arg-type]
        listing(edge_pb2.FilesRequest(device="quick"), timeout=SOON)

    assert called(caller).ended == []


@pytest.mark.parametrize(("grace", "ended"), [(PATIENCE, "by itself"), (None, "cancelled")])
def test_a_channel_that_is_closed_gives_its_calls_time_to_end(
    grace: float | None, ended: str
) -> None:
    found: list[str] = []

    async def session(requests: AsyncIterator[Any], context: Any) -> None:
        try:
            async for _ in requests:
                pass
            await asyncio.sleep(SOON)
            found.append("by itself")
        except asyncio.CancelledError:
            found.append("cancelled")
            raise

    async def requests() -> AsyncIterator[cloud_pb2.EdgeReportMessage]:
        yield cloud_pb2.EdgeReportMessage(goodbye="done")

    async def run() -> None:
        services = Services()
        services.serve("cloud", generic_handler(CLOUD_SESSION.service, {CLOUD_SESSION: session}))
        channel = services.aio_channel("cloud")
        begin: Any = CLOUD_SESSION.stub(channel)  # type: ignore[arg-type]
        begin(requests())
        await asyncio.sleep(SOON / 2)
        await channel.close(grace)
        await asyncio.sleep(SOON)

    asyncio.run(run())
    assert found == [ended]
