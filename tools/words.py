"""Words that the project does not use, in docs, docstrings, comments, messages and names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

WORDS = {
    "at hand": "available",
    "lies": "is",
    "lie": "are",
    "lend": "give",
    "lends": "gives",
    "lent": "given",
    "mend": "fix",
    "mends": "fixes",
    "mended": "fixed",
    "parting": "cleanup",
    "partings": "cleanups",
    "resting": "swapped out, or paused",
    "owe": "name what is due",
    "owes": "name what is due",
    "owed": "due",
}
"""Words that a reader stumbles over, and what to say."""

KEPT = ("`resting`", "devices may lie (", "subtle lie", "device lies", "nobody lies")
"""A field of an event, and devices that tell what is not so."""

KEPT_NAMES = ("resting", "adapters_resting", "_owed")
"""A field of an event and of metrics, and what error feedback has yet to send."""


@dataclass(frozen=True, slots=True)
class Found:
    """A word in a file's line, and what to say for it."""

    where: str
    word: str
    better: str

    def __str__(self) -> str:
        return f"{self.where}: {self.word!r}; say {self.better!r}"


def in_line(line: str, where: str) -> Iterator[Found]:
    """The words that a line of text says, unless it says something of `KEPT`."""
    if not any(kept in line for kept in KEPT):
        yield from _found(line, where)


def in_name(name: str, where: str) -> Iterator[Found]:
    """The words that a name is made of: `at_hand`, `MEND` and `LentMemory` have one each."""
    if name not in KEPT_NAMES:
        yield from _found(" ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)), where)


def _found(text: str, where: str) -> Iterator[Found]:
    for word, better in WORDS.items():
        if re.search(rf"\b{word}\b", text, re.IGNORECASE):
            yield Found(where, word, better)
