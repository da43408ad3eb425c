"""A stage's door for the servers before it, and what becomes of a stream that ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc

from sfl.codec.kernel import kernel
from sfl.config import RunSettings
from sfl.errors import Goodbye, LinkLost, ProtocolError, SflError
from sfl.metrics.stats import NodeStats
from sfl.node.text import plain
from sfl.plan import HOLDERS, Holder
from sfl.rounds.values import Assignment
from sfl.stage.messages import Finish
from sfl.stage.snapshots import Snapshots
from sfl.transport.device import checked
from sfl.transport.device.cleanups import Cleanups
from sfl.transport.device.connected import CAME_BACK, Connected
from sfl.transport.device.end import ServingEnd
from sfl.transport.device.greeting import finish_of
from sfl.transport.device.served import ALIVE
from sfl.transport.device.tensor_work import Coders
from sfl.transport.frames import contract, words
from sfl.transport.frames.wire import (
    STAGE_END,
    STAGE_SESSION,
    WIRE_VERSION,
    Method,
    generic_handler,
)
from sfl.transport.group import GONE, first_message, run_together
from sfl.transport.security.doorkeeper import expect
from sfl.transport.stage.once import settings_read
from sfl.transport.stage.served import Carried
from sfl.transport.status import LONGEST_DETAILS, status_of
from sfl.transport.stream import Context
from sfl.v1 import edge_pb2

BEAT = 1.0
"""Seconds between two signs of life to a server that waits."""

T = TypeVar("T")
Requests = AsyncIterator[edge_pb2.DeviceMessage]


@dataclass(frozen=True, slots=True)
class Arriving:
    """A device that a server before this stage has let in."""

    device: str
    server: str
    holder: Holder
    """What this stage is, in the device's plan."""
    joined: Assignment
    settings: RunSettings
    run_id: str
    run_key: str
    model: str
    """Digest of the server's model."""
    compiled: bool
    """Whether the server before has the compiled codec."""

    @property
    def key(self) -> str:
        """What snapshots of the run are kept by."""
        return self.run_key or self.run_id


class Opening(Protocol):
    """What a stage does for a device that arrives."""

    async def ready(self, arriving: Arriving) -> tuple[int, int]:
        """Have the base of the run loaded; (how wide rows are, most bytes of an adapter).

        Raises SflError, such as Refused where this stage is in another run.
        """

    async def open(self, arriving: Arriving, coders: Coders, end: ServingEnd) -> Carried:
        """A session for the device, and its way to the stage behind."""

    def run_is_over(self, server: str, end: Finish) -> None:
        """A server before this one says so, of the run that it was in."""

    async def left(self, device: str, reason: SflError) -> None:
        """The device's stream is over; its session is given back, where it has one."""


