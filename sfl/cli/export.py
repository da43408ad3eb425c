"""Folders for others: a run's adapter, or the merged model, each with its tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloud_aggregator.beside import resolvable_base
from sfl.config import RunConfig
from sfl.models.folder import local_folder, open_model
from sfl.models.jsonfile import read_object
from sfl.models.tokenizer_copy import copy_tokenizer
from sfl.node.files import on_disk, write_atomic
from sfl.report.card import merged_card, model_card
from sfl.report.summary import RunSummary


def write_adapter(adapter: Path, config: RunConfig, model_path: str | None, to: Path) -> None:
    """A copy of the run's adapter, with the tokenizer of the model where that is here."""
    if model_path is None:
        base = local_folder(config.model.path)
    else:  # one that was named is not passed over
        base = open_model(model_path, weights=False).path
    with on_disk(to):
        for path in sorted(adapter.rglob("*")):
            target = to / path.relative_to(adapter)
            target.mkdir(exist_ok=True) if path.is_dir() else shutil.copyfile(path, target)
    if base is not None:
        copy_tokenizer(base, to)
        _name_padding(base, to)
        _write_card(model_card, adapter, config, to)  # the cloud may have had no tokenizer


def write_merged(model: Any, adapter: Path, config: RunConfig, base: Path, to: Path) -> None:
    """The adapter merged into its base, as transformers saves it."""
    with on_disk(to):
        model.merge_and_unload().save_pretrained(to)
    copy_tokenizer(base, to)
    _name_padding(base, to)
    _write_card(merged_card, adapter, config, to)


def _write_card(card: Callable[..., str], adapter: Path, config: RunConfig, to: Path) -> None:
    """Say in README.md what it is, where the run has a summary."""
    path = adapter.parent / "summary.json"
    if not path.is_file():
        return
    of_edge = read_object(adapter / "adapter_config.json").get("base_model_name_or_path")
    base = resolvable_base(config, str(of_edge or ""))
    best = adapter.name == "adapter_best"
    summary = RunSummary.read(path)
    write_atomic(to / "README.md", card(summary, config.settings, base, best=best))


def _name_padding(base: Path, to: Path) -> None:
    """Name the token that the run filled batches with, where the tokenizer itself names none that
    its model has a row for: without one nobody can make a batch."""
    from sfl.data import load_tokenizer

    tokenizer = load_tokenizer(base)
    if tokenizer.names_pad:
        return
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = to / name
        if name == "tokenizer_config.json" or path.is_file():
            content = read_object(path) if path.is_file() else {}
            named = {**content, "pad_token": tokenizer.pad_token}
            write_atomic(path, json.dumps(named, indent=2, ensure_ascii=False) + "\n")
