"""`edge.in_flight`: how many activations lie decoded on an edge, over all of its devices."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from test_engine import edge, messages

from sfl.stage.engine import Engine
from sfl.stage.messages import Key, Purpose, TensorMessage
from sfl.stage.session import Session
from sfl.transport.cut import Cut
from sfl.transport.edge_service import EdgeService
from sfl.transport.frames import encode_tensor
from sfl.transport.wire import WIRE_VERSION
from sfl.v1 import edge_pb2

ROOM = 2


class Device:
    """A device's end of a stream without a socket: two micro-batches, when it is told to."""

    def __init__(self, session: Session, sent: list[TensorMessage]) -> None:
        self.session, self._sent = session, sent
        self.go = asyncio.Event()
        self.heard: list[Any] = []
        self.stream: asyncio.Task[None]

    async def requests(self) -> AsyncIterator[Any]:
        name, settings = self.session.device, self.session.settings
        yield edge_pb2.DeviceMessage(
            hello=edge_pb2.DeviceHello(device=name, wire_version=WIRE_VERSION)
        )
        await self.go.wait()
        cut = Cut("device", name, settings.run.seed, peer_compiled=True)
        cut.begin_round(settings.codecs(name, 1), 1)
        for message in self._sent:
            for frame in encode_tensor(message, cut.encode(message)):
                yield frame
        await asyncio.Event().wait()  # it stays

    async def write(self, message: Any) -> None:
        self.heard.append(message)

    async def abort(self, code: Any, details: str) -> None:
        raise AssertionError(f"{self.session.device}: {details}")


class Floor:
    """An edge whose compute thread stands behind a gate, and its devices."""

    def __init__(self, count: int) -> None:
        codec = {"activation": "none", "gradient": "none"}
        names = [f"d{number}" for number in range(count)]
        sessions = edge("llama", "causal_lm", names, codec=codec)
        self.stats = sessions[0].stats
        self.engine = Engine(1)
        self.room = asyncio.Semaphore(ROOM)
        self.service = EdgeService(self)  # type: ignore[arg-type]
        hidden = sessions[0].model.hidden_size
        self.devices = {
            session.device: Device(
                session,
                [
                    replace(
                        messages("causal_lm", hidden, 3)[micro],
                        key=Key(Purpose.TRAINING, 1, 0, micro),
                        num_micro_batches=2,
                        normalizer=9,
                    )
                    for micro in range(2)
                ],
            )
            for session in sessions
        }

    async def admit(self, name: str) -> tuple[edge_pb2.Welcome, Session, Any]:
        session = self.devices[name].session
        return edge_pb2.Welcome(), session, session.settings

    async def left(self, name: str, reason: str) -> None:
        """Nothing is kept here."""

    @property
    def decoded(self) -> int:
        """Activations that were decoded so far."""
        phases = self.stats.phases.snapshot()
        return phases["decode"].count if "decode" in phases else 0

    async def open(self) -> None:
        """Every device's stream, in a round."""
        for name, device in self.devices.items():
            session: Any = self.service._session(device.requests(), device)  # type: ignore[arg-type]
            device.stream = asyncio.create_task(session)
            await until(lambda name=name: name in self.service.streams)  # type: ignore[misc]
            codecs = device.session.settings.codecs(name, 1).model_dump_json()
            start = edge_pb2.RoundStart(round=1, num_steps=5, total_steps=5, codecs=codecs)
            mine = device.session.adapter.state()
            self.service.streams[name].begin_round(start, mine, {})
            await until(lambda device=device: len(device.heard) > 1)  # type: ignore[misc]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60.0):
        while not condition():
            await asyncio.sleep(0.002)


async def settled() -> None:
    """Long enough for a tiny tensor to be decoded, if anybody were to."""
    for _ in range(50):
        await asyncio.sleep(0.002)


def test_what_lies_decoded_over_all_devices_is_bounded_and_given_back() -> None:
    async def scene() -> None:
        floor, gate = Floor(3), threading.Event()
        try:
            await floor.open()
            held = asyncio.create_task(floor.engine.run(gate.wait, 60.0))
            for arrived, device in enumerate(floor.devices.values(), 1):
                device.go.set()
                await until(lambda arrived=arrived: floor.stats.queue_depth == 2 * arrived)  # type: ignore[misc]
            await until(lambda: floor.decoded >= ROOM)
            await settled()
            assert floor.decoded == ROOM  # of six that have arrived
            first, second, third = floor.devices.values()
            first.stream.cancel()  # both places were its own
            with contextlib.suppress(asyncio.CancelledError, AssertionError):
                await first.stream
            await until(lambda: floor.decoded >= 2 * ROOM)
            await settled()
            assert floor.decoded == 2 * ROOM
            gate.set()
            await held
            await until(lambda: floor.stats.queue_depth == 0)
            assert floor.decoded == 6
            assert (first.session.step, second.session.step, third.session.step) == (0, 1, 1)
            assert not floor.room.locked()
            for _ in range(ROOM):
                await floor.room.acquire()
            assert floor.room.locked()  # every place came back, and no more than there are
            for device in (second, third):
                device.stream.cancel()
                with contextlib.suppress(asyncio.CancelledError, AssertionError):
                    await device.stream
        finally:
            gate.set()
            floor.engine.close()
            floor.service.close()

    asyncio.run(scene())
