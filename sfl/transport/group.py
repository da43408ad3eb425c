"""The coroutines of one stream: they live together, and end with the first that ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, NoReturn

import grpc
import grpc.aio

from sfl.errors import LinkLost, RunFailed, SflError

log = logging.getLogger(__name__)


async def run_together(*coroutines: Coroutine[Any, Any, None]) -> NoReturn:
    """Run them until one raises or is cancelled, end the others, and raise why.

    Raises SflError: a broken stream is LinkLost; anything unforeseen is logged with its traceback
    and raised as RunFailed, so that a bug closes its own stream and hangs nothing.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        errors = [task.exception() for task in done if not task.cancelled()]
        raise _as_ours(next((error for error in errors if error is not None), None))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _as_ours(error: BaseException | None) -> SflError:
    if error is None:
        return LinkLost("the stream ended")
    if isinstance(error, SflError):
        return error
    if isinstance(error, grpc.RpcError | grpc.aio.UsageError):
        return LinkLost(f"the stream broke: {error}")
    log.error("this is a bug in sfl", exc_info=error)
    return RunFailed(f"{type(error).__name__}: {error} (a bug; the log has more)")
