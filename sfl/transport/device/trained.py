"""A stream whose session trains, on any stage server: snapshots within rounds, the stage behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

from sfl.config import RunSettings
from sfl.rounds.values import UpdateHeader
from sfl.stage.messages import TensorMessage, asks_teacher, begins_step
from sfl.stage.remembered import DISK_SECONDS
from sfl.stage.training import TrainingSession
from sfl.transport.device.end import ServingEnd
from sfl.transport.device.onward import Before, Next
from sfl.transport.device.served import Host, Served
from sfl.transport.device.tensor_work import Coders
from sfl.transport.frames.chunks import Buffer
from sfl.transport.frames.envelope import Frame
from sfl.transport.group import aside
from sfl.transport.shaper import Shaper
from sfl.transport.stream import Context
from sfl.v1 import edge_pb2


class RelayingHost(Host, Before, Protocol):
    """What a server does for a device that trains, beside what it does for any."""

    async def relay_adapter(self, header: UpdateHeader, payload: Buffer) -> None:
        """Pass a part of an update on, towards the cloud."""


class Trained(Served):
    """One device, the session that trains it here, and the way to the stage behind, if any is."""

    def __init__(
        self,
        device: str,
        session: TrainingSession,
        settings: RunSettings,
        host: RelayingHost,
        coders: Coders,
        end: ServingEnd,
        down: Shaper | None,
        behind: Next | None,
    ) -> None:
        super().__init__(device, session, settings, host, coders, end, down, behind)
        self.session = session
        self.behind = behind
        if behind is not None:
            behind.serve(host, self.jobs, self.tensors)

    def coroutines(
        self, requests: AsyncIterator[edge_pb2.DeviceMessage | Frame], context: Context
    ) -> tuple[Coroutine[Any, Any, None], ...]:
        """As of any device, and those of the stream to the stage behind: both end together."""
        onward = () if self.behind is None else self.behind.coroutines()
        return (*super().coroutines(requests, context), *onward)

    async def about_to_compute(self, message: TensorMessage) -> TensorMessage:
        """A step's first tensor: all sides have taken the one before it, and nothing more.

        What a teacher says of a message is a job of its own, before it.
        """
        if begins_step(message) and self.settings.recovery.due(message.key.step):
            within = await self.host.engine.run(self.session.within)
            with self.waits_for_disk():
                await aside(self.end.passed, within)
                if self.behind is not None:
                    await aside(self.behind.step_over, within.point)
        lessons = self.session.lessons
        if lessons is None or not asks_teacher(message):
            return message
        said = await self.host.engine.teach(lessons, message)
        return replace(message, taught=said)

    async def abandon(self) -> None:
        """As of any device; the next stream reads what this one has written."""
        await super().abandon()
        with self.waits_for_disk():
            await aside(self.end.remembered.written)
        if self.behind is not None:
            await self.behind.close()

    def waits_for_disk(self) -> AbstractContextManager[object]:
        """While a snapshot is written that has to be there."""
        waits = self.host.stats.waits
        return waits.on("its disk", "disk", "a snapshot to be written", DISK_SECONDS)
