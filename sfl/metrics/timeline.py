"""Who worked when in one step: spans of wall-clock time by thread, for the report's timeline."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

from sfl.errors import ProtocolError
from sfl.metrics.snapshot import PHASES, Phase
from sfl.node.text import plain

TRAINING = 1  # the purpose of a training step, as on the wire
_MOST = 4096
_LONGEST = 1 << 20  # characters, of all as JSON
_LONGEST_LANE = 32
_LATEST = 9e9  # seconds since 1970, whose nanoseconds 64 bits still hold (in traces)


class TimedKey(Protocol):
    """Which micro-batch some work is for."""

    @property
    def purpose(self) -> int:
        """Only training is timed."""

    @property
    def round(self) -> int:
        """Round, from 1."""

    @property
    def step(self) -> int:
        """Step within the round."""

    @property
    def micro_batch(self) -> int:
        """Micro-batch within the step."""


@dataclass(frozen=True, slots=True)
class Interval:
    """One piece of work; times are Unix seconds."""

    phase: Phase
    lane: str
    micro_batch: int
    begin: float
    end: float


class Timeline:
    """Collects the spans of the one step of each device that is watched; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[str, tuple[int, int]] = {}
        self._spans: dict[str, list[Interval]] = {}
        self._epoch = time.time() - time.perf_counter()

    def watch(self, device: str, round_: int, step: int) -> None:
        """From now on keep what is done for this step of this device."""
        with self._lock:
            self._watched[device], self._spans[device] = (round_, step), []

    def add(
        self,
        device: str,
        key: TimedKey,
        phase: Phase,
        begin: float,
        end: float,
        lane: str = "",
    ) -> None:
        """Keep one piece of work if its step is watched; times of `time.perf_counter`.

        Its lane is the calling thread's, unless it is named.
        """
        if self._watched.get(device) != (key.round, key.step) or key.purpose != TRAINING:
            return
        lane = lane or threading.current_thread().name
        span = Interval(phase, lane, key.micro_batch, begin + self._epoch, end + self._epoch)
        with self._lock:
            spans = self._spans[device]
            if len(spans) < _MOST:
                spans.append(span)

    def take(self, device: str) -> list[Interval]:
        """What was kept, in order of beginning; then it is forgotten."""
        with self._lock:
            self._watched.pop(device, None)
            return sorted(self._spans.pop(device, []), key=lambda span: span.begin)


def watched_step(num_steps: int) -> int:
    """Which step of a round is watched, from 0: its middle one, when everything is warm."""
    return num_steps // 2


def spans_to_json(spans: list[Interval]) -> str:
    """One line of JSON."""
    rows = [[s.phase, s.lane, s.micro_batch, round(s.begin, 6), round(s.end, 6)] for s in spans]
    return json.dumps(rows, separators=(",", ":"))


def spans_from_json(text: str) -> list[Interval]:
    """What `spans_to_json` wrote; raises ProtocolError."""
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"{len(text)} characters")
        rows = json.loads(text or "[]")
        if not isinstance(rows, list) or len(rows) > _MOST:
            raise ValueError(f"no list of at most {_MOST}")
        return [_span(*row) for row in rows]
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ProtocolError(f"the spans of a step are malformed: {plain(str(error))}") from None


def _span(phase: Any, lane: Any, micro: Any, begin: Any, end: Any) -> Interval:
    """One of a peer's. Raises ValueError, TypeError, OverflowError."""
    if phase not in PHASES:
        raise ValueError(f"{phase!r:.40} is not a phase")
    if not isinstance(lane, str) or plain(lane) != lane:
        raise ValueError(f"{lane!r:.40} is not a lane")
    if type(micro) is not int or not 0 <= micro < 1 << 31:
        raise ValueError(f"{micro!r:.40} is not a micro-batch")
    if not all(type(moment) in (int, float) for moment in (begin, end)):
        raise ValueError(f"{begin!r:.40} to {end!r:.40} is not a time")
    if not 0 <= begin <= end <= _LATEST:
        raise ValueError(f"{begin!r:.40} to {end!r:.40} is not a time")
    return Interval(phase, lane[:_LONGEST_LANE], micro, float(begin), float(end))
