"""The files of a device's span, for devices that have joined."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from sfl.errors import Refused, SflError
from sfl.transport.bulk.files import to_listing
from sfl.transport.device.served import Host, Served
from sfl.transport.security.doorkeeper import expect
from sfl.transport.status import status_of
from sfl.transport.stream import Context
from sfl.v1 import edge_pb2


class FileDoor:
    """Answers what a device asks for beside its stream."""

    def __init__(self, streams: Mapping[str, Served]) -> None:
        """`streams` are those that are open at the moment."""
        self._streams = streams

    def _host_of(self, device: str) -> Host:
        """What serves a device that has joined. Raises Refused for any other."""
        expect("device", device)
        if device not in self._streams:
            raise Refused(f"device {device!r} has not joined")
        return self._streams[device].host

    async def list_files(
        self, request: edge_pb2.FilesRequest, context: Context
    ) -> edge_pb2.FileList:
        """Names, sizes and digests."""
        try:
            return to_listing(await self._host_of(request.device).files(request.device))
        except SflError as error:
            await context.abort(status_of(error), str(error))
            raise

    async def fetch_file(
        self, request: edge_pb2.FileRequest, context: Context
    ) -> AsyncIterator[edge_pb2.FileChunk]:
        """One of them from an offset on."""
        try:
            host = self._host_of(request.device)
            pieces = host.read_file(request.device, request.name, request.offset)
            async for data in pieces:
                yield edge_pb2.FileChunk(data=data)
        except SflError as error:
            await context.abort(status_of(error), str(error))
