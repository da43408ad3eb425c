"""A tokenizer's files beside an adapter or an exported model."""

from __future__ import annotations

from pathlib import Path

from sfl.models.marks import unmarked
from sfl.models.vocabulary import tokenizer_files


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy every file of the tokenizer in `source`, texts without byte order marks; their names.

    Raises OSError.
    """
    names = tokenizer_files(source)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(unmarked(source / name))
    return names
