"""A device's link to its edge once it is taken in: values in, values out.

The caller only computes: an encoder thread makes frames of what it sends, and the line's reader
takes and decodes what comes. Gradients overtake activations in both queues out. A heartbeat thread
tells the edge that this device lives, and watches the idle timeout.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

import grpc

from sfl.codec.kernel import kernel
from sfl.config import RunSettings
from sfl.data.example import Dataset
from sfl.errors import ProtocolError, RunFailed
from sfl.metrics.timeline import spans_to_json
from sfl.metrics.transfers import TIMED_FRAME_BYTES
from sfl.metrics.waits import silences
from sfl.planners.told import Cut
from sfl.rounds.values import NO_TRIPS, Assignment, DeviceFacts, RoundReport, RoundTrips
from sfl.stage.messages import (
    BaseUpdate,
    BlockMoments,
    Finish,
    GradientNorm,
    Kind,
    Message,
    Purpose,
    RoundOrder,
    RoundOutcome,
    TensorMessage,
)
from sfl.stage.remembered import DISK_SECONDS, Within
from sfl.stage.snapshots import Snapshots
from sfl.transport.device import checked
from sfl.transport.device.crossing import note
from sfl.transport.device.end import DeviceEnd, ShapesOf
from sfl.transport.device.greeting import FEW_WAITING, Greeting, await_welcome
from sfl.transport.device.lanes import Declared
from sfl.transport.device.line import Line
from sfl.transport.device.reader import Declined, Reader
from sfl.transport.device.urgency import LAST, NORMAL, URGENT, Outbox
from sfl.transport.frames.chunks import adapter_frames
from sfl.transport.frames.tensors import raw_bytes
from sfl.transport.frames.whereabouts import to_round_trips
from sfl.transport.frames.wire import WIRE_VERSION, tensor_role
from sfl.transport.frames.words import (
    from_welcome,
    to_device_facts,
    to_report,
)
from sfl.transport.security.signed import DeviceSignatures
from sfl.transport.shaper import shaper
from sfl.v1 import edge_pb2, tensor_pb2


@dataclass(frozen=True, slots=True)
class Joined:
    """What an edge says to a device it takes in."""

    run_id: str
    settings: RunSettings
    assignment: Assignment
    """What the device is to load."""
    run_key: str = ""
    """What this device keeps of the run is kept by this."""
    edge: str = ""
    """Who has taken it in."""
    edges: Mapping[str, str] = field(default_factory=dict)
    """Those of the run that were there then: addresses by name."""
    taught_tokens: int = 0
    """That a teacher's word to this device is about, if it has the loss."""


@dataclass(frozen=True, slots=True)
class CameFrom:
    """What a device says of itself: its process, and the run that it was in, if it was in one."""

    run_key: str = ""
    incarnation: bytes = b""
    round_trips: RoundTrips = field(default_factory=dict)
    """To edges, as far as it has measured them."""


NOWHERE = CameFrom()


