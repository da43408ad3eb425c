"""A real stage server behind TLS: whom it lets in, and for which devices."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sfl.transport.security.door import CALLS
from tests.house.staged import Staged

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
