"""Reading rows from files: JSONL, CSV, TSV and text without more than the standard library,
Parquet by pyarrow, Hugging Face datasets by `datasets`. The last two are imported only where they
are read, since a small device should not pay 50 to 130 MB for them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sfl.config import DataSettings
from sfl.data.columns import read_columns
from sfl.data.example import Row
from sfl.data.malformed import Malformed
from sfl.errors import DataError
from sfl.node.paths import amiss, expanded, nothing_there
from sfl.node.textfile import NotText, check_head, not_utf8, open_text

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
_HEADED = ("csv", "tsv")
_JSON_SPACE = " \t\r\n"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def load_rows(source: str | Path, settings: DataSettings, field: str = "data.train") -> list[Row]:
    """All rows of a file, a dataset's folder, or a dataset's name on the hub.

    A text file gives a row of `settings.text_field` for every line that is not empty. `field` is
    the setting that `source` came from. Raises DataError naming it, the file and the line.
    """
    path = expanded(source, field)
    try:
        kind = _format(path, settings, field)
        if kind == "dataset":
            from sfl.data.hub import read_dataset

            records, kind = read_dataset(str(source), path, settings, field)
        else:
            records = list(READERS[kind](path, settings))
    except Malformed as error:
        raise DataError(field, str(source), str(error), "Fix the file.") from None
    except NotText as error:
        raise DataError(field, str(source), error.problem, error.fix) from None
    except UnicodeDecodeError:
        wrong = not_utf8(path)
        raise DataError(field, str(source), wrong.problem, wrong.fix) from None
    except OSError as error:
        raise DataError(
            field, str(source), f"cannot be read: {error.strerror or error}", "Check the path."
        ) from None
    if not records:
        raise DataError(field, str(source), _no_rows(path, kind), "Give a file with examples.")
    headed = kind in _HEADED and not settings.columns
    return [Row(values, str(source), place, headed) for place, values in records]


def _no_rows(path: Path, kind: str) -> str:
    if kind in _HEADED and path.stat().st_size > 3:  # more than a byte order mark
        return "holds no rows, only a header"
    return "holds no rows"


def require_readable(path: Path, field: str) -> None:
    """Raise DataError where something is at `path` that is neither a file nor a folder."""
    wrong = amiss(path, "file")
    if not wrong or nothing_there(path) or not amiss(path, "folder"):
        return
    fix = "Check the path."
    if "pipe" in wrong:
        fix = "Rows are read more than once: write what it gives into a file, and name that."
    raise DataError(field, str(path), wrong, fix)


def may_be_on_hub(path: Path) -> bool:
    """Whether `path`, where nothing is, may be the name of a dataset."""
    return path.suffix.lower() not in ENDINGS and bool(_HUB_NAME.fullmatch(str(path)))


def _format(path: Path, settings: DataSettings, field: str) -> str:
    """The format to read `path` as; DataError where there is nothing to read."""
    ending = ENDINGS.get(path.suffix.lower())
    require_readable(path, field)
    if settings.format == "dataset" or path.is_dir():
        return "dataset"
    if not path.is_file():
        if settings.format == "auto" and may_be_on_hub(path):
            return "dataset"
        raise DataError(field, str(path), "no such file", "Check the path.")
    if settings.format != "auto":
        return settings.format
    if ending is None:
        check_head(path)  # one that is packed needs no other ending
        raise DataError(
            field,
            str(path),
            "its format does not show from the ending",
            f"Use one of {', '.join(ENDINGS)}, or set data.format.",
        )
    return ending


def _read_jsonl(path: Path, settings: DataSettings) -> Iterator[Record]:
    """One object a line; or one array of objects, counted from 1."""
    with open_text(path) as file:
        if file.read(4096).lstrip().startswith("["):
            file.seek(0)
            yield from _read_json_array(file.read())
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            # Without its own end: an object that is cut off would break off in the line after.
            if content := line.strip(_JSON_SPACE):
                indent = len(line) - len(line.lstrip(_JSON_SPACE))
                yield _record(_json(content, number, indent), f"line {number}")


def _read_json_array(text: str) -> Iterator[Record]:
    for number, value in enumerate(_json(text.rstrip(_JSON_SPACE), 1), 1):
        yield _record(value, f"entry {number}")


def _json(text: str, line: int, indent: int = 0) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        column = error.colno + (indent if error.lineno == 1 else 0)
        raise Malformed(
            f"line {line + error.lineno - 1}, column {column} is not valid JSON "
            f"({error.msg}){_json_hint(text, line, error)}"
        ) from None
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all bounds
        raise Malformed(f"line {line} cannot be read as JSON ({error})") from None


def _json_hint(text: str, line: int, error: json.JSONDecodeError) -> str:
    if "\0" in text:
        return ": it holds NUL bytes, so the file is damaged"
    if error.msg == "Extra data" or (line == 1 and text == "{"):
        return "; give one object a line, or one array of objects"
    return ""


def _record(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise Malformed(f"{place} is a JSON {type(value).__name__}, not an object {{...}}")
    return place, value


def _read_csv(path: Path, settings: DataSettings) -> Iterator[Record]:
    quoted = settings.quoting != "none"
    return read_columns(path, settings, settings.delimiter or ",", quoted)


def _read_tsv(path: Path, settings: DataSettings) -> Iterator[Record]:
    # As corpora are published (GLUE, SST): a quotation mark there is a part of the text.
    quoted = settings.quoting == "minimal"
    return read_columns(path, settings, settings.delimiter or "\t", quoted)


def _read_text(path: Path, settings: DataSettings) -> Iterator[Record]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", {settings.text_field: line.rstrip("\n")}


def _read_parquet(path: Path, settings: DataSettings) -> Iterator[Record]:
    from sfl.data.parquet import read_parquet

    return read_parquet(path)


READERS: dict[str, Reader] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "text": _read_text,
    "parquet": _read_parquet,
}
