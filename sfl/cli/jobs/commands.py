"""submit, list, status, watch, logs and stop: of a service, or of a folder with runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sfl.node.options import SERVICE, Overrides

if TYPE_CHECKING:
    from rich.console import Console

    from sfl.cli.jobs.sources import Source
    from sfl.jobs.rows import Standing

TIMEOUT = 15.0

AtService = Annotated[
    str | None,
    typer.Option(
        "--service", metavar="HOST:PORT", envvar=SERVICE, help="A service; without: a folder."
    ),
]
Folder = Annotated[Path, typer.Option("--output-dir", help="Folder with runs, without a service.")]
OperatorCerts = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", envvar="SFL_CERTS", help="Folder with an operator's certificate (sfl ca)."
    ),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Allow a service beyond loopback without TLS.")
]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to reach the service.")]
Format = Annotated[
    Literal["table", "json"],
    typer.Option("--format", help="A table for people, or JSON for programs."),
]


def _named(run: str | None) -> str | None:
    """Not empty where it is given, as a script's unset variable is. Raises ConfigError."""
    if run is not None and not run.strip():
        from sfl.errors import ConfigError

        raise ConfigError("RUN", run, "is empty", "Name a run: sfl list.")
    return run


RunId = Annotated[
    str,
    typer.Argument(metavar="RUN", callback=_named, help="A run's id, or the beginning of it."),
]
MaybeRun = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", callback=_named, help="A run; default: all open ones."),
]
RUNS = Path("runs")


def submit(
    config: Annotated[Path, typer.Argument(help="A run's TOML file; `sfl init` writes one.")],
    overrides: Overrides = None,
    service: AtService = None,
    output_dir: Folder = RUNS,
    certs: OperatorCerts = None,
    insecure: Insecure = False,
    timeout: Timeout = TIMEOUT,
    format_: Format = "table",
) -> None:
    """Put a run into the queue of a service; its id is printed."""
    from sfl.cli.jobs.shown import say_json
    from sfl.config import dump_toml, load_run

    settings = dump_toml(load_run(config, overrides or []))
    with _source(service, output_dir, certs, insecure, timeout) as source:
        run = source.submit(settings)
    if format_ == "json":
        say_json({"run": run})
        return
    typer.echo(run)
    if not service:
        typer.echo(
            f"it waits in {output_dir} for a service: sfl cloud --output-dir {output_dir}", err=True
        )


def list_runs(
    service: AtService = None,
    output_dir: Folder = RUNS,
    certs: OperatorCerts = None,
    insecure: Insecure = False,
    timeout: Timeout = TIMEOUT,
    format_: Format = "table",
) -> None:
    """List runs: those that have not ended first, then the latest."""
    from sfl.cli.jobs.shown import runs_as_json, runs_table, say_json, show

    with _source(service, output_dir, certs, insecure, timeout) as source:
        rows, now = source.rows(), source.now()
    if format_ == "json":
        say_json(runs_as_json(rows))
    else:
        show(_console(), runs_table(rows, now))


def status(
    run: MaybeRun = None,
    service: AtService = None,
    output_dir: Folder = RUNS,
    certs: OperatorCerts = None,
    insecure: Insecure = False,
    timeout: Timeout = TIMEOUT,
    format_: Format = "table",
) -> None:
    """Show where a run stands, or the service: open runs, what they wait for, and agents."""
    from sfl.cli.jobs.shown import say_json, show, standing_picture

    with _source(service, output_dir, certs, insecure, timeout) as source:
        standing, now = source.standing(run or ""), source.now()
    if format_ == "json":
        say_json(standing.as_json())
    else:
        console = _console()
        show(console, standing_picture(standing, not run, now, console.width))


def watch(
    run: MaybeRun = None,
    service: AtService = None,
    output_dir: Folder = RUNS,
    certs: OperatorCerts = None,
    insecure: Insecure = False,
    timeout: Timeout = TIMEOUT,
    format_: Format = "table",
) -> None:
    """Watch a run to its end, as `sfl run` shows it; default: the first that has not ended.

    The exit code is 1 where it fails or is stopped. JSON: a line each time that it changes.
    """
    from sfl.cli.jobs.shown import say_json
    from sfl.cli.jobs.watching import watch_live

    with _source(service, output_dir, certs, insecure, timeout) as source:
        standings = source.watch(run or _first_open(source))
        if format_ == "json":
            last = None
            for last in standings:
                say_json(last.as_json())
        else:
            last = watch_live(_console(), standings)
    raise typer.Exit(_exit_code(last))


def logs(
    run: RunId,
    node: Annotated[
        str, typer.Argument(metavar="[NODE]", help="A node's name; default: all of them.")
    ] = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on to the end of the run.")
    ] = False,
    service: AtService = None,
    output_dir: Folder = RUNS,
    certs: OperatorCerts = None,
    insecure: Insecure = False,
    timeout: Timeout = TIMEOUT,
    format_: Format = "table",
) -> None:
    """Print what a run's nodes write to their logs, wherever they are."""
    from sfl.cli.jobs.shown import say_json

    with _source(service, output_dir, certs, insecure, timeout) as source:
        for name, data in source.logs(run, node, follow):
            said = data.decode(errors="replace")
            if format_ == "json":
                say_json({"node": name, "text": said})
            elif node:
                sys.stdout.write(said)
            else:
                sys.stdout.writelines(f"{name}  {line}\n" for line in said.splitlines())
            sys.stdout.flush()


def stop(
    run: RunId,
    reason: Annotated[str, typer.Option(help="Why; it is kept with the run.")] = "",
    service: AtService = None,
    output_dir: Folder = RUNS,
    certs: OperatorCerts = None,
    insecure: Insecure = False,
    timeout: Timeout = TIMEOUT,
    format_: Format = "table",
) -> None:
    """End a run, or take it out of the queue; its agents wait for the next one."""
    from sfl.cli.jobs.shown import say_json, show, standing_picture

    with _source(service, output_dir, certs, insecure, timeout) as source:
        standing, now = source.stop(run, reason), source.now()
    if format_ == "json":
        say_json(standing.as_json())
    else:
        show(_console(), standing_picture(standing, True, now))


def add_to(app: typer.Typer) -> None:
    """All of them, as commands."""
    for name, command in (
        ("submit", submit),
        ("list", list_runs),
        ("status", status),
        ("watch", watch),
        ("logs", logs),
        ("stop", stop),
    ):
        app.command(name)(command)


@contextlib.contextmanager
def _source(
    service: str | None, output_dir: Path, certs: Path | None, insecure: bool, timeout: float
) -> Iterator[Source]:
    from sfl.cli.jobs.sources import open_source
    from sfl.node.process import quiet_environment

    quiet_environment()
    source = open_source(service, output_dir, certs, insecure, timeout)
    try:
        yield source
    finally:
        source.close()


def _first_open(source: Source) -> str:
    """The first run that has not ended. Raises ConfigError."""
    from sfl.errors import ConfigError

    runs = source.standing("").runs
    if not runs:
        raise ConfigError("RUN", "", "no run is open", "Name one: sfl list.")
    return runs[0].run


def _exit_code(last: Standing | None) -> int:
    return 0 if last is not None and last.runs[0].state == "finished" else 1


def _console() -> Console:
    from rich.console import Console

    return Console()
