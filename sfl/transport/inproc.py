"""Services and their callers in one process: what gRPC does between them, without a socket.

A call's messages become the bytes that a socket would carry, and are read from them at its other
end. All servers live on one event loop; a caller is on that loop, or on a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
import grpc.aio

log = logging.getLogger(__name__)

READY = grpc.ChannelConnectivity.READY


class Status(NamedTuple):
    """How a call ended."""

    code: grpc.StatusCode
    details: str = ""

    def raised(self) -> grpc.aio.AioRpcError:
        """The error that a caller gets, of either API."""
        nothing = grpc.aio.Metadata()
        return grpc.aio.AioRpcError(self.code, nothing, nothing, self.details, None)


CUT = Status(grpc.StatusCode.UNAVAILABLE, "the link was cut")
CANCELLED = Status(grpc.StatusCode.CANCELLED, "the caller hung up")
CLOSED = Status(grpc.StatusCode.UNAVAILABLE, "the server has stopped")
EXPIRED = Status(grpc.StatusCode.DEADLINE_EXCEEDED, "the call took longer than it may")
ABSENT = Status(grpc.StatusCode.UNAVAILABLE, "nobody listens there")

Answered = Callable[[bytes | Status], None]


class Services:
    """Who serves what in this process, by address. To be made on the event loop of all servers."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._servers: dict[str, Server] = {}
        self._lock = threading.Lock()

    def serve(self, address: str, *handlers: grpc.GenericRpcHandler[Any, Any]) -> None:
        """Answer calls to `address` from now on; each in a copy of the caller's context."""
        with self._lock:
            self._servers[address] = Server(handlers, contextvars.copy_context())

    def stop(self, address: str) -> None:
        """Answer no more calls to `address`, and end those that are open."""
        with self._lock:
            server = self._servers.pop(address, None)
        for call in [] if server is None else list(server.open):
            call.end(CLOSED)

    def is_there(self, address: str) -> bool:
        """Whether anybody answers there."""
        return address in self._servers

    def call(
        self, address: str, path: str, answered: Answered, timeout: float | None = None
    ) -> Serving | None:
        """Begin a call of `timeout` seconds at most; `answered` gets what comes of it.

        None: nobody listens there.
        """
        server = self._servers.get(address)
        if server is None or (handler := server.handler(path)) is None:
            answered(ABSENT)
            return None
        serving = Serving(handler, self.loop, answered, server)
        server.open.add(serving)
        self.loop.call_soon_threadsafe(serving.begin, server.context.copy(), timeout)
        return serving

    def channel(self, address: str) -> Channel:
        """A caller's end, for threads."""
        return Channel(self, address)

    def aio_channel(self, address: str) -> AioChannel:
        """A caller's end, for the event loop."""
        return AioChannel(self, address)


class Called(NamedTuple):
    """What a handler is asked for."""

    method: str
    invocation_metadata: tuple[()] = ()


@dataclass(slots=True)
class Server:
    """What answers at one address."""

    handlers: tuple[grpc.GenericRpcHandler[Any, Any], ...]
    context: contextvars.Context
    open: set[Serving] = field(default_factory=set)

    def handler(self, path: str) -> grpc.RpcMethodHandler[Any, Any] | None:
        """What answers a method."""
        found = (handler.service(Called(path)) for handler in self.handlers)  # type: ignore[arg-type]
        return next((handler for handler in found if handler is not None), None)


