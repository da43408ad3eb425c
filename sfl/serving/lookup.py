"""Guesses out of the text itself: what followed when its last tokens stood there before.

Prompt lookup, LLMA (2304.04487). It takes no model; it pays where an answer repeats what was said.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2
"""Tokens at the end of a text that are looked for, the longest first."""
_ITEM = array("q").itemsize


def lookup(ids: Sequence[int], most: int) -> tuple[int, ...]:
    """So many ids that may follow, or none.

    They stood behind the latest earlier place that reads like the end. What runs into the end goes
    on from its own beginning, for there the text repeats itself.
    """
    text = array("q", ids).tobytes()
    for length in range(min(LONGEST, len(ids) - 1), SHORTEST - 1, -1):
        begin = _behind(text, length * _ITEM)
        if begin is not None:
            period = len(ids) - begin
            return tuple(ids[begin + n % period] for n in range(most))
    return ()


def _behind(text: bytes, size: int) -> int | None:
    """The item behind the last place, before the end, of the last `size` bytes."""
    tail = text[-size:]
    at = text.rfind(tail, 0, max(0, len(text) - _ITEM))
    while at % _ITEM and at >= 0:  # it is across items
        at = text.rfind(tail, 0, at + size - 1)
    return None if at < 0 else (at + size) // _ITEM
