"""`sfl cloud` and `python -m cloud_aggregator`."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import typer

from sfl.errors import RunFailed
from sfl.node.logs import start_logging
from sfl.node.machine import allow_open_files
from sfl.node.options import (
    AddressFile,
    ArtifactsUrl,
    Certs,
    ErrorFile,
    Insecure,
    JournalUrl,
    Logs,
    MaxRuns,
    OptionalConfigFile,
    Overrides,
    Resume,
    RunsFolder,
    folder_of_runs,
    require_both,
    require_of_service,
    require_one,
)
from sfl.node.process import quiet_environment, run_loop, run_node
from sfl.service.command import Asked, serve_runs

log = logging.getLogger("sfl.cloud")


def cloud(
    config: OptionalConfigFile = None,
    overrides: Overrides = None,
    insecure: Insecure = False,
    log_format: Logs = "text",
    certs: Certs = None,
    resume: Resume = None,
    journal: JournalUrl = None,
    artifacts: ArtifactsUrl = None,
    output_dir: RunsFolder = None,
    max_runs: MaxRuns = None,
    address_file: AddressFile = None,
    error_file: ErrorFile = None,
) -> None:
    """Start the cloud: it owns the run's settings, keeps its rounds and averages its adapters.

    With --resume it goes on with a run that was stopped, where that was. CONFIG --resume auto, for
    a service: the latest run of these settings that was stopped, else a new one.

    With --resume, --journal and --artifacts it goes on with a run whose machine is gone.

    With neither it is a service that queues runs (sfl submit), and agents compute them. --journal
    and --artifacts then say where each run is kept.
    """
    quiet_environment()
    start_logging(log_format)
    allow_open_files()
    if config is None and resume is None:
        kept = {"journal": journal, "artifacts": artifacts}
        own = [f"service.{key}={json.dumps(url)}" for key, url in kept.items() if url]
        given = [*(overrides or []), *own]
        asked = Asked(given, max_runs, output_dir or Path("runs"), insecure, certs, address_file)
        raise typer.Exit(run_node(lambda: serve_runs(asked), error_file))

    def body() -> None:
        # Imported here so that `--help` answers at once.
        from cloud_aggregator.aggregator import CloudAggregator
        from sfl.node.certificates.own import own_certificate
        from sfl.report.conclusion import concluded
        from sfl.report.elsewhere import check_storage
        from sfl.report.resume import (
            AUTO,
            how_ended,
            resumed,
            resumed_elsewhere,
            resumed_or_new,
        )
        from sfl.report.runs import load_for_cloud, open_run_folder
        from sfl.transport.security.handshakes import explained_handshakes

        as_service = config is not None and resume == AUTO
        if not as_service:
            require_one(config, resume)
        require_both(config, journal, artifacts)
        require_of_service(max_runs)
        runs = folder_of_runs(config, output_dir)
        if config is None:
            assert resume is not None, "one of both is given"
            given = (overrides or [], insecure, runs)
            if journal is None:
                folder, settings = resumed(resume, *given)
            else:
                folder, settings = resumed_elsewhere(resume, journal, artifacts or "", *given)
            own = own_certificate("cloud", None, settings.cloud.tls, certs)
        else:
            settings = load_for_cloud(config, overrides or [], insecure)
            own = own_certificate("cloud", None, settings.cloud.tls, certs)
            if as_service:
                folder, settings = resumed_or_new(settings)
            else:
                check_storage(settings)
                folder = open_run_folder(settings)

        async def serve() -> None:
            await CloudAggregator(settings, folder, own).run(address_file)

        try:
            with explained_handshakes(), concluded(folder, settings):
                run_loop(serve())
        except RunFailed as error:
            if not as_service or how_ended(folder, settings) is None:
                raise
            log.error("%s", error)  # its end: whoever starts this again would begin another run

    raise typer.Exit(run_node(body, error_file))
