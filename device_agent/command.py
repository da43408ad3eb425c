"""`sfl device` and `python -m device_agent`."""

from __future__ import annotations

import contextlib
import signal

import typer

from sfl.config import DeviceConfig, load_device
from sfl.errors import ConfigError
from sfl.node.certificates.claim import claim_identity
from sfl.node.certificates.own import OwnCertificate, own_certificate
from sfl.node.files import writable_folder
from sfl.node.logs import start_logging
from sfl.node.options import (
    Certs,
    Claim,
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
from sfl.node.process import cores, keep_heap, quiet_environment, return_memory, run_node
from sfl.service.command import AskedAgent, attaches_to, serve_device


def device(
    config: ConfigFile,
    overrides: Overrides = None,
    insecure: Insecure = False,
    log_format: Logs = "text",
    certs: Certs = None,
    claim: Claim = None,
    service: Service = None,
    max_runs: MaxRuns = None,
    supervised: Supervised = False,
    error_file: ErrorFile = None,
) -> None:
    """Start a device agent. It holds the model's first blocks; its data never leaves it.

    With --service it stays attached to a service, or to its edge's agent, and computes its runs.
    """
    quiet_environment()
    start_logging(log_format)

    def body() -> None:
        if certs is not None and claim is not None:
            raise ConfigError(
                "--certs", str(certs), "cannot be used with --claim", "Give one of the two."
            )
        with contextlib.nullcontext() if claim is None else claim_identity(claim) as claimed:
            named = [] if claimed is None else [f'device.name="{claimed.name}"']
            settings = load_device(config, [*(overrides or []), *named])
            folder = certs if claimed is None or insecure else claimed
            own = own_certificate("device", settings.name, settings.tls, folder)
            if address := attaches_to(service, settings.service):
                given = (*(overrides or ()), *named)
                asked = AskedAgent(config, given, insecure, folder, own, max_runs)
                serve_device(settings, asked, address)
                return
            require_of_service(max_runs)
            if settings.model is None:  # what comes from the edge is kept there
                writable_folder(settings.cache_dir, "device.cache_dir")
            _take_part(settings, insecure, own)

    raise typer.Exit(run_node(body, error_file, supervised))


def _take_part(settings: DeviceConfig, insecure: bool, own: OwnCertificate | None) -> None:
    returned = settings.heap != "keep" and return_memory()
    if settings.heap == "keep":
        keep_heap()
    # Imported here: torch takes a second, and reads the environment when it is loaded.
    from sfl.models.modeling import leave_out_compiler

    leave_out_compiler()
    from device_agent.agent import DeviceAgent
    from sfl.stage.threads import compute_here

    compute_here(cores() if settings.threads == "auto" else settings.threads)
    agent = DeviceAgent(settings, insecure, returned, own)
    if hasattr(signal, "SIGUSR1"):  # not on Windows
        signal.signal(signal.SIGUSR1, lambda *_: agent.roaming.ask())
    agent.run(settings.connect_timeout)
