"""The edge's connection: out to the cloud, one stream after the other where one breaks."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import grpc
import grpc.aio

from sfl.errors import LinkLost, ProtocolError
from sfl.metrics.snapshot import Role
from sfl.metrics.stats import NodeStats
from sfl.node.certificates.own import OwnCertificate
from sfl.rounds.values import EdgeFacts, EdgeWelcome, UpdateHeader
from sfl.transport.cloud.sums import SUM
from sfl.transport.cloud.words import (
    CloudWord,
    EdgeFailed,
    EdgeWord,
    GlobalPart,
    from_cloud_message,
    to_edge_report,
)
from sfl.transport.dialling import connected_aio, nothing_known, wait_for_peer_aio
from sfl.transport.frames.chunks import AdapterAssembly, Buffer, adapter_frames
from sfl.transport.frames.seal import Unreadable, sound
from sfl.transport.frames.wire import BASE_UPDATE, CLOUD_SESSION, WIRE_VERSION, wire_bytes
from sfl.transport.frames.words import to_update_header
from sfl.transport.security.credentials import open_aio_channel
from sfl.transport.security.diagnosis import why_refused
from sfl.transport.status import error_of
from sfl.transport.stream import Silence
from sfl.v1 import cloud_pb2, tensor_pb2

Channel = grpc.aio.Channel
"""What an edge calls the cloud by."""

EdgeMessage = cloud_pb2.EdgeReportMessage
"""What an edge says, as the wire has it."""

INCARNATION_BYTES = 16


class CloudLink:
    """An edge's way to the cloud. While no stream is in use, what is posted goes nowhere."""

    def __init__(
        self,
        address: str,
        edge: str,
        stats: NodeStats,
        insecure: bool,
        own: OwnCertificate | None = None,
        proxy: bool = False,
        new_channel: Callable[[], Channel] | None = None,
    ) -> None:
        """`new_channel` makes what it calls the cloud by; without, one to `address`."""
        self.peer = f"cloud at {address}"
        # A look of our own does not go through a proxy, so there it tells nothing.
        self._why = nothing_known if proxy else partial(why_refused, address, "cloud", own)
        self._edge = edge
        self._stats = stats
        self._new_channel = new_channel or partial(
            open_aio_channel, "edge.cloud", address, insecure, own, "cloud", proxy
        )
        self._channel = self._new_channel()
        self._incarnation = secrets.token_bytes(INCARNATION_BYTES)
        self._most_bytes = 0  # until it is known what an adapter consists of
        self._standing: EdgeFacts | EdgeFailed | None = None
        self.stream: CloudStream | None = None
        """The one in use."""

    def expect(self, most_bytes: int) -> None:
        """From now on take adapters of so many bytes at most."""
        self._most_bytes = most_bytes
        if self.stream is not None:
            self.stream.expect(most_bytes)

    async def join(self, connect_timeout: float) -> CloudStream:
        """Connect for the first time, and say who this is.

        Raises PeerUnavailable, Refused, ProtocolError, LinkLost.
        """
        await wait_for_peer_aio(self._channel, self.peer, connect_timeout, self._why)
        return await self._joined("", connect_timeout)

    async def join_again(self, run_key: str, seconds: float) -> CloudStream:
        """One attempt at a new stream, on a connection of its own: the old one may be dead.

        Raises what `join` does.
        """
        await self._channel.close(None)
        self._channel = self._new_channel()
        await connected_aio(self._channel, self.peer, seconds)
        return await self._joined(run_key, seconds)

    async def _joined(self, run_key: str, seconds: float) -> CloudStream:
        stream = CloudStream(self._channel, self.peer, self._stats, self._most_bytes)
        hello = cloud_pb2.EdgeHello(
            edge=self._edge, wire_version=WIRE_VERSION, run=run_key, incarnation=self._incarnation
        )
        stream.post(EdgeMessage(hello=hello))
        try:
            await stream.begin(seconds)
        except BaseException:
            stream.hang_up()
            raise
        return stream

    def use(self, stream: CloudStream) -> None:
        """From now on what is posted goes out on this stream."""
        self.stream = stream

    def lost(self) -> None:
        """The stream is of no use any more."""
        if self.stream is not None:
            self.stream.hang_up()
        self.stream = None

    def post(self, word: EdgeWord) -> None:
        """Queue what the cloud is told; what it was told of this edge itself is kept."""
        if isinstance(word, EdgeFacts | EdgeFailed):
            self._standing = word
        self.post_messages([to_edge_report(word)])

    def stand_by_it(self, keeps: Mapping[str, int]) -> None:
        """Say again what the cloud was told of this edge itself, if it was told anything, and of
        which devices and rounds it keeps updates."""
        if isinstance(self._standing, EdgeFacts):
            self._standing = replace(self._standing, keeps=keeps)
        if self._standing is not None:
            self.post(self._standing)

    def post_messages(self, messages: Sequence[EdgeMessage]) -> None:
        """Queue messages, with none in between."""
        if self.stream is not None:
            for message in messages:
                self.stream.post(message)

    def last_heard(self) -> Iterator[tuple[str, float]]:
        """The cloud, if a stream is in use, and when it last sent a byte (`time.monotonic`)."""
        if self.stream is not None:
            yield self.peer, self.stream.last_heard

    async def close(self) -> None:
        """Let queued messages go out, and hang up."""
        if self.stream is not None:
            self.stream.end()
        await self._channel.close(grace=2.0)


