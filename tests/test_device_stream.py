"""An edge's end of a device's stream: what overtakes what, and which thread makes bytes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from sfl.config import RunSettings
from sfl.config.run import RoleCodecs
from sfl.errors import ProtocolError
from sfl.metrics.stats import NodeStats
from sfl.report.step import LANES
from sfl.stage.engine import Engine
from sfl.stage.messages import GradientNorm, Key, Kind, Purpose, TensorMessage
from sfl.transport.cut import Cut
from sfl.transport.device_stream import DeviceStream
from sfl.transport.edge_service import EdgeService
from sfl.transport.envelope import Frame
from sfl.transport.frames import encode_tensor
from sfl.transport.urgency import CodecThread
from sfl.transport.wire import EDGE_SESSION
from sfl.v1 import edge_pb2

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


class Session:
    """Answers activations with hidden states and gradients with gradients, behind a gate."""

    model = SimpleNamespace(hidden_size=HIDDEN)
    device = "d"
    start = None
    step = 0
    served_seconds = 0.0

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.served: list[tuple[Kind, int]] = []

    def handle(self, message: TensorMessage) -> list[TensorMessage]:
        assert self.gate.wait(20.0)
        self.served.append((message.kind, message.key.micro_batch))
        answer = Kind.GRADIENT if message.kind is Kind.GRADIENT else Kind.HIDDEN
        return [tensor(answer, message.key.micro_batch)]


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


def opened(session: Session, engine: Engine, room: int = 8) -> DeviceStream:
    """A stream of that session in an open round, its threads those of a real service."""
    settings = RunSettings.model_validate(
        {
            "model": {"path": "m"},
            "run": {"topology": "u_shaped"},
            "network": {"credits": 8},
            "devices": [{"name": "d", "tail_layers": 1}],
        }
    )
    host: Any = SimpleNamespace(
        stats=NodeStats("e", "edge"), engine=engine, room=asyncio.Semaphore(room)
    )
    service = EdgeService(host)
    cut = Cut("edge", "d", 0, peer_compiled=True)
    cut.begin_round(CODECS, 1)
    return DeviceStream(
        "d", cast(Any, session), settings, host, service._encoder, service._decoder, cut
    )


async def arrive(stream: DeviceStream, messages: Sequence[TensorMessage]) -> None:
    """What a device sends, read by the stream."""
    sender = Cut("device", "d", 0, peer_compiled=True)
    sender.begin_round(CODECS, 1)

    async def requests() -> Any:
        for message in messages:
            for frame in encode_tensor(message, sender.encode(message)):
                yield frame
        await asyncio.Event().wait()

    task = asyncio.create_task(stream.read(requests()))
    while stream._waiting < len(messages) and not task.done():
        await asyncio.sleep(0)
    task.cancel()


async def until(condition: Any) -> None:
    async with asyncio.timeout(20.0):
        while not condition():
            await asyncio.sleep(0.005)


def closed(stream: DeviceStream, engine: Engine) -> None:
    engine.close()
    stream.encoder.close()
    stream.decoder.close()


def test_a_gradient_overtakes_the_activations_that_wait_for_the_compute_thread() -> None:
    session = Session()

    async def scene() -> None:
        engine = Engine(1)
        stream = opened(session, engine)
        workers = [asyncio.create_task(work) for work in (stream.work(), stream.land())]
        blocker = asyncio.create_task(engine.run(session.gate.wait, 20.0))
        await arrive(
            stream,
            [tensor(Kind.ACTIVATION, 1), tensor(Kind.ACTIVATION, 2), tensor(Kind.GRADIENT, 0)],
        )
        await until(lambda: len(engine._queue) == 2)  # an activation, and the gradient behind it
        session.gate.set()
        await until(lambda: len(session.served) == 3)
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
        workers = [asyncio.create_task(work) for work in (stream.work(), stream.land())]
        await arrive(stream, [tensor(Kind.ACTIVATION, 1), tensor(Kind.GRADIENT, 0)])
        await until(lambda: session.served)
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
        writer = asyncio.create_task(stream.write(cast(Any, wire)))
        long = tensor(Kind.HIDDEN, 1, tokens=3 * 4096)  # 3 MiB: four frames
        stream._send([long])
        await until(lambda: wire.written)  # the first is out, the second waits for the link
        stream._send([tensor(Kind.GRADIENT, 0), GradientNorm(1, 0, 1.0)])
        stream.post(edge_pb2.EdgeMessage(finish=edge_pb2.Finish(ok=True)))
        await until(lambda: stream.outbox.qsize() == 5)
        for _ in range(7):
            wire.room.release()
        await until(lambda: len(wire.written) == 7)
        assert all(isinstance(message, bytes) for message in wire.written[:-1])
        writer.cancel()
        closed(stream, engine)
        return wire.kinds()

    hidden, gradient = Kind.HIDDEN, Kind.GRADIENT
    assert asyncio.run(scene()) == [
        (hidden, True),
        (hidden, False),  # was with gRPC already
        (gradient, True),
        "norm",
        (hidden, False),
        (hidden, False),
        "finish",
    ]


def test_what_cannot_be_coded_ends_the_stream() -> None:
    async def scene() -> None:
        engine = Engine(1)
        stream = opened(Session(), engine)
        bad = tensor(Kind.GRADIENT, 2)
        assert bad.rows is not None
        bad.rows[1, 1] = float("nan")
        stream._send([tensor(Kind.HIDDEN, 1), bad])
        try:
            async with asyncio.timeout(20.0):
                await stream.write(cast(Any, Wire(9)))
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
        gate.set()
        await asyncio.gather(running, *jobs)
        with pytest.raises(ValueError, match="invalid literal"):
            await failing
        thread.close()

    asyncio.run(scene())
    assert log == ["gradient", "first", "second"]
