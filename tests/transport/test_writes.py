"""A stream that ends lets the message out that is on its way: else it takes no status."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from sfl.errors import ProtocolError
from sfl.metrics.stats import NodeStats
from sfl.transport.cloud.outbox import Outbox
from sfl.transport.group import Writes, run_together
from sfl.transport.jobs.mail import Mail, write
from sfl.transport.stream import Heartbeats, Stream
from sfl.v1 import cloud_pb2, jobs_pb2

WORD = cloud_pb2.CloudMessage()


class Slow:
    """What a servicer writes to; each message takes a moment."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.said: list[str] = []
        self.begun = asyncio.Event()

    async def write(self, message: Any) -> None:
        self.begun.set()
        try:
            await asyncio.sleep(self.seconds)
            self.said.append("whole")
        except asyncio.CancelledError:
            self.said.append("cut")
            raise


def of_a_stream(context: Any) -> tuple[Coroutine[Any, Any, None], ...]:
    stream = Stream(
        "e", Outbox(1, 2), Heartbeats(WORD, 60.0, 60.0, 1), NodeStats("e", "edge").phases
    )
    stream.outbox.put(WORD)
    return stream.coroutines(context)


def of_an_agent(context: Any) -> tuple[Coroutine[Any, Any, None], ...]:
    mail: Mail[jobs_pb2.ServiceMessage] = Mail()
    mail.post(jobs_pb2.ServiceMessage())
    return (write(mail, context),)


@pytest.mark.parametrize("writes", [of_a_stream, of_an_agent])
def test_what_is_being_written_is_not_cut(
    writes: Callable[[Any], tuple[Coroutine[Any, Any, None], ...]],
) -> None:
    async def story() -> None:
        context = Slow(0.05)

        async def reads() -> None:
            await context.begun.wait()
            raise ProtocolError("that was not due")

        with pytest.raises(ProtocolError, match="not due"):
            await run_together(*writes(context), reads())
        assert context.said == ["whole"]

    asyncio.run(story())


def test_who_takes_nothing_is_not_waited_for_for_long() -> None:
    async def story() -> None:
        context, writes = Slow(60.0), Writes(patience=0.02)
        task = asyncio.ensure_future(writes.whole(partial(writes.one, context, WORD)))
        await context.begun.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() and context.said == ["cut"]

    asyncio.run(story())


def test_nothing_more_is_said_by_a_stream_that_ends() -> None:
    async def story() -> None:
        context, writes = Slow(0.02), Writes()

        async def work() -> None:
            while True:
                await writes.one(context, WORD)

        task = asyncio.ensure_future(writes.whole(work))
        await context.begun.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() and context.said == ["whole"]

    asyncio.run(story())


def test_what_breaks_a_write_is_raised() -> None:
    class Broken:
        async def write(self, message: Any) -> None:
            raise ProtocolError("it broke")

    async def story() -> None:
        writes = Writes()
        await writes.whole(partial(writes.one, Broken(), WORD))

    with pytest.raises(ProtocolError, match="it broke"):
        asyncio.run(story())
