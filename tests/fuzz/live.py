"""Mutated messages at a live edge and a live cloud, under TLS, while two honest devices train.

A hostile peer has a good certificate. It goes a random way honestly (hello, signed join, ready, a
round), and then says what no honest peer says; once it is refused it dials again. At the end the
honest devices' rounds must have gone on, every process live, and memory have stayed flat.
"""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from google.protobuf.message import Message

from sfl.adapters.lora import build_manifest, given_values
from sfl.config import load_run
from sfl.models.folder import open_model
from sfl.node.certificates.own import OwnCertificate, load_own, settings_in
from sfl.transport.frames.chunks import adapter_bytes
from sfl.transport.frames.wire import CLOUD_SESSION, EDGE_SESSION, WIRE_VERSION, Method
from sfl.transport.security.credentials import open_channel
from sfl.transport.security.signed import DeviceSignatures
from sfl.v1 import cloud_pb2, edge_pb2, tensor_pb2
from tests.fuzz.messages import whole_messages
from tests.fuzz.mutate import mutated
from tests.house.fleets import fleet
from tests.house.hostile import Peer, snapshot
from tests.house.tls import Guarded
from tests.house.waiting import until

FLAT = {"cloud": 60_000_000, "edge": 150_000_000}
"""Bytes that may come on top once a tenth of the messages is through."""
HUNG = 60.0
"""Seconds after which a stream counts as hung."""
MALLORIES, EDGES = ("d2", "d3"), ("south", "north")
SAID = ("this is a bug in sfl", "Traceback", "never retrieved")


class Caller(Peer):
    """One stream of a peer that dials again and again over one connection."""

    def __init__(self, method: Method, channel: grpc.Channel) -> None:
        super().__init__(method, channel, timeout=HUNG)

    def close(self) -> None:
        """End the stream, and leave the connection."""
        self._out.put(None)
        self.call.cancel()

    def finish(self, rng: random.Random) -> grpc.StatusCode | None:
        """How the server ends the stream; None where this end does not wait for that."""
        if rng.random() < 0.15:
            self.close()  # hangs up in the middle
            return None
        self._out.put(None)
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK


@dataclass
class Counts:
    """What was sent, and what came of it."""

    messages: int = 0
    depths: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, messages: int, depth: str, code: grpc.StatusCode | None) -> None:
        """One stream is over."""
        with self.lock:
            self.messages += messages
            self.depths[depth] += 1
            self.endings["hung up" if code is None else code.name] += 1


class Session:
    """One stream's honest beginning, step by step; `related` is what would be honest next."""

    kind: type[Message]

    def __init__(self, peer: Caller) -> None:
        self.peer = peer

    def steps(self) -> Iterator[str]:
        """Go one step further each time; the state it is in then."""
        raise NotImplementedError

    def related(self) -> list[bytes]:
        """Messages that fit, or nearly, what the other end waits for."""
        raise NotImplementedError


