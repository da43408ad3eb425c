"""Plain text in blocks of at most `max_length` tokens that do not overlap.

A block that begins within a text begins with what the tokenizer puts at the start of one, so that
every token of the text is predicted. A tokenizer that puts nothing there leaves the first token
of such a block unscored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Counted = tuple[list[int], tuple[int, int]]
"""A block; how many tokens of the texts stand in it, and how many were thrown away behind it."""


def each(texts: Iterable[list[int]], prefix: list[int], length: int) -> Iterator[Counted]:
    """Every text by itself; its last block may be shorter."""
    for ids in texts:
        yield from _blocks(ids, prefix, length)


def joined(texts: Iterable[list[int]], prefix: list[int], length: int) -> Iterator[Counted]:
    """One text behind the other, across the bounds of blocks; the last block may be shorter."""
    waiting: list[int] = []
    for ids in texts:
        waiting += ids
        done = 0
        for block, (taken, lost) in _blocks(waiting, prefix, length):
            if done + taken == len(waiting):
                break  # the next text goes on with it
            yield block, (taken, lost)
            done += taken
        del waiting[:done]
    yield from _blocks(waiting, prefix, length)


def first(texts: Iterable[list[int]], prefix: list[int], length: int) -> Iterator[Counted]:
    """The first block of every text."""
    for ids in texts:
        block = ids[:length]
        yield block, (len(block), len(ids) - len(block))


def _blocks(ids: list[int], prefix: list[int], length: int) -> Iterator[Counted]:
    if length <= len(prefix) and len(ids) > length:  # no room for anything but the start
        yield ids[:length], (length, len(ids) - length)
        return
    done = 0
    while done < len(ids):
        begun = ids[done : done + len(prefix)] == prefix
        start = [] if begun else prefix
        block = ids[done : done + length - len(start)]
        yield start + block, (len(block), 0)
        done += len(block)
