"""What a node counts while it answers with a model: a device its answers, an edge its batches.

Counted where it happens; what others hold anyway, such as pages in use, is read for a snapshot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, get_args

from sfl.metrics.checked import amount_or_none, count, counts
from sfl.metrics.histogram import BUCKETS, NO_SECONDS, NO_SIZES, SIZES, Counted, Histogram

Ending = Literal["stop", "length", "left", "failed"]
"""How an answer ended: by a token or a text, by its length, since its caller left, by an error."""
Refusal = Literal["busy", "refused"]
"""`busy`: there is no room now. `refused`: it is not to be had here at all."""
Standing = Literal["active", "idle", "spilled", "forgotten"]
"""A conversation that is computed for; one that only has pages; one without, on the disk; else."""
Leaving = Literal["spilled", "forgotten"]

ENDINGS: tuple[Ending, ...] = get_args(Ending)
REFUSALS: tuple[Refusal, ...] = get_args(Refusal)
STANDINGS: tuple[Standing, ...] = get_args(Standing)
LEAVINGS: tuple[Leaving, ...] = get_args(Leaving)


@dataclass(frozen=True, slots=True)
class Held:
    """What a node that serves has at one moment, and what others count for it.

    `kv_bytes` of `kv_budget` are in use, by keys and values. `connected` of a device: 1 while it
    has a stream to its edge. `round_trips` are those that brought tokens; of `drafted` ones so many
    were `accepted`.
    """

    conversations: Mapping[Standing, int] = field(default_factory=dict)
    leavings: Mapping[Leaving, int] = field(default_factory=dict)
    kv_bytes: int = 0
    kv_budget: int = 0
    connected: float | None = None
    round_trips: int = 0
    drafted: int = 0
    accepted: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True, slots=True)
class Serving:
    """A node's figures at one moment; counters run since its process began, times are seconds."""

    first_token: Histogram = NO_SECONDS
    between_tokens: Histogram = NO_SECONDS
    batch: Histogram = NO_SIZES
    prompt_tokens: int = 0
    answer_tokens: int = 0
    endings: Mapping[Ending, int] = field(default_factory=dict)
    refusals: Mapping[Refusal, int] = field(default_factory=dict)
    held: Held = Held()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        own = {name: getattr(self, name) for name in ("prompt_tokens", "answer_tokens")}
        own |= {name: getattr(self, name).to_list() for name in _BOUNDS}
        own |= {"endings": dict(self.endings), "refusals": dict(self.refusals)}
        held = {one.name: getattr(self.held, one.name) for one in fields(Held)}
        tables = {name: dict(held[name]) for name in _TABLES}
        return {**own, "held": {**held, **tables}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave, from a peer. Raises ValueError, TypeError, KeyError.

        What is missing is of a version that did not count it.
        """
        given = {
            name: Histogram.from_list(values[name], bounds)
            for name, bounds in _BOUNDS.items()
            if name in values
        }
        return cls(
            **given,
            prompt_tokens=count(values.get("prompt_tokens", 0)),
            answer_tokens=count(values.get("answer_tokens", 0)),
            endings=counts(values.get("endings", {}), ENDINGS),
            refusals=counts(values.get("refusals", {}), REFUSALS),
            held=_held(values.get("held", {})),
        )


_BOUNDS = {"first_token": BUCKETS, "between_tokens": BUCKETS, "batch": SIZES}
_TABLES = ("conversations", "leavings")


def _held(values: Mapping[str, Any]) -> Held:
    plain = {
        one.name: count(values[one.name])
        for one in fields(Held)
        if one.name in values and one.name not in (*_TABLES, "connected")
    }
    return Held(
        conversations=counts(values.get("conversations", {}), STANDINGS),
        leavings=counts(values.get("leavings", {}), LEAVINGS),
        connected=amount_or_none(values.get("connected")),
        **plain,
    )


class ServingCount:
    """What one node counts; thread-safe. `held` gives the rest of a snapshot."""

    def __init__(self, held: Callable[[], Held] = Held, batch: Counted | None = None) -> None:
        self.first_token = Counted(BUCKETS)
        """Seconds from a request to the first token of its answer."""
        self.between_tokens = Counted(BUCKETS)
        """Seconds from one token to the next."""
        self.batch = batch or Counted(SIZES)
        """Conversations whose steps were computed as one batch."""
        self._held = held
        self._lock = threading.Lock()
        self._prompt_tokens = self._answer_tokens = 0
        self._endings = dict.fromkeys(ENDINGS, 0)
        self._refusals = dict.fromkeys(REFUSALS, 0)

    def began(self, prompt_tokens: int) -> None:
        """An answer is begun."""
        with self._lock:
            self._prompt_tokens += prompt_tokens

    def token(self, seconds: float, first: bool) -> None:
        """A token of an answer, so long after the one before, or after the request."""
        (self.first_token if first else self.between_tokens).observe(seconds)
        with self._lock:
            self._answer_tokens += 1

    def ended(self, how: Ending) -> None:
        """An answer is over."""
        with self._lock:
            self._endings[how] += 1

    def refused(self, why: Refusal) -> None:
        """A conversation, or a step of it, was not taken."""
        with self._lock:
            self._refusals[why] += 1

    def snapshot(self) -> Serving:
        """Everything at one moment."""
        held = self._held()
        with self._lock:
            return Serving(
                self.first_token.snapshot(),
                self.between_tokens.snapshot(),
                self.batch.snapshot(),
                self._prompt_tokens,
                self._answer_tokens,
                dict(self._endings),
                dict(self._refusals),
                held,
            )
