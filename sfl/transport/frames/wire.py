"""The wire's constants, its methods, and which role each message's bytes are counted under."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from sfl.errors import SflError
from sfl.metrics.snapshot import Role
from sfl.transport.frames.envelope import Envelope, Frame
from sfl.transport.frames.seal import SEAL_BYTES, sound
from sfl.transport.status import status_of
from sfl.v1 import cloud_pb2, edge_pb2, jobs_pb2, serve_pb2, tensor_pb2

WIRE_VERSION = 10

Context = grpc.aio.ServicerContext[Any, Any]

FRAME_BYTES = (1 << 20) - (1 << 12)
"""Payload of a frame; with its envelope a message stays within gRPC's sweet spot of 1 MiB."""

BASE_UPDATE = "stack"
"""The `side` of an adapter that is no device's: what is to be added to the base, of `round`."""

MOMENTS = "moments"
"""The `side` of what is no adapter: moments of blocks that change sides as `round` begins."""

KEEPALIVE = 60.0
"""Seconds of silence after which either end of a connection asks whether the other is there. Twice
as long it waits for the answer, which may stand behind megabytes on a slow link. A half-open
connection is thus given up after three minutes, whatever waits on it; what sends heartbeats knows
much earlier (`idle_timeout`)."""

ATTEMPT = 20.0
"""Seconds that one attempt to connect may take: three round trips with TLS, and a busy peer."""

_BOTH: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.max_send_message_length", 8 << 20),
    ("grpc.keepalive_time_ms", int(KEEPALIVE * 1000)),
    ("grpc.keepalive_timeout_ms", int(2 * KEEPALIVE * 1000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.ping_timeout_ms", int(2 * KEEPALIVE * 1000)),
)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *_BOTH,
    # Two servers must not share a port unnoticed, as SO_REUSEPORT would let them.
    ("grpc.so_reuseport", 0),
    # Twice as often as a client of ours asks is no offence; it would be by gRPC's own five minutes.
    ("grpc.http2.min_ping_interval_without_data_ms", int(KEEPALIVE * 500)),
)

CLIENT_OPTIONS: tuple[tuple[str, int], ...] = (
    *_BOTH,
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # In spite of its name the time-out of one attempt, not the pause before the next.
    ("grpc.min_reconnect_backoff_ms", int(ATTEMPT * 1000)),
    ("grpc.enable_retries", 0),
    # Each channel has its own connection: a new one to an address must not share a dead one's.
    ("grpc.use_local_subchannel_pool", 1),
)


