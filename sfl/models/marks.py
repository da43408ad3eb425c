"""Byte order marks, which some editors put before a file and the readers of transformers refuse."""

from __future__ import annotations

import codecs
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sfl.models.vocabulary import TEMPLATES

_TEXT = (".json", ".txt", ".jinja", ".bpe")


@contextmanager
def without_marks(folder: Path) -> Iterator[Path]:
    """`folder`, or, while this lasts, one like it whose text files begin without such a mark."""
    marked = [path for path in _texts(folder) if _is_marked(path)]
    if not marked:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="sfl-model-") as place:
        clean = Path(place)
        inside = any(path.parent != folder for path in marked)
        others = set(folder.iterdir()) - set(marked)
        for path in others:
            if not (inside and path.name == TEMPLATES):
                (clean / path.name).symlink_to(path.resolve())
        for path in _texts(folder) if inside else marked:
            target = clean / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                target.write_bytes(unmarked(path))
        yield clean


def unmarked(path: Path) -> bytes:
    """What a file of a model holds, a text without its mark. Raises OSError."""
    data = path.read_bytes()
    return data.removeprefix(codecs.BOM_UTF8) if path.name.endswith(_TEXT) else data


def _texts(folder: Path) -> list[Path]:
    inside = [*folder.iterdir(), *(folder / TEMPLATES).glob("*")]
    return sorted(path for path in inside if path.name.endswith(_TEXT) and path.is_file())


def _is_marked(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
