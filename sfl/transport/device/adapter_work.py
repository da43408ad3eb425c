"""A device's adapters at its edge: a round's to the device, what it trained on to the cloud."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from sfl.rounds.values import Point, UpdateHeader
from sfl.stage.engine import Engine
from sfl.stage.messages import BlockMoments
from sfl.stage.remembered import Moments
from sfl.stage.training import TrainingSession
from sfl.transport.device.end import EdgeEnd, trained_by, whole_frames
from sfl.transport.device.onward import Next
from sfl.transport.device.overtaking import DeviceStream
from sfl.transport.device.tensor_work import Coders
from sfl.transport.frames import words
from sfl.transport.frames.chunks import Buffer, adapter_bytes
from sfl.transport.frames.wire import EDGE_SESSION
from sfl.transport.group import aside
from sfl.transport.stream import Ready
from sfl.v1 import edge_pb2, tensor_pb2

Frames = Callable[[Mapping[str, np.ndarray], int], Iterator[tensor_pb2.AdapterFrame]]


class Cloud(Protocol):
    """Where parts of an adapter go."""

    engine: Engine

    async def relay_adapter(self, header: UpdateHeader, payload: Buffer) -> None:
        """Pass a device's or the edge's part on to the cloud."""


class AdapterWork:
    """Sends adapters to one device, and relays what becomes of them."""

    def __init__(
        self,
        session: TrainingSession,
        cloud: Cloud,
        end: EdgeEnd,
        coders: Coders,
        stream: DeviceStream,
        waits_for_disk: Callable[[], AbstractContextManager[object]],
        behind: Next | None = None,
    ) -> None:
        """`waits_for_disk` is entered while a snapshot is written that has to be there. What is
        `behind` keeps what its codecs remember by then."""
        self.session = session
        self.cloud = cloud
        self.end = end
        self.coders = coders
        self.stream = stream
        self._behind = behind
        self._waits_for_disk = waits_for_disk

    async def send_round(self, values: Mapping[str, np.ndarray], round_: int) -> None:
        """The device's part of the global adapter: whole, or as what the device lacks of it."""
        if self.end.codecs.adapter_codec.spec == "none":
            self.end.sends_whole()
            ready = await self.coders.alike.frames(values, round_, _whole)
        else:
            frames = self.end.round_frames
            ready = await self.coders.encoder.submit(False, _ready, frames, values, round_)
        self._post(ready)

    async def send_moments(self, message: BlockMoments) -> None:
        """What the optimizer remembers of the blocks that the device gets."""
        self._post(await asyncio.to_thread(_in_bytes, self.end.moments_frames(message)))

    async def send_base_update(self, values: Mapping[str, np.ndarray], round_: int) -> None:
        """What the device is to add to its base."""
        self._post(await asyncio.to_thread(_ready, self.end.base_update_frames, values, round_))

    def _post(self, frames: list[Ready]) -> None:
        for frame in frames:
            self.stream.outbox.put(frame)

    async def relay(self, header: tensor_pb2.AdapterHeader, payload: Buffer) -> None:
        """Pass the device's part on, whole again where it came as a change."""
        if header.codec:
            trains = trained_by(self.session.plan.device_spans, self.end.settings)
            payload = await self.coders.decoder.submit(
                False, self.end.whole_update, header.codec, payload, trains
            )
            header.codec = ""
        await self.cloud.relay_adapter(words.from_update_header(header), payload)

    async def send_own(self, round_: int) -> None:
        """Pass on the edge's part of the same session."""
        values = await self.cloud.engine.run(self.session.end_round)
        moments = await self.cloud.engine.run(self.session.moments)
        # Before the cloud can count on it.
        point = self.session.assignment.point(self.session.step)
        with self._waits_for_disk():
            await aside(self._keep, point, moments)
        header = UpdateHeader(
            round=round_,
            final_step=self.session.step,
            device=self.end.device,
            side="edge",
            scaling=self.session.assignment.scaling,
        )
        await self.cloud.relay_adapter(header, await asyncio.to_thread(adapter_bytes, values))

    def _keep(self, point: Point, moments: Moments) -> None:
        self.end.reached(point, moments)
        self.end.remembered.written()
        if self._behind is not None:
            self._behind.round_over(point)


def _ready(frames: Frames, values: Mapping[str, np.ndarray], round_: int) -> list[Ready]:
    """An adapter's frames in bytes."""
    return _in_bytes(frames(values, round_))


def _whole(values: Mapping[str, np.ndarray], round_: int) -> list[Ready]:
    return _ready(whole_frames, values, round_)


def _in_bytes(frames: Iterable[tensor_pb2.AdapterFrame]) -> list[Ready]:
    return [
        Ready(EDGE_SESSION.response_bytes(edge_pb2.EdgeMessage(adapter=frame))) for frame in frames
    ]
