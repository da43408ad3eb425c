"""What a node counts while it works: plain values filled in the hot path.

This module knows no sink: Prometheus, heartbeats, files and the live view read snapshots.
One thread writes the plain fields of a NodeStats; bytes and phases may be written by several.
"""

from __future__ import annotations

import bisect
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from sfl.cost.energy import Energy
from sfl.cost.shown import NOTHING, Shown
from sfl.metrics.costs import CrossedCount, PassTimes, Work
from sfl.metrics.histogram import BUCKETS
from sfl.metrics.memory import UNKNOWN, MemoryUse, memory_use
from sfl.metrics.serving import ServingCount
from sfl.metrics.snapshot import (
    KINDS,
    PHASES,
    ROLES,
    ByteTotals,
    Direction,
    NodeKind,
    NodeSnapshot,
    Phase,
    PhaseTotals,
    Role,
)
from sfl.metrics.timeline import TimedKey, Timeline
from sfl.metrics.transfers import KEPT_OF_ALL, MOST_OF_ALL, LinkTimes
from sfl.metrics.waits import Waits
from sfl.node.board import Board
from sfl.node.energy import NO_METER

__all__ = [
    "BUCKETS",
    "KINDS",
    "PHASES",
    "ROLES",
    "ByteCount",
    "ByteTotals",
    "Direction",
    "NodeKind",
    "NodeSnapshot",
    "NodeStats",
    "Phase",
    "PhaseTimes",
    "PhaseTotals",
    "Role",
    "SnapshotCount",
]

log = logging.getLogger(__name__)

_RATE_STEPS = 16  # tokens/s is taken over the round's last so many steps


class ByteCount:
    """Bytes of one node's link towards the cloud, by direction and role; thread-safe.

    Wire bytes are serialised messages; raw bytes are 4 a value of the same tensors for the real
    (unpadded) tokens: what they would be uncompressed in float32.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wire = {"up": dict.fromkeys(ROLES, 0), "down": dict.fromkeys(ROLES, 0)}
        self._raw = {"up": dict.fromkeys(ROLES, 0), "down": dict.fromkeys(ROLES, 0)}

    def add(self, direction: Direction, role: Role, wire_bytes: int, raw_bytes: int = 0) -> None:
        """Count one message of `role`."""
        with self._lock:
            self._wire[direction][role] += wire_bytes
            self._raw[direction][role] += raw_bytes

    def snapshot(self) -> ByteTotals:
        """All counts at one moment."""
        with self._lock:
            wire, raw = self._wire, self._raw
            return ByteTotals(
                dict(wire["up"]), dict(wire["down"]), dict(raw["up"]), dict(raw["down"])
            )


class SnapshotCount:
    """What a node writes so that another process can go on: how often, how much; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.written = 0
        """Snapshots."""
        self.seconds = 0.0
        """That writing them took, beside other work."""
        self.waited = 0.0
        """Seconds of them in which the node could do nothing else."""
        self.size = 0
        """Bytes of the latest."""

    def wrote(self, seconds: float, size: int) -> None:
        """Count a snapshot of `size` bytes."""
        with self._lock:
            self.written += 1
            self.seconds += seconds
            self.size = size

    def wait(self, seconds: float) -> None:
        """Count a wait for one."""
        with self._lock:
            self.waited += seconds


