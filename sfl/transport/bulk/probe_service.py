"""The edge's side of a link test: anybody may ask, nobody may ask for much.

Four bounds hold whatever a client does: bytes of one message, bytes of a stream, seconds of a
stream, streams at once. A client that stops reading or sending is cut off by the seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from sfl.errors import Refused, SflError
from sfl.transport.group import GONE
from sfl.transport.status import status_of
from sfl.v1 import edge_pb2

MESSAGE_BYTES = 1 << 20
STREAM_BYTES = 16 << 20
STREAM_SECONDS = 20.0
STREAMS = 2
"""Link tests at once; who only asks for round trips is not one of them."""
LIGHT_STREAMS = 256
LIGHT_BYTES = 4096
"""Up to which a stream has asked for round trips only."""

Context = grpc.aio.ServicerContext[Any, Any]


class ProbeService:
    """Answers each request with as many bytes as it asks for, within the bounds above."""

    def __init__(self) -> None:
        self._open = self._heavy = 0

    async def serve(self, requests: AsyncIterator[edge_pb2.ProbeRequest], context: Context) -> None:
        """One stream of requests and replies; a breach of the bounds ends it with the reason."""
        try:
            if self._open >= LIGHT_STREAMS:
                raise Refused(f"{LIGHT_STREAMS} devices ask at once; try again in a moment")
            self._open += 1
            try:
                async with asyncio.timeout(STREAM_SECONDS):
                    await self._answer(requests, context)
            except TimeoutError:
                raise Refused(f"a link test may take {STREAM_SECONDS:g} s") from None
            finally:
                self._open -= 1
        except SflError as error:
            await context.abort(status_of(error), str(error))
        except GONE:  # it hung up
            return

    async def _answer(
        self, requests: AsyncIterator[edge_pb2.ProbeRequest], context: Context
    ) -> None:
        received = total = 0
        heavy = False
        try:
            async for request in requests:
                received += len(request.payload)
                total += len(request.payload) + request.reply_bytes
                _bounded(request, total)
                if total > LIGHT_BYTES and not heavy:
                    self._begin_test()
                    heavy = True
                reply = bytes(request.reply_bytes)
                await context.write(edge_pb2.ProbeReply(payload=reply, received_bytes=received))
        finally:
            self._heavy -= heavy

    def _begin_test(self) -> None:
        if self._heavy >= STREAMS:
            raise Refused(f"{STREAMS} link tests are running; try again in a moment")
        self._heavy += 1


def _bounded(request: edge_pb2.ProbeRequest, total: int) -> None:
    """Raises Refused."""
    if max(len(request.payload), request.reply_bytes) > MESSAGE_BYTES:
        raise Refused(f"a message of a link test may hold {MESSAGE_BYTES} bytes")
    if total > STREAM_BYTES:
        raise Refused(f"a link test may move {STREAM_BYTES} bytes")
