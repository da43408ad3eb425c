"""Where an edge computes: the compute thread, a session for each device, slots for what waits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_server.base import Base
from sfl.metrics.stats import NodeStats
from sfl.plan import Span
from sfl.rounds.values import Assignment
from sfl.stage.engine import Engine
from sfl.stage.swapping import Residence
from sfl.stage.training import SESSIONS, TrainingSession
from sfl.transport.bulk.files import SpanFiles
from sfl.transport.device.decode_slots import DecodeSlots


class Floor:
    """Sessions over one base, on one compute thread."""

    def __init__(
        self,
        base: Base,
        engine: Engine,
        slots: DecodeSlots,
        stats: NodeStats,
        residence: Residence | None = None,
    ) -> None:
        """`residence` decides which adapters are in memory, where not all of them may be."""
        self.base = base
        self.engine = engine
        self.slots = slots
        self.sessions: dict[str, TrainingSession] = {}
        self._stats = stats
        self._residence = residence
        self._files: dict[tuple[Span, ...], SpanFiles] = {}

    async def open(self, device: str, assignment: Assignment) -> TrainingSession:
        """A session for a device, with memory of its own. Raises ProtocolError."""
        return await self.engine.run(self._open, device, assignment)

    async def close(self, device: str) -> None:
        """Give back what a device's session holds, if it has one."""
        await self.engine.run(self._close, device)

    async def fold(self, values: Mapping[str, np.ndarray]) -> None:
        """Add values to the base for good, for all devices."""
        await self.engine.run(self.base.bank.fold, values)

    def _open(self, device: str, assignment: Assignment) -> TrainingSession:
        base = self.base
        session = self.sessions[device] = SESSIONS[base.settings.run.topology](
            device,
            assignment,
            base.model,
            base.bank,
            base.settings,
            self._stats,
            recompute=device in base.choice.recompute,
            residence=self._residence,
        )
        return session

    def _close(self, device: str) -> None:
        session = self.sessions.pop(device, None)
        if session is not None:  # None: it could not be made
            session.close()

    # -- files ------------------------------------------------------------------------------------

    def files(self, device: str) -> SpanFiles:
        """The files of a device's span; devices of one cut share them."""
        spans = self.sessions[device].plan.device_spans
        if spans not in self._files:
            task = self.base.settings.model.task
            self._files[spans] = SpanFiles(self.base.folder, spans, task)
        return self._files[spans]
