"""What a node times for its cost model: sums by kind of pass, and how much crossed each cut.

Written in the hot path beside the phases: a few additions for each pass.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass

from sfl.cost.shown import (
    MOST,
    Crossed,
    Crossing,
    Part,
    Passes,
    PassKey,
    Purpose,
    Sums,
    passes_from_rows,
    passes_to_rows,
)
from sfl.errors import ProtocolError
from sfl.metrics.snapshot import PHASES, Phase
from sfl.metrics.timeline import TRAINING, TimedKey
from sfl.node.text import plain

_LONGEST = 1 << 16

PARTS: dict[Phase, Part] = {
    "collate": "collate",
    "forward": "forward",
    "backward": "backward",
    "step": "step",
    "encode": "encode",
    "decode": "decode",
}
"""The phases that a cost model knows; the others wait."""
assert PARTS.keys() <= set(PHASES)


@dataclass(frozen=True, slots=True)
class Work:
    """What a timed piece of work was: `tokens` (real ones) through so many `blocks`.

    `passes` is 0 for all pieces but one of a pass that is timed in several.
    """

    tokens: int
    blocks: int = 0
    embedding: bool = False
    head: bool = False
    passes: int = 1


def purpose_of(key: TimedKey) -> Purpose:
    """A rehearsal trains in round 0."""
    if key.purpose != TRAINING:
        return "evaluation"
    return "training" if key.round else "rehearsal"


class PassTimes:
    """Sums of passes by kind, for each device; thread-safe.

    The first pass of each part and purpose is left out: memory is allocated in it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._warm: set[tuple[Part, Purpose, bool, bool]] = set()
        self._all: OrderedDict[PassKey, Sums] = OrderedDict()
        self._new: dict[str, dict[PassKey, Sums]] = {}

    def add(
        self,
        phase: Phase,
        key: TimedKey,
        device: str,
        work: Work,
        seconds: float,
        share: float = 1.0,
    ) -> None:
        """Count a pass that took so long; `share` of it is this device's."""
        purpose, part = purpose_of(key), PARTS[phase]
        kind = PassKey(part, purpose, work.blocks, work.embedding, work.head)
        sums = _sums(work, seconds, share)
        warm = (part, purpose, work.embedding, work.head)
        with self._lock:
            if warm not in self._warm:
                self._warm.add(warm)
                return
            own = self._new.setdefault(device, {})
            own[kind] = own.get(kind, Sums()) + sums
            self._all[kind] = self._all.get(kind, Sums()) + sums
            self._all.move_to_end(kind)
            if len(self._all) > MOST:
                self._all.popitem(last=False)

    def all(self) -> Passes:
        """Of all devices, since the process began."""
        with self._lock:
            return dict(self._all)

    def take(self, device: str) -> Passes:
        """Of one device, since they were taken last."""
        with self._lock:
            own = self._new.pop(device, {})
        return dict(list(own.items())[-MOST:])


def passes_to_json(passes: Passes) -> str:
    """One line; empty where there are none."""
    return json.dumps(passes_to_rows(passes), separators=(",", ":")) if passes else ""


def passes_from_json(text: str) -> Passes:
    """What `passes_to_json` wrote. Raises ProtocolError."""
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"{len(text)} characters")
        return passes_from_rows(json.loads(text or "[]"))
    except (ValueError, TypeError, RecursionError) as error:
        raise ProtocolError(f"what an edge timed is malformed: {plain(str(error))}") from None


def _sums(work: Work, seconds: float, share: float) -> Sums:
    """A further piece of a pass adds its seconds alone."""
    if not work.passes:
        return Sums(seconds=share * seconds, size_seconds=share * seconds * work.tokens)
    return Sums.of(work.tokens, seconds, share)


class CrossedCount:
    """How many values crossed each cut in training, and in how many bytes; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[Crossing, int], Crossed] = {}

    def add(self, role: Crossing, index: int, values: int, num_bytes: int) -> None:
        """Count a message."""
        with self._lock:
            known = self._counts.get((role, index), Crossed())
            self._counts[role, index] = known + Crossed(1, values, num_bytes)

    def all(self) -> dict[tuple[Crossing, int], Crossed]:
        """Since the process began; of the latest cuts where there were very many."""
        with self._lock:
            return dict(list(self._counts.items())[-MOST:])
