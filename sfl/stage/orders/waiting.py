"""A job that has arrived at the edge, as orders see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Waiting:
    """`number` counts arrivals. `tail_seconds`: what its device has yet to do in this round once it
    has the answer; 0 where nothing is known. `served_seconds`: the edge's time it has had in this
    round."""

    number: int
    device: str
    tail_seconds: float = 0.0
    served_seconds: float = 0.0


@runtime_checkable
class Order(Protocol):
    """A policy; it never lets the edge idle while something waits."""

    @property
    def name(self) -> str:
        """Name in settings."""

    def choose(self, waiting: Sequence[Waiting]) -> int:
        """Index of the job to take next; `waiting` is not empty."""


@runtime_checkable
class Ranked(Protocol):
    """An order that looks at each job by itself, so that a heap can keep them."""

    @property
    def name(self) -> str:
        """Name in settings."""

    def rank(self, waiting: Waiting) -> tuple[float, int]:
        """The least is next. It does not fall while a job waits."""

    def choose(self, waiting: Sequence[Waiting]) -> int:
        """Index of the least."""


def least(order: Ranked, waiting: Sequence[Waiting]) -> int:
    """Index of the job that comes first by rank."""
    return min(range(len(waiting)), key=lambda index: order.rank(waiting[index]))
