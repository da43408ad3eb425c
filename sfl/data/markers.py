"""What begins, ends and fills a sequence: decided once for training, evaluation and generation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Markers:
    """Ids that are not text. `prefix` and `suffix` stand around a text to classify, `prefix` before
    a prompt or a text too; `eos_id` ends a completion; generation stops at any of `stop_ids`."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    eos_id: int | None
    pad_id: int
    stop_ids: tuple[int, ...]

    def used(self) -> Iterator[tuple[str, int]]:
        """Each id that gets into sequences, with what it does there."""
        yield from (("begins every text", number) for number in self.prefix)
        yield from (("ends every text", number) for number in self.suffix)
        if self.eos_id is not None:
            yield "ends a completion", self.eos_id


def settle_markers(
    *,
    prefix: tuple[int, ...],
    suffix: tuple[int, ...],
    named: Mapping[str, int | None],
    special: frozenset[int],
    config: Mapping[str, Any],
) -> Markers:
    """Markers by what a tokenizer names (`eos`, `pad`, `unk`), else its model's `config`.

    The pad id has a row in the embedding in any case, and is never what ends a text to classify:
    classifiers outside this project take the last token that is not it.
    """
    ends = tuple(_numbers(config.get("eos_token_id")))
    eos = named["eos"] if named["eos"] is not None else next(iter(ends), None)
    rows = config.get("vocab_size")
    pads = [named["pad"], *_numbers(config.get("pad_token_id")), eos, named["unk"], 0]
    last = rows - 1 if isinstance(rows, int) else None
    fit = [n for n in pads if n is not None and n >= 0 and (last is None or n <= last)]
    pad = next((number for number in fit if number not in suffix[-1:]), 0)
    others = special - {named["pad"], named["unk"], *prefix}
    stops = dict.fromkeys([eos, *(number for number in ends if number in others)])
    return Markers(prefix, suffix, eos, pad, tuple(n for n in stops if n is not None))


def _numbers(value: object) -> Iterable[int]:
    values = value if isinstance(value, list) else [value]
    return [number for number in values if isinstance(number, int)]
