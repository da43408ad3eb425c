"""A device at its edge: what the messages of its stream mean.

    read   takes messages, and has tensors put together and decoded off the loop
    work   hands decoded messages to the compute thread, in the order they came
    land   the same for gradients, which wait for no activation

and beside them the coroutines of the stream itself. Bytes are counted by the end that opens a link,
so the device counts these.

A message that breaks the contract closes its own stream with a status that says why; the other
devices go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sfl.config import RunSettings
from sfl.config.run import NetworkSettings
from sfl.errors import AdapterRefused, LinkLost, ProtocolError, SflError
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.metrics.timeline import spans_to_json
from sfl.rounds.values import (
    Assignment,
    DeviceFacts,
    DeviceWelcome,
    Proof,
    RoundReport,
    UpdateHeader,
)
from sfl.stage.engine import Engine
from sfl.stage.training import TrainingSession
from sfl.transport.bulk.files import FileEntry
from sfl.transport.device import checked
from sfl.transport.device.adapter_work import AdapterWork
from sfl.transport.device.decode_slots import DecodeSlots
from sfl.transport.device.end import EdgeEnd
from sfl.transport.device.jobs import Jobs
from sfl.transport.device.overtaking import DeviceStream, Overtaking
from sfl.transport.device.tensor_work import Coders, TensorWork
from sfl.transport.frames import contract, words
from sfl.transport.frames.chunks import Buffer
from sfl.transport.frames.contract import DeviceContract
from sfl.transport.frames.envelope import Frame
from sfl.transport.shaper import shaper
from sfl.transport.stream import Context, Heartbeats
from sfl.v1 import edge_pb2, tensor_pb2

MOST_JOBS = 16
"""What may wait beside a device's tensors: the parts of a round's end and begin, and norms."""

ALIVE = edge_pb2.EdgeMessage(heartbeat=tensor_pb2.Heartbeat())

FEW_WAITING = 16
"""Messages that tell a device that its edge lives as well as a heartbeat would."""


def heartbeats(network: NetworkSettings) -> Heartbeats:
    """A device's, as the run's settings have them."""
    return Heartbeats(ALIVE, network.heartbeat_interval, network.idle_timeout, FEW_WAITING)


class Host(Protocol):
    """What the edge does for a device's stream once its base is loaded."""

    stats: NodeStats
    engine: Engine
    slots: DecodeSlots
    """For the activations that may be decoded on this edge, over all devices."""
    adapter_limit: int
    """Most bytes of an adapter of this run."""

    async def admit(self, device: str, proof: Proof) -> tuple[DeviceWelcome, TrainingSession]:
        """Ask the cloud, make a session. Raises Refused where the cloud says no."""

    def ready(self, device: str, facts: DeviceFacts) -> None:
        """The device has its span and its data."""

    async def left(self, device: str, reason: SflError) -> None:
        """The device was admitted, and is gone; its session is given back, where it has one."""

    async def relay_adapter(self, header: UpdateHeader, payload: Buffer) -> None:
        """Pass a device's or the edge's part on to the cloud."""

    def relay_report(self, report: RoundReport) -> None:
        """Pass a report on to the cloud."""

    def heard(self, device: str, snapshot: NodeSnapshot) -> None:
        """Keep a device's latest statistics."""

    async def files(self, device: str) -> Sequence[FileEntry]:
        """The files of a device's span. Raises Refused."""

    def read_file(self, device: str, name: str, offset: int) -> AsyncIterator[bytes]:
        """One of them from `offset` on, in chunks. Raises Refused."""


