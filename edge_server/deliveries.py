"""What devices have delivered of their open rounds: told to the cloud, and again where it asks.

The cloud asks by naming a device in its orders. Over a new stream it has not asked yet, so what
comes meanwhile is kept: who presents a part that is not due breaks the contract.

Where edges add up updates, parts stay here, and the cloud is told of them once all are there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from edge_server.kept import KeptUpdates, Part
from sfl.metrics.waits import OpenWait, Waits
from sfl.plan import Holder
from sfl.rounds.values import (
    BEGINNING,
    Assignment,
    HeldUpdate,
    Point,
    RoundReport,
    UpdateHeader,
)
from sfl.transport.cloud.link import CloudLink, CloudStream, EdgeMessage, update_messages
from sfl.transport.cloud.words import to_edge_report
from sfl.transport.frames.chunks import Buffer


@dataclass(slots=True)
class Delivery:
    """One device's: it is kept until that device's next round begins."""

    told: Assignment
    asked_on: CloudStream | None
    """The stream over which the cloud asked for it last."""
    parts: dict[str, tuple[UpdateHeader, Buffer]] = field(default_factory=dict)
    report: RoundReport | None = None
    held: HeldUpdate | None = None
    """What the cloud is told in place of the parts, where they stay here."""

    @property
    def holders(self) -> tuple[Holder, ...]:
        """Whose parts are due."""
        return self.told.plan.holders if self.told.steps.count else ()

    @property
    def complete(self) -> bool:
        """Whether nothing more is to come."""
        return self.report is not None and self.parts.keys() == set(self.holders)

    @property
    def points(self) -> tuple[Point, ...]:
        """What device and edge both remember, as long as the device's stream lives."""
        own = self.told
        trained = self.complete and own.steps.count > 0
        done = own.point(own.steps.count) if trained else own.after
        return tuple(sorted({own.after, done} - {BEGINNING}))

    def is_of(self, own: Assignment) -> bool:
        """Whether orders ask for the same, wherever they would have it begin, and whoever shares
        an adapter with it by now."""
        return _apart_from_past(own) == _apart_from_past(self.told)


def _apart_from_past(own: Assignment) -> Assignment:
    return replace(own, after=BEGINNING, lineage=0, together=())


class Deliveries:
    """All devices' of an edge. While none is open, the edge waits for the cloud."""

    def __init__(self, cloud: CloudLink, waits: Waits, kept: KeptUpdates | None = None) -> None:
        """`kept` takes updates that stay here, if they do."""
        self._kept = kept
        self._coming: dict[str, dict[str, Part]] = {}
        """Parts of updates that stay here and are not whole yet."""
        self._cloud = cloud
        self._waits = waits
        self._of: dict[str, Delivery] = {}
        self._open: set[str] = set()
        self._idle: OpenWait | None = None
        self._show_idle()

    def of(self, device: str) -> Delivery | None:
        """What a device has delivered, if it is in a round."""
        return self._of.get(device)

    def begin(self, device: str, told: Assignment) -> None:
        """A device's next round begins: what it delivered before is forgotten."""
        self._of[device] = Delivery(told, self._cloud.stream)
        self._coming.pop(device, None)
        self._look_at(device)

    def is_due(self, device: str) -> bool:
        """Whether all of a device's round is here, and the cloud has yet to ask for it."""
        own = self._of.get(device)
        return own is not None and own.complete and not self._is_asked(own)

    def forget(self, device: str) -> None:
        """A device is gone, and with it the round that it was in."""
        self._of.pop(device, None)
        self._coming.pop(device, None)
        self._look_at(device)

    async def part(self, header: UpdateHeader, payload: Buffer) -> None:
        """One side's part of an update is there. Raises ProtocolError where it stays here, and all
        are no adapter of this run."""
        own = self._of.get(header.device)
        if own is None:
            return
        if self._kept is not None:
            await self._keep(own, header, payload, self._kept)
            return
        messages = await asyncio.to_thread(update_messages, header, payload)
        own.parts[header.side] = header, payload
        self._look_at(header.device)
        if self._is_asked(own):
            self._cloud.post_messages(messages)

    async def _keep(
        self, own: Delivery, header: UpdateHeader, payload: Buffer, kept: KeptUpdates
    ) -> None:
        device = header.device
        coming = self._coming.setdefault(device, {})
        coming[header.side] = header, payload
        if coming.keys() != set(own.holders):
            return
        parts = [coming[side] for side in own.holders]
        update, held = await asyncio.to_thread(kept.measure, own.told, parts)
        if self._of.get(device) is not own:
            return
        kept.put(update)
        own.parts, own.held = coming, held
        self._look_at(device)
        if self._is_asked(own):
            self._cloud.post(held)

    def report(self, report: RoundReport) -> None:
        """A device tells how its round went."""
        if (own := self._of.get(report.device)) is not None:
            own.report = report
            self._look_at(report.device)
            if self._is_asked(own):
                self._cloud.post(report)

    async def tell_again(self, device: str) -> None:
        """The cloud has asked once more: tell all that is there; the rest follows as it comes."""
        own, stream = self._of.get(device), self._cloud.stream
        if own is None:  # it has left meanwhile
            return
        messages: dict[str, list[EdgeMessage]] = {}
        while own.held is None and (lacking := own.parts.keys() - messages.keys()):
            for side in lacking:
                messages[side] = await asyncio.to_thread(update_messages, *own.parts[side])
        if stream is not self._cloud.stream or self._of.get(device) is not own:
            return
        own.asked_on = stream
        self._cloud.post_messages([message for part in messages.values() for message in part])
        if own.held is not None:
            self._cloud.post_messages([to_edge_report(own.held)])
        if own.report is not None:
            self._cloud.post_messages([to_edge_report(own.report)])

    def _look_at(self, device: str) -> None:
        """Whether a device's round is open now, and so whether the edge waits for the next."""
        own = self._of.get(device)
        if own is None or own.complete:
            self._open.discard(device)
        else:
            self._open.add(device)
        self._show_idle()

    def _show_idle(self) -> None:
        if not self._open and self._idle is None:
            self._idle = self._waits.begin(self._cloud.peer, "orders", "the next round")
        elif self._open and self._idle is not None:
            self._idle.close()
            self._idle = None

    def _is_asked(self, own: Delivery) -> bool:
        return self._cloud.stream is not None and own.asked_on is self._cloud.stream
