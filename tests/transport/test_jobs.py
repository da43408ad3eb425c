"""What a device or a stage has asked of a server: bounded, and closed with its stream."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest

from sfl.errors import ProtocolError
from sfl.transport.device.jobs import Jobs


async def nothing() -> None:
    return


@pytest.mark.parametrize("at_once", [False, True])
def test_who_asks_faster_than_it_is_served_is_told_so(at_once: bool) -> None:
    async def play() -> None:
        jobs = Jobs(2)
        for _ in range(3):
            jobs.ask(nothing(), at_once)
        jobs.ask(nothing(), not at_once)  # a lane of its own
        with pytest.raises(ProtocolError, match="3 messages wait"):
            jobs.ask(nothing(), at_once)
        jobs.clear()

    asyncio.run(play())


def test_what_is_asked_once_the_stream_is_over_is_closed() -> None:
    async def play() -> None:
        jobs = Jobs(2)
        jobs.clear()
        jobs.put(nothing())
        jobs.ask(nothing(), at_once=True)
        del jobs
        gc.collect()

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # "was never awaited"
        asyncio.run(play())
