"""What data are made of: rows as read, examples as trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["completion", "text", "label"]
"""What is scored: the completion of a prompt, every token of a text, the class of a text."""

UNSCORED = -100
"""Label of a position that no loss is taken over, as transformers and torch have it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file: its fields, and where it stands, for error messages."""

    values: dict[str, Any]
    source: str
    place: str  # e.g. "line 3"
    headed: bool = False
    """Whether the file's first line was taken for the names of its fields."""

    @property
    def where(self) -> str:
        """E.g. `homes/attic.jsonl, line 3`."""
        return f"{self.source}, {self.place}"


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence. Causal: `labels` align with `input_ids`, -100 where nothing is scored and
    always at position 0, which nothing predicts. Classification: `labels` is the class alone."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DataNotes:
    """What encoding had to leave out, and what stands on both sides, counted in examples."""

    truncated: int = 0
    dropped: int = 0
    repeated: int = 0
    """Examples to evaluate on that are also trained on."""
    tokens: int = 0
    """Tokens of all rows to train on, as they would be without a bound on the length."""
    tokens_kept: int = 0
    """Those of them that stand in an example."""

    def __add__(self, other: DataNotes) -> DataNotes:
        return DataNotes(
            self.truncated + other.truncated,
            self.dropped + other.dropped,
            self.repeated + other.repeated,
            self.tokens + other.tokens,
            self.tokens_kept + other.tokens_kept,
        )

    def warnings(self, max_length: int, kind: str = "completion") -> list[str]:
        """One line for each thing that happened to examples of that kind."""
        lines = []
        if self.truncated:
            what, how = _CUT.get(kind, _CUT["text"])
            lines.append(f"{self.truncated} {what} were longer than {max_length} tokens and {how}")
        if self.dropped:
            lines.append(f"{self.dropped} examples had no target left and were dropped")
        if self.repeated:
            lines.append(f"{self.repeated} of the held-out examples are also trained on")
        if self.tokens_kept < self.tokens:
            share = self.tokens_kept / self.tokens
            lines.append(
                f"{self.tokens_kept:,} of {self.tokens:,} tokens are in training examples "
                f"({share:.1%})"
            )
        return lines


_CUT = {
    "completion": ("examples", "were cut, the prompt first, from its left"),
    "text": ("texts", "lost their end"),
    "label": ("texts", "lost their end"),
}


@dataclass(frozen=True, slots=True)
class Dataset:
    """One device's examples; `eval` is empty only where `data.eval_fraction` is 0.

    `sample` are the places in `eval` that every evaluation takes; None: all of them.
    """

    train: list[Example]
    eval: list[Example]
    kind: Kind
    notes: DataNotes
    sample: frozenset[int] | None = None
    layout: str = ""
    """How the rows were laid out (`data.layout`, or `label`)."""
    chat_template: str = ""
    """Digest of the chat template that was applied; empty: none was."""

    @property
    def sampled(self) -> list[Example]:
        """Held-out examples that every evaluation takes."""
        return self._held_out(chosen=True)

    @property
    def unsampled(self) -> list[Example]:
        """Held-out examples that only an evaluation of all takes."""
        return self._held_out(chosen=False)

    def _held_out(self, chosen: bool) -> list[Example]:
        places = range(len(self.eval)) if self.sample is None else self.sample
        return [e for place, e in enumerate(self.eval) if (place in places) is chosen]

    def warnings(self, max_length: int) -> list[str]:
        """What a user should know about these examples, a line each."""
        return self.notes.warnings(max_length, self.kind)
