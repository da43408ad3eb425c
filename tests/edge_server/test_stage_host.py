"""A stage's run by itself: whom it lets in, and how often it says how it is."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from edge_server.stage_host import StageRun
from sfl.config.node import StageConfig
from sfl.errors import Refused
from sfl.metrics.stats import NodeStats
from sfl.stage.engine import Engine
from sfl.stage.messages import Finish


async def opened(name: str = "cellar") -> StageRun:
    stats, engine = NodeStats(name, "stage"), Engine(1)
    return StageRun(StageConfig(name=name), 1, stats, engine, None, lambda holder: None)


def stream(device: str, waiting: int = 0) -> Any:
    told: list[str] = []
    return SimpleNamespace(
        device=device,
        told=told,
        tell=lambda snapshot: told.append(snapshot.name),
        has_enough_to_send=waiting > 16,
    )


def test_a_server_of_the_same_name_is_refused() -> None:
    """Their snapshots would be in one folder, and their statistics would be one node's."""

    async def play() -> None:
        host = await opened()
        arriving: Any = SimpleNamespace(server="cellar", key="r")
        with pytest.raises(Refused, match=r"stage\.name = 'cellar': the server before"):
            await host.ready(arriving)
        host.engine.close()

    asyncio.run(play())


def test_statistics_go_once_to_each_server_by_a_stream_that_is_not_held_up() -> None:
    async def play() -> None:
        host = await opened()
        full, free, more = stream("a", 17), stream("b"), stream("c")
        host._servers.update({"a": "north", "b": "north", "c": "north"})
        host.tell([full, free, more])
        assert (full.told, free.told, more.told) == ([], ["cellar"], [])
        host.engine.close()

    asyncio.run(play())


def test_the_end_of_another_run_is_not_this_one_s() -> None:
    async def play() -> None:
        host = await opened()
        host._first = SimpleNamespace(key="r")  # type: ignore[assignment]
        host.before.came("a", "north")
        host.run_is_over("north", Finish(True, "", "another"))
        assert not host.before.first_word.done()
        host.run_is_over("north", Finish(True, "well", "r"))
        host.run_is_over("north", Finish(False, "late", "r"))
        assert host.before.first_word.done() and host.before.end.reason == "well"
        host.engine.close()

    asyncio.run(play())
