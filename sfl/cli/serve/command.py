"""What `sfl serve` starts."""

from __future__ import annotations

import os
from pathlib import Path

from sfl.config.serve import load_serve, load_serve_device
from sfl.node.certificates.own import own_certificate
from sfl.node.logs import ENVIRONMENT, LogFormat, start_logging
from sfl.node.process import cores, keep_heap, quiet_environment, run_loop, run_node


def serve_device(
    path: Path,
    overrides: tuple[str, ...],
    insecure: bool,
    log_format: LogFormat,
    certs: Path | None,
) -> int:
    """A device that answers, until it is told to end; the exit code."""
    quiet_environment()
    keep_heap()
    start_logging(log_format)

    def body() -> None:
        config = load_serve_device(path, overrides)
        own = own_certificate("device", config.device.name, config.device.tls, certs)
        threads = cores() if config.device.threads == "auto" else config.device.threads
        # Imported here: torch takes a second, and reads the environment when it is loaded.
        from sfl.models.modeling import leave_out_compiler

        leave_out_compiler()
        from device_agent.serving.model import served_model
        from device_agent.serving.node import ServingDevice

        folder = served_model(config, insecure, own)

        async def serve() -> None:
            await ServingDevice(config, threads, insecure, own, folder).run()

        run_loop(serve())

    return run_node(body)


def serve_here(path: Path, overrides: tuple[str, ...], log_format: LogFormat) -> int:
    """An edge and devices, each in a process of its own, until one ends; the exit code."""
    os.environ[ENVIRONMENT] = log_format  # for the nodes' logs
    start_logging(log_format)

    def body() -> None:
        from sfl.cli.serve.here import Processes

        with Processes(load_serve(path, overrides)) as processes:
            processes.wait()

    return run_node(body)
