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

A conversation is one example, scored on every answer of the assistant with its end marker. Without
a chat template it is written `User: ...`, `Assistant: ...`, a line each, and every answer has the
end token; an instruction is then put as Alpaca's prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from sfl.config import DataSettings, ModelSettings
from sfl.data.blocks import each, first, joined
from sfl.data.conversation import (
    Script,
    Turns,
    instruction_of,
    instruction_prompt,
    plain,
    scripts,
    turns_of,
)
from sfl.data.example import UNSCORED, DataNotes, Example, Row
from sfl.data.fields import text_of
from sfl.data.labels import class_of
from sfl.data.layout import Layout, layout_of
from sfl.data.tokenizer import Tokenizer
from sfl.errors import DataError, ModelError

T = TypeVar("T")

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
    layout = layout_of(rows, model, data)
    examples, truncated, dropped, tokens, tokens_kept = [], 0, 0, 0, 0
    for piece in _ENCODERS[layout](rows, tokenizer, model, data):
        truncated += piece.cut
        tokens += piece.kept + piece.lost
        if all(label == UNSCORED for label in piece.example.labels):
            dropped += 1
        else:
            examples.append(piece.example)
            tokens_kept += piece.kept
    return examples, DataNotes(truncated, dropped, 0, tokens, tokens_kept)


def prompt_ids(tokenizer: Tokenizer, prompt: str, data: DataSettings) -> list[int]:
    """The ids that generation goes on from: those that training put before a completion."""
    if applies_template(tokenizer, data):
        return tokenizer.encode([tokenizer.chat(prompt, "")[0]])[0]
    if data.layout == "messages":
        prompt = plain([{"role": "user", "content": prompt}], True)
    elif data.layout == "instruction":
        prompt = instruction_prompt(prompt)
    return [*tokenizer.prefix, *tokenizer.encode([_move_space(prompt, "")[0]])[0]]


def remembers_turns(tokenizer: Tokenizer, data: DataSettings) -> bool:
    """Whether what was trained is conversations, so that earlier turns can be said again."""
    return applies_template(tokenizer, data) or data.layout == "messages"


def conversation_ids(tokenizer: Tokenizer, turns: Turns, data: DataSettings) -> list[int]:
    """The ids that the answer to a conversation goes on from.

    Where turns are not remembered, those of the last one alone. Raises DataError.
    """
    if applies_template(tokenizer, data):
        return tokenizer.encode([tokenizer.render(turns, True)])[0]
    if data.layout == "messages":
        return [*tokenizer.prefix, *tokenizer.encode([plain(turns, True)])[0]]
    return prompt_ids(tokenizer, turns[-1]["content"], data)


def applies_template(tokenizer: Tokenizer, data: DataSettings) -> bool:
    """Whether prompts, instructions and conversations go through the tokenizer's template.

    Raises DataError where the run was made with another template.
    """
    if not (data.chat_template and tokenizer.has_chat_template):
        return False
    own = tokenizer.chat_template_digest
    if data.chat_template_digest not in ("", own):
        raise DataError(
            "data.chat_template_digest",
            data.chat_template_digest,
            f"this node's tokenizer has another chat template ({own})",
            "Use the run's tokenizer, or remove the setting.",
        )
    return True


def _encode_completions(
    rows: Sequence[Row], tokenizer: Tokenizer, model: ModelSettings, data: DataSettings
) -> Iterator[Piece]:
    pairs = (
        (
            text_of(row, data.prompt_field, "data.prompt_field"),
            text_of(row, data.completion_field, "data.completion_field"),
        )
        for row in rows
    )
    join = tokenizer.chat if applies_template(tokenizer, data) else _move_space
    return _encode_pairs((join(*pair) for pair in pairs), tokenizer, model, data)


def _encode_instructions(
    rows: Sequence[Row], tokenizer: Tokenizer, model: ModelSettings, data: DataSettings
) -> Iterator[Piece]:
    def join(row: Row) -> tuple[str, str]:
        instruction, given, answer = instruction_of(row)
        if applies_template(tokenizer, data):
            return tokenizer.chat(f"{instruction}\n\n{given}" if given else instruction, answer)
        return _move_space(instruction_prompt(instruction, given), answer)

    return _encode_pairs(map(join, rows), tokenizer, model, data)


