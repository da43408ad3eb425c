"""Rows to examples.

Causal rows are a prompt and its completion, scored on the completion, or a text, scored
throughout; rows to classify are a text and a label. Prompt and completion are tokenised apart,
so that the prompt's ids are the same in training and in generation:

    what the tokenizer puts at the start | prompt | completion | end token

with no other special token between. Where the prompt ends in a space, that one space goes with
the completion, as tokenizers have their words (`"x = "` + `"yes"` is taken as `"x ="` + `" yes"`),
so the ids decode to prompt + completion as written. With a chat template the prompt is the
user's turn up to where the assistant's text begins, the completion the rest with its end marker,
and the template brings its own special tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sfl.config import DataSettings, ModelSettings
from sfl.data.blocks import each, first, joined
from sfl.data.example import UNSCORED, DataNotes, Example, Kind, Row
from sfl.data.fields import advice, field_names, has_field, value_of
from sfl.data.labels import class_of
from sfl.data.tokenizer import Tokenizer
from sfl.errors import DataError, ModelError

_CHUNK = 1024  # rows tokenised at a time


class Piece(NamedTuple):
    """An example, and how many of its row's tokens stand in it and how many were cut off."""

    example: Example
    kept: int
    lost: int = 0

    @property
    def cut(self) -> bool:
        """Whether something was cut off."""
        return self.lost > 0


def encode_rows(
    rows: Sequence[Row], tokenizer: Tokenizer, model: ModelSettings, data: DataSettings
) -> tuple[list[Example], DataNotes]:
    """Examples of at most `model.max_length` tokens, in the order of `rows`, and what was cut.

    A longer one loses its prompt first, from the left, then the end of its completion. A text to
    classify loses its end. Plain text is cut into blocks, as `data.blocks` says. One that is left
    with nothing to score is dropped. Raises DataError naming file, row and field.
    """
    kind = kind_of(rows, model, data)
    examples, truncated, dropped, tokens, tokens_kept = [], 0, 0, 0, 0
    for piece in _ENCODERS[kind](rows, tokenizer, model, data):
        truncated += piece.cut
        tokens += piece.kept + piece.lost
        if all(label == UNSCORED for label in piece.example.labels):
            dropped += 1
        else:
            examples.append(piece.example)
            tokens_kept += piece.kept
    return examples, DataNotes(truncated, dropped, 0, tokens, tokens_kept)


def kind_of(rows: Sequence[Row], model: ModelSettings, data: DataSettings) -> Kind:
    """What the rows are, going by the task and the first row's fields. Raises DataError."""
    if model.task == "sequence_classification":
        return "label"
    if not rows:
        return "text"
    first, pair = rows[0], (data.prompt_field, data.completion_field)
    if any(has_field(first, field) for field in pair):
        return "completion"
    if has_field(first, data.text_field):
        return "text"
    raise DataError(
        "data.prompt_field",
        data.prompt_field,
        f"{first.where} has neither {data.prompt_field!r} and {data.completion_field!r} nor "
        f"{data.text_field!r} (it has: {field_names(first)})",
        "Set data.prompt_field and data.completion_field, or data.text_field, to its names"
        + advice(first, (*pair, data.text_field)),
    )


def prompt_ids(tokenizer: Tokenizer, prompt: str, data: DataSettings) -> list[int]:
    """The ids that generation goes on from: those that training put before a completion."""
    if data.chat_template and tokenizer.has_chat_template:
        return tokenizer.encode([tokenizer.chat(prompt, "")[0]])[0]
    return [*tokenizer.prefix, *tokenizer.encode([_move_space(prompt, "")[0]])[0]]


def _encode_completions(
    rows: Sequence[Row], tokenizer: Tokenizer, model: ModelSettings, data: DataSettings
) -> Iterator[Piece]:
    eos = _end_token(tokenizer)
    by_template = data.chat_template and tokenizer.has_chat_template
    start = () if by_template else tokenizer.prefix
    join = tokenizer.chat if by_template else _move_space
    for chunk in _chunks(rows):
        pairs = [
            join(
                _text(row, data.prompt_field, "data.prompt_field"),
                _text(row, data.completion_field, "data.completion_field"),
            )
            for row in chunk
        ]
        prompts = tokenizer.encode([prompt for prompt, _ in pairs])
        completions = tokenizer.continuations(pairs)
        for prompt, completion in zip(prompts, completions, strict=True):
            yield _fit([*start, *prompt], _ended(completion, eos), tokenizer, model.max_length)


