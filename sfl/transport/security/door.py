"""How many may stand at a server's door, known or not: connections, and calls of one caller.

gRPC itself bounds connections in all and the time of a handshake; it shows Python neither a
connection that has no call open nor its address. So a thread looks at this process's own sockets
twice a second, and hangs up on those of an address that has too many that say nothing. Bytes do
not pass here: what this costs does not grow with what is sent.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from sfl.errors import Refused
from sfl.node.logs import Sparing
from sfl.node.machine import open_files
from sfl.transport.frames.wire import ATTEMPT
from sfl.transport.security.doorkeeper import Context, Handler, caller_name
from sfl.transport.status import status_of

log = logging.getLogger(__name__)
sparing = Sparing(log)

MOST_CONNECTIONS = 4096
RESERVED_FILES = 96
"""Descriptors that are no connections of peers: files, metrics, a link of one's own."""
CALLS = 16
"""Open at once, of one caller: a session, its transfers, and a few that are ending."""
SILENT = 64
"""Connections of one address without an open call, beyond which the oldest are closed."""
SILENT_SECONDS = 2.0
"""How old those are at least: nodes that start together on one machine come all at once."""
LOOK = 0.5
OWN_FILES = Path("/proc/self/fd")


def most_connections() -> int:
    """How many peers a server of this process may have at once."""
    limit = open_files()
    return max(limit // 4, min(MOST_CONNECTIONS, limit - RESERVED_FILES))


def door_options() -> tuple[tuple[str, int], ...]:
    """gRPC's part of it: options of a server, by the files that this process may open."""
    return (
        ("grpc.max_allowed_incoming_connections", most_connections()),
        ("grpc.server_handshake_timeout_ms", int(1000 * ATTEMPT)),
        ("grpc.max_concurrent_streams", 4 * CALLS),
    )


class Door(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Counts the calls of each caller, and knows which connections have one open."""

    def __init__(self, bounds: Mapping[str, Callable[[], int]] | None = None) -> None:
        """A caller may have `CALLS` open, beside those of the methods (paths) in `bounds`.

        A server before a stage has one of these for each device: their bound is the run's.
        """
        self._bounds = bounds or {}
        self._calls: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        """Calls of each connection: one whose calls have ended says nothing any more."""
        self._silent: dict[str, float] = {}
        """Since when each connection that has no call open is known to have none."""

    @contextlib.contextmanager
    def watched(self, address: str) -> Iterator[None]:
        """Look after the connections to a port of this process, `host:port`, while this lasts."""
        over = threading.Event()
        port = int(address.rpartition(":")[2])

        def watch() -> None:
            while not over.wait(LOOK):
                try:
                    self.look(own_connections(port), time.monotonic())
                except OSError:  # out of files: gRPC's bounds free some
                    continue
                except Exception as error:  # noqa: BLE001 - the next look may see them again
                    sparing.warning("door", "connections cannot be checked: %r", error)

        thread = threading.Thread(target=watch, name="door", daemon=True)
        if OWN_FILES.is_dir():
            thread.start()
        try:
            yield
        finally:
            over.set()

    def look(self, connections: dict[str, int], now: float) -> None:
        """Hang up on what is too much, of connections by peer, with a descriptor of each."""
        silent = connections.keys() - self._open.keys()
        self._silent = {peer: self._silent.get(peer, now) for peer in silent}
        for peer in _too_many(self._silent, now):
            hang_up(connections[peer], peer)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The method's handler, its calls counted."""
        handler: Any = await continuation(handler_call_details)
        return handler and self._counted(handler, handler_call_details.method)

    @contextlib.asynccontextmanager
    async def _call(self, context: Context, method: str = "") -> AsyncIterator[None]:
        peer = _peer(context.peer())
        caller, most, counted = caller_name() or peer, CALLS, ""
        if method in self._bounds:
            most, counted = self._bounds[method](), method
        key = f"{caller} {counted}"
        if self._calls[key] >= most:
            sparing.warning(caller, "%s has %d calls open: no more are accepted", caller, most)
            reason = f"{caller} has {most} calls open already"
            await context.abort(status_of(Refused()), reason)
        with _one_more(self._calls, key), _one_more(self._open, peer):
            yield

    def _counted(self, handler: Any, method: str) -> Handler:
        kind = f"{_side(handler.request_streaming)}_{_side(handler.response_streaming)}"
        behaviour = getattr(handler, kind)

        async def call(request: Any, context: Context) -> Any:
            async with self._call(context, method):
                return await behaviour(request, context)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._call(context, method):
                async for response in behaviour(request, context):
                    yield response

        counted = stream if inspect.isasyncgenfunction(behaviour) else call
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        made: Handler = make(counted, handler.request_deserializer, handler.response_serializer)
        return made


@contextlib.contextmanager
def _one_more(counts: Counter[str], name: str) -> Iterator[None]:
    """Count one for as long as this lasts; what comes to none is forgotten."""
    counts[name] += 1
    try:
        yield
    finally:
        counts[name] -= 1
        if not counts[name]:
            del counts[name]


def _side(streams: bool) -> str:
    return "stream" if streams else "unary"


def _peer(said: str) -> str:
    """gRPC's name of a peer (`ipv4:127.0.0.1:5000`, `ipv6:%5B::1%5D:5000`) as `host port`."""
    host, _, port = unquote(said).partition(":")[2].rpartition(":")
    return f"{host.strip('[]')} {port}"


def _too_many(silent: dict[str, float], now: float) -> list[str]:
    """The oldest of each address that has more than it may, if they are old enough."""
    by_host: dict[str, list[str]] = {}
    for peer in sorted(silent, key=lambda peer: silent[peer]):
        by_host.setdefault(peer.rpartition(" ")[0], []).append(peer)
    chosen = []
    for host, peers in by_host.items():
        extra = peers[: max(0, len(peers) - SILENT)]
        old = [peer for peer in extra if now - silent[peer] >= SILENT_SECONDS]
        if old:
            sparing.warning(
                host, "%s: %d silent connections; closed %d", host, len(peers), len(old)
            )
        chosen += old
    return chosen


def own_connections(port: int) -> dict[str, int]:
    """A descriptor of this process for each connection to one of its ports, by peer."""
    found = {}
    for file in OWN_FILES.iterdir():
        with contextlib.suppress(OSError):
            if str(file.readlink()).startswith("socket:"):
                with _copy(int(file.name)) as own:
                    if (peer := _remote(own, port)) is not None:
                        found[peer] = int(file.name)
    return found


def hang_up(descriptor: int, peer: str) -> None:
    """End a connection, unless the descriptor has become another's meanwhile."""
    with contextlib.suppress(OSError), _copy(descriptor) as own:
        port = own.getsockname()[1]
        if _remote(own, port) == peer:
            own.shutdown(socket.SHUT_RDWR)


def _copy(descriptor: int) -> socket.socket:
    """A socket object of one's own over what may be gRPC's: closing it closes nothing of gRPC's."""
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:  # it has become a file
        os.close(copy)
        raise


def _remote(own: socket.socket, port: int) -> str | None:
    """Who is at the other end, where this end is that port of TCP."""
    if own.family not in (socket.AF_INET, socket.AF_INET6) or own.getsockname()[1] != port:
        return None
    host, remote = own.getpeername()[:2]
    return f"{host.removeprefix('::ffff:')} {remote}"