class Serving:
    """The server's side of one call: its requests, and the context that a servicer gets."""

    def __init__(
        self,
        handler: grpc.RpcMethodHandler[Any, Any],
        loop: asyncio.AbstractEventLoop,
        answered: Answered,
        server: Server,
    ) -> None:
        self._handler: Any = handler
        self._loop = loop
        self._answered = answered
        self._server = server
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self._said: Status | None = None

    # -- the caller's, on any thread --------------------------------------------------------------

    def put(self, request: bytes | None) -> None:
        """Hand a request over; None: there are no more."""
        self._loop.call_soon_threadsafe(self._requests.put_nowait, request)

    def end(self, how: Status) -> None:
        """End the call: the caller learns how, and the servicer is cancelled."""
        self._answer(how)
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _answer(self, answer: bytes | Status) -> None:
        if self._ended:
            return
        if isinstance(answer, Status):
            self._ended = True
            self._server.open.discard(self)
        self._answered(answer)

    # -- the servicer's, on the event loop --------------------------------------------------------

    def begin(self, context: contextvars.Context, timeout: float | None) -> None:
        """Have the call served; after `timeout` seconds it ends."""
        if self._ended:
            return
        self._task = self._loop.create_task(self._serve(), context=context)
        if timeout is not None:
            timer = self._loop.call_later(timeout, self.end, EXPIRED)
            self._task.add_done_callback(lambda _: timer.cancel())

    async def _serve(self) -> None:
        try:
            await self._behave()
            self._answer(Status(grpc.StatusCode.OK))
        except asyncio.CancelledError:
            self._answer(CANCELLED)
        except grpc.aio.AbortError:
            self._answer(self._said or CANCELLED)
        except Exception as error:
            log.exception("a call was not served")
            self._answer(Status(grpc.StatusCode.UNKNOWN, str(error)))

    async def _behave(self) -> None:
        handler = self._handler
        if handler.request_streaming:
            await handler.stream_stream(self, self)
            return
        request = await anext(self)
        if handler.response_streaming:
            async for response in handler.unary_stream(request, self):
                await self.write(response)
        else:
            await self.write(await handler.unary_unary(request, self))

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        request = await self._requests.get()
        if request is None:
            self._requests.put_nowait(None)
            raise StopAsyncIteration
        return self._handler.request_deserializer(request)

    async def write(self, message: Any) -> None:
        """Send a response. Raises UsageError where the caller has hung up."""
        if self._ended:
            raise grpc.aio.UsageError("the call is over")
        self._answer(self._handler.response_serializer(message))

    async def abort(self, code: grpc.StatusCode, details: str = "", _: Any = ()) -> None:
        """End the call with a status. Raises AbortError."""
        self._said = Status(code, details)
        raise grpc.aio.AbortError(details)


class Channel:
    """What threads call services by: as much of `grpc.Channel` as this project uses."""

    def __init__(self, services: Services, address: str) -> None:
        self._services = services
        self._address = address
        self._calls: list[Call] = []

    def stream_stream(
        self, path: str, request_serializer: Any, response_deserializer: Any
    ) -> Callable[..., Call]:
        """A method's callable: an iterator of requests in, one of responses out."""

        def begin(requests: Iterator[Any], timeout: float | None = None) -> Call:
            call = Call(self._services, self._address, path, response_deserializer, timeout)
            self._calls.append(call)
            threading.Thread(
                target=call.feed, args=(requests, request_serializer), name="inproc", daemon=True
            ).start()
            return call

        return begin

    def unary_stream(
        self, path: str, request_serializer: Any, response_deserializer: Any
    ) -> Callable[..., Call]:
        """A method's callable: one request in, an iterator of responses out."""

        def begin(request: Any, timeout: float | None = None) -> Call:
            call = Call(self._services, self._address, path, response_deserializer, timeout)
            self._calls.append(call)
            call.feed([request], request_serializer)
            return call

        return begin

    def unary_unary(
        self, path: str, request_serializer: Any, response_deserializer: Any
    ) -> Callable[..., Any]:
        """A method's callable: one request in, its response out."""
        begin = self.unary_stream(path, request_serializer, response_deserializer)
        return lambda request, timeout=None: next(begin(request, timeout))

    def cut(self) -> None:
        """End what is open as a broken cable does: neither side has said a word."""
        for call in self._calls:
            call.end(CUT)

    def close(self) -> None:
        """Hang up."""
        for call in self._calls:
            call.cancel()


