"""What crosses the cut of a conversation, as values; the wire's own form is the transport's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sfl.serving.sampling import GREEDY, Sampling
from sfl.serving.steps import Asked


@dataclass(frozen=True, slots=True)
class Opening:
    """A conversation that a device begins, or goes on with: `name` is its own word for it.

    The edge computes blocks `first..last-1`, and the head where it `ends` the model. There is to
    be room for `reserved` tokens. Its steps are to be `exact`: computed by themselves, and guesses
    one by one.
    """

    name: str
    adapter: str
    first: int
    last: int
    ends: bool
    reserved: int
    sampling: Sampling = GREEDY
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """It is there, with `length` tokens of before; `number` is the step that was answered last."""

    length: int
    number: int


@dataclass(frozen=True, slots=True)
class Step:
    """Rows `[count, H]` of the tokens that follow; of the last `wanted` tokens come back.

    The last `drafted` are guesses. Where the edge has the model's end it is told which (`draft`),
    and says them no further than they are right; else they stay on the device, which checks them.
    """

    name: str
    number: int
    position: int
    rows: torch.Tensor
    wanted: int = 1
    drafted: int = 0
    draft: tuple[int, ...] = ()

    @property
    def asked(self) -> Asked:
        """What decisions go by."""
        return Asked(self.number, self.position, len(self.rows), self.wanted, self.drafted)


@dataclass(frozen=True, slots=True)
class Tokens:
    """From the model's end: the tokens that follow each of the last `wanted` of a step.

    Of a draft as many as it has guessed, and one more.
    """

    number: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """To the model's end: rows `[count, H]` of all tokens of a step."""

    number: int
    rows: torch.Tensor


@dataclass(frozen=True, slots=True)
class Missing:
    """The step was not computed: only `length` tokens are known, and the others are to come."""

    number: int
    length: int


@dataclass(frozen=True, slots=True)
class Later:
    """There is no room now; the same may be asked again after so many seconds."""

    retry_after: float


Answer = Tokens | Rows | Missing | Later
