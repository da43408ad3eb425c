"""The language of codec settings: `topk(0.3) | stochastic(4) | zstd`, and its presets. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

PRESETS: dict[str, str] = {
    "fine": "uniform(0.0625) | rans",
    "compact": "delta(bigram) | uniform(0.25, dither) | rans",
    "sft": "topk(0.3) | stochastic(4) | zstd",
    "extreme": "delta(bigram) | uniform(0.5, dither) | rans",
}
"""Names of whole pipelines for activations; `none`, `fp16` and `int8` are stages of their own."""

GRADIENT_PRESETS: dict[str, str] = {
    **PRESETS,
    "compact": "uniform(2, dither) | rans",
    "extreme": "uniform(4, dither) | rans",
}
"""The same for gradients: their rows do not recur, and unbiased rounding bears coarser steps."""

Argument = str | float


@dataclass(frozen=True, slots=True)
class Call:
    """One stage as written: its name and its arguments."""

    name: str
    arguments: tuple[Argument, ...] = ()

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        return f"{self.name}({', '.join(map(_written, self.arguments))})"


_CALL = re.compile(r"\s*([a-z][a-z0-9_]*)\s*(?:\(([^()]*)\))?\s*")


def read_calls(text: str) -> list[Call]:
    """The stages of a specification, presets left as they are. Raises ValueError."""
    calls = []
    for part in text.split("|"):
        match = _CALL.fullmatch(part)
        if match is None:
            raise ValueError(f"{part.strip()!r} is not a stage; write name or name(argument, ...)")
        name, inside = match.groups()
        words = [word.strip() for word in inside.split(",")] if inside and inside.strip() else []
        if not all(words):
            raise ValueError(f"{part.strip()!r} has an empty argument")
        calls.append(Call(name, tuple(map(_read, words))))
    return calls


def expand(text: str, gradient: bool = False) -> str:
    """A setting with its preset written out; anything else as it is."""
    presets = GRADIENT_PRESETS if gradient else PRESETS
    return presets.get(text.strip(), text)


def _read(word: str) -> Argument:
    try:
        return float(word)
    except ValueError:
        return word


def _written(argument: Argument) -> str:
    return argument if isinstance(argument, str) else f"{argument:g}"


# -- checking arguments ------------------------------------------------------------------------


def whole(value: Argument, low: int, high: int) -> int:
    """An argument that is a whole number within bounds. Raises ValueError."""
    if isinstance(value, str) or not low <= value <= high or value != int(value):
        raise ValueError(f"{_written(value)} is not a whole number from {low} to {high}")
    return int(value)


def number(value: Argument, low: float, high: float) -> float:
    """An argument that is above `low` and at most at `high`. Raises ValueError."""
    if isinstance(value, str) or not low < value <= high:
        raise ValueError(f"{_written(value)} is not a number above {low:g}, up to {high:g}")
    return value


def word(value: Argument, *known: str) -> str:
    """An argument that is one of the known words. Raises ValueError."""
    if value not in known:
        raise ValueError(f"{_written(value)} is none of {', '.join(known)}")
    return str(value)


def at_most(arguments: tuple[Argument, ...], count: int) -> None:
    """Refuse further arguments. Raises ValueError."""
    if len(arguments) > count:
        raise ValueError(f"takes at most {count} argument{'s' * (count != 1)}")
