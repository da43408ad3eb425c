"""The class of a row: by its name, or by its number where that can mean one thing only."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from sfl.data.example import Row
from sfl.data.fields import as_text, is_missing, value_of
from sfl.errors import DataError

_NUMBER = re.compile(r"[0-9]{1,9}(\.0+)?")
"""As tables write class numbers; those with gaps as floats."""


def class_of(row: Row, classes: Mapping[str, int], field: str) -> int:
    """The number of a row's class in `model.labels`. Raises DataError.

    A name counts before a number. A number is a position in `model.labels`, from 0; where some
    of these names are themselves numbers, it can only be a name.
    """
    value = value_of(row, field, "data.label_field")
    text = as_text(value)
    named = None if is_missing(value) or isinstance(value, list | dict) else classes.get(text)
    if named is not None:
        return named
    number = _number(value, text, classes)
    if number is not None and number < len(classes):
        return number
    raise DataError(
        "data.label_field",
        field,
        f"{row.where} has {field} {value!r:.200}, which is none of the {len(classes)} classes of "
        f"model.labels, {_few(classes)}",
        _fix(value, text, number, classes),
    )


def _number(value: Any, text: str, classes: Mapping[str, int]) -> int | None:
    """The class number that a value is, None where it is none or may mean something else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    if not _NUMBER.fullmatch(text) or _numbered(tuple(classes)):
        return None
    return int(text.partition(".")[0])


@lru_cache(maxsize=8)
def _numbered(names: tuple[str, ...]) -> bool:
    """Whether some class is called by a number."""
    return any(_NUMBER.fullmatch(name) for name in names)


def _fix(value: Any, text: str, number: int | None, classes: Mapping[str, int]) -> str:
    if is_missing(value) or (not isinstance(value, str) and text == "-1"):
        return "It has no label (datasets write -1 for none): leave such rows out of the file."
    if isinstance(value, list | dict):
        return "A text has one class: write one name."
    if isinstance(value, bool):
        return f"Write the name of the class: {_few(classes)}."
    if number is not None:
        return f"Numbers count from 0 to {len(classes) - 1}, in the order of model.labels."
    folded = {name.strip().casefold(): name for name in classes}
    near = difflib.get_close_matches(text.strip().casefold(), list(folded), 1)
    if near:
        return f"Did you mean {folded[near[0]]!r}? Fix the row, or add the name to model.labels."
    return "Add it to model.labels, or fix the row."


def _few(classes: Mapping[str, int]) -> str:
    names = list(classes)
    return f"{names[:6]}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")
