"""The edge's door for devices: who may come in, and what becomes of a stream that ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from sfl.codec.kernel import kernel
from sfl.errors import LinkLost, ProtocolError, Refused, SflError
from sfl.transport.cut import Cut
from sfl.transport.device_stream import Context, DeviceStream, Goodbye, Host
from sfl.transport.doorkeeper import expect
from sfl.transport.group import run_together
from sfl.transport.probe_service import ProbeService
from sfl.transport.status import status_of
from sfl.transport.urgency import CodecThread
from sfl.transport.wire import (
    EDGE_FETCH_FILE,
    EDGE_LIST_FILES,
    EDGE_PROBE,
    EDGE_SESSION,
    WIRE_VERSION,
    generic_handler,
)
from sfl.v1 import edge_pb2


class EdgeService:
    """Serves devices; the host decides, this moves bytes.

    What delta coding remembers of samples lies under `cache_dir`.
    """

    def __init__(self, host: Host, cache_dir: Path | None = None) -> None:
        self._host = host
        self.cache_dir = cache_dir
        # One thread for each direction: what is coded first is sent first, and a stream's memory of
        # what it sent is one thread's.
        self._encoder, self._decoder = CodecThread("codec-encoder"), CodecThread("codec-decoder")
        self.streams: dict[str, DeviceStream] = {}
        self._groups: dict[str, asyncio.Task[None]] = {}
        self._probes = ProbeService()

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service, for `server.add_generic_rpc_handlers`."""
        behaviours: dict[Any, Callable[..., Any]] = {
            EDGE_SESSION: self._session,
            EDGE_LIST_FILES: self._list_files,
            EDGE_FETCH_FILE: self._fetch_file,
            EDGE_PROBE: self._probes.serve,
        }
        return generic_handler(EDGE_SESSION.service, behaviours)

    def close(self) -> None:
        """Stop the codec threads."""
        self._encoder.close()
        self._decoder.close()

    def evict(self, device: str, error: SflError) -> None:
        """Close a device's stream with a status that says why."""
        stream, group = self.streams.get(device), self._groups.get(device)
        if stream is not None and group is not None:
            stream.ended = error
            group.cancel()

    async def _session(
        self, requests: AsyncIterator[edge_pb2.DeviceMessage], context: Context
    ) -> None:
        try:
            stream = await self._open(requests, context)
        except SflError as error:
            await context.abort(status_of(error), str(error))
        group = asyncio.create_task(
            run_together(
                stream.read(requests),
                stream.work(),
                stream.land(),
                stream.write(context),
                stream.deliver(context),
                stream.beat(),
            )
        )
        self.streams[stream.device], self._groups[stream.device] = stream, group
        self._host.stats.connected = len(self.streams)
        reason: SflError = LinkLost("the stream broke")
        try:
            await group
        except SflError as error:
            reason = error
        except asyncio.CancelledError:
            # Evicted, or the client hung up; either way the coroutines end before we go on.
            group.cancel()
            await asyncio.gather(group, return_exceptions=True)
            reason = stream.ended or reason
        await self._part(stream, reason)
        if not isinstance(reason, Goodbye):
            await context.abort(status_of(reason), str(reason))

    async def _part(self, stream: DeviceStream, reason: SflError) -> None:
        del self.streams[stream.device], self._groups[stream.device]
        self._host.stats.connected = len(self.streams)
        await stream.abandon()
        await self._host.left(stream.device, str(reason))

    async def _open(
        self, requests: AsyncIterator[edge_pb2.DeviceMessage], context: Context
    ) -> DeviceStream:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("body") != "hello":
            raise ProtocolError("a stream begins with a hello")
        hello = first.hello
        if hello.wire_version != WIRE_VERSION:
            raise ProtocolError(
                f"device {hello.device!r} speaks wire version {hello.wire_version}, this edge "
                f"speaks {WIRE_VERSION}: install the same sfl on both"
            )
        expect("device", hello.device)
        self._supersede(hello.device)
        welcome, session, settings = await self._host.admit(hello.device)
        welcome.compiled_codec = kernel().name == "compiled"
        await context.write(edge_pb2.EdgeMessage(welcome=welcome))
        seed = settings.run.seed
        cut = Cut("edge", hello.device, seed, hello.compiled_codec, self.cache_dir)
        return DeviceStream(
            hello.device,
            session,
            settings,
            self._host,
            self._encoder,
            self._decoder,
            cut,
            credits=welcome.credits,
        )

    def _supersede(self, device: str) -> None:
        """A name that is in use is refused while its stream is alive, and taken over if not."""
        old = self.streams.get(device)
        if old is None:
            return
        silent = time.monotonic() - old.last_heard
        if silent > 5 * old.settings.network.heartbeat_interval:
            self.evict(device, LinkLost("the device came back on a new stream"))
        raise Refused(f"a device named {device!r} is connected already; try again in a moment")

    async def _list_files(
        self, request: edge_pb2.FilesRequest, context: Context
    ) -> edge_pb2.FileList:
        try:
            expect("device", request.device)
            return await self._host.files(request.device)
        except SflError as error:
            await context.abort(status_of(error), str(error))
            raise

    async def _fetch_file(
        self, request: edge_pb2.FileRequest, context: Context
    ) -> AsyncIterator[edge_pb2.FileChunk]:
        try:
            expect("device", request.device)
            async for data in self._host.read_file(request):
                yield edge_pb2.FileChunk(data=data)
        except SflError as error:
            await context.abort(status_of(error), str(error))