class PhaseTimes:
    """How long each phase of a step takes; thread-safe.

    `with times.measure("forward"): ...` or `times.observe("wait", seconds)`.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._buckets = {phase: [0] * (len(BUCKETS) + 1) for phase in PHASES}
        self.timeline = Timeline()
        self.passes = PassTimes()

    def measure(
        self,
        phase: Phase,
        key: TimedKey | None = None,
        device: str = "",
        work: Work | None = None,
    ) -> Measurement:
        """A context that observes how long its body took, whether or not it raised.

        With `key`, what was done for `device` also goes to the timeline. With `work`, it counts as
        a pass of that kind, unless it raised.
        """
        return Measurement(self, phase, self._clock, key, device, work)

    @contextmanager
    def part(
        self, phase: Phase, key: TimedKey, device: str, work: Work, share: float = 1.0
    ) -> Iterator[None]:
        """Count a pass of that kind that is timed within a phase; `share` of it is the device's."""
        begin = self._clock()
        yield
        self.passes.add(phase, key, device, work, self._clock() - begin, share)

    def interval(
        self,
        phase: Phase,
        key: TimedKey,
        device: str,
        begin: float,
        lane: str = "",
        work: Work | None = None,
    ) -> None:
        """Observe work that began at `begin` and ends now, in seconds of this object's clock."""
        end = self._clock()
        self.share(phase, key, device, begin, end, 1, lane)
        if work is not None:
            self.passes.add(phase, key, device, work, end - begin)

    def share(
        self,
        phase: Phase,
        key: TimedKey,
        device: str,
        begin: float,
        end: float,
        among: int = 1,
        lane: str = "",
    ) -> None:
        """Observe one device's part of work that was done for so many at once.

        Its timeline has all of it; the seconds are shared out, so that their sum stays the time.
        """
        self.observe(phase, (end - begin) / among)
        self.timeline.add(device, key, phase, begin, end, lane)

    def now(self) -> float:
        """Seconds of this object's clock."""
        return self._clock()

    def observe(self, phase: Phase, seconds: float) -> None:
        """Count one duration."""
        bucket = bisect.bisect_left(BUCKETS, seconds)
        with self._lock:
            self._seconds[phase] += seconds
            self._buckets[phase][bucket] += 1

    def snapshot(self) -> dict[Phase, PhaseTotals]:
        """The phases seen so far, at one moment."""
        with self._lock:
            return {
                phase: PhaseTotals(sum(buckets), self._seconds[phase], tuple(buckets))
                for phase, buckets in self._buckets.items()
                if any(buckets)
            }


class Measurement:
    """One running measurement of a phase; made by PhaseTimes.measure, used once."""

    __slots__ = ("_clock", "_device", "_key", "_phase", "_started", "_times", "_work")

    def __init__(
        self,
        times: PhaseTimes,
        phase: Phase,
        clock: Callable[[], float],
        key: TimedKey | None,
        device: str,
        work: Work | None,
    ) -> None:
        self._times, self._phase, self._clock = times, phase, clock
        self._key, self._device, self._work = key, device, work
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = self._clock()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._key is not None:
            work = self._work if kind is None else None
            self._times.interval(self._phase, self._key, self._device, self._started, work=work)
        else:
            self._times.observe(self._phase, self._clock() - self._started)


