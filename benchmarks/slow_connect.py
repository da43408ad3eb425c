"""How long nodes take to connect over a slow link with TLS, and how many connections it takes.

    python benchmarks/slow_connect.py        # half a minute

A real server with an edge's certificate stands behind a proxy on loopback that makes every
connection wait for a round trip and delays what it carries by half of one each way. A device's
channel (sync) and an edge's (aio) are dialled through it, as the nodes do.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sfl.node.process import quiet_environment

TRIPS = (0.0, 0.1, 0.3, 0.5, 0.8, 2.0)
PATIENCE = 60.0


@contextmanager
def server(own: object) -> Iterator[str]:
    """An edge's door without services; yields its address."""
    from sfl.node.certificates.own import OwnCertificate
    from sfl.transport.security.credentials import bind, new_server

    assert isinstance(own, OwnCertificate)
    ready, over = threading.Event(), threading.Event()
    address = ""

    async def serve() -> None:
        nonlocal address
        door = new_server(own)
        address = bind(door, "edge.listen", "127.0.0.1:0", False, own)
        await door.start()
        ready.set()
        while not over.is_set():
            await asyncio.sleep(0.05)
        await door.stop(0)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield address
    finally:
        over.set()
        thread.join()


def main() -> None:
    """Print the table."""
    quiet_environment()
    from sfl.config.node import TlsSettings
    from sfl.node.certificates.authority import Authority
    from sfl.node.certificates.identity import Identity
    from sfl.node.certificates.own import OwnCertificate, load_own
    from sfl.transport.dialling import wait_for_peer, wait_for_peer_aio
    from sfl.transport.security.credentials import open_aio_channel, open_channel
    from sfl.transport.security.diagnosis import why_refused
    from tests.house.proxy import Proxy

    def issued(authority: Authority, folder: Path, role: str, *hosts: str) -> OwnCertificate:
        identity = Identity(role, role)  # type: ignore[arg-type]
        authority.write(authority.issue(identity, hosts, 30), folder)
        files = TlsSettings(
            ca=folder / "ca.pem", cert=folder / f"{role}.pem", key=folder / f"{role}.key"
        )
        return load_own("tls", files, role, role)  # type: ignore[arg-type]

    def device(address: str, own: OwnCertificate) -> None:
        why = partial(why_refused, address, "edge", own)
        with open_channel("edge", address, False, own, "edge") as channel:
            wait_for_peer(channel, "it", PATIENCE, why)

    async def edge(address: str, own: OwnCertificate) -> None:
        why = partial(why_refused, address, "edge", own)
        async with open_aio_channel("edge", address, False, own, "edge") as channel:
            await wait_for_peer_aio(channel, "it", PATIENCE, why)

    print("round trip  device: seconds, connections   edge: seconds, connections")
    with tempfile.TemporaryDirectory() as name:
        folder, authority = Path(name), Authority.create()
        theirs = issued(authority, folder / "edge", "edge", "127.0.0.1")
        own = issued(authority, folder / "device", "device")
        with server(theirs) as address:
            for trip in TRIPS:
                line = f"{trip:8.1f} s"
                for on_a_loop in (False, True):
                    with Proxy(address, trip) as proxy:
                        began = time.perf_counter()
                        if on_a_loop:
                            asyncio.run(edge(proxy.address, own))
                        else:
                            device(proxy.address, own)
                        seconds = time.perf_counter() - began
                        line += f"{seconds:16.2f} {proxy.connections:8d}     "
                print(line.rstrip(), flush=True)


if __name__ == "__main__":
    main()
