"""The cloud's door for edges: one stream each; adapters go to disk as they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import grpc
import grpc.aio

from sfl.config import RunSettings
from sfl.errors import DiskError, LinkLost, NameInUse, ProtocolError, Refused, SflError
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.node.causes import cause_of, foreseen
from sfl.node.files import on_disk
from sfl.node.logs import Sparing
from sfl.rounds.messages import DeviceLost
from sfl.rounds.values import (
    Admission,
    DeviceFacts,
    EdgeFacts,
    EdgeOrders,
    EdgeWelcome,
    RoundReport,
    UpdateHeader,
)
from sfl.transport.cloud.outbox import Outbox
from sfl.transport.cloud.spool import Part, Spool
from sfl.transport.cloud.words import CloudWord, from_edge_facts, from_left, to_cloud_messages
from sfl.transport.frames import contract, words
from sfl.transport.frames.contract import DeviceContract
from sfl.transport.frames.wire import CLOUD_SESSION, WIRE_VERSION, generic_handler
from sfl.transport.group import first_message, run_together
from sfl.transport.security.doorkeeper import expect
from sfl.transport.security.signed import NotSigned, SignatureCheck
from sfl.transport.status import status_of
from sfl.v1 import cloud_pb2, tensor_pb2

log = logging.getLogger(__name__)
sparing = Sparing(log)

Context = grpc.aio.ServicerContext[Any, Any]

SPOKEN_FOR = ("device_ready", "left", "adapter", "report")
"""What an edge says on behalf of one of its devices."""


def _device_of(message: cloud_pb2.EdgeReportMessage) -> str | None:
    """The device that a message is about; None for a further frame of an adapter."""
    body = message.WhichOneof("body")
    if body == "adapter":
        return message.adapter.header.device if message.adapter.HasField("header") else None
    device: str = getattr(message, body or "").device
    return device


class Host(Protocol):
    """What the cloud's shell does for an edge's stream."""

    stats: NodeStats
    idle_timeout: float
    heartbeat_interval: float
    spool: Spool
    edges: tuple[str, ...]
    """Names of the edges that may take part."""

    def signatures(self, edge: str) -> SignatureCheck:
        """What checks the signatures of an edge's devices."""

    @property
    def run_settings(self) -> RunSettings:
        """What every node knows of the run."""

    @property
    def adapter_limit(self) -> int:
        """Most bytes of one part of an update."""

    def welcome(self) -> EdgeWelcome:
        """What an edge is told first; its challenge is the stream's."""

    def not_joined(self, edge: str, device: str, reason: str) -> None:
        """An edge says that a device joins, and the device did not say so."""

    def not_signed(self, edge: str, device: str, reason: str) -> None:
        """An edge says something of a device that the device did not say."""

    def edge_ready(self, edge: str, facts: EdgeFacts) -> None:
        """An edge has its base."""

    def edge_lost(self, edge: str, reason: str) -> None:
        """An edge's stream is closed."""

    def edge_failed(self, edge: str, reason: str) -> None:
        """An edge can't go on."""

    def failed(self, error: SflError) -> None:
        """The cloud itself can't go on."""

    def device_joined(self, edge: str, device: str) -> None:
        """A device asks to take part."""

    def device_ready(self, device: str, facts: DeviceFacts) -> None:
        """A device has its span and its data."""

    def device_left(self, lost: DeviceLost) -> None:
        """A device's stream is closed."""

    def device_broke(self, device: str, reason: str) -> None:
        """A device broke the contract, and is left out."""

    def update_received(self, header: UpdateHeader) -> None:
        """One side's part of an update lies in the spool."""

    def reported(self, report: RoundReport) -> None:
        """A device tells how its round went."""

    def heard(self, snapshot: NodeSnapshot) -> None:
        """Statistics of an edge or of one of its devices, which they are."""


