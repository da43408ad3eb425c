"""The edge's one compute thread: it owns the model, coroutines own bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

from sfl.metrics.stats import NodeStats

P = ParamSpec("P")
R = TypeVar("R")


class Engine:
    """Runs jobs one after another, in the order they came, never on the event loop."""

    def __init__(self, threads: int, stats: NodeStats) -> None:
        # Set on the thread itself: OpenMP keeps the number per calling thread.
        self._pool = ThreadPoolExecutor(
            1, "compute", initializer=torch.set_num_threads, initargs=(threads,)
        )
        self._stats = stats

    async def run(self, job: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Queue a job and wait for its result; what it raises is raised here."""
        self._stats.queue_depth += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, lambda: job(*args, **kwargs))
        finally:
            self._stats.queue_depth -= 1

    def close(self) -> None:
        """Let the running job end, drop what waits."""
        self._pool.shutdown(wait=True, cancel_futures=True)
