"""An edge with a base in this process, whose cloud is here and whose thread can be held up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc.aio

from edge_server.server import EdgeServer
from sfl.config import EdgeConfig
from sfl.config.node import MetricsSettings
from sfl.models.folder import ModelFolder
from sfl.models.memory.edge_budget import EdgeChoice
from sfl.rounds import messages as rounds
from sfl.rounds.coordinator import Coordinator
from sfl.rounds.values import Admission
from sfl.stage.orders import ORDERS
from sfl.transport.cloud.words import DeviceJoin, EdgeWord, to_edge_report
from sfl.transport.device.decode_slots import DecodeSlots
from sfl.transport.frames.seal import seal
from sfl.transport.frames.wire import EDGE_SESSION, WIRE_VERSION
from sfl.transport.security.credentials import new_server
from sfl.v1 import edge_pb2
from tests.house.sessions import edge
from tests.house.waiting import until_async

NAME = "attic"


PATIENCE = 20.0


QUIET = MetricsSettings(enabled=False)


class Cloud:
    """The real coordinator behind what an edge posts; while it is `mute`, answers wait."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.coordinator = Coordinator(house.settings, 0.0)
        self.told: list[str] = []
        self.answers: list[Admission] = []
        self.mute = False

    def post(self, word: EdgeWord) -> None:
        self.told.append(to_edge_report(word).WhichOneof("body") or "")
        event: rounds.Event
        if isinstance(word, DeviceJoin):
            event = rounds.DeviceJoined(word.device, "edge")
        else:
            assert isinstance(word, rounds.DeviceLost)
            event = word
        for command in self.coordinator.handle(event, 0.0):
            if isinstance(command, rounds.Welcome):
                self.answers.append(Admission(command.device))
            elif isinstance(command, rounds.Refuse):
                self.answers.append(Admission(command.device, command.reason, command.in_use))
        if not self.mute:
            self.answer()

    def answer(self) -> None:
        self.mute = False
        for admission in self.answers:
            asyncio.get_running_loop().call_soon(self.house._on_admission, admission)
        self.answers.clear()

    async def close(self) -> None:
        """There is no connection."""


class House(EdgeServer):
    """An edge with a base over one device, whose cloud is here and whose thread can be held up."""

    def __init__(self) -> None:
        super().__init__(EdgeConfig(cloud="localhost:1"), 1, insecure=True)
        (session,) = edge("llama", "causal_lm", [NAME])
        session.close()
        self.settings, self.model, self.bank = session.settings, session.model, session.blocks.bank
        self.folder = cast(ModelFolder, session.plan)  # which knows the number of layers as well
        self._choice = EdgeChoice((), in_flight=2, credits=2)
        self.slots = DecodeSlots(2, ORDERS["first_come"])
        self._ready.set()
        self.gate = threading.Event()
        self.calls = self.ended = 0
        self.address = ""

    @property
    def kept(self) -> set[str]:
        """Whose LoRA lies in this edge's memory."""
        return {name for slot in self.bank._linear.values() for name in slot.pairs}

    async def hold_up(self) -> None:
        """Have the compute thread in a job until_async the gate opens."""
        begun = threading.Event()

        def job() -> None:
            begun.set()
            assert self.gate.wait(PATIENCE)

        self.busy = asyncio.create_task(self.engine.run(job))
        await until_async(begun.is_set)

    async def let_go(self) -> None:
        """Open the gate, and wait until_async the errands that stand before it are through."""
        self.gate.set()
        await self.busy
        await self.engine.run(int)


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[tuple[House, Cloud]]:
    house = House()
    await house.cloud.close()
    cloud = Cloud(house)
    house.cloud = cast(Any, cloud)
    server = new_server(None)
    server.add_generic_rpc_handlers((house.service.handler(),))
    house.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield house, cloud
    finally:
        house.gate.set()
        await server.stop(0)
        async with asyncio.timeout(PATIENCE):
            await house.service.drain()
        house.service.close()
        house.engine.close()


@contextlib.asynccontextmanager
async def dialled(house: House) -> AsyncIterator[Any]:
    """A device's stream by hand, its hello said."""
    async with grpc.aio.insecure_channel(house.address) as channel:
        call: Any = channel.stream_stream(
            EDGE_SESSION.path,
            request_serializer=lambda message: seal(message.SerializeToString()),
            response_deserializer=edge_pb2.EdgeMessage.FromString,
        )()
        await call.write(
            edge_pb2.DeviceMessage(
                hello=edge_pb2.DeviceHello(device=NAME, wire_version=WIRE_VERSION)
            )
        )
        yield call


def played(scene: Callable[[House, Cloud], Any]) -> None:
    async def play() -> None:
        async with asyncio.timeout(3 * PATIENCE), opened() as (house, cloud):
            await scene(house, cloud)

    asyncio.run(play())
