"""An edge's port for the agents of its devices, while it is attached to a service itself."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from sfl.node.certificates.own import OwnCertificate
from sfl.node.files import write_atomic
from sfl.transport.jobs.relay import Relay
from sfl.transport.security.credentials import bind, new_server
from sfl.transport.security.door import Door

log = logging.getLogger("sfl.agent")


@contextlib.asynccontextmanager
async def relaying(
    relay: Relay,
    listen: str,
    insecure: bool,
    own: OwnCertificate | None,
    address_file: Path | None,
) -> AsyncIterator[None]:
    """Where devices attach. Raises ConfigError."""
    door = Door()
    server = new_server(own, door)
    server.add_generic_rpc_handlers((relay.handler(),))
    address = bind(server, "edge.listen", listen, insecure, own)
    await server.start()
    if address_file is not None:
        write_atomic(address_file, address)
    log.info("devices attach at %s", address)
    try:
        with door.watched(address):
            yield
    finally:
        await server.stop(grace=1.0)
