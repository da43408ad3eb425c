"""Which pages of a pool are free, and which of them somebody gets.

A page holds PAGE_TOKENS tokens of one conversation in every block of a span (vLLM's pages,
2309.06180). Pages that follow each other can be read in place, so whoever asks gets those where
there are any.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

PAGE_TOKENS = 64


class NoPages(Exception):
    """So many pages are not free."""


def pages_for(num_tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-num_tokens // PAGE_TOKENS)


class Pages:
    """The free pages of `total`, as runs `[first, end)` in order."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._runs: list[tuple[int, int]] = [(0, total)] if total else []

    @property
    def free(self) -> int:
        """How many nobody has."""
        return sum(end - first for first, end in self._runs)

    def take(self, count: int, behind: int | None = None) -> list[int]:
        """So many pages: those that follow page `behind`, else one run, else what there is.

        Raises NoPages, and takes none then.
        """
        if count > self.free:
            raise NoPages(f"{count} pages are wanted, {self.free} are free")
        first = self._place(count, behind)
        if first is not None:
            taken = list(range(first, first + count))
        else:
            every = (page for run in self._runs for page in range(*run))
            taken = [page for page, _ in zip(every, range(count), strict=False)]
        for page in runs_of(taken):
            self._remove(*page)
        return taken

    def give_back(self, pages: Sequence[int]) -> None:
        """Have these again."""
        for first, end in runs_of(sorted(pages)):
            self._insert(first, end)

    def _place(self, count: int, behind: int | None) -> int | None:
        """Where a run of so many begins: behind what its owner has, else the smallest it fits."""
        if behind is not None and any(
            first <= behind + 1 and behind + 1 + count <= end for first, end in self._runs
        ):
            return behind + 1
        fitting = [(end - first, first) for first, end in self._runs if end - first >= count]
        return min(fitting)[1] if fitting else None

    def _remove(self, first: int, end: int) -> None:
        at = bisect.bisect_right(self._runs, (first, self.total)) - 1
        begin, stop = self._runs[at]
        left = [(begin, first), (end, stop)]
        self._runs[at : at + 1] = [run for run in left if run[0] < run[1]]

    def _insert(self, first: int, end: int) -> None:
        at = bisect.bisect_left(self._runs, (first, end))
        begin, stop = at, at
        if at and self._runs[at - 1][1] == first:
            begin, first = at - 1, self._runs[at - 1][0]
        if at < len(self._runs) and self._runs[at][0] == end:
            stop, end = at + 1, self._runs[at][1]
        self._runs[begin:stop] = [(first, end)]


def runs_of(pages: Sequence[int]) -> list[tuple[int, int]]:
    """Pages in their order as runs `[first, end)` of those that follow each other."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and runs[-1][1] == page:
            runs[-1] = (runs[-1][0], page + 1)
        else:
            runs.append((page, page + 1))
    return runs
