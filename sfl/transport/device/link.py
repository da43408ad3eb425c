"""A device's one connection: out to its edge, one long-lived stream.

The caller only computes: an encoder thread makes frames of what it sends, gRPC's own thread writes
them, and a reader takes and decodes what comes. Gradients overtake activations in both queues
out. A heartbeat thread tells the edge that this device lives, and watches the idle timeout. Where
the link is to be slower than it is, a pacer stands between the queue and gRPC.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from sfl.codec import Codec, parse
from sfl.codec.kernel import kernel
from sfl.config import RunSettings
from sfl.config.codec import RoleCodecs
from sfl.data.example import Dataset
from sfl.errors import LinkLost, ProtocolError, RunFailed, UserError
from sfl.metrics.stats import NodeStats
from sfl.metrics.timeline import spans_to_json
from sfl.node.certificates.own import OwnCertificate
from sfl.node.watched import start_watched
from sfl.rounds.values import RoundStart
from sfl.stage.messages import (
    Finish,
    GradientNorm,
    Kind,
    Message,
    Purpose,
    RoundOrder,
    RoundOutcome,
    Stack,
    TensorMessage,
)
from sfl.transport.device import checked
from sfl.transport.device.shaper import Shaper, shaper
from sfl.transport.device.stream_codecs import StreamCodecs
from sfl.transport.device.updates import UpdateSender, Values, decode_update
from sfl.transport.device.urgency import LAST, NORMAL, URGENT, Outbox
from sfl.transport.dialling import nothing_known, wait_for_peer
from sfl.transport.frames import contract
from sfl.transport.frames.chunks import (
    AdapterAssembly,
    Buffer,
    TensorAssembly,
    adapter_bytes,
    adapter_frames,
    decode_adapter,
)
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.seal import sound
from sfl.transport.frames.tensors import decode_tensor, encode_tensor, raw_bytes
from sfl.transport.frames.wire import (
    EDGE_SESSION,
    STACK,
    WIRE_VERSION,
    tensor_role,
    wire_bytes,
)
from sfl.transport.frames.words import from_round_start, to_score
from sfl.transport.security.credentials import open_channel
from sfl.transport.security.diagnosis import why_refused
from sfl.transport.security.signed import DeviceSignatures
from sfl.transport.status import error_of
from sfl.v1 import edge_pb2, tensor_pb2

log = logging.getLogger(__name__)

Outgoing = edge_pb2.DeviceMessage | Frame

FEW_WAITING = 8
"""Messages for the caller that may wait beside its tensors' answers and what folds."""
GOODBYE = 5.0  # seconds that a goodbye may take to get through


@dataclass(frozen=True, slots=True)
class Joined:
    """What an edge says to a device it takes in."""

    run_id: str
    num_layers: int
    settings: RunSettings

    allowance: int
    """Micro-batches that may be in flight."""


@dataclass(frozen=True, slots=True)
class Declined:
    """What the edge asked for, this device does not do; the stream itself is sound."""

    error: UserError


