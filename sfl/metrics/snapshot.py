"""A node's statistics at one moment, as they travel in heartbeats and stand in files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from sfl.cost.shown import NOTHING, Shown
from sfl.errors import ProtocolError
from sfl.metrics.checked import (
    amount,
    amount_or_none,
    count,
    count_or_none,
    counts,
    finite,
    name_of,
    number_or_none,
    word,
)
from sfl.metrics.histogram import BUCKETS
from sfl.metrics.serving import Serving
from sfl.metrics.waits import MOST as MOST_WAITS
from sfl.metrics.waits import WHATS, Wait
from sfl.node.text import plain

NodeKind = Literal["device", "edge", "stage", "cloud"]
Direction = Literal["up", "down"]  # up is towards the cloud, whichever end counts
Role = Literal["activation", "gradient", "adapter", "weights", "evaluation", "control"]
Phase = Literal[
    "collate",
    "forward",
    "encode",
    "send",
    "wait",
    "receive",
    "decode",
    "backward",
    "step",
    "teach",
]

KINDS: tuple[NodeKind, ...] = get_args(NodeKind)
ROLES: tuple[Role, ...] = get_args(Role)
PHASES: tuple[Phase, ...] = get_args(Phase)

_LONGEST_JSON = 1 << 16


@dataclass(frozen=True, slots=True)
class ByteTotals:
    """Bytes by role: on the wire, and raw (4 bytes a value of the real tokens)."""

    up: Mapping[Role, int] = field(default_factory=dict)
    down: Mapping[Role, int] = field(default_factory=dict)
    up_raw: Mapping[Role, int] = field(default_factory=dict)
    down_raw: Mapping[Role, int] = field(default_factory=dict)

    @property
    def total_up(self) -> int:
        """Message bytes towards the cloud, all roles."""
        return sum(self.up.values())

    @property
    def total_down(self) -> int:
        """Message bytes from the cloud's side, all roles."""
        return sum(self.down.values())

    @property
    def any(self) -> bool:
        """Whether anything was counted."""
        return self.total_up + self.total_down > 0

    def __add__(self, other: ByteTotals) -> ByteTotals:
        return ByteTotals(
            _add(self.up, other.up),
            _add(self.down, other.down),
            _add(self.up_raw, other.up_raw),
            _add(self.down_raw, other.down_raw),
        )


def _add(one: Mapping[Role, int], other: Mapping[Role, int]) -> dict[Role, int]:
    return {role: one.get(role, 0) + other.get(role, 0) for role in ROLES}


