"""The edge's door for devices: who may come in, and what becomes of a stream that ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from sfl.codec.kernel import kernel
from sfl.errors import LinkLost, NameInUse, ProtocolError, Refused, SflError
from sfl.metrics.stats import NodeStats
from sfl.node.text import plain
from sfl.rounds.values import Challenge, DeviceWelcome, Proof
from sfl.stage.training import TrainingSession
from sfl.transport.bulk.files import to_listing
from sfl.transport.bulk.probe_service import ProbeService
from sfl.transport.device.end import EdgeEnd
from sfl.transport.device.tensor_work import Coders
from sfl.transport.device.training import ALIVE, Goodbye, Host, Training
from sfl.transport.device.urgency import CodecThread
from sfl.transport.frames import contract, words
from sfl.transport.frames.wire import (
    EDGE_FETCH_FILE,
    EDGE_LIST_FILES,
    EDGE_PROBE,
    EDGE_SESSION,
    WIRE_VERSION,
    generic_handler,
)
from sfl.transport.group import GONE, first_message, run_together
from sfl.transport.security.doorkeeper import expect
from sfl.transport.status import LONGEST_DETAILS, status_of
from sfl.transport.stream import Context
from sfl.v1 import edge_pb2

log = logging.getLogger(__name__)

BEAT = 1.0
"""Seconds between two signs of life to a device that waits to be let in."""

PROOF_TIMEOUT = 30.0
"""Seconds that a device has for signing a challenge."""
Admission = tuple[DeviceWelcome, TrainingSession]


class EdgeService:
    """Serves devices; the host decides, this moves bytes.

    gRPC cancels the coroutine that serves a call once the client has hung up. What is owed when a
    device goes (its slots, word to the cloud, its session's memory) is therefore a task of its
    own, a parting; the name is free for a new stream once it is through.

    What delta coding remembers of samples lies under `cache_dir`.
    """

    def __init__(
        self, stats: NodeStats, opened: asyncio.Future[Any], cache_dir: Path | None = None
    ) -> None:
        """`opened` is a Host once there is a base: nobody is admitted before."""
        self._stats = stats
        self._host = opened
        self.cache_dir = cache_dir
        self.challenge: Challenge | None = None
        """What a device signs before it is let in, where the cloud asks for that."""
        self.coders = Coders(CodecThread("codec-encoder"), CodecThread("codec-decoder"))
        self.streams: dict[str, Training] = {}
        self._groups: dict[str, asyncio.Task[None]] = {}
        self._admissions: dict[str, asyncio.Task[Admission]] = {}
        self._asked: set[asyncio.Task[Admission]] = set()
        """Admissions whose answer the cloud still owes, those of devices that are gone too."""
        self._partings: dict[str, asyncio.Task[None]] = {}
        self._openings: set[asyncio.Task[Training]] = set()
        self._over: SflError | None = None
        self._turned_away: dict[str, SflError] = {}
        """Why devices were, for those that ask when the run is over and the cloud is gone."""
        self._probes = ProbeService()

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service, for `server.add_generic_rpc_handlers`."""
        behaviours: dict[Any, Callable[..., Any]] = {
            EDGE_SESSION: self._session,
            EDGE_LIST_FILES: self._list_files,
            EDGE_FETCH_FILE: self._fetch_file,
            EDGE_PROBE: self._probes.serve,
        }
        return generic_handler(EDGE_SESSION.service, behaviours)

    async def drain(self) -> None:
        """End what is open, once no call can come any more, and wait until all is given back."""
        for task in (*self._asked, *self._groups.values()):
            task.cancel()
        while self._admissions or self._groups or self._partings:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Stop the codec threads."""
        for thread in self.coders:
            thread.close()

    def finish(self, error: SflError) -> None:
        """From now on nobody comes in; who waits for that is told why."""
        self._over = error
        for opening in self._openings:
            opening.cancel()

    def turn_away(self, device: str, reason: SflError) -> None:
        """Close a device's stream, if it has one; once the run is over it still hears why."""
        self._turned_away[device] = reason
        self.evict(device, reason)

    def evict(self, device: str, error: SflError) -> None:
        """Close a device's stream with a status that says why."""
        stream, group = self.streams.get(device), self._groups.get(device)
        if stream is not None and group is not None:
            stream.ended = error
            group.cancel()

    async def _session(
        self, requests: AsyncIterator[edge_pb2.DeviceMessage], context: Context
    ) -> None:
        try:
            stream = await self._opened(requests, context)
        except SflError as error:
            await context.abort(status_of(error), str(error))
        except GONE:  # it hung up, and is told nothing any more
            return
        group = asyncio.create_task(run_together(*stream.coroutines(requests, context)))
        self.streams[stream.device], self._groups[stream.device] = stream, group
        self._stats.connected = len(self.streams)
        with contextlib.suppress(asyncio.CancelledError):  # the client hung up
            await asyncio.wait({group})
        reason: asyncio.Future[SflError] = asyncio.get_running_loop().create_future()
        self._part(stream.device, self._leave(stream, group, reason))
        # Not for what is given back: the compute thread may be busy until the server has stopped.
        ended = await reason
        if not isinstance(ended, Goodbye):
            await context.abort(status_of(ended), plain(str(ended), LONGEST_DETAILS))

    async def _opened(
        self, requests: AsyncIterator[edge_pb2.DeviceMessage], context: Context
    ) -> Training:
        """A new stream. Raises why the run is over, where that comes first."""
        hello = await self._hello(requests)
        if self._over is not None:
            raise self._turned_away.get(hello.device, self._over)
        opening = asyncio.create_task(self._open(hello, requests, context))
        self._openings.add(opening)
        opening.add_done_callback(self._openings.discard)
        try:
            return await opening
        except asyncio.CancelledError:
            if self._over is not None and opening.cancelled():
                raise self._turned_away.get(hello.device, self._over) from None
            raise

    def _part(self, device: str, parting: Coroutine[Any, Any, None]) -> None:
        """Have a device's parting go on, whoever waits for it."""
        task = self._partings[device] = asyncio.create_task(parting)

        def over(task: asyncio.Task[None]) -> None:
            if self._partings.get(device) is task:
                del self._partings[device]
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("this is a bug in sfl", exc_info=error)

        task.add_done_callback(over)

    async def _leave(
        self, stream: Training, group: asyncio.Task[None], why: asyncio.Future[SflError]
    ) -> None:
        """End a stream's coroutines, if they have not, say why it ended, and end all it holds."""
        group.cancel()
        (ended,) = await asyncio.gather(group, return_exceptions=True)
        # Cancelled: evicted, or the client hung up.
        gone = stream.ended or LinkLost("the stream broke")
        reason = ended if isinstance(ended, SflError) else gone
        if not why.done():  # else gRPC has given up on the call
            why.set_result(reason)
        del self.streams[stream.device], self._groups[stream.device]
        self._stats.connected = len(self.streams)
        try:
            await stream.abandon()
        finally:
            await stream.host.left(stream.device, reason)

    async def _withdraw(self, host: Host, device: str, admission: asyncio.Task[Admission]) -> None:
        """Have a device that never came in leave again, if the cloud has admitted it."""
        await asyncio.wait({admission})
        if not admission.cancelled() and not isinstance(admission.exception(), Refused):
            await host.left(device, LinkLost("it left before it was admitted"))

    async def _hello(self, requests: AsyncIterator[edge_pb2.DeviceMessage]) -> edge_pb2.DeviceHello:
        hello = (await first_message(requests, "hello")).hello
        contract.name("device", hello.device)
        if hello.wire_version != WIRE_VERSION:
            raise ProtocolError(
                f"device {hello.device!r} speaks wire version {hello.wire_version}, this edge "
                f"speaks {WIRE_VERSION}: install the same sfl on both"
            )
        expect("device", hello.device)
        return hello

    async def _proof(
        self, requests: AsyncIterator[edge_pb2.DeviceMessage], context: Context
    ) -> Proof:
        """The device's own word that it joins, where the cloud asks for it."""
        if self.challenge is None:
            return Proof()
        asked = words.to_challenge(self.challenge)
        await context.write(edge_pb2.EdgeMessage(challenge=asked))
        try:
            answer = await asyncio.wait_for(anext(aiter(requests), None), PROOF_TIMEOUT)
        except TimeoutError:
            raise LinkLost(f"no answer to a challenge within {PROOF_TIMEOUT:g} s") from None
        if not isinstance(answer, edge_pb2.DeviceMessage) or answer.WhichOneof("body") != "proof":
            raise ProtocolError("the answer to a challenge was expected")
        contract.sized("a proof", answer.proof, contract.MOST_BESIDE)
        return words.from_proof(answer.proof)

    async def _open(
        self,
        hello: edge_pb2.DeviceHello,
        requests: AsyncIterator[edge_pb2.DeviceMessage],
        context: Context,
    ) -> Training:
        """Have a device admitted, and welcome it; whatever stops that, it then leaves again."""
        device, stream = hello.device, None
        await _alive_until(self._host, context)
        host: Host = self._host.result()
        proof = await self._proof(requests, context)
        # One that is done is still there until its callback has had its turn on the loop, which
        # waiting for what is done would never give it.
        while (parting := self._partings.get(device)) is not None and not parting.done():
            await _alive_until(parting, context)
        self._supersede(device)
        admission = self._admissions[device] = asyncio.create_task(host.admit(device, proof))
        self._asked.add(admission)
        admission.add_done_callback(self._asked.discard)
        try:
            await _alive_until(admission, context)
            welcome, session = admission.result()
            welcome = replace(welcome, compiled_codec=kernel().name == "compiled")
            await context.write(edge_pb2.EdgeMessage(welcome=words.to_welcome(welcome)))
            self._turned_away.pop(device, None)
            phases = self._stats.phases
            settings = welcome.settings
            end = EdgeEnd(
                device, settings, phases, hello.compiled_codec, self.cache_dir, welcome.credits
            )
            end.allow(session.model.hidden_size, host.adapter_limit)
            stream = Training(device, session, settings, host, self.coders, end)
        finally:
            if stream is None:
                self._part(device, self._withdraw(host, device, admission))
            del self._admissions[device]
        return stream

    def _supersede(self, device: str) -> None:
        """A name that is in use is refused while its stream is alive, and taken over if not."""
        if device in self._admissions:
            raise NameInUse(f"a device named {device!r} is joining already; try again in a moment")
        old = self.streams.get(device)
        if old is None:
            return
        silent = time.monotonic() - old.last_heard
        if silent > 5 * old.settings.network.heartbeat_interval:
            self.evict(device, LinkLost("the device came back on a new stream"))
        raise NameInUse(f"a device named {device!r} is connected already; try again in a moment")

    def _host_of(self, device: str) -> Host:
        """What serves a device that has joined. Raises Refused for any other."""
        if device not in self.streams:
            raise Refused(f"device {device!r} has not joined")
        return self.streams[device].host

    async def _list_files(
        self, request: edge_pb2.FilesRequest, context: Context
    ) -> edge_pb2.FileList:
        try:
            expect("device", request.device)
            return to_listing(await self._host_of(request.device).files(request.device))
        except SflError as error:
            await context.abort(status_of(error), str(error))
            raise

    async def _fetch_file(
        self, request: edge_pb2.FileRequest, context: Context
    ) -> AsyncIterator[edge_pb2.FileChunk]:
        try:
            expect("device", request.device)
            host = self._host_of(request.device)
            pieces = host.read_file(request.device, request.name, request.offset)
            async for data in pieces:
                yield edge_pb2.FileChunk(data=data)
        except SflError as error:
            await context.abort(status_of(error), str(error))


async def _alive_until(task: asyncio.Future[Any], context: Context) -> None:
    """Wait for it, and let the device that waits for it hear that this edge lives."""
    while not task.done():
        done, _ = await asyncio.wait({task}, timeout=BEAT)
        if not done:
            await context.write(ALIVE)
