"""Where an edge computes: the compute thread, a session for each device, slots for what waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from edge_server.base import Base
from sfl.config.ranges import plans_of, widest
from sfl.plan import Span
from sfl.rounds.values import Assignment
from sfl.stage.engine import Engine
from sfl.stage.orders import ORDERS, Order
from sfl.stage.orders.ranked import ranked
from sfl.stage.session import Session
from sfl.transport.bulk.files import SpanFiles
from sfl.transport.device.decode_slots import DecodeSlots

S = TypeVar("S", bound=Session)


class Floor(Generic[S]):
    """Sessions of one kind over one base, on one compute thread."""

    def __init__(
        self,
        base: Base,
        engine: Engine,
        slots: DecodeSlots,
        new_session: Callable[[str, Assignment], S],
        order: Order = ORDERS["first_come"],
    ) -> None:
        """`new_session` makes a device's over the base; it is called on the compute thread.

        Devices are served in that `order`, unless a planner says otherwise.
        """
        self._usual = order
        self.base = base
        self.engine = engine
        self.slots = slots
        self.sessions: dict[str, S] = {}
        self._new_session = new_session
        self._files: dict[tuple[Span, ...], SpanFiles] = {}

    def rank(self, devices: Sequence[str]) -> None:
        """Serve devices as a planner has ranked them, or without as the settings say."""
        order = ranked(devices, self._usual)
        self.engine.serve_by(order)
        self.slots.give_by(order)

    async def open(self, device: str, assignment: Assignment) -> S:
        """A session for a device, with memory of its own. Raises ProtocolError."""
        return await self.engine.run(self._open, device, assignment)

    async def close(self, device: str) -> None:
        """Give back what a device's session holds, if it has one."""
        await self.engine.run(self._close, device)

    async def fold(self, values: Mapping[str, np.ndarray]) -> None:
        """Add values to the base for good, for all devices."""
        await self.engine.run(self.base.bank.fold, values)

    def _open(self, device: str, assignment: Assignment) -> S:
        session = self.sessions[device] = self._new_session(device, assignment)
        return session

    def _close(self, device: str) -> None:
        session = self.sessions.pop(device, None)
        if session is not None:  # None: it could not be made
            session.close()

    # -- files ------------------------------------------------------------------------------------

    def files(self, device: str) -> SpanFiles:
        """The files of the largest spans that a device may have.

        Devices of one range share them.
        """
        spans = self.spans(device)
        if spans not in self._files:
            task = self.base.settings.model.task
            self._files[spans] = SpanFiles(self.base.folder, spans, task)
        return self._files[spans]

    def spans(self, device: str) -> tuple[Span, ...]:
        """The largest that a device may have in this run."""
        settings, plan = self.base.settings, self.sessions[device].plan
        if not settings.planner.moves:
            return plan.device_spans
        return widest(plans_of(settings, device, plan.num_layers))