class StageService:
    """Serves the servers before a stage: one stream for each device."""

    def __init__(self, stats: NodeStats, cache_dir: Path) -> None:
        self.coders = Coders()
        self._stats = stats
        self._cache_dir = cache_dir
        self._connected: Connected[Carried] = Connected(stats)
        self._cleanups = Cleanups()
        self._settings = settings_read()
        self._opening: set[str] = set()
        self._servers: dict[str, str] = {}
        """By device, who has its open stream."""
        self._host: Opening | None = None

    def use(self, host: Opening) -> None:
        """From now on let devices in."""
        self._host = host

    @property
    def streams(self) -> dict[str, Carried]:
        """The open ones, by device."""
        return self._connected.streams

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service, for `server.add_generic_rpc_handlers`."""
        behaviours: dict[Method, Any] = {
            STAGE_SESSION: self._session,
            STAGE_END: self._end_of_run,
        }
        return generic_handler(STAGE_SESSION.service, behaviours)

    async def drain(self) -> None:
        """End what is open, and wait until all is given back."""
        self._connected.cancel()
        while self.streams or self._opening or self._cleanups:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Stop the codec threads."""
        self.coders.close()

    def send_off(self, reason: SflError) -> None:
        """Close every stream with a status that says why."""
        for device in list(self.streams):
            self._connected.evict(device, reason)

    async def _session(self, requests: Requests, context: Context) -> None:
        try:
            arriving = await self._arriving(requests, context)
            stream = await self._opened(arriving, context)
        except SflError as error:
            await context.abort(status_of(error), plain(str(error), LONGEST_DETAILS))
            return
        except GONE:  # it hung up, and is told nothing any more
            return
        group = asyncio.create_task(run_together(*stream.coroutines(requests, context)))
        self._connected.enter(stream, group)
        self._servers[stream.device] = arriving.server
        with contextlib.suppress(asyncio.CancelledError):  # the server before hung up
            await asyncio.wait({group})
        reason: asyncio.Future[SflError] = asyncio.get_running_loop().create_future()
        self._cleanups.start(stream.device, self._leave(stream, group, reason))
        ended = await reason
        if not isinstance(ended, Goodbye):
            await context.abort(status_of(ended), plain(str(ended), LONGEST_DETAILS))

    async def _arriving(self, requests: Requests, context: Context) -> Arriving:
        """Whose stream this is to be. Raises ProtocolError, Refused, LinkLost."""
        hello = (await first_message(requests, "hello")).hello
        _check_sender(hello)

        async def text() -> str:
            wanted = edge_pb2.SettingsWanted(settings_digest=digest)
            await context.write(edge_pb2.EdgeMessage(settings_wanted=wanted))
            return (await first_message(requests, "hello")).hello.stage.settings

        server, digest = hello.stage.server, hello.stage.settings_digest
        asking = _task(self._settings.of(server, digest, text))
        return _arriving(hello, await _alive_until(asking, context))

    async def _opened(self, arriving: Arriving, context: Context) -> Carried:
        host = self._host
        if host is None:
            raise LinkLost("this stage has just started, or is about to end")
        device, stream = arriving.device, None
        hidden, adapter_limit = await _alive_until(_task(host.ready(arriving)), context)
        await self._handed_over(arriving, context)
        # Who has let the device in says so: its older stream is of no more use to anybody.
        while (old := self._connected.end(device, LinkLost(CAME_BACK))) is not None:
            await _alive_until(old, context)
        while (cleanup := self._cleanups.pending(device)) is not None:
            await _alive_until(cleanup, context)
        if device in self._opening:
            raise LinkLost(f"device {device} arrives twice at once")
        self._opening.add(device)
        opening: asyncio.Task[Carried] | None = None
        try:
            # What it has snapshots of is read there.
            end = await asyncio.to_thread(self._end, arriving)
            end.allow(hidden, adapter_limit)
            opening = _task(host.open(arriving, self.coders, end))
            stream = await _alive_until(opening, context)
            points = [words.to_point(point) for point in stream.points]
            welcome = edge_pb2.Welcome(
                compiled_codec=kernel().name == "compiled", points=points, credits=stream.credits
            )
            stream.stream.outbox.put(edge_pb2.EdgeMessage(welcome=welcome))
            return stream
        except BaseException as error:
            reason = error if isinstance(error, SflError) else LinkLost("it left at once")
            self._cleanups.start(device, _withdraw(host, device, reason, opening))
            raise
        finally:
            self._opening.discard(device)

    async def _handed_over(self, arriving: Arriving, context: Context) -> None:
        """A device comes by another server once the one before has given it up, or is silent.

        Else any server could take others' devices. The cloud lets a device in at a second edge
        once the first has told that it left. Raises LinkLost where it stays there.
        """
        until = time.monotonic() + arriving.settings.network.idle_timeout
        while (other := self._lives_at_another(arriving)) is not None:
            if time.monotonic() >= until:
                raise LinkLost(f"device {arriving.device} is still at {other}")
            await asyncio.wait({self._connected.left(arriving.device)}, timeout=BEAT)
            await context.write(ALIVE)

    def _lives_at_another(self, arriving: Arriving) -> str | None:
        other = self._servers.get(arriving.device)
        if other in (None, arriving.server):
            return None
        return other if self._connected.is_alive(arriving.device) else None

    async def _end_of_run(self, said: edge_pb2.Finish, context: Context) -> edge_pb2.Heard:
        """A server before this one tells the end of its run."""
        try:
            contract.name("server", said.server)
            expect("edge", said.server)
            if self._host is not None:
                self._host.run_is_over(said.server, finish_of(said))
        except SflError as error:
            await context.abort(status_of(error), plain(str(error), LONGEST_DETAILS))
        return edge_pb2.Heard()

    def _end(self, arriving: Arriving) -> ServingEnd:
        settings, own = arriving.settings, arriving.holder
        cache = self._cache_dir if settings.recovery.snapshots else None
        names, count = (self._stats.name, arriving.device), self._stats.snapshots
        return ServingEnd(
            own,
            arriving.device,
            arriving.joined,
            settings,
            self._stats.phases,
            arriving.compiled,
            self._cache_dir,
            Snapshots.under(cache, arriving.key, *names, count=count),
            HOLDERS[HOLDERS.index(own) - 1],
        )

    async def _leave(
        self, stream: Carried, group: asyncio.Task[None], why: asyncio.Future[SflError]
    ) -> None:
        """End a stream's coroutines, if they have not, say why it ended, and end all it holds."""
        group.cancel()
        (ended,) = await asyncio.gather(group, return_exceptions=True)
        gone = stream.ended or LinkLost("the stream broke")
        reason = ended if isinstance(ended, SflError) else gone
        if not why.done():
            why.set_result(reason)
        self._connected.leave(stream.device)
        del self._servers[stream.device]
        try:
            await stream.abandon()
        finally:
            assert self._host is not None
            await self._host.left(stream.device, reason)


