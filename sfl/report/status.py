"""Where a run stands, as the cloud writes it for whoever looks on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sfl.config.asynchronous import Mode
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.waits import FIRST_LINE, What
from sfl.node.files import write_atomic

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)

RunPhase = Literal[
    "starting",
    "waiting for devices",
    "timing steps",
    "planning",
    "evaluating",
    "training",
    "aggregating",
    "finished",
    "failed",
]


OF_A_PHASE: tuple[What, ...] = ("join", "timing", "planning", "part", "averaging")
"""For what a cloud waits in the course of a run."""

LEFT_OUT = "left out for good"
"""The state of a device that is not let in again in this run."""


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One device as the live view shows it; sizes in bytes.

    `state` is a word or two, such as "training", "waiting", "lost", "away: 12 s left". Once the run
    has ended it is "done", "stopped", "lost", "never joined" or "left out for good". `eval_*` are
    of the adapter of round `eval_round`. `staleness` counts the adapters that were made since its
    round began, where nobody waits for it. `edge` is where it is, or was last; it came to another
    one `handovers` times.
    """

    name: str
    state: str = "not here yet"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    eval_round: int | None = None
    eval_loss: float | None = None
    eval_accuracy: float | None = None
    tokens_per_second: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    resident_bytes: int = 0
    peak_resident_bytes: int = 0
    staleness: int | None = None
    edge: str = ""
    handovers: int = 0

    @classmethod
    def from_snapshot(cls, snapshot: NodeSnapshot, state: str) -> DeviceStatus:
        """The status that a device's latest statistics show."""
        return cls(
            name=snapshot.name,
            state=state,
            step=snapshot.step,
            steps=snapshot.steps,
            loss=snapshot.loss,
            eval_round=snapshot.eval_round,
            eval_loss=snapshot.eval_loss,
            eval_accuracy=snapshot.eval_accuracy,
            tokens_per_second=snapshot.tokens_per_second,
            bytes_up=snapshot.bytes.total_up,
            bytes_down=snapshot.bytes.total_down,
            resident_bytes=snapshot.resident_bytes,
            peak_resident_bytes=snapshot.peak_resident_bytes,
        )

    def at_end(self, ok: bool) -> DeviceStatus:
        """As it stays once the run has ended, well or not: nobody trains any more."""
        ended = {
            "lost": "lost",
            "away": "lost",
            "not here yet": "never joined",
            LEFT_OUT: LEFT_OUT,
        }
        state = ended.get(self.state.partition(":")[0], "done" if ok else "stopped")
        return dataclasses.replace(self, state=state)


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """Memory of an edge or the cloud, in bytes."""

    name: str
    resident_bytes: int = 0
    peak_resident_bytes: int = 0

    @classmethod
    def from_snapshot(cls, snapshot: NodeSnapshot) -> ServerStatus:
        """The status that a server's latest statistics show."""
        return cls(snapshot.name, snapshot.resident_bytes, snapshot.peak_resident_bytes)


@dataclass(frozen=True, slots=True)
class Wait:
    """Who waits for whom, and for what; since when and for how long at most, in seconds.

    Without `seconds_left` it waits for as long as it hears of whom it waits for.
    """

    who: str
    whom: str
    what: str
    seconds: float
    seconds_left: float | None = None
    away: bool = False
    """Whoever is waited for is not connected."""
    kind: What = "part"
    """For what, in one word, as `/metrics` has it."""
    said: float = 0.0
    """Seconds since an edge or a device said so."""

    def __str__(self) -> str:
        waits = f"{self.who} waits for {self.whom}: {self.what}"
        left = "no end" if self.seconds_left is None else f"{self.seconds_left:.0f} s left"
        said = f", said {self.said:.0f} s ago" if self.is_old else ""
        return f"{waits}; {self.seconds:.0f} s so far, {left}{said}"

    @property
    def is_old(self) -> bool:
        """Whether more was to be heard since, of a node that heartbeats."""
        return self.said >= FIRST_LINE


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run at one moment; `message` says what it waits for, or why it failed."""

    run_id: str
    phase: RunPhase
    round: int
    rounds: int
    task: str = "causal_lm"
    message: str = ""
    devices: tuple[DeviceStatus, ...] = ()
    edges: tuple[ServerStatus, ...] = ()
    stages: tuple[ServerStatus, ...] = ()
    cloud: ServerStatus = ServerStatus("cloud")
    faults: tuple[str, ...] = ()
    waits: tuple[Wait, ...] = ()
    """The first few of each kind: for those that are away, for the others, and of other nodes."""
    more_waits: int = 0
    """So many more there are."""
    updated_at: float = 0.0
    """Unix seconds at which it was written."""
    sequence: int = 0
    """Grows by one with every writing, whatever the clock does."""
    pid: int = 0
    """The cloud's process, on `host`."""
    host: str = ""
    mode: Mode = "synchronous"
    buffered: int | None = None
    """Updates that wait for an average; None where no update may be late."""
    buffer_size: int = 0
    """As many of those make the next adapter of an asynchronous run."""
    plan: str = ""
    """The planner's latest decision, in words."""

    @property
    def over(self) -> bool:
        """Whether the run has ended, by its own word."""
        return self.phase in ("finished", "failed")

    def write(self, path: Path) -> None:
        """Replace `path` by this status; a reader sees the old one or this one, whole."""
        write_atomic(path, json.dumps(_plain(self), allow_nan=False) + "\n", durable=False)

    @classmethod
    def read(cls, path: Path) -> RunStatus | None:
        """The status in `path`; None where the run has written none yet, or its disk is gone."""
        try:
            values = json.loads(path.read_text(encoding="utf-8-sig"))
        except OSError:
            return None
        return cls.from_dict(values)

    @classmethod
    def last(cls, path: Path) -> RunStatus | None:
        """As `read`; None also where what is there cannot be read."""
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
            return cls.read(path)
        return None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunStatus:
        """Read plain values as `write` wrote them; keys of a newer version are left out."""
        nested = {
            "devices": tuple(_known(DeviceStatus, device) for device in values["devices"]),
            "edges": tuple(_known(ServerStatus, edge) for edge in values["edges"]),
            "stages": tuple(_known(ServerStatus, stage) for stage in values.get("stages", ())),
            "cloud": _known(ServerStatus, values["cloud"]),
            "faults": tuple(values["faults"]),
            "waits": tuple(_known(Wait, wait) for wait in values.get("waits", ())),
        }
        return _known(cls, values | nested)


def _known(kind: type[T], values: dict[str, Any]) -> T:
    """Of a kind of which this version knows some fields."""
    names = kind.__dataclass_fields__
    return kind(**{name: value for name, value in values.items() if name in names})


def _plain(value: Any) -> Any:
    """As JSON has it; a number that JSON cannot have is nothing.

    With a thousand devices `dataclasses.asdict`, which copies all of it, takes most of the time.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
