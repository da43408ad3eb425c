"""One device's open stream at its edge, as a group of coroutines: bytes only.

    reader   takes messages, puts frames together, has tensors decoded off the loop
    worker   hands decoded messages to the compute thread, in the order they came
    lander   the same for gradients, which wait for no activation
    writer   sends what is ready, frame by frame; gradients overtake
    beat     tells the device that the edge lives, and watches the idle timeout

Tensors and adapters become bytes on threads; of what arrives the loop reads a frame's header and
makes views of the rest. Bytes are counted by the end that opens a link, so the device counts these.

A message that breaks the contract closes its own stream with a status that says why; the other
devices go on.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import grpc
import grpc.aio
import numpy as np

from sfl.adapters.names import belongs_to, is_lora_a
from sfl.config import RunSettings
from sfl.errors import AdapterRefused, FellSilent, LinkLost, ProtocolError, SflError
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.metrics.timeline import spans_to_json
from sfl.rounds.values import (
    DeviceFacts,
    DeviceWelcome,
    Proof,
    RoundReport,
    RoundStart,
    UpdateHeader,
)
from sfl.stage.engine import Engine
from sfl.stage.messages import GradientNorm, Key, Kind, TensorMessage
from sfl.stage.orders import Waiting
from sfl.stage.session import Reply
from sfl.stage.training import TrainingSession
from sfl.transport.bulk.files import FileEntry
from sfl.transport.device import checked
from sfl.transport.device.decode_slots import DecodeSlots
from sfl.transport.device.end import Arrival, EdgeEnd
from sfl.transport.device.shaper import Shaper, shaper
from sfl.transport.device.urgency import CodecThread
from sfl.transport.frames import contract, words
from sfl.transport.frames.chunks import (
    Buffer,
    adapter_bytes,
)
from sfl.transport.frames.contract import DeviceContract
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.wire import EDGE_SESSION, wire_bytes
from sfl.v1 import edge_pb2, tensor_pb2

Context = grpc.aio.ServicerContext[Any, Any]

MOST_JOBS = 16
"""What may wait beside a device's tensors: the parts of a round's end and begin, and norms."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A message's bytes as gRPC takes them, and whose tensor's they are, if any's."""

    data: bytes
    place: Key | None = None
    answers: bool = False
    """Whether a device's tensor is answered once this is out: the last frame of one."""


Outgoing = edge_pb2.EdgeMessage | Ready


class Host(Protocol):
    """What the edge's shell does for a device's stream."""

    stats: NodeStats
    engine: Engine
    slots: DecodeSlots
    """For the activations that may lie decoded on this edge, over all devices."""
    adapter_limit: int
    """Most bytes of an adapter of this run."""

    async def loaded(self) -> None:
        """Wait until there is a base: nobody is admitted before."""

    async def admit(self, device: str, proof: Proof) -> tuple[DeviceWelcome, TrainingSession]:
        """Ask the cloud, make a session. Raises Refused where the cloud says no."""

    def ready(self, device: str, facts: DeviceFacts) -> None:
        """The device has its span and its data."""

    async def left(self, device: str, reason: SflError) -> None:
        """The device was admitted, and is gone; its session is given back, where it has one."""

    async def relay_adapter(self, header: UpdateHeader, payload: Buffer) -> None:
        """Pass a device's or the edge's part on to the cloud."""

    def relay_report(self, report: RoundReport) -> None:
        """Pass a report on to the cloud."""

    def heard(self, device: str, snapshot: NodeSnapshot) -> None:
        """Keep a device's latest statistics."""

    async def files(self, device: str) -> Sequence[FileEntry]:
        """The files of a device's span. Raises Refused."""

    def read_file(self, device: str, name: str, offset: int) -> AsyncIterator[bytes]:
        """One of them from `offset` on, in chunks. Raises Refused."""