class CloudStream:
    """One stream to the cloud, from its hello on."""

    def __init__(self, channel: Channel, peer: str, stats: NodeStats, most_bytes: int) -> None:
        """Takes adapters of `most_bytes` at most."""
        self._peer = peer
        self._stats = stats
        self._outbox: asyncio.Queue[EdgeMessage | None] = asyncio.Queue()
        self._adapter = AdapterAssembly(most_bytes)
        self._silence = Silence()
        self._call = CLOUD_SESSION.stub(channel)(self._requests())
        self._messages = aiter(self._call)
        self._welcome: EdgeWelcome | None = None

    @property
    def welcome(self) -> EdgeWelcome:
        """What the cloud has said first."""
        assert self._welcome is not None, "a stream that is handed out has begun"
        return self._welcome

    @property
    def last_heard(self) -> float:
        """When the cloud last sent a byte, in seconds of `time.monotonic`."""
        return self._silence.last_heard

    async def begin(self, seconds: float) -> None:
        """Wait for the cloud's first word. Raises LinkLost, Refused, ProtocolError.

        It comes at once; after so long nobody is there any more.
        """
        try:
            first = await asyncio.wait_for(self._next(), seconds)
        except TimeoutError:
            raise LinkLost(f"{self._peer}: no message within {seconds:g} s") from None
        word = self.word(first)
        if not isinstance(word, EdgeWelcome):
            raise ProtocolError("the cloud begins with the run's settings")
        self._welcome = word

    async def words(self) -> AsyncIterator[CloudWord]:
        """What the cloud says after its welcome. Raises Refused, ProtocolError, LinkLost."""
        while True:
            if (word := self.word(await self._next())) is not None:
                yield word

    def expect(self, most_bytes: int) -> None:
        """From now on take adapters of so many bytes at most."""
        self._adapter.limit = most_bytes

    def post(self, message: EdgeMessage) -> None:
        """Queue a message."""
        role: Role = "adapter" if message.WhichOneof("body") in ("adapter", "sum") else "control"
        self._stats.bytes.add("up", role, wire_bytes(message))
        self._outbox.put_nowait(message)

    async def watch(self, interval: float, idle_timeout: float) -> None:
        """Raise FellSilent when the cloud has been silent for too long; both in seconds."""
        while True:
            await asyncio.sleep(interval)
            self._silence.expect_bytes(idle_timeout, self._peer)

    def end(self) -> None:
        """Nothing more is to be said."""
        self._outbox.put_nowait(None)

    def hang_up(self) -> None:
        """Give the stream up, with what is still queued."""
        self._call.cancel()
        self.end()

    async def _next(self) -> cloud_pb2.CloudMessage:
        try:
            return self._heard(await anext(self._messages))
        except StopAsyncIteration:
            raise LinkLost(f"{self._peer} closed the stream") from None
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self._peer) from None

    def _heard(self, message: cloud_pb2.CloudMessage | Unreadable) -> cloud_pb2.CloudMessage:
        """Count a message; it also shows that the cloud lives. Raises Corrupted, ProtocolError."""
        message = sound(message, self._peer)
        self._silence.heard()
        role: Role = "adapter" if message.WhichOneof("body") == "adapter" else "control"
        self._stats.bytes.add("down", role, wire_bytes(message))
        return message

    def word(self, message: cloud_pb2.CloudMessage) -> CloudWord | None:
        """What the cloud tells; None for a heartbeat, and for a frame that ends no adapter."""
        match message.WhichOneof("body"):
            case "heartbeat":
                return None
            case "adapter":
                whole = self._adapter.add(message.adapter)
                if whole is None:
                    return None
                header, payload = whole
                return GlobalPart(header.round, payload, header.side == BASE_UPDATE)
            case _:
                return from_cloud_message(message)

    async def _requests(self) -> AsyncIterator[EdgeMessage]:
        while (message := await self._outbox.get()) is not None:
            yield message


def sum_messages(round_: int, number: int, payload: Buffer) -> list[EdgeMessage]:
    """The answer to the order of that number as messages, which none may come between."""
    header = tensor_pb2.AdapterHeader(round=round_, number=number, side=SUM)
    return [EdgeMessage(sum=frame) for frame in adapter_frames(header, payload)]


def update_messages(header: UpdateHeader, payload: Buffer) -> list[EdgeMessage]:
    """A part of an update as messages, which none may come between."""
    frames = adapter_frames(to_update_header(header), payload)
    return [EdgeMessage(adapter=frame) for frame in frames]
