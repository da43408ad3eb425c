"""A device that trains, at its edge: what the messages of its rounds mean.

An assignment and the device's part of the adapter go out as a round begins; the part it trained and
its report come back. Its tensors are served as any device's (`served`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Protocol

import numpy as np

from sfl.config import RunSettings
from sfl.cost.shown import NO_SUMS, RECEIVED
from sfl.errors import ProtocolError
from sfl.metrics.costs import passes_to_json
from sfl.metrics.timeline import spans_to_json
from sfl.metrics.transfers import Burst
from sfl.plan import Moves, taken_by
from sfl.rounds.values import Assignment, DeviceFacts, Point, RoundReport
from sfl.stage.messages import BlockMoments
from sfl.stage.remembered import Moments
from sfl.stage.training import TrainingSession
from sfl.transport.device import checked
from sfl.transport.device.adapter_work import AdapterWork
from sfl.transport.device.end import EdgeEnd
from sfl.transport.device.onward import Next, as_allowed
from sfl.transport.device.tensor_work import Coders
from sfl.transport.device.trained import RelayingHost, Trained
from sfl.transport.frames import contract, words
from sfl.transport.frames.contract import DeviceContract
from sfl.transport.frames.wire import MOMENTS
from sfl.transport.shaper import shaper
from sfl.v1 import edge_pb2, tensor_pb2

log = logging.getLogger("sfl.edge")

Values = Mapping[str, np.ndarray]
NOTHING: Values = MappingProxyType({})


class TrainingHost(RelayingHost, Protocol):
    """What the edge does for a device that trains, beside what any server does."""

    def ready(self, device: str, facts: DeviceFacts, points: tuple[Point, ...]) -> None:
        """The device has its span and its data; `points` are what this edge has snapshots of."""

    def relay_report(self, report: RoundReport) -> None:
        """Pass a report on to the cloud."""


class Training(Trained):
    """One device's part in a run, while its stream is open."""

    def __init__(
        self,
        device: str,
        session: TrainingSession,
        settings: RunSettings,
        host: TrainingHost,
        coders: Coders,
        end: EdgeEnd,
        behind: Next | None = None,
    ) -> None:
        """`behind` leads to the stage behind this edge; None where there is none."""
        down = shaper(settings.device(device).link, "down")
        super().__init__(device, session, settings, host, coders, end, down, behind)
        self.end: EdgeEnd = end
        keep = self.waits_for_disk
        self.adapters = AdapterWork(session, host, end, coders, self.stream, keep, behind)
        self.is_ready = False
        """Whether the device has its span; before, no adapter and no sum is due."""
        self._moments: asyncio.Future[BlockMoments] | None = None
        self._burst, self._received = Burst(), NO_SUMS
        self.base_updates = 0
        """How many rounds' sums the device has been sent for its base."""
        self._cloud = host
        self._contract = DeviceContract(device, settings)

    # -- called by the host ---------------------------------------------------------------------

    def begin_round(
        self,
        told: Assignment,
        mine: Values,
        theirs: Values,
        behind: Values = NOTHING,
    ) -> None:
        """Load the edge's part and send the stage behind its own, then the device its own."""
        self.jobs.put(self._begin_round(told, mine, theirs, behind))

    def fold(
        self, round_: int, theirs: Mapping[str, np.ndarray], folded: asyncio.Task[None]
    ) -> None:
        """Send the device its part of what `round_` gave, unless it has that or lacks the one
        before; `folded` is done once the edge's base has it."""
        if round_ == self.base_updates + 1:
            self.base_updates = round_
            self.jobs.put(self._fold(round_, theirs, folded))

    # -- messages ---------------------------------------------------------------------------------

    def take(self, message: edge_pb2.DeviceMessage, body: str) -> None:
        """As of any device; and its part of an adapter, its report, and that it is ready."""
        if body == "adapter":
            self._take_adapter(message.adapter)
        elif body == "report":
            self._take_report(message.report)
        elif body == "ready":
            self.host.heard(self.device, self._contract.ready(message.ready))
            self.is_ready = True
            facts = words.from_device_facts(message.ready)
            self._cloud.ready(self.device, facts, self._points)
        else:
            super().take(message, body)

    @property
    def _points(self) -> tuple[Point, ...]:
        """What this edge and all behind it have snapshots of."""
        own = self.end.remembered.points
        if self.behind is None:
            return own
        return tuple(sorted(set(own).intersection(self.behind.points)))

    def _take_report(self, report: tensor_pb2.RoundReport) -> None:
        report.device = self.device
        spans = self.host.stats.phases.timeline.take(self.device)
        report.edge_spans = spans_to_json(spans)
        passes = self.host.stats.phases.passes.take(self.device)
        received, self._received = self._received, NO_SUMS
        if received.passes:
            passes = {**passes, RECEIVED: received}
        report.edge_passes = passes_to_json(passes)
        self.host.heard(self.device, self._contract.report(report))
        self._cloud.relay_report(words.from_report(report))

    def _take_adapter(self, frame: tensor_pb2.AdapterFrame) -> None:
        """Relay the device's part once it is whole, and read off the edge's own."""
        now, first = self.host.stats.phases.now(), frame.HasField("header")
        self._received += self._burst.frame(now, len(frame.data), first, frame.last)
        if first:
            if frame.header.side == MOMENTS:
                self._check_moments(frame.header)
            else:
                self._contract.part(frame.header, "device", self.host.adapter_limit)
        whole = self.end.put_together(frame)
        if whole is None:
            return
        header, payload = whole
        if header.side == MOMENTS:
            self._take_moments(self.end.moments_of(header, payload))
            return
        header.device, header.side = self.device, "device"
        self.jobs.put(self.adapters.relay(header, payload))
        self.jobs.put(self.adapters.send_own(header.round))

    def _check_moments(self, header: tensor_pb2.AdapterHeader) -> None:
        """Before any of them is kept. Raises ProtocolError."""
        contract.sized("the header of moments", header, contract.MOST_BESIDE)
        due = self._moments
        if due is None or due.done() or header.round != self.end.round:
            raise ProtocolError(f"moments for round {header.round} came that were not due")

    def _take_moments(self, moments: BlockMoments) -> None:
        assert self._moments is not None and not self._moments.done()
        self._moments.set_result(moments)

    async def _begin_round(
        self,
        told: Assignment,
        mine: Values,
        theirs: Values,
        behind: Values,
    ) -> None:
        """A block that changes sides takes its moments along, before either side computes with it.

        What breaks meanwhile ends the stream, and both go back to the point that they come from.
        """
        session, began = self.session, time.perf_counter()
        told = as_allowed(told, self.behind)
        checked.assignment(told, self.settings, session.plan.num_layers)
        self.tensors.turnaround.begin_round()
        self.stream.share(told.share)
        go_on = await asyncio.to_thread(self.end.begin_round, told)
        # Where nothing moves, the compute thread is not asked for anything.
        given = await self.host.engine.run(session.given, go_on) if go_on.moves else {}
        self._contract.begin(told)
        gets = bool(taken_by("edge", go_on.moves))
        self._moments = asyncio.get_running_loop().create_future() if gets else None
        if not gets:
            await self.host.engine.run(partial(session.begin_round, told, mine, go_on=go_on))
        if self.behind is not None:
            await self.behind.begin_round(told, behind)
        own = replace(told, together=())  # who shares a stage's adapter is nothing to a device
        self.stream.outbox.put(edge_pb2.EdgeMessage(start=words.to_assignment(own)))
        await self.adapters.send_round(theirs, told.round)
        if taken_by("device", go_on.moves):
            await self.adapters.send_moments(BlockMoments(told.round, given))
        if self._moments is not None:
            came = await self._awaited(self._moments)
            begin = partial(session.begin_round, told, mine, came.moments, go_on)
            await self.host.engine.run(begin)
            given = dict(came.moments)
        if go_on.moves:
            self._say(told, go_on.moves, given, time.perf_counter() - began)

    def _say(self, told: Assignment, moved: Moves, moments: Moments, seconds: float) -> None:
        blocks = ", ".join(str(move.block) for move in moved)
        size = sum(moment.nbytes for moment in moments.values())
        log.info(
            "device %s has cut %d + %d now: block %s changed sides, %d bytes of moments, %.3f s",
            self.device,
            told.plan.cut_layer,
            told.plan.tail_layers,
            blocks,
            size,
            seconds,
            extra={"device": self.device},
        )

    async def _awaited(self, moments: asyncio.Future[BlockMoments]) -> BlockMoments:
        words = "the moments of blocks that move"
        with self.host.stats.waits.on(f"device {self.device}", "part", words):
            return await moments

    async def _fold(
        self, round_: int, theirs: Mapping[str, np.ndarray], folded: asyncio.Task[None]
    ) -> None:
        await asyncio.shield(folded)  # it is the other devices' too
        await self.adapters.send_base_update(theirs, round_)
