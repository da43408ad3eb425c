"""How a device comes in at an edge: hello, its signature, the cloud's admission, a welcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic

from sfl.codec.kernel import kernel
from sfl.errors import LinkLost, NameInUse, ProtocolError, Refused
from sfl.metrics.stats import NodeStats
from sfl.rounds.values import Challenge, Proof, RoundTrips
from sfl.stage.snapshots import SharedShelf, Snapshots
from sfl.transport.device.cleanups import Cleanups
from sfl.transport.device.connected import CAME_BACK, Connected
from sfl.transport.device.end import EdgeEnd
from sfl.transport.device.served import ALIVE, Admitted, Door, V
from sfl.transport.device.tensor_work import Coders
from sfl.transport.frames import contract, words
from sfl.transport.frames.whereabouts import from_round_trips
from sfl.transport.frames.wire import WIRE_VERSION
from sfl.transport.group import first_message
from sfl.transport.security.doorkeeper import expect
from sfl.transport.stream import Context
from sfl.v1 import edge_pb2

BEAT = 1.0
"""Seconds between two signs of life to a device that waits to be let in."""

PROOF_TIMEOUT = 30.0
"""Seconds that a device has for signing a challenge."""
Requests = AsyncIterator[edge_pb2.DeviceMessage]


class Entrance(Generic[V]):
    """Lets devices in, one stream for each name."""

    def __init__(
        self,
        stats: NodeStats,
        opened: asyncio.Future[Any],
        coders: Coders,
        connected: Connected[V],
        cleanups: Cleanups,
        cache_dir: Path | None,
        shared: SharedShelf | None = None,
    ) -> None:
        """`opened` is a Door once there is a base: nobody is admitted before.

        What is kept of a device of a run is kept in a `shared` place, too.
        """
        self.challenge: Challenge | None = None
        """What a device signs before it is let in, where the cloud asks for that."""
        self.cache_dir = cache_dir
        self._shared = shared
        self._stats = stats
        self._host = opened
        self._coders = coders
        self._connected = connected
        self._cleanups = cleanups
        self._admissions: dict[str, asyncio.Task[Admitted[V]]] = {}
        self._incarnations: dict[str, bytes] = {}
        """Of the process that each device's last stream was of."""
        self._asked: set[asyncio.Task[Admitted[V]]] = set()
        """Admissions that the cloud has not answered yet, those of devices that are gone too."""

    @property
    def busy(self) -> bool:
        """Whether somebody is being let in."""
        return bool(self._admissions)

    def cancel(self) -> None:
        """Wait for no answer of the cloud any more."""
        for task in self._asked:
            task.cancel()

    async def open(self, hello: edge_pb2.DeviceHello, requests: Requests, context: Context) -> V:
        """Have a device admitted, and welcome it; whatever stops that, it then leaves again."""
        device, stream = hello.device, None
        await _alive_until(self._host, context)
        host: Door[V] = self._host.result()
        proof = await self._proof(requests, context)
        await self._succeeds(hello, context)
        while (cleanup := self._cleanups.pending(device)) is not None:
            await _alive_until(cleanup, context)
        trips = from_round_trips(hello.round_trips)
        admission = self._ask(host, device, proof, trips)
        try:
            await _alive_until(admission, context)
            admitted = admission.result()
            welcome = replace(admitted.welcome, compiled_codec=kernel().name == "compiled")
            # What it has snapshots of is read there.
            end = await asyncio.to_thread(self._end, hello, host, admitted)
            stream = admitted.serve(self._coders, end)
            # By the stream itself, once it counts as open: a device that has its welcome may ask
            # for files at once.
            stream.stream.outbox.put(edge_pb2.EdgeMessage(welcome=words.to_welcome(welcome)))
            self._incarnations[device] = hello.incarnation
        finally:
            if stream is None:
                self._cleanups.start(device, _withdraw(host, device, admission))
            del self._admissions[device]
        return stream

    async def _succeeds(self, hello: edge_pb2.DeviceHello, context: Context) -> None:
        """End an older stream of the same process: it has given that up, or it would not dial."""
        device = hello.device
        if not hello.incarnation or self._incarnations.get(device) != hello.incarnation:
            return
        if (old := self._connected.end(device, LinkLost(CAME_BACK))) is not None:
            await _alive_until(old, context)

    def _ask(
        self, host: Door[V], device: str, proof: Proof, trips: RoundTrips
    ) -> asyncio.Task[Admitted[V]]:
        """Ask the cloud. A name that is in use is refused while its stream is alive."""
        if device in self._admissions:
            raise NameInUse(f"a device named {device!r} is joining already; try again in a moment")
        self._connected.supersede(device)
        admission = self._admissions[device] = asyncio.create_task(host.admit(device, proof, trips))
        self._asked.add(admission)
        admission.add_done_callback(self._asked.discard)
        return admission

    def _end(self, hello: edge_pb2.DeviceHello, host: Door[V], admitted: Admitted[V]) -> EdgeEnd:
        key, keeps = admitted.welcome.recovery_key, admitted.welcome.settings.recovery.snapshots
        cache = self.cache_dir if keeps else None
        names, count = (self._stats.name, hello.device), self._stats.snapshots
        shared = None if self._shared is None else self._shared(key, hello.device)
        snapshots = Snapshots.under(cache, key, *names, count=count, shared=shared)
        end = EdgeEnd(
            hello.device,
            admitted.welcome.assignment,
            admitted.welcome.settings,
            self._stats.phases,
            hello.compiled_codec,
            self.cache_dir,
            snapshots,
        )
        end.allow(admitted.hidden_size, host.adapter_limit, admitted.named)
        return end

    async def _proof(self, requests: Requests, context: Context) -> Proof:
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


async def hello_of(requests: Requests) -> edge_pb2.DeviceHello:
    """What a device says first. Raises ProtocolError, Refused."""
    hello = (await first_message(requests, "hello")).hello
    contract.name("device", hello.device)
    if hello.wire_version != WIRE_VERSION:
        raise ProtocolError(
            f"device {hello.device!r} speaks wire version {hello.wire_version}, this edge "
            f"speaks {WIRE_VERSION}: install the same sfl on both"
        )
    expect("device", hello.device)
    return hello


async def _withdraw(host: Door[V], device: str, admission: asyncio.Task[Admitted[V]]) -> None:
    """Have a device that never came in leave again, if the cloud has admitted it."""
    await asyncio.wait({admission})
    if not admission.cancelled() and not isinstance(admission.exception(), Refused):
        await host.left(device, LinkLost("it left before it was admitted"))


async def _alive_until(task: asyncio.Future[Any], context: Context) -> None:
    """Wait for it, and let the device that waits for it hear that this edge lives."""
    while not task.done():
        done, _ = await asyncio.wait({task}, timeout=BEAT)
        if not done:
            await context.write(ALIVE)
