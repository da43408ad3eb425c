"""An agent's end: attached to a service, again and again, for as long as the agent lives."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Protocol

import grpc.aio

from sfl.errors import SflError
from sfl.jobs.rows import HeldRun
from sfl.jobs.values import AgentRole
from sfl.node.certificates.identity import Role
from sfl.node.certificates.own import OwnCertificate
from sfl.transport.dialling import Pauses, connected_aio
from sfl.transport.frames.seal import sound
from sfl.transport.frames.wire import ATTACH, ATTEMPT, WIRE_VERSION
from sfl.transport.group import run_together
from sfl.transport.jobs.mail import Mail, beat
from sfl.transport.security.credentials import open_aio_channel
from sfl.transport.status import error_of
from sfl.transport.stream import Silence
from sfl.v1 import jobs_pb2

log = logging.getLogger(__name__)

LONGEST_PAUSE = 20.0
"""Seconds between two attempts, at most."""
INCARNATION_BYTES = 16

Post = Callable[[jobs_pb2.AgentMessage], None]


class AgentHost(Protocol):
    """What an agent does with the word of its service."""

    def held(self) -> Iterable[HeldRun]:
        """The runs that it computes."""

    def welcomed(self, via: str) -> None:
        """It is attached; `via` is the edge that relays it, if one does."""

    def start(self, run: str, address: str, log_offset: int) -> None:
        """Compute a run."""

    def stop(self, run: str, reason: str) -> None:
        """Leave a run."""

    def detached(self) -> None:
        """What is said from now on goes nowhere."""


class RelayedDevices(Protocol):
    """The devices whose word an edge's agent passes on."""

    def begin(self, mail: Mail[jobs_pb2.AgentMessage]) -> None:
        """There is a way to the service."""

    def take(self, message: jobs_pb2.ServiceMessage) -> None:
        """The service's word to one of them."""

    def end(self) -> None:
        """There is no way to the service any more."""


class Attaching:
    """Keeps an agent attached; while it is not, what it says goes nowhere."""

    def __init__(
        self,
        role: AgentRole,
        name: str,
        address: str,
        max_runs: int,
        insecure: bool,
        own: OwnCertificate | None = None,
        proxy: bool = False,
        relayed: RelayedDevices | None = None,
    ) -> None:
        self._role: AgentRole = role
        self._name, self._max_runs = name, max_runs
        self._address, self._insecure, self._own, self._proxy = address, insecure, own, proxy
        self._relayed = relayed
        self._incarnation = secrets.token_bytes(INCARNATION_BYTES)
        self._mail: Mail[jobs_pb2.AgentMessage] | None = None
        # What a device dials is its edge, or the service itself: both are right.
        self._servers: list[Role] = ["edge", "cloud"] if role == "device" else ["cloud"]

    @property
    def attached(self) -> bool:
        """Whether the service hears what is said."""
        return self._mail is not None

    async def run(self, host: AgentHost) -> None:
        """Attach, and again whenever that ends, for ever."""
        pauses = Pauses(LONGEST_PAUSE)
        while True:
            began = time.monotonic()
            try:
                await self._once(host)
            except SflError as error:
                log.warning("not attached: %s; trying again", error)
            pauses.lasted(time.monotonic() - began)
            await asyncio.sleep(pauses.next())

    def started(self, run: str, address: str) -> None:
        """Tell the service that a node is up."""
        self._post(started=jobs_pb2.NodeStarted(run=run, address=address))

    def ended(self, run: str, exit_code: int, reason: str) -> None:
        """Tell the service that a node has ended."""
        ended = jobs_pb2.NodeEnded(run=run, exit_code=exit_code, reason=reason)
        self._post(ended=ended)

    async def logged(self, run: str, offset: int, data: bytes) -> None:
        """Tell the service what a node has written; waits while it has to take other things."""
        if self._mail is not None:
            log = jobs_pb2.LogPart(run=run, offset=offset, data=data)
            await self._mail.put(jobs_pb2.AgentMessage(log=log))

    def _post(self, **body: jobs_pb2.NodeStarted | jobs_pb2.NodeEnded) -> None:
        if self._mail is not None:
            self._mail.post(jobs_pb2.AgentMessage(**body))  # type: ignore[arg-type]

    async def _once(self, host: AgentHost) -> None:
        """One stream, to its end. Raises SflError."""
        server = self._servers[0]
        self._servers = [*self._servers[1:], server]
        peer = f"service at {self._address}"
        channel = open_aio_channel(
            "service", self._address, self._insecure, self._own, server, self._proxy
        )
        try:
            await connected_aio(channel, peer, ATTEMPT)
            self._servers.insert(0, self._servers.pop())  # it is one of that kind
            await self._talk(channel, peer, host)
        finally:
            await channel.close(None)

    async def _talk(self, channel: grpc.aio.Channel, peer: str, host: AgentHost) -> None:
        mail: Mail[jobs_pb2.AgentMessage] = Mail()
        mail.post(self._hello(host))
        call = ATTACH.stub(channel)(mail.messages())
        silence = Silence()

        async def read() -> None:
            async for message in _messages(call, peer):
                silence.heard()
                self._take(message, mail, host)

        try:
            await run_together(read(), beat(mail, _ALIVE, silence, peer))
        finally:
            call.cancel()
            mail.close()
            if self._mail is mail:
                self._mail = None
                host.detached()
                if self._relayed is not None:
                    self._relayed.end()

    def _hello(self, host: AgentHost) -> jobs_pb2.AgentMessage:
        held = [jobs_pb2.HeldRun(run=run.run, address=run.address) for run in host.held()]
        hello = jobs_pb2.AgentHello(
            role=self._role,
            name=self._name,
            wire_version=WIRE_VERSION,
            incarnation=self._incarnation,
            max_runs=self._max_runs,
            held=held,
        )
        return jobs_pb2.AgentMessage(hello=hello)

    def _take(
        self,
        message: jobs_pb2.ServiceMessage,
        mail: Mail[jobs_pb2.AgentMessage],
        host: AgentHost,
    ) -> None:
        if message.device:
            if self._relayed is not None:
                self._relayed.take(message)
            return
        match message.WhichOneof("body"):
            case "welcome":
                self._mail = mail
                if self._relayed is not None:
                    self._relayed.begin(mail)
                log.info("attached to the service at %s", self._address)
                host.welcomed(message.welcome.via)
            case "start":
                start = message.start
                host.start(start.run, start.address, start.log_offset)
            case "stop":
                host.stop(message.stop.run, message.stop.reason)


_ALIVE = jobs_pb2.AgentMessage(heartbeat=jobs_pb2.Alive())


async def _messages(
    call: AsyncIterator[jobs_pb2.ServiceMessage], peer: str
) -> AsyncIterator[jobs_pb2.ServiceMessage]:
    """What the service says. Raises SflError where that ends."""
    try:
        async for message in call:
            yield sound(message, peer)
    except grpc.aio.AioRpcError as error:
        raise error_of(error, peer) from None