class Call:
    """A caller's side of one call, for threads."""

    def __init__(
        self,
        services: Services,
        address: str,
        path: str,
        parse: Any,
        timeout: float | None,
    ) -> None:
        self._parse = parse
        self._answers: queue.SimpleQueue[bytes | Status] = queue.SimpleQueue()
        self._over = threading.Event()
        self._serving = services.call(address, path, self._take, timeout)

    def _take(self, answer: bytes | Status) -> None:
        self._answers.put(answer)
        if isinstance(answer, Status):
            self._over.set()

    def feed(self, requests: Any, serialize: Callable[[Any], bytes]) -> None:
        """Send requests, as long as there are any."""
        for request in requests:
            if self._serving is None or self._over.is_set():
                return
            self._serving.put(serialize(request))
        if self._serving is not None:
            self._serving.put(None)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        answer = self._answers.get()
        if not isinstance(answer, Status):
            return self._parse(answer)
        self._answers.put(answer)  # for who asks again
        if answer.code is grpc.StatusCode.OK:
            raise StopIteration
        raise answer.raised()

    def is_active(self) -> bool:
        """Whether it has not ended."""
        return not self._over.is_set()

    def cancel(self) -> None:
        """Hang up."""
        self.end(CANCELLED)

    def end(self, how: Status) -> None:
        """End the call, on both sides."""
        if self._serving is not None and self.is_active():
            self._serving.end(how)


class AioChannel:
    """What an event loop calls services by: as much of `grpc.aio.Channel` as this project uses."""

    def __init__(self, services: Services, address: str) -> None:
        self._services = services
        self._address = address
        self._calls: list[AioCall] = []

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Whether somebody answers."""
        there = self._services.is_there(self._address)
        return READY if there else grpc.ChannelConnectivity.IDLE

    def stream_stream(
        self, path: str, request_serializer: Any, response_deserializer: Any
    ) -> Callable[..., AioCall]:
        """A method's callable: an iterator of requests in, one of responses out."""

        def begin(requests: AsyncIterator[Any]) -> AioCall:
            call = AioCall(self._services, self._address, path, response_deserializer)
            self._calls.append(call)
            call.feeding = asyncio.create_task(call.feed(requests, request_serializer))
            return call

        return begin

    def unary_unary(
        self, path: str, request_serializer: Any, response_deserializer: Any
    ) -> Callable[..., Awaitable[Any]]:
        """A method's callable: one request in, its response out."""

        async def call(request: Any, timeout: float | None = None) -> Any:
            async def one() -> AsyncIterator[Any]:
                yield request

            begun = AioCall(self._services, self._address, path, response_deserializer)
            self._calls.append(begun)
            begun.feeding = asyncio.create_task(begun.feed(one(), request_serializer))
            return await anext(aiter(begun))

        return call

    def cut(self) -> None:
        """End what is open as a broken cable does: neither side has said a word."""
        for call in self._calls:
            call.end(CUT)

    async def close(self, grace: float | None = None) -> None:
        """Give open calls `grace` seconds to end by themselves, and hang up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace or 0):
                for call in self._calls:
                    await call.over.wait()
        for call in self._calls:
            call.cancel()


class AioCall:
    """A caller's side of one call, for the event loop."""

    def __init__(self, services: Services, address: str, path: str, parse: Any) -> None:
        self._parse = parse
        self._answers: asyncio.Queue[bytes | Status] = asyncio.Queue()
        self.feeding: asyncio.Task[None] | None = None
        self.over = asyncio.Event()
        self._serving = services.call(address, path, self._take)

    def _take(self, answer: bytes | Status) -> None:
        self._answers.put_nowait(answer)
        if isinstance(answer, Status):
            self.over.set()

    async def feed(self, requests: AsyncIterator[Any], serialize: Callable[[Any], bytes]) -> None:
        """Send requests, as long as there are any."""
        if self._serving is None:
            return
        async for request in requests:
            self._serving.put(serialize(request))
        self._serving.put(None)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        answer = await self._answers.get()
        if not isinstance(answer, Status):
            return self._parse(answer)
        self._answers.put_nowait(answer)
        if answer.code is grpc.StatusCode.OK:
            raise StopAsyncIteration
        raise answer.raised()

    def cancel(self) -> None:
        """Hang up."""
        self.end(CANCELLED)

    def end(self, how: Status) -> None:
        """End the call, on both sides."""
        if self.feeding is not None:
            self.feeding.cancel()
        if self._serving is not None:
            self._serving.end(how)
