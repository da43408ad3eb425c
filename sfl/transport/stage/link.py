"""One device's way from a server to the stage behind it, while the device's own stream is open.

    read    takes answers, and has tensors put together and decoded off the loop

and beside it the coroutines of the stream itself. What the server's session sends towards the loss
goes out here without waiting: the server takes its next job. What comes back is one of the jobs of
the device's stream. If either stream ends, both do: the device dials again, and all sides say anew
what they have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import grpc.aio
import numpy as np

from sfl.config.network import NetworkSettings
from sfl.errors import LinkLost, ProtocolError, RunFailed, SflError
from sfl.metrics.stats import NodeStats
from sfl.plan import Toward
from sfl.rounds.values import Assignment, Point
from sfl.stage.messages import GradientNorm, Key, Kind, TensorMessage
from sfl.transport.device import checked
from sfl.transport.device.end import Arrival
from sfl.transport.device.jobs import Jobs
from sfl.transport.device.onward import Answers, Before
from sfl.transport.device.overtaking import Overtaking
from sfl.transport.device.tensor_work import Coders
from sfl.transport.frames import contract, words
from sfl.transport.frames.chunks import adapter_bytes, adapter_frames
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.seal import sound
from sfl.transport.frames.tensors import held_of, raw_bytes
from sfl.transport.frames.wire import STAGE_SESSION, tensor_role, wire_bytes
from sfl.transport.group import aside
from sfl.transport.shaper import Shaper
from sfl.transport.stage.end import NextEnd
from sfl.transport.stage.once import SentOnce
from sfl.transport.status import error_of
from sfl.transport.stream import Heartbeats, Ready, Stream
from sfl.v1 import edge_pb2, tensor_pb2

ALIVE = edge_pb2.DeviceMessage(heartbeat=tensor_pb2.Heartbeat())
MOST_WRITTEN = 2
"""Messages that gRPC has been given, and has not taken yet."""
FEW_WAITING = 16
"""Messages that tell a stage that this server lives as well as a heartbeat would."""


class Opened:
    """A call to a stage on a channel of its own; both end with its owner."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._requests: asyncio.Queue[Any] = asyncio.Queue(MOST_WRITTEN)
        self._call = STAGE_SESSION.stub(channel)(self._written())
        self.messages: AsyncIterator[Any] = aiter(self._call)

    async def write(self, message: Any) -> None:
        """Send a message; waits while the link takes none."""
        await self._requests.put(message)

    async def close(self) -> None:
        """Hang up."""
        self._call.cancel()
        while not self._requests.empty():
            self._requests.get_nowait()
        self._requests.put_nowait(None)
        await self._channel.close(None)

    async def _written(self) -> AsyncIterator[Any]:
        """What gRPC writes; its task for that ends with this, even where the call is over."""
        while (message := await self._requests.get()) is not None:
            yield message


