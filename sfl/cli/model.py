"""`sfl eval`, `sfl generate`, `sfl export`: the adapter in one process, loaded by PEFT."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from sfl.config import RunConfig, load_run
from sfl.errors import ConfigError
from sfl.report.text import loss as loss_text
from sfl.report.text import percent, score_name
from sfl.runs import find_run

if TYPE_CHECKING:
    import torch

    from sfl.data import Dataset, Tokenizer
    from sfl.stage.loss import Score


def evaluate_run(run: str, output_dir: Path, data: Path | None, best: bool) -> None:
    """Print loss and exact match (or accuracy) per device, and over all of them."""
    from sfl.data import load_tokenizer
    from sfl.stage.loss import Score

    folder = find_run(run, output_dir)
    config = load_run(folder / "config.toml")
    model = load_model(config, adapter_folder(folder, best))
    tokenizer = load_tokenizer(_base(config))
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


def generate_text(
    run: str, output_dir: Path, prompt: str, max_new_tokens: int, best: bool, base: bool
) -> None:
    """Print the greedy continuation of one prompt."""
    import torch

    from sfl.data import load_tokenizer, prompt_ids

    folder = find_run(run, output_dir)
    config = load_run(folder / "config.toml")
    if config.model.task != "causal_lm":
        raise ConfigError("model.task", config.model.task, "has no text to generate", "Use eval.")
    tokenizer = load_tokenizer(_base(config))
    model = load_model(config, None if base else adapter_folder(folder, best))
    ids = torch.tensor([prompt_ids(tokenizer, prompt, config.data)])
    with torch.no_grad():
        answer = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_id,
            eos_token_id=tokenizer.eos_id,
        )
    # Decoded together with the prompt: some tokenizers lose a space at the seam otherwise.
    text = tokenizer.decode(answer[0].tolist())
    typer.echo(text.removeprefix(tokenizer.decode(ids[0].tolist())).strip())


def export_run(run: str, output_dir: Path, to: Path, merge: bool, best: bool) -> None:
    """Write the adapter, or the merged model with its tokenizer, to a folder."""
    folder = find_run(run, output_dir)
    adapter = adapter_folder(folder, best)
    if to.exists() and any(to.iterdir()):
        raise ConfigError("to", str(to), "the folder is not empty", "Choose another.")
    if not merge:
        shutil.copytree(adapter, to, dirs_exist_ok=True)
        typer.echo(f"adapter written to {to}")
        return
    config = load_run(folder / "config.toml")
    load_model(config, adapter).merge_and_unload().save_pretrained(to)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "chat_template.jinja",
    ):
        source = _base(config) / name
        if source.is_file():
            shutil.copyfile(source, to / name)
    typer.echo(f"merged model written to {to}")


def adapter_folder(folder: Path, best: bool) -> Path:
    """A run's adapter. Raises ConfigError where it left none."""
    adapter = folder / ("adapter_best" if best else "adapter")
    if not (adapter / "adapter_config.json").is_file():
        raise ConfigError("--run", folder.name, f"left no {adapter.name}/", "Choose another run.")
    return adapter


def load_model(config: RunConfig, adapter: Path | None) -> Any:
    """The base in one process, with the adapter on it where one is given; in eval mode."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # PEFT asks transformers by an old name; nothing a user could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    kwargs: dict[str, Any] = {
        "dtype": torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32
    }
    loader = AutoModelForCausalLM
    if config.model.task == "sequence_classification":
        loader = AutoModelForSequenceClassification
        kwargs |= {"num_labels": len(config.model.labels)}
    model = loader.from_pretrained(_base(config), **kwargs)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    return model


def evaluate_model(
    model: torch.nn.Module, dataset: Dataset, tokenizer: Tokenizer, config: RunConfig
) -> Score:
    """Score the held-out examples with an unsplit model."""
    import torch

    from sfl.data.batches import collate
    from sfl.stage.layout import real_tokens
    from sfl.stage.loss import Score, evaluation_score

    total, size = Score(0.0, 0, 0, 0), config.training.batch_size
    for first in range(0, len(dataset.eval), size):
        batch = collate(dataset.eval[first : first + size], tokenizer.pad_id)
        mask = real_tokens(batch.lengths, batch.input_ids.shape[1]).long()
        with torch.no_grad():
            logits = model(input_ids=batch.input_ids, attention_mask=mask).logits
        total += evaluation_score(logits, batch.labels, config.model.task)
    return total


def _datasets(
    config: RunConfig, tokenizer: Tokenizer, data: Path | None
) -> Iterable[tuple[str, Dataset]]:
    from sfl.data import prepare

    devices = config.devices
    if data is not None:
        entry = devices[0].model_copy(update={"train": data, "eval": data})
        yield data.name, prepare(entry, entry.name, config, tokenizer)
        return
    for entry in devices:
        yield entry.name, prepare(entry, entry.name, config, tokenizer)


def _cells(name: str, score: Score, kind: str) -> tuple[str, str, str, str]:
    mean = score.loss_sum / score.num_targets if score.num_targets else None
    share = score.num_correct / score.num_examples if score.num_examples else None
    return (
        name,
        f"{score.num_examples:,}",
        loss_text(mean),
        percent(None if kind == "text" else share),
    )


def _base(config: RunConfig) -> Path:
    from sfl.models.folder import open_model

    return open_model(config.model.path).path
