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
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator, Mapping, Sequence
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
from sfl.stage.engine import Engine
from sfl.stage.messages import GradientNorm, Key, Kind, Purpose, TensorMessage
from sfl.stage.orders import Waiting
from sfl.stage.session import Reply, Session
from sfl.transport.device import checked
from sfl.transport.device.decode_slots import DecodeSlots
from sfl.transport.device.shaper import Shaper, shaper
from sfl.transport.device.stream_codecs import StreamCodecs
from sfl.transport.device.updates import UpdateSender, decode_update
from sfl.transport.device.urgency import CodecThread
from sfl.transport.frames import contract
from sfl.transport.frames.chunks import (
    AdapterAssembly,
    Buffer,
    TensorAssembly,
    adapter_bytes,
    adapter_frames,
)
from sfl.transport.frames.contract import DeviceContract
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.tensors import decode_tensor, encode_tensor
from sfl.transport.frames.wire import EDGE_SESSION, STACK, wire_bytes
from sfl.v1 import edge_pb2, tensor_pb2

Context = grpc.aio.ServicerContext[Any, Any]

MOST_JOBS = 16
"""What may wait beside a device's tensors: the parts of a round's end and begin, and norms."""

CUT_DTYPES = ("float32", "bfloat16")
"""What hidden states may come in; a device's own dtype may be another than the edge's."""


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

    async def admit(
        self, device: str, proof: edge_pb2.Proof
    ) -> tuple[edge_pb2.Welcome, Session, RunSettings]:
        """Ask the cloud, make a session. Raises Refused where the cloud says no."""

    def ready(self, device: str, ready: edge_pb2.DeviceReady) -> None:
        """The device has its span and its data."""

    async def left(self, device: str, reason: SflError) -> None:
        """The device was admitted, and is gone; its session is given back, where it has one."""

    async def relay_adapter(self, header: tensor_pb2.AdapterHeader, payload: Buffer) -> None:
        """Pass a device's or the edge's part on to the cloud."""

    def relay_report(self, report: tensor_pb2.RoundReport) -> None:
        """Pass a report on to the cloud."""

    def heard(self, device: str, snapshot: NodeSnapshot) -> None:
        """Keep a device's latest statistics."""

    async def files(self, device: str) -> edge_pb2.FileList:
        """The files of a device's span. Raises Refused."""

    def read_file(self, request: edge_pb2.FileRequest) -> AsyncIterator[bytes]:
        """One of them, in chunks. Raises Refused."""


