"""An edge's door for the agents of its devices: it passes on what they and the service say."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from sfl.errors import LinkLost, NameInUse, PeerUnavailable, ProtocolError, Refused, SflError
from sfl.node.text import plain
from sfl.transport.frames import contract
from sfl.transport.frames.wire import ATTACH, generic_handler
from sfl.transport.group import first_message, run_together
from sfl.transport.jobs.mail import Mail, beat, write
from sfl.transport.security.doorkeeper import expect
from sfl.transport.status import LONGEST_DETAILS, status_of
from sfl.transport.stream import Context, Silence
from sfl.v1 import jobs_pb2

_ALIVE = jobs_pb2.ServiceMessage(heartbeat=jobs_pb2.Alive())
FROM_DEVICES = ("started", "ended", "log")


class Relay:
    """Devices that attach here are attached to the service of this edge.

    When the way to the service breaks, so do their streams: they come again.
    """

    def __init__(self, edge: str) -> None:
        self._edge = edge
        self._up: Mail[jobs_pb2.AgentMessage] | None = None
        self._devices: dict[str, _Device] = {}

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service, for `server.add_generic_rpc_handlers`."""
        return generic_handler(ATTACH.service, {ATTACH: self._attach})

    def begin(self, mail: Mail[jobs_pb2.AgentMessage]) -> None:
        """There is a way to the service."""
        self._up = mail

    def take(self, message: jobs_pb2.ServiceMessage) -> None:
        """The service's word to one of the devices."""
        if (device := self._devices.get(message.device)) is None:
            return
        match message.WhichOneof("body"):
            case "refused":
                device.mail.end(Refused(message.refused))
            case "in_use":
                device.mail.end(NameInUse(f"an agent named {message.device!r} is attached already"))
            case _:
                message.device = ""
                device.mail.post(message)

    def end(self) -> None:
        """There is no way to the service any more."""
        self._up = None
        for device in self._devices.values():
            device.mail.end(LinkLost(f"edge {self._edge} has lost the service"))

    async def _attach(
        self, requests: AsyncIterator[jobs_pb2.AgentMessage], context: Context
    ) -> None:
        try:
            hello = await first_message(requests, "hello")
            device = self._admitted(hello)
        except SflError as error:
            await context.abort(status_of(error), plain(str(error), LONGEST_DETAILS))
        reason: SflError = LinkLost("the stream broke")
        try:
            await device.up.put(hello)
            await run_together(
                device.read(requests),
                write(device.mail, context),
                beat(device.mail, _ALIVE, device.silence, f"device {device.name}"),
            )
        except SflError as error:
            reason = error
        finally:
            self._leave(device, str(reason))
        with contextlib.suppress(grpc.aio.AbortError):
            await context.abort(status_of(reason), plain(str(reason), LONGEST_DETAILS))

    def _admitted(self, message: jobs_pb2.AgentMessage) -> _Device:
        """Raises Refused, NameInUse, PeerUnavailable, ProtocolError."""
        hello = message.hello
        name = contract.name("device", hello.name)
        if hello.role != "device":
            raise Refused(f"edge {self._edge} relays devices; let an edge attach to the service")
        expect("device", name)
        if self._up is None:
            raise PeerUnavailable(f"edge {self._edge} is not attached to its service")
        if (old := self._devices.get(name)) is not None:
            if old.incarnation != hello.incarnation:
                raise NameInUse(f"an agent named {name!r} is attached already")
            old.mail.end(LinkLost("the device came back on a new stream"))
        message.device = name
        device = self._devices[name] = _Device(name, hello.incarnation, self._up)
        return device

    def _leave(self, device: _Device, reason: str) -> None:
        if self._devices.get(device.name) is device:
            del self._devices[device.name]
            if self._up is device.up:
                device.up.post(jobs_pb2.AgentMessage(device=device.name, left=plain(reason)))


class _Device:
    """A device's stream at its edge."""

    def __init__(self, name: str, incarnation: bytes, up: Mail[jobs_pb2.AgentMessage]) -> None:
        self.name = name
        self.incarnation = incarnation
        self.up = up
        self.mail: Mail[jobs_pb2.ServiceMessage] = Mail()
        self.silence = Silence()

    async def read(self, requests: AsyncIterator[jobs_pb2.AgentMessage]) -> None:
        """Pass on what the device says. Raises ProtocolError."""
        async for message in requests:
            self.silence.heard()
            body = message.WhichOneof("body")
            if body in FROM_DEVICES:
                message.device = self.name
                await self.up.put(message)
            elif body != "heartbeat":
                raise ProtocolError(f"a device that is attached does not say {body}")
