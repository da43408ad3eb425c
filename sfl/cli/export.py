"""Folders for others: a run's adapter, or the merged model, each with its tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sfl.config import RunConfig
from sfl.files import write_atomic
from sfl.models.folder import local_folder
from sfl.models.jsonfile import read_object
from sfl.models.tokenizer_copy import copy_tokenizer


def write_adapter(adapter: Path, config: RunConfig, model_path: str | None, to: Path) -> None:
    """A copy of the run's adapter, with the tokenizer of the model where that is here."""
    shutil.copytree(adapter, to, dirs_exist_ok=True)
    base = local_folder(model_path or config.model.path)
    if base is not None:
        copy_tokenizer(base, to)
        _name_padding(base, to)


def write_merged(model: Any, base: Path, to: Path) -> None:
    """The adapter merged into its base, as transformers saves it."""
    model.merge_and_unload().save_pretrained(to)
    copy_tokenizer(base, to)
    _name_padding(base, to)


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
