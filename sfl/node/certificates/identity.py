"""What a certificate says of its holder: a role and a name, and the hosts of a server.

The role and the name stand in a URI, `sfl://device/alpha`. gRPC's client compares nothing but host
names, so a server's certificate also carries each of its hosts with its role as a name of its own,
`10.0.0.5.edge.sfl`, and a client asks for that one: an edge on the same host cannot stand in for
the cloud.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["device", "edge", "cloud", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)
SERVERS: tuple[Role, ...] = ("edge", "cloud")
"""Roles that others dial."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_URI = re.compile(r"sfl://([a-z]+)/(.*)")


@dataclass(frozen=True, slots=True)
class Identity:
    """Role and name of a certificate's holder."""

    role: Role
    name: str

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}"

    @property
    def uri(self) -> str:
        """As it stands in the certificate."""
        return f"sfl://{self.role}/{self.name}"


def identity_in(uris: Iterable[str]) -> Identity | None:
    """The one identity among a certificate's URIs; None where there is none, or more than one."""
    found = [match for uri in uris if (match := _URI.fullmatch(uri))]
    if len(found) != 1 or not NAME.fullmatch(found[0][2]):
        return None
    for role in ROLES:
        if found[0][1] == role:
            return Identity(role, found[0][2])
    return None


def server_name(role: Role, host: str) -> str:
    """The name that a client asks a server on `host` for."""
    try:
        plain = ipaddress.ip_address(host).exploded.replace(":", "-")
    except ValueError:
        plain = host.rstrip(".").lower()
    return f"{plain}.{role}.sfl"


def covers(names: Iterable[str], wanted: str) -> bool:
    """Whether one of a certificate's names is the wanted one, or `*.` and all but its first."""
    rest = wanted.partition(".")[2]
    return any(name.lower() in (wanted, f"*.{rest}") for name in names)
