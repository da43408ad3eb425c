"""Certificates of every kind, and nodes that hold them."""

from __future__ import annotations

import datetime as dt
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from sfl.node.certificates.authority import Authority, read_pair
from sfl.node.certificates.identity import Identity, Role
from sfl.node.certificates.own import OwnCertificate, load_own, settings_in
from sfl.transport.frames import wire
from sfl.transport.security.credentials import open_channel
from tests.house.nodes import ByHand

Where = tuple[dt.timedelta, dt.timedelta]


DAY = dt.timedelta(days=1)


PAST: Where = (-2 * DAY, -DAY)


FUTURE: Where = (DAY, 2 * DAY)


def give(authority: Authority, folder: Path, role: Role, name: str, *hosts: str) -> Path:
    """A node's folder with a new certificate."""
    authority.write(authority.issue(Identity(role, name), hosts, 30), folder)
    return folder


def unchecked(folder: Path, role: Role, name: str) -> OwnCertificate:
    """A certificate that a node would not start with, for clients that do not look at it."""
    files = settings_in(folder, name)
    return OwnCertificate(Identity(role, name), files.ca, files.cert, files.key, 0.0)


class Guarded(ByHand):
    """Cloud and edge with certificates, for 127.0.0.1 only."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.authority, _ = Authority.init(folder / "ca")
        self.certs = folder / "certs"
        for role, name in (("cloud", "cloud"), ("edge", "edge")):
            give(self.authority, self.certs / name, role, name, "127.0.0.1")  # type: ignore[arg-type]
        for entry in values["devices"]:
            give(self.authority, self.certs / entry["name"], "device", entry["name"])
        super().__init__(folder, values)

    def options(self, name: str) -> list[str]:
        return ["--certs", str(self.certs / name)]

    def own(self, role: Role, name: str) -> OwnCertificate:
        """A further certificate of this run's CA."""
        folder = self.folder / "more" / f"{role}-{name}"
        give(self.authority, folder, role, name, *(("127.0.0.1",) if role == "edge" else ()))
        return load_own("tls", settings_in(folder, name), role, name)


def read_folder(folder: Path, name: str) -> grpc.ServerCredentials:
    pair = read_pair(folder / f"{name}.pem", folder / f"{name}.key")
    return grpc.ssl_server_credentials(
        [(pair.key_pem, pair.cert_pem)], (folder / "ca.pem").read_bytes(), True
    )


class server:  # noqa: N801 - reads as a function
    """A server without services, for as long as it is asked for."""

    def __init__(self, credentials: grpc.ServerCredentials) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(1))
        port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.address = f"127.0.0.1:{port}"

    def __enter__(self) -> str:
        self._server.start()
        return self.address

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()


def ending(method: wire.Method, address: str, role: Role, own: OwnCertificate, ask: Any) -> str:
    """How a call that is refused ends."""
    channel = open_channel("edge", address, False, own, role)
    try:
        call = method.stub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            answer = call(iter([ask]) if method.streams[0] else ask, timeout=60)
            list(answer) if method.streams[1] else None
    finally:
        channel.close()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    details: str = caught.value.details()
    return details
