"""Why a channel does not come up: gRPC hides TLS's reasons, so a handshake of our own asks.

It is asked only while a channel waits, and only what an outsider can see for certain is an answer:
a server that is not there, or is just going, is none. A server says nothing of why it does not
take a client's certificate; its own log does. One without TLS would not notice at all, and is told.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

from sfl.node.certificates.identity import Role, covers, identity_in, server_name
from sfl.node.certificates.own import NO_CHECK_TIME, OwnCertificate, time_problem, uris
from sfl.transport.security.addresses import split_address
from sfl.transport.security.credentials import tell_of_tls

TIMEOUT = 10.0
"""Seconds for each step of a look; a slow link's round trip is a second or two."""
LISTEN = 0.4
"""Seconds to wait for the server's first word after the handshake, or twice what that took: a
refusal comes at once, but it has to come."""
UNSUITABLE_PURPOSE = 26
"""OpenSSL's X509_V_ERR_INVALID_PURPOSE."""


def why_refused(address: str, role: Role, own: OwnCertificate | None) -> str | None:
    """Why the server of this role will not talk to us over TLS; None where nothing is amiss.

    Takes a few round trips; on a link that swallows all, TIMEOUT for each.
    """
    host, port = split_address("address", address)
    try:
        with socket.create_connection((host, port), TIMEOUT) as raw:
            return _without(raw, host) if own is None else _with(raw, address, role, own)
    except OSError:
        return None  # nobody there, or going


def _without(raw: socket.socket, host: str) -> str | None:
    """We have no certificate: it matters only whether the server speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        context.wrap_socket(raw, server_hostname=host).close()
    except ssl.SSLError:
        return None
    return "it accepts TLS only, and this node has no certificate; give it one ([tls], or --certs)"


def _with(raw: socket.socket, address: str, role: Role, own: OwnCertificate) -> str | None:
    host, _ = split_address("address", address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # compared below, where the answer can name what is there
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= NO_CHECK_TIME
    context.load_verify_locations(own.ca)
    context.load_cert_chain(own.cert, own.key)
    context.set_alpn_protocols(["h2"])
    began = time.monotonic()
    try:
        tls = context.wrap_socket(raw, server_hostname=server_name(role, host))
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == UNSUITABLE_PURPOSE:
            return "its certificate is not a server's: something else answers there"
        return f"its certificate was not issued by the CA in {own.ca}: the two have different CAs"
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        return None
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
            tell_of_tls(address)
            return "it does not use TLS, and this node requires it; give it a certificate too"
        return f"no TLS 1.3 with it: {error.reason or error}"
    with tls:
        return _content_problem(tls.getpeercert() or {}, host, role) or _reception(
            tls, own, max(LISTEN, 2 * (time.monotonic() - began))
        )


def _content_problem(content: dict[str, Any], host: str, role: Role) -> str | None:
    """What is wrong with the server's certificate, which our CA has issued."""
    if problem := time_problem(content):
        return f"its certificate {problem}"
    names = [value for kind, value in content.get("subjectAltName", ()) if kind == "DNS"]
    if covers(names, server_name(role, host)):
        return None
    identity = identity_in(uris(content))
    if identity is None or identity.role != role:
        return f"its certificate is of {identity or 'no node'}, not of a node of role {role}"
    end = f".{role}.sfl"
    hosts = ", ".join(name.removesuffix(end) for name in names if name.endswith(end))
    return f"its certificate is for {hosts}, not for {host}: issue it with --host {host}"


def _reception(tls: ssl.SSLSocket, own: OwnCertificate, listen: float) -> str | None:
    """In TLS 1.3 a server judges the client's certificate after the client thinks all is well."""
    tls.settimeout(listen)
    try:
        if tls.recv(1):
            return None
    except TimeoutError:
        return None
    except OSError:
        pass  # cut off, with or without an alert
    return (
        f"it rejects the certificate {own.cert}: it trusts another CA, or one of the "
        "clocks is wrong; its log has the reason"
    )
