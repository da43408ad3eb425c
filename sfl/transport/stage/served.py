"""A device's stream at a stage: the server before it carries on what the device sends.

That server says when a round begins, and with which part of the adapter. This one says that it has
begun, and sends its part and those behind it once their last step is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Protocol

import numpy as np

from sfl.adapters.names import belongs_to
from sfl.config import RunSettings
from sfl.errors import LeftBehind, ProtocolError
from sfl.metrics.snapshot import NodeSnapshot
from sfl.rounds.values import Point, UpdateHeader
from sfl.stage.messages import TensorMessage
from sfl.stage.remembered import Moments
from sfl.stage.training import TrainingSession
from sfl.transport.device import checked
from sfl.transport.device.end import ServingEnd
from sfl.transport.device.onward import Next
from sfl.transport.device.served import FEW_WAITING
from sfl.transport.device.tensor_work import Coders
from sfl.transport.device.trained import RelayingHost, Trained
from sfl.transport.frames import contract, words
from sfl.transport.frames.chunks import Buffer, adapter_bytes, adapter_frames, decode_adapter
from sfl.transport.group import aside
from sfl.transport.shaper import Shaper
from sfl.transport.stage.members import Members, Names
from sfl.transport.stage.once import ReadOnce
from sfl.v1 import edge_pb2, tensor_pb2

Values = Mapping[str, np.ndarray]


class StageHost(RelayingHost, Protocol):
    """What a stage does for the streams of its devices."""

    @property
    def credits(self) -> int:
        """Micro-batches of one device that may be in flight here."""

    def began(self, device: str, round_: int) -> None:
        """A device has begun a round here."""

    async def turn(self, session: TrainingSession, message: TensorMessage) -> None:
        """Wait for others, where a step depends on theirs."""

    async def stepped(self, session: TrainingSession) -> bool:
        """A job is done; whether the session has taken all of its round's steps."""


class Carried(Trained):
    """One device's part in a run at a stage."""

    def __init__(
        self,
        device: str,
        session: TrainingSession,
        settings: RunSettings,
        host: StageHost,
        behind: Next | None,
        coders: Coders,
        end: ServingEnd,
        down: Shaper | None,
        server: str,
        known: ReadOnce[Names],
    ) -> None:
        """The stream is `server`'s; `known` has the names of those that share an adapter."""
        super().__init__(device, session, settings, host, coders, end, down, behind)
        self._stage = host
        self._members = Members(server, settings, known, host.stats.waits, self.stream.outbox.put)
        self._told: edge_pb2.Assignment | None = None
        """The round that was announced and has not begun here yet."""
        self._begins = False
        """Whether its adapter is here."""
        self._delivered = False

    @property
    def points(self) -> tuple[Point, ...]:
        """What this stage and all behind it have snapshots of."""
        own = self.end.remembered.points
        if self.behind is None:
            return own
        return tuple(sorted(set(own).intersection(self.behind.points)))

    @property
    def credits(self) -> int:
        """Micro-batches of the device that may be in flight here and at all stages behind."""
        own = self._stage.credits
        return own if self.behind is None else min(own, self.behind.credits)

    def take(self, message: edge_pb2.DeviceMessage, body: str) -> None:
        """As of any device; and a round's beginning, with its adapter."""
        if body == "start":
            self._announced(message.start)
        elif body == "together":
            self._members.take(message.together)
        elif body == "adapter":
            self._take_adapter(message.adapter)
        elif body == "heartbeat":
            return  # it has been heard; the server before keeps the device's statistics
        else:
            super().take(message, body)

    def _announced(self, told: edge_pb2.Assignment) -> None:
        """One round at a time, so that no more than one adapter waits here."""
        checked.assignment(words.from_assignment(told), self.settings, self.session.plan.num_layers)
        if self._told is not None:
            raise ProtocolError(
                f"round {told.round} was announced before round {self._told.round} had begun"
            )
        self._told = told

    def _take_adapter(self, frame: tensor_pb2.AdapterFrame) -> None:
        if self._told is None or self._begins:
            raise ProtocolError("an adapter came that was not announced")
        if frame.HasField("header"):
            contract.sized("the header of an adapter", frame.header, contract.MOST_BESIDE)
            if frame.header.round != self._told.round:
                raise ProtocolError(f"an adapter of round {frame.header.round} was not announced")
        whole = self.end.put_together(frame)
        if whole is not None:
            _, payload = whole
            self._begins = True
            self.jobs.ask(self._begin_round(self._told, payload))

    async def _begin_round(self, said: edge_pb2.Assignment, payload: Buffer) -> None:
        """All behind begin first; then who is before hears that all have."""
        session, told = self.session, await self._members.told(said)
        values = await asyncio.to_thread(decode_adapter, payload)
        span = told.plan.span_of(session.holder)
        mine = {name: array for name, array in values.items() if belongs_to(name, span)}
        rest = {name: array for name, array in values.items() if name not in mine}
        self.host.stats.start_round(told.round, 0)
        self.tensors.turnaround.begin_round()
        go_on = await asyncio.to_thread(self.end.begin_round, told)
        begin = partial(session.begin_round, told, mine, go_on=go_on)
        await self.host.engine.run(begin)
        self._stage.began(self.device, told.round)
        if self.behind is not None:
            await self.behind.begin_round(told, rest)
        self._delivered = told.steps.count == 0
        self._told, self._begins = None, False
        self.stream.outbox.put(edge_pb2.EdgeMessage(start=said))

    async def about_to_compute(self, message: TensorMessage) -> TensorMessage:
        """As at any server; and where an adapter is shared, the others come first."""
        message = await super().about_to_compute(message)
        await self._stage.turn(self.session, message)
        return message

    async def computed(self) -> None:
        """After the last step: this stage's part goes out, once the disk has what it came to."""
        session = self.session
        if not await self._stage.stepped(session) or self._delivered or not session.is_open:
            return
        self._delivered = True
        values = await self.host.engine.run(session.end_round)
        moments = await self.host.engine.run(session.moments)
        own = session.assignment
        with self.waits_for_disk():
            await aside(self._keep, own.point(session.step), moments)
        header = UpdateHeader(
            round=own.round,
            final_step=session.step,
            device=self.device,
            side=session.holder,
            scaling=own.scaling,
        )
        await self._stage.relay_adapter(header, await asyncio.to_thread(adapter_bytes, values))

    def look(self) -> None:
        """Others have taken a step: this device's round may be over by that."""
        self.jobs.put(self.computed())

    def _keep(self, point: Point, moments: Moments) -> None:
        self.end.reached(point, moments)
        self.end.remembered.written()
        if self.behind is not None:
            self.behind.round_over(point)

    def leave_behind(self, reason: LeftBehind) -> None:
        """The others go on without this device: its stream ends."""
        self.stream.outbox.fail(reason)

    @property
    def has_enough_to_send(self) -> bool:
        """Whether statistics would only wait: what does says that this stage lives."""
        return len(self.stream.outbox) > FEW_WAITING

    def tell(self, snapshot: NodeSnapshot) -> None:
        """Statistics of this stage, or of one behind it, go to the server before."""
        beat = tensor_pb2.Heartbeat(snapshot=snapshot.to_json())
        self.stream.outbox.put(edge_pb2.EdgeMessage(heartbeat=beat))

    def send_part(self, header: UpdateHeader, payload: Buffer) -> None:
        """A part of this stage, or of one behind it, goes to the server before."""
        for frame in adapter_frames(words.to_update_header(header), payload):
            self.stream.outbox.put(edge_pb2.EdgeMessage(adapter=frame))
