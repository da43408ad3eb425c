"""A service's door for agents: one stream each, and those of an edge's devices within its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc
import grpc.aio

from sfl.errors import LinkLost, NameInUse, ProtocolError, Refused, SflError
from sfl.jobs.values import AgentRole, Seat
from sfl.node.text import plain
from sfl.transport.frames import contract
from sfl.transport.frames.wire import ATTACH, WIRE_VERSION, generic_handler
from sfl.transport.group import first_message, run_together
from sfl.transport.jobs.mail import Mail, beat, write
from sfl.transport.security.doorkeeper import expect
from sfl.transport.status import LONGEST_DETAILS, status_of
from sfl.transport.stream import Context, Silence
from sfl.v1 import jobs_pb2

MOST_RUNS = 256
"""At once, of one agent."""
MOST_ADDRESS = 300
"""Characters."""
MOST_RELAYED = 4096
"""Devices of one edge."""
ROLES: dict[str, AgentRole] = {"edge": "edge", "device": "device"}


class Attachment:
    """An agent that is there, as its service knows it."""

    def __init__(
        self, hello: jobs_pb2.AgentHello, mail: Mail[jobs_pb2.ServiceMessage], via: str = ""
    ) -> None:
        """Raises ProtocolError. `via` is the edge that relays it."""
        if hello.wire_version != WIRE_VERSION:
            raise ProtocolError(
                f"the agent speaks wire version {hello.wire_version}, this service speaks "
                f"{WIRE_VERSION}: install the same sfl on both"
            )
        if hello.role not in ROLES:
            raise ProtocolError(f"role = {plain(hello.role, 80)!r}: an agent is edge or device")
        self.role = ROLES[hello.role]
        self.name = contract.name(self.role, hello.name)
        contract.whole("max_runs", hello.max_runs, 1, MOST_RUNS)
        self.max_runs = hello.max_runs
        self.incarnation = hello.incarnation
        self.via = via
        held = hello.held[:MOST_RUNS]
        self.held = {contract.name("run", run.run): _address(run.address) for run in held}
        """Runs that it computes, and where: an edge's own address, or that of a device's edge."""
        self.attached_at = time.time()
        self._mail = mail
        self._relayed = self.name if via else ""

    @property
    def seat(self) -> Seat:
        """What decisions know of it."""
        return Seat(self.role, self.name, self.max_runs, self.via, frozenset(self.held))

    def welcome(self) -> None:
        """Tell it that it is attached."""
        self._post(welcome=jobs_pb2.ServiceWelcome(via=self.via))

    def start(self, run: str, address: str, log_offset: int) -> None:
        """Have it compute a run; so much of its log is known."""
        start = jobs_pb2.StartNode(run=run, address=address, log_offset=log_offset)
        self._post(start=start)

    def stop(self, run: str, reason: str) -> None:
        """Have it leave a run."""
        self._post(stop=jobs_pb2.StopNode(run=run, reason=plain(reason)))

    def end(self, error: SflError) -> None:
        """Let it go; a relayed one is told so within its edge's stream."""
        if not self.via:
            self._mail.end(error)
        elif isinstance(error, NameInUse):
            self._post(in_use=True)
        else:
            self._post(refused=str(error))

    def _post(self, **body: Any) -> None:
        self._mail.post(jobs_pb2.ServiceMessage(device=self._relayed, **body))


class AgentsHost(Protocol):
    """Hears agents."""

    def attached(self, agent: Attachment) -> None:
        """One is there. Raises Refused."""

    def detached(self, agent: Attachment, reason: str) -> None:
        """It has gone."""

    def started(self, agent: Attachment, run: str, address: str) -> None:
        """Its node of a run is up."""

    def ended(self, agent: Attachment, run: str, exit_code: int, reason: str) -> None:
        """Its node of a run has ended."""

    def logged(self, agent: Attachment, run: str, offset: int, data: bytes) -> None:
        """Its node of a run has written that to its log."""