def _check_sender(hello: edge_pb2.DeviceHello) -> None:
    said = hello.stage
    contract.name("device", hello.device)
    contract.name("server", said.server)
    if hello.wire_version != WIRE_VERSION:
        raise ProtocolError(
            f"edge {said.server!r} speaks wire version {hello.wire_version}, this stage speaks "
            f"{WIRE_VERSION}: install the same sfl on both"
        )
    expect("edge", said.server)
    contract.whole("bytes of a digest", len(said.settings_digest), 32, 32)


def _arriving(hello: edge_pb2.DeviceHello, settings: RunSettings) -> Arriving:
    """What a server says of a device that it has let in. Raises ProtocolError, Refused."""
    said = hello.stage
    if hello.device not in settings.names:
        raise ProtocolError(f"the run's settings have no device {hello.device!r}")
    joined = words.from_assignment(said.assignment)
    checked.assignment(joined, settings)
    holder = words.from_holder(said.holder)
    if holder not in joined.plan.holders[2:]:
        raise ProtocolError(f"holder {holder} is none behind an edge in the device's plan")
    return Arriving(
        hello.device,
        said.server,
        holder,
        joined,
        settings,
        said.run_id,
        said.run_key,
        said.model,
        hello.compiled_codec,
    )


def _task(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    task = asyncio.create_task(coroutine)
    # Who waits for it may be gone by then.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def _alive_until(future: asyncio.Future[T], context: Context) -> T:
    """Wait for it, and let the server that waits hear that this stage lives."""
    while not future.done():
        done, _ = await asyncio.wait({future}, timeout=BEAT)
        if not done:
            await context.write(ALIVE)
    return future.result()


async def _withdraw(
    host: Opening, device: str, reason: SflError, opening: asyncio.Task[Carried] | None
) -> None:
    """Give back what was made for a device that never came in."""
    if opening is not None:
        opening.cancel()
        (made,) = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(made, Carried):
            await made.abandon()
    await host.left(device, reason)
