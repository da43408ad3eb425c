"""An edge's end of a device's stream: what overtakes what, and which thread makes bytes."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from sfl.codec.packet import Packet
from sfl.codec.pipeline import parse
from sfl.config import RunSettings
from sfl.config.codec import RoleCodecs
from sfl.errors import ProtocolError
from sfl.metrics.stats import NodeStats, PhaseTimes
from sfl.plan import Toward
from sfl.report.step import LANES
from sfl.rounds.assignment import assign
from sfl.rounds.values import EdgeBase
from sfl.stage.engine import Engine
from sfl.stage.messages import GradientNorm, Key, Kind, Outgoing, Purpose, TensorMessage
from sfl.stage.orders import ORDERS
from sfl.transport.device.decode_slots import DecodeSlots
from sfl.transport.device.end import DeviceEnd, EdgeEnd
from sfl.transport.device.reader import Reader
from sfl.transport.device.service import EdgeService
from sfl.transport.device.stream_codecs import StreamCodecs
from sfl.transport.device.training import Training
from sfl.transport.device.urgency import CodecThread
from sfl.transport.frames.chunks import adapter_bytes, adapter_frames
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.tensors import encode_tensor
from sfl.transport.frames.wire import EDGE_SESSION
from sfl.transport.frames.words import to_assignment
from sfl.v1 import edge_pb2, tensor_pb2
from tests.house.clock import Clock
from tests.house.waiting import at_hand, until_async

HIDDEN = 64
CODECS = RoleCodecs.model_validate(
    {
        "gradient": "int8",
        **dict.fromkeys(("activation", "hidden", "tail_gradient", "evaluation"), "none"),
    }
)


def tensor(kind: Kind, micro: int, tokens: int = 8) -> TensorMessage:
    key = Key(Purpose.TRAINING, 1, 0, micro)
    return TensorMessage(kind, key, 9, (tokens,), torch.full((tokens, HIDDEN), float(micro)))


def outgoing(*answers: TensorMessage | GradientNorm) -> list[Outgoing]:
    """What a session says to send."""
    norm = Toward.INPUT
    return [
        Outgoing(one.kind.toward if isinstance(one, TensorMessage) else norm, one)
        for one in answers
    ]


class Session:
    """Answers activations with hidden states and gradients with gradients, behind a gate."""

    model = SimpleNamespace(hidden_size=HIDDEN)
    device = "d"
    is_open = False
    steps_left = 1
    step = 0
    served_seconds = 0.0
    lessons = None

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.served: list[tuple[Kind, int]] = []

    def handle(self, message: TensorMessage) -> list[Outgoing]:
        assert self.gate.wait(20.0)
        self.served.append((message.kind, message.key.micro_batch))
        answer = Kind.GRADIENT if message.kind is Kind.GRADIENT else Kind.ACTIVATION
        return outgoing(tensor(answer, message.key.micro_batch))


class Wire:
    """Stands for gRPC's end: takes one message at a time, and what the handler's code makes."""

    def __init__(self, takes: int) -> None:
        self.room = asyncio.Semaphore(takes)
        self.written: list[Any] = []

    async def write(self, message: Any) -> None:
        await self.room.acquire()
        self.written.append(message)

    def kinds(self) -> list[tuple[Kind, bool] | str]:
        """Kind of each frame and whether it is a first one; of other messages their name."""
        parse = EDGE_SESSION._codec(1)[1]
        kinds: list[tuple[Kind, bool] | str] = []
        for written in self.written:
            message = parse(EDGE_SESSION.response_bytes(written))
            if isinstance(message, Frame):
                kinds.append((Kind(message.kind), message.header is not None))
            else:
                kinds.append(str(message.WhichOneof("body")))
        return kinds


def opened(session: Session, engine: Engine, room: int = 8) -> Training:
    """A stream of that session in an open round, its threads those of a real service."""
    settings = RunSettings.model_validate(
        {
            "model": {"path": "m", "max_length": 16384},
            "run": {"topology": "u_shaped"},
            "training": {"batch_size": 16},
            "network": {"credits": 8},
            "devices": [{"name": "d", "tail_layers": 1}],
        }
    )
    host: Any = SimpleNamespace(
        stats=NodeStats("e", "edge"),
        engine=engine,
        slots=DecodeSlots(room, ORDERS["first_come"]),
        adapter_limit=1 << 20,
    )
    service = EdgeService(host.stats, at_hand(host))
    own = replace(assign(settings, EdgeBase(3), "d", 1), codecs=CODECS)
    end = EdgeEnd("d", own, settings, host.stats.phases, peer_compiled=True)
    end.allow(HIDDEN, host.adapter_limit)
    end.begin_round(own)
    return Training("d", cast(Any, session), settings, host, service.coders, end)


def reading(stats: NodeStats, put: list[Any], codecs: RoleCodecs) -> Reader:
    """What a device reads with, told of the run, of its first round, and what its span asks for."""
    run = {
        "model": {"path": "m", "max_length": 16384},
        "training": {"batch_size": 16},
        "devices": [{"name": "d"}],
    }
    settings = RunSettings.model_validate(run)
    own = assign(settings, EdgeBase(3), "d", 1)
    end = DeviceEnd("d", own, settings, stats.phases, peer_compiled=True)
    end.expect(lambda told: [(2, 3)], HIDDEN)
    reader = Reader(end, stats, put.append)
    start = to_assignment(replace(own, codecs=codecs))
    reader.take(edge_pb2.EdgeMessage(start=start))
    return reader


async def arrive(stream: Training, messages: Sequence[TensorMessage]) -> None:
    """What a device sends, read by the stream."""
    sender = StreamCodecs("device", "d", 0, peer_compiled=True)
    sender.begin_round(CODECS, 1)

    async def requests() -> Any:
        for message in messages:
            for frame in encode_tensor(message, sender.encode(message)):
                yield frame
        await asyncio.Event().wait()

    task = asyncio.create_task(stream.read(requests()))
    while stream.end.credits.waiting < len(messages) and not task.done():
        await asyncio.sleep(0)
    task.cancel()


def closed(stream: Training, engine: Engine) -> None:
    engine.close()
    stream.tensors.coders.close()


def test_a_gradient_overtakes_the_activations_that_wait_for_the_compute_thread() -> None:
    session = Session()

    async def scene() -> None:
        engine = Engine(1)
        stream = opened(session, engine)
        workers = [asyncio.create_task(work) for work in (stream.jobs.work(), stream.jobs.land())]
        blocker = asyncio.create_task(engine.run(session.gate.wait, 20.0))
        await arrive(
            stream,
            [tensor(Kind.ACTIVATION, 1), tensor(Kind.ACTIVATION, 2), tensor(Kind.GRADIENT, 0)],
        )
        await until_async(lambda: len(engine._queue) == 2)  # an activation, a gradient behind it
        session.gate.set()
        await until_async(lambda: len(session.served) == 3)
        await blocker
        for worker in workers:
            worker.cancel()
        closed(stream, engine)

    asyncio.run(scene())
    assert session.served == [(Kind.GRADIENT, 0), (Kind.ACTIVATION, 1), (Kind.ACTIVATION, 2)]


def test_a_gradient_needs_no_room_that_activations_have_taken() -> None:
    session = Session()
    session.gate.set()

    async def scene() -> None:
        engine = Engine(1)
        stream = opened(session, engine, room=0)
        workers = [asyncio.create_task(work) for work in (stream.jobs.work(), stream.jobs.land())]
        await arrive(stream, [tensor(Kind.ACTIVATION, 1), tensor(Kind.GRADIENT, 0)])
        await until_async(lambda: session.served)
        for worker in workers:
            worker.cancel()
        await stream.abandon()
        closed(stream, engine)

    asyncio.run(scene())
    assert session.served == [(Kind.GRADIENT, 0)]


def test_a_gradient_overtakes_between_the_frames_of_a_tensor() -> None:
    async def scene() -> list[tuple[Kind, bool] | str]:
        engine = Engine(1)
        stream = opened(Session(), engine)
        wire = Wire(1)
        writer = asyncio.create_task(stream.stream.write(cast(Any, wire)))
        long = tensor(Kind.ACTIVATION, 1, tokens=3 * 4096)  # 3 MiB: four frames
        stream.tensors.send(outgoing(long))
        await until_async(lambda: wire.written)  # the first is out, the second waits for the link
        stream.tensors.send(
            outgoing(tensor(Kind.GRADIENT, 0), GradientNorm(1, 0, 1.0, Toward.INPUT))
        )
        stream.stream.outbox.put(edge_pb2.EdgeMessage(finish=edge_pb2.Finish(ok=True)))
        await until_async(lambda: len(stream.stream.outbox) == 5)
        for _ in range(7):
            wire.room.release()
        await until_async(lambda: len(wire.written) == 7)
        assert all(isinstance(message, bytes) for message in wire.written[:-1])
        writer.cancel()
        closed(stream, engine)
        return wire.kinds()

    hidden, gradient = Kind.ACTIVATION, Kind.GRADIENT
    assert asyncio.run(scene()) == [
        (hidden, True),
        (hidden, False),  # was with gRPC already
        (gradient, True),
        "norm",
        (hidden, False),
        (hidden, False),
        "finish",
    ]


def test_a_device_that_takes_no_answers_gets_no_more() -> None:
    """Answers of a whole round, or evaluation, would wait in this edge's memory."""

    class Vanilla(Session):
        def handle(self, message: TensorMessage) -> list[Outgoing]:
            self.served.append((message.kind, message.key.micro_batch))
            return outgoing(tensor(Kind.GRADIENT, message.key.micro_batch))

    async def scene() -> int:
        engine, session = Engine(1), Vanilla()
        stream = opened(session, engine)
        working = asyncio.create_task(stream.jobs.work())
        writing = asyncio.create_task(stream.stream.write(cast(Any, Wire(0))))
        sender = StreamCodecs("device", "d", 0, peer_compiled=True)
        sender.begin_round(CODECS, 1)

        async def requests() -> Any:
            for micro in range(9 * stream.end.credits.count):
                message = replace(tensor(Kind.ACTIVATION, micro), num_micro_batches=16)
                message = replace(message, key=Key(Purpose.TRAINING, 1, 0, micro % 16))
                for frame in encode_tensor(message, sender.encode(message)):
                    yield frame
                await until_async(lambda done=micro + 1: len(session.served) == done)
            await asyncio.Event().wait()

        try:
            with pytest.raises(ProtocolError, match="answers are not read"):
                async with asyncio.timeout(20.0):
                    await stream.read(requests())
        finally:
            for task in (working, writing):
                task.cancel()
            await asyncio.gather(working, writing, return_exceptions=True)
            closed(stream, engine)
        return stream.end.credits.unsent

    assert asyncio.run(scene()) == 2 * 8 + 1


