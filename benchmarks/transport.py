"""Our stream beside a bare gRPC echo of the same bytes: throughput and round trip, in one run.

    python benchmarks/transport.py        # 1 minute

An edge that computes nothing sends every activation back as its gradient, in another process, over
the real service: frames, queues, heartbeats, codec `none`. The reference is grpcio's bidirectional
stream echoing the same messages with no protobuf in them: once a whole tensor has come, as no edge
can answer before, and each message at once. One tensor in flight, and four. Both servers keep their
heap, as an edge does; both clients are as a device is.
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import grpc
import grpc.aio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sfl.node.process import keep_heap, quiet_environment
from sfl.rounds.values import DeviceWelcome, EdgeBase, Steps
from sfl.transport.frames.wire import FRAME_BYTES

ROWS, HIDDEN = 8 * 128, 768
SIZE = 4 * ROWS * HIDDEN
MESSAGES = [FRAME_BYTES] * (SIZE // FRAME_BYTES) + [SIZE % FRAME_BYTES]
"""Sizes of a tensor's messages, as ours are."""
ENDLESS = 1 << 20
"""Steps of a round."""
LABELS = {
    "sfl": "sfl",
    "whole": "bare, whole tensors",
    "piecewise": "bare, piece by piece",
}


def settings(in_flight: int) -> dict[str, Any]:
    """Of a run in which nothing but the wire does anything."""
    return {
        "model": {"path": "none", "max_length": 128},
        "training": {"batch_size": 8},
        "network": {"credits": in_flight},
        "codec": {"activation": "none", "gradient": "none"},
        "devices": [{"name": "device"}],
    }


# -- the edge ----------------------------------------------------------------------------------


class EchoSession:
    """Sends activations back as their own gradients."""

    device = "device"
    is_open = False
    steps_left = 1
    plan = SimpleNamespace(num_layers=2)
    step = 0
    served_seconds = 0.0

    def begin_round(self, start: Any, values: Any, remembered: Any) -> None:
        """Nothing to load."""

    def handle(self, message: Any) -> list[Any]:
        """The same tensor, as a gradient."""
        from sfl.plan import Toward
        from sfl.stage.messages import Kind, Outgoing

        return [Outgoing(Toward.INPUT, replace(message, kind=Kind.GRADIENT))]


class EchoHost:
    """An edge without model, cloud or files."""

    adapter_limit = 0  # none is sent

    def __init__(self, in_flight: int) -> None:
        from sfl.config import RunSettings
        from sfl.metrics.stats import NodeStats
        from sfl.stage.engine import Engine
        from sfl.stage.orders import ORDERS
        from sfl.transport.device.decode_slots import DecodeSlots
        from sfl.transport.device.service import EdgeService

        self.stats = NodeStats("edge", "edge")
        self.engine = Engine(1)
        self.slots = DecodeSlots(8, ORDERS["first_come"])  # as edge.in_flight allows
        self.settings = RunSettings.model_validate(settings(in_flight))
        opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        opened.set_result(self)
        self.service: EdgeService[Any] = EdgeService(self.stats, opened)

    async def admit(self, device: str, proof: Any, *trips: object) -> Any:
        """Everybody may come in."""
        from sfl.rounds.assignment import assign
        from sfl.transport.device.served import Admitted
        from sfl.transport.device.training import Training

        session: Any = EchoSession()
        host: Any = self
        welcome = DeviceWelcome(self.settings, "echo", assign(self.settings, EdgeBase(2), device))
        serve = partial(Training, device, session, self.settings, host)
        return Admitted(welcome, HIDDEN, serve)

    def ready(self, device: str, ready: Any, points: Any) -> None:
        """Open a round without end."""
        from sfl.rounds.assignment import assign

        steps = Steps(ENDLESS, 0, ENDLESS)
        start = assign(self.settings, EdgeBase(2), device, 1, steps=steps)
        self.service.streams[device].begin_round(start, {}, {})

    async def left(self, device: str, reason: str) -> None:
        """Nothing to give back."""

    def heard(self, device: str, snapshot: Any) -> None:
        """Nobody asks."""


def serve(pipe: Connection, in_flight: int) -> None:
    """A process with both servers; tells their ports."""
    quiet_environment()
    keep_heap()  # as an edge does

    async def run() -> None:
        host = EchoHost(in_flight)
        from sfl.transport.frames.wire import SERVER_OPTIONS

        ports, servers = [], []
        for handler in (host.service.handler(), bare_handler()):
            server = grpc.aio.server(options=SERVER_OPTIONS)
            server.add_generic_rpc_handlers((handler,))
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            await server.start()
            servers.append(server)
        pipe.send(ports)
        await asyncio.Event().wait()  # until terminated

    asyncio.run(run())


