"""`sfl cloud` and `python -m cloud_aggregator`."""

from __future__ import annotations

import typer

from sfl.node.logs import start_logging
from sfl.node.machine import allow_open_files
from sfl.node.options import AddressFile, Certs, ConfigFile, ErrorFile, Insecure, Logs, Overrides
from sfl.node.process import quiet_environment, run_loop, run_node


def cloud(
    config: ConfigFile,
    overrides: Overrides = None,
    insecure: Insecure = False,
    log_format: Logs = "text",
    certs: Certs = None,
    address_file: AddressFile = None,
    error_file: ErrorFile = None,
) -> None:
    """Start the cloud: it owns the run's settings, keeps its rounds and averages its adapters."""
    quiet_environment()
    start_logging(log_format)
    allow_open_files()

    def body() -> None:
        # Imported here so that `--help` answers at once.
        from cloud_aggregator.aggregator import CloudAggregator
        from sfl.node.certificates.own import own_certificate
        from sfl.report.conclusion import concluded
        from sfl.report.runs import load_for_cloud, open_run_folder
        from sfl.transport.security.handshakes import explained_handshakes

        settings = load_for_cloud(config, overrides or [], insecure)
        own = own_certificate("cloud", None, settings.cloud.tls, certs)
        folder = open_run_folder(settings)

        async def serve() -> None:
            await CloudAggregator(settings, folder, own).run(address_file)

        with explained_handshakes(), concluded(folder, settings):
            run_loop(serve())

    raise typer.Exit(run_node(body, error_file))
