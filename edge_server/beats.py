"""What an edge tells the cloud of itself and its devices, again and again."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from sfl.cost.shown import NOTHING, Shown
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stages import StagesSaid
from sfl.metrics.stats import NodeStats
from sfl.metrics.waits import Wait, silences
from sfl.transport.cloud.words import Beat, EdgeWord
from sfl.transport.device.service import EdgeService
from sfl.transport.device.training import Training

MOST_BYTES = 4 << 20
"""Of devices' statistics in one message, which may have twice as much: those of 1,400 devices. The
others are in the next one: the cloud bounds how often an edge may beat."""
LastHeard = Callable[[], Iterable[tuple[str, float]]]
"""Gives peers, and when each last sent a byte, in seconds of `time.monotonic`."""


class Cloud(Protocol):
    """Where what an edge says goes."""

    def post(self, word: EdgeWord) -> None:
        """Queue what the cloud is told."""


class Beats:
    """Keeps the latest statistics of each device, and sends them with the edge's own."""

    def __init__(self, stats: NodeStats, cloud: Cloud, service: EdgeService[Training]) -> None:
        self._stats = stats
        self._cloud = cloud
        self._service = service
        self._devices: dict[str, NodeSnapshot] = {}
        self._turns: dict[str, None] = {}
        """Devices, who was told of longest ago first."""
        self._heard: dict[str, float] = {}
        """When, in seconds of `time.monotonic`."""
        self._left: set[str] = set()
        """Devices that are gone, and whose last statistics are still to be told."""
        self._told: set[str] = set()
        """Devices that are gone, of which nothing more is to be told."""
        self._stages = StagesSaid()
        self._peers: list[LastHeard] = [self._last_heard]

    def heard(self, device: str, snapshot: NodeSnapshot) -> None:
        """Keep a device's latest statistics."""
        self._devices[device] = snapshot.seen(device, time.time())
        self._turns.setdefault(device)
        self._heard[device] = time.monotonic()
        self._left.discard(device)
        self._told.discard(device)

    def left(self, device: str) -> None:
        """A device is gone: what it said last is told once more, and then it says nothing."""
        if device in self._devices:
            self._left.add(device)

    def stage_heard(self, snapshot: NodeSnapshot) -> None:
        """Keep the latest statistics of a stage behind this edge."""
        self._stages.heard(snapshot.seen(snapshot.name, time.time()))

    def devices(self) -> list[NodeSnapshot]:
        """What devices have said last."""
        return list(self._devices.values())

    async def run(self, interval: float, idle_timeout: float) -> None:
        """Send all of it every so many seconds, without end.

        A peer of which no byte comes for `idle_timeout` is lost; until then it is waited for.
        """
        while True:
            self._stats.waits.derive(self._silences(idle_timeout))
            self._stats.waits.say()
            self.send(self._others(idle_timeout))
            await asyncio.sleep(interval)

    def _others(self, idle_timeout: float) -> list[str]:
        """What devices and stages have said last, as JSON: as many devices as a message has room
        for, those first that were told of longest ago."""
        devices: list[str] = []
        room = MOST_BYTES
        for name in [name for name in self._turns if name not in self._told]:
            text = self._as_seen(self._devices[name]).to_json()
            if (room := room - len(text.encode())) < 0 and devices:
                break
            devices.append(text)
            self._turns[name] = self._turns.pop(name)  # behind all that wait
            if name in self._left:
                self._left.discard(name)
                self._told.add(name)
        return [*devices, *(one.to_json() for one in self._stages.latest(idle_timeout))]

    def listen(self, peers: LastHeard) -> None:
        """These are waited for, too, where no byte comes of them."""
        self._peers.append(peers)

    def _last_heard(self) -> Iterator[tuple[str, float]]:
        for name, own in self._service.streams.items():
            yield f"device {name}", own.last_heard

    def _silences(self, idle_timeout: float) -> Iterator[Wait]:
        heard = [one for peers in self._peers for one in peers()]
        return silences(heard, idle_timeout, time.monotonic(), time.time())

    def send(self, devices: Sequence[str] = ()) -> None:
        """Tell the cloud what this edge has counted, and what its devices have said."""
        own = self._stats.snapshot(costs=True)
        self._cloud.post(Beat(replace(own, costs=_told(own.costs)).to_json(), devices))

    def send_stages(self) -> None:
        """The same, with what stages have said last."""
        self.send([one.to_json() for one in self._stages.latest(math.inf)])

    def _as_seen(self, snapshot: NodeSnapshot) -> NodeSnapshot:
        """A device's statistics, with what this edge itself has seen of it.

        Its costs have gone with its report.
        """
        stream = self._service.streams.get(snapshot.name)
        moved = 0 if stream is None else stream.moved
        age = time.monotonic() - self._heard[snapshot.name]
        return replace(snapshot, age=age, moved=moved, costs=NOTHING)


def _told(costs: Shown) -> Shown:
    """Of an edge's own costs: its passes go with the reports of the devices that they were for, and
    are told again only beside the joules that they took. What its hop takes is told always."""
    if costs.energy is not None:
        return costs
    return Shown(up=costs.up, down=costs.down, threads=costs.threads)
