"""Peers written by hand that say whatever a test wants: a device, an edge, an edge's server."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc

from sfl.adapters.manifest import AdapterManifest, ParameterSpec
from sfl.config import RunSettings
from sfl.metrics.snapshot import NodeKind
from sfl.metrics.stats import NodeStats
from sfl.models.folder import open_model
from sfl.node.certificates.own import OwnCertificate
from sfl.transport.frames.chunks import adapter_bytes
from sfl.transport.frames.seal import seal
from sfl.transport.frames.wire import (
    CLOUD_SESSION,
    EDGE_FETCH_FILE,
    EDGE_LIST_FILES,
    EDGE_SESSION,
    WIRE_VERSION,
    Method,
)
from sfl.transport.security.credentials import open_channel
from sfl.v1 import cloud_pb2, edge_pb2

Raw = bytes


def snapshot(name: str, kind: NodeKind = "device") -> str:
    """Statistics as an honest node tells them."""
    return NodeStats(name, kind).snapshot().to_json()


class Peer:
    """One stream to a server; `say` a message, or `say_bytes` that may be none."""

    def __init__(self, method: Method, channel: grpc.Channel, timeout: float | None = None) -> None:
        self._method = method
        self._channel = channel
        self._out: queue.SimpleQueue[Raw | None] = queue.SimpleQueue()
        self.call: Any = channel.stream_stream(method.path, None, method._codec(1)[1])(
            iter(self._out.get, None), timeout=timeout
        )

    def say(self, **body: Any) -> None:
        """A message with that body."""
        self.say_bytes(self._method.request(**body).SerializeToString())

    def say_bytes(self, data: Raw) -> None:
        """Whatever these bytes are, with a checksum that fits."""
        self.say_unsealed(seal(data))

    def say_unsealed(self, data: Raw) -> None:
        """Whatever these bytes are."""
        self._out.put(data)

    def hear(self, body: str) -> Any:
        """The next answer with that body; others are passed over."""
        for message in self.call:
            if message.WhichOneof("body") == body:
                return getattr(message, body)
        raise AssertionError(f"no {body} came")

    def ending(self) -> tuple[grpc.StatusCode, str]:
        """How the server closed the stream."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as error:
            return error.code(), error.details()
        finally:
            self.close()
        raise AssertionError("the stream was closed without a reason")

    def close(self) -> None:
        """Hang up."""
        self._out.put(None)
        self._channel.close()


class Device(Peer):
    """A device of a run, at its edge."""

    def __init__(self, address: str, name: str, own: OwnCertificate | None = None) -> None:
        super().__init__(EDGE_SESSION, open_channel("device.edge", address, False, own, "edge"))
        self.name = name

    def hello(self) -> Device:
        """Say who this is."""
        self.say(hello=edge_pb2.DeviceHello(device=self.name, wire_version=WIRE_VERSION))
        return self

    def join(self) -> Device:
        """As far as being taken in."""
        self.hello().hear("welcome")
        return self

    def ready(self, **fields: Any) -> Device:
        """Have data; `fields` go before an honest device's."""
        honest = {"num_examples": 8, "num_eval_examples": 2, "snapshot": snapshot(self.name)}
        self.say(ready=edge_pb2.DeviceReady(**{**honest, **fields}))
        return self


MANIFEST = AdapterManifest((ParameterSpec("m.lora_A.weight", (2, 4), "kaiming", 4),), 3, {})
"""A model's that only a hostile edge has."""


class Edge(Peer):
    """An edge of a run, at the cloud."""

    def __init__(self, address: str, name: str, own: OwnCertificate | None = None) -> None:
        super().__init__(CLOUD_SESSION, open_channel("edge.cloud", address, False, own, "cloud"))
        self.name = name

    def join(self, manifest: str | None = None) -> Edge:
        """As far as having a base: the run's, unless `manifest` says something else."""
        self.say(hello=cloud_pb2.EdgeHello(edge=self.name, wire_version=WIRE_VERSION))
        settings = RunSettings.model_validate_json(self.hear("settings").settings)
        ready = base_of(settings) if manifest is None else None
        self.say(ready=ready or cloud_pb2.EdgeReady(manifest=manifest, given=GIVEN))
        return self

    def bring(self, device: str) -> None:
        """Have a device admitted."""
        self.say(join=cloud_pb2.DeviceJoin(device=device))
        self.hear("admission")


def base_of(settings: RunSettings) -> cloud_pb2.EdgeReady:
    """What an honest edge says of the run's model."""
    from sfl.adapters.lora import build_manifest, given_values

    folder = open_model(settings.model.path)
    labels = len(settings.model.labels)
    manifest = build_manifest(folder, settings.model.task, labels, settings.lora)
    given = adapter_bytes(given_values(folder, manifest))
    return cloud_pb2.EdgeReady(manifest=manifest.to_json(), address="-", given=given)


def _no_tensors() -> bytes:
    import safetensors.numpy

    content: bytes = safetensors.numpy.save({})
    return content


GIVEN = _no_tensors()


@contextmanager
def edge_server(
    session: Callable[[Iterator[Any]], Iterator[Raw]],
    files: Callable[[], Raw] = lambda: b"",
    chunks: Callable[[], Iterator[Raw]] = lambda: iter(()),
) -> Iterator[str]:
    """An edge that answers with these bytes under their checksum; its address.

    `session` gets what a device says, as it came.
    """
    server = grpc.server(futures.ThreadPoolExecutor(4))
    handlers = {
        EDGE_SESSION.name: grpc.stream_stream_rpc_method_handler(
            lambda requests, context: map(seal, session(requests)), None, None
        ),
        EDGE_LIST_FILES.name: grpc.unary_unary_rpc_method_handler(
            lambda request, context: seal(files()), None, None
        ),
        EDGE_FETCH_FILE.name: grpc.unary_stream_rpc_method_handler(
            lambda request, context: map(seal, chunks()), None, None
        ),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(EDGE_SESSION.service, handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
