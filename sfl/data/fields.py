"""Fields of a row by name, also within another field (`answers.text`), and advice where one is
missing."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable
from typing import Any

from sfl.data.example import Row
from sfl.errors import DataError

_MISSING = object()


def has_field(row: Row, field: str) -> bool:
    """Whether the row has a field of that name, or one within another."""
    return _find(row, field) is not _MISSING


def value_of(row: Row, field: str, setting: str) -> Any:
    """The value of a field; `setting` is where its name came from. Raises DataError."""
    value = _find(row, field)
    if value is _MISSING:
        raise DataError(
            setting,
            field,
            f"{row.where} has no such field (it has: {field_names(row)})",
            f"Name the field so, or set {setting}" + advice(row, [field]),
        )
    return value


def text_of(row: Row, field: str, setting: str) -> str:
    """The text in a field. Raises DataError for anything else, and for text that is none."""
    value = value_of(row, field, setting)
    if not isinstance(value, str):
        raise DataError(
            setting,
            field,
            f"in {row.where} the field is {called(value)}, not text",
            _fix(row, field, value),
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            setting,
            field,
            f"in {row.where} the field holds half a character "
            f"({value[error.start]!r} at {error.start}), which no text can",
            "Write the file again with whole characters.",
        ) from None
    return value


def called(value: object) -> str:
    """What a value is, for a message."""
    if value is None:
        return "empty (null)"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _fix(row: Row, field: str, value: object) -> str:
    if isinstance(value, dict) and value:
        return f"Name a field within it, e.g. {field}.{next(iter(value))}."
    if value is None:
        return "Leave the row out, or write a string."
    if any(key in row.values for key in ("chosen", "rejected")):
        return "These are preference pairs, which nothing here learns from."
    return "Write it as a string."


def field_names(row: Row) -> str:
    """The names of the row's fields, for a message."""
    return ", ".join(map(_shown, row.values))


def advice(row: Row, wanted: Iterable[str]) -> str:
    """What else may be the cause where none of the fields `wanted` is there; ends the sentence."""
    names = [str(name) for name in row.values]
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|,"):
        return "; data.delimiter sets the separator of columns."
    for field in wanted:
        near = difflib.get_close_matches(field.casefold(), [n.strip().casefold() for n in names], 1)
        if near:
            found = next(name for name in names if name.strip().casefold() == near[0])
            return f"; did you mean {found!r}?"
    if row.headed:
        return (
            ". Line 1 of the file was taken for its header; if it is none, name the columns in "
            "data.columns."
        )
    return "."


def as_text(value: Any) -> str:
    """A value as an identifier: whole numbers without a point, midnights as dates.

    A column of numbers with gaps is read as one of floats, and one of days as one of times.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value)


def is_missing(value: Any) -> bool:
    """Whether a value is null, or the not-a-number that tables have in its place."""
    return value is None or value != value


def _find(row: Row, field: str) -> Any:
    if field in row.values:
        return row.values[field]
    head, dot, rest = field.partition(".")
    inner = row.values.get(head) if dot else None
    while isinstance(inner, dict):
        if rest in inner:
            return inner[rest]
        head, dot, rest = rest.partition(".")
        inner = inner.get(head) if dot else None
    return _MISSING


def _shown(name: object) -> str:
    text = str(name)
    return text if len(text) <= 60 else text[:57] + "..."
