"""An edge with a base in this process, whose cloud is here and whose thread can be held up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import grpc.aio

from edge_server.base import Base
from edge_server.beats import Beats
from edge_server.floor import Floor
from edge_server.follower import Follower
from edge_server.host import DeviceHost
from edge_server.training import new_session
from sfl.adapters.manifest import AdapterManifest
from sfl.config import RunSettings
from sfl.config.node import MetricsSettings
from sfl.metrics.stats import NodeStats
from sfl.models.folder import ModelFolder
from sfl.models.memory.edge_budget import EdgeChoice
from sfl.rounds import messages as rounds
from sfl.rounds.assignment import assign
from sfl.rounds.coordinator import Coordinator
from sfl.rounds.values import Admission, EdgeBase
from sfl.stage.engine import Engine
from sfl.stage.orders import ORDERS
from sfl.stage.training import TrainingSession
from sfl.transport.cloud.words import DeviceJoin, EdgeWord, to_edge_report
from sfl.transport.device.decode_slots import DecodeSlots
from sfl.transport.device.service import EdgeService
from sfl.transport.frames.seal import seal
from sfl.transport.frames.wire import EDGE_SESSION, WIRE_VERSION
from sfl.transport.security.credentials import new_server
from sfl.v1 import edge_pb2
from tests.house.sessions import edge
from tests.house.tiny_models import LAYERS
from tests.house.waiting import until_async

NAME = "attic"


PATIENCE = 20.0


QUIET = MetricsSettings(enabled=False)


class Cloud:
    """The real coordinator behind what an edge posts; while it is `mute`, answers wait."""

    def __init__(self, house: House) -> None:
        self.peer = "cloud"
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
                own = assign(self.house.settings, EdgeBase(LAYERS), command.device)
                self.answers.append(Admission(command.device, assignment=own))
            elif isinstance(command, rounds.Refuse):
                self.answers.append(Admission(command.device, command.reason, command.in_use))
        if not self.mute:
            self.answer()

    def answer(self) -> None:
        self.mute = False
        for admission in self.answers:
            asyncio.get_running_loop().call_soon(self.house.host.answer, admission)
        self.answers.clear()


class House:
    """An edge with a base over one device, whose cloud is here and whose thread can be held up."""

    of: ClassVar[WeakKeyDictionary[EdgeService, House]] = WeakKeyDictionary()

    def __init__(self, loaded: bool = True) -> None:
        """Not `loaded`: devices wait for `load`."""
        self.stats = NodeStats("edge", "edge")
        self.engine = Engine(1, ORDERS["first_come"], phases=self.stats.phases)
        (first,) = edge("llama", "causal_lm", [NAME])
        first.close()
        self.base = Base(
            first.settings,
            cast(ModelFolder, first.plan),  # which knows the number of layers as well
            first.model,
            first.blocks.bank,
            EdgeChoice((), in_flight=2, credits=2),
            AdapterManifest((), first.plan.num_layers, {}),
        )
        self.slots = DecodeSlots(2, ORDERS["first_come"])
        self.cloud = Cloud(self)
        self.opened: asyncio.Future[DeviceHost] = asyncio.get_running_loop().create_future()
        self.service = EdgeService(self.stats, self.opened)
        self.follower = Follower(self.service, self.opened, self.cloud, self.stats)
        session = partial(new_session, self.base, self.stats, None)
        self.floor = Floor(self.base, self.engine, self.slots, session)
        cloud = cast(Any, self.cloud)
        beats = Beats(self.stats, cloud, self.service)
        self.host = DeviceHost(self.floor, cloud, beats, self.stats, "r")
        if loaded:
            self.load()
        self.gate = threading.Event()
        self.calls = self.ended = 0
        self.address = ""
        House.of[self.service] = self

    @property
    def settings(self) -> RunSettings:
        return self.base.settings

    @property
    def sessions(self) -> dict[str, TrainingSession]:
        return self.floor.sessions

    @property
    def kept(self) -> set[str]:
        """Whose LoRA lies in this edge's memory."""
        return {name for slot in self.base.bank._linear.values() for name in slot.pairs}

    def load(self) -> None:
        """From now on there is a base."""
        self.opened.set_result(self.host)

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
async def opened(loaded: bool = True) -> AsyncIterator[tuple[House, Cloud]]:
    house = House(loaded)
    cloud = house.cloud
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


def played(scene: Callable[[House, Cloud], Any], loaded: bool = True) -> None:
    async def play() -> None:
        async with asyncio.timeout(3 * PATIENCE), opened(loaded) as (house, cloud):
            await scene(house, cloud)

    asyncio.run(play())