class NextLink:
    """Carries one device's tensors to the stage behind this server, and its answers back."""

    def __init__(
        self,
        opened: Opened,
        peer: str,
        end: NextEnd,
        points: tuple[Point, ...],
        coders: Coders,
        stats: NodeStats,
        network: NetworkSettings,
        shaper: Shaper | None,
        allowed: int,
        members: SentOnce[tuple[str, ...]],
    ) -> None:
        """`points` are what all behind this server have snapshots of, `allowed` the
        micro-batches of the device that may be in flight there, `members` has the names of those
        that share an adapter. The call is this link's from now on."""
        self.credits = allowed
        self.peer = peer
        self.end = end
        self._points = points
        self._opened = opened
        self._coders = coders
        self._stats = stats
        beats = Heartbeats(ALIVE, network.heartbeat_interval, network.idle_timeout, FEW_WAITING)
        self.stream = Stream(peer, Overtaking(), beats, stats.phases, shaper)
        self._host: Before | None = None
        self._jobs: Jobs | None = None
        self._answers: Answers | None = None
        self._begun: asyncio.Future[Assignment] | None = None
        self._told: Assignment | None = None
        self._members = members
        self._arrived: dict[Key, float] = {}
        """When what is under way came to this server, for who is before it."""

    @property
    def points(self) -> tuple[Point, ...]:
        """What this end and all behind it have snapshots of."""
        own = set(self.end.remembered.points)
        return tuple(point for point in self._points if point in own)

    def serve(self, host: Before, jobs: Jobs, answers: Answers) -> None:
        """From now on what comes is done among the device's `jobs`."""
        self._host, self._jobs, self._answers = host, jobs, answers

    def coroutines(self) -> tuple[Coroutine[Any, Any, None], ...]:
        """What is to run while the stream is open."""
        return (self._read(), *self.stream.coroutines(self._opened))

    # -- out --------------------------------------------------------------------------------------

    def send(self, message: TensorMessage | GradientNorm) -> None:
        """Have a message coded off the loop, then sent; returns at once."""
        if isinstance(message, TensorMessage) and message.arrived is not None:
            self._arrived[message.key] = message.arrived
        urgent = isinstance(message, GradientNorm) or message.kind is Kind.GRADIENT
        coded = self._coders.encoder.submit(urgent, self._encode, message)
        coded.add_done_callback(partial(self._coded, urgent))

    async def begin_round(self, told: Assignment, values: Mapping[str, np.ndarray]) -> None:
        """Have all behind this server begin a round; returns once they have.

        Raises SnapshotMissing where this end lacks what the round goes on from.
        """
        await asyncio.to_thread(self.end.begin_round, told)
        self._told, self._arrived = told, {}
        self._begun = asyncio.get_running_loop().create_future()
        self._post(edge_pb2.DeviceMessage(start=self._start(told)))
        payload = await asyncio.to_thread(adapter_bytes, values)
        for frame in adapter_frames(tensor_pb2.AdapterHeader(round=told.round), payload):
            self._post(edge_pb2.DeviceMessage(adapter=frame))
        with self._stats.waits.on(self.peer, "orders", f"it to begin round {told.round}"):
            await self._begun

    def _start(self, told: Assignment) -> edge_pb2.Assignment:
        """A round as a stage is told it: who share its adapter are named where it asks for that."""
        said = words.to_assignment(replace(told, together=()))
        if told.together:
            _, said.together_digest = self._members.text(told.together)
        return said

    def step_over(self, point: Point) -> None:
        """Keep what codecs remember after some steps of a round."""
        self.end.step_over(point)

    def round_over(self, point: Point) -> None:
        """The same at a round's end; returns once it is on the disk."""
        self.end.round_over(point)
        self.end.remembered.written()

    async def close(self) -> None:
        """Hang up, with what is still queued."""
        await self._opened.close()
        await aside(self.end.remembered.written)

    def _post(self, message: edge_pb2.DeviceMessage) -> None:
        self._stats.link.beside(self._stats.phases.now(), self._count("up", message))
        self.stream.outbox.put(message)

    def _count(self, way: Any, message: Any, role: Any = "", raw: int = 0) -> int:
        """Its bytes."""
        body = message.WhichOneof("body")
        role = role or ("adapter" if body == "adapter" else "control")
        size = wire_bytes(message)
        self._stats.stage_bytes.add(way, role, size, raw)
        return size

    def _encode(self, message: TensorMessage | GradientNorm) -> list[Ready]:
        if isinstance(message, GradientNorm):
            norm = edge_pb2.GradientNorm(
                round=message.round,
                step=message.step,
                squared=message.squared,
                before=message.before,
            )
            said = edge_pb2.DeviceMessage(norm=norm)
            self._stats.link.beside(self._stats.phases.now(), self._count("up", said))
            return [Ready(STAGE_SESSION.request_bytes(said))]
        frames = self.end.encode(message)
        assert frames[0].header is not None
        role, raw = tensor_role(frames[0].header), raw_bytes(frames[0].header)
        size = sum(frame.wire_bytes for frame in frames)
        self._stats.link.posted(self._key(message), self._stats.phases.now(), size)
        for frame in frames:
            self._count("up", frame, role, raw)
            raw = 0
        return [Ready(STAGE_SESSION.request_bytes(frame), message.key) for frame in frames]

    def _coded(self, urgent: bool, coded: asyncio.Future[list[Ready]]) -> None:
        if coded.cancelled():
            return
        if (error := coded.exception()) is not None:
            self.stream.outbox.fail(error)
            return
        for frame in coded.result():
            self.stream.outbox.put(frame, urgent)

    # -- in ---------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            await self.stream.read(self._messages(), self._take)
        except grpc.aio.AioRpcError as error:
            raise _as_ours(error_of(error, self.peer)) from None
        raise LinkLost(f"{self.peer} closed the stream")

    async def _messages(self) -> AsyncIterator[edge_pb2.EdgeMessage | Frame]:
        async for message in self._opened.messages:
            yield sound(message, self.peer)

    def _take(self, message: edge_pb2.EdgeMessage | Frame) -> None:
        if isinstance(message, Frame):
            self._take_frame(message)
            return
        self._count("down", message)
        take: Callable[[edge_pb2.EdgeMessage], None] | None = {
            "start": self._on_begun,
            "together_wanted": self._on_members_wanted,
            "adapter": self._on_adapter,
            "norm": self._on_norm,
            "heartbeat": self._on_heartbeat,
        }.get(message.WhichOneof("body") or "")
        if take is None:
            raise ProtocolError(f"{self.peer}: {message.WhichOneof('body')} was not expected")
        take(message)

    def _take_frame(self, frame: Frame) -> None:
        header = self.end.header_of(frame)
        if header is not None:
            raw = raw_bytes(header) if frame.header is not None else 0
            self._count("down", frame, tensor_role(header), raw)
        arrival = self.end.take_frame(frame, self._stats.phases.now())
        if arrival is not None:
            at_once = arrival.kind is Kind.GRADIENT
            decoded = self._coders.decoder.submit(at_once, self._decode, arrival)
            self._do(self._answer(decoded))

    def _decode(self, arrival: Arrival) -> TensorMessage:
        message = self.end.decode(arrival)
        if (held := held_of(arrival.header)) is not None:
            sent, size = self._key(message), arrival.num_bytes
            self._stats.link.answered(sent, arrival.ended, size, held)
        return message

    def _key(self, message: TensorMessage) -> tuple[str, Key]:
        """What an answer has in common with what it answers, among those of all devices."""
        return self.end.device, message.key

    def _on_norm(self, message: edge_pb2.EdgeMessage) -> None:
        assert self._answers is not None, "a link is served before it is read"
        self._do(self._answers.compute(checked.gradient_norm(message.norm, Toward.INPUT)))

    def _on_begun(self, message: edge_pb2.EdgeMessage) -> None:
        said = words.from_assignment(message.start)
        due, told = self._begun, self._told
        if due is None or due.done() or told is None or said != replace(told, together=()):
            raise ProtocolError(f"{self.peer} began round {said.round}, which was not due")
        due.set_result(said)

    def _on_members_wanted(self, message: edge_pb2.EdgeMessage) -> None:
        due, told = self._begun, self._told
        if due is None or due.done() or told is None:
            raise ProtocolError(f"{self.peer} asks who share an adapter, and begins no round")
        said = edge_pb2.Together(devices=told.together)
        self._post(edge_pb2.DeviceMessage(together=said))

    def _on_heartbeat(self, message: edge_pb2.EdgeMessage) -> None:
        assert self._host is not None, "a link is served before it is read"
        if message.heartbeat.snapshot:
            self._host.stage_heard(contract.stage_statistics(message.heartbeat.snapshot))

    def _on_adapter(self, message: edge_pb2.EdgeMessage) -> None:
        frame, told = message.adapter, self._told
        if frame.HasField("header"):
            self._check_part(frame.header, told)
        whole = self.end.put_together(frame)
        if whole is not None:
            assert self._host is not None, "a link is served before it is read"
            header, payload = whole
            header.device = self.end.device
            said = words.from_update_header(header)
            self._do(self._host.relay_adapter(said, payload))

    def _check_part(self, header: tensor_pb2.AdapterHeader, told: Assignment | None) -> None:
        """A part is of somebody behind this server, and of the round that is open."""
        behind = () if told is None else told.plan.behind(self.end.side)
        if told is None or header.side not in behind or header.round != told.round:
            raise ProtocolError(f"{self.peer}: no adapter of side {header.side!r:.40} is expected")

    async def _answer(self, decoded: asyncio.Future[TensorMessage]) -> None:
        """A gradient is this server's to go on with; all else is for who is before it. Its link
        is timed by when this server had what is answered."""
        assert self._answers is not None, "a link is served before it is read"
        message = await decoded
        message = replace(message, arrived=self._arrived.pop(message.key, None))
        if message.kind is Kind.GRADIENT:
            await self._answers.compute(message)
        else:
            self._answers.send_back(message)

    def _do(self, job: Coroutine[Any, Any, None]) -> None:
        assert self._jobs is not None, "a link is served before it is read"
        self._jobs.ask(job, at_once=True)


def _as_ours(error: SflError) -> SflError:
    """A stage that fails may be back: the device is to dial again, and all go on from there."""
    return LinkLost(str(error)) if isinstance(error, RunFailed) else error
