"""What a run's nodes have shown of their costs, told by its journal alone."""

from __future__ import annotations

from functools import singledispatchmethod

from sfl.cost.shown import NO_SUMS, RECEIVED
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost
from sfl.metrics.costs import passes_from_json
from sfl.metrics.snapshot import NodeSnapshot
from sfl.planners.observed import DeviceReport, EdgeReport, Observations, StageReport
from sfl.rounds import AdapterReady, DeviceJoined, Event, Fact, Rehearsed, ReportReceived
from sfl.rounds.journal import Entry
from sfl.rounds.values import RoundReport


class Observing:
    """Takes entries in their order; a report costs nothing more until somebody asks."""

    def __init__(self) -> None:
        self._known = Observations()
        self._edge_of: dict[str, str] = {}
        self._reports: list[DeviceReport] = []
        self._edges: list[EdgeReport] = []
        self._stages: list[StageReport] = []

    def take(self, entry: Entry) -> None:
        """What comes next."""
        self._take(entry.event)

    @property
    def known(self) -> Observations:
        """All that was shown so far."""
        if self._reports or self._edges or self._stages:
            told = self._reports, self._edges, (), self._stages
            self._known = self._known.with_round(*told)
            self._reports, self._edges, self._stages = [], [], []
        return self._known

    def device_cost(self, name: str) -> DeviceCost | None:
        """A device's costs, once it has shown them."""
        return self.known.device_cost(name)

    def edge_cost(self, name: str) -> EdgeCost | None:
        """An edge's costs, once it has shown them."""
        return self.known.edge_cost(name)

    def stage_node(self, name: str) -> NodeCost | None:
        """What a stage takes to compute, once it has shown it."""
        return self.known.stage_node(name)

    def noise(self, name: str) -> float:
        """The share by which a device's rounds differ where nothing has changed."""
        return self.known.noise(name)

    def stage_hop(self, name: str) -> LinkCost | None:
        """The hop to that holder of a plan, once messages over it were timed."""
        return self.known.stage_hop(name)

    def step_tokens(self) -> float | None:
        """Real tokens of a step, the mean over devices, once they have trained."""
        return self.known.step_tokens()

    def micro_batches(self) -> float | None:
        """Of a step, the mean over devices, once they have trained."""
        return self.known.micro_batches()

    @singledispatchmethod
    def _take(self, event: Event | Fact) -> None:
        """Most events show no costs."""

    @_take.register
    def _(self, event: DeviceJoined) -> None:
        self._edge_of[event.device] = event.edge

    @_take.register
    def _(self, event: ReportReceived) -> None:
        report = event.report
        if report is not None and report.num_steps:
            self._reports.append(device_report(report, self._edge_of.get(event.device, "")))

    @_take.register
    def _(self, event: Rehearsed) -> None:
        if event.report is not None:
            self._reports.append(device_report(event.report, self._edge_of.get(event.device, "")))

    @_take.register
    def _(self, event: AdapterReady) -> None:
        snapshots = [*map(NodeSnapshot.from_json, event.servers)]
        self._edges += [_of_server(own) for own in snapshots if own.kind == "edge"]
        self._stages += [_of_server(own) for own in snapshots if own.kind == "stage"]


def device_report(report: RoundReport, edge: str) -> DeviceReport:
    """What a planner takes from a device's report. Raises ProtocolError."""
    snapshot = NodeSnapshot.from_json(report.snapshot)
    passes = dict(passes_from_json(report.edge_passes))
    received = passes.pop(RECEIVED, NO_SUMS)
    return DeviceReport(
        device=report.device,
        edge=edge,
        shown=snapshot.costs,
        edge_passes=passes,
        received=received,
        seconds=report.train_seconds,
        steps=report.num_steps,
        tokens=report.num_tokens,
        started_at=snapshot.started_at,
        dtype=snapshot.dtype,
    )


def _of_server(snapshot: NodeSnapshot) -> EdgeReport:
    return EdgeReport(snapshot.name, snapshot.costs, snapshot.started_at, snapshot.dtype)
