"""What rounds scored, as few numbers as tell which one's adapter is the best."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left

from sfl.report.records import RoundRecord


class Scores:
    """By the part of each score that rounds can be compared by. A round takes 32 bytes.

    The sum over a round's devices is kept as two floats whose sum it is: so it is the same in
    whatever order they tell. Scores may come late; to ask again costs no look at the others.
    """

    def __init__(self) -> None:
        self._rounds = array("q")
        self._sums = array("d")
        self._rests = array("d")
        """What a sum lacks: less than its last bit."""
        self._targets = array("q")
        self._best: int | None = None
        """A place."""
        self._new: set[int] = set()
        """Places whose score has changed since that was found."""

    def take(self, record: RoundRecord) -> None:
        """A device's score; round 0, before any training, is none."""
        own = record.on_sample
        if own.round > 0 and own.eval_targets:
            at = self._place(own.round)
            parts = self._sums[at], self._rests[at], own.eval_loss_sum
            self._sums[at] = total = math.fsum(parts)
            self._rests[at] = math.fsum((*parts, -total))
            self._targets[at] += own.eval_targets
            self._new.add(at)

    def _place(self, round_: int) -> int:
        """Where a round is; made where it is not there yet, mostly at the end."""
        at = bisect_left(self._rounds, round_)
        if at == len(self._rounds) or self._rounds[at] != round_:
            moves = at < len(self._rounds)
            for column, value in (
                (self._rounds, round_),
                (self._sums, 0),
                (self._rests, 0),
                (self._targets, 0),
            ):
                column.insert(at, value)
            if moves:
                self._look_at_all()
        return at

    def _look_at_all(self) -> None:
        self._best, self._new = None, set(range(len(self._rounds)))

    def best(self) -> int | None:
        """The round whose adapter has the least held-out loss, the earliest of equals."""
        if self._best in self._new:  # it may be worse by now
            self._look_at_all()
        known = self._new if self._best is None else {*self._new, self._best}
        self._best = min(known, key=self._order, default=None)
        self._new = set()
        return None if self._best is None else self._rounds[self._best]

    def _order(self, at: int) -> tuple[float, int]:
        return self._sums[at] / self._targets[at], at
