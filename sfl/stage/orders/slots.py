"""Whose activation is decoded next, where only so many may be decoded at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfl.stage.orders.waiting import Order, Waiting

BUSY = 2
"""Slots that keep the compute thread busy: a job that is computed, and the next one."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A stream's first activation that has arrived and is not decoded; `held`: its slots."""

    waiting: Waiting
    held: int


def next_slot(
    order: Order, claims: Sequence[Claim], free: int, taken: int, without: int
) -> int | None:
    """Index of the claim that gets a free slot, or None while nobody is to have it.

    A stream that holds none comes before one that does, and `order` chooses among equals. Since
    only the first job of a stream can be computed next, its further ones leave a slot to each of
    the `without` open streams that hold none, whether theirs has arrived or not; unless fewer than
    `BUSY` are `taken`.
    """
    if not free:
        return None
    able = [index for index, claim in enumerate(claims) if not claim.held]
    if not able and (free > without or taken < BUSY):
        able = list(range(len(claims)))
    if not able:
        return None
    return able[order.choose([claims[index].waiting for index in able])]
