"""Devices without a model by the hundred: each a real connection to an edge, on one event loop.

    python -m benchmarks.fleet JOB.json      # started by benchmarks/scale.py, a process for a part

`benchmarks/light.py` gives each device a handful of threads, which is too much for a thousand. Here
a device is one coroutine: the same messages, the same end of the stream (`DeviceEnd`) and the same
reader as of a real device, on gRPC's asyncio channel. Its activation is ready-made. Its part of the
adapter is what the round began with, plus a number of its own (`Part.shift`), so that who has the
average can tell whether every device is in it.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.light import EXAMPLE, Shape, device_shapes
from sfl.codec.kernel import kernel
from sfl.config import RunSettings
from sfl.data.example import DataNotes, Dataset
from sfl.errors import RunFailed
from sfl.metrics.stats import NodeStats
from sfl.node.process import keep_heap, quiet_environment
from sfl.rounds.values import Assignment, DeviceFacts, RoundReport, Score
from sfl.stage.messages import Finish, Key, Purpose, RoundOrder, TensorMessage
from sfl.transport.device.end import DeviceEnd
from sfl.transport.device.reader import Reader
from sfl.transport.frames import contract, words
from sfl.transport.frames.chunks import adapter_frames
from sfl.transport.frames.seal import sound
from sfl.transport.frames.wire import EDGE_SESSION, WIRE_VERSION
from sfl.transport.security.credentials import open_aio_channel
from sfl.transport.status import error_of
from sfl.v1 import edge_pb2, tensor_pb2

AT_ONCE = 16
"""Devices of one process that dial, or that send their part, at the same time."""


@dataclass(frozen=True, slots=True)
class Part:
    """One device: where it dials, and what it adds to each value of its adapter in a round."""

    name: str
    edge: str
    shift: float


@dataclass(frozen=True, slots=True)
class Job:
    """What one process plays, and where it writes what it saw."""

    parts: tuple[Part, ...]
    shape: Shape
    result: str

    @classmethod
    def read(cls, path: Path) -> Job:
        """From the file that `write` left."""
        told = json.loads(path.read_text())
        parts = tuple(Part(**part) for part in told["parts"])
        return cls(parts, Shape(**told["shape"]), told["result"])

    def write(self, path: Path) -> None:
        """For another process."""
        path.write_text(json.dumps(asdict(self)))


@dataclass(slots=True)
class Seen:
    """What a device saw, in Unix seconds: `[round, told, whole, delivered]` of each round.

    `told` is when its assignment was there, `whole` when its part of the adapter was as well, and
    `delivered` when its own part and its report had been given to gRPC.
    """

    device: str
    dialled: float = 0.0
    ready: float = 0.0
    rounds: list[list[float]] = field(default_factory=list)


class Together:
    """What the devices of one process share, so that a thousand of them fit into a machine."""

    def __init__(self) -> None:
        self.dialling = asyncio.Semaphore(AT_ONCE)
        self.delivering = asyncio.Semaphore(AT_ONCE)
        self._latest: RoundOrder | None = None

    def same(self, order: RoundOrder) -> RoundOrder:
        """The order, with the values that another device of this process got of that round.

        Every device has received its own, and they are equal: all have the same cut.
        """
        latest = self._latest
        if latest is None or latest.assignment.round != order.assignment.round:
            self._latest = latest = order
        return replace(order, values=latest.values)


class AsyncDevice:
    """One light device as a coroutine."""

    def __init__(self, part: Part, shape: Shape, together: Together) -> None:
        self.seen = Seen(part.name)
        self._part = part
        self._shape = shape
        self._together = together
        self._stats = NodeStats(part.name, "device")
        self._order: RoundOrder | None = None
        self._step = 0
        self._writing = asyncio.Lock()
        self._inbox: list[Any] = []

    async def run(self) -> None:
        """Take part to the end of the run. Raises RunFailed where it ends badly."""
        async with open_aio_channel("device.edge", self._part.edge, False, role="edge") as channel:
            async with self._together.dialling:
                self.seen.dialled = time.time()
                call = EDGE_SESSION.stub(channel)()
                messages = aiter(call)
                end = await self._join(call, messages)
            await self._serve(call, messages, end)

    async def _say(self, call: Any, message: Any) -> None:
        async with self._writing:
            await call.write(message)

    async def _join(self, call: Any, messages: Any) -> DeviceEnd:
        hello = edge_pb2.DeviceHello(
            device=self._part.name,
            wire_version=WIRE_VERSION,
            compiled_codec=kernel().name == "compiled",
        )
        await self._say(call, edge_pb2.DeviceMessage(hello=hello))
        said = await _welcomed(_sound(messages, self._part.edge))
        end = self._end(said)
        ready = words.to_device_facts(_facts(self._stats))
        await self._say(call, edge_pb2.DeviceMessage(ready=ready))
        self.seen.ready = time.time()
        return end

    def _end(self, welcome: edge_pb2.Welcome) -> DeviceEnd:
        own = words.from_assignment(welcome.assignment)
        settings, shapes = _run(welcome.settings)
        compiled, phases = welcome.compiled_codec, self._stats.phases
        end = DeviceEnd(self._part.name, own, settings, phases, compiled)
        end.expect(lambda told: shapes, self._shape.hidden)
        return end

    async def _serve(self, call: Any, messages: Any, end: DeviceEnd) -> None:
        reader = Reader(end, self._stats, self._keep, begin=self._told)
        beats = asyncio.create_task(self._beat(call, end.settings.network.heartbeat_interval))
        try:
            async for message in _sound(messages, self._part.edge):
                reader.take(message)
                del message  # a thousand would keep their last frames
                while self._inbox:
                    if isinstance(item := self._inbox.pop(0), Finish):
                        await self._leave(call, item)
                        return
                    await self._act(call, end, item)
        finally:
            beats.cancel()
        raise RunFailed(f"{self._part.name}: the edge closed the stream")

    async def _leave(self, call: Any, finish: Finish) -> None:
        await self._say(call, edge_pb2.DeviceMessage(goodbye="done"))
        await call.done_writing()
        if not finish.ok:
            raise RunFailed(finish.reason)

    async def _beat(self, call: Any, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            beat = tensor_pb2.Heartbeat(snapshot=self._stats.snapshot().to_json())
            await self._say(call, edge_pb2.DeviceMessage(heartbeat=beat))

    # -- rounds -----------------------------------------------------------------------------------

    def _told(self, told: Assignment) -> None:
        self.seen.rounds.append([told.round, time.time(), 0.0, 0.0])

    def _keep(self, item: Any) -> None:
        if isinstance(item, RoundOrder):
            self.seen.rounds[-1][2] = time.time()
            item = self._together.same(item)
        self._inbox.append(item)

    async def _act(self, call: Any, end: DeviceEnd, item: Any) -> None:
        if isinstance(item, RoundOrder):
            self._order, self._step = item, 0
        else:
            assert isinstance(item, TensorMessage)
            self._step += 1
        assert self._order is not None
        if self._step < self._order.assignment.steps.count:
            await self._send_activation(call, end, self._order.assignment.round)
        else:
            async with self._together.delivering:
                await self._deliver(call, end, self._order)
            self._order = None

    async def _send_activation(self, call: Any, end: DeviceEnd, round_: int) -> None:
        key = Key(Purpose.TRAINING, round_, self._step, 0)
        for frame in end.encode(_activation(self._shape, key)):
            await self._say(call, frame)

    async def _deliver(self, call: Any, end: DeviceEnd, order: RoundOrder) -> None:
        told = order.assignment
        if told.steps.count:
            for frame in self._update(end, order):
                await self._say(call, edge_pb2.DeviceMessage(adapter=frame))
        report = words.to_report(_report(self._part.name, told, self._shape, self._stats))
        await self._say(call, edge_pb2.DeviceMessage(report=report))
        self.seen.rounds[-1][3] = time.time()

    def _update(self, end: DeviceEnd, order: RoundOrder) -> Iterator[tensor_pb2.AdapterFrame]:
        told, shift = order.assignment, np.float32(self._part.shift)
        part = end.update({name: own + shift for name, own in order.values.items()}, told.round)
        end.reached(end.point(told.steps.count), {})
        header = tensor_pb2.AdapterHeader(
            round=told.round,
            final_step=told.steps.count,
            device=self._part.name,
            side="device",
            scaling=end.scaling,
            codec=part.codec,
        )
        return adapter_frames(header, part.payload)


async def _sound(messages: AsyncIterator[Any], edge: str) -> AsyncIterator[Any]:
    """What the edge says. Raises SflError."""
    try:
        async for message in messages:
            yield sound(message)
    except grpc.aio.AioRpcError as error:
        raise error_of(error, f"edge at {edge}") from None


async def _welcomed(messages: AsyncIterator[Any]) -> edge_pb2.Welcome:
    async for message in messages:
        if message.WhichOneof("body") == "welcome":
            welcome: edge_pb2.Welcome = message.welcome
            return welcome
    raise RunFailed("the edge closed the stream before it said welcome")


def _activation(shape: Shape, key: Key) -> TensorMessage:
    made = _ready_made(shape)
    return TensorMessage(made.kind, key, 1, made.lengths, made.rows, made.labels)


@functools.cache
def _ready_made(shape: Shape) -> TensorMessage:
    return shape.message(Key(Purpose.TRAINING, 0, 0, 0))


@functools.lru_cache(1)
def _run(text: str) -> tuple[RunSettings, Sequence[Sequence[int]]]:
    """The run's settings, and the shapes of a device's part of the adapter.

    Read once in a process: a thousand devices are told the same, and have the same cut.
    """
    settings = contract.run_settings(text)
    return settings, device_shapes(settings, settings.names[0])


def _facts(stats: NodeStats) -> DeviceFacts:
    data = Dataset([EXAMPLE], [EXAMPLE], "label", DataNotes())
    return DeviceFacts(
        num_examples=len(data.train),
        num_eval_examples=len(data.eval),
        example_kind=data.kind,
        layout=data.layout,
        chat_template=data.chat_template,
        snapshot=stats.snapshot().to_json(),
    )


def _report(device: str, told: Assignment, shape: Shape, stats: NodeStats) -> RoundReport:
    return RoundReport(
        round=told.round,
        device=device,
        num_steps=told.steps.count,
        train_loss=0.0,
        num_tokens=told.steps.count * shape.tokens,
        train_seconds=0.0,
        evaluation=Score(1.0, 1, 0, 1),
        evaluation_seconds=0.0,
        snapshot=stats.snapshot(costs=True).to_json(),
    )


async def play(parts: Sequence[Part], shape: Shape) -> list[Seen]:
    """All of them to the end of the run."""
    together = Together()
    devices = [AsyncDevice(part, shape, together) for part in parts]
    async with asyncio.TaskGroup() as group:
        for device in devices:
            group.create_task(device.run())
    return [device.seen for device in devices]


def main(job: Job) -> None:
    """Play one process's devices, and write what they saw."""
    seen = asyncio.run(play(job.parts, job.shape))
    Path(job.result).write_text(json.dumps([asdict(one) for one in seen]))


if __name__ == "__main__":
    quiet_environment()
    keep_heap()
    main(Job.read(Path(sys.argv[1])))
