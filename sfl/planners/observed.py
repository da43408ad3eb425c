"""From what nodes showed of their rounds to what a planner takes them to cost.

    seen = Observations(block_bytes=(lora, moments))
    seen = seen.with_round(reports, edges, lost)        # once a round
    seen.device_cost("phone")                           # None until enough is known

A pure projection: the same reports give the same costs. Of each device sums are kept, in which each
further round weighs less, so that a round costs O(devices), however long the run has been.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sfl.cost.energy import NO_POWER, ClockRange, Energy, PowerModel
from sfl.cost.fit import Phase, Transfer, fit_line, fit_link, fit_node, least_squares
from sfl.cost.shown import (
    NO_SUMS,
    NOTHING,
    Crossing,
    Part,
    Passes,
    PassKey,
    Purpose,
    Shown,
    Sums,
    between,
)
from sfl.cost.values import (
    NO_TIME,
    DeviceCost,
    EdgeCost,
    LineCost,
    LinkCost,
    NodeCost,
    PassCost,
    ValueBits,
)

KEEP = 0.7
"""Of what was known before a round: rounds count by 1, 0.7, 0.49, ..."""
BITS = 32.0
"""Of a value of which nothing has crossed yet."""
READINGS = 8
"""Rounds that watts are fitted from."""
UNKNOWN = NodeCost(PassCost())


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What is heard of a device at the end of its round, whole.

    `shown` and `dtype` are of its statistics, `started_at` tells its process from another one.
    `edge_passes` are what its edge timed for it in this round. `seconds` of the round's training,
    `steps` of them, over so many real `tokens`.
    """

    device: str
    edge: str
    shown: Shown
    edge_passes: Passes = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    started_at: float = 0.0
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class EdgeReport:
    """An edge's latest statistics: `shown` and `dtype`; `started_at` tells its process."""

    edge: str
    shown: Shown
    started_at: float = 0.0
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """Joules of a round, and the seconds of what a device did in it."""

    joules: float
    compute: float
    send: float
    receive: float
    waiting: float


@dataclass(frozen=True, slots=True)
class SeenDevice:
    """One device, so far. `last` is its latest report, that the next one is taken off.

    `own` and `at_edge`, `up` and `down` are sums that fade. `rounds` counts those it took part in,
    `finished` those of them that it finished.
    """

    last: Shown = NOTHING
    started_at: float = 0.0
    edge: str = ""
    setting: tuple[int, str] = (0, "")
    own: Mapping[PassKey, Sums] = field(default_factory=dict)
    at_edge: Mapping[PassKey, Sums] = field(default_factory=dict)
    up: Sums = NO_SUMS
    down: Sums = NO_SUMS
    bits: Mapping[tuple[Crossing, int], float] = field(default_factory=dict)
    readings: tuple[Reading, ...] = ()
    rounds: int = 0
    finished: int = 0
    seconds: float | None = None
    step_tokens: float | None = None
    micro_batches: float | None = None


@dataclass(frozen=True, slots=True)
class SeenEdge:
    """One edge, so far; `joules` and `computed` seconds are those of its latest round."""

    last: Shown = NOTHING
    started_at: float = 0.0
    setting: tuple[int, str] = (0, "")
    energy: Energy | None = None
    computed: float = 0.0


@dataclass(frozen=True, slots=True)
class Observations:
    """All nodes, so far. `block_bytes` are those of one block's adapter, and of its moments."""

    block_bytes: tuple[float, float] = (0.0, 0.0)
    devices: Mapping[str, SeenDevice] = field(default_factory=dict)
    edges: Mapping[str, SeenEdge] = field(default_factory=dict)

    def with_round(
        self,
        reports: Iterable[DeviceReport],
        edges: Iterable[EdgeReport] = (),
        lost: Iterable[str] = (),
    ) -> Observations:
        """After a round of these; `lost` devices took part and did not finish it."""
        devices = dict(self.devices)
        for report in reports:
            devices[report.device] = _heard(devices.get(report.device, SeenDevice()), report)
        for name in lost:
            seen = devices.get(name, SeenDevice())
            devices[name] = replace(seen, rounds=seen.rounds + 1)
        known = dict(self.edges)
        for each in edges:
            known[each.edge] = _edge_heard(known.get(each.edge, SeenEdge()), each)
        return replace(self, devices=devices, edges=known)

    def with_device(self, report: DeviceReport) -> Observations:
        """After one report. A whole round's at once are cheaper by `with_round`."""
        return self.with_round([report])

    def with_edge(self, report: EdgeReport) -> Observations:
        """After an edge's word."""
        return self.with_round((), [report])

    # -- what a planner asks for -----------------------------------------------------------------

    def device_cost(self, name: str) -> DeviceCost | None:
        """A device's costs; None before it has had a block to compute, and a link to time."""
        seen = self.devices.get(name)
        if seen is None:
            return None
        node, link = node_cost(seen.own, seen.setting), link_cost(seen.up, seen.down)
        if node is None or link is None:
            return None
        lora, moments = self.block_bytes
        return DeviceCost(
            node, link, value_bits(seen.bits), lora, moments, power=power(seen.readings)
        )

    def edge_cost(self, name: str) -> EdgeCost | None:
        """An edge's, from what it computed for all of its devices; None before any of that."""
        passes: dict[PassKey, Sums] = {}
        for seen in self.devices.values():
            if seen.edge == name:
                for key, sums in seen.at_edge.items():
                    passes[key] = passes.get(key, Sums()) + sums
        edge = self.edges.get(name, SeenEdge())
        node = node_cost(passes, edge.setting)
        return None if node is None else EdgeCost(node, _clock(edge))

    def success(self, name: str) -> float:
        """The share of its rounds that a device finished; 1 before its first."""
        seen = self.devices.get(name)
        return seen.finished / seen.rounds if seen is not None and seen.rounds else 1.0

    def seconds(self, name: str) -> float | None:
        """Of training in its latest round."""
        seen = self.devices.get(name)
        return None if seen is None else seen.seconds

    def step_tokens(self) -> float | None:
        """Real tokens of a step, the mean over devices; None before the first round."""
        return _mean(seen.step_tokens for seen in self.devices.values())

    def micro_batches(self) -> float | None:
        """Of a step, the mean over devices; None before the first round."""
        return _mean(seen.micro_batches for seen in self.devices.values())


