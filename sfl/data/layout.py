"""How the rows of a file are laid out: seen at the fields of the first, unless a setting says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from sfl.config import DataSettings, ModelSettings
from sfl.data.example import Kind, Row
from sfl.data.fields import advice, field_names, has_field, value_of
from sfl.errors import DataError

Layout = Literal["completion", "text", "messages", "instruction", "label"]
KINDS: Mapping[Layout, Kind] = {
    "completion": "completion",
    "messages": "completion",
    "instruction": "completion",
    "text": "text",
    "label": "label",
}
"""What is scored of rows that are laid out so."""
SHAREGPT = "conversations"
INSTRUCTION = "instruction"
_PAIRS = ("chosen", "rejected")


def layout_of(rows: Sequence[Row], model: ModelSettings, data: DataSettings) -> Layout:
    """How the rows are laid out, going by task, setting and the first row. Raises DataError."""
    if model.task == "sequence_classification":
        return "label"
    if data.layout != "auto":
        return data.layout
    if not rows:
        return "text"
    first = rows[0]
    if has_field(first, data.messages_field) or has_field(first, SHAREGPT):
        return "messages"
    pair = (data.prompt_field, data.completion_field)
    if any(has_field(first, field) for field in pair):
        return _of_pair(first, data)
    if has_field(first, INSTRUCTION):
        return "instruction"
    if has_field(first, data.text_field):
        return "text"
    _refuse_preferences(first, data)
    raise DataError(
        "data.prompt_field",
        data.prompt_field,
        f"{first.where} has neither {data.prompt_field!r} and {data.completion_field!r} nor "
        f"{data.text_field!r} (it has: {field_names(first)})",
        "Set data.prompt_field and data.completion_field, or data.text_field, to its names"
        + advice(first, (*pair, data.text_field)),
    )


def kind_of(rows: Sequence[Row], model: ModelSettings, data: DataSettings) -> Kind:
    """What is scored of the rows. Raises DataError."""
    return KINDS[layout_of(rows, model, data)]


def _of_pair(first: Row, data: DataSettings) -> Layout:
    if not has_field(first, data.completion_field):
        _refuse_preferences(first, data)
    values = (first.values.get(data.prompt_field), first.values.get(data.completion_field))
    return "messages" if any(isinstance(value, list) for value in values) else "completion"


def _refuse_preferences(first: Row, data: DataSettings) -> None:
    """Raise DataError for pairs of a good and a bad answer, which sfl does not learn from."""
    if not all(has_field(first, field) for field in _PAIRS):
        return
    whole = isinstance(value_of(first, "chosen", "data.messages_field"), list)
    setting = "messages_field" if whole else "completion_field"
    raise DataError(
        f"data.{setting}",
        getattr(data, setting),
        f"{first.where} is a preference pair (chosen, rejected), which nothing here learns from",
        f'To train on the chosen answers alone, set data.{setting} = "chosen".',
    )


assert set(get_args(Layout)) == set(KINDS)