class AgentsDoor:
    """Serves agents; the host decides, this moves bytes."""

    def __init__(self, host: AgentsHost) -> None:
        self._host = host

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service, for `server.add_generic_rpc_handlers`."""
        return generic_handler(ATTACH.service, {ATTACH: self._attach})

    async def _attach(
        self, requests: AsyncIterator[jobs_pb2.AgentMessage], context: Context
    ) -> None:
        mail: Mail[jobs_pb2.ServiceMessage] = Mail()
        try:
            hello = (await first_message(requests, "hello")).hello
            own = Attachment(hello, mail)
            expect(own.role, own.name)
            self._host.attached(own)
        except SflError as error:
            await context.abort(status_of(error), plain(str(error), LONGEST_DETAILS))
        own.welcome()
        line = _Line(self._host, own, mail)
        reason: SflError = LinkLost("the stream broke")
        try:
            await run_together(
                line.read(requests),
                write(mail, context),
                beat(mail, _ALIVE, line.silence, own.seat.title),
            )
        except SflError as error:
            reason = error
        finally:
            line.close(str(reason))
        with contextlib.suppress(grpc.aio.AbortError):
            await context.abort(status_of(reason), plain(str(reason), LONGEST_DETAILS))


class _Line:
    """One agent's stream, and who speaks through it."""

    def __init__(
        self, host: AgentsHost, own: Attachment, mail: Mail[jobs_pb2.ServiceMessage]
    ) -> None:
        self.silence = Silence()
        self._host = host
        self._own = own
        self._mail = mail
        self._relayed: dict[str, Attachment] = {}

    async def read(self, requests: AsyncIterator[jobs_pb2.AgentMessage]) -> None:
        """Hear the agent, to its end. Raises ProtocolError."""
        async for message in requests:
            self.silence.heard()
            if not message.device:
                self._hear(self._own, message)
            elif self._own.role != "edge":
                raise ProtocolError("only an edge speaks for others")
            else:
                self._hear_relayed(message)

    def close(self, reason: str) -> None:
        """Nobody speaks through it any more."""
        for agent in (*self._relayed.values(), self._own):
            self._host.detached(agent, reason)

    def _hear_relayed(self, message: jobs_pb2.AgentMessage) -> None:
        body, agent = message.WhichOneof("body"), self._relayed.get(message.device)
        if body == "hello":
            self._join(message)
        elif body == "left" and agent is not None:
            self._host.detached(self._relayed.pop(message.device), plain(message.left))
        elif agent is not None:
            try:
                self._hear(agent, message)
            except SflError as error:  # what one device says costs no other
                self._host.detached(self._relayed.pop(message.device), str(error))
                agent.end(error)

    def _join(self, message: jobs_pb2.AgentMessage) -> None:
        """A device of this edge; one that cannot come in costs nobody else anything."""
        if (old := self._relayed.pop(message.device, None)) is not None:
            self._host.detached(old, "it came back on a new stream")
        if message.hello.name != message.device or message.hello.role != "device":
            raise ProtocolError("an edge speaks for devices, by their own names")
        try:
            agent = Attachment(message.hello, self._mail, self._own.name)
            if len(self._relayed) >= MOST_RELAYED:
                raise Refused(f"edge {self._own.name} relays {MOST_RELAYED} devices already")
            self._host.attached(agent)
        except SflError as error:
            said = {"in_use": True} if isinstance(error, NameInUse) else {"refused": str(error)}
            self._mail.post(jobs_pb2.ServiceMessage(device=message.device, **said))
            return
        self._relayed[agent.name] = agent
        agent.welcome()

    def _hear(self, agent: Attachment, message: jobs_pb2.AgentMessage) -> None:
        match message.WhichOneof("body"):
            case "started":
                said = message.started
                self._host.started(agent, said.run, _address(said.address))
            case "ended":
                end = message.ended
                self._host.ended(agent, end.run, end.exit_code, contract.reason(end.reason))
            case "log":
                self._host.logged(agent, message.log.run, message.log.offset, message.log.data)
            case "heartbeat":
                pass
            case body:
                raise ProtocolError(f"an agent that is attached does not say {body}")


def _address(text: str) -> str:
    """What may be an address. Raises ProtocolError."""
    if len(text) > MOST_ADDRESS or not text.isprintable():
        raise ProtocolError("an address has the form host:port")
    return text


_ALIVE = jobs_pb2.ServiceMessage(heartbeat=jobs_pb2.Alive())
