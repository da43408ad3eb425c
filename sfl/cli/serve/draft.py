"""`sfl draft`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfl.node.options import OutputDir


def draft(
    run: Annotated[
        str | None, typer.Option("--run", help="A run: its model, adapter, cut and data.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model, where there is no run, or the run's elsewhere.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="An adapter in PEFT's format, where there is no run.")
    ] = None,
    cut_layer: Annotated[
        int | None,
        typer.Option(min=0, help="The device's blocks; default: of the run's first, or 1."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder to write; default: draft/ in the run's.")
    ] = None,
    texts: Annotated[int, typer.Option(min=2, help="Texts that the model says.")] = 256,
    length: Annotated[int, typer.Option(min=8, help="Tokens of each.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 600,
    best: Annotated[
        bool, typer.Option("--best", help="Use adapter_best/ instead of adapter/.")
    ] = False,
    output_dir: OutputDir = Path("runs"),
) -> None:
    """Train a block that guesses what a model says, for a device that serves.

    The model says texts, and the block learns to say the same over the device's own rows.
    """
    from sfl.cli.base import model_by_option
    from sfl.cli.draft import Wanted, draft_for_model, draft_for_run

    wanted = Wanted(texts, length, steps)
    if run is not None:
        if adapter is not None:
            raise typer.BadParameter("a run has an adapter of its own", param_hint="--adapter")
        with model_by_option(model):
            draft_for_run(run, output_dir, to, wanted, cut_layer, best, model)
        return
    if model is None or to is None:
        raise typer.BadParameter("give --run, or --model and --to")
    with model_by_option(model):
        draft_for_model(model, adapter, 1 if cut_layer is None else cut_layer, to, wanted)