class DeviceLink:
    """A device's session with its edge over gRPC; also the `Link` that a Trainer uses."""

    def __init__(
        self,
        address: str,
        device: str,
        stats: NodeStats,
        insecure: bool,
        own: OwnCertificate | None = None,
        agree: Callable[[RoleCodecs], None] = lambda codecs: None,
        proxy: bool = False,
    ) -> None:
        """`agree` raises UserError where this device does not use a round's codecs."""
        self._agree = agree
        self._signatures = DeviceSignatures(device, own)
        self._peer = f"edge at {address}"
        # A look of our own does not go through a proxy, so there it tells nothing.
        self._why = nothing_known if proxy else partial(why_refused, address, "edge", own)
        self._device = device
        self._stats = stats
        self._channel = open_channel("device.edge", address, insecure, own, "edge", proxy)
        self._outbox: Outbox[Outgoing | None] = Outbox()
        self._to_encode: Outbox[TensorMessage | None] = Outbox()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stop = threading.Event()
        """Heartbeats end: the stream is over, or about to be."""
        self._lost = False
        self._hung_up = False
        self._ended: Exception | None = None
        self._threads: list[threading.Thread] = []
        self._last_heard = time.monotonic()
        self._cut: StreamCodecs | None = None
        self._updates: UpdateSender | None = None
        self._held: Values = {}
        self._scaling = 0.0
        self._shaper: Shaper | None = None
        self._call: Any = None
        self._reader = _Reader(stats, self._arrived, self._begin_round, self._decode, device)

    @property
    def channel(self) -> grpc.Channel:
        """The connection, for bulk transfers beside the stream."""
        return self._channel

    def join(self, connect_timeout: float, cache_dir: Path | None = None) -> Joined:
        """Connect, say who this is, and wait to be taken in.

        What delta coding remembers of samples lies under `cache_dir`. An edge that is still
        loading says so; one that is silent for `connect_timeout` is not there any more.

        Raises PeerUnavailable, Refused, LinkLost, ProtocolError.
        """
        wait_for_peer(self._channel, self._peer, connect_timeout, self._why)
        self._call = EDGE_SESSION.stub(self._channel)(self._requests())
        hello = edge_pb2.DeviceHello(
            device=self._device,
            wire_version=WIRE_VERSION,
            compiled_codec=kernel().name == "compiled",
        )
        self._post(edge_pb2.DeviceMessage(hello=hello))
        self._last_heard = time.monotonic()
        self._start("link-reader", self._read, self._over)
        welcome = self._welcome(connect_timeout)
        settings = contract.welcome(welcome, self._device)
        self._shaper = shaper(settings.device(self._device).link, "up")
        self._scaling = settings.scaling(self._device)
        self._cut = StreamCodecs(
            "device", self._device, settings.run.seed, welcome.compiled_codec, cache_dir
        )
        self._updates = UpdateSender(self._device, settings.run.seed, "up", feedback=True)
        self._start("link-encoder", self._encode, self._inbox.put)
        network = settings.network
        beat = partial(self._heartbeats, network.heartbeat_interval, network.idle_timeout)
        self._start("link-heartbeat", beat, self._over)
        allowance = welcome.credits or settings.network.credits
        return Joined(welcome.run_id, welcome.num_layers, settings, allowance)

    def why(self, error: Exception) -> Exception:
        """Why the stream ended, where `error` came to a transfer beside it; else that error."""
        return error if self._ended is None else self._ended

    def _welcome(self, patience: float) -> edge_pb2.Welcome:
        """Wait to be taken in."""
        while True:
            left = self._last_heard + patience - time.monotonic()
            if left <= 0:
                raise LinkLost(f"{self._peer}: not a byte for {patience:g} s")
            try:
                welcome = self._inbox.get(timeout=left)
            except queue.Empty:
                continue
            if isinstance(welcome, Exception):
                raise welcome
            if isinstance(welcome, Finish) and not welcome.ok:
                raise RunFailed(welcome.reason)
            if isinstance(welcome, edge_pb2.Challenge):
                self._post(edge_pb2.DeviceMessage(proof=self._signatures.proof(welcome)))
                continue
            if not isinstance(welcome, edge_pb2.Welcome):
                raise ProtocolError(f"{self._peer}: a welcome was due")
            return welcome

    def _start(
        self, name: str, work: Callable[[], None], tell: Callable[[Exception], None]
    ) -> None:
        self._threads.append(start_watched(name, work, tell))

    def expect(self, shapes: Sequence[Sequence[int]], hidden: int) -> None:
        """From now on take adapters of these parameters, and tensors `hidden` wide, at most."""
        self._reader.expect(shapes, hidden)

    def ready(self, dataset: Dataset) -> None:
        """Tell the edge that span and data are there."""
        ready = edge_pb2.DeviceReady(
            num_examples=len(dataset.train),
            num_eval_examples=len(dataset.eval),
            num_truncated=dataset.notes.truncated,
            num_dropped=dataset.notes.dropped,
            num_repeated=dataset.notes.repeated,
            num_tokens=dataset.notes.tokens,
            num_tokens_kept=dataset.notes.tokens_kept,
            layout=dataset.layout,
            chat_template=dataset.chat_template,
            example_kind=dataset.kind,
            snapshot=self._stats.snapshot().to_json(),
        )
        self._signatures.ready(ready)
        self._post(edge_pb2.DeviceMessage(ready=ready))

    def orders(self, fold: Callable[[Stack], None] | None = None) -> Iterator[RoundOrder]:
        """The rounds to run, until the run is over. Raises RunFailed where it ends badly.

        What is to be added to the base between them is given to `fold`.
        """
        while True:
            message = self.receive()
            if isinstance(message, Finish):
                return
            if isinstance(message, Stack) and fold is not None:
                fold(message)
                continue
            if not isinstance(message, RoundOrder):
                raise ProtocolError("a tensor came between two rounds")
            assert self._cut is not None
            self._held = message.values if self._cut.adapter_codec.spec != "none" else {}
            yield message

    def deliver(self, outcome: RoundOutcome) -> None:
        """Send this device's part of the adapter, and the report of its round."""
        if outcome.num_steps:
            header = tensor_pb2.AdapterHeader(
                round=outcome.round,
                final_step=outcome.num_steps,
                device=self._device,
                side="device",
                scaling=self._scaling,
            )
            for frame in adapter_frames(header, self._update(header, outcome.values)):
                self._post(edge_pb2.DeviceMessage(adapter=frame))
        report = tensor_pb2.RoundReport(
            round=outcome.round,
            device=self._device,
            num_steps=outcome.num_steps,
            train_loss=outcome.train_loss,
            num_tokens=outcome.num_tokens,
            train_seconds=outcome.train_seconds,
            evaluation=to_score(outcome.evaluation),
            sample=to_score(outcome.sample),
            evaluation_seconds=outcome.evaluation_seconds,
            spans=spans_to_json(list(outcome.spans)),
            rehearsal=outcome.rehearsal,
            snapshot=self._stats.snapshot().to_json(),
        )
        self._signatures.report(report)
        self._post(edge_pb2.DeviceMessage(report=report))

    def _update(self, header: tensor_pb2.AdapterHeader, values: Values) -> Buffer:
        """This device's part: whole, or coded as what changed since the round began."""
        assert self._cut is not None and self._updates is not None
        codec = self._cut.adapter_codec
        if codec.spec == "none" or not values:
            self._signatures.update(header, values)
            return adapter_bytes(values)
        held = {name: self._held[name] for name in values}
        header.codec = codec.spec
        payload, arrived = self._updates.encode(codec, values, held, header.round)
        self._signatures.update(header, arrived)
        return payload

    # -- Link -------------------------------------------------------------------------------------

    def send(self, message: TensorMessage | GradientNorm) -> None:
        """Queue a message for the encoder; what it raises comes back with the next `receive`."""
        if isinstance(message, GradientNorm):
            norm = edge_pb2.GradientNorm(
                round=message.round, step=message.step, squared=message.squared
            )
            self._post(edge_pb2.DeviceMessage(norm=norm))
            return
        self._to_encode.put(message, _urgency(message.kind))

    def receive(self) -> Message:
        """Wait for the next message. Raises LinkLost, ProtocolError, RunFailed."""
        phases = self._stats.phases
        begin = phases.now()
        item = self._take()
        if isinstance(item, edge_pb2.GradientNorm):
            item = checked.gradient_norm(item)
        if isinstance(item, TensorMessage | GradientNorm):
            phases.span("wait", item.key, self._device, begin)
            return item
        phases.observe("wait", phases.now() - begin)
        if isinstance(item, Finish) and not item.ok:
            raise RunFailed(item.reason)
        if isinstance(item, Stack | RoundOrder | Finish):
            return item
        raise ProtocolError(f"{self._peer}: {type(item).__name__} was not due")

    def close(self, reason: str = "done", cannot_compute: bool = False) -> None:
        """Say goodbye where anybody hears it, let queued bytes go out, and hang up.

        `cannot_compute`: this device leaves for what comes of the round's adapter.

        Threads and connection are gone afterwards, however the stream has ended.
        """
        if self._hung_up:
            return
        self._hung_up = True
        if not self._lost:
            goodbye = edge_pb2.DeviceMessage(goodbye=reason, cannot_compute=cannot_compute)
            self._post(goodbye, LAST)
        self._stop.set()
        self._outbox.put(None, LAST)
        self._to_encode.put(None, LAST)
        if self._call is not None:
            # The edge closes the stream once it has read everything.
            end = time.monotonic() + GOODBYE
            while self._call.is_active() and time.monotonic() < end:
                time.sleep(0.02)
            self._call.cancel()
        self._channel.close()
        for thread in self._threads:
            thread.join(1.0)

    # -- threads ----------------------------------------------------------------------------------

    def _requests(self) -> Iterator[Outgoing]:
        """What gRPC writes, at the link's pace once that is known."""
        while (message := self._outbox.get()) is not None:
            if self._shaper is not None:
                yield from self._paced(message, self._shaper)
                return
            begin = self._stats.phases.now()
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
                begin = self._stats.phases.now()
                arrivals.put((arrives, message))
                time.sleep(max(0.0, free - time.monotonic()))
                self._sent(message, begin)
                message = self._outbox.get()
            arrivals.put((0.0, None))

        def broken(error: Exception) -> None:
            self._inbox.put(error)
            arrivals.put((0.0, None))

        self._start("link-pacer", pace, broken)
        while (item := arrivals.get())[1] is not None:
            time.sleep(max(0.0, item[0] - time.monotonic()))
            yield item[1]

    def _sent(self, message: Outgoing, begin: float) -> None:
        """Count how long a tensor's frame took to leave."""
        if isinstance(message, Frame) and message.place is not None:
            self._stats.phases.span("send", message.place, self._device, begin, "link-writer")

    def _encode(self) -> None:
        """Frames of what the caller sent, until the link is closed."""
        for message in iter(self._to_encode.get, None):
            self._put_frames(message)

    def _put_frames(self, message: TensorMessage) -> None:
        assert self._cut is not None
        with self._stats.phases.measure("encode", message.key, self._device):
            frames = encode_tensor(message, self._cut.encode(message))
        if message.kind is Kind.ACTIVATION and message.key.purpose is Purpose.TRAINING:
            self._stats.value_bits = self._cut.value_bits(message)
        assert frames[0].header is not None
        role, raw = tensor_role(frames[0].header), raw_bytes(frames[0].header)
        for frame in frames:
            self._stats.bytes.add("up", role, frame.wire_bytes, raw)
            self._outbox.put(frame, _urgency(message.kind))
            raw = 0

    def _joined(self) -> StreamCodecs:
        """Raises ProtocolError where an edge's welcome is not even taken yet."""
        if self._cut is None:
            raise ProtocolError("the edge spoke of a round before this device was ready")
        return self._cut

    def _begin_round(self, codecs: RoleCodecs, round_: int) -> Codec:
        cut = self._joined()
        try:
            self._agree(codecs)
        except UserError as error:
            # Not by ending this stream: the caller is to say goodbye, with the reason.
            self._inbox.put(Declined(error))
            return parse("none")
        cut.begin_round(codecs, round_)
        return cut.adapter_codec

    def _decode(self, header: tensor_pb2.TensorHeader, payload: Buffer) -> TensorMessage:
        cut = self._joined()
        message, packet = decode_tensor(header, payload)
        checked.tensor(message, self._reader.settings)
        if packet is None:
            return message
        with self._stats.phases.measure("decode", message.key, self._device):
            return cut.decode(packet, message, None)

    def _post(self, message: edge_pb2.DeviceMessage, urgency: int = NORMAL) -> None:
        body = message.WhichOneof("body")
        role = "adapter" if body == "adapter" else "control"
        self._stats.bytes.add("up", role, wire_bytes(message))  # type: ignore[arg-type]
        urgent = body in ("norm", "heartbeat", "hello")
        self._outbox.put(message, URGENT if urgent else urgency)

    def _take(self) -> Any:
        item = self._inbox.get()
        if isinstance(item, Declined):
            raise item.error
        if isinstance(item, Exception):
            raise item
        return item

    def _read(self) -> None:
        try:
            for message in self._call:
                self._last_heard = time.monotonic()
                self._reader.take(sound(message, self._peer))
        except grpc.RpcError as error:
            self._lost = True
            raise error_of(error, self._peer) from None
        self._lost = True
        raise LinkLost(f"{self._peer} closed the stream")

    def _arrived(self, item: Any) -> None:
        """Keep it for the caller, unless that is more than an edge ever owes it."""
        if self._inbox.qsize() >= self._reader.most_waiting:
            raise ProtocolError(f"{self._peer}: more came than was asked for")
        if isinstance(item, Finish) and not item.ok:
            self._ended = self._ended or RunFailed(item.reason)
        self._inbox.put(item)

    def _over(self, error: Exception) -> None:
        """The stream is of no more use; who waits for it, or for a transfer beside it, learns."""
        self._ended = self._ended or error
        self._stop.set()
        self._inbox.put(error)
        if self._lost:
            self._channel.close()

    def _heartbeats(self, interval: float, idle_timeout: float) -> None:
        while not self._stop.wait(interval):
            silent = time.monotonic() - self._last_heard
            if silent > idle_timeout:
                self._lost = True
                raise LinkLost(f"{self._peer}: not a byte for {silent:.0f} s")
            beat = tensor_pb2.Heartbeat(snapshot=self._stats.snapshot().to_json())
            self._post(edge_pb2.DeviceMessage(heartbeat=beat))


