"""What is given back after a device is gone, whoever still waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


class Cleanups:
    """A task for each device that is gone; its name is free for a new stream once that is done.

    gRPC cancels the coroutine that serves a call once the client has hung up, so none of this may
    be left to it.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, device: str, cleanup: Coroutine[Any, Any, None]) -> None:
        """Have it go on until it is done. An error is logged: nobody awaits it."""
        task = self._tasks[device] = asyncio.create_task(cleanup)

        def over(task: asyncio.Task[None]) -> None:
            if self._tasks.get(device) is task:
                del self._tasks[device]
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("this is a bug in sfl", exc_info=error)

        task.add_done_callback(over)

    def pending(self, device: str) -> asyncio.Task[None] | None:
        """The one that a device's name waits for.

        One that is done is still there until its callback has had its turn on the loop, which
        waiting for what is done would never give it.
        """
        task = self._tasks.get(device)
        return None if task is None or task.done() else task
