"""The edge's door for devices that serve: one stream each, with all of its conversations.

A step goes to the compute thread as it comes, so whatever waits there together is computed
together. What breaks the contract ends its own stream; what is merely refused closes its own
conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from sfl.codec.pipeline import Codec
from sfl.errors import Goodbye, LinkLost, ProtocolError, Refused, SflError
from sfl.metrics.said import DevicesSaid
from sfl.metrics.serving import ServingCount
from sfl.metrics.stats import NodeStats
from sfl.node.causes import cause_of
from sfl.stage.engine import Engine
from sfl.stage.serving.conversation import Conversation
from sfl.stage.serving.conversations import MOST_OF_A_DEVICE, Conversations, Openings
from sfl.stage.serving.messages import Later, Step
from sfl.transport.frames import contract
from sfl.transport.frames.wire import (
    FETCH_ADAPTER,
    GENERATE,
    SERVE_FETCH_FILE,
    SERVE_LIST_FILES,
    WIRE_VERSION,
    generic_handler,
)
from sfl.transport.group import GONE, first_message, run_together
from sfl.transport.security.doorkeeper import expect
from sfl.transport.serve.parts import Parts, PartsDoor
from sfl.transport.serve.rows import RowCodec
from sfl.transport.serve.words import (
    from_open,
    from_step,
    to_answer,
    to_busy,
    to_closed,
    to_ended,
    to_opened,
    to_welcome,
)
from sfl.transport.status import status_of
from sfl.transport.stream import Context, Heartbeats, Sendable, Stream
from sfl.v1 import serve_pb2, tensor_pb2

log = logging.getLogger("sfl.edge")

Requests = AsyncIterator[serve_pb2.GenerateRequest]

MOST_OPENINGS = 64
"""Openings of one device that may wait at a time."""
MOST_UNREAD = 2 * MOST_OF_A_DEVICE
"""Replies that may wait for a device to read them; it has a question for each conversation."""
LAST_WORD = 1.0
"""Seconds that a device may take to read why its stream ends."""
REPLACED = "another stream of the device has taken its place"
ALIVE = serve_pb2.GenerateReply(heartbeat=tensor_pb2.Heartbeat())


@dataclass(frozen=True, slots=True)
class Pulse:
    """Seconds between heartbeats, and of silence that end a stream."""

    interval: float = 1.0
    idle_timeout: float = 30.0


class Host(Parts, Protocol):
    """What the edge does for devices that serve."""

    stats: NodeStats
    count: ServingCount
    engine: Engine
    conversations: Conversations
    codec: Codec
    model: str
    """Digest of the model's configuration."""

    @property
    def hidden_size(self) -> int:
        """How wide rows are."""