class Training:
    """One device's part in a run, while its stream is open."""

    def __init__(
        self,
        device: str,
        session: TrainingSession,
        settings: RunSettings,
        host: Host,
        coders: Coders,
        end: EdgeEnd,
    ) -> None:
        self.device = device
        self.settings = settings
        self.host = host
        self.end = end
        link, phases = settings.device(device).link, host.stats.phases
        self.stream = DeviceStream(
            device, Overtaking(), heartbeats(settings.network), phases, shaper(link, "down")
        )
        self.jobs = Jobs(2 * settings.network.credits + MOST_JOBS)
        self.tensors = TensorWork(session, host, end, coders, self.stream)
        self.adapters = AdapterWork(session, host, end, coders, self.stream)
        self.is_ready = False
        """Whether the device has its span; before, no adapter and no sum is due."""
        self.base_updates = 0
        """How many rounds' sums the device has been sent for its base."""
        self.ended: SflError | None = None
        """Why its stream is being closed, where this edge closes it."""
        self._contract = DeviceContract(device, settings)
        self._beats = contract.Pace(settings.network.heartbeat_interval)

    # -- called by the host ---------------------------------------------------------------------

    @property
    def moved(self) -> int:
        """Messages from and to the device, heartbeats apart."""
        return self.stream.moved

    @property
    def last_heard(self) -> float:
        """When it last sent a byte, in seconds of `time.monotonic`."""
        return self.stream.last_heard

    def begin_round(
        self,
        told: Assignment,
        mine: Mapping[str, np.ndarray],
        theirs: Mapping[str, np.ndarray],
    ) -> None:
        """Load the edge's part, then send the device its own."""
        self.jobs.put(self._begin_round(told, mine, theirs))

    def fold(
        self, round_: int, theirs: Mapping[str, np.ndarray], folded: asyncio.Task[None]
    ) -> None:
        """Send the device its part of what `round_` gave, unless it has that or lacks the one
        before; `folded` is done once the edge's base has it."""
        if round_ == self.base_updates + 1:
            self.base_updates = round_
            self.jobs.put(self._fold(round_, theirs, folded))

    def finish(self, ok: bool, reason: str) -> None:
        """Tell the device that the run is over; it then closes the stream.

        One whose stream is being closed is told why that is, and nothing else.
        """
        if self.ended is None:
            self.stream.outbox.put(
                edge_pb2.EdgeMessage(finish=edge_pb2.Finish(ok=ok, reason=reason))
            )

    # -- its life ---------------------------------------------------------------------------------

    def coroutines(
        self, requests: AsyncIterator[edge_pb2.DeviceMessage | Frame], context: Context
    ) -> tuple[Coroutine[Any, Any, None], ...]:
        """What is to run while the stream is open."""
        return (
            self.read(requests),
            self.jobs.work(),
            self.jobs.land(),
            *self.stream.coroutines(context),
        )

    async def read(self, requests: AsyncIterator[edge_pb2.DeviceMessage | Frame]) -> None:
        """Take what the device sends, until it says goodbye."""
        self.host.slots.enter(self.tensors)
        await self.stream.read(requests, self._take)
        raise LinkLost("the device closed the stream")

    async def abandon(self) -> None:
        """Give back what a stream that has ended still holds."""
        self.jobs.clear()
        await self.tensors.abandon()

    # -- messages ---------------------------------------------------------------------------------

    def _take(self, message: edge_pb2.DeviceMessage | Frame) -> None:
        if isinstance(message, Frame):
            self.tensors.take(message, self.jobs)
            return
        body = message.WhichOneof("body")
        if body == "goodbye":
            kind = AdapterRefused if message.cannot_compute else Goodbye
            raise kind(contract.reason(message.goodbye))
        if body == "adapter":
            self._take_adapter(message.adapter)
        elif body == "norm":
            self.jobs.ask(self.tensors.compute(checked.gradient_norm(message.norm)))
        elif body == "heartbeat":
            self._beats.take("heartbeat", self.last_heard)
            self._hear(self._contract.statistics(message.heartbeat.snapshot))
        elif body == "report":
            self._take_report(message.report)
        elif body == "ready":
            self._hear(self._contract.ready(message.ready))
            self.is_ready = True
            self.host.ready(self.device, words.from_device_facts(message.ready))
        else:
            raise ProtocolError(f"{body or 'an empty message'} was not expected")

    def _take_report(self, report: tensor_pb2.RoundReport) -> None:
        report.device = self.device
        spans = self.host.stats.phases.timeline.take(self.device)
        report.edge_spans = spans_to_json(spans)
        self._hear(self._contract.report(report))
        self.host.relay_report(words.from_report(report))

    def _hear(self, snapshot: NodeSnapshot) -> None:
        self.host.heard(self.device, snapshot)

    def _take_adapter(self, frame: tensor_pb2.AdapterFrame) -> None:
        """Relay the device's part once it is whole, and read off the edge's own."""
        if frame.HasField("header"):
            self._contract.part(frame.header, "device", self.host.adapter_limit)
        whole = self.end.take_adapter(frame)
        if whole is None:
            return
        header, payload = whole
        header.device, header.side = self.device, "device"
        self.jobs.put(self.adapters.relay(header, payload))
        self.jobs.put(self.adapters.send_own(header.round))

    async def _begin_round(
        self,
        told: Assignment,
        mine: Mapping[str, np.ndarray],
        theirs: Mapping[str, np.ndarray],
    ) -> None:
        session = self.tensors.session
        checked.assignment(told, self.settings, session.plan.num_layers)
        self.tensors.turnaround.begin_round()
        self.end.begin_round(told)
        await self.host.engine.run(session.begin_round, told, mine)
        self._contract.begin(told)
        self.stream.outbox.put(edge_pb2.EdgeMessage(start=words.to_assignment(told)))
        await self.adapters.send_round(theirs, told.round)

    async def _fold(
        self, round_: int, theirs: Mapping[str, np.ndarray], folded: asyncio.Task[None]
    ) -> None:
        await asyncio.shield(folded)  # it is the other devices' too
        await self.adapters.send_base_update(theirs, round_)


class Goodbye(SflError):
    """The device left on purpose."""