class DeviceSession(Session):
    """A device's, at its edge."""

    kind = edge_pb2.DeviceMessage

    def __init__(self, peer: Caller, name: str, own: OwnCertificate) -> None:
        super().__init__(peer)
        self.name, self.round, self.steps_due = name, 1, 2
        self.signatures = DeviceSignatures(name, own)

    def steps(self) -> Iterator[str]:
        """Hello, proof, ready, a round, an update half sent."""
        yield "nothing"
        self.peer.say(hello=edge_pb2.DeviceHello(device=self.name, wire_version=WIRE_VERSION))
        yield "hello"
        self.peer.say(proof=self.signatures.proof(self.peer.hear("challenge")))
        self.peer.hear("welcome")
        yield "joined"
        ready = edge_pb2.DeviceReady(
            num_examples=8, num_eval_examples=2, snapshot=snapshot(self.name)
        )
        self.signatures.ready(ready)
        self.peer.say(ready=ready)
        yield "ready"
        start = self.peer.hear("start")
        self.round, self.steps_due = start.round, start.num_steps
        yield "round"
        self.peer.say(adapter=self._update(num_bytes=4000, data=bytes(1000)))
        yield "adapter"

    def _update(self, data: bytes = b"", **fields: Any) -> tensor_pb2.AdapterFrame:
        honest = {"round": self.round, "final_step": self.steps_due, "scaling": 2.0}
        header = tensor_pb2.AdapterHeader(**{**honest, **fields})
        return tensor_pb2.AdapterFrame(header=header, data=data)

    def related(self) -> list[bytes]:
        """Of the round that is open."""
        header = tensor_pb2.TensorHeader(
            kind=1, purpose=1, round=self.round, num_micro_batches=1, lengths=[2], codec="none",
            dtype="float32", shape=[2, 32], num_bytes=256,
        )  # fmt: skip
        frame = tensor_pb2.TensorFrame(header=header, kind=header.kind, data=bytes(256), last=True)
        several = tensor_pb2.TensorFrame()
        several.CopyFrom(frame)
        several.header.named.add(name="x", codec="none", dtype="float32", shape=[1, 2], num_bytes=8)
        report = tensor_pb2.RoundReport(
            round=self.round, num_steps=self.steps_due, train_loss=1.0, snapshot=snapshot(self.name)
        )
        beat = tensor_pb2.Heartbeat(snapshot=snapshot(self.name))
        norm = edge_pb2.GradientNorm(round=self.round, squared=2.0)
        bodies: list[dict[str, Any]] = [
            {"tensor": frame},
            {"tensor": several},
            {"report": report},
            {"heartbeat": beat},
            {"norm": norm},
            {"adapter": self._update(num_bytes=64)},
            {"adapter": tensor_pb2.AdapterFrame(data=bytes(300))},
            {"goodbye": "done"},
        ]
        return [self.kind(**body).SerializeToString() for body in bodies]  # type: ignore[call-arg]


class EdgeSession(Session):
    """An edge's, at the cloud; it has a device that signs."""

    kind = cloud_pb2.EdgeReportMessage

    def __init__(
        self, peer: Caller, name: str, device: str, own: OwnCertificate, base: cloud_pb2.EdgeReady
    ) -> None:
        super().__init__(peer)
        self.name, self.device, self.base, self.round = name, device, base, 1
        self.signatures = DeviceSignatures(device, own)

    def steps(self) -> Iterator[str]:
        """Hello, a base, a device that joins, is ready, has a round, an update half sent."""
        yield "nothing"
        self.peer.say(hello=cloud_pb2.EdgeHello(edge=self.name, wire_version=WIRE_VERSION))
        settings = self.peer.hear("settings")
        yield "hello"
        self.peer.say(ready=self.base)
        yield "base"
        challenge = edge_pb2.Challenge(
            run_id=settings.run_id, edge=self.name, nonce=settings.challenge
        )
        join = cloud_pb2.DeviceJoin(device=self.device, proof=self.signatures.proof(challenge))
        self.peer.say(join=join)
        if self.peer.hear("admission").refusal:
            return
        yield "joined"
        ready = edge_pb2.DeviceReady(num_examples=8, snapshot=snapshot(self.device))
        self.signatures.ready(ready)
        self.peer.say(device_ready=cloud_pb2.DeviceIsReady(device=self.device, ready=ready))
        yield "ready"
        self.round = self.peer.hear("start").round
        yield "round"
        self.peer.say(adapter=self._update("edge", num_bytes=4000, data=bytes(1000)))
        yield "adapter"

    def _update(self, side: str, data: bytes = b"", **fields: Any) -> tensor_pb2.AdapterFrame:
        header = tensor_pb2.AdapterHeader(
            round=self.round, final_step=2, scaling=2.0, device=self.device, side=side, **fields
        )
        return tensor_pb2.AdapterFrame(header=header, data=data)

    def related(self) -> list[bytes]:
        """Of the round that is open, for its own device."""
        signed = tensor_pb2.RoundReport(
            round=self.round, device=self.device, num_steps=2, train_loss=1.0,
            snapshot=snapshot(self.device),
        )  # fmt: skip
        self.signatures.report(signed)
        part = self._update("device", num_bytes=80)
        part.header.num_bytes = 80
        self.signatures.update(part.header, {"x": np.ones(3, np.float32)})
        beat = tensor_pb2.Heartbeat(
            snapshot=snapshot(self.name, "edge"), devices=[snapshot(self.device)]
        )
        bodies: list[dict[str, Any]] = [
            {"report": signed},
            {"adapter": part},
            {"adapter": self._update("edge", num_bytes=64)},
            {"adapter": tensor_pb2.AdapterFrame(data=bytes(300), last=True)},
            {"heartbeat": beat},
            {"left": cloud_pb2.DeviceLeft(device=self.device, reason="gone", cause=2)},
            {"join": cloud_pb2.DeviceJoin(device=self.device)},
            {"failure": "no"},
        ]
        return [self.kind(**body).SerializeToString() for body in bodies]  # type: ignore[call-arg]