def _encode_pairs(
    pairs: Iterable[tuple[str, str]],
    tokenizer: Tokenizer,
    model: ModelSettings,
    data: DataSettings,
) -> Iterator[Piece]:
    eos = _end_token(tokenizer)
    start = () if applies_template(tokenizer, data) else tokenizer.prefix
    for chunk in _chunks(pairs):
        prompts = tokenizer.encode([prompt for prompt, _ in chunk])
        completions = tokenizer.continuations(chunk)
        for prompt, completion in zip(prompts, completions, strict=True):
            ended = _ended(completion, eos)
            yield _fit([*start, *prompt], ended, ended, tokenizer, model.max_length)


def _encode_conversations(
    rows: Sequence[Row], tokenizer: Tokenizer, model: ModelSettings, data: DataSettings
) -> Iterator[Piece]:
    eos, by_template = _end_token(tokenizer), applies_template(tokenizer, data)
    start = () if by_template else tokenizer.prefix
    for chunk in _chunks(script for row in rows for script in _scripts(row, tokenizer, data)):
        for ids, labels in _joined(chunk, tokenizer, None if by_template else eos):
            begin = next((k for k, label in enumerate(labels) if label != UNSCORED), len(ids))
            if begin < len(ids) and ids[-1] != eos:
                ids, labels = [*ids, eos], [*labels, eos]
            prompt = [*start, *ids[:begin]]
            yield _fit(prompt, ids[begin:], labels[begin:], tokenizer, model.max_length)


def _scripts(row: Row, tokenizer: Tokenizer, data: DataSettings) -> list[Script]:
    turns, first_scored = turns_of(row, data)
    if not applies_template(tokenizer, data):
        return scripts(turns, first_scored, plain)
    try:
        return scripts(turns, first_scored, tokenizer.render)
    except DataError as error:
        raise DataError(
            error.field, error.value, f"in {row.where} {error.problem}", error.fix
        ) from None


def _joined(
    chunk: Sequence[Script], tokenizer: Tokenizer, eos: int | None
) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and labels of each script; an answer ends with `eos` where that is given."""
    pairs = [
        (script[k - 1][0] if k else "", text)
        for script in chunk
        for k, (text, _) in enumerate(script)
    ]
    pieces = iter(tokenizer.continuations(pairs))
    for script in chunk:
        ids: list[int] = []
        labels: list[int] = []
        for _, scored in script:
            piece = next(pieces)
            if scored and eos is not None:
                piece = _ended(piece, eos)
            ids += piece
            labels += piece if scored else [UNSCORED] * len(piece)
        yield ids, labels


def _fit(
    prompt: list[int],
    completion: list[int],
    targets: list[int],
    tokenizer: Tokenizer,
    max_length: int,
) -> Piece:
    """The example within `max_length`; `targets` are the labels of the completion."""
    whole = len(prompt) + len(completion)
    if whole > max_length:
        kept = len(tokenizer.prefix)
        if prompt[:kept] != list(tokenizer.prefix):
            kept = 0
        room = max(max_length - kept - len(completion), 0)
        prompt = prompt[:kept] + prompt[max(len(prompt) - room, kept) :]
        completion = completion[: max(max_length - kept, 0)]
    ids = (prompt + completion)[:max_length]
    labels = [UNSCORED] * len(prompt) + targets
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
        texts = [text_of(row, data.text_field, "data.text_field") for row in chunk]
        for text in tokenizer.encode(texts):
            yield _ended([*tokenizer.prefix, *text], eos)


def _encode_labelled(
    rows: Sequence[Row], tokenizer: Tokenizer, model: ModelSettings, data: DataSettings
) -> Iterator[Piece]:
    room = max(model.max_length - len(tokenizer.prefix) - len(tokenizer.suffix), 0)
    classes = {name: number for number, name in enumerate(model.labels)}
    for chunk in _chunks(rows):
        labels = [class_of(row, classes, data.label_field) for row in chunk]
        texts = [text_of(row, data.text_field, "data.text_field") for row in chunk]
        for ids, label in zip(tokenizer.encode(texts), labels, strict=True):
            marked = (*tokenizer.prefix, *ids[:room], *tokenizer.suffix)
            target = label if marked else UNSCORED  # no token, nothing to classify
            kept = marked[: model.max_length]
            lost = len(marked) - len(kept) + max(len(ids) - room, 0)
            yield Piece(Example(kept, (target,)), len(kept), lost)


_BLOCKS = {"each": each, "joined": joined, "first": first}
_ENCODERS: Mapping[Layout, Callable[..., Iterator[Piece]]] = {
    "completion": _encode_completions,
    "messages": _encode_conversations,
    "instruction": _encode_instructions,
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


def _chunks(rows: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(rows)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk
