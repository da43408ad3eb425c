"""The coroutines of one stream: they live together, and end with the first that ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NoReturn, ParamSpec, Protocol, TypeVar

import grpc
import grpc.aio

from sfl.errors import LinkLost, ProtocolError, SflError
from sfl.node.causes import cause_of

GONE = (grpc.aio.UsageError, grpc.aio.InternalError)
"""What gRPC raises where a message is written to a peer that has just hung up."""

P = ParamSpec("P")
R = TypeVar("R")


class Spoken(Protocol):
    """A message with one of several bodies."""

    def WhichOneof(self, group: Any, /) -> str | None:  # noqa: N802 - protobuf's name
        """The name of the body it has."""


M = TypeVar("M", bound=Spoken)


class Writer(Protocol):
    """As much of a servicer's context as writing takes."""

    async def write(self, message: Any, /) -> None:
        """Send a message."""


HELLO_SECONDS = 20.0
"""What a peer may take to say who it is, once its call is open."""


async def first_message(requests: AsyncIterator[M], body: str) -> M:
    """What a stream begins with. Raises ProtocolError where that does not come, or something else.

    Several peers whose first message never comes would hold what their streams take.
    """
    try:
        async with asyncio.timeout(HELLO_SECONDS):
            first = await anext(aiter(requests), None)
    except TimeoutError:
        raise ProtocolError(f"no {body} came within {HELLO_SECONDS:g} s") from None
    if first is None or first.WhichOneof("body") != body:
        raise ProtocolError(f"a stream begins with a {body}")
    return first


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
    if isinstance(error, (grpc.RpcError, *GONE)):
        return LinkLost(f"the stream broke: {error}")
    return cause_of(error)


def watched(
    coroutine: Coroutine[Any, Any, None], failed: Callable[[SflError], None]
) -> asyncio.Task[None]:
    """A task that nobody awaits; `failed` is told what ends it, unless it is cancelled."""
    task = asyncio.create_task(coroutine)

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            failed(_as_ours(error))

    task.add_done_callback(ended)
    return task


class Writes:
    """The writes of one stream, none of which is cut in the middle.

    A stream whose write was cut does not take the status that it is to end with. A task for each
    write would do as well, and costs 30 to 40 us of it.
    """

    def __init__(self, patience: float = 1.0) -> None:
        """Who takes nothing is waited for so many seconds."""
        self._patience = patience
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_over = False

    async def one(self, context: Writer, message: object) -> None:
        """Write a message; none begins once the stream is to end."""
        if self._is_over:
            await asyncio.get_running_loop().create_future()  # it is about to be cancelled
        self._idle.clear()
        try:
            await context.write(message)
        finally:
            self._idle.set()

    async def whole(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run what writes; cancelled, it first lets the write under way come to its end."""
        task = asyncio.create_task(work())
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            self._is_over = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience):
                    await self._idle.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise


async def aside(job: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a job on a thread of its own, which keeps no process alive that is to end.

    For what may hang, as a disk far away does: a pool's threads are waited for at exit.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()

    def settle(set_: Callable[[Any], None], value: object) -> None:
        if not future.done():
            set_(value)

    def run() -> None:
        try:
            value: object = job(*args, **kwargs)
            set_: Callable[[Any], None] = future.set_result
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            value, set_ = error, future.set_exception
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, set_, value)

    threading.Thread(target=run, name="aside", daemon=True).start()
    return await future
