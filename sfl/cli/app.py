"""All commands in one place; each one's work is in a module of its own, imported when called."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

import sfl
from cloud_aggregator.command import cloud
from device_agent.command import device
from edge_server.command import edge
from edge_server.stage_command import stage
from sfl.cli import INTERRUPTED
from sfl.cli.ca import ca_app
from sfl.cli.jobs.commands import add_to
from sfl.cli.serve.commands import Best, Model, Run
from sfl.cli.serve.commands import add_to as add_speaking
from sfl.cli.serve.draft import draft
from sfl.node.causes import foreseen
from sfl.node.logs import ENVIRONMENT
from sfl.node.options import (
    ArtifactsUrl,
    Certs,
    ConfigFile,
    Insecure,
    JournalUrl,
    Logs,
    OptionalConfigFile,
    OutputDir,
    Overrides,
    Resume,
    RunsFolder,
)
from sfl.node.swallowed import heard


class Commands(TyperGroup):
    """All commands; what ends one from outside, and it did not tell itself, is one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            with heard():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo(INTERRUPTED, err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="sfl",
    cls=Commands,
    help="Split-federated LoRA fine-tuning over device, edge and cloud.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at settings.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(ca_app, name="ca")
app.command()(cloud)
app.command()(edge)
app.command()(stage)
app.command()(device)
add_to(app)
app.command()(draft)

LEAST_DAYS = 0.05
"""More than an hour: an edge says every ten minutes that its run is alive."""


@app.command()
def run(
    config: OptionalConfigFile = None,
    overrides: Overrides = None,
    insecure: Insecure = False,
    log_format: Logs = "text",
    tls: Annotated[
        bool, typer.Option("--tls", help="Mutual TLS, with a CA made for this run.")
    ] = False,
    resume: Resume = None,
    journal: JournalUrl = None,
    artifacts: ArtifactsUrl = None,
    output_dir: RunsFolder = None,
) -> None:
    """Run cloud, edge and devices on this machine, each in a process of its own.

    With --resume they go on with a run that was stopped, where that was. With --journal and
    --artifacts as well its folder may be gone.
    """
    from sfl.cli.run import Asked, run_and_show

    os.environ[ENVIRONMENT] = log_format  # for the nodes' logs
    given = tuple(overrides or ())
    asked = Asked(config, given, insecure, tls, resume, output_dir, journal, artifacts)
    raise typer.Exit(run_and_show(asked))


@app.command()
def serve(
    config: Annotated[
        Path | None, typer.Argument(help="An edge and its devices on this machine, as TOML.")
    ] = None,
    device: Annotated[
        Path | None, typer.Option("--device", help="Only a device, by its own file.")
    ] = None,
    overrides: Overrides = None,
    insecure: Insecure = False,
    log_format: Logs = "text",
    certs: Certs = None,
) -> None:
    """Answer with a model and its adapters: OpenAI's interface and a chat page on each device.

    The edge of devices that are elsewhere is started with `sfl edge` and a file with [serve].
    """
    from sfl.cli.serve.command import serve_device, serve_here

    if (config is None) == (device is None):
        raise typer.BadParameter("give a file, or a device's with --device")
    given = tuple(overrides or ())
    if device is not None:
        raise typer.Exit(serve_device(device, given, insecure, log_format, certs))
    assert config is not None
    raise typer.Exit(serve_here(config, given, log_format))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("sfl.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented configuration to start from."""
    from sfl.cli.init import write_config

    write_config(path, force)


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="A run's, a device's or an edge's file to check too.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Show which cut layers of this model fit; default: the file's."),
    ] = None,
    edge: Annotated[
        str | None, typer.Option(help="Test the link to HOST:PORT; default: a device file's edge.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory to fit a device into, as 512MB; default: all that is available."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Use this, not the file's value.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Use this, not the file's value.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Use this, not the file's value.")] = None,
    cuts: Annotated[
        str | None,
        typer.Option(help="With an edge's file: its devices by their cut layers, as 1,1,2."),
    ] = None,
    format_: Annotated[
        Literal["text", "json"],
        typer.Option("--format", help="Text for people, or JSON for programs."),
    ] = "text",
    overrides: Overrides = None,
    insecure: Insecure = False,
    certs: Certs = None,
) -> None:
    """Check this machine: cores, memory, speeds, the link, and which cut layers fit."""
    from sfl.node.process import quiet_environment

    quiet_environment()
    from sfl.cli.doctor.command import examine_and_show
    from sfl.cli.doctor.edge import read_cuts
    from sfl.cli.doctor.fits import read_size
    from sfl.cli.doctor.question import Question

    question = Question(
        file=config,
        overrides=tuple(overrides or []),
        model=model,
        edge=edge,
        insecure=insecure,
        room=None if memory is None else read_size("--memory", memory),
        certs=certs,
        batch_size=batch_size,
        length=max_length,
        rank=rank,
        cuts=() if cuts is None else read_cuts("--cuts", cuts),
    )
    raise typer.Exit(examine_and_show(question, format_))


@app.command()
def plan(
    config: ConfigFile,
    from_run: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN", help="Costs as this run has shown them."),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="The planner; default: the file's, or fleet.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Plan for this model, not the file's.")] = None,
    link: Annotated[
        str | None,
        typer.Option(help="Every device's link: 20mbit, or 5/20mbit for up and down."),
    ] = None,
    device_gflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="Speed of a device, without --from; default: as measured."),
    ] = None,
    edge_gflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="Speed of an edge, without --from; default: as measured."),
    ] = None,
    stage_gflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="Speed of a stage behind the edge; default: the edge's."),
    ] = None,
    figure: Annotated[Path, typer.Option(help="The figure to write.")] = Path("plan.svg"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    overrides: Overrides = None,
    output_dir: OutputDir = Path("runs"),
) -> None:
    """Show what a planner would do with a run's file: cuts, seconds, memory. Nothing is run."""
    from sfl.node.process import quiet_environment

    quiet_environment()
    from sfl.cli.plan.asked import Asked
    from sfl.cli.plan.command import plan_and_show

    asked = Asked(
        config,
        tuple(overrides or ()),
        from_run,
        output_dir,
        model,
        link,
        policy,
        (device_gflops, edge_gflops),
        figure,
        as_json,
        stage_gflops,
    )
    raise typer.Exit(plan_and_show(asked))


