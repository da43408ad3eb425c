"""Whether rows leave anything to learn from within `model.max_length`; of many rows only some are
looked at, in a second or less."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sfl.config import DataSettings, ModelSettings
from sfl.data.conversation import has_answer, instruction_of, nothing_to_score, turns_of
from sfl.data.encode import encode_rows
from sfl.data.example import Example, Row
from sfl.data.fields import text_of
from sfl.data.layout import Layout
from sfl.data.tokenizer import Tokenizer, load_tokenizer
from sfl.errors import DataError

ROOM = 16
"""From so many tokens on, any text leaves a target: nothing puts that many before one."""
MOST_ROWS = 1000
MOST_CHARACTERS = 2_000_000


def check_left(
    examples: Sequence[Example], truncated: int, rows: Sequence[Row], of: str, max_length: int
) -> None:
    """Raise DataError where rows come to no example at all, for what they lack or for the bound.

    `truncated` of them were cut; `of` says whose they are, with a space before it.
    """
    if examples:
        return
    if not truncated:
        raise nothing_to_score(rows, of)
    raise DataError(
        "model.max_length",
        max_length,
        f"none of the {len(rows)} rows of {rows[0].source}{of} has a target within it",
        "Raise it.",
    )


def _text(row: Row, data: DataSettings) -> str:
    return text_of(row, data.text_field, "data.text_field").strip()


def _pair(row: Row, data: DataSettings) -> str:
    prompt = text_of(row, data.prompt_field, "data.prompt_field")
    return (prompt + text_of(row, data.completion_field, "data.completion_field")).strip()


def _instruction(row: Row, data: DataSettings) -> str:
    return "".join(instruction_of(row)).strip()


def _answers(row: Row, data: DataSettings) -> str:
    if not has_answer(row, data):
        return ""
    turns, _ = turns_of(row, data)
    return "".join(turn["content"] for turn in turns if turn["role"] == "assistant").strip()


_WORDS: Mapping[Layout, Callable[[Row, DataSettings], str]] = {
    "text": _text,
    "label": _text,
    "completion": _pair,
    "instruction": _instruction,
    "messages": _answers,
}
"""Text of a row that leaves a target wherever there is room for one."""


class TargetCheck:
    """Looks at rows before anything starts; the tokenizer is loaded only where it is needed."""

    def __init__(self, model: ModelSettings, data: DataSettings) -> None:
        self._model, self._data = model, data
        self._tokenizers: dict[Path, Tokenizer] = {}

    def look(self, rows: Sequence[Row], layout: Layout, of: str, folder: Path) -> None:
        """Raise DataError where none of the rows leaves a target, by the tokenizer in `folder`.

        Rows beyond MOST_ROWS or MOST_CHARACTERS are left to the device.
        """
        first, words = rows[:MOST_ROWS], _WORDS[layout]
        if not rows or (self._model.max_length >= ROOM and words(rows[0], self._data)):
            return
        if sum(len(words(row, self._data)) for row in first) > MOST_CHARACTERS:
            return
        tokenizer = self._tokenizer(folder)
        if any(encode_rows([row], tokenizer, self._model, self._data)[0] for row in first):
            return
        if len(first) == len(rows):  # one behind the other they may still leave one
            examples, notes = encode_rows(rows, tokenizer, self._model, self._data)
            check_left(examples, notes.truncated, rows, of, self._model.max_length)

    def _tokenizer(self, folder: Path) -> Tokenizer:
        if folder not in self._tokenizers:
            self._tokenizers[folder] = load_tokenizer(folder)
        return self._tokenizers[folder]