@dataclass(slots=True, eq=False)
class DeviceStream:
    """One device's open stream, its session, and what is under way for it."""

    device: str
    session: TrainingSession
    settings: RunSettings
    host: Host
    encoder: CodecThread
    decoder: CodecThread
    end: EdgeEnd
    jobs: asyncio.Queue[Awaitable[None]] = field(default_factory=asyncio.Queue)
    gradients: asyncio.Queue[Awaitable[None]] = field(default_factory=asyncio.Queue)
    outbox: asyncio.PriorityQueue[Queued] = field(default_factory=asyncio.PriorityQueue)
    arrivals: asyncio.Queue[tuple[float, Outgoing]] = field(default_factory=asyncio.Queue)
    shaper: Shaper | None = None
    last_heard: float = field(default_factory=time.monotonic)
    is_ready: bool = False
    """Whether the device has its span; before, no adapter and no sum is due."""
    stacks: int = 0
    """How many rounds' sums the device has been sent for its base."""
    _contract: DeviceContract = field(init=False)
    _beats: contract.Pace = field(init=False)
    _answered: float | None = None
    _turnaround: float = 0.0
    ended: SflError | None = None
    _number: Iterator[int] = field(default_factory=itertools.count)
    moved: int = 0
    """Messages from the device, and to it as the link took them, heartbeats apart."""
    _decoding: set[asyncio.Future[TensorMessage]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._contract = DeviceContract(self.device, self.settings)
        self._beats = contract.Pace(self.settings.network.heartbeat_interval)
        self.shaper = shaper(self.settings.device(self.device).link, "down")

    def _queue_job(self, job: Coroutine[Any, Any, None]) -> None:
        """Queue what the device asked for, unless it asks faster than it is served."""
        if self.jobs.qsize() > 2 * self.end.credits.count + MOST_JOBS:
            job.close()
            raise ProtocolError(f"{self.jobs.qsize()} messages wait to be served")
        self.jobs.put_nowait(job)

    def _queue_out(self, item: Outgoing | BaseException, urgent: bool = False) -> None:
        self.outbox.put_nowait(Queued(not urgent, next(self._number), item))

    # -- called by the host ---------------------------------------------------------------------

    def begin_round(
        self,
        start: RoundStart,
        mine: Mapping[str, np.ndarray],
        theirs: Mapping[str, np.ndarray],
    ) -> None:
        """Load the edge's part, then send the device its own."""
        self.jobs.put_nowait(self._begin_round(start, mine, theirs))

    def fold(
        self, round_: int, theirs: Mapping[str, np.ndarray], folded: asyncio.Task[None]
    ) -> None:
        """Send the device its part of what `round_` gave, unless it has that or lacks the one
        before; `folded` is done once the edge's base has it."""
        if round_ == self.stacks + 1:
            self.stacks = round_
            self.jobs.put_nowait(self._fold(round_, theirs, folded))

    def finish(self, ok: bool, reason: str) -> None:
        """Tell the device that the run is over; it then closes the stream.

        One whose stream is being closed is told why that is, and nothing else.
        """
        if self.ended is None:
            self.post(edge_pb2.EdgeMessage(finish=edge_pb2.Finish(ok=ok, reason=reason)))

    def post(self, message: edge_pb2.EdgeMessage) -> None:
        """Queue one message for the device."""
        self._queue_out(message)

    # -- the coroutines ---------------------------------------------------------------------------

    async def read(self, requests: AsyncIterator[edge_pb2.DeviceMessage | Frame]) -> None:
        """Take what the device sends, until it says goodbye."""
        self.host.slots.enter(self)
        async for message in requests:
            self.last_heard = time.monotonic()
            self.moved += not _is_heartbeat(message)
            if isinstance(message, Frame):
                self._take_tensor(message)
                continue
            if message.WhichOneof("body") == "goodbye":
                kind = AdapterRefused if message.cannot_compute else Goodbye
                raise kind(contract.reason(message.goodbye))
            self._take(message)
        raise LinkLost("the device closed the stream")

    async def work(self) -> None:
        """Run jobs in the order they came."""
        while True:
            await (await self.jobs.get())

    async def land(self) -> None:
        """Run the jobs of gradients, in the order they came, beside all others."""
        while True:
            await (await self.gradients.get())

    async def write(self, context: Context) -> None:
        """Send what is ready, in order, gradients first; at the link's pace where it has one.

        Raises what coding an answer raised.
        """
        while True:
            item = (await self.outbox.get()).item
            if isinstance(item, BaseException):
                raise item
            await self._write(item, context)

    async def _write(self, message: Outgoing, context: Context) -> None:
        begin = self.host.stats.phases.now()
        if self.shaper is None:
            await self._put(message, context)
        else:
            await self._pace(message, self.shaper)
        if isinstance(message, Ready) and message.place is not None:
            phases = self.host.stats.phases
            phases.span("send", message.place, self.device, begin, "link-writer")

    async def _pace(self, message: Outgoing, shaper: Shaper) -> None:
        size = len(message.data) if isinstance(message, Ready) else wire_bytes(message)
        free, arrives = shaper.admit(time.monotonic(), size)
        self.arrivals.put_nowait((arrives, message))
        await asyncio.sleep(free - time.monotonic())

    async def deliver(self, context: Context) -> None:
        """A shaped link's delay line."""
        while True:
            arrives, message = await self.arrivals.get()
            await asyncio.sleep(arrives - time.monotonic())
            await self._put(message, context)

    async def _put(self, message: Outgoing, context: Context) -> None:
        await context.write(_for_grpc(message))
        self.moved += not _is_heartbeat(message)
        if isinstance(message, Ready) and message.answers:
            self.end.credits.sent()

    async def beat(self) -> None:
        """Heartbeats out; too long a silence ends the stream."""
        network = self.settings.network
        alive = edge_pb2.EdgeMessage(heartbeat=tensor_pb2.Heartbeat())
        while True:
            await asyncio.sleep(network.heartbeat_interval)
            silent = time.monotonic() - self.last_heard
            if silent > network.idle_timeout:
                raise FellSilent(f"not a byte for {silent:.0f} s")
            if self.outbox.qsize() + self.arrivals.qsize() < MOST_JOBS:  # else it hears of those
                self.post(alive)

    # -- messages ---------------------------------------------------------------------------------

    def _take(self, message: edge_pb2.DeviceMessage) -> None:
        body = message.WhichOneof("body")
        if body == "adapter":
            self._take_adapter(message.adapter)
        elif body == "norm":
            self._queue_job(self._compute(checked.gradient_norm(message.norm)))
        elif body == "heartbeat":
            self._beats.take("heartbeat", self.last_heard)
            self._hear(self._contract.statistics(message.heartbeat.snapshot))
        elif body == "report":
            self._take_report(message.report)
        elif body == "ready":
            self._hear(self._contract.ready(message.ready))
            self.is_ready = True
            self.host.ready(self.device, words.from_device_facts(message.ready))
        else:
            raise ProtocolError(f"{body or 'an empty message'} was not due")

    def _take_report(self, report: tensor_pb2.RoundReport) -> None:
        report.device = self.device
        spans = self.host.stats.phases.timeline.take(self.device)
        report.edge_spans = spans_to_json(spans)
        self._hear(self._contract.report(report))
        self.host.relay_report(words.from_report(report))

    def _hear(self, snapshot: NodeSnapshot) -> None:
        self.host.heard(self.device, snapshot)

    def _take_tensor(self, frame: Frame) -> None:
        arrival = self.end.take_frame(frame, self.host.stats.phases.now())
        if arrival is None:
            return
        if arrival.header.kind == tensor_pb2.TENSOR_KIND_ACTIVATION:
            self._note_turnaround()
        self.host.stats.queue_depth += 1
        urgent = arrival.header.kind == tensor_pb2.TENSOR_KIND_GRADIENT
        decoded = asyncio.ensure_future(self._decode_in_turn(arrival, at_once=urgent))
        self._decoding.add(decoded)
        decoded.add_done_callback(self._decoded)
        lane = self.gradients if urgent else self.jobs
        lane.put_nowait(self._compute_when(decoded, at_once=urgent))

    def _decoded(self, task: asyncio.Future[TensorMessage]) -> None:
        """Whoever waits for it gets it; once the stream is over nobody does, error or not."""
        self._decoding.discard(task)
        if not task.cancelled():
            task.exception()

    async def _decode_in_turn(self, arrival: Arrival, at_once: bool) -> TensorMessage:
        """Decode off the loop, once an activation has a slot on this edge.

        The first of a device has its slot before those behind. Gradients need none: what they
        answer was let in, and they never wait for a slot that only they can free.
        """
        if not at_once:
            await self.host.slots.take(self)
        return await self.decoder.submit(at_once, self.end.decode, arrival)

    def waiting(self, number: int) -> Waiting:
        """What this edge's order goes by, of an activation that has arrived."""
        return Waiting(number, self.device, self._tail_seconds(), self.session.served_seconds)

    def _served(self) -> None:
        self.end.credits.computed()
        self.host.stats.queue_depth -= 1

    async def abandon(self) -> None:
        """Give back what a stream that has ended still holds."""
        for lane in (self.jobs, self.gradients):
            while not lane.empty():
                job = lane.get_nowait()
                if asyncio.iscoroutine(job):
                    job.close()
        decoding = list(self._decoding)
        for future in decoding:
            future.cancel()
        await asyncio.gather(*decoding, return_exceptions=True)
        self.host.slots.leave(self)
        while self.end.credits.waiting:
            self._served()

    async def _compute_when(self, decoded: Awaitable[TensorMessage], at_once: bool) -> None:
        message = await decoded
        try:
            await self._compute(message)
        finally:
            if not at_once:
                self.host.slots.give_back(self)
        self._served()

    async def _compute(self, message: TensorMessage | GradientNorm) -> None:
        replies = await self.host.engine.serve(self.session, message, self._tail_seconds())
        self._answered = time.monotonic()
        self._send(replies)

    def _send(self, replies: Sequence[Reply]) -> None:
        """Have answers coded off the loop, then sent."""
        self.end.answered(replies)
        for reply in replies:
            # A norm stays behind the gradient that it comes with.
            urgent = isinstance(reply, GradientNorm) or reply.kind is Kind.GRADIENT
            coded = self.encoder.submit(urgent, self._encode, reply)
            coded.add_done_callback(partial(self._coded, urgent))

    def _coded(self, urgent: bool, coded: asyncio.Future[list[Ready]]) -> None:
        """Queue an answer's frames, each by itself; threads end them in the order they go out."""
        if coded.cancelled():
            return
        if (error := coded.exception()) is not None:
            self._queue_out(error, urgent=True)
            return
        for frame in coded.result():
            self._queue_out(frame, urgent)

    def _tail_seconds(self) -> float:
        """What the device has yet to do in this round once it has its answer."""
        start = self.session.start
        left = 1 if start is None else max(1, start.num_steps - self.session.step)
        return left * self._turnaround

    def _note_turnaround(self) -> None:
        """From an answer that nothing followed to the next activation: link and device alone."""
        if self._answered is None or self.end.credits.in_flight:
            return
        seconds = time.monotonic() - self._answered
        self._turnaround += (seconds - self._turnaround) * (0.3 if self._turnaround else 1.0)

    def _encode(self, reply: Reply) -> list[Ready]:
        """A reply as bytes: gRPC would make them on the loop."""
        if isinstance(reply, GradientNorm):
            norm = edge_pb2.GradientNorm(round=reply.round, step=reply.step, squared=reply.squared)
            return [Ready(EDGE_SESSION.response_bytes(edge_pb2.EdgeMessage(norm=norm)))]
        return [
            Ready(EDGE_SESSION.response_bytes(frame), reply.key, frame.last)
            for frame in self.end.encode(reply)
        ]

    def _take_adapter(self, frame: tensor_pb2.AdapterFrame) -> None:
        """Relay the device's part once it is whole, and read off the edge's own."""
        if frame.HasField("header"):
            self._contract.part(frame.header, "device", self.host.adapter_limit)
        whole = self.end.take_adapter(frame)
        if whole is None:
            return
        header, payload = whole
        header.device, header.side = self.device, "device"
        self.jobs.put_nowait(self._relay(header, payload))
        self.jobs.put_nowait(self._send_own_part(header.round))

    async def _relay(self, header: tensor_pb2.AdapterHeader, payload: Buffer) -> None:
        """Pass the device's part on, whole again where it came as a change."""
        if header.codec:
            payload = await self.decoder.submit(
                False, self.end.whole_update, header.codec, payload, self._trains
            )
            header.codec = ""
        await self.host.relay_adapter(words.from_update_header(header), payload)

    def _trains(self, name: str) -> bool:
        """Whether the device trains a parameter of that name."""
        own = any(belongs_to(name, span) for span in self.session.plan.device_spans)
        return own and not (self.settings.aggregation.traits.freezes_a and is_lora_a(name))

    async def _send_own_part(self, round_: int) -> None:
        values = await self.host.engine.run(self.session.end_round)
        header = UpdateHeader(
            round=round_,
            final_step=self.session.step,
            device=self.device,
            side="edge",
            scaling=self.settings.scaling(self.device),
        )
        await self.host.relay_adapter(header, await asyncio.to_thread(adapter_bytes, values))

    async def _begin_round(
        self,
        start: RoundStart,
        mine: Mapping[str, np.ndarray],
        theirs: Mapping[str, np.ndarray],
    ) -> None:
        order = checked.round_start(start, self.settings)
        self._answered = None
        self.end.begin_round(start.codecs, start.round)
        await self.host.engine.run(self.session.begin_round, order, mine)
        self._contract.begin(start)
        self.post(edge_pb2.EdgeMessage(start=words.to_round_start(start)))
        for frame in await self._global_part(start.round, theirs):
            self._queue_out(frame)

    async def _fold(
        self, round_: int, theirs: Mapping[str, np.ndarray], folded: asyncio.Task[None]
    ) -> None:
        await asyncio.shield(folded)  # it is the other devices' too
        for frame in await asyncio.to_thread(_ready, self.end.stack_frames, theirs, round_):
            self._queue_out(frame)

    async def _global_part(self, round_: int, values: Mapping[str, np.ndarray]) -> list[Ready]:
        """The device's part of the global adapter: whole, or as what the device lacks of it."""
        if self.end.codecs.adapter_codec.spec == "none":
            return await asyncio.to_thread(_ready, self.end.round_frames, values, round_)
        return await self.encoder.submit(False, _ready, self.end.round_frames, values, round_)


@dataclass(frozen=True, slots=True, order=True)
class Queued:
    """In a queue where what is urgent overtakes; what is equally urgent keeps its order.

    An error in it ends the stream.
    """

    late: bool
    number: int
    item: Outgoing | BaseException = field(compare=False)


class Goodbye(SflError):
    """The device left on purpose."""


def _is_heartbeat(message: object) -> bool:
    told = isinstance(message, edge_pb2.DeviceMessage | edge_pb2.EdgeMessage)
    return told and message.WhichOneof("body") == "heartbeat"  # type: ignore[attr-defined]


def _for_grpc(message: Outgoing) -> edge_pb2.EdgeMessage | bytes:
    return message.data if isinstance(message, Ready) else message


def _ready(
    frames: Callable[[Mapping[str, np.ndarray], int], Iterator[tensor_pb2.AdapterFrame]],
    values: Mapping[str, np.ndarray],
    round_: int,
) -> list[Ready]:
    """An adapter's frames in bytes."""
    return [
        Ready(EDGE_SESSION.response_bytes(edge_pb2.EdgeMessage(adapter=frame)))
        for frame in frames(values, round_)
    ]
