"""A device's stream at a stage: what the server before may send, how much of it waits, and who
shares its adapter."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sfl.errors import ProtocolError
from sfl.metrics.stats import NodeStats
from sfl.rounds.values import Assignment
from sfl.transport.device.end import ServingEnd
from sfl.transport.device.jobs import Jobs
from sfl.transport.frames import words
from sfl.transport.frames.chunks import adapter_bytes, adapter_frames
from sfl.transport.stage.members import Members, Names
from sfl.transport.stage.once import ReadOnce, digest, members_read
from sfl.transport.stage.served import Carried
from sfl.v1 import edge_pb2, tensor_pb2
from tests.house.shared_stage import NAMES, PLAN, Stage

VALUES = adapter_bytes({"x": np.zeros(500, np.float32)})


def carried() -> tuple[Carried, Assignment]:
    """A stream whose jobs nobody does, and a round for it."""
    stage = Stage()
    told = stage.told("a")
    stats = NodeStats("s", "stage")
    end = ServingEnd("stage", "a", told, stage.settings, stats.phases, True, None, None, "edge")
    end.allow(32, 1 << 20)
    own = Carried.__new__(Carried)
    own.end, own.jobs, own.settings = end, Jobs(24), stage.settings
    own._told, own._begins = None, False
    session: Any = SimpleNamespace(plan=PLAN)
    own.session = session
    return own, told


def announce(own: Carried, told: Assignment) -> None:
    own.take(edge_pb2.DeviceMessage(start=words.to_assignment(told)), "start")


def send(own: Carried, round_: int) -> None:
    for frame in adapter_frames(tensor_pb2.AdapterHeader(round=round_), VALUES):
        own.take(edge_pb2.DeviceMessage(adapter=frame), "adapter")


def test_a_round_begins_once_and_one_adapter_waits_for_it() -> None:
    async def play() -> None:
        own, told = carried()
        with pytest.raises(ProtocolError, match="an adapter came that was not announced"):
            send(own, told.round)
        announce(own, told)
        send(own, told.round)
        with pytest.raises(ProtocolError, match="an adapter came that was not announced"):
            send(own, told.round)
        with pytest.raises(ProtocolError, match="round 1 was announced before round 1 had begun"):
            announce(own, told)
        assert own.jobs._lane.qsize() == 1
        own.jobs.clear()

    asyncio.run(play())


def test_an_adapter_is_of_the_round_that_was_announced() -> None:
    async def play() -> None:
        own, told = carried()
        announce(own, told)
        with pytest.raises(ProtocolError, match="an adapter of round 2 was not announced"):
            send(own, 2)

    asyncio.run(play())


# -- who shares the stage's adapter -------------------------------------------------------------


class Stream:
    """What one stream of a server knows of who shares, and what it has asked."""

    def __init__(self, server: str, known: ReadOnce[Names]) -> None:
        stage, self.asked = Stage(), list[edge_pb2.EdgeMessage]()
        waits = NodeStats("s", "stage").waits
        self.members = Members(server, stage.settings, known, waits, self.asked.append)
        self.start = words.to_assignment(stage.told("a"))
        del self.start.together[:]
        self.start.together_digest = digest("\n".join(NAMES))
        self.told = asyncio.create_task(self.members.told(self.start))

    def name(self, *names: str) -> None:
        self.members.take(edge_pb2.Together(devices=names))


async def several(count: int = 3, server: str = "north") -> list[Stream]:
    known = members_read()
    streams = [Stream(server, known) for _ in range(count)]
    await asyncio.sleep(0.01)
    return streams


def test_one_stream_of_a_server_is_asked_who_shares_and_all_have_one_object() -> None:
    async def play() -> None:
        streams = await several()
        assert [len(stream.asked) for stream in streams] == [1, 0, 0]
        wanted = streams[0].asked[0].together_wanted
        assert wanted.digest == streams[0].start.together_digest
        streams[0].name(*NAMES)
        told = await asyncio.gather(*(stream.told for stream in streams))
        assert told[0] == Stage().told("a")
        assert len({id(own.together) for own in told}) == 1
        with pytest.raises(ProtocolError, match="not asked for"):
            streams[1].name(*NAMES)

    asyncio.run(play())


def test_another_stream_is_asked_where_the_first_breaks() -> None:
    async def play() -> None:
        first, *others = await several()
        first.told.cancel()
        await asyncio.sleep(0.01)
        assert [len(stream.asked) for stream in others] == [1, 0]
        others[0].name(*NAMES)
        told = await asyncio.gather(*(stream.told for stream in others))
        assert [own.together for own in told] == [NAMES, NAMES]

    asyncio.run(play())


@pytest.mark.parametrize(
    ("names", "problem"),
    [(("a", "z"), "none of the run's"), (("a",), "others than were announced")],
)
def test_names_that_were_not_announced_are_refused(names: Names, problem: str) -> None:
    async def play() -> None:
        (stream,) = await several(1)
        with pytest.raises(ProtocolError, match=problem):
            stream.name(*names)
            await stream.told
        stream.told.cancel()

    asyncio.run(play())
