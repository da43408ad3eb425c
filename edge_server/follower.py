"""What an edge does because the cloud says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import assert_never

import numpy as np

from edge_server.base import Shares, shares, within
from edge_server.beats import Cloud
from edge_server.host import DeviceHost
from sfl.errors import LinkLost, ProtocolError, Refused, RunFailed
from sfl.metrics.stats import NodeStats
from sfl.node.causes import cause_of
from sfl.rounds.messages import Evict, FinishRun
from sfl.rounds.values import Admission, Assignment, EdgeOrders, EdgeWelcome, SumOrder
from sfl.stage.messages import Finish
from sfl.transport.cloud.words import CloudWord, EdgeFailed, GlobalPart, GoElsewhere
from sfl.transport.device import checked
from sfl.transport.device.service import EdgeService
from sfl.transport.device.training import Training
from sfl.transport.frames.chunks import Buffer, decode_adapter
from sfl.transport.stage.dialling import NextStage

LAST_WORD = 8.0
"""Seconds that devices have for taking the end of the run, and for coming back for it."""


class Follower:
    """Follows the cloud's stream: rounds, sums for the base, who is let in, who is to go."""

    def __init__(
        self,
        service: EdgeService[Training],
        opened: asyncio.Future[DeviceHost],
        cloud: Cloud,
        stats: NodeStats,
    ) -> None:
        """`opened` is done once there is a base."""
        self._service = service
        self._opened = opened
        self._cloud = cloud
        self._stats = stats
        self.run_key = ""
        self.is_over = False
        """Whether the cloud has said that the run is, or this edge's part in it."""
        self.has_left = False
        """Whether devices were sent to other edges."""
        self.following: NextStage | None = None
        """The stage behind this edge, which is told the end of the run last."""
        self._orders: EdgeOrders | None = None
        self._base_updates = 0  # rounds whose sums are in the base
        self._folded: asyncio.Task[None] | None = None

    async def follow(self, words: AsyncIterator[CloudWord]) -> None:
        """Do what the cloud says until it says that the run is over. Raises RunFailed."""
        async for word in words:
            if isinstance(word, FinishRun) and word.goes_on:
                self.is_over = True
                self.leave(word.reason)
                raise RunFailed(word.reason)
            if isinstance(word, FinishRun):
                self.is_over = True
                await self.dismiss(word.ok, word.reason)
                if self.following is not None:
                    await self.following.tell_end(Finish(word.ok, word.reason, self.run_key))
                if not word.ok:
                    raise RunFailed(word.reason)
                return
            await self.hear(word)
        raise LinkLost("the cloud closed the stream before the run was over")

    async def dismiss(self, ok: bool, reason: str) -> None:
        """Tell every device that the run is over, and give them a moment to say goodbye.

        Those whose stream broke a moment ago, or does so now, may be back for it.
        """
        end = Finish(ok, reason, self.run_key)
        self._service.finish(Refused("the run is over") if ok else RunFailed(reason), end)
        for stream in list(self._service.streams.values()):
            stream.finish(end)
        until = time.monotonic() + LAST_WORD
        while time.monotonic() < until:
            if not self._service.streams and not self._service.is_awaited:
                return
            await asyncio.sleep(0.05)

    def leave(self, reason: str) -> None:
        """This edge ends, and the run does not: its devices dial again, and then others."""
        self.has_left = True
        lost = LinkLost(f"edge {self._stats.name} ends: {reason}")
        self._service.finish(lost)
        self.send_off(lost)

    def send_off(self, reason: LinkLost) -> None:
        """Close every device's stream; it dials again."""
        for device in list(self._service.streams):
            self._service.evict(device, reason)
        if self._opened.done():
            self._opened.result().turn_back(reason)

    async def hear(
        self,
        word: EdgeWelcome | Admission | EdgeOrders | GlobalPart | SumOrder | Evict | GoElsewhere,
    ) -> None:
        """Do what one word asks for. Raises ProtocolError where it was not due."""
        match word:
            case EdgeWelcome():
                raise ProtocolError("settings from the cloud was not expected")
            case Admission():
                if (refused := self._host().answer(word)) is not None:
                    self._service.evict(word.device, refused)
            case EdgeOrders():
                self._stats.start_round(word.round, 0)
                if word.begun:
                    await self._tell_again(word)
                else:
                    self._orders = word
                    self._service.tell_edges(word.edges)
            case GlobalPart():
                await self._take(word)
            case SumOrder():
                self._host().add_up(word)
            case Evict():
                self._evict(word)
            case GoElsewhere():
                self._service.hand_over(word.device, word.to)
            case unknown:
                assert_never(unknown)

    def _host(self) -> DeviceHost:
        if not self._opened.done():
            raise ProtocolError("the cloud spoke of devices before this edge was ready")
        return self._opened.result()

    def _evict(self, evict: Evict) -> None:
        if self._opened.done():
            self._opened.result().forget(evict.device)
        if evict.final:
            self._service.turn_away(evict.device, Refused(evict.reason))
        else:  # it may join again with the next round
            self._service.evict(evict.device, LinkLost(evict.reason))

    # -- adapters ---------------------------------------------------------------------------------

    async def _take(self, part: GlobalPart) -> None:
        self._host()  # else it comes too early
        if part.base_update:
            values = await asyncio.to_thread(decode_adapter, part.payload)
            self._pass_on(part.round, values)
        elif self._orders is not None:
            await self._begin_round(self._orders, part.payload)

    def _pass_on(self, round_: int, base_update: dict[str, np.ndarray]) -> None:
        """What a round gave goes into the base once, for all devices, and on to those without."""
        if round_ == self._base_updates + 1:
            self._base_updates = round_
            self._folded = asyncio.create_task(self._fold(base_update))
        assert self._folded is not None, "the cloud begins with the first"
        for stream in self._service.streams.values():
            if stream.is_ready:  # else the cloud sends all of them again with its first round
                theirs = within(self._host().floor.spans(stream.device), base_update)
                stream.fold(round_, theirs, self._folded)

    async def _fold(self, base_update: dict[str, np.ndarray]) -> None:
        try:
            await self._host().floor.fold(base_update)
        except Exception as error:
            self._cloud.post(EdgeFailed(str(cause_of(error))))
            raise

    async def _begin_round(self, orders: EdgeOrders, payload: Buffer) -> None:
        base = self._host().floor.base
        if (kept := self._host().kept) is not None:
            kept.begin(orders.round, await asyncio.to_thread(decode_adapter, payload))
        self._host().floor.rank(orders.order)
        for own in orders.devices.values():
            checked.assignment(own, base.settings, base.folder.num_layers)
        streams = dict(self._service.streams)
        here = {name: own for name, own in orders.devices.items() if name in streams}
        for device in orders.devices.keys() - here.keys():
            await self._host().tell_again_of(device, asked=False)
        due = {name: own for name, own in here.items() if self._is_new(name, own)}
        for device in here.keys() - due.keys():
            await self._host().deliveries.tell_again(device)
        parts = await asyncio.to_thread(shares, payload, due) if due else {}
        for device, own in due.items():
            stream = self._service.streams.get(device)
            # Who came meanwhile is in no round yet.
            if stream is not None and stream is streams.get(device):
                same = stream.base_updates == self._base_updates
                assert same, "the cloud sends what is lacking first"
                self._begin(stream, own, parts[device])

    async def _tell_again(self, orders: EdgeOrders) -> None:
        """What came of rounds that devices have begun; one that has begun another joins again."""
        for device, own in orders.devices.items():
            if device not in self._service.streams:
                await self._host().tell_again_of(device, not self._is_new(device, own))
            elif self._is_new(device, own):
                reason = f"the cloud asks for another part of round {own.round} than it has begun"
                self._service.evict(device, LinkLost(reason))
            else:
                await self._host().deliveries.tell_again(device)

    def _is_new(self, device: str, own: Assignment) -> bool:
        """Whether a device has not begun this yet; else the cloud wants to be told again."""
        delivery = self._host().deliveries.of(device)
        return delivery is None or not delivery.is_of(own)

    def _begin(self, stream: Training, own: Assignment, parts: Shares) -> None:
        deliveries = self._host().deliveries
        before = deliveries.of(stream.device)
        if before is not None and not before.complete:
            closed = f"round {before.told.round} was closed without it"
            self._service.evict(stream.device, LinkLost(closed))
            return
        deliveries.begin(stream.device, own)
        stream.begin_round(own, parts.mine, parts.theirs, parts.behind)
