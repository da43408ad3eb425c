"""Byte order marks, which some editors put before a file and the tokenizers' readers refuse."""

from __future__ import annotations

import codecs
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sfl.models.vocabulary import tokenizer_files

_TEXT = (".json", ".txt", ".jinja", ".bpe")


@contextmanager
def without_marks(folder: Path) -> Iterator[Path]:
    """`folder`, or, while this lasts, a copy whose tokenizer files begin without such a mark."""
    names = [name for name in ("config.json", *tokenizer_files(folder)) if name.endswith(_TEXT)]
    marked = [name for name in names if _is_marked(folder / name)]
    if not marked:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="sfl-tokenizer-") as place:
        clean = Path(place)
        for name in ("config.json", *tokenizer_files(folder)):
            if (folder / name).is_file():
                data = (folder / name).read_bytes()
                (clean / name).parent.mkdir(exist_ok=True)
                (clean / name).write_bytes(data.removeprefix(codecs.BOM_UTF8))
        yield clean


def _is_marked(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