def test_answers_that_are_taken_count_no_more() -> None:
    async def scene() -> int:
        engine = Engine(1)
        stream = opened(Session(), engine)
        wire = Wire(100)
        writer = asyncio.create_task(stream.stream.write(cast(Any, wire)))
        stream.tensors.send(
            outgoing(tensor(Kind.ACTIVATION, 1, tokens=3 * 4096), tensor(Kind.GRADIENT, 0))
        )
        stream.tensors.send(outgoing(GradientNorm(1, 0, 1.0, Toward.INPUT)))
        before = stream.end.credits.unsent
        await until_async(lambda: len(wire.written) == 6)
        await asyncio.sleep(0)
        writer.cancel()
        closed(stream, engine)
        return before - 2 + stream.end.credits.unsent

    assert asyncio.run(scene()) == 0


def test_what_cannot_be_coded_ends_the_stream() -> None:
    async def scene() -> None:
        engine = Engine(1)
        stream = opened(Session(), engine)
        bad = tensor(Kind.GRADIENT, 2)
        assert bad.rows is not None
        bad.rows[1, 1] = float("nan")
        stream.tensors.send(outgoing(tensor(Kind.ACTIVATION, 1), bad))
        try:
            async with asyncio.timeout(20.0):
                await stream.stream.write(cast(Any, Wire(9)))
        finally:
            closed(stream, engine)

    with pytest.raises(ProtocolError, match="micro-batch 2"):
        asyncio.run(scene())


