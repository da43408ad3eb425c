"""Reading rows from files: JSONL, CSV, TSV and text by the standard library, Parquet by pyarrow,
Hugging Face datasets by `datasets`. The last two are imported only where they are read, since
a small device should not pay 50 to 130 MB for them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sfl.config import DataSettings
from sfl.data.example import Row
from sfl.errors import ConfigError, DataError

Record = tuple[str, dict[str, Any]]  # its place, as in "line 3"; its fields
Reader = Callable[[Path, DataSettings], Iterator[Record]]

ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Malformed(Exception):
    """A file breaks its format; becomes a DataError once the setting at fault is known."""


def load_rows(source: str | Path, settings: DataSettings, field: str = "data.train") -> list[Row]:
    """All rows of a file, a dataset's folder, or a dataset's name on the hub.

    A text file gives a row of `settings.text_field` for every line that is not empty. `field` is
    the setting that `source` came from. Raises DataError naming it, the file and the line.
    """
    path = Path(source).expanduser()
    kind = _format(path, settings, field)
    try:
        if kind == "dataset":
            from sfl.data.hub import read_dataset

            records = list(read_dataset(str(source), path, settings.split, field))
        else:
            records = list(READERS[kind](path, settings))
    except Malformed as error:
        raise DataError(field, str(source), str(error), "Mend the file.") from None
    except UnicodeDecodeError as error:
        raise DataError(
            field, str(source), f"not UTF-8 at byte {error.start}", "Save it as UTF-8."
        ) from None
    except OSError as error:
        raise DataError(
            field, str(source), f"cannot be read: {error.strerror or error}", "Check the path."
        ) from None
    if not records:
        raise DataError(field, str(source), "holds no rows", "Give a file with examples.")
    return [Row(values, str(source), place) for place, values in records]


def _format(path: Path, settings: DataSettings, field: str) -> str:
    """The format to read `path` as; DataError where there is nothing to read."""
    ending = ENDINGS.get(path.suffix.lower())
    if settings.format == "dataset" or path.is_dir():
        return "dataset"
    if not path.is_file():
        if ending is None and settings.format == "auto" and _HUB_NAME.fullmatch(str(path)):
            return "dataset"
        raise DataError(field, str(path), "no such file", "Check the path.")
    if settings.format != "auto":
        return settings.format
    if ending is None:
        raise DataError(
            field,
            str(path),
            "its format does not show from the ending",
            f"Use one of {', '.join(ENDINGS)}, or set data.format.",
        )
    return ending


def _read_jsonl(path: Path, settings: DataSettings) -> Iterator[Record]:
    """One object a line; or one array of objects, counted from 1."""
    with path.open(encoding="utf-8-sig") as file:
        if file.read(4096).lstrip().startswith("["):
            file.seek(0)
            yield from _read_json_array(file.read())
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _record(_json(line, number), f"line {number}")


def _read_json_array(text: str) -> Iterator[Record]:
    for number, value in enumerate(_json(text, 1), 1):
        yield _record(value, f"entry {number}")


def _json(text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Malformed(
            f"line {line + error.lineno - 1}, column {error.colno} is not valid JSON ({error.msg})"
        ) from None


def _record(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise Malformed(f"{place} is a JSON {type(value).__name__}, not an object {{...}}")
    return place, value


def _read_csv(path: Path, settings: DataSettings) -> Iterator[Record]:
    return _read_columns(path, settings.delimiter or ",")


def _read_tsv(path: Path, settings: DataSettings) -> Iterator[Record]:
    return _read_columns(path, settings.delimiter or "\t")


def _read_columns(path: Path, delimiter: str) -> Iterator[Record]:
    """A header line, then rows of as many columns; quoted by double quotes where needed."""
    if len(delimiter) != 1:
        raise ConfigError(
            "data.delimiter", delimiter, "is not one character", 'Write e.g. ";" or "\\t".'
        )
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) != len(header):
                raise Malformed(f"its header names a column twice: {', '.join(header)}")
            start = reader.line_num + 1
            for columns in reader:
                if columns:
                    yield f"line {start}", _columns(header, columns, start, delimiter)
                start = reader.line_num + 1
        except csv.Error as error:
            raise Malformed(f"line {reader.line_num}: {error}") from None


def _columns(header: list[str], columns: list[str], line: int, delimiter: str) -> dict[str, Any]:
    if len(columns) != len(header):
        raise Malformed(
            f"line {line} has {len(columns)} columns split by {delimiter!r}, the header has "
            f"{len(header)} (data.delimiter sets another separator)"
        )
    return dict(zip(header, columns, strict=True))


def _read_text(path: Path, settings: DataSettings) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", {settings.text_field: line.rstrip("\n")}


def _read_parquet(path: Path, settings: DataSettings) -> Iterator[Record]:
    # pyarrow comes with `datasets`; reading by `datasets` itself would leave an Arrow copy of a
    # device's private data in a cache folder.
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield f"row {number}", values
    except pyarrow.ArrowInvalid as error:
        raise Malformed(f"not a Parquet file: {error}") from None


READERS: dict[str, Reader] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "text": _read_text,
    "parquet": _read_parquet,
}
