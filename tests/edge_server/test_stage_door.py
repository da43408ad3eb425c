"""A real stage server behind TLS: whom it lets in, and for which devices."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_server import stage
from sfl.config import RunSettings
from sfl.errors import LinkLost, NotYet, ProtocolError, Refused, RunFailed
from sfl.node.process import run_node
from sfl.stage.messages import Finish
from sfl.transport.device.jobs import Jobs
from sfl.transport.frames import contract
from sfl.transport.security.door import CALLS
from sfl.transport.stage.once import digest, settings_read
from tests.house.staged import Staged
from tests.house.waiting import PATIENCE

pytestmark = pytest.mark.process


def test_an_edge_may_have_more_devices_at_a_stage_than_a_caller_may_have_calls(
    tmp_path: Path,
) -> None:
    staged = Staged(tmp_path, CALLS + 2)

    async def play() -> None:
        async with staged.served() as server:
            north = staged.edge("north")
            await asyncio.gather(*(staged.opened(north, name) for name in staged.names))
            assert sorted(server.service.streams) == sorted(staged.names)

    asyncio.run(play())


def test_who_is_none_of_the_run_s_edges_is_refused(tmp_path: Path) -> None:
    staged = Staged(tmp_path, 1)

    async def play() -> None:
        async with staged.served() as server:
            with pytest.raises(Refused, match="edge 'west' is none of the edges of run key"):
                await staged.opened(staged.edge("west"), "d0")
            await staged.opened(staged.edge("north"), "d0")
            # What a server says of the run's edges itself lets nobody in.
            with pytest.raises(Refused, match="edge 'west' is none of the edges of run key"):
                await staged.opened(staged.edge("west"), "d0", staged.of(edges=["west"]))
            assert server.service.streams.keys() == {"d0"}

    asyncio.run(play())


def test_a_stage_s_file_names_who_may_come(tmp_path: Path) -> None:
    staged = Staged(tmp_path, 1, before=["north"])

    async def play() -> None:
        async with staged.served():
            with pytest.raises(Refused, match=r"of stage stage does not name 'south'"):
                await staged.opened(staged.edge("south"), "d0", staged.of(), "another")
            await staged.opened(staged.edge("north"), "d0")

    asyncio.run(play())


def test_a_device_comes_by_another_edge_once_its_own_has_given_it_up(tmp_path: Path) -> None:
    staged = Staged(tmp_path, 1)

    async def play() -> None:
        async with staged.served() as server:
            link = await staged.opened(staged.edge("north"), "d0")
            link.serve(*nobody())
            kept = [asyncio.create_task(one) for one in link.coroutines()]
            moving = asyncio.create_task(staged.opened(staged.edge("south"), "d0"))
            done, _ = await asyncio.wait({moving, *kept}, timeout=3.0)
            assert not done, "neither is north's stream ended, nor has south the device"
            for task in kept:
                task.cancel()
            await link.close()
            await asyncio.wait_for(moving, PATIENCE)
            assert server.service._servers == {"d0": "south"}

    asyncio.run(play())


def test_one_server_alone_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "LAST_WORD", 0.3)
    staged = Staged(tmp_path, 2)

    async def play() -> None:
        async with staged.served() as server:
            north, south = staged.edge("north"), staged.edge("south")
            west = staged.edge("west")
            kept = await staged.opened(north, "d0")
            gone = await staged.opened(south, "d1")
            await west.tell_end(Finish(True, "", "key"))
            assert not server.host.before.first_word.done(), "it has no device here"
            await south.tell_end(Finish(True, "", "key"))
            await gone.close()
            await asyncio.sleep(1.0)
            assert server.service.streams.keys() == {"d0"}
            assert server.host.before.awaited == {"north"}
            await north.tell_end(Finish(False, "nobody is left", "key"))
            await kept.close()
            with pytest.raises(RunFailed, match="nobody is left"):
                await asyncio.wait_for(staged.following, PATIENCE)

    asyncio.run(play())


def test_a_stage_that_meets_another_run_is_started_again(tmp_path: Path) -> None:
    staged = Staged(tmp_path, 1)

    async def play() -> None:
        async with staged.served():
            await (await staged.opened(staged.edge("north"), "d0")).close()
            with pytest.raises(LinkLost, match="this stage was of run key, and ends"):
                while True:  # until the stream's end is seen
                    with contextlib.suppress(Refused):
                        await staged.opened(staged.edge("north"), "d0", key="next")
            with pytest.raises(NotYet, match=r"run next has begun\. Start the stage") as caught:
                await asyncio.wait_for(staged.following, PATIENCE)
            assert run_node(_raises(caught.value), None, supervised=True) == NotYet.exit_code

    asyncio.run(play())


def test_settings_are_sent_once_by_each_edge_and_kept_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They tell of all devices: a copy for each would grow with the square."""
    staged, read = Staged(tmp_path, 12), []

    def reading(text: str) -> RunSettings:
        read.append(text)
        return run_settings(text)

    run_settings = contract.run_settings
    monkeypatch.setattr(contract, "run_settings", reading)
    # By its edges, as a run's file and its text form may change what one of them was told.
    other = staged.settings.model_copy(deep=True)

    async def play() -> None:
        async with staged.served() as server:
            north, south = staged.edge("north"), staged.edge("south")
            of = {name: (north, south)[n % 2] for n, name in enumerate(staged.names)}
            told = {north: staged.settings, south: other}
            opened = (staged.opened(edge, name, told[edge]) for name, edge in of.items())
            await asyncio.gather(*opened)
            streams = server.service.streams.values()
            assert len(streams) == 12
            assert len({id(stream.settings) for stream in streams}) == 1
            assert 1 <= len(read) <= 2, "both may be asked before one has answered"

    asyncio.run(play())


def test_settings_are_those_that_were_announced() -> None:
    async def play() -> None:
        read = settings_read()

        async def another() -> str:
            return "{}"

        with pytest.raises(ProtocolError, match="others than were announced"):
            await read.of("north", digest("[]"), another)

    asyncio.run(play())


def _raises(error: Exception) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


def nobody() -> tuple[Any, Any, Any]:
    """Who would serve what comes to an edge, in a test in which nothing comes."""
    silent: Any = SimpleNamespace(stage_heard=lambda snapshot: None)
    return silent, Jobs(4), silent
