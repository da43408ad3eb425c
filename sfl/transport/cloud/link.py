"""The edge's one connection: out to the cloud, one stream for the whole run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial

import grpc
import grpc.aio

from sfl.errors import LinkLost, ProtocolError
from sfl.metrics.snapshot import Role
from sfl.metrics.stats import NodeStats
from sfl.node.certificates.own import OwnCertificate
from sfl.transport.dialling import nothing_known, wait_for_peer_aio
from sfl.transport.frames.seal import Unreadable, sound
from sfl.transport.frames.wire import CLOUD_SESSION, WIRE_VERSION, wire_bytes
from sfl.transport.security.credentials import open_aio_channel
from sfl.transport.security.diagnosis import why_refused
from sfl.transport.status import error_of
from sfl.v1 import cloud_pb2


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
    ) -> None:
        self._peer = f"cloud at {address}"
        # A look of our own does not go through a proxy, so there it tells nothing.
        self._why = nothing_known if proxy else partial(why_refused, address, "cloud", own)
        self._edge = edge
        self._stats = stats
        self._channel = open_aio_channel("edge.cloud", address, insecure, own, "cloud", proxy)
        self._outbox: asyncio.Queue[cloud_pb2.EdgeReportMessage | None] = asyncio.Queue()
        self.last_heard = time.monotonic()

    async def join(self, connect_timeout: float) -> AsyncIterator[cloud_pb2.CloudMessage]:
        """Connect and say who this is; yields what the cloud says, its settings first.

        Raises PeerUnavailable, Refused, ProtocolError, LinkLost.
        """
        await wait_for_peer_aio(self._channel, self._peer, connect_timeout, self._why)
        call = CLOUD_SESSION.stub(self._channel)(self._requests())
        hello = cloud_pb2.EdgeHello(edge=self._edge, wire_version=WIRE_VERSION)
        self.post(cloud_pb2.EdgeReportMessage(hello=hello))
        messages = aiter(call)
        try:
            # The first word comes at once; whoever owes it for so long is not there any more.
            yield self._heard(await asyncio.wait_for(anext(messages), connect_timeout))
            async for message in messages:
                yield self._heard(message)
        except TimeoutError:
            raise LinkLost(f"{self._peer}: not a word within {connect_timeout:g} s") from None
        except StopAsyncIteration:
            raise LinkLost(f"{self._peer} closed the stream") from None
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self._peer) from None
        finally:
            call.cancel()

    def _heard(self, message: cloud_pb2.CloudMessage | Unreadable) -> cloud_pb2.CloudMessage:
        """Count a message; it also shows that the cloud lives. Raises Corrupted, ProtocolError."""
        message = sound(message, self._peer)
        self.last_heard = time.monotonic()
        role: Role = "adapter" if message.WhichOneof("body") == "adapter" else "control"
        self._stats.bytes.add("down", role, wire_bytes(message))
        return message

    def post(self, message: cloud_pb2.EdgeReportMessage) -> None:
        """Queue one message for the cloud."""
        role: Role = "adapter" if message.WhichOneof("body") == "adapter" else "control"
        self._stats.bytes.add("up", role, wire_bytes(message))
        self._outbox.put_nowait(message)

    async def watch(self, interval: float, idle_timeout: float) -> None:
        """Raise LinkLost when the cloud has been silent for too long."""
        while True:
            await asyncio.sleep(interval)
            silent = time.monotonic() - self.last_heard
            if silent > idle_timeout:
                raise LinkLost(f"{self._peer}: not a byte for {silent:.0f} s")

    async def close(self) -> None:
        """Let queued messages go out, and hang up."""
        self._outbox.put_nowait(None)
        await self._channel.close(grace=2.0)

    async def _requests(self) -> AsyncIterator[cloud_pb2.EdgeReportMessage]:
        while (message := await self._outbox.get()) is not None:
            yield message


def expect_settings(message: cloud_pb2.CloudMessage) -> cloud_pb2.Settings:
    """The first thing a cloud says. Raises ProtocolError."""
    if message.WhichOneof("body") != "settings":
        raise ProtocolError("the cloud begins with the run's settings")
    return message.settings