@cache
def _whole(kind: type[Message]) -> tuple[list[bytes], list[bytes]]:
    """Honest messages of one hop and direction, and of all."""
    all_ = whole_messages()
    return [data for of, data in all_ if of is kind], [data for _, data in all_]


def attack(session: Session, rng: random.Random, counts: Counts, depth: int) -> None:
    """Go `depth` steps honestly, then say one to six things that are not."""
    state, sent = "nothing", 0
    with contextlib.suppress(grpc.RpcError, AssertionError):  # refused on its way
        for number, state in enumerate(session.steps()):  # noqa: B007 - the last one counts
            if number == depth:
                break
    related, (kind, all_) = session.related(), _whole(session.kind)
    for _ in range(rng.randint(1, 6)):
        data = rng.choice(related if rng.random() < 0.7 else kind)
        if rng.random() < 0.9:
            data = mutated(data, rng, rng.choice(all_))
        say = session.peer.say_bytes if rng.random() < 0.95 else session.peer.say_unsealed
        say(data)
        sent += 1
    counts.note(sent, state, session.peer.finish(rng))


class Arena(Guarded):
    """Cloud, edge and two honest devices, with room for hostile ones."""

    def __init__(self, folder: Path) -> None:
        values = fleet(
            folder,
            2 + len(MALLORIES) + len(EDGES),
            run={
                "rounds": 1_000_000,
                "min_devices": 2,
                "edges": ["edge", *EDGES],
                "keep_round_adapters": False,
            },
            training={"local_steps": 2},
            evaluation={"every": 1000},
            aggregation={"strikes": 1_000_000_000},
            network={"join_timeout": 900.0, "join_grace": 0.5, "rejoin_timeout": 2.0},
        )
        super().__init__(folder, values)

    def named(self, name: str) -> OwnCertificate:
        """The certificate of one of the run's devices."""
        return load_own("tls", settings_in(self.certs / name, name), "device", name)

    def base(self) -> cloud_pb2.EdgeReady:
        """What an edge has to say of this run's model."""
        settings = load_run(self.config)
        folder = open_model(settings.model.path)
        manifest = build_manifest(folder, "causal_lm", 0, settings.lora)
        given = adapter_bytes(given_values(folder, manifest))
        return cloud_pb2.EdgeReady(manifest=manifest.to_json(), address="-", given=given)

    def round(self) -> int:
        """How far the honest devices are."""
        with contextlib.suppress(json.JSONDecodeError):
            return int(self.status().get("round", 0))
        return 0

    def memory(self) -> dict[str, int]:
        """Resident bytes of those that are attacked."""
        return {
            name: int(psutil.Process(process.pid).memory_info().rss)
            for name, process in (("cloud", self.cloud), ("edge", self.edge))
        }

    def problems(self) -> list[str]:
        """Honest processes that are gone, and words that no log may have."""
        gone = [
            f"{p.args} ended with {p.returncode}" for p in self.processes if p.poll() is not None
        ]
        said = [
            f"log of {name}: {words}"
            for name in ("cloud", "edge", "d0", "d1")
            for words in SAID
            if words in self.log(name)
        ]
        return gone + said