@dataclass(frozen=True, slots=True)
class PhaseTotals:
    """Durations of one phase: how many, their sum in seconds, and counts by bucket.

    `buckets` has one count per bound of BUCKETS plus one for what is longer, not cumulated.
    """

    count: int = 0
    seconds: float = 0.0
    buckets: tuple[int, ...] = (0,) * (len(BUCKETS) + 1)

    def __add__(self, other: PhaseTotals) -> PhaseTotals:
        buckets = tuple(a + b for a, b in zip(self.buckets, other.buckets, strict=True))
        return PhaseTotals(self.count + other.count, self.seconds + other.seconds, buckets)


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """A node's statistics at one moment; counters run since `started_at`.

    Times are Unix seconds, sizes bytes. `step` of `steps` is the progress in `round`;
    `steps_total` and `tokens` run on over rounds. `eval_*` are of the adapter of round
    `eval_round`, the last that was evaluated (0: before training). `taken_at` is when the node
    took it, by its own clock, `seen_at` is when another node received it, and `age` the seconds
    for which that one had it when it passed it on.
    `dtype` and `quantised` are what the node settled on for its base; empty before, and in a cloud.
    `micro_batches` is what a device cuts its batches into for its memory's sake; 0 elsewhere.
    `value_bits` is what its next activation is expected to take a value, by `Codec.bits`.
    `adapters_resting` of an edge's devices are swapped out, `adapters_woken` came back so far.
    `temperature` (degrees Celsius) to `power` (watts) are a device's sensors, as `node.board.Board`
    has them, yes and no as 1 and 0; None where there is none. `paused` is why it rests, or empty.
    `snapshots_written` are for another process to go on from: `snapshot_seconds` is what writing
    them took, `snapshot_wait` what the node waited for that, `snapshot_size` the latest's bytes.
    `bytes` are of the link towards the cloud, `stage_bytes` of that to the stage behind a server.
    `moved` of a device is its edge's count of messages from and to it, heartbeats apart.
    `handovers` of a device count how often it came to another edge than it was at.
    `waits` are those of the moment; their words do not travel. `costs` come with reports, and with
    an edge's heartbeats.
    `buffered` of a cloud are whole updates that wait for an average, `staleness` is the mean of
    those that the last average took; both are None where no update may be late.
    `serving` is what a node that answers with a model has counted; None where it trains.
    """

    name: str
    kind: NodeKind
    started_at: float = 0.0
    taken_at: float = 0.0
    seen_at: float | None = None
    age: float = 0.0
    round: int = 0
    step: int = 0
    steps: int = 0
    steps_total: int = 0
    nonfinite_losses: int = 0
    tokens: int = 0
    tokens_per_second: float = 0.0
    loss: float | None = None
    eval_round: int | None = None
    eval_loss: float | None = None
    eval_accuracy: float | None = None
    queue_depth: int = 0
    window: int = 0
    connected: int = 0
    faults: int = 0
    handovers: int = 0
    resident_bytes: int = 0
    peak_resident_bytes: int = 0
    accelerator_bytes: int = 0
    memory_limit_bytes: int = 0
    memory_limit_used_bytes: int = 0
    certificate_expiry: float | None = None
    dtype: str = ""
    quantised: str = ""
    micro_batches: int = 0
    value_bits: float | None = None
    temperature: float | None = None
    throttled: float | None = None
    undervoltage: float | None = None
    charge: float | None = None
    on_battery: float | None = None
    power: float | None = None
    paused: str = ""
    adapters_resting: int = 0
    adapters_woken: int = 0
    snapshots_written: int = 0
    snapshot_seconds: float = 0.0
    snapshot_wait: float = 0.0
    snapshot_size: int = 0
    moved: int = 0
    buffered: int | None = None
    staleness: float | None = None
    bytes: ByteTotals = field(default_factory=ByteTotals)
    stage_bytes: ByteTotals = field(default_factory=ByteTotals)
    phases: Mapping[Phase, PhaseTotals] = field(default_factory=dict)
    waits: tuple[Wait, ...] = ()
    costs: Shown = NOTHING
    serving: Serving | None = None

    def seen(self, name: str, at: float) -> Self:
        """As its receiver keeps it: under the name that its link proved, with the time it came."""
        return dataclasses.replace(self, name=name, seen_at=at)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a number that is not finite becomes null."""
        values = {name: finite(getattr(self, name)) for name in _PLAIN}
        values["bytes"] = {part: dict(getattr(self.bytes, part)) for part in _BYTE_PARTS}
        if self.stage_bytes.any:
            parts = {part: dict(getattr(self.stage_bytes, part)) for part in _BYTE_PARTS}
            values["stage_bytes"] = parts
        values["phases"] = {
            phase: [totals.count, totals.seconds, list(totals.buckets)]
            for phase, totals in self.phases.items()
        }
        values["waits"] = [[w.whom, w.what, w.since, w.until] for w in self.waits]
        if not self.costs.empty:
            values["costs"] = self.costs.to_dict()
        if self.serving is not None:
            values["serving"] = self.serving.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote, from a peer that is not trusted; raises ProtocolError.

        Keys that this version does not know are left out.
        """
        try:
            fields = {name: read(values[name]) for name, read in _PLAIN.items() if name in values}
            own, behind = (_totals(values.get(name, {})) for name in ("bytes", "stage_bytes"))
            phases = {
                phase: _phase_totals(*values["phases"][phase])
                for phase in PHASES
                if phase in values.get("phases", {})
            }
            waits = _waits(values.get("waits", []))
            costs = Shown.from_dict(values["costs"]) if "costs" in values else NOTHING
            serving = Serving.from_dict(values["serving"]) if "serving" in values else None
            return cls(
                **fields,
                bytes=own,
                stage_bytes=behind,
                phases=phases,
                waits=waits,
                costs=costs,
                serving=serving,
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ProtocolError(
                f"statistics of a node are malformed: {plain(str(error))}"
            ) from None

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; raises ProtocolError."""
        if len(text) > _LONGEST_JSON:
            raise ProtocolError(
                f"statistics of a node are {len(text)} characters; {_LONGEST_JSON} are allowed"
            )
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            raise ProtocolError("statistics of a node are not JSON") from None
        return cls.from_dict(values)


def combine(snapshots: Iterable[NodeSnapshot]) -> NodeSnapshot:
    """One node's snapshots, taken at different times over restarts of its process, as one.

    Counters are the sum over its lives (one per `started_at`), peaks the highest, all else the
    newest one's. ValueError where there is none.
    """
    ordered = sorted(snapshots, key=_age)
    if not ordered:
        raise ValueError("no snapshot to combine")
    lives = list({snapshot.started_at: snapshot for snapshot in ordered}.values())
    zero = PhaseTotals()
    return dataclasses.replace(
        ordered[-1],
        started_at=ordered[0].started_at,
        steps_total=sum(life.steps_total for life in lives),
        nonfinite_losses=sum(life.nonfinite_losses for life in lives),
        tokens=sum(life.tokens for life in lives),
        faults=sum(life.faults for life in lives),
        handovers=sum(life.handovers for life in lives),
        adapters_woken=sum(life.adapters_woken for life in lives),
        snapshots_written=sum(life.snapshots_written for life in lives),
        snapshot_seconds=sum(life.snapshot_seconds for life in lives),
        snapshot_wait=sum(life.snapshot_wait for life in lives),
        peak_resident_bytes=max(snapshot.peak_resident_bytes for snapshot in ordered),
        accelerator_bytes=max(snapshot.accelerator_bytes for snapshot in ordered),
        bytes=sum((life.bytes for life in lives), ByteTotals()),
        stage_bytes=sum((life.stage_bytes for life in lives), ByteTotals()),
        phases={
            phase: sum((life.phases.get(phase, zero) for life in lives), zero)
            for phase in PHASES
            if any(phase in life.phases for life in lives)
        },
    )


def _age(snapshot: NodeSnapshot) -> tuple[float, int, int]:
    """What only grows with time: the process's start, then its counters."""
    totals = snapshot.bytes
    return snapshot.started_at, totals.total_up + totals.total_down, snapshot.tokens


def _kind(value: Any) -> NodeKind:
    if value not in KINDS:
        raise ValueError(f"a node's kind is one of {', '.join(KINDS)}")
    return value  # type: ignore[no-any-return]


def _totals(values: Mapping[str, Any]) -> ByteTotals:
    return ByteTotals(**{part: counts(values.get(part, {}), ROLES) for part in _BYTE_PARTS})


def _phase_totals(pieces: Any, seconds: Any, buckets: Any) -> PhaseTotals:
    if len(buckets) != len(BUCKETS) + 1:
        raise ValueError(f"a histogram has {len(BUCKETS) + 1} buckets")
    return PhaseTotals(count(pieces), amount(seconds), tuple(map(count, buckets)))


def _waits(values: Any) -> tuple[Wait, ...]:
    """Without those for what this version does not know."""
    if not isinstance(values, list) or len(values) > MOST_WAITS:
        raise ValueError(f"waits are a list of at most {MOST_WAITS}")
    return tuple(own for own in map(_wait, values) if own.what in WHATS)


def _wait(value: Any) -> Wait:
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"{value!r:.40} is not a wait")
    whom, what, since, until = value
    return Wait(name_of(whom), what, amount(since), amount_or_none(until))


