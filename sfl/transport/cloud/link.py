"""The edge's one connection: out to the cloud, one stream for the whole run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import grpc
import grpc.aio

from sfl.errors import LinkLost
from sfl.metrics.snapshot import Role
from sfl.metrics.stats import NodeStats
from sfl.node.certificates.own import OwnCertificate
from sfl.rounds.values import UpdateHeader
from sfl.transport.cloud.words import (
    CloudWord,
    EdgeWord,
    GlobalPart,
    from_cloud_message,
    to_edge_report,
)
from sfl.transport.dialling import nothing_known, wait_for_peer_aio
from sfl.transport.frames.chunks import AdapterAssembly, Buffer, adapter_frames
from sfl.transport.frames.seal import Unreadable, sound
from sfl.transport.frames.wire import BASE_UPDATE, CLOUD_SESSION, WIRE_VERSION, wire_bytes
from sfl.transport.frames.words import to_update_header
from sfl.transport.security.credentials import open_aio_channel
from sfl.transport.security.diagnosis import why_refused
from sfl.transport.status import error_of
from sfl.transport.stream import Silence
from sfl.v1 import cloud_pb2

Channel = grpc.aio.Channel
"""What an edge calls the cloud by."""


class CloudLink:
    """An edge's session with the cloud."""

    def __init__(
        self,
        address: str,
        edge: str,
        stats: NodeStats,
        insecure: bool,
        own: OwnCertificate | None = None,
        proxy: bool = False,
        channel: Channel | None = None,
    ) -> None:
        """`channel` is what it calls the cloud by; without, one to `address`."""
        self._peer = f"cloud at {address}"
        # A look of our own does not go through a proxy, so there it tells nothing.
        self._why = nothing_known if proxy else partial(why_refused, address, "cloud", own)
        self._edge = edge
        self._stats = stats
        self._channel = channel or open_aio_channel(
            "edge.cloud", address, insecure, own, "cloud", proxy
        )
        self._outbox: asyncio.Queue[cloud_pb2.EdgeReportMessage | None] = asyncio.Queue()
        self._adapter = AdapterAssembly(0)  # until it is known what an adapter consists of
        self._silence = Silence()

    def expect(self, most_bytes: int) -> None:
        """From now on take adapters of so many bytes at most."""
        self._adapter.limit = most_bytes

    async def join(self, connect_timeout: float) -> AsyncIterator[CloudWord]:
        """Connect and say who this is; yields what the cloud says, its settings first.

        Raises PeerUnavailable, Refused, ProtocolError, LinkLost.
        """
        await wait_for_peer_aio(self._channel, self._peer, connect_timeout, self._why)
        call = CLOUD_SESSION.stub(self._channel)(self._requests())
        hello = cloud_pb2.EdgeHello(edge=self._edge, wire_version=WIRE_VERSION)
        self._post(cloud_pb2.EdgeReportMessage(hello=hello))
        messages = aiter(call)
        try:
            # The first word comes at once; after so long nobody is there any more.
            first = self._heard(await asyncio.wait_for(anext(messages), connect_timeout))
            if (word := self._word(first)) is not None:
                yield word
            async for message in messages:
                if (word := self._word(self._heard(message))) is not None:
                    yield word
        except TimeoutError:
            raise LinkLost(f"{self._peer}: no message within {connect_timeout:g} s") from None
        except StopAsyncIteration:
            raise LinkLost(f"{self._peer} closed the stream") from None
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self._peer) from None
        finally:
            call.cancel()

    def _heard(self, message: cloud_pb2.CloudMessage | Unreadable) -> cloud_pb2.CloudMessage:
        """Count a message; it also shows that the cloud lives. Raises Corrupted, ProtocolError."""
        message = sound(message, self._peer)
        self._silence.heard()
        role: Role = "adapter" if message.WhichOneof("body") == "adapter" else "control"
        self._stats.bytes.add("down", role, wire_bytes(message))
        return message

    def _word(self, message: cloud_pb2.CloudMessage) -> CloudWord | None:
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

    def post(self, word: EdgeWord) -> None:
        """Queue what the cloud is told."""
        self._post(to_edge_report(word))

    async def send_update(self, header: UpdateHeader, payload: Buffer) -> None:
        """Queue a part of an update; all of its frames in one go, so that none mix."""
        for message in await asyncio.to_thread(_frames, header, payload):
            self._post(message)

    def _post(self, message: cloud_pb2.EdgeReportMessage) -> None:
        role: Role = "adapter" if message.WhichOneof("body") == "adapter" else "control"
        self._stats.bytes.add("up", role, wire_bytes(message))
        self._outbox.put_nowait(message)

    async def watch(self, interval: float, idle_timeout: float) -> None:
        """Raise FellSilent when the cloud has been silent for too long; both in seconds."""
        while True:
            await asyncio.sleep(interval)
            self._silence.expect_bytes(idle_timeout, self._peer)

    async def close(self) -> None:
        """Let queued messages go out, and hang up."""
        self._outbox.put_nowait(None)
        await self._channel.close(grace=2.0)

    async def _requests(self) -> AsyncIterator[cloud_pb2.EdgeReportMessage]:
        while (message := await self._outbox.get()) is not None:
            yield message


def _frames(header: UpdateHeader, payload: Buffer) -> list[cloud_pb2.EdgeReportMessage]:
    frames = adapter_frames(to_update_header(header), payload)
    return [cloud_pb2.EdgeReportMessage(adapter=frame) for frame in frames]
