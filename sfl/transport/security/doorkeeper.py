"""Who may come in: the one place that reads a peer's certificate and decides on it.

TLS itself has checked by then that the certificate is of this run's CA and in time. Here its role
is held against the method that is called; services hold its name against what the peer says it is
(`expect`). Revocation and enrolment belong into `Doorkeeper.refusal`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio

from sfl.errors import Refused
from sfl.node.certificates.identity import ROLES, Identity, Role, identity_in
from sfl.node.logs import Sparing
from sfl.transport.frames.wire import (
    ATTACH,
    CLOUD_SESSION,
    EDGE_FETCH_FILE,
    EDGE_LIST_FILES,
    EDGE_PROBE,
    EDGE_SESSION,
    FETCH_ADAPTER,
    GENERATE,
    JOB_METHODS,
    SERVE_FETCH_FILE,
    SERVE_LIST_FILES,
    STAGE_END,
    STAGE_SESSION,
)
from sfl.transport.status import status_of

log = logging.getLogger(__name__)
sparing = Sparing(log)

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

ANYBODY = frozenset(ROLES)
MAY_CALL: Mapping[str, frozenset[Role]] = {
    EDGE_SESSION.path: frozenset({"device"}),
    EDGE_LIST_FILES.path: frozenset({"device"}),
    EDGE_FETCH_FILE.path: frozenset({"device"}),
    EDGE_PROBE.path: ANYBODY,
    GENERATE.path: frozenset({"device"}),
    FETCH_ADAPTER.path: frozenset({"device"}),
    SERVE_LIST_FILES.path: frozenset({"device"}),
    SERVE_FETCH_FILE.path: frozenset({"device"}),
    CLOUD_SESSION.path: frozenset({"edge"}),
    STAGE_SESSION.path: frozenset({"edge"}),
    STAGE_END.path: frozenset({"edge"}),
    ATTACH.path: frozenset({"edge", "device"}),
    **{method.path: frozenset({"operator"}) for method in JOB_METHODS},
}
"""Roles by method; what is not listed is closed to all."""
TLS_WANTED = "/sfl.v1.Door/TlsWanted"
"""What a peer that asks for TLS calls on a server that has none, so that its log says so."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes the present call, and from where."""

    identity: Identity
    address: str


_CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def caller_name() -> str | None:
    """Who makes the present call, by its certificate; None without TLS."""
    caller = _CALLER.get()
    return None if caller is None else str(caller.identity)


def expect(role: Role, name: str) -> None:
    """Refuse a call whose certificate is not `name`'s; without TLS anybody may say anything.

    Raises Refused.
    """
    caller = _CALLER.get()
    if caller is None or caller.identity == Identity(role, name):
        return
    sparing.warning(
        str(caller.identity),
        "%s refused: %s says it is %s %r",
        caller.address,
        caller.identity,
        role,
        name,
    )
    raise Refused(
        f"the certificate is of {caller.identity}, and does not stand for {role} {name!r}: "
        "a node's name is the one in its certificate"
    )


class Doorkeeper(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Reads the caller's identity from its certificate, once a call, before anything else."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The method's handler, behind the door."""
        handler: Any = await continuation(handler_call_details)
        return handler and self._guarded(handler, handler_call_details.method)

    def refusal(self, identity: Identity | None, method: str, version: str) -> str | None:
        """Why a caller may not call a method; None where it may."""
        if version != "TLSv1.3":
            return f"the connection speaks {version or 'no TLS'}, and TLS 1.3 is required"
        if identity is None:
            return "the certificate names no role and name (no URI sfl://ROLE/NAME)"
        allowed = MAY_CALL.get(method, frozenset())
        if identity.role not in allowed:
            wanted = ", ".join(sorted(allowed)) or "nobody"
            return f"the certificate is of {identity}, and this is open to: {wanted}"
        return None

    async def _enter(self, context: Context, method: str) -> None:
        said = context.auth_context()
        identity = identity_in(uri.decode() for uri in said.get("peer_uri", ()))
        version = b"".join(said.get("ssl_tls_version", ())).decode()
        reason = self.refusal(identity, method, version)
        address = context.peer()
        if reason is not None or identity is None:
            sparing.warning(reason or "", "%s refused at %s: %s", address, method, reason)
            await context.abort(status_of(Refused()), reason or "")
            raise AssertionError("abort raises")
        _CALLER.set(Caller(identity, address))

    def _guarded(self, handler: Handler, method: str) -> Handler:
        """The same handler, its behaviour run only once the caller is in."""
        kind = f"{_side(handler.request_streaming)}_{_side(handler.response_streaming)}"
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        behaviour = getattr(handler, kind)
        wrapped = (self._stream if inspect.isasyncgenfunction(behaviour) else self._call)(
            behaviour, method
        )
        made: Handler = make(wrapped, handler.request_deserializer, handler.response_serializer)
        return made

    def _call(self, behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
        async def call(request: Any, context: Context) -> Any:
            await self._enter(context, method)
            return await behaviour(request, context)

        return call

    def _stream(self, behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            await self._enter(context, method)
            async for response in behaviour(request, context):
                yield response

        return stream


class OpenDoor(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """The door of a server without TLS: who asks for it there and goes away is written down."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of that one method."""
        if handler_call_details.method != TLS_WANTED:
            return None
        return grpc.unary_unary_rpc_method_handler(_note)


async def _note(request: bytes, context: Context) -> bytes:
    sparing.warning(
        "tls",
        "%s was refused: it asks for TLS, and this node has no certificate; give it one "
        "([tls], or --certs)",
        context.peer(),
    )
    return b""


def _side(streams: bool) -> str:
    return "stream" if streams else "unary"
