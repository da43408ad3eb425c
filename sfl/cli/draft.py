"""`sfl draft`: train an exit block that guesses what a model says, for a device that serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.status import Status

from sfl.cli.base import adapter_folder, open_base
from sfl.config import RunConfig, load_run
from sfl.errors import ConfigError, ModelError, ProtocolError
from sfl.models.folder import ModelFolder, open_model
from sfl.models.kv.size import check_kept
from sfl.node.files import writable_folder
from sfl.report.runs import find_run

if TYPE_CHECKING:
    from sfl.adapters.served import ServedAdapter
    from sfl.data import Tokenizer
    from sfl.stage.serving.lessons import Teacher


@dataclass(frozen=True, slots=True)
class Wanted:
    """How much an exit is trained: on `texts` of `length` tokens, in `steps`."""

    texts: int = 256
    length: int = 128
    steps: int = 600


@dataclass(frozen=True, slots=True)
class Taught:
    """A model, its adapter where it has one, the cut, and beginnings of texts."""

    folder: ModelFolder
    adapter: Path | None
    cut_layer: int
    prompts: Sequence[Sequence[int]]


def draft_for_run(
    run: str,
    output_dir: Path,
    to: Path | None,
    wanted: Wanted,
    cut_layer: int | None = None,
    best: bool = False,
    model_path: str | None = None,
) -> None:
    """For a run's model and adapter, and the cut of its first device or another one.

    Texts begin as the devices' own. Raises SflError.
    """
    from sfl.data import load_tokenizer

    folder = find_run(run, output_dir)
    config = load_run(folder / "config.toml")
    base = open_base(config, model_path)
    tokenizer = load_tokenizer(base.path)
    prompts = _prompts(config, tokenizer) or [_beginning(tokenizer)]
    cut_layer = config.devices[0].cut_layer if cut_layer is None else cut_layer
    taught = Taught(base, adapter_folder(folder, best), cut_layer, prompts)
    draft(taught, to or folder / "draft", wanted)


def draft_for_model(
    path: str, adapter: Path | None, cut_layer: int, to: Path, wanted: Wanted
) -> None:
    """For a model, and an adapter in PEFT's format; texts begin with nothing. Raises SflError."""
    from sfl.data import load_tokenizer

    base = open_model(path)
    prompts = [_beginning(load_tokenizer(base.path))]
    draft(Taught(base, adapter, cut_layer, prompts), to, wanted)


def draft(taught: Taught, to: Path, wanted: Wanted) -> None:
    """Let the model say texts, train an exit on them, and write it. Raises SflError."""
    from sfl.adapters.served import open_served
    from sfl.stage.serving.exits import ExitHeader, untaught, write_exit
    from sfl.stage.serving.schooling import Schooling, school
    from sfl.transport.serve.digest import model_digest

    _check(taught)
    writable_folder(to, "--to")
    adapter = None if taught.adapter is None else open_served(taught.adapter)
    teacher = _teacher(taught, adapter)
    schooling = Schooling(wanted.texts, wanted.length, wanted.steps)
    with Console().status("the model says texts ...") as status:
        model, before, after = school(
            taught.folder, teacher, taught.prompts, schooling, partial(_show, status, wanted.steps)
        )
    typer.echo(
        f"{after:.1%} of its guesses are what the model says, on texts that it has not seen "
        f"({before:.1%} before it was trained)"
    )
    if (problem := untaught(after, before)) is not None:
        raise ConfigError("--steps", wanted.steps, problem, "Give it more, or more --texts.")
    digest = "" if adapter is None else adapter.digest
    header = ExitHeader(model_digest(taught.folder), taught.cut_layer, after, before, digest)
    write_exit(to, model, header)
    typer.echo(f'written to {to}: draft = "exit:{to}" in a device\'s [serve]')


def _check(taught: Taught) -> None:
    folder = taught.folder
    folder.check_task("causal_lm")
    check_kept("--model", folder)
    if taught.cut_layer >= folder.num_layers:
        raise ConfigError(
            "--cut-layer",
            taught.cut_layer,
            f"the model has {folder.num_layers} blocks",
            f"Choose 0 to {folder.num_layers - 1}.",
        )


def _teacher(taught: Taught, adapter: ServedAdapter | None) -> Teacher:
    from sfl.stage.serving.lessons import Teacher

    try:
        return Teacher(taught.folder, taught.cut_layer, adapter)
    except ProtocolError as error:
        fix = "Give the model that it was trained on."
        raise ModelError("--adapter", str(taught.adapter), str(error), fix) from None


def _show(status: Status, steps: int, step: int, loss: float) -> None:
    if step % 10 == 0:
        status.update(f"training: step {step} of {steps}, loss {loss:.3f}")


def _beginning(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What a text begins with: the tokenizer's own mark, or what ends the text before."""
    marks = (tokenizer.markers.eos_id, tokenizer.pad_id)
    return tokenizer.prefix or tuple(mark for mark in marks if mark is not None)[:1]


def _prompts(config: RunConfig, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """How the training examples of devices begin whose data are on this machine."""
    from sfl.data import prepare

    found = []
    for entry in config.devices:
        if entry.train is None and config.data.train is None:
            continue
        for example in prepare(entry, entry.name, config, tokenizer).train:
            answer = next((n for n, label in enumerate(example.labels) if label != -100), 1)
            found.append(example.input_ids[: max(1, answer)])
    return found
