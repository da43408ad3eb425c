"""Where credentials enter the transport, and the only place that opens a port or a channel.

Without TLS only loopback is allowed, unless `insecure` says otherwise.
"""

from __future__ import annotations

import ipaddress
import logging

import grpc
import grpc.aio

from sfl.errors import ConfigError
from sfl.transport.wire import OPTIONS

log = logging.getLogger(__name__)


def split_address(field: str, address: str) -> tuple[str, int]:
    """`host:port` as its two parts. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(field, address, "is not host:port", "Write e.g. 127.0.0.1:50051.")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """True where nothing leaves this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
            "Use 127.0.0.1, or pass --insecure on a network you trust.",
        )
    log.warning(
        "%s = %s: the link is NOT encrypted; anybody on its path can read it", field, address
    )


def bind(server: grpc.aio.Server, field: str, address: str, insecure: bool) -> str:
    """Open a server's port; returns `host:port` with the port that was really taken."""
    check_exposure(field, address, insecure)
    host, _ = split_address(field, address)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if port == 0:
        raise ConfigError(
            field, address, "the port is in use or can't be bound", "Choose another, or port 0."
        )
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def open_channel(field: str, address: str, insecure: bool) -> grpc.Channel:
    """A sync channel to a peer; connects when first used."""
    check_exposure(field, address, insecure)
    return grpc.insecure_channel(address, options=OPTIONS)


def open_aio_channel(field: str, address: str, insecure: bool) -> grpc.aio.Channel:
    """An aio channel to a peer; connects when first used."""
    check_exposure(field, address, insecure)
    return grpc.aio.insecure_channel(address, options=OPTIONS)
