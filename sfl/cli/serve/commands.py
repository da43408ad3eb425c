"""`sfl generate` and `sfl chat`, as the command line has them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfl.node.options import OutputDir

Run = Annotated[str, typer.Option("--run", help="A run: its id, the beginning of it, or its path.")]
Model = Annotated[
    str | None,
    typer.Option(help="The run's base, if it is elsewhere on this machine: folder or hub name."),
]
Best = Annotated[bool, typer.Option("--best", help="Use adapter_best/ instead of adapter/.")]


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt to answer.")],
    run: Run,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 64,
    best: Best = False,
    base: Annotated[bool, typer.Option("--base", help="Use the base without the adapter.")] = False,
    split: Annotated[
        bool, typer.Option("--split", help="Over the run's cut, as device and edge serve it.")
    ] = False,
    model: Model = None,
    output_dir: OutputDir = Path("runs"),
) -> None:
    """Answer a prompt with a fine-tuned model (greedy). PEFT loads the adapter.

    With --split the model is computed in two parts, over a real connection between them.
    """
    from sfl.cli.base import model_by_option
    from sfl.cli.model import Wanted, generate_text

    with model_by_option(model):
        wanted = Wanted(prompt, max_new_tokens, best, base, split)
        generate_text(run, output_dir, wanted, model)


def chat(
    run: Run,
    split: Annotated[
        bool, typer.Option("--split", help="Over the run's cut, as device and edge serve it.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one answer at most.")] = 256,
    system: Annotated[str, typer.Option(help="What the conversation begins with.")] = "",
    best: Best = False,
    base: Annotated[bool, typer.Option("--base", help="Use the base without the adapter.")] = False,
    model: Model = None,
    output_dir: OutputDir = Path("runs"),
) -> None:
    """Chat with a fine-tuned model in the terminal (greedy), or with what is piped in.

    /reset begins anew, /quit ends. Ctrl-C stops an answer, Ctrl-D ends.
    """
    from sfl.cli.base import model_by_option
    from sfl.cli.serve.chat import Asked
    from sfl.cli.serve.chat import chat as talk

    asked = Asked(run, output_dir, max_new_tokens, system, best, base, split, model)
    with model_by_option(model):
        talk(asked)


def add_to(app: typer.Typer) -> None:
    """Let the command line have both."""
    app.command()(generate)
    app.command()(chat)
