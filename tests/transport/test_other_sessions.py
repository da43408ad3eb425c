"""A session that trains nothing, over the stream that devices train by: no round, no adapter.

All but the session and its host is real: device's link, service, entrance, stream, codecs, slots,
engine and floor, in this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from edge_server.floor import Floor
from sfl.config import RunSettings
from sfl.errors import ProtocolError, SflError
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.plan import Plan, Toward
from sfl.rounds.assignment import assign
from sfl.rounds.values import Assignment, DeviceWelcome, EdgeBase, Proof
from sfl.stage.engine import Engine
from sfl.stage.messages import Key, Kind, Outgoing, Purpose, TensorMessage
from sfl.stage.orders import ORDERS
from sfl.stage.session import Group, Request, Session
from sfl.transport.device.decode_slots import DecodeSlots
from sfl.transport.device.line import Line
from sfl.transport.device.link import DeviceLink
from sfl.transport.device.served import Admitted, Served
from sfl.transport.device.service import EdgeService
from sfl.transport.inproc import Channel, Services
from sfl.transport.security.signed import DeviceSignatures
from sfl.v1 import edge_pb2, tensor_pb2
from tests.house.waiting import PATIENCE, at_hand, until_async

HIDDEN = 8

SETTINGS = RunSettings.model_validate(
    {
        "model": {"path": "m", "max_length": 16},
        "codec": {"evaluation": "bf16"},
        "network": {"credits": 2},
        "devices": [{"name": "d"}],
    }
)


class Doubling:
    """Answers rows with twice those rows, towards the loss; it knows nothing of a round."""

    steps_left = 1
    idle = True

    def __init__(self, device: str, assignment: Assignment) -> None:
        self.device = device
        self.plan: Plan = assignment.plan
        self.served_seconds = 0.0
        self.closed = False

    def handle(self, message: Request) -> list[Outgoing]:
        assert isinstance(message, TensorMessage) and message.rows is not None
        return [Outgoing(Toward.LOSS, replace(message, rows=2 * message.rows))]

    def group(self, message: Request) -> Group | None:
        return None

    def held(self) -> Mapping[str, torch.Tensor]:
        return {}

    def let_go(self) -> None:
        """It holds nothing."""

    def take_back(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """It holds nothing."""

    def close(self) -> None:
        self.closed = True


class Edge:
    """Lets every device in; nobody is behind it."""

    adapter_limit = 0

    def __init__(self) -> None:
        self.stats = NodeStats("e", "edge")
        self.engine = Engine(1)
        self.slots = DecodeSlots(2, ORDERS["first_come"])
        base: Any = None  # of a model that is not there
        self.floor: Floor[Session] = Floor(base, self.engine, self.slots, Doubling)
        self.service: EdgeService[Served] = EdgeService(self.stats, at_hand(self))
        self.opened: list[Any] = []
        self.ended: list[SflError] = []

    async def admit(self, device: str, proof: Proof, *trips: object) -> Admitted[Served]:
        own = assign(SETTINGS, EdgeBase(3), device)
        session = await self.floor.open(device, own)
        self.opened.append(session)
        serve = partial(Served, device, session, SETTINGS, self)
        return Admitted(DeviceWelcome(SETTINGS, "r", own), HIDDEN, serve)

    async def left(self, device: str, reason: SflError) -> None:
        self.ended.append(reason)
        await self.floor.close(device)

    def heard(self, device: str, snapshot: NodeSnapshot) -> None:
        """Nobody asks."""


def joined(channel: Channel) -> DeviceLink:
    """A device that is let in, and knows how wide rows are."""
    line = Line(channel, "edge", NodeStats("d", "device"))
    link = DeviceLink.join(line, DeviceSignatures("d"), PATIENCE)
    link.expect(lambda told: [], HIDDEN)
    return link


def message(micro_batch: int) -> TensorMessage:
    key = Key(Purpose.EVALUATION, 0, 0, micro_batch)
    rows = torch.arange(5.0 * HIDDEN).reshape(5, HIDDEN) + micro_batch
    return TensorMessage(Kind.ACTIVATION, key, 3, (3, 2), rows)


def served(device: Any) -> Edge:
    """An edge that `device`, a function of a channel to it, was served by on a thread."""

    async def run() -> Edge:
        edge, services = Edge(), Services()
        services.serve("edge", edge.service.handler())
        try:
            await asyncio.to_thread(device, services.channel("edge"))
            await until_async(lambda: bool(edge.ended))
            services.stop("edge")
            await edge.service.drain()
        finally:
            edge.service.close()
            edge.engine.close()
        return edge

    return asyncio.run(run())


def test_a_session_that_trains_nothing_is_served_by_the_same_stream() -> None:
    def device(channel: Channel) -> None:
        link = joined(channel)
        for micro_batch in range(3):
            sent = message(micro_batch)
            link.send(sent)
            answer = link.receive()
            assert isinstance(answer, TensorMessage) and answer.rows is not None
            assert (answer.kind, answer.key) == (Kind.ACTIVATION, sent.key)
            assert torch.equal(answer.rows, 2 * sent.rows)  # small whole numbers: bf16 has them
        link.close()

    edge = served(device)
    (session,) = edge.opened
    assert session.closed and not edge.floor.sessions and not edge.service.streams
    assert session.served_seconds > 0
    assert "done" in str(edge.ended[0])


@pytest.mark.parametrize(
    "said",
    [
        edge_pb2.DeviceMessage(report=tensor_pb2.RoundReport()),
        edge_pb2.DeviceMessage(ready=edge_pb2.DeviceReady()),
        edge_pb2.DeviceMessage(
            adapter=tensor_pb2.AdapterFrame(header=tensor_pb2.AdapterHeader(), last=True)
        ),
    ],
    ids=lambda said: said.WhichOneof("body"),
)
def test_what_only_a_device_that_trains_may_say_ends_it(said: edge_pb2.DeviceMessage) -> None:
    def device(channel: Channel) -> None:
        link = joined(channel)
        link.line.post(said)
        with pytest.raises(ProtocolError, match=f"{said.WhichOneof('body')} was not expected"):
            link.receive()
        link.close()

    assert served(device).opened[0].closed
