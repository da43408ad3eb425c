"""A device's stream to its edge while it serves: one question of a conversation at a time.

A stream that breaks ends every question that waits with LinkLost. Whoever asked then dials again,
and asks the same: the edge knows by a step's number whether it has answered it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import grpc.aio
import numpy as np

from sfl.codec.kernel import kernel
from sfl.errors import FellSilent, LinkLost, ProtocolError, SflError
from sfl.node.causes import cause_of
from sfl.node.certificates.own import OwnCertificate
from sfl.stage.serving.messages import Answer, Later, Opened, Opening, Step
from sfl.transport.dialling import nothing_known, wait_for_peer_aio
from sfl.transport.frames.chunks import AdapterAssembly, decode_adapter
from sfl.transport.frames.seal import sound
from sfl.transport.frames.wire import FETCH_ADAPTER, GENERATE, WIRE_VERSION, wire_bytes
from sfl.transport.group import GONE
from sfl.transport.inproc import Status
from sfl.transport.security.credentials import open_aio_channel
from sfl.transport.security.diagnosis import why_refused
from sfl.transport.serve.rows import RowCodec, serve_codec
from sfl.transport.serve.words import (
    Closed,
    Reply,
    ServedHere,
    from_ended,
    from_reply,
    from_welcome,
    to_open,
    to_step,
)
from sfl.transport.shaper import Shaper
from sfl.transport.status import error_of
from sfl.transport.stream import Silence
from sfl.v1 import serve_pb2, tensor_pb2

MOST_ADAPTER_BYTES = 1 << 30
Statistics = Callable[[], str]
"""What a device tells of itself with each heartbeat: a snapshot as JSON, or nothing."""


def _none() -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who dials: its name, its model (the digest of config.json), its rows' width, its tokens."""

    device: str
    model: str
    hidden_size: int
    vocab_size: int


@dataclass(slots=True)
class Traffic:
    """Bytes on the wire, with all that is around rows and tokens; and questions that were asked."""

    up: int = 0
    down: int = 0
    round_trips: int = 0


NewChannel = Callable[[], Any]


def edge_channel(
    address: str, insecure: bool, own: OwnCertificate | None = None, proxy: bool = False
) -> NewChannel:
    """What a device calls its edge by."""
    return partial(open_aio_channel, "device.edge", address, insecure, own, "edge", proxy)


async def dial(
    address: str,
    new_channel: NewChannel,
    caller: Caller,
    traffic: Traffic,
    patience: float,
    own: OwnCertificate | None = None,
    proxy: bool = False,
    shaper: Shaper | None = None,
    statistics: Statistics = _none,
) -> ServeLink:
    """Connect within `patience` seconds, and be let in. Raises PeerUnavailable, Refused."""
    channel = new_channel()
    peer = f"edge at {address}"
    why = nothing_known if proxy else partial(why_refused, address, "edge", own)
    opened: ServeLink | None = None
    try:
        if isinstance(channel, grpc.aio.Channel):
            await wait_for_peer_aio(channel, peer, patience, why)
        opened = link = ServeLink(channel, peer, caller, traffic, shaper, statistics=statistics)
        try:
            async with asyncio.timeout(patience):
                await link.welcomed()
        except TimeoutError:
            raise FellSilent(f"{peer}: no welcome within {patience:g} s") from None
    except BaseException:
        await (opened or channel).close()
        raise
    return link


