"""The devices of a stage that share one adapter: who waits for whom, on the stage's event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from sfl.metrics.waits import Waits
from sfl.stage.engine import Engine
from sfl.stage.messages import Purpose, TensorMessage
from sfl.stage.training import SharedSession, Team, TrainingSession

LOOK = 0.5
"""Seconds between two looks at who is waited for."""


class Member(Protocol):
    """A device's stream."""

    session: TrainingSession

    def look(self) -> None:
        """The others may have taken the last step that it waited for."""


class Sharing:
    """Has a step wait until all members have taken the one before it."""

    def __init__(
        self,
        team: Team,
        engine: Engine,
        waits: Waits,
        patience: float,
        streams: Callable[[], Iterable[tuple[str, Member]]],
    ) -> None:
        """Who has not begun for `patience` seconds is waited for no more."""
        self.team = team
        self._engine = engine
        self._waits = waits
        self._patience = patience
        self._streams = streams
        self._stepped = asyncio.Event()
        self._begun: dict[str, int] = {}
        self._missed: dict[str, float] = {}
        self._seen = (0, 0)

    def began(self, device: str, round_: int) -> None:
        """A member has begun a round here."""
        self._begun[device] = round_
        self._missed.pop(device, None)

    def left(self, device: str) -> None:
        """Its stream is over."""
        self._begun.pop(device, None)

    async def turn(self, session: SharedSession, message: TensorMessage) -> None:
        """Wait until a message's step may be computed."""
        if message.key.purpose is not Purpose.TRAINING:
            return
        step = message.key.step
        while behind := await self._engine.run(session.waits_for, step):
            whom = f"device {behind[0]}" if len(behind) == 1 else f"{len(behind)} devices"
            with self._waits.on(whom, "part", f"gradients of step {step - 1}", quiet=True):
                await self._next()
            await self._give_up(behind, message.key.round)

    async def stepped(self, session: SharedSession) -> bool:
        """A job is done; whether the session has taken all of its steps."""
        left, step = await self._engine.run(lambda: (session.steps_left, self.team.step))
        round_ = session.assignment.round
        if (round_, step) != self._seen:
            self._seen = round_, step
            self._stepped.set()
            self._stepped = asyncio.Event()
            self._tell(session)
        return left == 0

    def _tell(self, session: SharedSession | None) -> None:
        for _, stream in self._streams():
            if stream.session is not session:
                stream.look()

    async def _next(self) -> None:
        try:
            async with asyncio.timeout(LOOK):
                await self._stepped.wait()
        except TimeoutError:
            return

    async def _give_up(self, behind: Iterable[str], round_: int) -> None:
        """Go on without members that do not begin the round, or are lost and not back in time."""
        now = time.monotonic()
        for device in behind:
            if self._begun.get(device) == round_:
                continue
            if now - self._missed.setdefault(device, now) > self._patience:
                await self._engine.run(self.team.leave_out, device)
                self._tell(None)