class NodeStats:
    """What one node counts; the hot path writes it, everybody else reads a `snapshot`.

    The plain fields mean what they mean in NodeSnapshot, and are assigned directly
    (`stats.queue_depth = 3`) but for a round's beginning and a step's end.
    """

    def __init__(
        self,
        name: str,
        kind: NodeKind,
        clock: Callable[[], float] = time.monotonic,
        started_at: float | None = None,
    ) -> None:
        self.name = name
        self.kind: NodeKind = kind
        self.started_at = time.time() if started_at is None else started_at
        self.round = 0
        self.step = 0
        self.steps = 0
        self.steps_total = 0
        self.nonfinite_losses = 0
        self.tokens = 0
        self.loss: float | None = None
        self.eval_round: int | None = None
        self.eval_loss: float | None = None
        self.eval_accuracy: float | None = None
        self.queue_depth = 0
        self.window = 0
        self.connected = 0
        self.faults = 0
        self.handovers = 0
        self.edge = ""
        self.certificate_expiry: float | None = None
        self.dtype = ""
        self.quantised = ""
        self.micro_batches = 0
        self.value_bits: float | None = None
        self.board = Board()
        self.paused = ""
        self.adapters_resting = 0
        self.adapters_woken = 0
        self.buffered: int | None = None
        self.staleness: float | None = None
        self.bytes = ByteCount()
        self.stage_bytes = ByteCount()
        self.phases = PhaseTimes()
        self.waits = Waits()
        self.snapshots = SnapshotCount()
        self.threads = 0
        self.crossed = CrossedCount()
        self.meter = NO_METER
        self.link = LinkTimes() if kind == "device" else LinkTimes(KEPT_OF_ALL, MOST_OF_ALL)
        self.serving: ServingCount | None = None
        self._clock = clock
        self._memory = UNKNOWN
        self._recent: tuple[tuple[float, int], ...] = ()  # (when, tokens) of the last steps

    def at_edge(self, name: str) -> None:
        """The edge has taken this device in; another one than before is counted."""
        self.handovers += bool(self.edge) and self.edge != name
        self.edge = name

    def start_round(self, round_number: int, steps: int) -> None:
        """Begin a round of `steps` optimizer steps; what comes before their first is in no rate."""
        self.round, self.step, self.steps = round_number, 0, steps
        self._recent = ()

    def finish_step(self, loss: float | None, tokens: int) -> None:
        """Count one optimizer step over `tokens` real tokens; `loss` is None where not known."""
        self.step += 1
        self.steps_total += 1
        self.nonfinite_losses += loss is not None and not math.isfinite(loss)
        self.tokens += tokens
        self.loss = loss
        self._recent = (*self._recent[-_RATE_STEPS:], (self._clock(), tokens))

    @property
    def tokens_per_second(self) -> float:
        """Real tokens trained a second over the round's last steps; 0 before its second."""
        recent = self._recent
        if len(recent) < 2:
            return 0.0
        seconds = recent[-1][0] - recent[0][0]
        return sum(tokens for _, tokens in recent[1:]) / seconds if seconds > 0 else 0.0

    def _memory_use(self) -> MemoryUse:
        """This process's memory, or what was last known of it: no node ends for a statistic.

        Without a free file descriptor nothing of it can be read, and a GPU that failed tells none.
        """
        try:
            self._memory = memory_use()
        except Exception as error:  # noqa: BLE001 - whatever keeps it from being known
            log.debug("memory is not known: %s", error)
        return self._memory

    def costs(self) -> Shown:
        """What a cost model is fitted from."""
        up, down = self.link.sums()
        joules = self.meter.read()
        energy = None if joules is None else Energy(joules, "measured")
        passes, crossed = self.phases.passes.all(), self.crossed.all()
        return Shown(passes, up, down, crossed, energy, self.threads)

    def snapshot(self, costs: bool = False) -> NodeSnapshot:
        """Everything at one moment, with this process's memory; with its `costs` on request."""
        memory, board = self._memory_use(), self.board
        return NodeSnapshot(
            name=self.name,
            kind=self.kind,
            started_at=self.started_at,
            taken_at=time.time(),
            round=self.round,
            step=self.step,
            steps=self.steps,
            steps_total=self.steps_total,
            nonfinite_losses=self.nonfinite_losses,
            tokens=self.tokens,
            tokens_per_second=self.tokens_per_second,
            loss=self.loss,
            eval_round=self.eval_round,
            eval_loss=self.eval_loss,
            eval_accuracy=self.eval_accuracy,
            queue_depth=self.queue_depth,
            window=self.window,
            connected=self.connected,
            faults=self.faults,
            handovers=self.handovers,
            resident_bytes=memory.resident,
            peak_resident_bytes=memory.peak_resident,
            accelerator_bytes=memory.accelerator,
            memory_limit_bytes=memory.limit,
            memory_limit_used_bytes=memory.limit_used,
            certificate_expiry=self.certificate_expiry,
            dtype=self.dtype,
            quantised=self.quantised,
            micro_batches=self.micro_batches,
            value_bits=self.value_bits,
            temperature=board.temperature,
            throttled=_one_or_zero(board.throttled),
            undervoltage=_one_or_zero(board.undervoltage),
            charge=board.charge,
            on_battery=_one_or_zero(board.on_battery),
            power=board.power,
            paused=self.paused,
            adapters_resting=self.adapters_resting,
            adapters_woken=self.adapters_woken,
            snapshots_written=self.snapshots.written,
            snapshot_seconds=self.snapshots.seconds,
            snapshot_wait=self.snapshots.waited,
            snapshot_size=self.snapshots.size,
            buffered=self.buffered,
            staleness=self.staleness,
            bytes=self.bytes.snapshot(),
            stage_bytes=_if_any(self.stage_bytes.snapshot()),
            phases=self.phases.snapshot(),
            waits=self.waits.all(),
            costs=self.costs() if costs else NOTHING,
            serving=None if self.serving is None else self.serving.snapshot(),
        )


def _if_any(counted: ByteTotals) -> ByteTotals:
    return counted if counted.any else ByteTotals()


def _one_or_zero(state: bool | None) -> float | None:
    return None if state is None else float(state)
