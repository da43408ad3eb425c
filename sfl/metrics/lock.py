"""How `/metrics` is kept from others: TLS, a name with a password, or neither."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import socket
import ssl
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

from sfl.config.node import MetricsSettings
from sfl.errors import ConfigError
from sfl.metrics.clients import SECONDS, Clients
from sfl.node.logs import Sparing
from sfl.node.paths import expanded

log = logging.getLogger(__name__)
sparing = Sparing(log)

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Lock:
    """What a client has to show and to speak; the password itself is not kept."""

    tls: ssl.SSLContext | None = None
    username: str = ""
    digest: bytes = field(default=b"", repr=False)

    @classmethod
    def from_settings(cls, settings: MetricsSettings) -> Lock:
        """What the settings ask for. Raises ConfigError."""
        tls, username, digest = None, "", b""
        if settings.cert is not None and settings.key is not None:
            tls = _context(
                expanded(settings.cert, "metrics.cert"), expanded(settings.key, "metrics.key")
            )
        if settings.username is not None and settings.password_file is not None:
            username = settings.username
            digest = _digest(_password(expanded(settings.password_file, "metrics.password_file")))
            if tls is None and settings.host not in ("127.0.0.1", "::1", "localhost"):
                log.warning(
                    "metrics.host = %s: the password travels unencrypted; add metrics.cert and key",
                    settings.host,
                )
        return cls(tls, username, digest)

    def open(self, host: str, port: int, app: App) -> WSGIServer:
        """A server of `app` behind this lock, its port bound. Raises OSError, OverflowError."""
        family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        kind = type("MetricsHttpServer", (_Server,), {"address_family": family})
        server: _Server = kind((address[0], port), _Quiet)
        server.tls = self.tls
        server.set_app(self._asking(app) if self.digest else app)
        return server

    def _asking(self, app: App) -> App:
        def asking(environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
            if self._knows(environ.get("HTTP_AUTHORIZATION", "")):
                return app(environ, respond)
            respond(
                "401 Unauthorized",
                [("WWW-Authenticate", 'Basic realm="metrics"'), ("Content-Type", "text/plain")],
            )
            return [b"a name and a password are needed\n"]

        return asking

    def _knows(self, header: str) -> bool:
        scheme, _, text = header.partition(" ")
        try:
            given = base64.b64decode(text, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return False
        name, _, password = given.partition(":")
        # Both are compared, in a time that tells nothing of where they differ.
        right = hmac.compare_digest(name.encode(), self.username.encode())
        right &= hmac.compare_digest(_digest(password), self.digest)
        return scheme.lower() == "basic" and right


OPEN = Lock()
_LONGEST_LINE = 65536


class _Server(ThreadingMixIn, WSGIServer):
    """One thread a request; so a client that says nothing holds up nobody else."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # a flood fills the base class's five: a scrape then dials for seconds
    tls: ssl.SSLContext | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.clients = Clients()
        super().__init__(*arguments, **options)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is a thread for one more."""
        return self.clients.enter(request)

    def close_request(self, request: Any) -> None:
        """Its thread is free again."""
        self.clients.leave(request)
        super().close_request(request)

    def service_actions(self) -> None:
        """Twice a second, and after each client."""
        self.clients.end_late()

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(SECONDS)
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        try:
            # Here and not at the listening socket, where one client's handshake blocks all others.
            with self.tls.wrap_socket(request, server_side=True) as wrapped:
                super().finish_request(wrapped, client_address)
        except OSError as error:
            host = client_address[0]
            sparing.warning(host, "metrics: %s refused: %s", host, error)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("metrics: a request of %s broke", client_address[0], exc_info=True)


class _Answer(ServerHandler):
    """One answer; a client that hangs up in the middle is no news, and no traceback."""

    http_version = "1.1"

    def log_exception(self, exc_info: Any) -> None:
        error = exc_info[1]
        if isinstance(error, OSError):
            log.debug("metrics: a client hung up: %s", error)
        else:
            log.error("metrics: this is a bug in sfl", exc_info=exc_info)

    def error_output(self, environ: Any, start_response: Any) -> list[bytes]:
        if isinstance(sys.exc_info()[1], OSError):
            return []  # nobody is there to read it
        return super().error_output(environ, start_response)


class _Quiet(WSGIRequestHandler):
    def handle(self) -> None:
        """As the base class does, with an answer of our own."""
        self.raw_requestline = self.rfile.readline(_LONGEST_LINE + 1)
        if len(self.raw_requestline) > _LONGEST_LINE:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
            return
        if not self.parse_request():
            return
        output: Any = self.wfile
        answer = _Answer(
            self.rfile, output, self.get_stderr(), self.get_environ(), multithread=False
        )
        answer.request_handler = self  # type: ignore[attr-defined]
        answer.run(self.server.get_app())  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Scrapes are no news."""


def _context(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # Prometheus's scrapers, older ones too
    _check_readable("metrics.cert", cert)
    _check_readable("metrics.key", key)

    def no_password() -> str:
        raise ConfigError(
            "metrics.key", str(key), "is encrypted", "Nodes start unattended: decrypt it."
        )

    try:
        context.load_cert_chain(cert, key, no_password)
    except ssl.SSLError as error:
        raise ConfigError(
            "metrics.key",
            str(key),
            f"does not go with the certificate {cert}: {error.reason or 'no PEM'}",
            "Use the two that were issued together.",
        ) from None
    return context


def _password(path: Path) -> str:
    _check_readable("metrics.password_file", path)
    if path.stat().st_mode & 0o077:
        log.warning("metrics.password_file = %s: others can read it; chmod 600 %s", path, path)
    password = path.read_text(encoding="utf-8").strip()
    if not password:
        raise ConfigError("metrics.password_file", str(path), "is empty", "Write a password to it.")
    return password


def _check_readable(name: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(
            name, str(path), f"cannot be read: {error.strerror}", "Fix the path or its mode."
        ) from None


def _digest(password: str) -> bytes:
    return hashlib.sha256(password.encode()).digest()
