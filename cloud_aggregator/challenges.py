"""What devices sign before they are let in: the same for an edge as long as the run lasts."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from sfl.errors import DiskError
from sfl.node.files import on_disk
from sfl.report.conclusion import SECRET
from sfl.transport.security.signed import SignatureCheck

if TYPE_CHECKING:
    from sfl.node.certificates.signing import Trust


class Challenges:
    """One check of signatures an edge. Its challenge outlives the edge's stream and this process:
    it is made of a secret in the run's folder."""

    def __init__(self, folder: Path, trust: Trust | None) -> None:
        """Without TLS (`trust`) nobody signs. Raises DiskError."""
        self._run_id = folder.name
        self._trust = trust
        self._secret = b"" if trust is None else _secret(folder)
        self._checks: dict[str, SignatureCheck] = {}

    def of(self, edge: str) -> SignatureCheck:
        """What checks the signatures of an edge's devices."""
        if edge not in self._checks:
            challenge = hmac.digest(self._secret, edge.encode(), "sha256") if self._secret else b""
            check = SignatureCheck(self._run_id, edge, self._trust, challenge)
            self._checks[edge] = check
        return self._checks[edge]


def _secret(folder: Path) -> bytes:
    """The run's own, made where there is none; nobody but its owner can read the file."""
    path = folder / SECRET
    with on_disk(folder):
        if path.exists():
            return _read(path)
        secret = secrets.token_bytes(_BYTES)
        aside = path.with_name(f"{SECRET}.new")
        aside.unlink(missing_ok=True)
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    return secret


def _read(path: Path) -> bytes:
    secret = path.read_bytes()
    if len(secret) != _BYTES:
        raise DiskError(f"{path}: it is damaged. Remove it; devices then join anew.")
    return secret


_BYTES = 32