def edge_attackers(arena: Arena) -> list[Callable[[Caller], Session]]:
    """What makes a stream of each hostile device at the edge."""
    return [_device_maker(name, arena.named(name)) for name in MALLORIES]


def _device_maker(name: str, own: OwnCertificate) -> Callable[[Caller], Session]:
    return lambda peer: DeviceSession(peer, name, own)


def cloud_attackers(arena: Arena) -> list[Callable[[Caller], Session]]:
    """What makes a stream of each hostile edge at the cloud."""
    base, first = arena.base(), 2 + len(MALLORIES)
    return [
        _edge_maker(name, f"d{first + number}", arena.named(f"d{first + number}"), base)
        for number, name in enumerate(EDGES)
    ]


def _edge_maker(
    name: str, device: str, own: OwnCertificate, base: cloud_pb2.EdgeReady
) -> Callable[[Caller], Session]:
    return lambda peer: EdgeSession(peer, name, device, own, base)


def _channels(arena: Arena, kind: str) -> list[grpc.Channel]:
    if kind == "edge":
        owns = [arena.named(name) for name in MALLORIES]
        return [open_channel("e", arena.edge_address, False, own, "edge") for own in owns]
    owns = [arena.own("edge", name) for name in EDGES]
    return [open_channel("c", arena.address("cloud"), False, own, "cloud") for own in owns]


def storm(arena: Arena, kind: str, inputs: int, seed: int) -> Counts:
    """So many messages at the edge or the cloud, from two peers at once."""
    makers = (edge_attackers if kind == "edge" else cloud_attackers)(arena)
    channels, counts = _channels(arena, kind), Counts()

    def one(number: int) -> None:
        rng, make, channel = random.Random(seed * 2 + number), makers[number], channels[number]
        method = EDGE_SESSION if kind == "edge" else CLOUD_SESSION
        while counts.messages < inputs:
            attack(make(Caller(method, channel)), rng, counts, rng.choice((0, 1, 2, 2, 3, 4, 5, 6)))

    threads = [threading.Thread(target=one, args=(n,), daemon=True) for n in range(len(makers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for channel in channels:
        channel.close()
    return counts


def live(kind: str, inputs: int, seed: int, arena: Arena) -> tuple[str, list[str]]:
    """Attack one kind of node; a line of counts, and what is wrong."""
    began = time.monotonic()
    warm = storm(arena, kind, max(20, inputs // 10), seed)
    early, first = arena.memory(), arena.round()
    counts = storm(arena, kind, max(20, inputs - warm.messages), seed + 1)
    grown = {name: now - early[name] for name, now in arena.memory().items()}
    seen = arena.round()
    problems = arena.problems()
    with contextlib.suppress(AssertionError):
        until(lambda: problems or arena.round() > seen + 2, "further rounds")
    last = arena.round()
    if last <= max(first, seen):
        problems.append(f"the honest devices' rounds stopped at {last}")
    if hung := (warm.endings + counts.endings)["DEADLINE_EXCEEDED"]:
        problems.append(f"{hung} streams hung")
    problems += [f"{n} grew by {g / 1e6:.0f} MB" for n, g in grown.items() if g > FLAT[n]]
    total, endings = warm.messages + counts.messages, warm.endings + counts.endings
    depths = warm.depths + counts.depths
    line = (
        f"{kind}, live, seed {seed}: {total:,} messages on {depths.total():,} streams, "
        f"after {_told(depths)}; ended {_told(endings)}; {time.monotonic() - began:.0f} s, "
        f"round {first} to {last}, memory of "
        + ", ".join(f"{name} {g / 1e6:+.0f} MB" for name, g in grown.items())
    )
    return line, problems


def _told(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counter.most_common())


@contextlib.contextmanager
def arena() -> Iterator[Arena]:
    """A run with certificates whose honest devices train."""
    with tempfile.TemporaryDirectory() as folder:
        nodes = Arena(Path(folder))
        try:
            for number in range(2):
                nodes.device(number)
            until(lambda: nodes.problems() or nodes.round() > 1, "the first rounds")
            yield nodes
        finally:
            nodes.stop()
