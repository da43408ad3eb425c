"""The way from a server to the stage behind it, as a device's stream sees it."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from sfl.metrics.snapshot import NodeSnapshot
from sfl.rounds.values import Assignment, Point, UpdateHeader
from sfl.stage.messages import GradientNorm, TensorMessage
from sfl.transport.device.jobs import Jobs
from sfl.transport.frames.chunks import Buffer


class Onward(Protocol):
    """Where what goes towards the loss is sent."""

    def send(self, message: TensorMessage | GradientNorm) -> None:
        """Have a message coded off the loop, then sent; returns at once."""


class Before(Protocol):
    """What a server does with what comes back from the stage behind it."""

    def stage_heard(self, snapshot: NodeSnapshot) -> None:
        """Keep a stage's latest statistics."""

    async def relay_adapter(self, header: UpdateHeader, payload: Buffer) -> None:
        """Pass a stage's part on, towards the cloud."""


class Answers(Protocol):
    """What becomes of an answer at the server before: it goes on with it, or passes it back."""

    async def compute(self, message: TensorMessage | GradientNorm) -> None:
        """Go on with a gradient, or with a norm."""

    def send_back(self, answer: TensorMessage) -> None:
        """Pass it on to who is before this server."""


class Next(Onward, Protocol):
    """One device's way to the stage behind this server; it lives as long as the device's stream."""

    @property
    def points(self) -> tuple[Point, ...]:
        """What all behind this server have snapshots of."""

    @property
    def credits(self) -> int:
        """Micro-batches of the device that may be in flight at all behind this server."""

    def serve(self, host: Before, jobs: Jobs, answers: Answers) -> None:
        """From now on what comes is done among the device's `jobs`."""

    def coroutines(self) -> tuple[Coroutine[Any, Any, None], ...]:
        """What is to run while the stream is open."""

    async def begin_round(self, told: Assignment, values: Mapping[str, np.ndarray]) -> None:
        """Have all behind this server begin a round; returns once they have."""

    def step_over(self, point: Point) -> None:
        """Keep what codecs remember after some steps of a round."""

    def round_over(self, point: Point) -> None:
        """Keep what codecs remember at a round's end; returns once it is on the disk."""

    async def close(self) -> None:
        """Hang up."""


def as_allowed(told: Assignment, behind: Next | None) -> Assignment:
    """What a device is told: no more of it is in flight than all behind its edge allow."""
    return told if behind is None else replace(told, credits=min(told.credits, behind.credits))
