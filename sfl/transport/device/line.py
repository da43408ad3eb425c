"""A device's open stream to its edge, as threads that move bytes; what they mean is `link`'s.

gRPC's own thread writes what is queued, and gradients overtake activations; a reader thread takes
what comes. Where the link is to be slower than it is, a pacer stands between the queue and gRPC.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc

from sfl.errors import FellSilent, LinkLost, ProtocolError, RunFailed
from sfl.metrics.stats import NodeStats
from sfl.node.certificates.own import OwnCertificate
from sfl.node.watched import start_watched
from sfl.stage.messages import Finish
from sfl.transport.device.urgency import LAST, NORMAL, URGENT, Outbox
from sfl.transport.dialling import nothing_known, wait_for_peer
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.seal import sound
from sfl.transport.frames.wire import EDGE_SESSION, wire_bytes
from sfl.transport.security.credentials import open_channel
from sfl.transport.security.diagnosis import why_refused
from sfl.transport.shaper import Shaper
from sfl.transport.status import error_of
from sfl.transport.stream import Silence
from sfl.v1 import edge_pb2

Outgoing = edge_pb2.DeviceMessage | Frame
Incoming = edge_pb2.EdgeMessage | Frame

GOODBYE = 5.0  # seconds that a goodbye may take to get through


def dial(
    address: str,
    stats: NodeStats,
    patience: float,
    insecure: bool,
    own: OwnCertificate | None = None,
    proxy: bool = False,
    refused_after: float | None = None,
) -> Line:
    """Connect to an edge within `patience` seconds, and open a stream. Raises PeerUnavailable.

    That nobody listens there is believed after `refused_after` seconds already.
    """
    channel = connected(address, stats, patience, insecure, own, proxy, refused_after)
    return Line(channel, f"edge at {address}", stats)


def connected(
    address: str,
    stats: NodeStats,
    patience: float,
    insecure: bool,
    own: OwnCertificate | None = None,
    proxy: bool = False,
    refused_after: float | None = None,
) -> grpc.Channel:
    """The same, without a stream: whoever asks closes the channel."""
    channel = open_channel("device.edge", address, insecure, own, "edge", proxy)
    peer = f"edge at {address}"
    # A look of our own does not go through a proxy, so there it tells nothing.
    why = nothing_known if proxy else partial(why_refused, address, "edge", own)
    try:
        words = "to be connected"
        with stats.waits.on(peer, "connection", words, patience, quiet=True):
            wait_for_peer(channel, peer, patience, why, refused_after)
    except BaseException:
        channel.close()
        raise
    return channel


class Line:
    """One stream from its first byte to its last, and the threads that live as long.

    The channel is the line's from now on: it is closed with it, and so are transfers beside it.
    """

    def __init__(self, channel: grpc.Channel, peer: str, stats: NodeStats) -> None:
        self.channel = channel
        self.peer = peer
        self.stats = stats
        self.shaper: Shaper | None = None
        """What slows this line down, from the next message on."""
        self.silence = Silence()
        self.stopped = threading.Event()
        """The stream is over, or about to be."""
        self._outbox: Outbox[Outgoing | None] = Outbox()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lost = False
        self._hung_up = False
        self._ended: Exception | None = None
        self._threads: list[threading.Thread] = []
        self._endings: list[Callable[[], None]] = []
        self._call: Any = EDGE_SESSION.stub(channel)(self._requests())

    # -- out --------------------------------------------------------------------------------------

    def post(self, message: edge_pb2.DeviceMessage, urgency: int = NORMAL) -> None:
        """Queue a message, and count it."""
        body = message.WhichOneof("body")
        role = "adapter" if body == "adapter" else "control"
        size = wire_bytes(message)
        self.stats.bytes.add("up", role, size)  # type: ignore[arg-type]
        self.stats.link.beside(self.stats.phases.now(), size)
        urgent = body in ("norm", "heartbeat", "hello")
        self._outbox.put(message, URGENT if urgent else urgency)

    def post_frame(self, frame: Frame, urgency: int) -> None:
        """Queue a tensor's frame; who made it counts it."""
        self._outbox.put(frame, urgency)

    def _requests(self) -> Iterator[Outgoing]:
        """What gRPC writes, at the link's pace where it has one."""
        while (message := self._outbox.get()) is not None:
            if self.shaper is not None:
                yield from self._paced(message, self.shaper)
                return
            begin = self.stats.phases.now()
            yield message  # and come back when gRPC has written it
            self._sent(message, begin)

    def _paced(self, first: Outgoing, shaper: Shaper) -> Iterator[Outgoing]:
        """Messages when they would arrive; a pacer takes them when the link is free."""
        arrivals: queue.SimpleQueue[tuple[float, Outgoing | None]]
        arrivals = queue.SimpleQueue()

        def pace() -> None:
            message: Outgoing | None = first
            while message is not None:
                free, arrives = shaper.admit(time.monotonic(), wire_bytes(message))
                begin = self.stats.phases.now()
                arrivals.put((arrives, message))
                time.sleep(max(0.0, free - time.monotonic()))
                self._sent(message, begin)
                message = self._outbox.get()
            arrivals.put((0.0, None))

        def broken(error: Exception) -> None:
            self.tell(error)
            arrivals.put((0.0, None))

        self.start("link-pacer", pace, broken)
        while (item := arrivals.get())[1] is not None:
            time.sleep(max(0.0, item[0] - time.monotonic()))
            yield item[1]

    def _sent(self, message: Outgoing, begin: float) -> None:
        """Count how long a tensor's frame took to leave."""
        if isinstance(message, Frame) and message.key is not None:
            phases = self.stats.phases
            phases.interval("send", message.key, self.stats.name, begin, "link-writer")

    # -- in ---------------------------------------------------------------------------------------

    def read(self, take: Callable[[Incoming], bool]) -> threading.Thread:
        """Have a thread hand on what comes, for as long as `take` says so; one at a time."""
        return self.start("link-reader", partial(self._read, take), self.over)

    def _read(self, take: Callable[[Incoming], bool]) -> None:
        try:
            for message in self._call:
                self.silence.heard()
                if not take(sound(message, self.peer)):
                    return
        except grpc.RpcError as error:
            self._lost = True
            raise error_of(error, self.peer) from None
        self._lost = True
        raise LinkLost(f"{self.peer} closed the stream")

    def keep(self, item: object, most: int) -> None:
        """Keep what came for the caller, unless so much waits that it was never due."""
        if self._inbox.qsize() >= most:
            raise ProtocolError(f"{self.peer}: more came than was requested")
        if isinstance(item, Finish) and not item.ok:
            self._ended = self._ended or RunFailed(item.reason)
        self._inbox.put(item)

    def tell(self, error: Exception) -> None:
        """Have the caller raise an error when it next waits."""
        self._inbox.put(error)

    def wait(self, seconds: float | None = None) -> Any:
        """The next thing that was kept. Raises what was told, and queue.Empty after `seconds`."""
        item = self._inbox.get(timeout=seconds)
        if isinstance(item, Exception):
            raise item
        return item

    # -- its end ----------------------------------------------------------------------------------

    def start(
        self,
        name: str,
        work: Callable[[], None],
        failed: Callable[[Exception], None],
        end: Callable[[], None] = lambda: None,
    ) -> threading.Thread:
        """A thread that lives no longer than the line; `end` asks it to come to its end."""
        self._endings.append(end)
        thread = start_watched(name, work, failed)
        self._threads.append(thread)
        return thread

    def expect_bytes(self, within: float) -> None:
        """Raise FellSilent where not one has come for so many seconds."""
        try:
            self.silence.expect_bytes(within, self.peer)
        except FellSilent:
            self._lost = True
            raise

    def over(self, error: Exception) -> None:
        """The stream is of no more use; who waits for it, or for a transfer beside it, learns."""
        self._ended = self._ended or error
        self.stopped.set()
        self.tell(error)
        if self._lost:
            self.channel.close()

    def why(self, error: Exception) -> Exception:
        """Why the stream ended, where `error` came to a transfer beside it; else that error."""
        return error if self._ended is None else self._ended

    def close(
        self, reason: str = "done", cannot_compute: bool = False, returns: bool = False
    ) -> None:
        """Say goodbye where anybody hears it, let queued bytes go out, and hang up.

        `cannot_compute`: this device leaves for what comes of the round's adapter. `returns`: it
        may come back.

        Threads and connection are gone afterwards, however the stream has ended.
        """
        if self._hung_up:
            return
        self._hung_up = True
        if not self._lost:
            goodbye = edge_pb2.DeviceMessage(
                goodbye=reason, cannot_compute=cannot_compute, returns=returns
            )
            self.post(goodbye, LAST)
        self.stopped.set()
        self._outbox.put(None, LAST)
        for end in self._endings:
            end()
        # The edge closes the stream once it has read everything.
        latest = time.monotonic() + GOODBYE
        while self._call.is_active() and time.monotonic() < latest:
            time.sleep(0.02)
        self._call.cancel()
        self.channel.close()
        for thread in self._threads:
            thread.join(1.0)
