"""How quick the link to an edge is, asked by a device that need not have joined."""

from __future__ import annotations

import os
import queue
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from sfl.errors import ProtocolError
from sfl.node.certificates.own import OwnCertificate
from sfl.transport.dialling import nothing_known, wait_for_peer
from sfl.transport.frames.seal import sound
from sfl.transport.frames.wire import EDGE_PROBE
from sfl.transport.security.credentials import open_channel
from sfl.transport.security.diagnosis import why_refused
from sfl.transport.status import error_of
from sfl.v1 import edge_pb2

ROUND_TRIPS = 20
FEW_TRIPS = 5
"""Enough where only the shortest counts."""
MOST_BYTES = 4 << 20
"""Sent each way at most; with both ways well below what an edge allows."""
MOST_SECONDS = 3.0
"""After which no further piece is sent; what is under way is still waited for."""
DEADLINE = 18.0
"""Seconds for everything, just below the edge's own bound."""
SMALLEST, LARGEST = 1 << 14, 1 << 18
WINDOW = 6
"""Pieces under way at once, so that a long round trip does not hide the bandwidth."""
PIECE_SECONDS = 0.1
"""A piece should take about this long: then a slow link is not handed seconds of bytes at once."""


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """What a link did: round trips in seconds, bandwidths in bytes a second, bytes moved."""

    median_seconds: float
    p95_seconds: float
    up_bytes_per_second: float
    down_bytes_per_second: float
    up_bytes: int
    down_bytes: int


def probe_edge(
    address: str,
    insecure: bool,
    connect_timeout: float = 10.0,
    own: OwnCertificate | None = None,
    proxy: bool = False,
) -> LinkSpeed:
    """Measure the link to the edge at `host:port`.

    Raises ConfigError, PeerUnavailable, Refused, LinkLost; ProtocolError where it is no edge.
    """
    channel = open_channel("--edge", address, insecure, own, "edge", proxy)
    why = nothing_known if proxy else partial(why_refused, address, "edge", own)
    try:
        wait_for_peer(channel, f"edge at {address}", connect_timeout, why)
        conversation = _Conversation(channel)
        try:
            return _measure(conversation)
        finally:
            conversation.close()
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise ProtocolError(
                f"{address} answers, but has no link test: it is not an edge, or has an older sfl"
            ) from None
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise ProtocolError(
                f"edge at {address}: the link is too slow to be measured in {DEADLINE:g} s"
            ) from None
        raise error_of(error, f"edge at {address}") from None
    finally:
        channel.close()


def round_trip(
    address: str,
    insecure: bool,
    timeout: float,
    own: OwnCertificate | None = None,
    proxy: bool = False,
) -> float:
    """Seconds to the edge at `host:port` and back: the shortest of a few.

    Raises ConfigError, PeerUnavailable, Refused, LinkLost, ProtocolError.
    """
    channel = open_channel("device.edges", address, insecure, own, "edge", proxy)
    peer = f"edge at {address}"
    try:
        wait_for_peer(channel, peer, timeout, refused_after=0.0)
        conversation = _Conversation(channel, timeout)
        try:
            return min(_trips(conversation, FEW_TRIPS))
        finally:
            conversation.close()
    except grpc.RpcError as error:
        raise error_of(error, peer) from None
    finally:
        channel.close()


class _Conversation:
    """Requests out, replies back in the same order."""

    def __init__(self, channel: grpc.Channel, deadline: float = DEADLINE) -> None:
        self._out: queue.SimpleQueue[edge_pb2.ProbeRequest | None] = queue.SimpleQueue()
        self._call: Any = EDGE_PROBE.stub(channel)(self._requests(), timeout=deadline)

    def ask(self, payload: bytes = b"", reply_bytes: int = 0) -> None:
        self._out.put(edge_pb2.ProbeRequest(payload=payload, reply_bytes=reply_bytes))

    def hear(self) -> edge_pb2.ProbeReply:
        reply: edge_pb2.ProbeReply | None = next(self._call, None)
        if reply is None:
            raise ProtocolError("the edge ended the link test early")
        return sound(reply)

    def close(self) -> None:
        self._out.put(None)
        self._call.cancel()

    def _requests(self) -> Iterator[edge_pb2.ProbeRequest]:
        yield from iter(self._out.get, None)


def _trips(conversation: _Conversation, count: int) -> list[float]:
    """Seconds of so many round trips."""
    trips = []
    for _ in range(count + 1):
        began = time.perf_counter()
        conversation.ask()
        conversation.hear()
        trips.append(time.perf_counter() - began)
    return trips[1:]  # the stream itself was opened in the first


def _measure(conversation: _Conversation) -> LinkSpeed:
    trips = _trips(conversation, ROUND_TRIPS)
    noise = os.urandom(LARGEST)  # so that nothing on the path can compress it
    up_bytes, up = _bandwidth(conversation, lambda size: conversation.ask(noise[:size]))
    down_bytes, down = _bandwidth(conversation, lambda size: conversation.ask(b"", size))
    p95 = statistics.quantiles(trips, n=20, method="inclusive")[-1]
    return LinkSpeed(statistics.median(trips), p95, up, down, up_bytes, down_bytes)


def _bandwidth(conversation: _Conversation, ask: Callable[[int], None]) -> tuple[int, float]:
    """(bytes moved, bytes a second), from the first piece's arrival on: latency is not in it."""
    began = time.perf_counter()
    under_way: list[int] = []
    asked = arrived = counted = 0
    first = last = 0.0
    size = SMALLEST
    while under_way or not asked:
        late = time.perf_counter() - began > MOST_SECONDS
        while len(under_way) < WINDOW and asked + size <= MOST_BYTES and not late:
            ask(size)
            under_way.append(size)
            asked += size
        conversation.hear()
        last = time.perf_counter()
        arrived += under_way.pop(0)
        if not first:
            first, counted = last, arrived
            continue
        rate = (arrived - counted) / max(last - first, 1e-9)
        size = int(min(LARGEST, max(SMALLEST, rate * PIECE_SECONDS)))
    return arrived, (arrived - counted) / max(last - first, 1e-9)
