"""Devices that share a stage's adapter: who waits for whom, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from edge_server import sharing
from edge_server.deliveries import Delivery
from edge_server.sharing import Sharing
from sfl.metrics.stats import NodeStats
from sfl.rounds.values import Point
from sfl.stage.engine import Engine
from sfl.stage.training import SharedSession, Team
from tests.house.shared_stage import Stage

ROUND = 1
Scene = Callable[[Sharing, Team, Callable[[], Awaitable[None]]], Awaitable[None]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LOOK", 0.001)


def played(scene: Scene, patience: float) -> None:
    """`a` has taken step 0 and wants the next one; nothing of `b` has come."""
    stage = Stage()
    team, sessions = stage.shared()
    own: SharedSession = sessions["a"]

    async def play() -> None:
        engine = Engine(1)
        waits = NodeStats("s", "stage").waits
        one = Sharing(team, engine, waits, patience, lambda: ())
        try:
            await engine.serve(own, stage.sent("a", 0))
            await scene(one, team, lambda: one.turn(own, stage.sent("a", 1)))
        finally:
            engine.close()

    asyncio.run(play())


async def waits(turn: Awaitable[None]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await turn


def test_who_never_begins_a_round_is_left_out_of_it() -> None:
    async def scene(one: Sharing, team: Team, turn: Callable[[], Awaitable[None]]) -> None:
        one.began("a", ROUND)
        one.began("b", ROUND - 1)
        await turn()
        assert team.members == ("a",) and team.step == 1

    played(scene, patience=0.0)


def test_who_is_lost_is_left_out_and_who_computes_is_waited_for() -> None:
    async def scene(one: Sharing, team: Team, turn: Callable[[], Awaitable[None]]) -> None:
        for device in ("a", "b"):
            one.began(device, ROUND)
        await waits(turn())
        assert len(team.members) == 2
        one.left("b")
        await turn()
        assert [*team.members] == ["a"]

    played(scene, patience=0.0)


def test_who_is_lost_has_its_time_and_begins_it_anew_once_it_was_back() -> None:
    async def scene(one: Sharing, team: Team, turn: Callable[[], Awaitable[None]]) -> None:
        one.began("a", ROUND)
        await waits(turn())
        missed = one._missed["b"]
        one.began("b", ROUND)
        one.left("b")
        await waits(turn())
        assert one._missed["b"] > missed and team.members == ("a", "b")

    played(scene, patience=60.0)


def test_orders_ask_for_the_same_whoever_shares_the_adapter_by_now() -> None:
    """Else a device that another one has left would have to begin its part again."""
    told = Stage().told("a")
    assert Delivery(told, None).is_of(replace(told, together=("a",), after=Point(1, 0, 3)))
    assert not Delivery(told, None).is_of(replace(told, round=2))
