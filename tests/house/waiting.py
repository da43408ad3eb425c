"""Waiting for what must come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

PATIENCE = 120.0


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for something that must come; fail with its name when it does not."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError(f"never came: {what}")


async def until_async(condition: Callable[[], Any]) -> None:
    """The same within a scene of this process, where it comes soon."""
    async with asyncio.timeout(60.0):
        while not condition():
            await asyncio.sleep(0.002)


def at_hand(value: Any) -> asyncio.Future[Any]:
    """What stands for a future that is done, inside a loop or outside of one."""
    return cast(Any, SimpleNamespace(done=lambda: True, result=lambda: value))
