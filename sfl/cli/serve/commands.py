"""`sfl generate` and `sfl chat`, as the command line has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfl.node.options import OutputDir

if TYPE_CHECKING:
    from sfl.cli.serve.source import Source

RUN = typer.Option("--run", help="A run: its id, the beginning of it, or its path.")
Run = Annotated[str, RUN]
Model = Annotated[
    str | None,
    typer.Option(help="The run's base, if it is elsewhere on this machine: folder or hub name."),
]
AnyModel = Annotated[
    str | None,
    typer.Option(
        "--model", help="The run's base, if it is elsewhere, or a model: folder or hub name."
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option(
        help="An adapter in PEFT's format, in place of the run's. No run is needed with it."
    ),
]
Best = Annotated[bool, typer.Option("--best", help="Use adapter_best/ instead of adapter/.")]
Base = Annotated[bool, typer.Option("--base", help="Use the base without the adapter.")]
Split = Annotated[bool, typer.Option("--split", help="Over the cut, as device and edge serve it.")]


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt to answer.")],
    run: Annotated[str | None, RUN] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 64,
    best: Best = False,
    base: Base = False,
    adapter: Adapter = None,
    split: Split = False,
    model: AnyModel = None,
    output_dir: OutputDir = Path("runs"),
) -> None:
    """Answer a prompt with a fine-tuned model (greedy). PEFT loads the adapter.

    With --split the model is computed in two parts, over a real connection between them.
    """
    from sfl.cli.base import model_by_option
    from sfl.cli.model import Wanted, generate_text

    source = _source(run, output_dir, best, base, adapter, model)
    with model_by_option(model):
        generate_text(source, Wanted(prompt, max_new_tokens, split))


def chat(
    run: Annotated[str | None, RUN] = None,
    split: Split = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one answer at most.")] = 256,
    system: Annotated[str, typer.Option(help="What the conversation begins with.")] = "",
    best: Best = False,
    base: Base = False,
    adapter: Adapter = None,
    model: AnyModel = None,
    output_dir: OutputDir = Path("runs"),
) -> None:
    """Chat with a fine-tuned model in the terminal (greedy), or with what is piped in.

    /reset begins anew, /quit ends. Ctrl-C stops an answer, Ctrl-D ends.
    """
    from sfl.cli.base import model_by_option
    from sfl.cli.serve.chat import Asked
    from sfl.cli.serve.chat import chat as talk

    source = _source(run, output_dir, best, base, adapter, model)
    with model_by_option(model):
        talk(Asked(source, max_new_tokens, system, split))


def _source(
    run: str | None,
    output_dir: Path,
    best: bool,
    base: bool,
    adapter: Path | None,
    model: str | None,
) -> Source:
    """Raises BadParameter for options that do not go together."""
    from sfl.cli.serve.source import Source

    if run is None and model is None and adapter is None:
        raise typer.BadParameter("give --run, --adapter or --model")
    if sum((best, base, adapter is not None)) > 1:
        raise typer.BadParameter("--best, --base and --adapter are three ways to choose one")
    if run is None and best:
        raise typer.BadParameter("it is a run's", param_hint="--best")
    return Source(run, output_dir, best, base, adapter, model)


def add_to(app: typer.Typer) -> None:
    """Let the command line have both."""
    app.command()(generate)
    app.command()(chat)
