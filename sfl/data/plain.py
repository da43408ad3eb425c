"""A folder of data files, read file by file as each is read when it is named itself.

`datasets` finds out which files make up which split. Its own readers would take quotation marks,
missing values, numbers and dates for more than text, and leave an Arrow copy of private rows in a
cache folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfl.config import DataSettings
from sfl.data.cache import own_cache
from sfl.data.load import ENDINGS, READERS, Record
from sfl.data.malformed import Malformed
from sfl.node.textfile import NotText, not_utf8

_PLACES = {"name", "version", "data_dir", "data_files", "description", "sep"}
"""What a folder's configuration says by itself; the rest is for `datasets` to make sense of."""


class NoSuchSplit(Exception):
    """A folder has no such split; `known` are those that it has."""

    def __init__(self, known: list[str]) -> None:
        self.known = known
        super().__init__(*known)


def read_plain(path: Path, settings: DataSettings) -> tuple[list[Record], str] | None:
    """Rows of `data.split`, and the format of their files; None where `datasets` has to read them.

    Raises NoSuchSplit, Malformed and NotText naming the file.
    """
    files = _files(path, settings.subset)
    if files is None:
        return None
    split = settings.split
    # A part of a split, or several, is written as `train[:10%]+test`.
    named = [split] if split in files else [name for name in files if name in split]
    rows = {
        name: [row for file in files[name] for row in _of_file(file, settings)] for name in named
    }
    parts = _parts(split, rows, list(files))
    kinds = {_kind(file) for name, _, _ in parts for file in files[name]}
    records = [row for name, first, last in parts for row in rows[name][first:last]]
    return records, min(kinds, default="text")


def _files(path: Path, subset: str) -> dict[str, list[Path]] | None:
    """The files of each split, where all of them are plain."""
    import datasets
    from datasets.info import DatasetInfosDict

    if not path.is_dir():
        return None
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        if any(info.features for info in DatasetInfosDict.from_directory(str(path)).values()):
            return None  # its README declares what its columns are
    try:
        with own_cache() as cache:
            builder = datasets.load_dataset_builder(str(path), subset or None, cache_dir=cache)
    except (OSError, ValueError, RuntimeError, TypeError, datasets.exceptions.DatasetsError):
        return None  # reading it says what is wrong
    config: Any = builder.config
    found = {
        str(split): [Path(file) for file in files]
        for split, files in (config.data_files or {}).items()
    }
    kinds = {_kind(file) for files in found.values() for file in files}
    plain = found and kinds.issubset(READERS)
    return found if plain and _is_usual(config, kinds) else None


def _is_usual(config: Any, kinds: set[str]) -> bool:
    """Whether the folder sets nothing on how its files are read."""
    usual = type(config)()
    names = {field.name for field in dataclasses.fields(config)} - _PLACES
    separator = getattr(config, "sep", None)
    return separator in (None, "\t" if "tsv" in kinds else ",") and all(
        getattr(config, name) == getattr(usual, name) for name in names
    )


def _kind(file: Path) -> str:
    return ENDINGS.get(file.suffix.lower(), "")


def _parts(
    split: str, rows: Mapping[str, list[Record]], known: list[str]
) -> list[tuple[str, int | None, int | None]]:
    """Splits, and which of their rows, from one to before another."""
    if split in rows:
        return [(split, None, None)]
    import datasets

    sizes = {name: len(found) for name, found in rows.items()}
    try:
        asked = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError):
        raise NoSuchSplit(known) from None
    return [(part.splitname, part.from_, part.to) for part in asked]


def _of_file(file: Path, settings: DataSettings) -> list[Record]:
    """The rows of one file, their places with its name."""
    try:
        rows = list(READERS[_kind(file)](file, settings))
    except Malformed as error:
        raise Malformed(f"{file.name}: {error}") from None
    except NotText as error:
        raise NotText(f"{file.name}: {error.problem}", error.fix) from None
    except UnicodeDecodeError:
        wrong = not_utf8(file)
        raise NotText(f"{file.name}: {wrong.problem}", wrong.fix) from None
    return [(f"{file.name}, {place}", values) for place, values in rows]