def test_urgent_jobs_overtake_those_that_a_codec_thread_has_not_begun() -> None:
    log: list[str] = []
    gate = threading.Event()

    async def scene() -> None:
        thread = CodecThread("codec-encoder")
        name = thread.submit(False, lambda: threading.current_thread().name)
        assert LANES[await name] == "encode"
        running = thread.submit(False, gate.wait, 20.0)
        jobs = [
            thread.submit(job == "gradient", log.append, job)
            for job in ("first", "second", "gradient")
        ]
        gone = thread.submit(False, log.append, "gone")
        gone.cancel()
        failing = thread.submit(False, int, "x")
        await asyncio.sleep(0)  # a cancellation is passed on by the loop
        gate.set()
        await asyncio.gather(running, *jobs)
        with pytest.raises(ValueError, match="invalid literal"):
            await failing
        thread.close()

    asyncio.run(scene())
    assert log == ["gradient", "first", "second"]


# -- how long a tensor took to arrive --------------------------------------------------------------


def interleaved(kind: Kind = Kind.ACTIVATION) -> list[Frame]:
    """A tensor's and a gradient's frames in turn: at seconds 1, 3, 4 and 2, 5."""
    first = encode_tensor(tensor(kind, 1, tokens=8192), plain(8192))
    second = encode_tensor(tensor(Kind.GRADIENT, 0, tokens=4100), plain(4100))
    assert (len(first), len(second)) == (3, 2)
    return [first[0], second[0], first[1], first[2], second[1]]


def plain(tokens: int) -> Packet:
    return parse("none").encode(torch.ones(tokens, HIDDEN))


def arrivals(stats: NodeStats, device: str) -> dict[int, tuple[str, float]]:
    """Lane and seconds of each micro-batch's way in."""
    return {
        span.micro_batch: (LANES[span.lane], round(span.end - span.begin, 3))
        for span in stats.phases.timeline.take(device)
        if span.phase == "receive"
    }