@dataclass(slots=True)
class EdgeStream:
    """One edge's open stream."""

    edge: str
    host: Host
    outbox: Outbox = field(init=False)
    last_heard: float = field(default_factory=time.monotonic)
    part: Part | None = None
    devices: dict[str, DeviceContract] = field(default_factory=dict)
    """The devices that were admitted through this edge: the only ones it can speak for."""
    signatures: SignatureCheck = field(default_factory=lambda: SignatureCheck("", "", None))
    """What checks that they said so themselves; the default asks nobody."""
    is_ready: bool = False
    _passing_over: bool = False
    """Whether an adapter is coming in that is not kept."""
    _pace: contract.Pace = field(init=False)

    def __post_init__(self) -> None:
        self._pace = contract.Pace(self.host.heartbeat_interval)
        self.outbox = Outbox(len(self.host.run_settings.devices))

    def admitted(self, device: str) -> None:
        """From now on this edge speaks for the device."""
        self.devices[device] = DeviceContract(device, self.host.run_settings)

    def post(self, word: CloudWord) -> None:
        """Queue what the edge is told."""
        if isinstance(word, EdgeOrders):
            for device, start in word.devices.items():
                if device in self.devices:
                    self.devices[device].begin(start)
        for message in to_cloud_messages(word):
            self.outbox.put(message)

    async def read(self, requests: AsyncIterator[cloud_pb2.EdgeReportMessage]) -> None:
        """Take what the edge sends."""
        try:
            async for message in requests:
                self.last_heard = time.monotonic()
                self._take(message)
        finally:
            self._drop_part()
        raise LinkLost("the edge closed the stream")

    async def write(self, context: Context) -> None:
        """Send what is queued."""
        while True:
            await context.write(await self.outbox.get())

    async def beat(self) -> None:
        """Heartbeats out; too long a silence ends the stream."""
        while True:
            await asyncio.sleep(self.host.heartbeat_interval)
            silent = time.monotonic() - self.last_heard
            if silent > self.host.idle_timeout:
                raise LinkLost(f"not a byte for {silent:.0f} s")
            if not self.outbox:  # else it hears of those
                self.outbox.put(cloud_pb2.CloudMessage(heartbeat=tensor_pb2.Heartbeat()))

    def _take(self, message: cloud_pb2.EdgeReportMessage) -> None:
        takers: dict[str, Callable[[], None]] = {
            "ready": lambda: self._ready(message.ready),
            "join": lambda: self._join(message.join),
            "device_ready": lambda: self._device_ready(message.device_ready),
            "left": lambda: self._left(message.left),
            "adapter": lambda: self._spool(message.adapter),
            "report": lambda: self._report(message.report),
            "heartbeat": lambda: self._hear(message.heartbeat),
            "failure": lambda: self._failed(message.failure),
        }
        body = message.WhichOneof("body") or ""
        if body not in takers:
            raise ProtocolError(f"{body or 'an empty message'} was not expected")
        device = _device_of(message) if body in SPOKEN_FOR else None
        if device is not None and device not in self.devices:
            # May also come late, of a device that another edge has since: no reason to hang up.
            sparing.warning(
                body, "edge %s: %s of device %r, which is not its own", self.edge, body, device
            )
            self._passing_over = body == "adapter"
            return
        if device is None and body == "adapter" and self.part is not None:
            device = self.part.header.device
        try:
            takers[body]()
        except NotSigned as error:
            self._drop_part()
            tell = self.host.not_joined if body == "join" else self.host.not_signed
            tell(self.edge, error.device, str(error))
        except Exception as error:
            foreign = isinstance(error, ProtocolError) or foreseen(error) is None
            if device is None or not foreign:
                raise
            # What nobody foresaw is a bug, and still of that device's words alone.
            self._break_with(device, str(cause_of(error)))

    def _break_with(self, device: str, reason: str) -> None:
        """What is wrong with one device's own words costs that device, and nobody else."""
        self._drop_part()
        self._passing_over = True
        self.devices.pop(device, None)
        self.host.device_broke(device, reason)

    def _ready(self, message: cloud_pb2.EdgeReady) -> None:
        if self.is_ready:
            raise ProtocolError("ready was said twice")
        self.host.edge_ready(self.edge, from_edge_facts(message))
        self.is_ready = True

    def _join(self, join: cloud_pb2.DeviceJoin) -> None:
        contract.name("device", join.device)
        contract.sized("a proof", join.proof, contract.MOST_BESIDE)
        self.signatures.join(join)
        self.host.device_joined(self.edge, join.device)

    def _left(self, left: cloud_pb2.DeviceLeft) -> None:
        self.host.device_left(from_left(left))

    def _failed(self, words: str) -> None:
        self.host.edge_failed(self.edge, contract.reason(words))

    def _hear(self, beat: tensor_pb2.Heartbeat) -> None:
        """Pass on statistics of the edge itself and of those that it can speak for."""
        self._pace.take("heartbeat", self.last_heard)
        self.host.heard(contract.statistics(beat.snapshot, "edge", self.edge))
        for text in beat.devices:
            snapshot = NodeSnapshot.from_json(text)
            # A device may not be admitted yet, or another edge may have it since.
            if snapshot.kind == "device" and snapshot.name in self.devices:
                self.host.heard(snapshot)

    def _device_ready(self, message: cloud_pb2.DeviceIsReady) -> None:
        self.signatures.ready(message.device, message.ready)
        if not self.is_ready:
            raise ProtocolError("a device was ready before its edge was")
        self.devices[message.device].ready(message.ready)
        self.host.device_ready(message.device, words.from_device_facts(message.ready))

    def _report(self, report: tensor_pb2.RoundReport) -> None:
        self.signatures.report(report)
        self.devices[report.device].report(report)
        self._pace.grant()  # an edge says how it is with every report
        self.host.reported(words.from_report(report))

    def _spool(self, frame: tensor_pb2.AdapterFrame) -> None:
        """Write a frame to disk; an update never lies in memory as a whole."""
        if self._passing_over and not frame.HasField("header"):
            return
        self._passing_over = False
        if frame.HasField("header"):
            self._begin_part(frame.header)
        if self.part is None:
            raise ProtocolError("an adapter frame without a header before it")
        with on_disk(self.host.spool.folder):
            self.part.write(frame.data)
            if not frame.last:
                return
            part, self.part = self.part, None
            part.close(partial(self.signatures.update, part.header))
        self.host.update_received(words.from_update_header(part.header))

    def _begin_part(self, header: tensor_pb2.AdapterHeader) -> None:
        if self.part is not None:
            raise ProtocolError("a new adapter began before the last frame of the one before")
        self.devices[header.device].part(header, header.side, self.host.adapter_limit)
        with on_disk(self.host.spool.folder):
            self.part = self.host.spool.begin(header)

    def _drop_part(self) -> None:
        if self.part is not None:
            self.part.drop()
            self.part = None


