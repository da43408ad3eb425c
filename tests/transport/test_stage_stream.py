"""A device's stream at a stage: what the server before may send, and how much of it waits."""

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
from sfl.transport.stage.served import Carried
from sfl.v1 import edge_pb2, tensor_pb2
from tests.house.shared_stage import PLAN, Stage

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