class Outbox:
    """Replies that wait to be sent, in their order."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Sendable | SflError] = asyncio.Queue()

    def put(self, message: Sendable) -> None:
        """Queue a message."""
        self._queue.put_nowait(message)

    def fail(self, error: SflError) -> None:
        """End the stream with it, once what waits is out."""
        self._queue.put_nowait(error)

    async def get(self) -> Sendable:
        """The next one. Raises an error that ends the stream."""
        message = await self._queue.get()
        if isinstance(message, SflError):
            raise message
        return message

    def __len__(self) -> int:
        return self._queue.qsize()


class GenerateStream:
    """One device's conversations while its stream is open. They outlive it: it may come back."""

    def __init__(self, device: str, host: Host, pulse: Pulse, said: DevicesSaid) -> None:
        self.device = device
        self._host = host
        self._said = said
        self._codec = RowCodec(host.codec, host.hidden_size)
        beats = Heartbeats(ALIVE, pulse.interval, pulse.idle_timeout, enough=8)
        self.stream: Stream[Outbox] = Stream(device, Outbox(), beats, host.stats.phases)
        self._beats = contract.Pace(pulse.interval)
        self._conversations: dict[int, Conversation] = {}
        self._openings = 0
        self._door = Openings(device, host.conversations)
        self._tasks: set[asyncio.Task[None]] = set()

    def coroutines(
        self, requests: Requests, context: Context
    ) -> tuple[Coroutine[Any, Any, None], ...]:
        """What is to run while the stream is open."""
        return (self._read(requests), *self.stream.coroutines(context))

    async def leave(self) -> None:
        """Forget what still waits for the compute thread."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, requests: Requests) -> None:
        await self.stream.read(requests, self._take)
        raise LinkLost("the device closed the stream")

    def _take(self, message: serve_pb2.GenerateRequest) -> None:
        if len(self.stream.outbox) > MOST_UNREAD:
            raise ProtocolError(f"more than {MOST_UNREAD} replies wait to be read")
        match message.WhichOneof("body"):
            case "open":
                self._open(message.open)
            case "step":
                self._step(message.step)
            case "close":
                self._close(message.close)
            case "heartbeat":
                self._hear(message.heartbeat.snapshot)
            case "goodbye":
                raise Goodbye(contract.reason(message.goodbye))
            case body:
                raise ProtocolError(f"{body or 'an empty message'} was not expected")

    def _hear(self, statistics: str) -> None:
        """A sign of life, and perhaps what the device tells of itself."""
        self._beats.take("heartbeat", self.stream.last_heard)
        if statistics:
            snapshot = contract.statistics(statistics, "device", self.device)
            self._said.heard(self.device, snapshot)

    # -- openings ---------------------------------------------------------------------------------

    def _open(self, said: serve_pb2.OpenConversation) -> None:
        if self._openings >= MOST_OPENINGS:
            raise ProtocolError(f"more than {MOST_OPENINGS} openings wait")
        opening = from_open(said)
        self._expect_adapter(said)
        self._openings += 1

        async def open_it() -> None:
            try:
                opened = await self._host.engine.answer(self._door, opening)
            except Refused as error:
                self._host.count.refused("refused")
                self.stream.outbox.put(to_closed(said.conversation, str(error)))
                return
            finally:
                self._openings -= 1
            if isinstance(opened, Later):
                self._host.count.refused("busy")
                self.stream.outbox.put(to_busy(said.conversation, opened.retry_after))
                return
            self._keep(said.conversation, opened[0])
            self.stream.outbox.put(to_opened(said.conversation, opened[1]))

        self._start(open_it())

    def _expect_adapter(self, said: serve_pb2.OpenConversation) -> None:
        known = dict(self._host.here.adapters)
        if said.adapter in known and said.digest != known[said.adapter]:
            raise ProtocolError(
                f"the device's adapter {said.adapter!r:.80} is another one than this edge's"
            )

    def _keep(self, number: int, conversation: Conversation) -> None:
        """Only the latest ones are open in any case: a device has so many at most."""
        self._conversations.pop(number, None)
        self._conversations[number] = conversation
        while len(self._conversations) > MOST_OF_A_DEVICE:
            del self._conversations[next(iter(self._conversations))]

    def _close(self, number: int) -> None:
        conversation = self._conversations.pop(number, None)
        if conversation is not None:
            close = self._host.conversations.close
            name = conversation.opening.name
            self._start(self._on_thread(lambda: close(self.device, name)))

    async def _on_thread(self, job: Callable[[], None]) -> None:
        await self._host.engine.run(job)

    # -- steps ------------------------------------------------------------------------------------

    def _step(self, said: serve_pb2.GenerateStep) -> None:
        conversation = self._conversations.get(said.conversation)
        if conversation is None or conversation.closed:
            self._conversations.pop(said.conversation, None)
            self.stream.outbox.put(to_closed(said.conversation, "it is not open here"))
            return
        if conversation.pending:
            raise ProtocolError(
                f"conversation {conversation.opening.name}: step {said.number} came before the "
                "last one was answered"
            )
        contract.whole("tokens of a step", said.rows.count, 1, self._host.here.prefill_chunk)
        step = from_step(said, conversation.opening.name, self._codec)
        conversation.pending += 1
        self._start(self._compute(said.conversation, conversation, step))

    async def _compute(self, number: int, conversation: Conversation, step: Step) -> None:
        try:
            answer = await self._host.engine.answer(conversation, step)
        except Refused as error:
            self._host.count.refused("refused")
            self.stream.outbox.put(to_closed(number, str(error)))
            return
        finally:
            conversation.pending -= 1
        if isinstance(answer, Later):
            self._host.count.refused("busy")
        self.stream.outbox.put(to_answer(number, answer, self._codec))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self.stream.outbox.fail(cause_of(error))

        task.add_done_callback(ended)


class GenerateService:
    """Lets devices in, one stream for each name; nobody else is asked."""

    def __init__(
        self,
        host: asyncio.Future[Any],
        said: DevicesSaid | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        """`host` is a Host once the blocks are loaded: until then devices wait.

        `said` gets what devices tell of themselves.
        """
        self._host = host
        self._said = said or DevicesSaid()
        self._pulse = pulse or Pulse()
        self._groups: dict[str, asyncio.Task[Any]] = {}
        self._closing = False
        self._parts = PartsDoor(host)

    @property
    def devices(self) -> tuple[str, ...]:
        """Whose streams are open."""
        return tuple(self._groups)

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service, for `server.add_generic_rpc_handlers`."""
        return generic_handler(
            GENERATE.service,
            {
                GENERATE: self._generate,
                FETCH_ADAPTER: self._parts.fetch_adapter,
                SERVE_LIST_FILES: self._parts.list_files,
                SERVE_FETCH_FILE: self._parts.fetch_file,
            },
        )

    def close(self) -> None:
        """End all streams; a device may dial again, or another edge."""
        self._closing = True
        for group in self._groups.values():
            group.cancel()

    async def _generate(self, requests: Requests, context: Context) -> None:
        try:
            device, host = await self._admitted(requests)
        except SflError as error:
            await context.abort(status_of(error), str(error))
        except GONE:
            return
        stream = GenerateStream(device, host, self._pulse, self._said)
        stream.stream.outbox.put(to_welcome(host.here))
        await self._replace(device)
        group = asyncio.create_task(run_together(*stream.coroutines(requests, context)))
        self._groups[device] = group
        host.stats.connected = len(self._groups)
        log.info("device %s serves", device)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({group})
        finally:
            group.cancel()
            if self._groups.get(device) is group:
                del self._groups[device]
            host.stats.connected = len(self._groups)
            await asyncio.shield(stream.leave())
        why = "the edge is ending" if self._closing else REPLACED
        ended = LinkLost(why) if group.cancelled() or not group.done() else group.exception()
        if isinstance(ended, Goodbye):
            self._said.left(device)
            return
        host.stats.faults += not self._closing
        log.info("device %s: %s", device, ended)
        if isinstance(ended, SflError):
            with contextlib.suppress(TimeoutError, *GONE):
                async with asyncio.timeout(LAST_WORD):  # one that reads nothing is not waited for
                    await context.write(to_ended(ended))
            with contextlib.suppress(*GONE):
                await context.abort(status_of(ended), str(ended))

    async def _replace(self, device: str) -> None:
        """End an older stream of the device: it has given that up, or it would not dial."""
        while (old := self._groups.pop(device, None)) is not None:  # others may come meanwhile
            old.cancel()
            await asyncio.wait({old})

    async def _admitted(self, requests: Requests) -> tuple[str, Host]:
        """Who asks, once there is something to serve. Raises ProtocolError, Refused."""
        hello = (await first_message(requests, "hello")).hello
        contract.name("device", hello.device)
        if hello.wire_version != WIRE_VERSION:
            raise ProtocolError(
                f"device {hello.device!r} speaks wire version {hello.wire_version}, this edge "
                f"speaks {WIRE_VERSION}: install the same sfl on both"
            )
        expect("device", hello.device)
        host: Host = await asyncio.shield(self._host)
        if hello.model != host.model:
            raise Refused(
                f"device {hello.device!r} has another model than this edge: config.json differs"
            )
        return hello.device, host
