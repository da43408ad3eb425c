"""How a server comes to a stream with the stage behind it: one for each device that it lets in."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from sfl.codec.kernel import kernel
from sfl.config import RunSettings
from sfl.config.devices import LinkSettings
from sfl.errors import LinkLost, PeerUnavailable, ProtocolError
from sfl.metrics.stats import NodeStats
from sfl.plan import Holder
from sfl.rounds.values import Assignment
from sfl.stage.messages import Finish
from sfl.stage.snapshots import SharedShelf, Snapshots
from sfl.transport.device.tensor_work import Coders
from sfl.transport.dialling import connected_aio
from sfl.transport.frames import words
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.seal import sound
from sfl.transport.frames.wire import ATTEMPT, STAGE_END, WIRE_VERSION
from sfl.transport.shaper import Shaper, shaper
from sfl.transport.stage.end import NextEnd
from sfl.transport.stage.link import NextLink, Opened
from sfl.transport.stage.once import members_sent, settings_sent
from sfl.transport.status import error_of
from sfl.v1 import edge_pb2

log = logging.getLogger("sfl.stage")

LAST_WORD = ATTEMPT
"""Seconds that a stage has for hearing the end of the run, on a connection of its own."""
PAUSE = 0.2
"""Seconds between two attempts to reach a stage that does not answer."""
PATIENCE = 60.0
"""Seconds that a stage is waited for where nobody is waited for to come back."""
INCARNATION_BYTES = 16


@dataclass(frozen=True, slots=True)
class RunHere:
    """The run that a server is in, as the stage behind it is told."""

    settings: RunSettings
    run_id: str
    run_key: str
    model: str
    """Digest of its model."""


def hop_link(settings: RunSettings) -> LinkSettings:
    """The limits of the hop between a server and the stage behind it."""
    own = settings.stages
    return LinkSettings(up_mbit=own.up_mbit, down_mbit=own.down_mbit, delay_ms=own.delay_ms)


ONWARD = "+onward"
"""After a device's name, which has no such sign: the folder of what this end remembers for it."""


