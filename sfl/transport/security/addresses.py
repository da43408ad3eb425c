"""`host:port`, and whether a host is this machine."""

from __future__ import annotations

import ipaddress

from sfl.errors import ConfigError


def split_address(field: str, address: str) -> tuple[str, int]:
    """`host:port` as its two parts. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(field, address, "is not host:port", "Write e.g. 127.0.0.1:50051.")
    return host.strip("[]"), int(port)


def joined(host: str, port: int) -> str:
    """Host and port as one address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """True where nothing leaves this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def for_others(address: str) -> str:
    """What a node listens on as others may dial it; nothing where that is every address it has."""
    host = address.rpartition(":")[0].strip("[]")
    return "" if host in EVERY_ADDRESS else address


EVERY_ADDRESS = ("0.0.0.0", "::", "*")
