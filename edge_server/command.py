"""`sfl edge` and `python -m edge_server`."""

from __future__ import annotations

from pathlib import Path

import typer

from sfl.config import load_edge
from sfl.config.serve import ServeEdgeConfig, load_serve_edge, serves
from sfl.node.certificates.own import own_certificate
from sfl.node.logs import start_logging
from sfl.node.machine import allow_open_files
from sfl.node.options import (
    AddressFile,
    Certs,
    ConfigFile,
    ErrorFile,
    Insecure,
    Logs,
    MaxRuns,
    Overrides,
    Service,
    Supervised,
    require_of_service,
)
from sfl.node.process import cores, keep_heap, quiet_environment, run_loop, run_node
from sfl.service.command import AskedAgent, attaches_to, serve_edge


def edge(
    config: ConfigFile,
    overrides: Overrides = None,
    insecure: Insecure = False,
    log_format: Logs = "text",
    certs: Certs = None,
    service: Service = None,
    max_runs: MaxRuns = None,
    supervised: Supervised = False,
    address_file: AddressFile = None,
    error_file: ErrorFile = None,
) -> None:
    """Start an edge server. Its devices share the frozen base; each has a LoRA of its own.

    With --service it stays attached to a service, and computes its runs. With a file that has a
    [serve] table it serves: devices answer with the model and its adapters.
    """
    quiet_environment()
    keep_heap()
    start_logging(log_format)
    allow_open_files()

    def body() -> None:
        if serves(config):
            _serve(load_serve_edge(config, overrides or []), insecure, certs, address_file)
            return
        settings = load_edge(config, overrides or [])
        own = own_certificate("edge", settings.name, settings.tls, certs)
        if address := attaches_to(service, settings.service):
            asked = AskedAgent(config, tuple(overrides or ()), insecure, certs, own, max_runs)
            serve_edge(settings, asked, address, address_file)
            return
        require_of_service(max_runs)
        # Imported here: torch takes a second, and reads the environment when it is loaded.
        from edge_server.server import EdgeServer
        from sfl.transport.security.handshakes import explained_handshakes

        threads = cores() if settings.threads == "auto" else settings.threads

        async def serve() -> None:
            server = EdgeServer(settings, threads, insecure, own)
            await server.run(settings.connect_timeout, address_file)

        with explained_handshakes():
            run_loop(serve())

    raise typer.Exit(run_node(body, error_file, supervised))


def _serve(
    config: ServeEdgeConfig, insecure: bool, certs: Path | None, address_file: Path | None
) -> None:
    """Serve conversations until this process is told to end."""
    from edge_server.serving import ServingEdge
    from sfl.transport.security.handshakes import explained_handshakes

    edge = config.edge
    own = own_certificate("edge", edge.name, edge.tls, certs)
    threads = cores() if edge.threads == "auto" else edge.threads

    async def serve() -> None:
        await ServingEdge(config, threads, insecure, own).run(address_file)

    with explained_handshakes():
        run_loop(serve())