class NextStage:
    """The stage behind a server: opens a stream to it for each device."""

    def __init__(
        self,
        address: str,
        server: str,
        holder: Holder,
        stats: NodeStats,
        new_channel: Callable[[], grpc.aio.Channel],
        coders: Coders,
        cache_dir: Path,
        shared: SharedShelf | None = None,
    ) -> None:
        """`server` and `holder` are who opens them, `new_channel` makes what it calls by.

        Snapshots are kept in a `shared` place, too.
        """
        self.peer = f"stage at {address}"
        self._server = server
        self._holder = holder
        self._stats = stats
        self._new_channel = new_channel
        self._coders = coders
        self._cache_dir = cache_dir
        self._shared = shared
        self._incarnation = secrets.token_bytes(INCARNATION_BYTES)
        self._settings, self._members = settings_sent(), members_sent()
        self._shaper: Shaper | None = None
        self._shaped = False

    async def open(
        self, device: str, joined: Assignment, run: RunHere, hidden: int, adapter_limit: int
    ) -> NextLink:
        """A stream for a device that is let in, once the stage and all behind it are ready for it.

        `hidden` is how wide rows are, `adapter_limit` what a part of an adapter may take in bytes.
        Raises LinkLost where the stage does not answer in time, and what it refuses with.
        """
        seconds = run.settings.network.rejoin_timeout or PATIENCE
        with self._stats.waits.on(self.peer, "connection", f"a way on for {device}", seconds):
            channel = await self._connected(seconds)
        try:
            self._stats.link.forget()  # the stage may be another process, with another clock
            opened = Opened(channel)
            text, digest = self._settings.text(run.settings)
            hello = self._hello(device, joined, run, digest)
            await opened.write(edge_pb2.DeviceMessage(hello=hello))
            welcome = await self._welcome(opened, run.settings, hello, text)
            end = await self._end(welcome, device, joined, run)
            end.allow(hidden, adapter_limit)
            return self._link(opened, welcome, end, run.settings)
        except BaseException:
            await channel.close(None)
            raise

    async def tell_end(self, end: Finish) -> None:
        """Tell the stage that the run is over, again where the link breaks in that; one that is not
        there has nothing to hear it."""
        until = time.monotonic() + LAST_WORD
        while (problem := await self._told_end(end, until - time.monotonic())) is not None:
            if time.monotonic() + PAUSE >= until:
                log.warning("%s has not heard the end of the run: %s", self.peer, problem)
                return
            await asyncio.sleep(PAUSE)

    async def _told_end(self, end: Finish, seconds: float) -> str | None:
        """One attempt; why it may be worth another one."""
        said = edge_pb2.Finish(
            ok=end.ok, reason=end.reason, run_key=end.run_key, server=self._server
        )
        channel = self._new_channel()
        try:
            await connected_aio(channel, self.peer, seconds)
            await STAGE_END.stub(channel)(said, timeout=seconds)
        except PeerUnavailable as error:
            log.warning("%s: it has not heard the end of the run", error)
        except grpc.aio.AioRpcError as error:
            return error.details() or str(error.code())
        finally:
            await channel.close(None)
        return None

    async def _connected(self, seconds: float) -> grpc.aio.Channel:
        """A connection of its own. Raises LinkLost."""
        end = time.monotonic() + seconds
        while True:
            channel = self._new_channel()
            left = end - time.monotonic()
            try:
                await connected_aio(channel, self.peer, max(PAUSE, min(ATTEMPT, left)))
            except PeerUnavailable as error:
                await channel.close(None)
                if left <= 0:
                    raise LinkLost(str(error)) from None
            except BaseException:
                await channel.close(None)
                raise
            else:
                return channel
            self._stats.waits.say()
            await asyncio.sleep(PAUSE)

    def _hello(
        self, device: str, joined: Assignment, run: RunHere, settings_digest: bytes
    ) -> edge_pb2.DeviceHello:
        holder = joined.plan.next_of(self._holder)
        assert holder is not None, "no stage is behind the last one"
        stage = edge_pb2.StageHello(
            server=self._server,
            holder=words.to_holder(holder),
            settings_digest=settings_digest,
            run_id=run.run_id,
            run_key=run.run_key,
            model=run.model,
            assignment=words.to_assignment(joined),
        )
        return edge_pb2.DeviceHello(
            device=device,
            wire_version=WIRE_VERSION,
            compiled_codec=kernel().name == "compiled",
            incarnation=self._incarnation,
            stage=stage,
        )

    async def _welcome(
        self, opened: Opened, settings: RunSettings, hello: edge_pb2.DeviceHello, text: str
    ) -> edge_pb2.Welcome:
        """What the stage says first, but for signs of life while it loads, and its asking for the
        `text` of the settings."""
        words_ = "to be let in"
        with self._stats.waits.on(self.peer, "admission", words_, None):
            while True:
                message = await self._read(opened, settings.network.idle_timeout)
                body = message.WhichOneof("body")
                if isinstance(message, edge_pb2.EdgeMessage) and body == "welcome":
                    return message.welcome
                if body == "settings_wanted" and not hello.stage.settings:
                    hello.stage.settings = text
                    await opened.write(edge_pb2.DeviceMessage(hello=hello))
                elif body != "heartbeat":
                    raise ProtocolError(f"{self.peer}: a welcome was expected")
                self._stats.waits.say()

    async def _read(self, opened: Opened, silence: float) -> edge_pb2.EdgeMessage | Frame:
        try:
            async with asyncio.timeout(silence):
                message = await anext(opened.messages)
        except StopAsyncIteration:
            raise LinkLost(f"{self.peer} closed the stream") from None
        except TimeoutError:
            raise LinkLost(f"{self.peer}: not a byte for {silence:g} s") from None
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self.peer) from None
        found: edge_pb2.EdgeMessage | Frame = sound(message, self.peer)
        return found

    async def _end(
        self, welcome: edge_pb2.Welcome, device: str, joined: Assignment, run: RunHere
    ) -> NextEnd:
        """This end of the stream; what it has snapshots of is read on a thread."""
        cache = self._cache_dir if run.settings.recovery.snapshots else None
        names = (self._server, device, "onward")
        key = run.run_key or run.run_id
        shared = None if self._shared is None else self._shared(key, f"{device}{ONWARD}")
        return await asyncio.to_thread(
            NextEnd,
            self._holder,
            device,
            joined,
            run.settings,
            self._stats.phases,
            welcome.compiled_codec,
            self._cache_dir,
            Snapshots.under(cache, key, *names, count=self._stats.snapshots, shared=shared),
        )

    def _link(
        self, opened: Opened, welcome: edge_pb2.Welcome, end: NextEnd, settings: RunSettings
    ) -> NextLink:
        if not self._shaped:
            self._shaper, self._shaped = shaper(hop_link(settings), "up"), True
        points, network = words.from_points(welcome.points), settings.network
        coders, stats = self._coders, self._stats
        allowed = min(welcome.credits or network.credits, network.credits)
        members, up = self._members, self._shaper
        return NextLink(
            opened, self.peer, end, points, coders, stats, network, up, allowed, members
        )
