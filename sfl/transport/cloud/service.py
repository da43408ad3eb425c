"""The cloud's door for edges: one stream each; adapters go to disk as they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio

from sfl.errors import DiskError, LinkLost, NameInUse, ProtocolError, Refused, SflError
from sfl.metrics.stats import NodeStats
from sfl.node.logs import Sparing
from sfl.rounds.messages import FinishRun
from sfl.rounds.values import Admission
from sfl.transport.cloud.reporting import Host, Reporting
from sfl.transport.cloud.words import CloudWord
from sfl.transport.frames import contract
from sfl.transport.frames.wire import CLOUD_SESSION, WIRE_VERSION, generic_handler
from sfl.transport.group import first_message, run_together
from sfl.transport.security.doorkeeper import expect
from sfl.transport.status import status_of
from sfl.transport.stream import Context
from sfl.v1 import cloud_pb2

log = logging.getLogger(__name__)
sparing = Sparing(log)


class CloudService:
    """Serves edges; the host decides, this moves bytes."""

    def __init__(self, stats: NodeStats) -> None:
        self._stats = stats
        self.streams: dict[str, Reporting] = {}
        self._over: FinishRun | None = None
        self._hung_up: LinkLost | None = None
        self._broken: dict[str, float] = {}
        """When the streams of edges broke that have none now and have not said goodbye."""

    def handler(self, host: Host) -> grpc.GenericRpcHandler[Any, Any]:
        """The service, for `server.add_generic_rpc_handlers`; `host` hears what edges tell."""

        async def session(requests: AsyncIterator[Any], context: Context) -> None:
            await self._session(host, requests, context)

        return generic_handler(CLOUD_SESSION.service, {CLOUD_SESSION: session})

    def post(self, edge: str, word: CloudWord) -> None:
        """Queue what an edge is told, if it is there."""
        if edge in self.streams:
            if isinstance(word, Admission) and not word.refusal:
                self._hand_over(word.device, edge)
            self.streams[edge].post(word)

    def _hand_over(self, device: str, edge: str) -> None:
        """From now on this edge speaks for the device, and no other."""
        for stream in self.streams.values():
            stream.devices.pop(device, None)
        self.streams[edge].admitted(device)
        self.streams[edge].signatures.admitted(device)

    def last_heard(self) -> Iterator[tuple[str, float]]:
        """Each edge that is connected, and when it last sent a byte (`time.monotonic`)."""
        for edge, stream in self.streams.items():
            yield edge, stream.stream.last_heard

    def expect_back(self, edges: Iterable[str]) -> None:
        """These had a stream with the process before this one."""
        self._broken |= dict.fromkeys(edges, time.monotonic())

    async def dismiss(self, end: FinishRun, seconds: float, away: float = 0.0) -> None:
        """Tell edges that the run is over, and give them a moment to take that and hang up.

        Those whose stream broke less than `away` seconds ago, or does so now, may be back for it.
        """
        now = time.monotonic()
        self._over = end
        self._broken = {edge: at for edge, at in self._broken.items() if now - at < away}
        for stream in self.streams.values():
            stream.post(end)
        while (self.streams or self._broken) and time.monotonic() < now + seconds:
            await asyncio.sleep(0.02)

    async def hang_up(self, reason: str) -> None:
        """End all streams without an end of the run: their edges dial again."""
        self._hung_up = LinkLost(reason)
        await asyncio.gather(*(stream.end(reason) for stream in [*self.streams.values()]))

    async def _session(
        self, host: Host, requests: AsyncIterator[cloud_pb2.EdgeReportMessage], context: Context
    ) -> None:
        try:
            stream = await self._open(host, requests)
        except SflError as error:
            await context.abort(status_of(error), str(error))
        self.streams[stream.edge] = stream
        self._stats.connected = len(self.streams)
        self._broken.pop(stream.edge, None)
        stream.post(replace(host.welcome(), challenge=stream.signatures.challenge))
        if self._over is not None:
            stream.post(self._over)
        reason: SflError = LinkLost("the stream broke")
        try:
            await run_together(*stream.coroutines(requests, context))
        except SflError as error:
            reason = error
            if isinstance(error, DiskError):  # the cloud's own: no edge's fault
                host.failed(error)
        finally:
            del self.streams[stream.edge]
            self._stats.connected = len(self.streams)
            host.edge_lost(stream.edge, str(reason))
            stream.over.set()
            if isinstance(reason, LinkLost) and not stream.hung_up:  # else it is told why
                self._broken[stream.edge] = time.monotonic()
        # Last, since an edge that reads nothing does not take this either.
        with contextlib.suppress(grpc.aio.AbortError):
            await context.abort(status_of(reason), str(reason))

    async def _open(
        self, host: Host, requests: AsyncIterator[cloud_pb2.EdgeReportMessage]
    ) -> Reporting:
        if self._hung_up is not None:
            raise self._hung_up
        hello = (await first_message(requests, "hello")).hello
        contract.name("edge", hello.edge)
        if hello.wire_version != WIRE_VERSION:
            raise ProtocolError(
                f"edge {hello.edge!r} speaks wire version {hello.wire_version}, this cloud "
                f"speaks {WIRE_VERSION}: install the same sfl on both"
            )
        expect("edge", hello.edge)
        _expect_named(hello.edge, host.edges)
        while (old := self.streams.get(hello.edge)) is not None:
            # Its link may be half open: this process knows better, another one has to wait.
            if not hello.incarnation or hello.incarnation != old.incarnation:
                raise NameInUse(f"an edge named {hello.edge!r} is connected already")
            await old.end("the edge came back on a new stream")
        signatures = host.signatures(hello.edge)
        signatures.begin_stream()
        return Reporting(hello.edge, host, signatures, hello.incarnation)


def _expect_named(edge: str, known: Sequence[str]) -> None:
    """Refuse an edge that the run does not name, whatever its certificate. Raises Refused."""
    if edge in known:
        return
    reason = (
        f"no edge {edge!r} in this run; known: {', '.join(known)}; "
        "name it in run.edges of the run's file, at the cloud"
    )
    sparing.warning("edge", "edge %r refused: %s", edge, reason)
    raise Refused(reason)
