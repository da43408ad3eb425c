"""A server's end of its stream to the stage behind it: what it takes from there."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from sfl.config import NetworkSettings
from sfl.errors import ProtocolError
from sfl.metrics.stats import NodeStats
from sfl.plan import Plan
from sfl.stage.messages import Kind, TensorMessage
from sfl.transport.device.jobs import Jobs
from sfl.transport.stage.link import NextLink
from sfl.transport.stage.once import members_sent
from sfl.v1 import edge_pb2, tensor_pb2
from tests.house.assigned import assigned
from tests.house.shared_stage import Stage

DEEP = Plan.split(6, 1, 0, "three_tier", (2, 4))


def link(side: str) -> NextLink:
    nobody: Any = SimpleNamespace(side=side, device="a")
    stats, network, members = NodeStats("e", "edge"), NetworkSettings(), members_sent()
    own = NextLink(nobody, "stage at x", nobody, (), nobody, stats, network, None, 4, members)
    own._told = assigned(Stage().settings, DEEP, "a", round_=2)
    return own


def part(side: str, round_: int = 2) -> edge_pb2.EdgeMessage:
    header = tensor_pb2.AdapterHeader(side=side, round=round_)
    return edge_pb2.EdgeMessage(adapter=tensor_pb2.AdapterFrame(header=header))


@pytest.mark.parametrize(
    ("at", "side", "round_"),
    [("edge", "device", 2), ("edge", "edge", 2), ("stage", "stage", 2), ("edge", "stage2", 1)],
)
def test_a_part_is_of_who_is_behind_and_of_the_open_round(at: str, side: str, round_: int) -> None:
    with pytest.raises(ProtocolError, match=f"no adapter of side '{side}' is expected"):
        link(at)._take(part(side, round_))


def test_what_a_stage_sends_has_a_bound() -> None:
    """A norm costs the stage a few bytes, and this server a job."""

    async def play() -> None:
        own, jobs = link("edge"), Jobs(4)

        async def compute(message: object) -> None:
            return

        answers: Any = SimpleNamespace(compute=compute)
        own.serve(answers, jobs, answers)
        norm = edge_pb2.EdgeMessage(norm=edge_pb2.GradientNorm(round=2, step=0, squared=1.0))
        with pytest.raises(ProtocolError, match="wait to be served"):
            for _ in range(9):
                own._take(norm)
        jobs.clear()

    asyncio.run(play())


def test_who_share_an_adapter_are_named_once_for_all_of_a_round_s_devices() -> None:
    """A list in each device's start would be the square of them: 1,000 took 15 MB a round."""

    async def play() -> None:
        names = tuple(f"device-{number:05}" for number in range(1000))
        own = link("edge")
        assert own._told is not None
        told = replace(own._told, together=names)
        alone = own._start(replace(told, together=()))
        assert own._start(told).ByteSize() - alone.ByteSize() < 40
        own._told, own._begun = told, asyncio.get_running_loop().create_future()
        own._take(edge_pb2.EdgeMessage(together_wanted=edge_pb2.TogetherWanted()))
        said = await own.stream.outbox.get()
        assert isinstance(said, edge_pb2.DeviceMessage)
        assert tuple(said.together.devices) == names
        own._take(edge_pb2.EdgeMessage(start=own._start(told)))
        assert own._begun.done()
        with pytest.raises(ProtocolError, match="asks who share an adapter, and begins no round"):
            own._take(edge_pb2.EdgeMessage(together_wanted=edge_pb2.TogetherWanted()))

    asyncio.run(play())


def test_an_answer_says_when_what_it_answers_came_to_the_server_before() -> None:
    """In the U-shape that is the device's own gradient, not the rows of which it is."""

    async def play() -> None:
        own, back = link("edge"), list[TensorMessage]()
        coded = asyncio.get_running_loop().create_future()
        own._coders = SimpleNamespace(encoder=SimpleNamespace(submit=lambda *_: coded))  # type: ignore

        async def compute(message: TensorMessage) -> None:
            back.append(message)

        answers: Any = SimpleNamespace(compute=compute, send_back=back.append)
        own.serve(answers, Jobs(4), answers)
        rows = replace(Stage().sent("a", 0), arrived=5.0)
        for sent, answer in (
            (rows, replace(rows, arrived=None)),
            (replace(rows, kind=Kind.GRADIENT, arrived=7.0), replace(rows, kind=Kind.GRADIENT)),
        ):
            own.send(sent)
            decoded = asyncio.get_running_loop().create_future()
            decoded.set_result(replace(answer, arrived=None))
            await own._answer(decoded)
        assert [message.arrived for message in back] == [5.0, 7.0] and not own._arrived

    asyncio.run(play())