def _fit(prompt: list[int], completion: list[int], tokenizer: Tokenizer, max_length: int) -> Piece:
    """The example within `max_length`."""
    whole = len(prompt) + len(completion)
    if whole > max_length:
        kept = len(tokenizer.prefix)
        if prompt[:kept] != list(tokenizer.prefix):
            kept = 0
        room = max(max_length - kept - len(completion), 0)
        prompt = prompt[:kept] + prompt[max(len(prompt) - room, kept) :]
        completion = completion[: max(max_length - kept, 0)]
    ids = (prompt + completion)[:max_length]
    labels = [UNSCORED] * len(prompt) + completion
    return Piece(Example(tuple(ids), (UNSCORED, *labels[1 : len(ids)])), len(ids), whole - len(ids))


def _encode_texts(
    rows: Sequence[Row], tokenizer: Tokenizer, model: ModelSettings, data: DataSettings
) -> Iterator[Piece]:
    cut = _BLOCKS[data.blocks]
    for ids, own in cut(_documents(rows, tokenizer, data), [*tokenizer.prefix], model.max_length):
        yield Piece(Example(tuple(ids), (UNSCORED, *ids[1:])), *own)


def _documents(
    rows: Sequence[Row], tokenizer: Tokenizer, data: DataSettings
) -> Iterator[list[int]]:
    """Each text with what begins and what ends one."""
    eos = _end_token(tokenizer)
    for chunk in _chunks(rows):
        texts = [_text(row, data.text_field, "data.text_field") for row in chunk]
        for text in tokenizer.encode(texts):
            yield _ended([*tokenizer.prefix, *text], eos)


def _encode_labelled(
    rows: Sequence[Row], tokenizer: Tokenizer, model: ModelSettings, data: DataSettings
) -> Iterator[Piece]:
    room = max(model.max_length - len(tokenizer.prefix) - len(tokenizer.suffix), 0)
    classes = {name: number for number, name in enumerate(model.labels)}
    for chunk in _chunks(rows):
        labels = [class_of(row, classes, data.label_field) for row in chunk]
        texts = [_text(row, data.text_field, "data.text_field") for row in chunk]
        for ids, label in zip(tokenizer.encode(texts), labels, strict=True):
            marked = (*tokenizer.prefix, *ids[:room], *tokenizer.suffix)
            target = label if marked else UNSCORED  # no token, nothing to classify
            kept = marked[: model.max_length]
            lost = len(marked) - len(kept) + max(len(ids) - room, 0)
            yield Piece(Example(kept, (target,)), len(kept), lost)


_BLOCKS = {"each": each, "joined": joined, "first": first}
_ENCODERS = {
    "completion": _encode_completions,
    "text": _encode_texts,
    "label": _encode_labelled,
}


def _move_space(prompt: str, completion: str) -> tuple[str, str]:
    if prompt.endswith(" "):
        return prompt[:-1], " " + completion
    return prompt, completion


def _ended(ids: list[int], eos: int) -> list[int]:
    """With an end token, unless a chat template's marker was one."""
    return ids if ids and ids[-1] == eos else [*ids, eos]


def _end_token(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_id is None:
        raise ModelError(
            "model.task",
            "causal_lm",
            "the model's tokenizer has no end token",
            "Name one as eos_token in its tokenizer_config.json.",
        )
    return tokenizer.eos_id


def _text(row: Row, field: str, setting: str) -> str:
    value = value_of(row, field, setting)
    if not isinstance(value, str):
        raise DataError(
            setting, field, f"in {row.where} the field is {_called(value)}, not text", _fix(value)
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


def _called(value: object) -> str:
    return "empty (null)" if value is None else f"a {type(value).__name__}"


def _fix(value: object) -> str:
    if isinstance(value, dict) and value:
        return f"Name one of its own fields with a dot, e.g. ....{next(iter(value))}."
    return "Write it as a string."


def _chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]
