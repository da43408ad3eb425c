"""What is to be done about a step of a conversation, by what is known of it.

A device numbers its steps, and says at which position each begins. So a step that it sends again is
answered again, one that goes back takes the tokens behind it away, and one that is too far ahead is
told what is missing. The last tokens of a step may be a draft: of those the answer keeps some.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sfl.config.serve import MOST_DRAFTED

MOST_RESERVED = 1 << 20
"""Tokens that one conversation may ask room for."""
MOST_ROW_BYTES = 4 << 20
"""Of one step's rows, as they are before they are coded."""
WIDEST = 4
"""Bytes of a value of theirs."""


def chunk_tokens(wanted: int, hidden_size: int) -> int:
    """Most tokens of a step, so that its rows are no more than a message bears."""
    return max(1, min(wanted, MOST_ROW_BYTES // (WIDEST * hidden_size)))


@dataclass(frozen=True, slots=True)
class Asked:
    """A step: `count` tokens from `position` on; of the last `wanted` an answer is due.

    The last `drafted` are guesses.
    """

    number: int
    position: int
    count: int
    wanted: int
    drafted: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a conversation: `length` tokens, and the step that was answered last.

    `reserved` is what it has room for.
    """

    reserved: int
    length: int = 0
    number: int = 0

    def forgotten(self) -> Standing:
        """Its keys and values are gone; its steps are counted on."""
        return replace(self, length=0)

    def answered(self, asked: Asked, refuted: int = 0) -> Standing:
        """After a step, of whose draft so many tokens were taken away again."""
        length = asked.position + asked.count - refuted
        return replace(self, length=length, number=asked.number)


@dataclass(frozen=True, slots=True)
class Compute:
    """Keep so many tokens, and compute what came behind them."""

    keep: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """Say again what was said to it."""


@dataclass(frozen=True, slots=True)
class Lacking:
    """Only so many tokens are known: the device is to send all behind them."""

    length: int


@dataclass(frozen=True, slots=True)
class Unsound:
    """No device of ours sends it, and why."""

    reason: str


Verdict = Compute | Repeat | Lacking | Unsound


def judge(standing: Standing, asked: Asked) -> Verdict:
    """What a step asks for."""
    if reason := _unsound(standing, asked):
        return Unsound(reason)
    if asked.number == standing.number:
        return Repeat()
    if asked.position > standing.length:
        return Lacking(standing.length)
    return Compute(asked.position)


def _unsound(standing: Standing, asked: Asked) -> str:
    end = asked.position + asked.count
    if asked.count < 1:
        return "a step of no token"
    if asked.position < 0 or not 0 <= asked.wanted <= asked.count:
        return f"a step of {asked.count} tokens at {asked.position} that wants {asked.wanted}"
    if not 0 <= asked.drafted <= min(MOST_DRAFTED, asked.count - 1):
        return f"{asked.drafted} guesses in a step of {asked.count} tokens"
    if asked.drafted and asked.wanted != asked.drafted + 1:
        return f"{asked.drafted} guesses in a step that wants {asked.wanted}"
    if end > standing.reserved:
        return f"position {end - 1} is beyond the {standing.reserved} tokens that were reserved"
    if asked.number < max(1, standing.number):
        return f"step {asked.number} came behind step {standing.number}"
    return ""
