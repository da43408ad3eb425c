"""A device's tensors at its edge: decoded, computed with, answered.

Tensors become bytes, and bytes tensors, on the codec threads; of what arrives the event loop reads
a frame's header and makes views of the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from sfl.metrics.stats import NodeStats
from sfl.plan import Toward
from sfl.stage.engine import Engine
from sfl.stage.messages import GradientNorm, Kind, Outgoing, TensorMessage
from sfl.stage.orders import Waiting
from sfl.stage.orders.turnaround import Turnaround
from sfl.stage.session import Session
from sfl.transport.device.alike import Alike
from sfl.transport.device.decode_slots import DecodeSlots
from sfl.transport.device.end import Arrival, ServingEnd
from sfl.transport.device.jobs import Jobs
from sfl.transport.device.onward import Onward
from sfl.transport.device.overtaking import DeviceStream
from sfl.transport.device.urgency import CodecThread
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.wire import EDGE_SESSION
from sfl.transport.stream import Ready
from sfl.v1 import edge_pb2


class Coders:
    """The edge's codec threads, one for each direction, and what they need not do twice.

    What is coded first is sent first, and a stream's memory of what it sent is one thread's.
    """

    def __init__(self) -> None:
        self.encoder = CodecThread("codec-encoder")
        self.decoder = CodecThread("codec-decoder")
        self.alike = Alike()

    def close(self) -> None:
        """Stop the threads."""
        self.encoder.close()
        self.decoder.close()


class Floor(Protocol):
    """Where all devices of an edge are served."""

    stats: NodeStats
    engine: Engine
    slots: DecodeSlots
    """For the activations that may be decoded at a time on this edge, over all devices."""


class TensorWork:
    """Takes one device's frames, and has what comes of them sent to the right neighbour."""

    def __init__(
        self,
        session: Session,
        floor: Floor,
        end: ServingEnd,
        coders: Coders,
        stream: DeviceStream,
        before: Callable[[TensorMessage], Awaitable[TensorMessage]],
        after: Callable[[], Awaitable[None]],
        onward: Onward | None = None,
    ) -> None:
        """`before` is done with each tensor right before it is computed with, `after` behind that.

        Without `onward` no stage is behind this server.
        """
        self._before = before
        self._after = after
        self._onward = onward
        self.session = session
        self.floor = floor
        self.end = end
        self.coders = coders
        self.stream = stream
        self.turnaround = Turnaround()
        self._decoding: set[asyncio.Future[TensorMessage]] = set()

    def take(self, frame: Frame, jobs: Jobs) -> None:
        """Keep a frame; what it completes is decoded, and computed with as one of `jobs`."""
        arrival = self.end.take_frame(frame, self.floor.stats.phases.now())
        if arrival is None:
            return
        if arrival.kind is Kind.ACTIVATION:
            self.turnaround.arrived(time.monotonic(), self.end.credits.in_flight - 1)
        self.floor.stats.queue_depth += 1
        at_once = arrival.kind is Kind.GRADIENT
        decoded = asyncio.ensure_future(self._decode_in_turn(arrival, at_once))
        self._decoding.add(decoded)
        decoded.add_done_callback(self._decoded)
        jobs.put(self._compute_when(decoded, at_once), at_once)

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
            await self.floor.slots.take(self)
        return await self.coders.decoder.submit(at_once, self.end.decode, arrival)

    def waiting(self, number: int) -> Waiting:
        """What this edge's order goes by, of an activation that has arrived."""
        return Waiting(number, self.end.device, self._tail_seconds(), self.session.served_seconds)

    def _tail_seconds(self) -> float:
        """What the device has yet to do in this round once it has its answer."""
        return self.turnaround.tail(self.session.steps_left)

    def _served(self) -> None:
        self.end.credits.computed()
        self.floor.stats.queue_depth -= 1

    async def abandon(self) -> None:
        """Give back what a stream that has ended still holds."""
        decoding = list(self._decoding)
        for future in decoding:
            future.cancel()
        await asyncio.gather(*decoding, return_exceptions=True)
        self.floor.slots.leave(self)
        while self.end.credits.waiting:
            self._served()

    async def _compute_when(self, decoded: Awaitable[TensorMessage], at_once: bool) -> None:
        message = await decoded
        try:
            if self._onward is not None and at_once:  # from the device's own end of the model
                self._onward.send(message)
            else:
                await self.compute(await self._before(message))
        finally:
            if not at_once:
                self.floor.slots.give_back(self)
        self._served()

    async def compute(self, message: TensorMessage | GradientNorm) -> None:
        """Have the compute thread do what a message asks for, and what comes of it sent."""
        outgoing = await self.floor.engine.serve(self.session, message, self._tail_seconds())
        self.turnaround.answered(time.monotonic())
        self.send(outgoing)
        await self._after()

    def send(self, outgoing: Sequence[Outgoing]) -> None:
        """Send each message to the neighbour that it is for.

        Where no stage is behind, the one before is the neighbour either way: the device, or who
        carries on to it.
        """
        for out in outgoing:
            if self._onward is not None and out.toward is Toward.LOSS:
                self._onward.send(out.message)
            else:
                self.send_back(out.message)

    def send_back(self, answer: TensorMessage | GradientNorm) -> None:
        """Have an answer coded off the loop, then sent to who is before this server."""
        self.end.answered([answer])
        # A norm stays behind the gradient that it comes with.
        urgent = isinstance(answer, GradientNorm) or answer.kind is Kind.GRADIENT
        coded = self.coders.encoder.submit(urgent, self._encode, answer)
        coded.add_done_callback(partial(self._coded, urgent))

    def _coded(self, urgent: bool, coded: asyncio.Future[list[Ready]]) -> None:
        """Queue an answer's frames, each by itself; threads end them in the order they go out."""
        if coded.cancelled():
            return
        if (error := coded.exception()) is not None:
            self.stream.outbox.fail(error)
            return
        for frame in coded.result():
            self.stream.outbox.put(frame, urgent)

    def _encode(self, answer: TensorMessage | GradientNorm) -> list[Ready]:
        """An answer as bytes: gRPC would make them on the loop."""
        if isinstance(answer, GradientNorm):
            norm = edge_pb2.GradientNorm(
                round=answer.round, step=answer.step, squared=answer.squared
            )
            return [Ready(EDGE_SESSION.response_bytes(edge_pb2.EdgeMessage(norm=norm)))]
        sent = self.end.credits.sent
        return [
            Ready(EDGE_SESSION.response_bytes(frame), answer.key, sent if frame.last else None)
            for frame in self.end.encode(answer)
        ]
