"""The devices of a stage that share one adapter: who waits for whom, on the stage's event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from sfl.config.network import NetworkSettings
from sfl.errors import LeftBehind
from sfl.metrics.waits import Waits
from sfl.stage.engine import Engine
from sfl.stage.messages import Purpose, TensorMessage
from sfl.stage.training import SharedSession, Team, TrainingSession
from sfl.stage.training.team import Standing

LOOK = 0.5
"""Seconds between two looks at who is waited for."""
AFTER = 5.0
"""Seconds that a stage waits for a lost device longer than the cloud does."""


class Member(Protocol):
    """A device's stream."""

    session: TrainingSession

    @property
    def moved(self) -> int:
        """Messages from and to the device, heartbeats apart."""

    def look(self) -> None:
        """The others may have taken the last step that it waited for."""

    def leave_behind(self, reason: LeftBehind) -> None:
        """The others go on without it: its stream ends."""


class OpenStep:
    """How long the open step takes, and since when nothing moves of those it waits for."""

    def __init__(self, round_: int, step: int, num_steps: int, began: float) -> None:
        """`num_steps` are a round's."""
        self.at = round_, step
        self._num_steps = num_steps
        self._began = began
        self._half: float | None = None
        self._moved: dict[str, tuple[int, float]] = {}
        self._missed: dict[str, float] = {}
        self.is_kept = False
        """Whether the steps before it are on the disk."""

    def half_done(self) -> None:
        """Half of the members, or more, have had theirs."""
        if self._half is None:
            self._half = time.monotonic() - self._began

    def patience(self, network: NetworkSettings) -> float:
        """Seconds for who is here and moves nothing, by what half of the members took.

        At most half of `round_timeout`, at which the cloud would blame all who wait as well.
        """
        most, factor = network.round_timeout / 2, network.straggler_factor
        if self._half is None or factor == "off":
            return most
        return min(most, max(network.straggler_seconds, factor * self._num_steps * self._half))

    def still(self, device: str, moved: int) -> float:
        """Seconds since something moved of a member that is here."""
        now = time.monotonic()
        if self._moved.get(device, (-1, now))[0] != moved:
            self._moved[device] = moved, now
        return now - self._moved[device][1]

    def missed(self, device: str) -> float:
        """Seconds since a member that has not begun, or is lost, was first waited for."""
        now = time.monotonic()
        return now - self._missed.setdefault(device, now)

    def back(self, device: str) -> None:
        """A member has begun: its time begins anew, whatever becomes of it."""
        self._missed.pop(device, None)
        self._moved.pop(device, None)


class Sharing:
    """Has a step wait until all members have taken the one before it.

    A member is waited for in vain where it does not begin the round, is lost and not back in time,
    or is here and moves nothing for too long. Then the others go on without it.
    """

    def __init__(
        self,
        team: Team,
        engine: Engine,
        waits: Waits,
        network: NetworkSettings,
        streams: Callable[[], Iterable[tuple[str, Member]]],
    ) -> None:
        """Who has not begun for `rejoin_timeout` and a little more is waited for no more."""
        self.team = team
        self._engine = engine
        self._waits = waits
        self._network = network
        self._streams = streams
        self._stepped = asyncio.Event()
        self._begun: dict[str, int] = {}
        self._round = 0, 0.0  # the last one that began here, and when
        self._open: OpenStep | None = None
        self._watch: asyncio.Task[None] | None = None

    def began(self, device: str, round_: int) -> None:
        """A member has begun a round here."""
        self._begun[device] = round_
        if self._round[0] != round_:
            self._round = round_, time.monotonic()
        if self._open is not None:
            self._open.back(device)

    def left(self, device: str) -> None:
        """Its stream is over."""
        self._begun.pop(device, None)

    def close(self) -> None:
        """Nobody is waited for any more."""
        if self._watch is not None:
            self._watch.cancel()

    async def turn(self, session: SharedSession, message: TensorMessage) -> None:
        """Wait until a message's step may be computed."""
        if message.key.purpose is not Purpose.TRAINING:
            return
        step = message.key.step
        while behind := await self._engine.run(session.waits_for, step):
            self._keep_watch()
            whom = f"device {behind[0]}" if len(behind) == 1 else f"{len(behind)} devices"
            with self._waits.on(whom, "part", f"gradients of step {step - 1}", quiet=True):
                await self._next()

    async def stepped(self, session: SharedSession) -> bool:
        """A job is done; whether the session has taken all of its steps."""
        left, team = await self._engine.run(lambda: (session.steps_left, self.team.standing))
        own = self._at(team, session)
        if 2 * len(team.behind) <= len(team.members):
            own.half_done()
        if left:
            self._keep_watch()
        return left == 0

    def _at(self, team: Standing, session: SharedSession | None = None) -> OpenStep:
        """The open step; whoever waited for the one before it is told, but not `session`."""
        if self._open is None or self._open.at != (team.round, team.step):
            at, since = self._round
            began = since if at == team.round and not team.step else time.monotonic()
            self._open = OpenStep(team.round, team.step, team.num_steps, began)
            self._stepped.set()
            self._stepped = asyncio.Event()
            self._tell(session)
        return self._open

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

    # -- who is waited for in vain --------------------------------------------------------------

    def _keep_watch(self) -> None:
        """Until the round is over; after its last step nobody asks for the next one."""
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look_on())

    async def _look_on(self) -> None:
        while (team := await self._engine.run(lambda: self.team.standing)).is_open:
            own = self._at(team)
            here = dict(self._streams())
            if len(team.behind) < len(team.members):  # somebody waits
                for device in team.behind:
                    await self._give_up(own, device, here.get(device))
            await asyncio.sleep(LOOK)

    async def _give_up(self, own: OpenStep, device: str, stream: Member | None) -> None:
        """Go on without a member that does not begin, is not back in time, or moves nothing."""
        round_, step = own.at
        if self._begun.get(device) != round_:
            await self._miss(own, device, own.missed(device))
            return
        still = own.still(device, 0 if stream is None else stream.moved)
        if still <= own.patience(self._network):
            return
        await self._go_on_without(device)
        if stream is not None:
            said = f"nothing of device {device} moved for {still:.0f} s while others waited for it"
            why = "network.straggler_seconds, network.straggler_factor"
            stream.leave_behind(LeftBehind(f"{said} in step {step} of round {round_} ({why})"))

    async def _miss(self, own: OpenStep, device: str, seconds: float) -> None:
        """A member is not here. The cloud may know already that it never comes back: what it has
        given to steps before must not be lost with this process."""
        if seconds > self._network.rejoin_timeout + AFTER:
            await self._go_on_without(device)
        elif seconds > AFTER and not own.is_kept:
            own.is_kept = True
            await self._engine.run(self.team.keep)

    async def _go_on_without(self, device: str) -> None:
        await self._engine.run(self.team.leave_out, device)
        self._tell(None)
