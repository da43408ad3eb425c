"""A TCP proxy on loopback: a link that is slow, narrow, uneven or torn, or that changes bits."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

Way = Literal["up", "down"]
CUT_OFF = struct.pack("ii", 1, 0)
BOTH: tuple[Way, Way] = ("up", "down")
WAITS = 15.0
"""Seconds that a target may take to be there, where TLS is ended on the way."""
SOON = 0.02
"""Seconds in which what was sent has arrived on loopback."""


@dataclass(frozen=True)
class Inside:
    """Ends TLS, and begins it again towards the target: so that messages are seen under TLS."""

    server: ssl.SSLContext
    client: ssl.SSLContext


class Watch(Protocol):
    """Sees what passes on one connection, before it does."""

    def torn(self, way: Way, data: bytes) -> int | None:
        """After how many of these bytes all is to be cut off, if it is."""


class Proxy:
    """Between clients and `target`; what it does to bytes may change while it runs.

    `trip` is a round trip in seconds: a connection waits for one, as for TCP's own, and what it
    carries for half of one each way, in order, however much of it there is.
    """

    def __init__(self, target: str, trip: float = 0.0, inside: Inside | None = None) -> None:
        host, port = target.rsplit(":", 1)
        self.target, self.trip = (host, int(port)), trip
        self.jitter = 0.0
        """Seconds more, at most, that any piece takes each way."""
        self.rate: float | None = None
        """Bytes a second, each way of each connection."""
        self.piece = 1 << 16
        """Bytes that are sent at once."""
        self.blocked: set[Way] = set()
        """Ways on which nothing gets through any more; connections stay."""
        self.watch: Callable[[], Watch] | None = None
        """Who sees what passes; asked for with each connection."""
        self.connections = 0
        """Those that reached the target."""
        self.flipped = 0
        self.passed: dict[Way, int] = {"up": 0, "down": 0}
        self._inside = inside
        self._flips: dict[Way, list[int]] = {"up": [], "down": []}
        self._writers: set[asyncio.StreamWriter] = set()
        self._drawn = random.Random(0)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.address = ""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def swallows(self) -> bool:
        """Half-open: connections stay, and nothing gets through any more."""
        return len(self.blocked) == len(BOTH)

    @swallows.setter
    def swallows(self, whether: bool) -> None:
        self.blocked = set(BOTH) if whether else set()

    def cut(self) -> None:
        """Reset every connection."""
        self._loop.call_soon_threadsafe(self._cut)

    def flip(self, way: Way, size: int = 2000) -> None:
        """Flip a bit in the middle of the next piece of at least `size` bytes."""
        self._flips[way].append(size)

    def _cut(self) -> None:
        for writer in list(self._writers):
            raw = writer.get_extra_info("socket")
            with contextlib.suppress(OSError, AttributeError):  # it is closed already
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CUT_OFF)
            writer.transport.abort()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        own = None if self._inside is None else self._inside.server
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0, ssl=own)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._up.set()
        await self._stop.wait()
        server.close()
        self.blocked = set()
        while self._writers:
            self._cut()
            await asyncio.sleep(0.01)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        far_writer = writer
        try:
            await asyncio.sleep(self.trip)
            far_reader, far_writer = await self._far()
            self._writers.add(far_writer)
            self.connections += 1
            for one in (writer, far_writer):
                one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            watch = None if self.watch is None else self.watch()
            await asyncio.gather(
                self._carry("up", reader, far_writer, watch),
                self._carry("down", far_reader, writer, watch),
            )
        except OSError:
            pass  # cut, by us or by an end
        finally:
            for one in (writer, far_writer):
                one.transport.abort()
                self._writers.discard(one)

    async def _far(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the target; inside TLS one that hung up would seem to refuse, so that a
        target that is not there yet is waited for."""
        if self._inside is None:
            return await asyncio.open_connection(*self.target)
        async with asyncio.timeout(WAITS):
            while True:
                with contextlib.suppress(ConnectionError):
                    return await asyncio.open_connection(*self.target, ssl=self._inside.client)
                await asyncio.sleep(0.05)

    async def _carry(
        self,
        way: Way,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        watch: Watch | None,
    ) -> None:
        """Read at once, write half a round trip later."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        out = asyncio.create_task(self._deliver(way, line, writer))
        latest = 0.0
        try:
            while data := await reader.read(1 << 16):
                torn = None if watch is None else watch.torn(way, data)
                late = self._drawn.uniform(0.0, self.jitter)
                latest = max(latest, self._loop.time() + self.trip / 2 + late)
                line.put_nowait((latest, self._changed(way, data[:torn])))
                if torn is not None:
                    await asyncio.sleep(latest - self._loop.time() + SOON)
                    self._cut()
            line.put_nowait((self._loop.time() + self.trip / 2, b""))
            await out
        finally:
            out.cancel()
            writer.close()

    def _changed(self, way: Way, data: bytes) -> bytes:
        self.passed[way] += len(data)
        flips = self._flips[way]
        if not flips or len(data) < flips[0]:
            return data
        flips.pop(0)
        self.flipped += 1
        changed = bytearray(data)
        changed[len(data) // 2] ^= 16
        return bytes(changed)

    async def _deliver(
        self, way: Way, line: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            arrives, data = await line.get()
            await asyncio.sleep(max(0.0, arrives - self._loop.time()))
            while way in self.blocked:
                await asyncio.sleep(0.05)
            if not data:
                return
            for begin in range(0, len(data), self.piece):
                piece = data[begin : begin + self.piece]
                writer.write(piece)
                await writer.drain()
                if self.rate is not None:
                    await asyncio.sleep(len(piece) / self.rate)
