"""Who did not get through a server's TLS, in words: gRPC tells only standard error, in OpenSSL's.

So what native code writes there is read on its way. A line on a failed handshake becomes a line of
the log, which is JSON where logs are; any other goes on as it is. gRPC names no address.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator

from sfl.node.logs import Sparing

log = logging.getLogger(__name__)
sparing = Sparing(log)

STDERR = 2
FAILED = re.compile(r"Handshake failed with error .*OPENSSL_internal:(\w+)(?:: (.*))?$")
OTHER_NAME = re.compile(r"No match found for server name: (\S+)$")
NO_TLS = "it does not use TLS, and this node requires it; give it a certificate ([tls], or --certs)"
ANOTHER_CA = "its certificate is not of this node's CA: one of the two has another ca.pem"
UNKNOWN = "it ended the TLS handshake; it may not know the CA of this node's certificate"
BY_CODE = {
    "WRONG_VERSION_NUMBER": NO_TLS,
    "HTTP_REQUEST": NO_TLS,
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it sent no certificate; give it one (--certs)",
    "NO_SHARED_CIPHER": "it does not use TLS 1.3",
    "UNSUPPORTED_PROTOCOL": "it does not use TLS 1.3",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the CA of this node's certificate",
}
BY_TEXT = {
    "unable to get local issuer certificate": ANOTHER_CA,
    "self signed certificate in certificate chain": ANOTHER_CA,
    "certificate signature failure": ANOTHER_CA,
    "certificate has expired": "its certificate has expired, by this machine's clock",
    "certificate is not yet valid": "its certificate is not valid yet, by this machine's clock",
}
LEAVE = 1.0
"""Seconds for the last lines, where a child still holds the pipe."""


def explain(line: str) -> str | None:
    """What a line of gRPC's says of a handshake that failed, or will; None where it does not."""
    if (other := OTHER_NAME.search(line.rstrip())) is not None:
        return f"a client asked for {other[1]}, which is not in this node's certificate"
    found = FAILED.search(line.rstrip())
    if found is None:
        return None
    code, text = found[1], found[2] or ""
    if code == "CERTIFICATE_VERIFY_FAILED":
        why, said = BY_TEXT.get(text, "its certificate is rejected"), text
    else:
        why, said = BY_CODE.get(code, UNKNOWN), code
    return f"a connection was refused: {why} ({said})"


@contextlib.contextmanager
def explained_handshakes() -> Iterator[None]:
    """Read native code's standard error for as long as this lasts; Python's own goes past it.

    A writer never waits: where the reader does not keep up, lines are lost. So is what native code
    writes with its last breath, for which Python's stacks are shown on a fatal signal.
    """
    beyond = os.dup(STDERR)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    python, sys.stderr = sys.stderr, os.fdopen(os.dup(beyond), "w", 1, errors="backslashreplace")
    _move_handlers(python, sys.stderr)
    faulthandler.enable(beyond)
    os.dup2(writing, STDERR)
    os.close(writing)
    reader = threading.Thread(target=_read, args=(reading, beyond), name="stderr", daemon=True)
    reader.start()
    try:
        yield
    finally:
        os.dup2(beyond, STDERR)  # nobody writes to the pipe any more: the reader ends
        reader.join(LEAVE)
        faulthandler.disable()
        _move_handlers(sys.stderr, python)
        sys.stderr = python


def _move_handlers(old: object, new: object) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is old:
            handler.setStream(new)


def _read(reading: int, beyond: int) -> None:
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            reason = explain(line.decode(errors="replace"))
            if reason is not None:
                sparing.warning(reason, "%s", reason)
            else:
                with contextlib.suppress(OSError):  # its disk is full, or its reader gone
                    os.write(beyond, line)