class ServeLink:
    """An open stream. `here` is what the edge has said of itself, once it is `welcomed`."""

    def __init__(
        self,
        channel: Any,
        peer: str,
        caller: Caller,
        traffic: Traffic,
        shaper: Shaper | None = None,
        interval: float = 1.0,
        idle_timeout: float = 30.0,
        statistics: Statistics = _none,
    ) -> None:
        self.peer = peer
        self.traffic = traffic
        self._caller = caller
        self._channel = channel
        self._shaper = shaper
        self._statistics = statistics
        self._outbox: asyncio.Queue[tuple[float, serve_pb2.GenerateRequest] | None]
        self._outbox = asyncio.Queue()
        self._written = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._numbers: dict[str, int] = {}
        self._opened = 0
        self._silence = Silence()
        self._interval, self._idle_timeout = interval, idle_timeout
        self._ended: SflError | None = None
        self._here: asyncio.Future[ServedHere] = asyncio.get_running_loop().create_future()
        self._codec: RowCodec | None = None
        self._put(
            serve_pb2.GenerateRequest(
                hello=serve_pb2.ServeHello(
                    device=caller.device,
                    wire_version=WIRE_VERSION,
                    compiled_codec=kernel().name == "compiled",
                    model=caller.model,
                )
            )
        )
        self._call = GENERATE.stub(channel)(self._requests())
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._beat())]

    @property
    def here(self) -> ServedHere:
        """What the edge serves."""
        return self._here.result()

    @property
    def lost(self) -> SflError | None:
        """Why it is of no more use."""
        return self._ended

    async def welcomed(self) -> ServedHere:
        """Wait until the edge has let this device in. Raises SflError."""
        return await asyncio.shield(self._here)

    # -- questions --------------------------------------------------------------------------------

    def digest_of(self, adapter: str) -> str | None:
        """Which adapter of that name the edge serves; None where it serves none."""
        return dict(self.here.adapters).get(adapter)

    async def open(self, opening: Opening, digest: str = "") -> Opened | Later | Closed:
        """Begin a conversation, or go on with it; `digest` is that of this device's adapter.

        Raises LinkLost.
        """
        if (number := self._numbers.get(opening.name)) is None:
            self._opened += 1
            number = self._numbers[opening.name] = self._opened
        answer = await self._ask(number, to_open(number, opening, digest))
        if not isinstance(answer, Opened | Later | Closed):
            raise self._unexpected(answer)
        return answer

    async def step(self, step: Step) -> Answer | Closed:
        """What follows of a conversation that is open. Raises LinkLost."""
        number = self._numbers[step.name]
        assert self._codec is not None
        answer = await self._ask(number, to_step(number, step, self._codec))
        if isinstance(answer, Opened):
            raise self._unexpected(answer)
        if not isinstance(answer, Later | Closed) and answer.number != step.number:
            raise self._unexpected(answer)
        return answer

    def close_conversation(self, name: str) -> None:
        """It will not go on; its room is given back."""
        if (number := self._numbers.pop(name, None)) is not None and self._ended is None:
            self._put(serve_pb2.GenerateRequest(close=number))

    async def fetch_adapter(
        self, adapter: str, cut_layer: int, tail_layers: int, ends: bool
    ) -> tuple[dict[str, np.ndarray], float]:
        """This device's part of an adapter, and its scaling. Raises SflError."""
        request = serve_pb2.AdapterRequest(
            device=self._caller.device,
            adapter=adapter,
            cut_layer=cut_layer,
            tail_layers=tail_layers,
            ends=ends,
        )
        assembly = AdapterAssembly(MOST_ADAPTER_BYTES)
        try:
            async for part in FETCH_ADAPTER.stub(self._channel)(request):
                whole = assembly.add(sound(part, self.peer).frame)
                if whole is not None:
                    return decode_adapter(whole[1]), whole[0].scaling
        except grpc.RpcError as error:
            raise error_of(error, self.peer) from None
        raise LinkLost(f"{self.peer}: an adapter ended too early")

    async def close(self, reason: str = "done") -> None:
        """Say goodbye, and hang up."""
        if self._ended is None:
            self._put(serve_pb2.GenerateRequest(goodbye=reason))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await asyncio.wait({self._tasks[0]})
        self._end(LinkLost(f"{self.peer}: this device has hung up"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._written.wait()
        await self._channel.close()

    async def _ask(self, number: int, message: serve_pb2.GenerateRequest) -> Reply:
        """One question of a conversation at a time: one that was given up is answered before."""
        while (given_up := self._waiting.get(number)) is not None:
            await asyncio.wait({given_up})
        if self._ended is not None:
            raise self._ended
        waiting: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        self.traffic.round_trips += 1
        self._put(message)
        return await asyncio.shield(waiting)

    def _unexpected(self, answer: Reply) -> ProtocolError:
        return ProtocolError(f"{self.peer}: {type(answer).__name__} was not expected")

    # -- the stream -------------------------------------------------------------------------------

    def _put(self, message: serve_pb2.GenerateRequest) -> None:
        self.traffic.up += wire_bytes(message)
        arrives = 0.0
        if self._shaper is not None:
            _, arrives = self._shaper.admit(time.monotonic(), wire_bytes(message))
        self._outbox.put_nowait((arrives, message))

    async def _requests(self) -> AsyncIterator[serve_pb2.GenerateRequest]:
        """What gRPC writes; it has a task for that, which ends with the queue and by nothing else
        once the call is over."""
        try:
            while (waiting := await self._outbox.get()) is not None:
                arrives, message = waiting
                if arrives:
                    await asyncio.sleep(arrives - time.monotonic())
                yield message
        finally:
            self._written.set()

    async def _read(self) -> None:
        try:
            async for message in self._call:
                self._silence.heard()
                self._take(sound(message, self.peer))
            raise LinkLost(f"{self.peer} closed the stream")
        except asyncio.CancelledError:  # the call was, or this task
            self._end(LinkLost(f"{self.peer}: the call was cancelled"))
            raise
        except grpc.RpcError as error:
            self._end(error_of(error, self.peer))
        except GONE as error:
            # Raised where a write met a stream that the edge has ended: its status says why.
            self._end(await self._said(error))
        except SflError as error:
            self._end(error)
        except Exception as error:  # noqa: BLE001 - raised where each answer is awaited
            self._end(cause_of(error))

    async def _said(self, error: Exception) -> SflError:
        """Why the edge ended the stream, as far as it said so."""
        with contextlib.suppress(TimeoutError, asyncio.CancelledError, *GONE):
            async with asyncio.timeout(1.0):
                code, details = await self._call.code(), await self._call.details()
            if code is not grpc.StatusCode.OK:
                return error_of(Status(code, details or "").raised(), self.peer)
        return LinkLost(f"{self.peer}: {error}")

    def _take(self, message: serve_pb2.GenerateReply) -> None:
        self.traffic.down += wire_bytes(message)
        body = message.WhichOneof("body")
        if body == "heartbeat":
            return
        if body == "ended":
            raise from_ended(message.ended, self.peer)
        if body == "welcome" and not self._here.done():
            here = from_welcome(message.welcome)
            codec = serve_codec(here.codec, "the edge's codec.serve")
            self._codec = RowCodec(codec, self._caller.hidden_size)
            self._here.set_result(here)
            return
        if self._codec is None:
            raise ProtocolError(f"{self.peer}: {body} came before a welcome")
        number, reply = from_reply(message, self._codec, self._caller.vocab_size)
        if (waiting := self._waiting.pop(number, None)) is not None:  # else it was closed
            waiting.set_result(reply)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                self._silence.expect_bytes(self._idle_timeout, self.peer)
            except FellSilent as error:
                self._end(error)
                self._call.cancel()
                return
            if self._outbox.qsize() < 8:
                beat = tensor_pb2.Heartbeat(snapshot=self._statistics())
                self._put(serve_pb2.GenerateRequest(heartbeat=beat))

    def _end(self, error: SflError) -> None:
        """Nothing comes any more: whoever waits learns why."""
        if self._ended is None:
            self._outbox.put_nowait(None)
        self._ended = self._ended or error
        for waiting in self._waiting.values():
            waiting.set_exception(self._ended)
            waiting.exception()  # seen: perhaps nobody waits any more
        self._waiting.clear()
        if not self._here.done():
            self._here.set_exception(self._ended)
            self._here.exception()  # seen: who waits for the welcome hears of it
