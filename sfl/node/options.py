"""Command-line options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfl.errors import ConfigError
from sfl.node.logs import ENVIRONMENT, LogFormat

SERVICE = "SFL_SERVICE"
"""Environment variable with a service's address."""

ConfigFile = Annotated[Path, typer.Argument(help="A TOML file; `sfl init` writes one.")]
OptionalConfigFile = Annotated[
    Path | None, typer.Argument(help="A TOML file; `sfl init` writes one. None with --resume.")
]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        help="Go on with a run that was stopped: its id, the beginning of it, or its path.",
    ),
]
Supervised = Annotated[
    bool,
    typer.Option(
        "--supervised",
        help="Exit with 0 also where the run has failed: for an engine that starts again whoever "
        "exits with anything else.",
    ),
]
MaxRuns = Annotated[
    int | None, typer.Option("--max-runs", min=1, help="Runs of a service at once, at most.")
]
Service = Annotated[
    str | None,
    typer.Option(
        "--service",
        metavar="HOST:PORT",
        help="Stay attached to a service (docs/service.md), and compute the runs that it gives.",
    ),
]
JournalUrl = Annotated[
    str | None,
    typer.Option(
        "--journal",
        metavar="URL",
        help="The database with the run's events, as in cloud.journal. With --resume, or for a "
        "service's runs.",
    ),
]
ArtifactsUrl = Annotated[
    str | None,
    typer.Option(
        "--artifacts",
        metavar="URL",
        help="The store with the run's files, as in cloud.artifacts. With --resume, or for a "
        "service's runs.",
    ),
]
OutputDir = Annotated[Path, typer.Option(help="Folder with the runs.")]
RunsFolder = Annotated[
    Path | None,
    typer.Option("--output-dir", help="Folder with the runs, without CONFIG; default: runs."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; repeatable."),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Allow addresses other than loopback without TLS."),
]
Certs = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder with ca.pem, NAME.pem and NAME.key, instead of the file's tls."
    ),
]
Claim = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Take the first free DIR/NAME: its name and, without --insecure, its certificate. "
        "For replicas of a container on one machine.",
    ),
]
Logs = Annotated[
    LogFormat,
    typer.Option("--log-format", envvar=ENVIRONMENT, help="Text for people, or JSON."),
]
AddressFile = Annotated[
    Path | None,
    typer.Option(help="Write the address that was bound to this file.", hidden=True),
]
ErrorFile = Annotated[
    Path | None, typer.Option(help="Write the reason of a failure to this file.", hidden=True)
]


def require_one(config: Path | None, resume: str | None) -> None:
    """Either a new run's file, or a run to go on with. Raises ConfigError."""
    if (config is None) != (resume is None):
        return
    if config is None:
        raise ConfigError("CONFIG", "", "is missing", "Name a run's file, or a run by --resume.")
    problem = "that run has its settings already"
    raise ConfigError("--resume", resume, problem, f"Leave out {config}, or --resume.")


def require_of_service(max_runs: int | None) -> None:
    """Raises ConfigError for a limit that nobody would look at."""
    if max_runs is not None:
        fix = "Leave it out (docs/service.md)."
        raise ConfigError("--max-runs", max_runs, "is of a service and its agents alone", fix)


def folder_of_runs(config: Path | None, output_dir: Path | None) -> Path:
    """Where runs are. Raises ConfigError beside a run's file, which says that itself."""
    if config is not None and output_dir is not None:
        fix = "Use --set run.output_dir=DIR."
        raise ConfigError("--output-dir", str(output_dir), "goes without CONFIG", fix)
    return output_dir or Path("runs")


def require_both(config: Path | None, journal: str | None, artifacts: str | None) -> None:
    """The places of a run that goes on elsewhere: both or neither, and no file.

    Raises ConfigError.
    """
    if journal is None and artifacts is None:
        return
    if config is not None:
        fix = "Set cloud.journal and cloud.artifacts in the file."
        raise ConfigError("--journal", journal or "", "goes with --resume alone", fix)
    for option, given in (("--journal", journal), ("--artifacts", artifacts)):
        if not given:
            fix = "Name the database and the store."
            raise ConfigError(option, "", "is missing", fix)
