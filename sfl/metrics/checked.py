"""What a peer's statistics may hold: each value is read by one of these, and bounded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sfl.node.text import plain

_LONGEST_NAME = 128
_LONGEST_WORD = 16
_LARGEST = 1e15  # of any number: more than any date, rate or loss
K = TypeVar("K", bound=str)


def finite(value: Any) -> Any:
    """A number that is not finite becomes None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def name_of(value: Any) -> str:
    """A node's name. Raises ValueError."""
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or plain(value) != value:
        raise ValueError("a node's name is plain text of 1 to 128 characters")
    return value


def word(value: Any) -> str:
    """A short word, or none. Raises ValueError."""
    if not isinstance(value, str) or len(value) > _LONGEST_WORD or plain(value) != value:
        raise ValueError(f"{value!r:.40} is not a word")
    return value


def count(value: Any) -> int:
    """A whole number from 0 on. Raises ValueError."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value!r:.40} is not a count")
    return value


def number(value: Any) -> float:
    """A number within bounds. Raises ValueError."""
    if type(value) not in (int, float) or not abs(value) <= _LARGEST:  # NaN fails as well
        raise ValueError(f"{value!r:.40} is not a number within {_LARGEST:g}")
    return float(value)


def number_or_none(value: Any) -> float | None:
    """The same, or None."""
    return None if value is None else number(value)


def count_or_none(value: Any) -> int | None:
    """A count, or None. Raises ValueError."""
    return None if value is None else count(value)


def amount(value: Any) -> float:
    """A number from 0 on. Raises ValueError."""
    found = number(value)
    if found < 0:
        raise ValueError(f"{value!r:.40} is below 0")
    return found


def amount_or_none(value: Any) -> float | None:
    """The same, or None."""
    return None if value is None else amount(value)


def counts(values: Mapping[str, Any], known: Sequence[K]) -> dict[K, int]:
    """Counts of what is known, of a table that may have more. Raises ValueError."""
    return {key: count(values[key]) for key in known if key in values}