def node_cost(passes: Passes, setting: tuple[int, str] = (0, "")) -> NodeCost | None:
    """Costs from sums of passes, of one thread count and dtype; None where no block is in them."""
    threads, dtype = setting
    phases = [phase for key, sums in passes.items() for phase in _phases(key, sums)]
    for_training = [phase for phase, purpose in phases if purpose != "evaluation"]
    known = for_training or [phase for phase, _ in phases]
    if not any(phase.blocks for phase in known):
        return None
    fitted = fit_node(known, UNKNOWN, threads=threads, dtype=dtype)
    step, each = _step_line(passes)
    return replace(
        fitted,
        encode=_code_line(passes, "encode"),
        decode=_code_line(passes, "decode"),
        step=LineCost(step + _mean_seconds(passes, "collate"), each),
    )


def link_cost(up: Sums, down: Sums) -> LinkCost | None:
    """Rates and latency from sums of messages; None where there were none."""
    transfers = [
        Transfer(seconds, size, way, weight)
        for way, sums in ((True, up), (False, down))
        for size, seconds, weight in sums.points()
        if seconds > 0.0
    ]
    rates = [sums.size / sums.seconds for sums in (up, down) if sums.seconds > 0.0 < sums.size]
    return fit_link(transfers, LinkCost(rates[0], rates[-1]), 1.0) if rates else None


def value_bits(known: Mapping[tuple[Crossing, int], float]) -> ValueBits:
    """By cut; a cut that nothing crossed has the bits of the nearest that something did."""
    return ValueBits(
        *(
            _by_index({index: bits for (which, index), bits in known.items() if which == role})
            for role in ("activation", "gradient", "hidden", "tail_gradient")
        )
    )


def power(readings: Sequence[Reading]) -> PowerModel:
    """Watts by what a device did, from what was measured; nothing where nothing was.

    What rounds do not tell apart has the mean power of all of them.
    """
    if not readings:
        return NO_POWER
    seconds = sum(r.compute + r.send + r.receive + r.waiting for r in readings)
    mean = sum(reading.joules for reading in readings) / seconds if seconds else 0.0
    rows = [((r.compute, r.send, r.receive, r.waiting), r.joules) for r in readings]
    told = least_squares(rows, (mean,) * 4) if len(rows) > 4 else (mean,) * 4
    compute, send, receive, idle = told
    return PowerModel(compute, send, receive, idle, "measured")


# -- one report ------------------------------------------------------------------------------------


def _heard(seen: SeenDevice, report: DeviceReport) -> SeenDevice:
    """After a report, against the one before it of the same process."""
    shown, setting = report.shown, (report.shown.threads, report.dtype)
    same = report.started_at == seen.started_at
    last = seen.last if same else NOTHING
    new = between(shown.passes, last.passes)
    kept = seen if setting == seen.setting else replace(seen, own={}, readings=())
    counts = {
        key: one - last.crossed[key] if key in last.crossed else one
        for key, one in shown.crossed.items()
    }
    bits = {key: one.bits for key, one in counts.items() if one.messages > 0}
    up, down = shown.up - last.up, shown.down - last.down
    return SeenDevice(
        last=shown,
        started_at=report.started_at,
        edge=report.edge,
        setting=setting,
        own=_faded(kept.own, new),
        at_edge=_faded(seen.at_edge if seen.edge == report.edge else {}, report.edge_passes),
        up=up.plus(seen.up, KEEP) if up.passes else seen.up,
        down=down.plus(seen.down, KEEP) if down.passes else seen.down,
        bits={**seen.bits, **{key: value for key, value in bits.items() if value is not None}},
        readings=_read(kept.readings, last, report, new, up.seconds, down.seconds),
        rounds=seen.rounds + 1,
        finished=seen.finished + 1,
        seconds=report.seconds,
        step_tokens=report.tokens / report.steps if report.steps else seen.step_tokens,
        micro_batches=_pieces(new, report.steps) or seen.micro_batches,
    )


