"""Where credentials enter the transport, and the only place that opens a port or a channel.

With a certificate both ends show theirs, in TLS 1.3 (gRPC's Python API has no word for a least
version: `node.process` leaves TLS 1.2 no cipher, and the doorkeeper looks again). Without one only
loopback is allowed, unless `insecure` says otherwise.
"""

from __future__ import annotations

import contextlib
import logging

import grpc
import grpc.aio

from sfl.errors import ConfigError
from sfl.node.certificates.identity import Role, server_name
from sfl.node.certificates.own import OwnCertificate
from sfl.transport.frames.wire import SERVER_OPTIONS, client_options
from sfl.transport.security.addresses import is_loopback, joined, split_address
from sfl.transport.security.door import Door, door_options
from sfl.transport.security.doorkeeper import TLS_WANTED, Doorkeeper, OpenDoor

log = logging.getLogger(__name__)

TELL_TIMEOUT = 0.3
"""Seconds; whether it was heard makes no difference."""


def check_exposure(field: str, address: str, insecure: bool) -> None:
    """Refuse an address that others can reach while there is no TLS, unless told otherwise."""
    host, _ = split_address(field, address)
    if is_loopback(host):
        return
    if not insecure:
        raise ConfigError(
            field,
            address,
            "is not loopback, and the link has no TLS",
            "Give this node a certificate ([tls], docs/security.md), use 127.0.0.1, or pass "
            "--insecure on a network you trust.",
        )
    log.warning(
        "%s = %s: the link is NOT encrypted; anybody on its path can read it", field, address
    )


def new_server(own: OwnCertificate | None = None, door: Door | None = None) -> grpc.aio.Server:
    """A server without a port, its callers counted; with a certificate, behind a doorkeeper."""
    options, door = (*SERVER_OPTIONS, *door_options()), door or Door()
    if own is not None:
        return grpc.aio.server(options=options, interceptors=(Doorkeeper(), door))
    server = grpc.aio.server(options=options, interceptors=(door,))
    server.add_generic_rpc_handlers((OpenDoor(),))
    return server


def bind(
    server: grpc.aio.Server,
    field: str,
    address: str,
    insecure: bool,
    own: OwnCertificate | None = None,
) -> str:
    """Open a server's port; returns `host:port` with the port that was really taken."""
    host, _ = split_address(field, address)
    if own is None:
        check_exposure(field, address, insecure)
    try:
        if own is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, _server_credentials(own))
    except RuntimeError:
        port = 0
    if port == 0:
        raise ConfigError(
            field, address, "the port is in use or can't be bound", "Choose another, or port 0."
        )
    taken = joined(host, port)
    if own is not None:
        log.info("%s: TLS 1.3, as %s", taken, own.identity)
    return taken


def open_channel(
    field: str,
    address: str,
    insecure: bool,
    own: OwnCertificate | None = None,
    role: Role = "edge",
    proxy: bool = False,
) -> grpc.Channel:
    """A sync channel to a peer of that role; connects when first used.

    `proxy`: through the proxy that the environment names, where it names one.
    """
    if own is None:
        check_exposure(field, address, insecure)
        return grpc.insecure_channel(address, options=client_options(proxy))
    return grpc.secure_channel(
        address, _channel_credentials(own), options=_named(field, address, role, proxy)
    )


def open_aio_channel(
    field: str,
    address: str,
    insecure: bool,
    own: OwnCertificate | None = None,
    role: Role = "cloud",
    proxy: bool = False,
) -> grpc.aio.Channel:
    """An aio channel to a peer of that role; connects when first used. `proxy`: as above."""
    if own is None:
        check_exposure(field, address, insecure)
        return grpc.aio.insecure_channel(address, options=client_options(proxy))
    return grpc.aio.secure_channel(
        address, _channel_credentials(own), options=_named(field, address, role, proxy)
    )


def tell_of_tls(address: str) -> None:
    """Let a server without TLS write down that TLS was asked for; the call carries nothing."""
    with (
        grpc.insecure_channel(address, options=client_options()) as channel,
        contextlib.suppress(grpc.RpcError),
    ):
        channel.unary_unary(TLS_WANTED, None, None)(b"", timeout=TELL_TIMEOUT)


def _named(field: str, address: str, role: Role, proxy: bool) -> tuple[tuple[str, int | str], ...]:
    """Ask for the host as a node of that role."""
    host, _ = split_address(field, address)
    return (*client_options(proxy), ("grpc.ssl_target_name_override", server_name(role, host)))


def _server_credentials(own: OwnCertificate) -> grpc.ServerCredentials:
    ca, cert, key = own.contents()
    return grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)


def _channel_credentials(own: OwnCertificate) -> grpc.ChannelCredentials:
    ca, cert, key = own.contents()
    return grpc.ssl_channel_credentials(ca, key, cert)