def bare_handler() -> grpc.GenericRpcHandler[Any, Any]:
    """Bytes in, the same bytes out: each at once, or a tensor's once the last of them is there."""

    async def echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for message in requests:
            yield message

    async def echo_whole(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        waiting = []
        async for message in requests:
            waiting.append(message)
            if len(waiting) == len(MESSAGES):
                for piece in waiting:
                    yield piece
                waiting.clear()

    methods = {
        name: grpc.stream_stream_rpc_method_handler(cast(Any, behaviour))
        for name, behaviour in (("Echo", echo), ("EchoWhole", echo_whole))
    }
    return grpc.method_handlers_generic_handler("bare", methods)


# -- the device --------------------------------------------------------------------------------


def ours(port: int, in_flight: int, seconds: float) -> list[float]:
    """Seconds of each exchange of one tensor, at so many in flight; the last one is their sum."""
    import torch

    from sfl.data.example import DataNotes, Dataset, Example
    from sfl.metrics.stats import NodeStats
    from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
    from sfl.transport.device.line import dial
    from sfl.transport.device.link import DeviceLink
    from sfl.transport.security.signed import DeviceSignatures

    line = dial(f"127.0.0.1:{port}", NodeStats("device", "device"), 10.0, insecure=False)
    link = DeviceLink.join(line, DeviceSignatures("device"), 10.0)
    link.expect(lambda told: [], HIDDEN)
    link.ready(Dataset([Example((1, 2), (-100, 2))], [], "text", DataNotes()))
    next(link.orders())
    rows = torch.randn(ROWS, HIDDEN)

    def send(number: int) -> None:
        key = Key(Purpose.TRAINING, 1, number, 0)
        link.send(TensorMessage(Kind.ACTIVATION, key, 1, (128,) * 8, rows))

    def receive() -> None:
        answer = link.receive()
        assert isinstance(answer, TensorMessage) and answer.rows is not None
        last.append(answer.rows)

    last: deque[torch.Tensor] = deque(maxlen=1)
    times = exchanges(send, receive, in_flight, seconds)
    assert torch.equal(last[0], rows)
    link.close()
    return times


def bare(port: int, in_flight: int, seconds: float, method: str) -> list[float]:
    """The same with plain bytes."""
    from sfl.transport.frames.wire import CLIENT_OPTIONS

    pieces = [bytes(size) for size in MESSAGES]
    outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    requests: Iterator[bytes] = iter(outbox.get, None)
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=CLIENT_OPTIONS) as channel:
        stub: Any = channel.stream_stream(f"/bare/{method}", None, None)
        answers: Iterator[bytes] = stub(requests)

        def send(number: int) -> None:
            for piece in pieces:
                outbox.put(piece)

        def receive() -> None:
            for piece in pieces:
                assert len(next(answers)) == len(piece)

        times = exchanges(send, receive, in_flight, seconds)
        outbox.put(None)
    return times


def exchanges(send: Any, receive: Any, in_flight: int, seconds: float) -> list[float]:
    """Round trips with so many under way; the last entry is the time a tensor took on average."""
    for number in range(4):
        send(number)
        receive()
    sent: list[float] = []
    trips: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() < began + seconds or not trips:
        while len(sent) < in_flight:
            sent.append(time.perf_counter())
            send(0)
        receive()
        trips.append(time.perf_counter() - sent.pop(0))
    for _ in sent:
        receive()
    each = (time.perf_counter() - began) / (len(trips) + len(sent))
    return [*trips, each]


def main() -> None:
    """Alternate the two, and print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each of three turns")
    given = parser.parse_args()
    quiet_environment()
    print(f"tensors of {SIZE / 2**20:.0f} MiB, each way, two processes on one machine\n")
    for in_flight in (1, 4):
        near, far = get_context("spawn").Pipe()
        server = get_context("spawn").Process(target=serve, args=(far, in_flight))
        server.start()
        ports = near.recv()
        turns: dict[str, list[list[float]]] = {"sfl": [], "whole": [], "piecewise": []}
        for _ in range(3):
            for name, method in (("whole", "EchoWhole"), ("piecewise", "Echo")):
                turns[name].append(bare(ports[1], in_flight, given.seconds, method))
            turns["sfl"].append(ours(ports[0], in_flight, given.seconds))
        server.terminate()
        server.join()
        rates = {}
        for name, own in turns.items():
            trips = sorted(trip for turn in own for trip in turn[:-1])
            rates[name] = median(SIZE / turn[-1] for turn in own)
            print(
                f"{in_flight} in flight, {LABELS[name]:22} {rates[name] / 1e9:5.2f} GB/s each way, "
                f"round trip p50 {1e3 * median(trips):6.2f} ms, "
                f"p99 {1e3 * trips[int(0.99 * (len(trips) - 1))]:6.2f} ms"
            )
        print(
            f"{in_flight} in flight, sfl / bare: {rates['sfl'] / rates['whole']:.2f} of an echo of "
            f"whole tensors, {rates['sfl'] / rates['piecewise']:.2f} of one of pieces\n"
        )


if __name__ == "__main__":
    main()