def _edge_heard(seen: SeenEdge, report: EdgeReport) -> SeenEdge:
    last = seen.last if report.started_at == seen.started_at else NOTHING
    joules = _joules(report.shown, last)
    return SeenEdge(
        last=report.shown,
        started_at=report.started_at,
        setting=(report.shown.threads, report.dtype),
        energy=seen.energy if joules is None else joules,
        computed=sum(s.seconds for s in between(report.shown.passes, last.passes).values()),
    )


def _clock(edge: SeenEdge) -> ClockRange:
    """Watts while it computes: all that it drew, over the seconds that it computed."""
    energy = edge.energy
    if energy is None or not edge.computed:
        return ClockRange()
    return ClockRange(watts=energy.joules / edge.computed, source=energy.source)


def _joules(shown: Shown, last: Shown) -> Energy | None:
    """Since the last reading; None where there are not two."""
    if shown.energy is None or last.energy is None:
        return None
    return Energy(max(0.0, shown.energy.joules - last.energy.joules), shown.energy.source)


def _faded(before: Passes, new: Passes) -> dict[PassKey, Sums]:
    """What was known weighs less; what was not timed again stays as it was."""
    found = dict(before)
    for key, sums in new.items():
        known = before.get(key)
        found[key] = sums if known is None else sums.plus(known, KEEP)
    return found


def _read(
    readings: tuple[Reading, ...],
    last: Shown,
    report: DeviceReport,
    new: Passes,
    send: float,
    receive: float,
) -> tuple[Reading, ...]:
    energy = _joules(report.shown, last)
    if energy is None or energy.source != "measured" or report.seconds <= 0.0:
        return readings
    compute = sum(sums.seconds for sums in new.values())
    waiting = max(0.0, report.seconds - compute - send - receive)
    return (*readings, Reading(energy.joules, compute, send, receive, waiting))[-READINGS:]


def _pieces(new: Passes, steps: int) -> float | None:
    """Micro-batches of a step, from how often the embedding was used."""
    passes = sum(
        sums.passes
        for key, sums in new.items()
        if key.embedding and (key.part, key.purpose) == ("forward", "training")
    )
    return max(1.0, round(passes / steps)) if steps and passes else None


# -- one fit ---------------------------------------------------------------------------------------


def _phases(key: PassKey, sums: Sums) -> list[tuple[Phase, Purpose]]:
    if key.part not in ("forward", "backward"):
        return []
    backward = key.part == "backward"
    return [
        (
            Phase(seconds, size, key.blocks, backward, key.embedding, key.head, weight),
            key.purpose,
        )
        for size, seconds, weight in sums.points()
        if seconds > 0.0 and size > 0.0
    ]


def _code_line(passes: Passes, part: Part) -> LineCost:
    """Of coding messages in training, by their tokens."""
    points = [
        point
        for key, sums in passes.items()
        if key.part == part and key.purpose != "evaluation"
        for point in sums.points()
    ]
    return fit_line(points, NO_TIME)


def _step_line(passes: Passes) -> tuple[float, float]:
    """Seconds a step: whatever is trained, and of each block that is."""
    points = [
        (float(key.blocks), sums.seconds / sums.passes, sums.passes)
        for key, sums in passes.items()
        if (key.part, key.purpose) == ("step", "training") and sums.passes > 0.0
    ]
    if len(points) == 1 and points[0][0]:
        blocks, seconds, _ = points[0]
        return 0.0, seconds / blocks  # most of it goes by what is trained
    line = fit_line(points, NO_TIME)
    return line.fixed, line.unit


def _mean_seconds(passes: Passes, part: Part) -> float:
    found = [
        sums
        for key, sums in passes.items()
        if (key.part, key.purpose) == (part, "training") and sums.passes > 0.0
    ]
    passed = sum(sums.passes for sums in found)
    return sum(sums.seconds for sums in found) / passed if passed else 0.0


def _by_index(bits: Mapping[int, float]) -> tuple[float, ...]:
    if not bits:
        return (BITS,)
    return tuple(
        bits[min(bits, key=lambda known: (abs(known - index), known))]
        for index in range(max(bits) + 1)
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
