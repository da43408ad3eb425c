"""Conversations: from rows of several layouts to turns, and from turns to text that is scored on
the assistant's turns only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sfl.config import DataSettings
from sfl.data.example import Row
from sfl.data.fields import called, has_field, text_of, value_of
from sfl.data.layout import INSTRUCTION, SHAREGPT
from sfl.errors import DataError

Turns = list[dict[str, str]]
"""`role` and `content` of each, as chat templates take them."""
Script = list[tuple[str, bool]]
"""A text in pieces, each with whether the loss is taken over it."""
Render = Callable[[Turns, bool], str]
"""The text of some turns; the flag asks for what begins an answer as well."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
_INTRODUCTION = (
    "Below is an instruction that describes a task{}. "
    "Write a response that appropriately completes the request.\n\n"
)
_WITH_INPUT = ", paired with an input that provides further context"


def turns_of(row: Row, data: DataSettings) -> tuple[Turns, int]:
    """The turns of a row, and the number of the first that may be scored. Raises DataError."""
    for field in (data.messages_field, SHAREGPT):
        if has_field(row, field):
            return _turns(row, field, "data.messages_field"), 0
    prompt = _turns(row, data.prompt_field, "data.prompt_field", "user")
    return prompt + _turns(row, data.completion_field, "data.completion_field", "assistant"), len(
        prompt
    )


def has_answer(row: Row, data: DataSettings) -> bool:
    """Whether a conversation has a turn that the loss is taken over. Raises DataError."""
    return bool(_answers(*turns_of(row, data)))


def nothing_to_score(rows: Sequence[Row], of: str = "") -> DataError:
    """What is wrong with rows of which not one has anything to score, however long."""
    return DataError(
        "data",
        rows[0].source,
        f"none of its {len(rows)} rows{of} has anything to score",
        "A conversation needs an answer: a turn of the assistant after another's. A text needs "
        "words.",
    )


def instruction_of(row: Row) -> tuple[str, str, str]:
    """Instruction, further input (mostly empty) and answer, as Alpaca and Dolly name them."""
    setting = "data.layout"
    further = next((f for f in ("input", "context") if row.values.get(f)), None)
    answer = next((f for f in ("output", "response") if has_field(row, f)), "output")
    given = text_of(row, further, setting) if further else ""
    return text_of(row, INSTRUCTION, setting), given, text_of(row, answer, setting)


def instruction_prompt(instruction: str, given: str = "") -> str:
    """The prompt that Alpaca was trained with, for tokenizers without a chat template."""
    text = _INTRODUCTION.format(_WITH_INPUT if given else "")
    text += f"### Instruction:\n{instruction}\n\n"
    return text + (f"### Input:\n{given}\n\n" if given else "") + "### Response:\n"


def plain(turns: Turns, answer: bool) -> str:
    """Turns where the tokenizer has no chat template: `User: ...`, a line end after each."""
    text = "".join(f"{_NAMES[turn['role']]}: {turn['content']}\n" for turn in turns)
    return text + ("Assistant:" if answer else "")


def scripts(turns: Turns, first: int, render: Render) -> list[Script]:
    """The conversation as one text; as one for each answer where the template writes earlier turns
    another way once others follow."""
    script, done = Script(), ""
    for number in _answers(turns, first):
        before = render(turns[:number], True)
        after = render(turns[: number + 1], False)
        if not before.startswith(done) or not after.startswith(before):
            return [_alone(turns, number, render) for number in _answers(turns, first)]
        answer = after[len(before) :].rstrip("\n")
        script += [(before[len(done) :], False), (answer, True)]
        done = before + answer
    return [script]


def _alone(turns: Turns, number: int, render: Render) -> Script:
    before = render(turns[:number], True)
    after = render(turns[: number + 1], False)
    if after.startswith(before):
        return [(before, False), (after[len(before) :].rstrip("\n"), True)]
    return [(before, False), (turns[number]["content"], True)]


def _answers(turns: Turns, first: int) -> list[int]:
    """Answers to score: not one that nothing comes before."""
    first = max(first, 1)
    return [k for k, turn in enumerate(turns) if k >= first and turn["role"] == "assistant"]


def _turns(row: Row, field: str, setting: str, role: str | None = None) -> Turns:
    """The turns in a field; a text there is one of `role`, where that is given."""
    value = value_of(row, field, setting)
    if isinstance(value, str) and role is not None:
        return [{"role": role, "content": text_of(row, field, setting)}]
    if not isinstance(value, list):
        raise _broken(row, field, setting, f"is {called(value)}, not a list of messages")
    return [_turn(row, field, setting, number, one) for number, one in enumerate(value, 1)]


def _turn(row: Row, field: str, setting: str, number: int, turn: Any) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise _broken(row, field, setting, f"has {called(turn)} as message {number}")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    known = ROLES.get(str(role).lower())
    if known is None:
        problem = f"has the role {role!r} in message {number}"
        raise _broken(row, field, setting, problem, f"Known roles: {', '.join(ROLES)}.")
    if isinstance(content, list):
        content = _parts(content)
    if not isinstance(content, str):
        if turn.get("tool_calls"):
            problem = f"calls a tool in message {number}, which is not read"
            raise _broken(row, field, setting, problem, "Write the call as text in content.")
        problem = f"has {called(content)} as the content of message {number}, not text"
        raise _broken(row, field, setting, problem)
    return {"role": known, "content": content}


def _parts(content: Sequence[Any]) -> str | None:
    """The text of a message in parts; None where one of them is no text."""
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    found = [text for text in texts if isinstance(text, str)]
    return "".join(found) if len(found) == len(texts) else None


def _broken(row: Row, field: str, setting: str, problem: str, fix: str = "") -> DataError:
    fix = fix or 'Write [{"role": "user", "content": "..."}, {"role": "assistant", ...}].'
    return DataError(setting, field, f"in {row.where} the field {problem}", fix)
