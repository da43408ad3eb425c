"""Devices that share a stage's adapter: who waits for whom, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from edge_server import sharing
from edge_server.deliveries import Delivery
from edge_server.sharing import AFTER, Sharing
from sfl.config.network import NetworkSettings
from sfl.errors import LeftBehind
from sfl.metrics.stats import NodeStats
from sfl.rounds.values import Point
from sfl.stage.engine import Engine
from sfl.stage.training import SharedSession
from tests.house.shared_stage import STEPS, Stage

ROUND = 1


class Clock:
    """Seconds, as a test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Streams:
    """The members' streams: how much has moved, and who was told that it is left behind."""

    def __init__(self, sessions: dict[str, SharedSession]) -> None:
        self.told: dict[str, LeftBehind] = {}
        self.all = {name: _Stream(self.told, name, own) for name, own in sessions.items()}


class _Stream:
    def __init__(self, told: dict[str, LeftBehind], name: str, session: SharedSession) -> None:
        self.session, self.moved, self._told, self._name = session, 0, told, name

    def look(self) -> None: ...

    def leave_behind(self, reason: LeftBehind) -> None:
        self._told[self._name] = reason


class Scene:
    """`a` has taken step 0 and wants the next one; nothing of `b` has come."""

    def __init__(self, clock: Clock, engine: Engine, network: NetworkSettings) -> None:
        self.clock, self.engine, self.stage = clock, engine, Stage()
        self.team, self.sessions = self.stage.shared()
        self.streams = Streams(self.sessions)
        waits, streams = NodeStats("s", "stage").waits, self.streams.all.items
        self.one = Sharing(self.team, engine, waits, network, streams)

    async def done(self, name: str, step: int = 0, round_: int = ROUND) -> bool:
        """A member's gradients of a step are there; whether it has taken all of them."""
        own: SharedSession = self.sessions[name]
        await self.engine.serve(own, self.stage.sent(name, step, round_))
        return await self.one.stepped(own)

    async def turn(self, step: int = 1, round_: int = ROUND) -> None:
        await self.one.turn(self.sessions["a"], self.stage.sent("a", step, round_))

    async def begin(self, name: str, round_: int) -> None:
        told = self.stage.told(name, round_)
        await self.engine.run(self.sessions[name].begin_round, told, self.stage.values)
        self.one.began(name, round_)


Play = Callable[[Scene], Awaitable[None]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(sharing, "LOOK", 0.001)
    monkeypatch.setattr(sharing, "time", found)
    return found


def played(clock: Clock, play: Play, begun: tuple[str, ...] = ("a", "b"), **network: Any) -> None:
    async def run() -> None:
        engine = Engine(1)
        scene = Scene(clock, engine, NetworkSettings(**network))
        for device in begun:
            scene.one.began(device, ROUND)
        try:
            await scene.done("a")
            await play(scene)
        finally:
            scene.one.close()
            engine.close()

    asyncio.run(run())


async def waits(turn: Awaitable[None]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await turn


def test_who_never_begins_a_round_is_left_out_of_it(clock: Clock) -> None:
    async def play(scene: Scene) -> None:
        scene.one.began("b", ROUND - 1)
        await waits(scene.turn())
        clock.now += 60.0 + AFTER
        await waits(scene.turn())
        clock.now += 1.0
        await scene.turn()
        assert scene.team.members == ("a",) and scene.team.step == 1
        assert not scene.streams.told

    played(clock, play, ("a",))


def test_who_is_lost_is_left_out_and_who_computes_is_waited_for(clock: Clock) -> None:
    async def play(scene: Scene) -> None:
        await waits(scene.turn())
        clock.now += 100.0
        await waits(scene.turn())
        assert len(scene.team.members) == 2
        scene.one.left("b")
        await waits(scene.turn())
        clock.now += 100.0
        await scene.turn()
        assert [*scene.team.members] == ["a"]

    played(clock, play)


def test_who_is_lost_has_its_time_anew_once_it_was_back(clock: Clock) -> None:
    async def play(scene: Scene) -> None:
        await waits(scene.turn())
        clock.now += 50.0
        scene.one.began("b", ROUND)
        scene.one.left("b")
        await waits(scene.turn())
        clock.now += 50.0
        await waits(scene.turn())
        assert scene.team.members == ("a", "b")

    played(clock, play, ("a",))


def test_what_a_lost_member_has_given_is_kept_while_it_is_waited_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a step: the cloud may know before the stage that it never comes back."""
    kept = []

    async def play(scene: Scene) -> None:
        monkeypatch.setattr(scene.team, "keep", lambda: kept.append(scene.team.step))
        scene.one.left("b")
        await waits(scene.turn())
        clock.now += AFTER
        await waits(scene.turn())
        assert kept == []
        for _ in range(3):
            clock.now += 1.0
            await waits(scene.turn())
        assert kept == [0]

    played(clock, play)


def test_who_was_left_out_has_its_time_anew_in_the_next_round(clock: Clock) -> None:
    async def play(scene: Scene) -> None:
        scene.one.left("b")
        await waits(scene.turn())
        clock.now += 70.0
        await scene.turn()
        for step in range(1, STEPS):
            await scene.done("a", step)
        clock.now += 230.0
        await scene.begin("a", 2)
        await scene.done("a", 0, 2)
        await waits(scene.turn(1, 2))
        assert scene.team.members == ("a", "b")
        await scene.begin("b", 2)
        await scene.done("b", 0, 2)
        await scene.turn(1, 2)

    played(clock, play)


def test_who_is_here_and_moves_nothing_is_left_behind_alone(clock: Clock) -> None:
    async def play(scene: Scene) -> None:
        for _ in range(3):  # slow is not stuck
            await waits(scene.turn())
            clock.now += 299.0
            scene.streams.all["b"].moved += 1
        await waits(scene.turn())
        clock.now += 301.0
        await scene.turn()
        assert scene.team.members == ("a",) and scene.streams.told.keys() == {"b"}
        assert "nothing of device b moved for 301 s while" in str(scene.streams.told["b"])

    played(clock, play)


def test_in_the_last_step_too_where_nobody_asks_for_a_next_one(clock: Clock) -> None:
    async def play(scene: Scene) -> None:
        await scene.done("b")
        for step in range(1, STEPS - 1):
            await scene.done("a", step)
            await scene.done("b", step)
        assert not await scene.done("a", STEPS - 1)
        await asyncio.sleep(0.1)
        clock.now += 301.0
        async with asyncio.timeout(20.0):
            while not scene.streams.told:
                await asyncio.sleep(0.001)
        assert scene.team.step == STEPS and scene.sessions["a"].steps_left == 0

    played(clock, play)


@pytest.mark.parametrize(
    ("network", "seconds"),
    [
        ({"straggler_seconds": 30.0, "straggler_factor": 2.0}, 2.0 * STEPS * 50.0),
        ({"straggler_factor": "off"}, 1800.0),
        ({"straggler_seconds": 900.0, "round_timeout": 400.0}, 200.0),
    ],
)
def test_the_patience_follows_what_the_others_took(
    clock: Clock, network: dict[str, Any], seconds: float
) -> None:
    async def play(scene: Scene) -> None:
        await scene.done("b")
        clock.now += 50.0
        await scene.done("a", 1)
        await waits(scene.turn(2))
        clock.now += seconds
        await waits(scene.turn(2))
        assert not scene.streams.told
        clock.now += 1.0
        await scene.turn(2)
        assert scene.streams.told.keys() == {"b"}

    played(clock, play, **network)


def test_orders_ask_for_the_same_whoever_shares_the_adapter_by_now() -> None:
    """Else a device that another one has left would have to begin its part again."""
    told = Stage().told("a")
    assert Delivery(told, None).is_of(replace(told, together=("a",), after=Point(1, 0, 3)))
    assert not Delivery(told, None).is_of(replace(told, round=2))
