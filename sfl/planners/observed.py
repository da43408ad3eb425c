"""From what nodes showed of their rounds to what a planner takes them to cost.

    seen = Observations(block_bytes=(lora, moments))
    seen = seen.with_round(reports, edges, lost)        # once a round
    seen.device_cost("phone")                           # None until enough is known

A pure projection: the same reports give the same costs. Of each device sums are kept, in which each
further round weighs less, so that a round costs O(devices), however long the run has been.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median

from sfl.cost.energy import ClockRange, Energy
from sfl.cost.shown import (
    NO_SUMS,
    NOTHING,
    Crossed,
    Crossing,
    Passes,
    PassKey,
    Shown,
    Sums,
    between,
)
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost
from sfl.plan import SERVERS
from sfl.planners.fading import KEEP, difference, faded, followed
from sfl.planners.fitted import Reading, link_cost, node_cost, power, value_bits

READINGS = 8
"""Rounds that watts are fitted from."""
KNOWN = 2
"""Rounds before the first that noise is told from: the very first of a process is slower."""
DIFFERENCES = 5
"""Rounds that noise is told from, by their median: a single change does not count."""


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What is heard of a device at the end of its round, whole.

    `shown` and `dtype` are of its statistics, `started_at` tells its process from another one.
    `edge_passes` are what its edge timed for it in this round, `received` what its update took to
    arrive there. `seconds` of the round's training, `steps` of them, over so many real `tokens`.
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
    received: Sums = NO_SUMS


@dataclass(frozen=True, slots=True)
class EdgeReport:
    """An edge's latest statistics: `shown` and `dtype`; `started_at` tells its process."""

    edge: str
    shown: Shown
    started_at: float = 0.0
    dtype: str = ""


StageReport = EdgeReport
"""A stage's: `edge` is its name, and `shown` has the passes of all of its devices."""


@dataclass(frozen=True, slots=True)
class SeenDevice:
    """One device, so far. `last` is its latest report, that the next one is taken off.

    `own` and `at_edge`, `up` and `down` are sums that fade. `rounds` counts those it took part in,
    `finished` those of them that it finished. `differences` are the shares by which its latest
    rounds took longer or shorter than what was known before told.
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
    handover: float | None = None
    differences: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class SeenEdge:
    """One edge, so far; `energy` and `computed` seconds are those of its latest round, `up` and
    `down` of its hop to the stage behind it."""

    last: Shown = NOTHING
    started_at: float = 0.0
    setting: tuple[int, str] = (0, "")
    energy: Energy | None = None
    computed: float = 0.0
    up: Sums = NO_SUMS
    down: Sums = NO_SUMS


@dataclass(frozen=True, slots=True)
class SeenStage:
    """One stage behind the edges, so far; its passes are sums that fade."""

    last: Shown = NOTHING
    started_at: float = 0.0
    setting: tuple[int, str] = (0, "")
    passes: Mapping[PassKey, Sums] = field(default_factory=dict)
    up: Sums = NO_SUMS
    down: Sums = NO_SUMS


@dataclass(frozen=True, slots=True)
class Observations:
    """All nodes, so far. `block_bytes` are those of one block's adapter, and of its moments."""

    block_bytes: tuple[float, float] = (0.0, 0.0)
    devices: Mapping[str, SeenDevice] = field(default_factory=dict)
    edges: Mapping[str, SeenEdge] = field(default_factory=dict)
    stages: Mapping[str, SeenStage] = field(default_factory=dict)

    def with_round(
        self,
        reports: Iterable[DeviceReport],
        edges: Iterable[EdgeReport] = (),
        lost: Iterable[str] = (),
        stages: Iterable[StageReport] = (),
    ) -> Observations:
        """After a round of these; `lost` devices took part and did not finish it."""
        devices, deep = dict(self.devices), dict(self.stages)
        known = list(reports)
        for each in stages:
            deep[each.edge] = _stage_heard(deep.get(each.edge, SeenStage()), each)
        at_edges = Counter(edge for _, edge in {(one.device, one.edge) for one in known})
        for report in known:
            before = devices.get(report.device, SeenDevice())
            after = _heard(before, report)
            if at_edges[report.edge] == 1 and not deep:  # it also waits for what is behind
                after = replace(after, handover=_handover(before, after, report))
            devices[report.device] = after
        for name in lost:
            seen = devices.get(name, SeenDevice())
            devices[name] = replace(seen, rounds=seen.rounds + 1)
        there = dict(self.edges)
        for each in edges:
            there[each.edge] = _edge_heard(there.get(each.edge, SeenEdge()), each)
        return replace(self, devices=devices, edges=there, stages=deep)

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
            node,
            link,
            value_bits(seen.bits),
            lora,
            moments,
            handover=seen.handover or 0.0,
            power=power(seen.readings),
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

    def stage_node(self, name: str) -> NodeCost | None:
        """What a stage takes to compute, by its name; None before it has had a block.

        The only stage that there is may be called anything.
        """
        seen = self._stage(name)
        return None if seen is None else node_cost(seen.passes, seen.setting)

    def noise(self, name: str) -> float:
        """The share by which a device's rounds differ where nothing has changed; 0 before two."""
        seen = self.devices.get(name)
        return median(seen.differences) if seen is not None and seen.differences else 0.0

    def stage_hop(self, name: str) -> LinkCost | None:
        """The hop to that holder of a plan from the server before it; the mean of all edges', if
        they are before it. None before it had messages to time."""
        before = SERVERS[SERVERS.index(name) - 1]
        stage = None if before == "edge" else self._stage(before)
        known = self.edges.values() if before == "edge" else [] if stage is None else [stage]
        up = sum((seen.up for seen in known), NO_SUMS)
        return link_cost(up, sum((seen.down for seen in known), NO_SUMS))

    def _stage(self, name: str) -> SeenStage | None:
        only = next(iter(self.stages.values())) if len(self.stages) == 1 else None
        return self.stages.get(name, only)

    def success(self, name: str) -> float:
        """The share of its rounds that a device finished; 1 before its first."""
        seen = self.devices.get(name)
        return seen.finished / seen.rounds if seen is not None and seen.rounds else 1.0

    def seconds(self, name: str) -> float | None:
        """Of training in its latest round."""
        seen = self.devices.get(name)
        return None if seen is None else seen.seconds

    def step_tokens(self) -> float | None:
        """Real tokens of a step, the median over devices; None before the first round."""
        return _median(seen.step_tokens for seen in self.devices.values())

    def micro_batches(self) -> float | None:
        """Of a step, the median over devices; None before the first round."""
        return _median(seen.micro_batches for seen in self.devices.values())


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
    up, down = shown.up - last.up + report.received, shown.down - last.down
    return SeenDevice(
        last=shown,
        started_at=report.started_at,
        edge=report.edge,
        setting=setting,
        own=faded(kept.own, new),
        at_edge=faded(seen.at_edge if seen.edge == report.edge else {}, report.edge_passes),
        up=followed(seen.up, up),
        down=followed(seen.down, down),
        bits={**seen.bits, **{key: value for key, value in bits.items() if value is not None}},
        readings=_read(kept.readings, last, report, new, up.seconds, down.seconds),
        rounds=seen.rounds + 1,
        finished=seen.finished + 1,
        seconds=report.seconds,
        step_tokens=report.tokens / report.steps if report.steps else seen.step_tokens,
        micro_batches=_pieces(new, report.steps) or seen.micro_batches,
        handover=seen.handover,
        differences=_differing(kept.own, new, seen, report),
    )


