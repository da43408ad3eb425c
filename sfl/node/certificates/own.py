"""A node's own certificate, looked at before anything is dialled; standard library only.

Everything is learnt from a handshake of the certificate with itself, in memory: whether the key
belongs to it, whether the CA signed it, and what it says. So a board needs no package for it.
"""

from __future__ import annotations

import logging
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfl.config.node import TlsSettings
from sfl.errors import ConfigError, NotYetValid
from sfl.node.certificates.identity import Identity, Role, identity_in
from sfl.node.paths import expanded

log = logging.getLogger(__name__)

NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME: times are compared here, where the answer can name them."""
SOON = 14 * 86400.0
"""Seconds before its end from which a certificate is warned about."""
DAY = "%Y-%m-%d %H:%M UTC"


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """A node's certificate, found in order, and where its files are. It never holds the key."""

    identity: Identity
    ca: Path
    cert: Path
    key: Path
    not_after: float

    def contents(self) -> tuple[bytes, bytes, bytes]:
        """CA, certificate and key, as gRPC wants them."""
        return self.ca.read_bytes(), self.cert.read_bytes(), self.key.read_bytes()


def settings_in(folder: Path, name: str) -> TlsSettings:
    """The files that `sfl ca issue` writes for a node."""
    return TlsSettings(
        ca=folder / "ca.pem", cert=folder / f"{name}.pem", key=folder / f"{name}.key"
    )


def own_certificate(
    kind: Role, name: str | None, tls: TlsSettings | None, certs: Path | None = None
) -> OwnCertificate | None:
    """A node's certificate from its settings or, going before them, the folder `certs`.

    None where it has neither. `name` is None where a node has none (the cloud, called "cloud").
    Raises ConfigError.
    """
    if certs is not None:
        tls = settings_in(certs, name or kind)
    return None if tls is None else load_own(f"{kind}.tls", tls, kind, name)


def own_in(folder: Path) -> OwnCertificate:
    """The one certificate in a folder, whosever it is. Raises ConfigError."""
    names = [path.stem for path in sorted(folder.glob("*.key"))]
    if len(names) != 1:
        raise ConfigError(
            "--certs",
            str(folder),
            f"has {len(names)} keys; expected one",
            "Use a folder that `sfl ca issue` wrote.",
        )
    return load_own("--certs", settings_in(folder, names[0]), None, None)


def load_own(field: str, tls: TlsSettings, role: Role | None, name: str | None) -> OwnCertificate:
    """Check a node's three files; `role` None takes any.

    Raises ConfigError that names the field, the file and the fix.
    """
    files = {key: expanded(getattr(tls, key), f"{field}.{key}") for key in ("ca", "cert", "key")}
    for key, path in files.items():
        _check_readable(f"{field}.{key}", path)
    if files["key"].stat().st_mode & 0o077:
        log.warning(
            "%s.key = %s: others on this machine can read it; chmod 600 %s",
            field,
            files["key"],
            files["key"],
        )
    content = _content(field, files)
    cert, shown = f"{field}.cert", str(files["cert"])
    identity = identity_in(uris(content))
    if identity is None:
        raise ConfigError(
            cert, shown, "names no role and name (no URI sfl://ROLE/NAME)", _issue(role, name)
        )
    if role not in (None, identity.role) or name not in (None, identity.name):
        raise ConfigError(
            cert, shown, f"is of {identity}, this is {_who(role, name)}", _issue(role, name)
        )
    if problem := time_problem(content):
        if time.time() < ssl.cert_time_to_seconds(content["notBefore"]):
            fix = f"Set the clock, if it is wrong. {_issue(role, name)}"
            raise NotYetValid(cert, shown, problem, fix)
        raise ConfigError(cert, shown, problem, _issue(role, name))
    end = ssl.cert_time_to_seconds(content["notAfter"])
    if end - time.time() < SOON:
        log.warning("%s = %s: expires on %s; issue it again", cert, shown, content["notAfter"])
    return OwnCertificate(identity, files["ca"], files["cert"], files["key"], end)


def uris(content: dict[str, Any]) -> list[str]:
    """The URIs of a certificate, as ssl decodes it."""
    return [value for kind, value in content.get("subjectAltName", ()) if kind == "URI"]


def time_problem(content: dict[str, Any]) -> str | None:
    """What is wrong with a certificate's times, if anything."""
    now = time.time()
    first, last = (ssl.cert_time_to_seconds(content[key]) for key in ("notBefore", "notAfter"))
    if now > last:
        return f"expired on {_day(last)}; it is {_day(now)} by this machine's clock"
    if now < first:
        return f"is not valid before {_day(first)}; it is {_day(now)} by this machine's clock"
    return None


def _day(seconds: float) -> str:
    return time.strftime(DAY, time.gmtime(seconds))


def _who(role: Role | None, name: str | None) -> str:
    return f"{role} {name!r}" if name else f"a {role}"


def _issue(role: Role | None, name: str | None) -> str:
    return f"Issue one: sfl ca issue {name or role or 'NAME'} --role {role or 'ROLE'}."


def _check_readable(field: str, path: Path) -> None:
    try:
        with path.open("rb"):
            return
    except FileNotFoundError:
        problem, fix = "no such file", "Make it with `sfl ca issue`, or fix the path."
    except OSError as error:
        problem, fix = f"cannot be read: {error.strerror}", "Let this user read it."
    raise ConfigError(field, str(path), problem, fix)


def _content(field: str, files: dict[str, Path]) -> dict[str, Any]:
    """What the certificate says, once key and CA are found to fit it. Raises ConfigError."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    for context in (server, client):
        _load_pair(context, field, files)
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= NO_CHECK_TIME
    try:
        server.load_verify_locations(files["ca"])
    except ssl.SSLError:
        raise ConfigError(
            f"{field}.ca", str(files["ca"]), "holds no certificate", "Use the CA's ca.pem."
        ) from None
    try:
        return _handshake(client, server)
    except ssl.SSLCertVerificationError:
        raise ConfigError(
            f"{field}.cert",
            str(files["cert"]),
            f"was not issued by the CA in {files['ca']}",
            "Use the ca.pem that came with it, or issue it again.",
        ) from None
    except ssl.SSLError as error:
        raise ConfigError(
            f"{field}.cert", str(files["cert"]), f"cannot be used: {error}", "Issue it again."
        ) from None


def _load_pair(context: ssl.SSLContext, field: str, files: dict[str, Path]) -> None:
    def no_password() -> str:
        raise ConfigError(
            f"{field}.key", str(files["key"]), "is encrypted", "Nodes start unattended: decrypt it."
        )

    try:
        context.load_cert_chain(files["cert"], files["key"], no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"{field}.key",
                str(files["key"]),
                f"does not belong to the certificate {files['cert']}",
                "Use the two that were issued together.",
            ) from None
        raise ConfigError(
            f"{field}.cert",
            str(files["cert"]),
            f"this and {files['key']} are not a certificate and key in PEM",
            "Issue them again with `sfl ca issue`.",
        ) from None


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> dict[str, Any]:
    """Let the two talk in memory; what the server then knows of the client."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)]
    waiting = True
    while waiting:
        waiting = False
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                waiting = True
    return ends[1].getpeercert() or {}
