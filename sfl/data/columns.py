"""CSV and TSV: one record of columns a line, or over several where a quoted field has line ends.

The standard library's reader would do but for two things: its bound on a field's length is the
whole process's, and it does not say where the quotation mark stands that was never closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfl.config import DataSettings
from sfl.data.malformed import Malformed
from sfl.errors import ConfigError
from sfl.node.textfile import open_text

_NO_QUOTES = 'data.quoting = "none" reads quotation marks as text'


def read_columns(
    path: Path, settings: DataSettings, delimiter: str, quoted: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Places and fields of all rows; names from `data.columns`, else from the first line.

    Lines without anything are skipped. Raises Malformed, ConfigError.
    """
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise ConfigError(
            "data.delimiter", delimiter, "is not one character", 'Write e.g. ";" or "\\t".'
        )
    with open_text(path, newline="") as file:
        records = _Records(file, delimiter, quoted).all()
        names = list(settings.columns)
        if not names:
            names = next(records, (1, []))[1]
            _check_header(names, quoted)
        opened = not settings.columns
        for line, fields in records:
            if not opened:
                _check_no_header(names, fields, line)
                opened = True
            _check_record(names, fields, line, settings, delimiter, quoted)
            yield f"line {line}", dict(zip(names, fields, strict=True))


def _check_header(names: Sequence[str], quoted: bool) -> None:
    for name in names:
        if name and names.count(name) > 1:
            raise Malformed(
                f"its header names a column twice: {name!r:.100}; if the file has no header, name "
                "its columns in data.columns"
            )
    if not quoted and names and all(_in_quotes(name) for name in names):
        raise Malformed(
            f"its header has every name in quotation marks ({names[0]}); "
            'data.quoting = "minimal" takes them off'
        )


def _in_quotes(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] == '"'


def _check_record(
    names: Sequence[str],
    fields: Sequence[str],
    line: int,
    settings: DataSettings,
    delimiter: str,
    quoted: bool,
) -> None:
    given = bool(settings.columns)
    if len(fields) != len(names):
        whose = "data.columns names" if given else "the header has"
        hint = "data.delimiter sets another separator"
        if not quoted and any(text.startswith('"') for text in fields):
            hint += ', data.quoting = "minimal" reads quoted fields'
        raise Malformed(
            f"line {line} has {len(fields)} columns split by {delimiter!r}, {whose} "
            f"{len(names)} ({hint})"
        )


def _check_no_header(names: Sequence[str], fields: Sequence[str], line: int) -> None:
    """Raise Malformed where the first record holds a column's own name after all."""
    for name, text in zip(names, fields, strict=False):
        if text.strip().casefold() == name.casefold():
            raise Malformed(
                f"line {line} is a header ({text.strip()!r}), which data.columns says the file "
                "lacks; leave data.columns out"
            )


@dataclass(slots=True)
class _Records:
    """The records of a file, each with the number of its first line."""

    lines: Iterator[str]
    delimiter: str
    quoted: bool
    _number: int = field(default=0, init=False)

    def all(self) -> Iterator[tuple[int, list[str]]]:
        for line in self.lines:
            self._number += 1
            start = self._number
            content = _without_end(line)
            if not content:
                continue
            if self.quoted and '"' in content:
                yield start, list(self._fields(line))
            else:
                yield start, content.split(self.delimiter)

    def _fields(self, line: str) -> Iterator[str]:
        """The fields of the record that begins with `line`; reads on where one is quoted."""
        at = 0
        while True:
            if line.startswith('"', at):
                text, line, at = self._quoted(line, at + 1)
                yield text
                if at >= len(_without_end(line)):
                    return
                if line[at] != self.delimiter:
                    raise Malformed(
                        f"line {self._number}: {self.delimiter!r} expected after the closing "
                        f"quotation mark, not {line[at]!r} ({_NO_QUOTES})"
                    )
                at += 1
                continue
            stop = line.find(self.delimiter, at)
            if stop < 0:
                yield _without_end(line[at:])
                return
            yield line[at:stop]
            at = stop + 1

    def _quoted(self, line: str, at: int) -> tuple[str, str, int]:
        """The text of a quoted field, the line that it ends in, and where it ends there."""
        opened, parts = self._number, []
        while True:
            stop = line.find('"', at)
            if stop < 0:
                parts.append(line[at:])
                following = next(self.lines, None)
                if following is None:
                    raise Malformed(
                        f"line {self._number}: unexpected end of data, since the quotation mark "
                        f"that begins a field in line {opened} is never closed ({_NO_QUOTES})"
                    )
                self._number += 1
                line, at = following, 0
            elif line.startswith('"', stop + 1):
                parts.append(line[at : stop + 1])
                at = stop + 2
            else:
                parts.append(line[at:stop])
                return "".join(parts), line, stop + 1


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")