def _differing(
    own: Passes, new: Passes, seen: SeenDevice, report: DeviceReport
) -> tuple[float, ...]:
    """The latest rounds' shares, with this one: at the device or its edge, the larger of both."""
    at_edge = seen.at_edge if seen.edge == report.edge else {}
    apart = [difference(own, new), difference(at_edge, report.edge_passes)]
    found = max((one for one in apart if one is not None), default=None)
    if found is None or seen.rounds < KNOWN:
        return seen.differences
    return (*seen.differences, found)[-DIFFERENCES:]


def _handover(before: SeenDevice, after: SeenDevice, report: DeviceReport) -> float | None:
    """Seconds of a round trip that nothing explains, of a device that has its edge for itself.

    Only whole batches are looked at, since pieces of them overlap. A process's first round has
    passes that are not counted.
    """
    link = link_cost(after.up, after.down)
    same = before.last is not NOTHING and before.started_at == after.started_at
    if link is None or not same or after.micro_batches != 1.0 or not report.steps:
        return before.handover
    own = between(report.shown.passes, before.last.passes)
    seconds = report.seconds - _training(own) - _training(report.edge_passes)
    trips = 0
    for (role, index), now in report.shown.crossed.items():
        one = now - before.last.crossed.get((role, index), Crossed())
        if one.messages:
            up = role in ("activation", "tail_gradient")
            way = link.up_seconds if up else link.down_seconds
            seconds -= one.messages * way(one.num_bytes / one.messages)
            trips += up * one.messages
    if not trips:
        return before.handover
    found = max(0.0, seconds / trips)
    known = before.handover
    return found if known is None else KEEP * known + (1.0 - KEEP) * found


def _training(passes: Passes) -> float:
    return sum(sums.seconds for key, sums in passes.items() if key.purpose == "training")


def _edge_heard(seen: SeenEdge, report: EdgeReport) -> SeenEdge:
    last = seen.last if report.started_at == seen.started_at else NOTHING
    joules, setting = _joules(report.shown, last), (report.shown.threads, report.dtype)
    computed = sum(s.seconds for s in between(report.shown.passes, last.passes).values())
    energy, hop = seen.energy if joules is None else joules, _hop(seen, report, last)
    return SeenEdge(report.shown, report.started_at, setting, energy, computed, *hop)


def _stage_heard(seen: SeenStage, report: StageReport) -> SeenStage:
    """After a stage's word; what it had timed in another setting is forgotten."""
    setting = (report.shown.threads, report.dtype)
    last = seen.last if report.started_at == seen.started_at else NOTHING
    known = seen.passes if setting == seen.setting else {}
    passes = faded(known, between(report.shown.passes, last.passes))
    hop = _hop(seen, report, last)
    return SeenStage(report.shown, report.started_at, setting, passes, *hop)


def _hop(seen: SeenEdge | SeenStage, report: EdgeReport, last: Shown) -> tuple[Sums, Sums]:
    """Messages to the stage behind a server and back, after its word."""
    up, down = report.shown.up - last.up, report.shown.down - last.down
    return followed(seen.up, up), followed(seen.down, down)


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


def _median(values: Iterable[float | None]) -> float | None:
    """Of what is known: no single device's word moves it far."""
    known = [value for value in values if value is not None]
    return median(known) if known else None
