"""A tokenizer's files beside an adapter or an exported model."""

from __future__ import annotations

import shutil
from pathlib import Path

from sfl.models.vocabulary import tokenizer_files


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy every file of the tokenizer in `source`; their names. Raises OSError."""
    names = tokenizer_files(source)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return names
