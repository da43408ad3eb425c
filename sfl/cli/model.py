"""`sfl eval`, `sfl generate`, `sfl export`: the adapter in one process, loaded by PEFT."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sfl.cli.base import adapter_folder, load_adapter, load_base, open_base
from sfl.config import RunConfig, load_run
from sfl.errors import ConfigError
from sfl.models.families import FAMILIES
from sfl.node.files import writable_folder
from sfl.node.paths import is_utf8
from sfl.report.runs import find_run
from sfl.report.text import loss as loss_text
from sfl.report.text import percent, score_name

if TYPE_CHECKING:
    import torch

    from sfl.cli.serve.source import Source
    from sfl.data import Dataset, Example, Tokenizer
    from sfl.models.folder import ModelFolder
    from sfl.rounds.values import Score


def evaluate_run(
    run: str, output_dir: Path, data: Path | None, best: bool, model_path: str | None = None
) -> None:
    """Print loss and exact match (or accuracy) per device, and over all of them."""
    from sfl.data import load_tokenizer
    from sfl.rounds.values import Score

    folder = find_run(run, output_dir)
    config = load_run(folder / "config.toml")
    adapter, opened = adapter_folder(folder, best), open_base(config, model_path)
    tokenizer = load_tokenizer(opened.path)
    model = load_model(config, adapter, opened)
    console = Console()
    table = Table(title=f"run {folder.name}, {'best' if best else 'last'} adapter")
    for heading in ("device", "examples", "loss", score_name(config.model.task)):
        table.add_column(heading, justify="left" if heading == "device" else "right")
    total = Score(0.0, 0, 0, 0)
    with console.status("evaluating ..."):
        for name, dataset in _datasets(config, tokenizer, data):
            score = evaluate_model(model, dataset, tokenizer, config)
            table.add_row(*_cells(name, score, dataset.kind))
            total += score
    table.add_row(*_cells("all", total, dataset.kind), style="bold")
    console.print(table)


@dataclass(frozen=True, slots=True)
class Wanted:
    """An answer that is asked for, and how it is computed."""

    prompt: str
    max_new_tokens: int
    split: bool = False


def generate_text(source: Source, wanted: Wanted) -> None:
    """Print the greedy continuation of one prompt. Raises SflError."""
    from sfl.cli.serve.source import open_source
    from sfl.cli.serve.speaker import speaker_of, whole_answer
    from sfl.data import load_tokenizer, prompt_ids

    prompt = wanted.prompt
    if not is_utf8(prompt):
        raise ConfigError("prompt", prompt, "it is not UTF-8", "Use a terminal with UTF-8.")
    opened = open_source(source)
    tokenizer = load_tokenizer(opened.model.path)
    ids = prompt_ids(tokenizer, prompt, opened.config.data)
    room = room_for_answer(prompt, len(ids), opened.model.context_length)
    most = min(wanted.max_new_tokens, room)
    speaker = speaker_of(opened, tokenizer, wanted.split)
    answer = whole_answer(speaker, ids, most)
    # Decoded together with the prompt: some tokenizers lose a space at the seam otherwise.
    text = tokenizer.decode([*ids, *answer])
    typer.echo(text.removeprefix(tokenizer.decode(ids)).strip())


def room_for_answer(prompt: str, num_tokens: int, context_length: int) -> int:
    """How many tokens may follow the prompt's. Raises ConfigError where it is none, or too long."""
    if not num_tokens:
        raise ConfigError("prompt", prompt, "it has no token", "Write something.")
    if num_tokens >= context_length:
        raise ConfigError(
            "prompt",
            f"{prompt[:20]}...",
            f"it has {num_tokens} tokens, and the model's context is {context_length}",
            "Write a shorter one: the answer has to fit too.",
        )
    return context_length - num_tokens


def export_run(
    run: str, output_dir: Path, to: Path, merge: bool, best: bool, model_path: str | None = None
) -> None:
    """Write the adapter, or the merged model, to a folder, with tokenizer and model card."""
    from sfl.cli.export import write_adapter, write_merged

    folder = find_run(run, output_dir)
    adapter = adapter_folder(folder, best)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError("to", str(to), "the folder is not empty", "Choose another.")
    writable_folder(to, "to")
    config = load_run(folder / "config.toml")
    if merge:
        opened = open_base(config, model_path)
        write_merged(load_model(config, adapter, opened), adapter, config, opened.path, to)
        typer.echo(f"merged model written to {to}")
        return
    write_adapter(adapter, config, model_path, to)
    typer.echo(f"adapter written to {to}")


def load_model(config: RunConfig, adapter: Path | None, base: ModelFolder | None = None) -> Any:
    """The base in one process, with the adapter on it where one is given; in eval mode."""
    from sfl.data import load_tokenizer

    folder = base or open_base(config, None)
    model, missing = load_base(config, folder, load_tokenizer(folder.path))
    if adapter is not None:
        model = load_adapter(model, adapter, missing)
    model.eval()
    return model


def evaluate_model(
    model: torch.nn.Module, dataset: Dataset, tokenizer: Tokenizer, config: RunConfig
) -> Score:
    """Score the held-out examples with an unsplit model."""
    import torch

    from sfl.data.batches import collate
    from sfl.rounds.values import Score
    from sfl.stage.layout import real_tokens
    from sfl.stage.loss import evaluation_score

    total, size = Score(0.0, 0, 0, 0), config.training.batch_size
    for first in range(0, len(dataset.eval), size):
        examples = dataset.eval[first : first + size]
        batch = collate(examples, _padding(model, examples, tokenizer, config))
        mask = real_tokens(batch.lengths, batch.input_ids.shape[1]).long()
        with torch.no_grad():
            logits = model(input_ids=batch.input_ids, attention_mask=mask).logits
        total += evaluation_score(logits, batch.labels, config.model.task)
    return total


def _padding(
    model: Any, examples: Sequence[Example], tokenizer: Tokenizer, config: RunConfig
) -> int:
    """What fills the batch. transformers' decoders take a text's class from the last token that is
    not the pad token, so there it is one that none of the texts has."""
    if config.model.task == "causal_lm" or not FAMILIES[model.config.model_type].causal:
        return tokenizer.pad_id
    used = {number for example in examples for number in example.input_ids}
    free = next(number for number in itertools.count() if number not in used)
    model.config.pad_token_id = free if free < model.config.vocab_size else tokenizer.pad_id
    return int(model.config.pad_token_id)


def _datasets(
    config: RunConfig, tokenizer: Tokenizer, data: Path | None
) -> Iterable[tuple[str, Dataset]]:
    from sfl.data import held_out_only, prepare

    devices = config.devices
    if data is not None:
        yield data.name, held_out_only(data, config, tokenizer, "--data")
        return
    for entry in devices:
        if entry.train is None and config.data.train is None:
            raise ConfigError(
                "--data",
                None,
                f"the data of device {entry.name} is not on this machine",
                "Name a file on this machine.",
            )
        yield entry.name, prepare(entry, entry.name, config, tokenizer)


def _cells(name: str, score: Score, kind: str) -> tuple[str, str, str, str]:
    mean = score.loss_sum / score.num_targets if score.num_targets else None
    share = score.num_correct / score.num_examples if score.num_examples else None
    return (
        escape(name),
        f"{score.num_examples:,}",
        loss_text(mean),
        percent(None if kind == "text" else share),
    )