@app.command()
def privacy(
    config: ConfigFile,
    overrides: Overrides = None,
    cuts: Annotated[
        str | None, typer.Option(help="Cut layers to try, as 0,1,2; default: the file's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Measure what an edge can read of a run's texts from the activations it receives."""
    from sfl.node.process import quiet_environment

    quiet_environment()
    from sfl.cli.privacy.command import measure_and_show, read_cuts

    measure_and_show(config, overrides or [], read_cuts(cuts) if cuts is not None else (), as_json)


@app.command()
def prune(
    store: Annotated[
        str, typer.Argument(help="Where edges share snapshots, as edge.snapshots has it.")
    ],
    days: Annotated[
        float,
        typer.Option(min=LEAST_DAYS, help="Runs to which nothing was written for so many days."),
    ] = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
) -> None:
    """Remove what edges share of runs that were given up. A run that an edge has stays."""
    from sfl.cli.prune import prune_and_show

    prune_and_show(store, days, dry_run)


@app.command()
def simulate(
    config: ConfigFile,
    devices: Annotated[
        int, typer.Option(min=0, help="Devices of the fleet; default: simulate.devices.")
    ] = 0,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds; default: run.rounds.")] = 0,
    like: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN", help="Take costs from a real run: its id or path."),
    ] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Simulate a run of the fleet that a file states: rounds, traffic, energy, failures."""
    from sfl.cli.simulate import Asked, simulate_and_show

    asked = Asked(config, tuple(overrides or ()), devices, rounds, as_json, like)
    raise typer.Exit(simulate_and_show(asked))


@config_app.command("show")
def config_show(
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Print the effective settings, with every default and every `auto` filled in."""
    from sfl.cli.init import show_config

    show_config(config, overrides or [], as_json)


@app.command("eval")
def evaluate(
    run: Run,
    data: Annotated[
        Path | None, typer.Option(help="A data file; default: the devices' own.")
    ] = None,
    best: Best = False,
    model: Model = None,
    output_dir: OutputDir = Path("runs"),
) -> None:
    """Evaluate a run's adapter on held-out data, in one process. PEFT loads the adapter."""
    from sfl.cli.base import model_by_option
    from sfl.cli.model import evaluate_run

    with model_by_option(model):
        evaluate_run(run, output_dir, data, best, model)


add_speaking(app)


@app.command()
def export(
    run: Run,
    to: Annotated[Path, typer.Argument(help="Folder to write.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge into the base: a whole model folder.")
    ] = False,
    best: Best = False,
    model: Model = None,
    output_dir: OutputDir = Path("runs"),
) -> None:
    """Write a run's adapter, or with --merge the whole fine-tuned model, to a folder."""
    from sfl.cli.base import model_by_option
    from sfl.cli.model import export_run

    with model_by_option(model):
        export_run(run, output_dir, to, merge, best, model)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sfl {sfl.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Split-federated LoRA fine-tuning over device, edge and cloud."""


def main() -> None:
    """Entry point: a user's mistake, a full disk or too little memory is one line and an exit code,
    not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # A file's name need not be UTF-8, nor the terminal.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except Exception as error:
        if (known := foreseen(error)) is None:  # a bug: with its traceback
            raise
        from sfl.cli.launch.nearby import pointed

        typer.secho(f"error: {pointed(known, [Path.cwd()])}", fg="red", err=True)
        sys.exit(known.exit_code)
