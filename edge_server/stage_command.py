"""`sfl stage`."""

from __future__ import annotations

import typer

from sfl.config.load import load_stage
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
    Overrides,
    Supervised,
)
from sfl.node.process import cores, keep_heap, quiet_environment, run_loop, run_node


def stage(
    config: ConfigFile,
    overrides: Overrides = None,
    insecure: Insecure = False,
    log_format: Logs = "text",
    certs: Certs = None,
    supervised: Supervised = False,
    address_file: AddressFile = None,
    error_file: ErrorFile = None,
) -> None:
    """Start a stage server: the deeper tier behind one or more edges.

    It reads the [stage] table. Edges with next = its address tell it which run they are in.
    """
    quiet_environment()
    keep_heap()
    start_logging(log_format)
    allow_open_files()

    def body() -> None:
        settings = load_stage(config, overrides or [])
        own = own_certificate("edge", settings.name, settings.tls, certs)
        # Imported here: torch takes a second, and reads the environment when it is loaded.
        from edge_server.stage import StageServer
        from sfl.transport.security.handshakes import explained_handshakes

        threads = cores() if settings.threads == "auto" else settings.threads

        async def serve() -> None:
            server = StageServer(settings, threads, insecure, own)
            await server.run(address_file)

        with explained_handshakes():
            run_loop(serve())

    raise typer.Exit(run_node(body, error_file, supervised))
