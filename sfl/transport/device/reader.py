"""What an edge's messages mean to a device that it has taken in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sfl.errors import ProtocolError, UserError
from sfl.metrics.snapshot import Role
from sfl.metrics.stats import NodeStats
from sfl.plan import Toward
from sfl.rounds.values import Assignment
from sfl.stage.messages import TensorMessage
from sfl.transport.device import checked
from sfl.transport.device.crossing import note
from sfl.transport.device.end import Arrival, DeviceEnd
from sfl.transport.device.greeting import finish_of
from sfl.transport.device.line import Incoming
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.tensors import held_of, raw_bytes
from sfl.transport.frames.whereabouts import from_edges, from_elsewhere
from sfl.transport.frames.wire import tensor_role, wire_bytes
from sfl.transport.frames.words import (
    from_assignment,
)
from sfl.v1 import edge_pb2


@dataclass(frozen=True, slots=True)
class Declined:
    """What the edge asked for, this device does not do; the stream itself is sound."""

    error: UserError


class Reader:
    """Turns an edge's messages into what the device's main thread waits for."""

    def __init__(
        self,
        end: DeviceEnd,
        stats: NodeStats,
        put: Callable[[object], None],
        agree: Callable[[Assignment], None] = lambda own: None,
        begin: Callable[[Assignment], None] = lambda own: None,
        hear_edges: Callable[[Mapping[str, str]], None] = lambda edges: None,
    ) -> None:
        """`agree` raises UserError where this device does not do what it is told; `begin` hears
        what it does, `hear_edges` which edges are there."""
        self._end = end
        self._stats = stats
        self._put = put
        self._agree = agree
        self._begin = begin
        self._hear_edges = hear_edges

    def take(self, message: Incoming) -> bool:
        """Count a message, and pass on what it completes."""
        if isinstance(message, Frame):
            self._on_tensor(message)
            return True
        body = message.WhichOneof("body")
        take = {
            "start": self._on_start,
            "adapter": self._on_adapter,
            "norm": self._on_norm,
            "heartbeat": self._on_heartbeat,
            "finish": self._on_finish,
            "elsewhere": self._on_elsewhere,
            "edges": self._on_edges,
        }.get(body or "")
        if body in ("welcome", "challenge"):
            raise ProtocolError(f"the edge said {body} twice")
        if take is None:
            raise ProtocolError("an empty message, or one of another wire version")
        self._count(message, "adapter" if body == "adapter" else "control")
        take(message)
        return True

    def _count(self, message: Incoming, role: Role, raw: int = 0) -> None:
        self._stats.bytes.add("down", role, wire_bytes(message), raw)

    def _on_heartbeat(self, message: edge_pb2.EdgeMessage) -> None:
        """It has been heard."""

    def _on_norm(self, message: edge_pb2.EdgeMessage) -> None:
        self._put(checked.gradient_norm(message.norm, Toward.INPUT))

    def _on_finish(self, message: edge_pb2.EdgeMessage) -> None:
        self._put(finish_of(message.finish))

    def _on_elsewhere(self, message: edge_pb2.EdgeMessage) -> None:
        self._put(from_elsewhere(message.elsewhere))

    def _on_edges(self, message: edge_pb2.EdgeMessage) -> None:
        self._hear_edges(from_edges(message.edges.edges))

    def _on_start(self, message: edge_pb2.EdgeMessage) -> None:
        told = from_assignment(message.start)
        checked.assignment(told, self._end.settings, self._end.num_layers)
        try:
            self._agree(told)
        except UserError as error:
            # Not by ending this stream: the caller is to say goodbye, with the reason.
            self._put(Declined(error))
            self._end.begin_round(told, agreed=False)
        else:
            self._begin(told)
            self._end.begin_round(told)

    def _on_adapter(self, message: edge_pb2.EdgeMessage) -> None:
        frame = message.adapter
        first, now = frame.HasField("header"), self._stats.phases.now()
        self._stats.link.adapter(now, len(frame.data), first, frame.last)
        whole = self._end.take_adapter(frame)
        if whole is not None:
            self._put(whole)

    def _note(self, message: TensorMessage, arrival: Arrival) -> None:
        """What the cost model learns from an answer."""
        if (held := held_of(arrival.header)) is not None:
            self._stats.link.answered(message.key, arrival.ended, arrival.num_bytes, held)
        plan = self._end.assignment.plan
        note(self._stats.crossed, message, plan, "down", arrival.num_bytes)

    def _on_tensor(self, frame: Frame) -> None:
        header = self._end.header_of(frame)
        if header is not None:
            raw = raw_bytes(header) if frame.header is not None else 0
            self._count(frame, tensor_role(header), raw)
        arrival = self._end.take_frame(frame, self._stats.phases.now())
        if arrival is not None:
            message = self._end.decode(arrival)
            self._note(message, arrival)
            self._put(replace(message, arrived=self._stats.phases.now()))
