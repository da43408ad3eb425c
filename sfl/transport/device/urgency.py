"""Queues in which what is urgent overtakes, and a thread that works one off."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

URGENT, NORMAL, LAST = 0, 1, 2


class Outbox(Generic[T]):
    """A queue out in which urgent things overtake; what is equally urgent keeps its order."""

    def __init__(self) -> None:
        self._queue: queue.PriorityQueue[tuple[int, int, T]] = queue.PriorityQueue()
        self._numbers = itertools.count()

    def put(self, item: T, urgency: int = NORMAL) -> None:
        """Queue one thing."""
        self._queue.put((urgency, next(self._numbers), item))

    def get(self) -> T:
        """Wait for the next one."""
        return self._queue.get()[2]


class CodecThread:
    """One thread beside an event loop; urgent jobs overtake those that have not begun."""

    def __init__(self, name: str) -> None:
        self._jobs: Outbox[Callable[[], None] | None] = Outbox()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(
        self, urgent: bool, job: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[R]:
        """Queue a job at once; what it returns or raises is the future's."""
        future: Future[R] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = job(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - raised where it is awaited
                future.set_exception(error)
            else:
                future.set_result(result)

        self._jobs.put(run, URGENT if urgent else NORMAL)
        return asyncio.wrap_future(future)

    def close(self) -> None:
        """Let the running job end, leave the others."""
        self._jobs.put(None, URGENT - 1)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
