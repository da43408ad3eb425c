"""Costs in no more digits than are measured, so that what is kept of them is short."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

DIGITS = 6

T = TypeVar("T")


def rounded(value: T) -> T:
    """The same with `DIGITS` significant digits of every number that is no whole one.

    Looks into dataclasses and tuples.
    """
    found: T = _rounded(value)
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, tuple):
        return tuple(map(_rounded, value))
    if not is_dataclass(value):
        return value
    same: Any = value
    return replace(same, **{own.name: _rounded(getattr(same, own.name)) for own in fields(value)})
