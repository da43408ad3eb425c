"""What a device that serves fetches beside its stream: parts of adapters, files of its blocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

from sfl.errors import SflError
from sfl.plan import Span
from sfl.transport.bulk.files import SpanFiles, to_listing
from sfl.transport.frames import contract
from sfl.transport.frames.chunks import adapter_frames
from sfl.transport.security.doorkeeper import expect
from sfl.transport.serve.words import ServedHere
from sfl.transport.status import status_of
from sfl.transport.stream import Context
from sfl.v1 import edge_pb2, serve_pb2, tensor_pb2


class Parts(Protocol):
    """Where they come from."""

    here: ServedHere

    def adapter_part(self, name: str, spans: tuple[Span, ...]) -> tuple[bytes, float]:
        """A part of an adapter as a safetensors file, and its scaling. Raises Refused."""

    def files(self, spans: tuple[Span, ...]) -> SpanFiles:
        """Weights of these spans, config and tokenizer."""


class PartsDoor:
    """Answers what a device asks for by its blocks; it need not have a stream yet."""

    def __init__(self, host: asyncio.Future[Any]) -> None:
        """`host` is a `Parts` once the blocks are loaded."""
        self._host = host
        self._hashing = asyncio.Lock()

    async def fetch_adapter(
        self, request: serve_pb2.AdapterRequest, context: Context
    ) -> AsyncIterator[serve_pb2.AdapterPart]:
        """An adapter's part, in frames."""
        try:
            expect("device", request.device)
            host: Parts = await asyncio.shield(self._host)
            spans = _device_spans(request, host.here)
            payload, scaling = await asyncio.to_thread(host.adapter_part, request.adapter, spans)
        except SflError as error:
            await context.abort(status_of(error), str(error))
        header = tensor_pb2.AdapterHeader(device=request.device, scaling=scaling)
        for frame in adapter_frames(header, payload):
            yield serve_pb2.AdapterPart(frame=frame)

    async def list_files(
        self, request: edge_pb2.FilesRequest, context: Context
    ) -> edge_pb2.FileList:
        """Names, sizes and digests of a device's blocks; one device's are hashed at a time."""
        try:
            files = await self._files(request)
            async with self._hashing:
                return to_listing(await asyncio.to_thread(files.listing))
        except SflError as error:
            await context.abort(status_of(error), str(error))
            raise

    async def fetch_file(
        self, request: edge_pb2.FileRequest, context: Context
    ) -> AsyncIterator[edge_pb2.FileChunk]:
        """One of them from an offset on."""
        try:
            files = await self._files(request)
            for piece in files.pieces(request.name, request.offset):
                yield edge_pb2.FileChunk(data=await asyncio.to_thread(piece))
        except SflError as error:
            await context.abort(status_of(error), str(error))

    async def _files(self, request: edge_pb2.FilesRequest | edge_pb2.FileRequest) -> SpanFiles:
        expect("device", request.device)
        host: Parts = await asyncio.shield(self._host)
        spans = _device_spans(request.blocks, host.here)
        return await asyncio.to_thread(host.files, spans)


def _device_spans(
    said: serve_pb2.AdapterRequest | edge_pb2.ServedBlocks, here: ServedHere
) -> tuple[Span, ...]:
    contract.whole("cut_layer", said.cut_layer, here.first, here.last - 1)
    spans = [Span(0, said.cut_layer, embedding=True, head=False)]
    if said.ends:
        contract.whole("tail_layers", said.tail_layers, 0, here.last - 1 - said.cut_layer)
        last = here.last
        spans.append(Span(last - said.tail_layers, last, embedding=False, head=True))
    return tuple(spans)
