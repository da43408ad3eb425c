"""A device at its edge while its stream is open: tensors to its session, and answers back.

    read   takes messages, and has tensors put together and decoded off the loop
    work   hands decoded messages to the compute thread, in the order they came
    land   the same for gradients, which wait for no activation

and beside them the coroutines of the stream itself. Bytes are counted by the end that opens a link,
so the device counts these.

A message that breaks the contract closes its own stream with a status that says why; the other
devices go on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from sfl.config import RunSettings
from sfl.config.network import NetworkSettings
from sfl.errors import AdapterRefused, Elsewhere, Goodbye, LinkLost, ProtocolError, SflError
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.plan import Toward
from sfl.rounds.values import NO_TRIPS, DeviceWelcome, Proof, RoundTrips
from sfl.stage.engine import Engine
from sfl.stage.messages import Finish, TensorMessage
from sfl.stage.session import Session
from sfl.transport.bulk.files import FileEntry
from sfl.transport.device import checked
from sfl.transport.device.decode_slots import DecodeSlots
from sfl.transport.device.end import EdgeEnd, ServingEnd
from sfl.transport.device.jobs import Jobs
from sfl.transport.device.lanes import Declared
from sfl.transport.device.onward import Onward
from sfl.transport.device.overtaking import DeviceStream, Overtaking
from sfl.transport.device.tensor_work import Coders, TensorWork
from sfl.transport.frames import contract, whereabouts
from sfl.transport.frames.envelope import Frame
from sfl.transport.shaper import Shaper
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
    """What the edge does for a device's stream, whatever its session is for."""

    stats: NodeStats
    engine: Engine
    slots: DecodeSlots
    """For the activations that may be decoded on this edge, over all devices."""
    adapter_limit: int
    """Most bytes of an adapter that a device may send."""

    async def left(self, device: str, reason: SflError) -> None:
        """The device was admitted, and is gone; its session is given back, where it has one."""

    def heard(self, device: str, snapshot: NodeSnapshot) -> None:
        """Keep a device's latest statistics."""

    async def files(self, device: str) -> Sequence[FileEntry]:
        """The files of a device's span. Raises Refused."""

    def read_file(self, device: str, name: str, offset: int) -> AsyncIterator[bytes]:
        """One of them from `offset` on, in chunks. Raises Refused."""


class Served:
    """One device, and the session that its tensors are for."""

    def __init__(
        self,
        device: str,
        session: Session,
        settings: RunSettings,
        host: Host,
        coders: Coders,
        end: ServingEnd,
        down: Shaper | None = None,
        onward: Onward | None = None,
    ) -> None:
        """`down` slows what is sent, `onward` leads to the stage behind this server."""
        self.device = device
        self.settings = settings
        self.host = host
        self.end = end
        beats = heartbeats(settings.network)
        self.stream = DeviceStream(device, Overtaking(), beats, host.stats.phases, down)
        self.jobs = Jobs(2 * settings.network.credits + MOST_JOBS)
        before, after = self.about_to_compute, self.computed
        self.tensors = TensorWork(session, host, end, coders, self.stream, before, after, onward)
        self.ended: SflError | None = None
        """Why its stream is being closed, where this edge closes it."""
        self._told_edges: dict[str, str] = {}
        self._beats = contract.Pace(settings.network.heartbeat_interval)

    @property
    def moved(self) -> int:
        """Messages from and to the device, heartbeats apart."""
        return self.stream.moved

    @property
    def last_heard(self) -> float:
        """When it last sent a byte, in seconds of `time.monotonic`."""
        return self.stream.last_heard

    def finish(self, end: Finish) -> None:
        """Tell the device that the run is over; it then closes the stream.

        One whose stream is being closed is told why that is, and nothing else.
        """
        if self.ended is None:
            self.stream.outbox.put(to_finish(end))

    def send_on(self, elsewhere: Elsewhere) -> None:
        """Name another edge to the device; it goes there between two rounds."""
        if self.ended is None:
            self.stream.outbox.put(to_elsewhere(elsewhere))

    def tell_edges(self, edges: Mapping[str, str]) -> None:
        """Which edges of the run are there, unless the device has been told just that."""
        if edges != self._told_edges:
            self._told_edges = dict(edges)
            said = edge_pb2.Edges(edges=whereabouts.to_edges(edges))
            self.stream.outbox.put(edge_pb2.EdgeMessage(edges=said))

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

    async def about_to_compute(self, message: TensorMessage) -> TensorMessage:
        """Do what comes before a tensor's turn; the message that is computed with then."""
        return message

    async def computed(self) -> None:
        """Do what comes behind it."""

    def _take(self, message: edge_pb2.DeviceMessage | Frame) -> None:
        if isinstance(message, Frame):
            self.tensors.take(message, self.jobs)
        else:
            self.take(message, message.WhichOneof("body") or "")

    def take(self, message: edge_pb2.DeviceMessage, body: str) -> None:
        """Do what a message says that is no tensor; `body` is its kind. Raises SflError."""
        if body == "goodbye":
            reason = contract.reason(message.goodbye)
            if message.cannot_compute:
                raise AdapterRefused(reason)
            raise Goodbye(reason, message.returns)
        if body == "norm":
            self.jobs.ask(self.tensors.compute(checked.gradient_norm(message.norm, Toward.LOSS)))
        elif body == "heartbeat":
            self._beats.take("heartbeat", self.last_heard)
            said = message.heartbeat.snapshot
            self.host.heard(self.device, contract.statistics(said, "device", self.device))
        else:
            raise ProtocolError(f"{body or 'an empty message'} was not expected")


def to_finish(end: Finish) -> edge_pb2.EdgeMessage:
    """The end of the run as the wire has it."""
    said = edge_pb2.Finish(ok=end.ok, reason=end.reason, run_key=end.run_key)
    return edge_pb2.EdgeMessage(finish=said)


def to_elsewhere(elsewhere: Elsewhere) -> edge_pb2.EdgeMessage:
    """Another edge as the wire has it."""
    return edge_pb2.EdgeMessage(elsewhere=whereabouts.to_elsewhere(elsewhere))


V = TypeVar("V", bound=Served)
V_co = TypeVar("V_co", bound=Served, covariant=True)


@dataclass(frozen=True, slots=True)
class Admitted(Generic[V_co]):
    """A device that is let in: what it is told, and what serves it once it has been told."""

    welcome: DeviceWelcome
    hidden_size: int
    """How wide the rows are that it may send."""
    serve: Callable[[Coders, EdgeEnd], V_co]
    named: tuple[Declared, ...] = ()
    """What travels beside them."""


class Door(Host, Protocol[V_co]):
    """A host that lets devices in."""

    async def admit(
        self, device: str, proof: Proof, round_trips: RoundTrips = NO_TRIPS
    ) -> Admitted[V_co]:
        """Ask the cloud, make a session. Raises Refused where the cloud says no, Elsewhere where
        it has another edge for the device."""