class CloudService:
    """Serves edges; the host decides, this moves bytes."""

    def __init__(self, stats: NodeStats) -> None:
        self._stats = stats
        self.streams: dict[str, EdgeStream] = {}

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

    async def drain(self, seconds: float) -> None:
        """Give edges a moment to take their last message and hang up."""
        end = time.monotonic() + seconds
        while self.streams and time.monotonic() < end:
            await asyncio.sleep(0.02)

    async def _session(
        self, host: Host, requests: AsyncIterator[cloud_pb2.EdgeReportMessage], context: Context
    ) -> None:
        try:
            stream = await self._open(host, requests)
        except SflError as error:
            await context.abort(status_of(error), str(error))
        self.streams[stream.edge] = stream
        self._stats.connected = len(self.streams)
        stream.post(replace(host.welcome(), challenge=stream.signatures.challenge))
        reason: SflError = LinkLost("the stream broke")
        try:
            await run_together(
                stream.read(requests), stream.write(context), stream.beat(), stream.outbox.watch()
            )
        except SflError as error:
            reason = error
            if isinstance(error, DiskError):  # the cloud's own: no edge's fault
                host.failed(error)
        finally:
            del self.streams[stream.edge]
            self._stats.connected = len(self.streams)
            host.edge_lost(stream.edge, str(reason))
        # Last, since an edge that reads nothing does not take this either.
        with contextlib.suppress(grpc.aio.AbortError):
            await context.abort(status_of(reason), str(reason))

    async def _open(
        self, host: Host, requests: AsyncIterator[cloud_pb2.EdgeReportMessage]
    ) -> EdgeStream:
        hello = (await first_message(requests, "hello")).hello
        contract.name("edge", hello.edge)
        if hello.wire_version != WIRE_VERSION:
            raise ProtocolError(
                f"edge {hello.edge!r} speaks wire version {hello.wire_version}, this cloud "
                f"speaks {WIRE_VERSION}: install the same sfl on both"
            )
        expect("edge", hello.edge)
        _expect_named(hello.edge, host.edges)
        if hello.edge in self.streams:
            raise NameInUse(f"an edge named {hello.edge!r} is connected already")
        return EdgeStream(hello.edge, host, signatures=host.signatures(hello.edge))


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
