"""`sfl cloud` and `python -m cloud_aggregator`."""

from __future__ import annotations

import asyncio

import typer

from sfl.logs import start_logging
from sfl.options import AddressFile, ConfigFile, ErrorFile, Insecure, Logs, Overrides
from sfl.process import run_node


def cloud(
    config: ConfigFile,
    overrides: Overrides = None,
    insecure: Insecure = False,
    log_format: Logs = "text",
    address_file: AddressFile = None,
    error_file: ErrorFile = None,
) -> None:
    """Start the cloud: it owns the run's settings, keeps its rounds and averages its adapters."""
    start_logging(log_format)

    def body() -> None:
        # Imported here so that `--help` answers at once.
        from cloud_aggregator.aggregator import CloudAggregator
        from sfl.runs import load_for_cloud

        settings, folder = load_for_cloud(config, overrides or [], insecure)

        async def serve() -> None:
            await CloudAggregator(settings, folder).run(address_file)

        asyncio.run(serve())

    raise typer.Exit(run_node(body, error_file))
