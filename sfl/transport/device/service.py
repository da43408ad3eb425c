"""The edge's door for devices: who may come in, and what becomes of a stream that ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Generic

import grpc

from sfl.errors import Elsewhere, Goodbye, LinkLost, ProtocolError, SflError
from sfl.metrics.stats import NodeStats
from sfl.node.text import plain
from sfl.stage.messages import Finish
from sfl.stage.snapshots import SharedShelf
from sfl.transport.bulk.probe_service import ProbeService
from sfl.transport.device.cleanups import Cleanups
from sfl.transport.device.connected import Connected
from sfl.transport.device.entrance import Entrance, hello_of
from sfl.transport.device.file_door import FileDoor
from sfl.transport.device.line import GOODBYE
from sfl.transport.device.served import V, to_elsewhere, to_finish
from sfl.transport.device.tensor_work import Coders
from sfl.transport.frames.wire import (
    EDGE_FETCH_FILE,
    EDGE_LIST_FILES,
    EDGE_PROBE,
    EDGE_SESSION,
    generic_handler,
)
from sfl.transport.group import GONE, first_message, run_together
from sfl.transport.status import LONGEST_DETAILS, status_of
from sfl.transport.stream import Context
from sfl.v1 import edge_pb2


class EdgeService(Generic[V]):
    """Serves devices; the host decides, this moves bytes.

    What a device leaves behind (its slots, its session's memory, the cloud's word of it) is given
    back by a cleanup of its own. What delta coding remembers of samples is kept under `cache_dir`.
    """

    def __init__(
        self,
        stats: NodeStats,
        opened: asyncio.Future[Any],
        cache_dir: Path | None = None,
        shared: SharedShelf | None = None,
    ) -> None:
        """`opened` is a Door once there is a base: nobody is admitted before.

        Snapshots are kept in a `shared` place, too.
        """
        self.coders = Coders()
        self._connected: Connected[V] = Connected(stats)
        self._cleanups = Cleanups()
        self.entrance: Entrance[V] = Entrance(
            stats, opened, self.coders, self._connected, self._cleanups, cache_dir, shared
        )
        self._openings: set[asyncio.Task[V]] = set()
        self._over: SflError | None = None
        self._last: Finish | None = None
        """What who was in the run is told then."""
        self._lost: dict[str, float] = {}
        """Devices whose stream broke, and until when they may be back."""
        self._handed_over: set[str] = set()
        """Devices that are at another edge now, or on their way."""
        self._turned_away: dict[str, SflError] = {}
        """Why devices were, for those that ask when the run is over and the cloud is gone."""

    @property
    def streams(self) -> dict[str, V]:
        """The open ones, by device."""
        return self._connected.streams

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service, for `server.add_generic_rpc_handlers`."""
        files = FileDoor(self.streams)
        behaviours: dict[Any, Callable[..., Any]] = {
            EDGE_SESSION: self._session,
            EDGE_LIST_FILES: files.list_files,
            EDGE_FETCH_FILE: files.fetch_file,
            EDGE_PROBE: ProbeService().serve,
        }
        return generic_handler(EDGE_SESSION.service, behaviours)

    async def drain(self) -> None:
        """End what is open, once no call can come any more, and wait until all is given back."""
        self.entrance.cancel()
        self._connected.cancel()
        while self.entrance.busy or self.streams or self._cleanups:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Stop the codec threads."""
        self.coders.close()

    def finish(self, error: SflError, last: Finish | None = None) -> None:
        """From now on nobody comes in; who waits for that is told why.

        The end of the run, if it is that, is also told to those who were in it and come back.
        """
        self._over, self._last = error, last
        for opening in self._openings:
            opening.cancel()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody may be back at any moment, who was in the run."""
        now = time.monotonic()
        return any(now < until for until in self._lost.values())

    def turn_away(self, device: str, reason: SflError) -> None:
        """Close a device's stream, if it has one; once the run is over it still hears why."""
        self._turned_away[device] = reason
        self.evict(device, reason)

    def evict(self, device: str, error: SflError) -> None:
        """Close a device's stream with a status that says why."""
        self._connected.evict(device, error)

    async def _session(
        self, requests: AsyncIterator[edge_pb2.DeviceMessage], context: Context
    ) -> None:
        try:
            stream = await self._opened(requests, context)
            if stream is None:
                return
        except Elsewhere as error:
            await self._send_on(error, requests, context)
            return
        except SflError as error:
            await context.abort(status_of(error), str(error))
        except GONE:  # it hung up, and is told nothing any more
            return
        group = asyncio.create_task(run_together(*stream.coroutines(requests, context)))
        self._connected.enter(stream, group)
        with contextlib.suppress(asyncio.CancelledError):  # the client hung up
            await asyncio.wait({group})
        reason: asyncio.Future[SflError] = asyncio.get_running_loop().create_future()
        self._cleanups.start(stream.device, self._leave(stream, group, reason))
        # Not for what is given back: the compute thread may be busy until the server has stopped.
        ended = await reason
        if not isinstance(ended, Goodbye):
            await context.abort(status_of(ended), plain(str(ended), LONGEST_DETAILS))

    async def _opened(
        self, requests: AsyncIterator[edge_pb2.DeviceMessage], context: Context
    ) -> V | None:
        """A new stream; None where the device was only told the end of the run that it was in.

        Raises why the run is over, where that comes first.
        """
        hello = await hello_of(requests)
        if self._last is not None and hello.device in self._lost:
            await self._tell_the_end(hello.device, self._last, requests, context)
            return None
        if self._over is not None:
            raise self._turned_away.get(hello.device, self._over)
        opening = asyncio.create_task(self.entrance.open(hello, requests, context))
        self._openings.add(opening)
        opening.add_done_callback(self._openings.discard)
        try:
            stream = await opening
        except asyncio.CancelledError:
            if self._over is not None and opening.cancelled():
                raise self._turned_away.get(hello.device, self._over) from None
            raise
        self._turned_away.pop(hello.device, None)
        self._lost.pop(hello.device, None)
        self._handed_over.discard(hello.device)
        return stream

    def hand_over(self, device: str, elsewhere: Elsewhere) -> None:
        """Have a device go to another edge; it is not awaited here any more."""
        self._handed_over.add(device)
        if (stream := self.streams.get(device)) is not None:
            stream.send_on(elsewhere)

    def tell_edges(self, edges: Mapping[str, str]) -> None:
        """Tell devices which edges of the run are there, where that is news to them."""
        for stream in self.streams.values():
            stream.tell_edges(edges)

    async def _send_on(
        self,
        elsewhere: Elsewhere,
        requests: AsyncIterator[edge_pb2.DeviceMessage],
        context: Context,
    ) -> None:
        """Name another edge to a device that asks to be let in."""
        await context.write(to_elsewhere(elsewhere))
        with contextlib.suppress(TimeoutError, SflError):
            await asyncio.wait_for(first_message(requests, "goodbye"), GOODBYE)

    async def _tell_the_end(
        self,
        device: str,
        last: Finish,
        requests: AsyncIterator[edge_pb2.DeviceMessage],
        context: Context,
    ) -> None:
        """Until the device has said goodbye it may have missed that again."""
        await context.write(to_finish(last))
        with contextlib.suppress(TimeoutError, SflError):
            await asyncio.wait_for(first_message(requests, "goodbye"), GOODBYE)
            self._lost.pop(device, None)

    async def _leave(
        self, stream: V, group: asyncio.Task[None], why: asyncio.Future[SflError]
    ) -> None:
        """End a stream's coroutines, if they have not, say why it ended, and end all it holds."""
        group.cancel()
        (ended,) = await asyncio.gather(group, return_exceptions=True)
        # Cancelled: evicted, or the client hung up.
        gone = stream.ended or LinkLost("the stream broke")
        reason = ended if isinstance(ended, SflError) else gone
        if not why.done():  # else gRPC has given up on the call
            why.set_result(reason)
        self._connected.leave(stream.device)
        handed_over = stream.device in self._handed_over
        if stream.ended is None and not handed_over and _may_return(reason):
            patience = stream.settings.network.rejoin_timeout
            self._lost[stream.device] = time.monotonic() + patience
        try:
            await stream.abandon()
        finally:
            await stream.host.left(stream.device, reason)


def _may_return(reason: SflError) -> bool:
    """Whether a device whose stream ended like this may come back to the run."""
    return not isinstance(reason, ProtocolError) and getattr(reason, "returns", True)
