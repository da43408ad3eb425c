"""A device's one connection: out to its edge, one long-lived stream.

Three threads share it: the caller computes, gRPC's own thread writes, and a reader takes what
comes. A heartbeat thread tells the edge that this device lives, and watches the idle timeout.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from sfl.codec import Codec, parse
from sfl.config import RunSettings
from sfl.data.example import Dataset
from sfl.errors import LinkLost, PeerUnavailable, ProtocolError, RunFailed, SflError
from sfl.metrics.stats import NodeStats
from sfl.stage.messages import (
    Finish,
    GradientNorm,
    Kind,
    Message,
    RoundOrder,
    RoundOutcome,
    RoundStart,
    TensorMessage,
)
from sfl.transport.chunks import (
    ADAPTER_LIMIT,
    AdapterAssembly,
    TensorAssembly,
    decode_adapter,
    encode_adapter,
)
from sfl.transport.credentials import open_channel
from sfl.transport.frames import decode_tensor, encode_tensor, raw_bytes, to_score
from sfl.transport.status import error_of
from sfl.transport.wire import EDGE_SESSION, WIRE_VERSION, tensor_role
from sfl.v1 import edge_pb2, tensor_pb2

log = logging.getLogger(__name__)

TENSOR_LIMIT = 1 << 30
SAY_EVERY = 5.0  # seconds between two lines about what is waited for


@dataclass(frozen=True, slots=True)
class Joined:
    """What an edge says to a device it takes in."""

    run_id: str
    num_layers: int
    settings: RunSettings


def wait_for_peer(channel: grpc.Channel, peer: str, timeout: float) -> None:
    """Wait until a channel is connected, with a line every 5 s. Raises PeerUnavailable."""
    ready = grpc.channel_ready_future(channel)
    end = time.monotonic() + timeout
    try:
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise PeerUnavailable(f"{peer} did not answer within {timeout:g} s")
            try:
                ready.result(timeout=min(SAY_EVERY, left))
                return
            except grpc.FutureTimeoutError:
                log.info("waiting for %s (%.0f s left)", peer, max(0.0, end - time.monotonic()))
    finally:
        ready.cancel()


class DeviceLink:
    """A device's session with its edge over gRPC; also the `Link` that a Trainer uses."""

    def __init__(self, address: str, device: str, stats: NodeStats, insecure: bool) -> None:
        self._peer = f"edge at {address}"
        self._device = device
        self._stats = stats
        self._channel = open_channel("device.edge", address, insecure)
        self._outbox: queue.SimpleQueue[edge_pb2.DeviceMessage | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._last_heard = time.monotonic()
        self._codecs: dict[Kind, Codec] = {}
        self._call: Any = None

    @property
    def channel(self) -> grpc.Channel:
        """The connection, for bulk transfers beside the stream."""
        return self._channel

    def join(self, connect_timeout: float) -> Joined:
        """Connect, say who this is, and wait to be taken in.

        Raises PeerUnavailable, Refused, ProtocolError.
        """
        wait_for_peer(self._channel, self._peer, connect_timeout)
        self._call = EDGE_SESSION.stub(self._channel)(self._requests())
        hello = edge_pb2.DeviceHello(device=self._device, wire_version=WIRE_VERSION)
        self._post(edge_pb2.DeviceMessage(hello=hello))
        threading.Thread(target=self._read, name="link-reader", daemon=True).start()
        welcome = self._take()
        if not isinstance(welcome, edge_pb2.Welcome):
            raise ProtocolError(f"{self._peer}: a welcome was due")
        settings = RunSettings.model_validate_json(welcome.settings)
        activation, gradient = parse(settings.codec.activation), parse(settings.codec.gradient)
        self._codecs = {
            Kind.ACTIVATION: activation,
            Kind.HIDDEN: activation,
            Kind.GRADIENT: gradient,
        }
        beat = threading.Thread(
            target=self._heartbeats,
            args=(settings.network.heartbeat_interval, settings.network.idle_timeout),
            name="link-heartbeat",
            daemon=True,
        )
        beat.start()
        return Joined(welcome.run_id, welcome.num_layers, settings)

    def ready(self, dataset: Dataset) -> None:
        """Tell the edge that span and data are there."""
        ready = edge_pb2.DeviceReady(
            num_examples=len(dataset.train),
            num_eval_examples=len(dataset.eval),
            num_truncated=dataset.notes.truncated,
            num_dropped=dataset.notes.dropped,
            example_kind=dataset.kind,
            snapshot=self._stats.snapshot().to_json(),
        )
        self._post(edge_pb2.DeviceMessage(ready=ready))

    def orders(self) -> Iterator[RoundOrder]:
        """The rounds to run, until the run is over. Raises RunFailed where it ends badly."""
        while True:
            message = self.receive()
            if isinstance(message, Finish):
                return
            if not isinstance(message, RoundOrder):
                raise ProtocolError("a tensor came between two rounds")
            yield message

    def deliver(self, outcome: RoundOutcome) -> None:
        """Send this device's part of the adapter, and the report of its round."""
        if outcome.num_steps:
            header = tensor_pb2.AdapterHeader(
                round=outcome.round,
                final_step=outcome.num_steps,
                device=self._device,
                side="device",
            )
            for frame in encode_adapter(header, outcome.values):
                self._post(edge_pb2.DeviceMessage(adapter=frame))
        report = tensor_pb2.RoundReport(
            round=outcome.round,
            device=self._device,
            num_steps=outcome.num_steps,
            train_loss=outcome.train_loss,
            num_tokens=outcome.num_tokens,
            train_seconds=outcome.train_seconds,
            evaluation=to_score(outcome.evaluation),
            evaluation_seconds=outcome.evaluation_seconds,
            snapshot=self._stats.snapshot().to_json(),
        )
        self._post(edge_pb2.DeviceMessage(report=report))

    # -- Link -------------------------------------------------------------------------------------

    def send(self, message: TensorMessage | GradientNorm) -> None:
        """Encode and queue a message."""
        if isinstance(message, GradientNorm):
            norm = edge_pb2.GradientNorm(
                round=message.round, step=message.step, squared=message.squared
            )
            self._post(edge_pb2.DeviceMessage(norm=norm))
            return
        with self._stats.phases.measure("encode"):
            frames = encode_tensor(message, self._codecs[message.kind])
        role, raw = tensor_role(frames[0].header), raw_bytes(frames[0].header)
        for frame in frames:
            wrapped = edge_pb2.DeviceMessage(tensor=frame)
            self._stats.bytes.add("up", role, wrapped.ByteSize(), raw)
            self._outbox.put(wrapped)
            raw = 0

    def receive(self) -> Message:
        """Wait for the next message. Raises LinkLost, ProtocolError, RunFailed."""
        with self._stats.phases.measure("wait"):
            item = self._take()
        if isinstance(item, tuple):
            with self._stats.phases.measure("decode"):
                return decode_tensor(*item)
        if isinstance(item, edge_pb2.GradientNorm):
            return GradientNorm(item.round, item.step, item.squared)
        if isinstance(item, Finish) and not item.ok:
            raise RunFailed(item.reason)
        if isinstance(item, RoundOrder | Finish):
            return item
        raise ProtocolError(f"{self._peer}: {type(item).__name__} was not due")

    def close(self, reason: str = "") -> None:
        """Say goodbye, let queued bytes go out, and hang up."""
        if self._closed.is_set():
            return
        self._post(edge_pb2.DeviceMessage(goodbye=reason or "done"))
        self._closed.set()
        self._outbox.put(None)
        if self._call is not None:
            # The edge closes the stream once it has read everything.
            end = time.monotonic() + 5.0
            while self._call.is_active() and time.monotonic() < end:
                time.sleep(0.02)
            self._call.cancel()
        self._channel.close()

    # -- threads ----------------------------------------------------------------------------------

    def _requests(self) -> Iterator[edge_pb2.DeviceMessage]:
        return iter(self._outbox.get, None)

    def _post(self, message: edge_pb2.DeviceMessage) -> None:
        body = message.WhichOneof("body")
        role = "adapter" if body == "adapter" else "control"
        self._stats.bytes.add("up", role, message.ByteSize())  # type: ignore[arg-type]
        self._outbox.put(message)

    def _take(self) -> Any:
        item = self._inbox.get()
        if isinstance(item, Exception):
            self._closed.set()
            raise item
        return item

    def _read(self) -> None:
        reader = _Reader(self._stats, self._inbox.put)
        try:
            for message in self._call:
                self._last_heard = time.monotonic()
                reader.take(message)
            self._inbox.put(LinkLost(f"{self._peer} closed the stream"))
        except grpc.RpcError as error:
            self._inbox.put(error_of(error, self._peer))
        except SflError as error:
            self._inbox.put(error)
        finally:
            self._closed.set()

    def _heartbeats(self, interval: float, idle_timeout: float) -> None:
        while not self._closed.wait(interval):
            silent = time.monotonic() - self._last_heard
            if silent > idle_timeout:
                self._inbox.put(LinkLost(f"{self._peer}: not a byte for {silent:.0f} s"))
                self._call.cancel()
                return
            beat = tensor_pb2.Heartbeat(snapshot=self._stats.snapshot().to_json())
            self._post(edge_pb2.DeviceMessage(heartbeat=beat))


class _Reader:
    """Turns an edge's messages into what the device's main thread waits for."""

    def __init__(self, stats: NodeStats, put: Callable[[Any], None]) -> None:
        self._stats = stats
        self._put = put
        self._tensor = TensorAssembly(TENSOR_LIMIT)
        self._adapter = AdapterAssembly(ADAPTER_LIMIT)
        self._start: RoundStart | None = None

    def take(self, message: edge_pb2.EdgeMessage) -> None:
        """Count a message, and pass on what it completes."""
        body = message.WhichOneof("body")
        take = {
            "welcome": self._on_welcome,
            "start": self._on_start,
            "adapter": self._on_adapter,
            "tensor": self._on_tensor,
            "norm": self._on_norm,
            "heartbeat": self._on_nothing,
            "finish": self._on_finish,
        }.get(body or "")
        if take is None:
            raise ProtocolError("an empty message, or one of another wire version")
        take(message)

    def _count(self, message: edge_pb2.EdgeMessage, role: Any, raw: int = 0) -> None:
        self._stats.bytes.add("down", role, message.ByteSize(), raw)

    def _on_nothing(self, message: edge_pb2.EdgeMessage) -> None:
        self._count(message, "control")

    def _on_welcome(self, message: edge_pb2.EdgeMessage) -> None:
        self._count(message, "control")
        self._put(message.welcome)

    def _on_norm(self, message: edge_pb2.EdgeMessage) -> None:
        self._count(message, "control")
        self._put(message.norm)

    def _on_finish(self, message: edge_pb2.EdgeMessage) -> None:
        self._count(message, "control")
        self._put(Finish(message.finish.ok, message.finish.reason))

    def _on_start(self, message: edge_pb2.EdgeMessage) -> None:
        self._count(message, "control")
        start = message.start
        self._start = RoundStart(
            start.round, start.evaluate, start.num_steps, start.first_step, start.total_steps
        )

    def _on_adapter(self, message: edge_pb2.EdgeMessage) -> None:
        self._count(message, "adapter")
        whole = self._adapter.add(message.adapter)
        if whole is None:
            return
        if self._start is None:
            raise ProtocolError("an adapter came before its round was announced")
        self._put(RoundOrder(self._start, decode_adapter(whole[1])))

    def _on_tensor(self, message: edge_pb2.EdgeMessage) -> None:
        frame = message.tensor
        header = frame.header if frame.HasField("header") else self._tensor.header
        raw = raw_bytes(frame.header) if frame.HasField("header") else 0
        if header is not None:
            self._count(message, tensor_role(header), raw)
        whole = self._tensor.add(frame)
        if whole is not None:
            self._put(whole)