@dataclass(slots=True, eq=False)
class DeviceStream:
    """One device's open stream, its session, and what is under way for it."""

    device: str
    session: Session
    settings: RunSettings
    host: Host
    encoder: CodecThread
    decoder: CodecThread
    cut: StreamCodecs
    jobs: asyncio.Queue[Awaitable[None]] = field(default_factory=asyncio.Queue)
    gradients: asyncio.Queue[Awaitable[None]] = field(default_factory=asyncio.Queue)
    outbox: asyncio.PriorityQueue[Queued] = field(default_factory=asyncio.PriorityQueue)
    arrivals: asyncio.Queue[tuple[float, Outgoing]] = field(default_factory=asyncio.Queue)
    shaper: Shaper | None = None
    credits: int = 0
    """Micro-batches that may be in flight; 0: `network.credits`."""
    last_heard: float = field(default_factory=time.monotonic)
    held: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The adapter values that the device has, as they arrived there; where they are coded only."""
    is_ready: bool = False
    """Whether the device has its span; before, no adapter and no sum is due."""
    stacks: int = 0
    """How many rounds' sums the device has been sent for its base."""
    _updates: UpdateSender = field(init=False)
    _contract: DeviceContract = field(init=False)
    _beats: contract.Pace = field(init=False)
    in_flight: int = 0
    _answered: float | None = None
    _turnaround: float = 0.0
    ended: SflError | None = None
    _number: Iterator[int] = field(default_factory=itertools.count)
    _began: dict[int, float] = field(default_factory=dict)
    """When the tensor of each kind that is arriving began to."""
    _waiting: int = 0
    """Tensors of this stream that have arrived and are not computed with yet."""
    moved: int = 0
    """Messages from the device, and to it as the link took them, heartbeats apart."""
    _unsent: int = 0
    """Answers to this device's tensors that it has not taken off the link yet."""
    _decoding: set[asyncio.Future[TensorMessage]] = field(default_factory=set)

    def __post_init__(self) -> None:
        seed = self.settings.run.seed
        self.credits = self.credits or self.settings.network.credits
        self._updates = UpdateSender(self.device, seed, "down", feedback=False)
        self._contract = DeviceContract(self.device, self.settings)
        self._beats = contract.Pace(self.settings.network.heartbeat_interval)
        self.shaper = shaper(self.settings.device(self.device).link, "down")

    def _queue_job(self, job: Coroutine[Any, Any, None]) -> None:
        """Queue what the device asked for, unless it asks faster than it is served."""
        if self.jobs.qsize() > 2 * self.credits + MOST_JOBS:
            job.close()
            raise ProtocolError(f"{self.jobs.qsize()} messages wait to be served")
        self.jobs.put_nowait(job)

    def _queue_out(self, item: Outgoing | BaseException, urgent: bool = False) -> None:
        self.outbox.put_nowait(Queued(not urgent, next(self._number), item))

    # -- called by the host ---------------------------------------------------------------------

    def begin_round(
        self,
        start: edge_pb2.RoundStart,
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
        tensors = TensorAssembly(self._tensor_limit())
        adapters = AdapterAssembly(self.host.adapter_limit)
        async for message in requests:
            self.last_heard = time.monotonic()
            self.moved += not _is_heartbeat(message)
            if isinstance(message, Frame):
                self._take_tensor(message, tensors)
                continue
            if message.WhichOneof("body") == "goodbye":
                kind = AdapterRefused if message.cannot_compute else Goodbye
                raise kind(contract.reason(message.goodbye))
            self._take(message, adapters)
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
        self._unsent -= isinstance(message, Ready) and message.answers

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

    def _take(self, message: edge_pb2.DeviceMessage, adapters: AdapterAssembly) -> None:
        body = message.WhichOneof("body")
        if body == "adapter":
            self._take_adapter(message.adapter, adapters)
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
            self.host.ready(self.device, message.ready)
        else:
            raise ProtocolError(f"{body or 'an empty message'} was not due")

    def _take_report(self, report: tensor_pb2.RoundReport) -> None:
        report.device = self.device
        spans = self.host.stats.phases.timeline.take(self.device)
        report.edge_spans = spans_to_json(spans)
        self._hear(self._contract.report(report))
        self.host.relay_report(report)

    def _hear(self, snapshot: NodeSnapshot) -> None:
        self.host.heard(self.device, snapshot)

    def _take_tensor(self, frame: Frame, tensors: TensorAssembly) -> None:
        now = self.host.stats.phases.now()
        if frame.header is not None:
            self._began[frame.kind] = now
        whole = tensors.add(frame)
        if whole is None:
            return
        begin = self._began[frame.kind]
        if whole[0].kind == tensor_pb2.TENSOR_KIND_ACTIVATION:
            self._note_turnaround()
            self.in_flight += 1
            if self.in_flight > self.credits:
                raise ProtocolError(
                    f"{self.in_flight} micro-batches in flight, {self.credits} are allowed "
                    "(network.credits, edge.credits)"
                )
        if self._unsent > 2 * self.credits:
            raise ProtocolError(
                f"{self._unsent} answers are not taken, and {self.credits} micro-batches may be in "
                "flight (network.credits, edge.credits)"
            )
        if self._waiting >= 2 * self.credits:
            raise ProtocolError(
                f"{self._waiting} tensors wait, and each of {self.credits} micro-batches in flight "
                "has two at most"
            )
        self._waiting += 1
        self.host.stats.queue_depth += 1
        urgent = whole[0].kind == tensor_pb2.TENSOR_KIND_GRADIENT
        decoded = asyncio.ensure_future(self._decode_in_turn(*whole, (begin, now), at_once=urgent))
        self._decoding.add(decoded)
        decoded.add_done_callback(self._decoded)
        lane = self.gradients if urgent else self.jobs
        lane.put_nowait(self._compute_when(decoded, at_once=urgent))

    def _decoded(self, task: asyncio.Future[TensorMessage]) -> None:
        """Whoever waits for it gets it; once the stream is over nobody does, error or not."""
        self._decoding.discard(task)
        if not task.cancelled():
            task.exception()

    async def _decode_in_turn(
        self,
        header: tensor_pb2.TensorHeader,
        payload: Buffer,
        received: tuple[float, float],
        at_once: bool,
    ) -> TensorMessage:
        """Decode off the loop, once an activation has a place on this edge.

        The first of a device has its place before those behind. Gradients need none: what they
        answer was let in, and they never wait for a place that only they can free.
        """
        if not at_once:
            await self.host.slots.take(self)
        message = await self.decoder.submit(at_once, self._decode, header, payload)
        phases = self.host.stats.phases
        phases.share("receive", message.key, self.device, *received, lane="link-receiver")
        return message

    def waiting(self, number: int) -> Waiting:
        """What this edge's order goes by, of an activation that has arrived."""
        return Waiting(number, self.device, self._tail_seconds(), self.session.served_seconds)

    def _served(self, count: int = 1) -> None:
        self._waiting -= count
        self.host.stats.queue_depth -= count

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
        self._served(self._waiting)

    def _decode(self, header: tensor_pb2.TensorHeader, payload: Buffer) -> TensorMessage:
        """Decode and validate before the queue."""
        message, packet = decode_tensor(header, payload)
        checked.tensor(message, self.settings)
        most = self.settings.training.batch_size * self.settings.model.max_length
        if sum(message.lengths) > most:
            raise ProtocolError(
                f"{sum(message.lengths)} tokens in a micro-batch; training.batch_size times "
                f"model.max_length is {most}"
            )
        if packet is not None:
            with self.host.stats.phases.measure("decode", message.key, self.device):
                message = self.cut.decode(packet, message, self.session.model.hidden_size)
        if max(message.lengths) > self.settings.model.max_length:
            raise ProtocolError(
                f"a sequence of {max(message.lengths)} tokens, model.max_length is "
                f"{self.settings.model.max_length}"
            )
        if message.rows is None:
            raise ProtocolError(f"a {message.kind.name} tensor came without its values")
        if header.dtype not in CUT_DTYPES:
            raise ProtocolError(
                f"dtype {header.dtype} came; hidden states are {' or '.join(CUT_DTYPES)}"
            )
        return message

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
        for reply in replies:
            self.in_flight -= _lands(reply)
            # A norm stays behind the gradient that it comes with.
            urgent = isinstance(reply, GradientNorm) or reply.kind is Kind.GRADIENT
            self._unsent += not isinstance(reply, GradientNorm)
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
        if self._answered is None or self.in_flight:
            return
        seconds = time.monotonic() - self._answered
        self._turnaround += (seconds - self._turnaround) * (0.3 if self._turnaround else 1.0)

    def _encode(self, reply: Reply) -> list[Ready]:
        """A reply as bytes: gRPC would make them on the loop."""
        if isinstance(reply, GradientNorm):
            norm = edge_pb2.GradientNorm(round=reply.round, step=reply.step, squared=reply.squared)
            return [Ready(EDGE_SESSION.response_bytes(edge_pb2.EdgeMessage(norm=norm)))]
        with self.host.stats.phases.measure("encode", reply.key, self.device):
            frames = encode_tensor(reply, self.cut.encode(reply))
            return [
                Ready(EDGE_SESSION.response_bytes(frame), reply.key, frame.last) for frame in frames
            ]

    def _take_adapter(self, frame: tensor_pb2.AdapterFrame, adapters: AdapterAssembly) -> None:
        """Relay the device's part once it is whole, and read off the edge's own."""
        if frame.HasField("header"):
            self._contract.part(frame.header, "device", self.host.adapter_limit)
        whole = adapters.add(frame)
        if whole is None:
            return
        header, payload = whole
        header.device, header.side = self.device, "device"
        self.jobs.put_nowait(self._relay(header, payload))
        self.jobs.put_nowait(self._send_own_part(header.round))

    async def _relay(self, header: tensor_pb2.AdapterHeader, payload: Buffer) -> None:
        """Pass the device's part on, whole again where it came as a change."""
        if header.codec:
            codec, own = self.cut.adapter_codec, self.session.plan.device_spans
            if header.codec != codec.spec:
                raise ProtocolError(f"{self.device}: an adapter in {header.codec!r} was not due")
            frozen = self.settings.aggregation.traits.freezes_a
            held = {
                name: array
                for name, array in self.held.items()
                if any(belongs_to(name, span) for span in own) and not (frozen and is_lora_a(name))
            }
            values = await self.decoder.submit(False, decode_update, codec, payload, held)
            header.codec, payload = "", await asyncio.to_thread(adapter_bytes, values)
        await self.host.relay_adapter(header, payload)

    async def _send_own_part(self, round_: int) -> None:
        values = await self.host.engine.run(self.session.end_round)
        header = tensor_pb2.AdapterHeader(
            round=round_,
            final_step=self.session.step,
            device=self.device,
            side="edge",
            scaling=self.settings.scaling(self.device),
        )
        await self.host.relay_adapter(header, await asyncio.to_thread(adapter_bytes, values))

    async def _begin_round(
        self,
        start: edge_pb2.RoundStart,
        mine: Mapping[str, np.ndarray],
        theirs: Mapping[str, np.ndarray],
    ) -> None:
        order = checked.round_start(start, self.settings)
        self.in_flight = 0
        self._answered = None
        self.cut.begin_round(contract.role_codecs(start.codecs), start.round)
        await self.host.engine.run(self.session.begin_round, order, mine)
        self._contract.begin(start)
        self.post(edge_pb2.EdgeMessage(start=start))
        for frame in await self._global_part(start.round, theirs):
            self._queue_out(frame)

    async def _fold(
        self, round_: int, theirs: Mapping[str, np.ndarray], folded: asyncio.Task[None]
    ) -> None:
        await asyncio.shield(folded)  # it is the other devices' too
        header = tensor_pb2.AdapterHeader(round=round_, side=STACK)
        for frame in await asyncio.to_thread(_adapter_ready, header, theirs):
            self._queue_out(frame)

    async def _global_part(self, round_: int, values: Mapping[str, np.ndarray]) -> list[Ready]:
        """The device's part of the global adapter: whole, or as what the device lacks of it."""
        header, codec = tensor_pb2.AdapterHeader(round=round_), self.cut.adapter_codec
        coded = codec.spec != "none"
        if not coded or not values or values.keys() != self.held.keys():
            self.held = values if coded else {}
            return await asyncio.to_thread(_adapter_ready, header, values)
        header.codec = codec.spec
        payload, self.held = await self.encoder.submit(
            False, self._updates.encode, codec, values, self.held, round_
        )
        return await asyncio.to_thread(_adapter_ready, header, payload)

    def _tensor_limit(self) -> int:
        """Most bytes a tensor may announce: a full batch in fp32, and some room for headers."""
        training, model = self.settings.training, self.settings.model
        values = training.batch_size * model.max_length * self.session.model.hidden_size
        return 4 * values + (1 << 16)


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


def _lands(reply: Reply) -> bool:
    """Whether a reply is the last of its micro-batch: only hidden states ask for more."""
    if isinstance(reply, GradientNorm):
        return False
    return reply.kind is not Kind.HIDDEN or reply.key.purpose is Purpose.EVALUATION


def _is_heartbeat(message: object) -> bool:
    told = isinstance(message, edge_pb2.DeviceMessage | edge_pb2.EdgeMessage)
    return told and message.WhichOneof("body") == "heartbeat"  # type: ignore[attr-defined]


def _for_grpc(message: Outgoing) -> edge_pb2.EdgeMessage | bytes:
    return message.data if isinstance(message, Ready) else message


def _adapter_ready(
    header: tensor_pb2.AdapterHeader, adapter: Mapping[str, np.ndarray] | Buffer
) -> list[Ready]:
    """Values, or their payload, as frames in bytes."""
    payload = adapter_bytes(adapter) if isinstance(adapter, Mapping) else adapter
    return [
        Ready(EDGE_SESSION.response_bytes(edge_pb2.EdgeMessage(adapter=frame)))
        for frame in adapter_frames(header, payload)
    ]