_BYTE_PARTS = ("up", "down", "up_raw", "down_raw")
_PLAIN: dict[str, Callable[[Any], Any]] = {
    "name": name_of,
    "kind": _kind,
    "started_at": amount,
    "taken_at": amount,
    "seen_at": amount_or_none,
    "age": amount,
    "round": count,
    "step": count,
    "steps": count,
    "steps_total": count,
    "nonfinite_losses": count,
    "tokens": count,
    "tokens_per_second": amount,
    "loss": amount_or_none,
    "eval_round": count_or_none,
    "eval_loss": amount_or_none,
    "eval_accuracy": amount_or_none,
    "queue_depth": count,
    "window": count,
    "connected": count,
    "faults": count,
    "handovers": count,
    "resident_bytes": count,
    "peak_resident_bytes": count,
    "accelerator_bytes": count,
    "memory_limit_bytes": count,
    "memory_limit_used_bytes": count,
    "certificate_expiry": amount_or_none,
    "dtype": word,
    "quantised": word,
    "micro_batches": count,
    "value_bits": amount_or_none,
    "temperature": number_or_none,
    "throttled": amount_or_none,
    "undervoltage": amount_or_none,
    "charge": amount_or_none,
    "on_battery": amount_or_none,
    "power": number_or_none,
    "paused": word,
    "adapters_resting": count,
    "adapters_woken": count,
    "snapshots_written": count,
    "snapshot_seconds": amount,
    "snapshot_wait": amount,
    "snapshot_size": count,
    "moved": count,
    "buffered": count_or_none,
    "staleness": amount_or_none,
}
"""How each plain field is read from a peer's JSON."""