def client_options(proxy: bool = False) -> tuple[tuple[str, int], ...]:
    """Of a channel; `proxy`: it may go through the proxy that the environment names."""
    return (*CLIENT_OPTIONS, ("grpc.enable_http_proxy", int(proxy)))


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC of the contract: its path and the types on both of its ends."""

    service: str
    name: str
    request: type[Message]
    response: type[Message]
    streams: tuple[bool, bool]
    tensor_fields: tuple[int, int] = (0, 0)
    """Where request and response hold a TensorFrame, which is then handled without copies."""

    @property
    def path(self) -> str:
        """Path of the method on the wire."""
        return f"/{self.service}/{self.name}"

    def handler(self, behaviour: Callable[..., Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """A server's handler of this method."""
        make = {
            (True, True): grpc.stream_stream_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (False, False): grpc.unary_unary_rpc_method_handler,
        }[self.streams]
        return make(self._sound(behaviour), self._codec(0)[1], self._codec(1)[0])

    def response_bytes(self, response: Any) -> bytes:
        """A response as it travels, for a thread that is not the event loop's."""
        return self._codec(1)[0](response)

    def request_bytes(self, request: Any) -> bytes:
        """A request as it travels, as above."""
        return self._codec(0)[0](request)

    def carried(self, message: Any, direction: int) -> Any:
        """A request (0) or a response (1) as it comes out at the other end of a connection."""
        serialize, parse = self._codec(direction)
        return sound(parse(serialize(message)), self.path)

    def _codec(self, direction: int) -> tuple[Callable[..., bytes], Callable[[bytes], Any]]:
        """Serialiser and parser of requests (0) or responses (1)."""
        kind, field = (self.request, self.response)[direction], self.tensor_fields[direction]
        envelope = Envelope(kind, field)
        return envelope.serialize, envelope.parse

    def _sound(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        """The behaviour, which only sound requests reach."""
        if not (iscoroutinefunction(behaviour) or isasyncgenfunction(behaviour)):
            return self._sound_on_threads(behaviour)
        if self.streams[0]:

            async def session(requests: AsyncIterator[Any], context: Context) -> None:
                await behaviour(_sound_requests(requests), context)

            return session
        if self.streams[1]:

            async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
                await _refuse_unsound(request, context)
                async for response in behaviour(request, context):
                    yield response

            return stream

        async def answer(request: Any, context: Context) -> Any:
            await _refuse_unsound(request, context)
            return await behaviour(request, context)

        return answer

    def _sound_on_threads(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        """The same for a server without an event loop."""
        if self.streams[0]:
            return lambda requests, context: behaviour(map(sound, requests), context)
        return lambda request, context: behaviour(sound(request), context)

    def stub(self, channel: Any) -> Callable[..., Any]:
        """A client's callable of this method, on a sync or an aio channel.

        What it answers is to go through `sound`.
        """
        kinds = {
            (True, True): "stream_stream",
            (False, True): "unary_stream",
            (False, False): "unary_unary",
        }
        stub: Callable[..., Any] = getattr(channel, kinds[self.streams])(
            self.path,
            request_serializer=self._codec(0)[0],
            response_deserializer=self._codec(1)[1],
        )
        return stub


async def _sound_requests(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield sound(request)


async def _refuse_unsound(request: Any, context: Context) -> None:
    try:
        sound(request)
    except SflError as error:
        await context.abort(status_of(error), str(error))


EDGE_SESSION = Method(
    "sfl.v1.Edge",
    "Session",
    edge_pb2.DeviceMessage,
    edge_pb2.EdgeMessage,
    (True, True),
    (edge_pb2.DeviceMessage.TENSOR_FIELD_NUMBER, edge_pb2.EdgeMessage.TENSOR_FIELD_NUMBER),
)
STAGE_SESSION = Method(
    "sfl.v1.Stage",
    "Session",
    edge_pb2.DeviceMessage,
    edge_pb2.EdgeMessage,
    (True, True),
    EDGE_SESSION.tensor_fields,
)
"""The same messages as between a device and its edge, whose server has a server before it."""
STAGE_END = Method("sfl.v1.Stage", "End", edge_pb2.Finish, edge_pb2.Heard, (False, False))
EDGE_LIST_FILES = Method(
    "sfl.v1.Edge", "ListFiles", edge_pb2.FilesRequest, edge_pb2.FileList, (False, False)
)
EDGE_FETCH_FILE = Method(
    "sfl.v1.Edge", "FetchFile", edge_pb2.FileRequest, edge_pb2.FileChunk, (False, True)
)
EDGE_PROBE = Method(
    "sfl.v1.Edge", "Probe", edge_pb2.ProbeRequest, edge_pb2.ProbeReply, (True, True)
)
GENERATE = Method(
    "sfl.v1.Serve", "Generate", serve_pb2.GenerateRequest, serve_pb2.GenerateReply, (True, True)
)
FETCH_ADAPTER = Method(
    "sfl.v1.Serve", "FetchAdapter", serve_pb2.AdapterRequest, serve_pb2.AdapterPart, (False, True)
)
SERVE_LIST_FILES = Method(
    "sfl.v1.Serve", "ListFiles", edge_pb2.FilesRequest, edge_pb2.FileList, (False, False)
)
SERVE_FETCH_FILE = Method(
    "sfl.v1.Serve", "FetchFile", edge_pb2.FileRequest, edge_pb2.FileChunk, (False, True)
)
CLOUD_SESSION = Method(
    "sfl.v1.Cloud", "Session", cloud_pb2.EdgeReportMessage, cloud_pb2.CloudMessage, (True, True)
)
ATTACH = Method(
    "sfl.v1.Agents", "Attach", jobs_pb2.AgentMessage, jobs_pb2.ServiceMessage, (True, True)
)
SUBMIT = Method("sfl.v1.Jobs", "Submit", jobs_pb2.SubmitRequest, jobs_pb2.Submitted, (False, False))
LIST = Method("sfl.v1.Jobs", "List", jobs_pb2.ListRequest, jobs_pb2.RunList, (False, False))
STATUS = Method("sfl.v1.Jobs", "Status", jobs_pb2.RunRequest, jobs_pb2.Standing, (False, False))
WATCH = Method("sfl.v1.Jobs", "Watch", jobs_pb2.RunRequest, jobs_pb2.Standing, (False, True))
LOGS = Method("sfl.v1.Jobs", "Logs", jobs_pb2.LogsRequest, jobs_pb2.LogChunk, (False, True))
STOP = Method("sfl.v1.Jobs", "Stop", jobs_pb2.StopRequest, jobs_pb2.Standing, (False, False))
JOB_METHODS = (SUBMIT, LIST, STATUS, WATCH, LOGS, STOP)


def generic_handler(
    service: str, behaviours: dict[Method, Callable[..., Any]]
) -> grpc.GenericRpcHandler[Any, Any]:
    """All methods of one service, for `server.add_generic_rpc_handlers`."""
    handlers = {method.name: method.handler(behaviour) for method, behaviour in behaviours.items()}
    return grpc.method_handlers_generic_handler(service, handlers)


TRAINING_ROLES: dict[int, Role] = {
    tensor_pb2.TENSOR_KIND_ACTIVATION: "activation",
    tensor_pb2.TENSOR_KIND_GRADIENT: "gradient",
}


def wire_bytes(message: Message | Frame) -> int:
    """Bytes of a message on the wire."""
    return message.wire_bytes if isinstance(message, Frame) else message.ByteSize() + SEAL_BYTES


def tensor_role(header: tensor_pb2.TensorHeader) -> Role:
    """What a tensor's bytes count as; everything of an evaluation counts as that."""
    if header.purpose == tensor_pb2.PURPOSE_EVALUATION:
        return "evaluation"
    return TRAINING_ROLES.get(header.kind, "control")