def watched(clock: Clock) -> NodeStats:
    stats = NodeStats("d", "device")
    stats.phases = PhaseTimes(clock)
    stats.phases.timeline.watch("d", 1, 0)
    return stats


def test_a_device_times_tensors_whose_frames_alternate_each_by_itself() -> None:
    clock = Clock()
    stats = watched(clock)
    put: list[Any] = []
    reader = reading(stats, put, CODECS.model_copy(update={"gradient": "none"}))
    for frame in interleaved(Kind.ACTIVATION):
        clock.now += 1.0
        reader.take(frame)
    assert [message.kind for message in put] == [Kind.ACTIVATION, Kind.GRADIENT]
    assert arrivals(stats, "d") == {1: ("receive", 3.0), 0: ("receive", 3.0)}


@pytest.mark.parametrize("codec", ["none", "stochastic(4) | zstd"])
def test_a_device_keeps_its_adapter_only_where_changes_of_it_are_coded(codec: str) -> None:
    put: list[Any] = []
    codecs = CODECS.model_copy(update={"adapter": codec})
    reader = reading(NodeStats("d", "device"), put, codecs)
    payload = adapter_bytes({"a": np.ones((2, 3), np.float32)})
    for frame in adapter_frames(tensor_pb2.AdapterHeader(round=1), payload):
        reader.take(edge_pb2.EdgeMessage(adapter=frame))
    values = weakref.ref(put.pop().values["a"])
    assert (values() is None) == (codec == "none")


def test_an_edge_times_tensors_whose_frames_alternate_each_by_itself() -> None:
    clock = Clock()

    async def scene() -> dict[int, tuple[str, float]]:
        engine = Engine(1)
        stream = opened(Session(), engine)
        stream.tensors.floor.stats = watched(clock)
        stream.end.phases = stream.tensors.floor.stats.phases
        for frame in interleaved():
            clock.now += 1.0
            stream.tensors.take(frame, stream.jobs)
        await asyncio.gather(*stream.tensors._decoding)
        await stream.abandon()
        closed(stream, engine)
        return arrivals(stream.tensors.floor.stats, "d")

    assert asyncio.run(scene()) == {1: ("receive", 3.0), 0: ("receive", 3.0)}


def test_what_is_sent_is_of_its_own_micro_batch() -> None:
    async def scene() -> list[tuple[str, int]]:
        engine = Engine(1)
        stream = opened(Session(), engine)
        stream.tensors.floor.stats.phases.timeline.watch("d", 1, 0)
        wire = Wire(9)
        writer = asyncio.create_task(stream.stream.write(cast(Any, wire)))
        stream.tensors.send(outgoing(tensor(Kind.ACTIVATION, 1), tensor(Kind.ACTIVATION, 2)))
        await until_async(lambda: len(wire.written) == 2)
        await asyncio.sleep(0)
        writer.cancel()
        closed(stream, engine)
        spans = stream.tensors.floor.stats.phases.timeline.take("d")
        return [(LANES[span.lane], span.micro_batch) for span in spans if span.phase == "send"]

    assert asyncio.run(scene()) == [("send", 1), ("send", 2)]


def test_an_idle_compute_thread_waits_for_the_device_whose_job_ends_it() -> None:
    session = Session()
    session.gate.set()
    stats = NodeStats("e", "edge")
    stats.phases.timeline.watch("d", 1, 0)

    async def scene() -> None:
        engine = Engine(1, phases=stats.phases)
        await engine.run(int)
        while "wait" not in stats.phases.snapshot():  # an errand that found the thread idle
            await asyncio.sleep(0.02)
            await engine.run(int)
        await asyncio.sleep(0.2)
        await engine.serve(cast(Any, session), tensor(Kind.ACTIVATION, 3))
        engine.close()

    asyncio.run(scene())
    waits = [span for span in stats.phases.timeline.take("d") if span.phase == "wait"]
    assert [(LANES[span.lane], span.micro_batch) for span in waits] == [("compute", 3)]
    assert stats.phases.snapshot()["wait"].count >= 2


def test_a_tensor_that_nobody_waits_for_any_more_may_be_undecodable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stream is over for another reason, and that one is told."""
    said: list[str] = []

    def fails(*_: object) -> None:
        raise ProtocolError("the mask of rows is not one")

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: said.append(context["message"]))
        engine = Engine(1)
        stream = opened(Session(), engine)
        monkeypatch.setattr(EdgeEnd, "decode", fails)
        await arrive(stream, [tensor(Kind.ACTIVATION, 1)])
        await until_async(lambda: not stream.tensors._decoding)
        await stream.abandon()
        closed(stream, engine)

    asyncio.run(scene())
    gc.collect()
    assert said == []
