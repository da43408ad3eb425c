"""`sfl device` and `python -m device_agent`."""

from __future__ import annotations

import typer

from sfl.certificates.own import own_certificate
from sfl.config import load_device
from sfl.logs import start_logging
from sfl.options import Certs, ConfigFile, ErrorFile, Insecure, Logs, Overrides
from sfl.process import cores, quiet_environment, return_memory, run_node


def device(
    config: ConfigFile,
    overrides: Overrides = None,
    insecure: Insecure = False,
    log_format: Logs = "text",
    certs: Certs = None,
    error_file: ErrorFile = None,
) -> None:
    """Start a device agent: the first blocks of the model, and the data that never leave it."""
    quiet_environment()
    returned = return_memory()
    start_logging(log_format)

    def body() -> None:
        settings = load_device(config, overrides or [])
        own = own_certificate("device", settings.name, settings.tls, certs)
        # Imported here: torch takes a second, and reads the environment when it is loaded.
        import torch

        from sfl.models.modeling import leave_out_compiler

        leave_out_compiler()
        from device_agent.agent import DeviceAgent

        torch.set_num_threads(cores() if settings.threads == "auto" else settings.threads)
        DeviceAgent(settings, insecure, returned, own).run(settings.connect_timeout)

    raise typer.Exit(run_node(body, error_file))
