"""What a simulated run came to: rounds as they closed, and sums by class and by edge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sfl.plan import SERVERS
from sfl.simulate.deep import Deep
from sfl.simulate.floor import Floor
from sfl.simulate.worker import Worker


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """A round: seconds from its orders to its average, devices that it began with and that it was
    averaged of, joules and bytes of devices, joules of edges, the busiest edge's share of it."""

    round: int
    began: float
    seconds: float
    devices: int
    delivered: int
    device_joules: float
    edge_joules: float
    bytes_up: float
    bytes_down: float
    busiest: float


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """All devices of a class over the run. Seconds are sums over its devices."""

    name: str
    devices: int
    never_joined: int
    rounds: int
    losses: int
    computing: float
    sending: float
    receiving: float
    waiting: float
    joules: float
    bytes_up: float
    bytes_down: float


@dataclass(frozen=True, slots=True)
class EdgeFigures:
    """An edge over the run: seconds that it computed, and their joules."""

    name: str
    devices: int
    busy: float
    joules: float


@dataclass(frozen=True, slots=True)
class StageFigures:
    """A stage behind all edges over the run: seconds that it computed, and that the busiest hop to
    it was busy one way."""

    name: str
    busy: float
    hop: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A simulated run. `steps` are of all devices, `events` those of the coordinator."""

    ok: bool
    reason: str
    seconds: float
    steps: int
    events: int
    rounds: tuple[RoundFigures, ...]
    classes: tuple[ClassFigures, ...]
    edges: tuple[EdgeFigures, ...]
    stages: tuple[StageFigures, ...] = ()


@dataclass(slots=True)
class _Sums:
    """So far, of everybody."""

    device_joules: float
    bytes_up: float
    bytes_down: float
    busy: list[float]


class Ledger:
    """Keeps what each round added."""

    def __init__(
        self,
        workers: Sequence[Worker],
        floors: Sequence[Floor],
        watts: float,
        deep: Deep,
        num_stages: int,
    ) -> None:
        self._workers, self._floors, self._watts = workers, floors, watts
        self._deep, self._num_stages = deep, num_stages
        self.rounds: list[RoundFigures] = []
        self._before = self._sums()
        self._round, self._began, self._devices = 0, 0.0, 0

    def begins(self, round_: int, devices: int, now: float) -> None:
        """Orders go out to so many devices; in an asynchronous run they come one by one."""
        if round_ != self._round:
            self._round, self._began, self._devices = round_, now, 0
        self._devices += devices

    def closes(self, round_: int, delivered: int, now: float) -> None:
        """Its average is there."""
        before, sums = self._before, self._sums()
        seconds = now - self._began
        busy = [after - own for after, own in zip(sums.busy, before.busy, strict=True)]
        self._before = sums
        self.rounds.append(
            RoundFigures(
                round_,
                self._began,
                seconds,
                self._devices,
                delivered,
                sums.device_joules - before.device_joules,
                self._watts * sum(busy),
                sums.bytes_up - before.bytes_up,
                sums.bytes_down - before.bytes_down,
                min(1.0, max(busy) / seconds) if seconds else 0.0,
            )
        )

    def _sums(self) -> _Sums:
        joules = up = down = 0.0
        for worker in self._workers:
            meter = worker.meter
            joules += meter.energy(worker.own.cost.power).joules
            up += meter.bytes_up
            down += meter.bytes_down
        return _Sums(joules, up, down, [floor.busy for floor in self._floors])

    def outcome(self, ok: bool, reason: str, seconds: float, events: int) -> Outcome:
        """Of the whole run."""
        return Outcome(
            ok,
            reason,
            seconds,
            sum(worker.meter.steps for worker in self._workers),
            events,
            tuple(self.rounds),
            tuple(self._classes()),
            tuple(self._edges()),
            tuple(self._stages()),
        )

    def _stages(self) -> Iterable[StageFigures]:
        for number, name in enumerate(SERVERS[1 : 1 + self._num_stages]):
            yield StageFigures(name, self._deep.seconds_of(number), self._deep.hop_seconds(number))

    def _classes(self) -> Iterable[ClassFigures]:
        by_class: dict[str, list[Worker]] = {}
        for worker in self._workers:
            by_class.setdefault(worker.own.kind.name, []).append(worker)
        for name in sorted(by_class):
            yield _class(name, by_class[name])

    def _edges(self) -> Iterable[EdgeFigures]:
        counts: dict[str, int] = {}
        for worker in self._workers:
            counts[worker.edge.name] = counts.get(worker.edge.name, 0) + 1
        for floor in self._floors:
            joules = self._watts * floor.busy
            yield EdgeFigures(floor.name, counts.get(floor.name, 0), floor.busy, joules)


def _class(name: str, workers: Sequence[Worker]) -> ClassFigures:
    meters = [worker.meter for worker in workers]
    return ClassFigures(
        name,
        len(workers),
        sum(not worker.own.fits for worker in workers),
        sum(meter.rounds for meter in meters),
        sum(meter.losses for meter in meters),
        sum(meter.computing for meter in meters),
        sum(meter.sending for meter in meters),
        sum(meter.receiving for meter in meters),
        sum(meter.waiting for meter in meters),
        sum(worker.meter.energy(worker.own.cost.power).joules for worker in workers),
        sum(meter.bytes_up for meter in meters),
        sum(meter.bytes_down for meter in meters),
    )