class DeviceLink:
    """A device that its edge has taken in; also the `Link` that a Trainer uses."""

    def __init__(
        self,
        line: Line,
        joined: Joined,
        end: DeviceEnd,
        signatures: DeviceSignatures,
        agree: Callable[[Assignment], None],
        hear_edges: Callable[[Mapping[str, str]], None] = lambda edges: None,
    ) -> None:
        """`agree` raises UserError where this device does not do what a round asks of it.

        `hear_edges` is told which edges of the run are there, when they are others than before.
        """
        self.line = line
        self.joined = joined
        self._end = end
        self._signatures = signatures
        self._stats = line.stats
        self._stats.link.forget()  # of the link before
        self._to_encode: Outbox[TensorMessage | None] = Outbox()
        settings = joined.settings
        line.shaper = shaper(settings.device(end.device).link, "up")
        stop = partial(self._to_encode.put, None, LAST)
        line.start("link-encoder", self._encode, line.tell, stop)
        network = settings.network
        beat = partial(self._heartbeats, network.heartbeat_interval, network.idle_timeout)
        line.start("link-heartbeat", beat, line.over)
        reader = Reader(end, line.stats, self._keep, agree, self._share, hear_edges)
        line.read(reader.take)

    @classmethod
    def join(
        cls,
        line: Line,
        signatures: DeviceSignatures,
        patience: float,
        cache_dir: Path | None = None,
        agree: Callable[[Assignment], None] = lambda own: None,
        came_from: CameFrom = NOWHERE,
        hear_edges: Callable[[Mapping[str, str]], None] = lambda edges: None,
    ) -> Self:
        """Say who this is, and wait to be taken in.

        What delta coding remembers of samples, and snapshots, are under `cache_dir`. An edge that
        is still loading says so; one that is silent for `patience` seconds is not there any more.

        Raises Refused, LinkLost, ProtocolError, RunFailed, Elsewhere.
        """
        device = line.stats.name
        hello = edge_pb2.DeviceHello(
            device=device,
            wire_version=WIRE_VERSION,
            compiled_codec=kernel().name == "compiled",
            run=came_from.run_key,
            incarnation=came_from.incarnation,
            round_trips=to_round_trips(came_from.round_trips),
        )
        line.post(edge_pb2.DeviceMessage(hello=hello))
        greeting = line.read(Greeting(line).take)
        said = await_welcome(line, signatures, patience)
        greeting.join()
        welcome = from_welcome(said, device)
        settings = welcome.settings
        own = welcome.assignment
        checked.assignment(own, settings)
        key = welcome.recovery_key
        joined = Joined(
            welcome.run_id,
            settings,
            own,
            key,
            welcome.edge,
            welcome.edges,
            welcome.taught_tokens,
        )
        keeps = settings.recovery.snapshots
        cache, count = cache_dir if keeps else None, line.stats.snapshots
        snapshots = Snapshots.under(cache, key, device, count=count)
        phases = line.stats.phases
        compiled = welcome.compiled_codec
        end = DeviceEnd(device, own, settings, phases, compiled, cache_dir, snapshots)
        return cls(line, joined, end, signatures, agree, hear_edges)

    @property
    def channel(self) -> grpc.Channel:
        """The connection, for bulk transfers beside the stream."""
        return self.line.channel

    def why(self, error: Exception) -> Exception:
        """Why the stream ended, where `error` came to a transfer beside it; else that error."""
        return self.line.why(error)

    def close(self, reason: str = "done", cannot_compute: bool = False) -> None:
        """As the line's."""
        self.line.close(reason, cannot_compute)

    def expect(self, shapes: ShapesOf, hidden: int, named: Sequence[Declared] = ()) -> None:
        """From now on take adapters of an assignment's `shapes`, and rows `hidden` wide, at most.

        `named` are the tensors that travel beside rows.
        """
        self._end.expect(shapes, hidden, named)

    def ready(
        self, dataset: Dataset, cuts: tuple[Cut, ...] = (), memory: int | None = None
    ) -> None:
        """Tell the edge that span and data are there, and which cuts fit a budget of memory."""
        ready = to_device_facts(replace(self.facts(dataset), cuts=cuts, memory=memory))
        self._signatures.ready(ready)
        self.line.post(edge_pb2.DeviceMessage(ready=ready))

    def facts(self, dataset: Dataset) -> DeviceFacts:
        """What this device has, in numbers, and what it can go on from."""
        facts = _facts(dataset, self._stats.snapshot().to_json())
        return replace(facts, points=self._end.remembered.points)

    def orders(self, fold: Callable[[BaseUpdate], None] | None = None) -> Iterator[RoundOrder]:
        """The rounds to run, until the run is over. Raises RunFailed where it ends badly.

        What is to be added to the base between them is given to `fold`.
        """
        while True:
            with self._stats.waits.on(self.line.peer, "orders", "the next round"):
                message = self.receive()
            if isinstance(message, Finish):
                return
            if isinstance(message, BaseUpdate) and fold is not None:
                fold(message)
                continue
            if not isinstance(message, RoundOrder):
                raise ProtocolError("a tensor came between two rounds")
            yield message

    def keep(self, within: Within) -> None:
        """Write what there is after some steps of the round."""
        self._end.passed(within)

    def written(self) -> None:
        """Wait until every snapshot is on the disk."""
        with self._stats.waits.on("its disk", "disk", "a snapshot to be written", DISK_SECONDS):
            self._end.remembered.written()

    def deliver(
        self, outcome: RoundOutcome, round_trips: RoundTrips = NO_TRIPS, asks_for: str = ""
    ) -> None:
        """Send this device's part of the adapter, and the report of its round.

        That says how far edges are, where that was measured, and at which one it asks to be.
        """
        if outcome.num_steps:
            self._deliver_update(outcome)
            self.written()  # before anybody can count on it
        told = RoundReport(
            round=outcome.round,
            device=self._end.device,
            num_steps=outcome.num_steps,
            train_loss=outcome.train_loss,
            num_tokens=outcome.num_tokens,
            train_seconds=outcome.train_seconds,
            evaluation=outcome.evaluation,
            sample=outcome.sample,
            evaluation_seconds=outcome.evaluation_seconds,
            spans=spans_to_json(list(outcome.spans)),
            rehearsal=outcome.rehearsal,
            round_trips=round_trips,
            asks_for=asks_for,
            snapshot=self._stats.snapshot(costs=True).to_json(),
        )
        report = to_report(told)
        self._signatures.report(report)
        self.line.post(edge_pb2.DeviceMessage(report=report))

    def _deliver_update(self, outcome: RoundOutcome) -> None:
        """This device's part: whole, or coded as what changed since the round began."""
        part = self._end.update(outcome.values, outcome.round)
        self._end.reached(self._end.point(outcome.num_steps), outcome.moments)
        header = tensor_pb2.AdapterHeader(
            round=outcome.round,
            final_step=outcome.num_steps,
            device=self._end.device,
            side="device",
            scaling=self._end.scaling,
            codec=part.codec,
        )
        self._signatures.update(header, part.arrived)
        for frame in adapter_frames(header, part.payload, TIMED_FRAME_BYTES):
            self.line.post(edge_pb2.DeviceMessage(adapter=frame))

    # -- Link -------------------------------------------------------------------------------------

    def send(self, message: TensorMessage | GradientNorm | BlockMoments) -> None:
        """Queue a message for the encoder; what it raises comes back with the next `receive`."""
        if isinstance(message, BlockMoments):
            for frame in self._end.moments_frames(message):
                self.line.post(edge_pb2.DeviceMessage(adapter=frame))
            return
        if isinstance(message, GradientNorm):
            norm = edge_pb2.GradientNorm(
                round=message.round, step=message.step, squared=message.squared
            )
            self.line.post(edge_pb2.DeviceMessage(norm=norm))
            return
        self._to_encode.put(message, _urgency(message.kind))

    def receive(self) -> Message:
        """Wait for the next message. Raises LinkLost, ProtocolError, RunFailed."""
        phases = self._stats.phases
        begin = phases.now()
        item = self.line.wait()
        if isinstance(item, Declined):
            raise item.error
        if isinstance(item, TensorMessage | GradientNorm):
            phases.interval("wait", item.key, self._end.device, begin)
            return item
        phases.observe("wait", phases.now() - begin)
        if isinstance(item, Finish) and not item.ok:
            raise RunFailed(item.reason)
        if isinstance(item, BaseUpdate | RoundOrder | Finish):
            return item
        raise ProtocolError(f"{self.line.peer}: {type(item).__name__} was not expected")

    # -- threads ----------------------------------------------------------------------------------

    def _encode(self) -> None:
        """Frames of what the caller sent, until the link is closed."""
        for message in iter(self._to_encode.get, None):
            self._post_frames(message)

    def _post_frames(self, message: TensorMessage) -> None:
        frames = self._end.encode(message)
        if message.kind is Kind.ACTIVATION and message.key.purpose is Purpose.TRAINING:
            self._stats.value_bits = self._end.codecs.value_bits(message)
        assert frames[0].header is not None
        role, raw = tensor_role(frames[0].header), raw_bytes(frames[0].header)
        size = sum(frame.wire_bytes for frame in frames)
        note(self._stats.crossed, message, self._end.assignment.plan, "up", size)
        self._stats.link.posted(message.key, self._stats.phases.now(), size)
        for frame in frames:
            self._stats.bytes.add("up", role, frame.wire_bytes, raw)
            self.line.post_frame(frame, _urgency(message.kind))
            raw = 0

    def _heartbeats(self, interval: float, idle_timeout: float) -> None:
        while not self.line.stopped.wait(interval):
            self.line.expect_bytes(idle_timeout)
            self._show_silence(idle_timeout)
            self._stats.waits.say()
            beat = tensor_pb2.Heartbeat(snapshot=self._stats.snapshot().to_json())
            self.line.post(edge_pb2.DeviceMessage(heartbeat=beat))
        self._stats.waits.derive(())

    def _show_silence(self, idle_timeout: float) -> None:
        """Whatever this device does meanwhile, also in a step: its edge has to be heard."""
        heard = [(self.line.peer, self.line.silence.last_heard)]
        found = silences(heard, idle_timeout, time.monotonic(), time.time())
        self._stats.waits.derive(found)

    def _share(self, told: Assignment) -> None:
        """Take the round's part of the link's own limit, where it has one."""
        if self.line.shaper is not None:
            self.line.shaper.share = told.share

    def _keep(self, item: object) -> None:
        self.line.keep(item, FEW_WAITING + self._end.most_waiting)


def _urgency(kind: Kind) -> int:
    return URGENT if kind is Kind.GRADIENT else NORMAL


def _facts(dataset: Dataset, snapshot: str) -> DeviceFacts:
    return DeviceFacts(
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
        snapshot=snapshot,
    )
