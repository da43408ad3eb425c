"""A device at a hostile edge: the shell of `sfl device`, joined again and again, over TLS.

The edge goes a random way honestly (challenge, welcome, files, a round, its adapter), and then says
what no honest edge says. The device must end each time, in time, with an error of sfl's own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc

import device_agent.agent
from device_agent.agent import DeviceAgent
from sfl.config import DeviceConfig, MetricsSettings, RunSettings, load_run
from sfl.errors import SflError
from sfl.metrics.memory import memory_use
from sfl.node.certificates.authority import Authority
from sfl.node.certificates.own import load_own, settings_in
from sfl.rounds.assignment import assign
from sfl.rounds.values import DeviceWelcome, EdgeBase, Steps
from sfl.transport.device import line as device_line
from sfl.transport.frames.chunks import adapter_frames
from sfl.transport.frames.seal import seal
from sfl.transport.frames.wire import EDGE_SESSION
from sfl.transport.frames.words import to_assignment, to_welcome
from sfl.v1 import edge_pb2, tensor_pb2
from tests.fuzz.messages import whole_messages
from tests.fuzz.mutate import mutated
from tests.house.federation import write_config
from tests.house.fleets import fleet, tiny
from tests.house.tls import give, read_folder

FLAT = 120_000_000
HUNG = 90.0
"""Seconds after which one joining counts as hung: the process then ends with its stacks."""


class HostileEdge:
    """Says honest things for a while, then others; counts them."""

    def __init__(self, folder: Path, settings: RunSettings, seed: int) -> None:
        authority = Authority.create()
        edge = give(authority, folder / "edge", "edge", "edge", "127.0.0.1")
        device = give(authority, folder / "device", "device", "d0")
        self.own = load_own("device.tls", settings_in(device, "d0"), "device", "d0")
        self.rng, self.settings = random.Random(seed), settings
        self.messages, self.streams = 0, 0
        self.depths: Counter[str] = Counter()
        self._all = [data for _, data in whole_messages()]
        self._ours = [data for kind, data in whole_messages() if kind is edge_pb2.EdgeMessage]
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        handler = grpc.stream_stream_rpc_method_handler(
            self._session, EDGE_SESSION._codec(0)[1], None
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(EDGE_SESSION.service, {"Session": handler}),)
        )
        port = self._server.add_secure_port("127.0.0.1:0", read_folder(edge, "edge"))
        self.address = f"127.0.0.1:{port}"

    def __enter__(self) -> HostileEdge:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def _session(self, requests: Any, context: Any) -> Iterator[bytes]:
        self.streams += 1
        depth = self.rng.choice(("nothing", "challenge", "welcome", "start", "adapter", "adapter"))
        for state, message in self._honest(requests):
            if message is not None:
                yield seal(message.SerializeToString())
            if state == depth:
                break
        self.depths[depth] += 1
        for data in self._lies():
            self.messages += 1
            yield data

    def _honest(self, requests: Any) -> Iterator[tuple[str, edge_pb2.EdgeMessage | None]]:
        """Each state that is reached, and what is said on the way to it."""
        yield "nothing", None
        nonce = edge_pb2.Challenge(run_id="t", edge="edge", nonce=bytes(32))
        yield "challenge", edge_pb2.EdgeMessage(challenge=nonce)
        yield "welcome", edge_pb2.EdgeMessage(welcome=self._welcome())
        for message in requests:
            if (
                isinstance(message, edge_pb2.DeviceMessage)
                and message.WhichOneof("body") == "ready"
            ):
                break
        yield "start", edge_pb2.EdgeMessage(start=self._start())
        for frame in adapter_frames(tensor_pb2.AdapterHeader(round=1), b""):
            yield "adapter", edge_pb2.EdgeMessage(adapter=frame)

    def _welcome(self) -> edge_pb2.Welcome:
        own = assign(self.settings, EdgeBase(3, credits=2), "d0")
        return to_welcome(DeviceWelcome(self.settings, "t", own))

    def _start(self) -> edge_pb2.Assignment:
        steps = Steps(2, 0, 2)
        return to_assignment(assign(self.settings, EdgeBase(3), "d0", 1, steps=steps))

    def _related(self) -> list[bytes]:
        """What this edge says itself, and tensors that answer."""
        header = tensor_pb2.TensorHeader(
            kind=3, purpose=1, round=1, num_micro_batches=1, lengths=[2], codec="none",
            dtype="float32", shape=[2, 32], num_bytes=256, loss=1.0,
        )  # fmt: skip
        tensor = tensor_pb2.TensorFrame(header=header, kind=3, data=bytes(256), last=True)
        several = tensor_pb2.TensorFrame()
        several.CopyFrom(tensor)
        several.header.named.add(name="x", codec="none", dtype="float32", shape=[1, 2], num_bytes=8)
        messages = [
            edge_pb2.EdgeMessage(tensor=several),
            edge_pb2.EdgeMessage(welcome=self._welcome()),
            edge_pb2.EdgeMessage(start=self._start()),
            edge_pb2.EdgeMessage(tensor=tensor),
            edge_pb2.EdgeMessage(norm=edge_pb2.GradientNorm(round=1, squared=2.0)),
            edge_pb2.EdgeMessage(heartbeat=tensor_pb2.Heartbeat()),
        ]
        return [message.SerializeToString() for message in messages]

    def _lies(self) -> Iterator[bytes]:
        """One to six messages; at last a finish, so that the device does not dial again for it."""
        related, rng = self._related(), self.rng
        for _ in range(rng.randint(1, 6)):
            data = rng.choice(related if rng.random() < 0.7 else self._ours)
            if rng.random() < 0.9:
                data = mutated(data, rng, rng.choice(self._all))
            yield seal(data) if rng.random() < 0.97 else data
        finish = edge_pb2.Finish(ok=True)
        yield seal(edge_pb2.EdgeMessage(finish=finish).SerializeToString())


def live(inputs: int, seed: int) -> tuple[str, list[str]]:
    """So many messages; a line of counts, and what is wrong."""
    with (
        patch.object(device_agent.agent, "REJOIN_PAUSE", 0.0),
        patch.object(device_line, "GOODBYE", 0.1),  # this edge hears none
    ):
        return _live(inputs, seed)


def _live(inputs: int, seed: int) -> tuple[str, list[str]]:
    began, endings, problems, early = time.monotonic(), Counter[str](), [], None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = fleet(folder, 1)
        settings = load_run(write_config(folder, values)).settings
        with HostileEdge(folder, settings, seed) as edge:
            config = DeviceConfig(
                name="d0",
                edge=edge.address,
                model=str(tiny("llama")),
                train=str(folder / "d0.jsonl"),
                cache_dir=folder / "cache",
                metrics=MetricsSettings(enabled=False),
            )
            while edge.messages < inputs:
                faulthandler.dump_traceback_later(HUNG, exit=True)
                endings[_joined(DeviceAgent(config, insecure=False, own=edge.own), problems)] += 1
                faulthandler.cancel_dump_traceback_later()
                if early is None and edge.messages >= inputs // 10:
                    early = memory_use().resident
    grown = memory_use().resident - (early or 0)
    if grown > FLAT:
        problems.append(f"memory grew by {grown / 1e6:.0f} MB")
    line = (
        f"device, live, seed {seed}: {edge.messages:,} messages on {edge.streams:,} streams, after "
        f"{told(edge.depths)}; ended {told(endings)}; {time.monotonic() - began:.0f} s, memory "
        f"{grown / 1e6:+.0f} MB"
    )
    return line, problems


def _joined(agent: DeviceAgent, problems: list[str]) -> str:
    """How a device that took part came to its end; anything but an error of sfl's is a problem."""
    try:
        with contextlib.redirect_stderr(None):
            agent.run(20.0)
    except SflError as error:
        return type(error).__name__
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        problems.append(traceback.format_exc())
        return repr(error)
    return "well"


def told(counter: Counter[str]) -> str:
    """Each with its count, the most frequent first."""
    return ", ".join(f"{name} {count:,}" for name, count in counter.most_common())