class _Reader:
    """Turns an edge's messages into what the device's main thread waits for."""

    def __init__(
        self,
        stats: NodeStats,
        put: Callable[[Any], None],
        begin_round: Callable[[RoleCodecs, int], Codec],
        decode: Callable[[tensor_pb2.TensorHeader, Buffer], TensorMessage],
        device: str,
    ) -> None:
        self._stats = stats
        self._put = put
        self._begin_round = begin_round
        self._decode = decode
        self._device = device
        self._settings: RunSettings | None = None
        self._tensor = TensorAssembly(0)  # until this device has its span: none is due before
        self._adapter = AdapterAssembly(0)
        self._start: RoundStart | None = None
        self._codec: Codec | None = None
        self._held: Values = {}
        self._began: dict[int, float] = {}

    @property
    def settings(self) -> RunSettings:
        """The run's, from the welcome on. Raises ProtocolError before."""
        if self._settings is None:
            raise ProtocolError("the edge spoke of a round before it said welcome")
        return self._settings

    @property
    def most_waiting(self) -> int:
        """Messages that may wait for the device: answers, a round, sums of the rounds before."""
        if self._settings is None:
            return FEW_WAITING
        folds, rounds = self._settings.aggregation.traits.folds, self._settings.run.rounds
        return FEW_WAITING + 2 * self._settings.network.credits + folds * rounds

    def expect(self, shapes: Sequence[Sequence[int]], hidden: int) -> None:
        """What the device's span asks for: the parameters of its adapter, the width of tensors."""
        training, model = self.settings.training, self.settings.model
        values = training.batch_size * model.max_length * hidden
        self._tensor.limit = 4 * values + (1 << 16)
        times = 1.0
        if self.settings.aggregation.traits.folds:  # a sum has the ranks of all devices
            ranks = [self.settings.rank(entry.name) for entry in self.settings.devices]
            times = sum(ranks) / self.settings.rank(self._device)
        self._adapter.limit = contract.adapter_limit(shapes, times)

    def take(self, message: edge_pb2.EdgeMessage | Frame) -> None:
        """Count a message, and pass on what it completes."""
        if isinstance(message, Frame):
            self._on_tensor(message)
            return
        body = message.WhichOneof("body")
        take = {
            "challenge": self._on_challenge,
            "welcome": self._on_welcome,
            "start": self._on_start,
            "adapter": self._on_adapter,
            "norm": self._on_norm,
            "heartbeat": self._on_nothing,
            "finish": self._on_finish,
        }.get(body or "")
        if take is None:
            raise ProtocolError("an empty message, or one of another wire version")
        take(message)

    def _count(self, message: edge_pb2.EdgeMessage | Frame, role: Any, raw: int = 0) -> None:
        self._stats.bytes.add("down", role, wire_bytes(message), raw)

    def _on_nothing(self, message: edge_pb2.EdgeMessage) -> None:
        self._count(message, "control")

    def _on_challenge(self, message: edge_pb2.EdgeMessage) -> None:
        self._count(message, "control")
        self._put(message.challenge)

    def _on_welcome(self, message: edge_pb2.EdgeMessage) -> None:
        self._count(message, "control")
        if self._settings is not None:
            raise ProtocolError("the edge said welcome twice")
        self._settings = contract.welcome(message.welcome, self._device)
        self._put(message.welcome)

    def _on_norm(self, message: edge_pb2.EdgeMessage) -> None:
        self._count(message, "control")
        self._put(message.norm)

    def _on_finish(self, message: edge_pb2.EdgeMessage) -> None:
        self._count(message, "control")
        self._put(Finish(message.finish.ok, contract.reason(message.finish.reason)))

    def _on_start(self, message: edge_pb2.EdgeMessage) -> None:
        self._count(message, "control")
        start = checked.round_start(from_round_start(message.start), self.settings)
        self._codec = self._begin_round(start.codecs, start.round)
        self._start = start

    def _on_adapter(self, message: edge_pb2.EdgeMessage) -> None:
        self._count(message, "adapter")
        whole = self._adapter.add(message.adapter)
        if whole is None:
            return
        if whole[0].side == STACK:
            self._put(Stack(decode_adapter(whole[1])))
            return
        if self._start is None:
            raise ProtocolError("an adapter came before its round was announced")
        values = self._values(*whole)
        # What the next change is added to; where none is coded the edge keeps nothing either.
        coded = self._codec is not None and self._codec.spec != "none"
        self._held = values if coded else {}
        self._put(RoundOrder(self._start, values))

    def _values(self, header: tensor_pb2.AdapterHeader, payload: Buffer) -> Values:
        if not header.codec:
            return decode_adapter(payload)
        if self._codec is None or header.codec != self._codec.spec or not self._held:
            raise ProtocolError(f"an adapter in codec {header.codec!r} was not due")
        return decode_update(self._codec, payload, self._held)

    def _on_tensor(self, frame: Frame) -> None:
        header = self._tensor.header(frame)
        first = frame.header is not None
        if header is not None:
            self._count(frame, tensor_role(header), raw_bytes(header) if first else 0)
        phases = self._stats.phases
        if first:
            self._began[frame.kind] = phases.now()
        whole = self._tensor.add(frame)
        if whole is not None:
            begin, end = self._began[frame.kind], phases.now()
            message = self._decode(*whole)
            device = self._stats.name
            phases.share("receive", message.key, device, begin, end, lane="link-receiver")
            self._put(replace(message, arrived=phases.now()))


def _urgency(kind: Kind) -> int:
    return URGENT if kind is Kind.GRADIENT else NORMAL
