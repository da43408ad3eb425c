"""What a run has shown of its nodes' costs: by its journal, or by its last decision."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from sfl.config import load_run
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost
from sfl.errors import ConfigError, SflError
from sfl.planners import State
from sfl.planners.costs import NothingSeen, Seen
from sfl.report.journal import read_journal
from sfl.report.observing import Observing
from sfl.report.plans import PLANS, read_plans
from sfl.report.records import RoundRecord, read_records
from sfl.report.runs import find_run


@dataclass(frozen=True, slots=True)
class Shown:
    """Costs, the edge of each device that is known, and the steps of a round (0: unknown)."""

    costs: Seen
    edges: dict[str, str]
    steps: int = 0


NOTHING = Shown(NothingSeen(), {})


def shown_by(run: str | None, output_dir: Path) -> Shown:
    """Nothing without a run. Raises ConfigError where it has shown nothing."""
    if run is None:
        return NOTHING
    folder = find_run(run, output_dir, "--from")
    steps = _steps(folder)
    observing = _observed(folder)
    if observing is not None and observing.known.devices:
        names = observing.known.devices
        if any(observing.device_cost(name) is not None for name in names):
            return Shown(observing, {n: seen.edge for n, seen in names.items()}, steps)
    if (folder / PLANS).exists():
        last = read_plans(folder / PLANS, "--from", with_state=True)[-1]
        if last.state is not None:
            edges = {device.name: device.edge for device in last.state.devices}
            return Shown(InState(last.state), edges, steps or last.state.workload.steps)
    problem = "shows no costs: no round was trained in it, or its version did not time them"
    raise ConfigError("--from", run, problem, "Name a run that trained a round, or leave it out.")


def _observed(folder: Path) -> Observing | None:
    """By the journal; None where there is none."""
    config = load_run(folder / "config.toml")
    if (journal := read_journal(config, folder)) is None:
        return None
    observing = Observing()
    with contextlib.closing(journal):
        for entry in journal.entries():
            observing.take(entry)
    return observing


def _steps(folder: Path) -> int:
    """Most steps that a device took in a round; 0 where nothing tells."""
    try:
        records = read_records(folder / "metrics.jsonl")
    except (OSError, SflError):
        return 0
    return max((record.steps for record in records if isinstance(record, RoundRecord)), default=0)


class InState:
    """What a decision was taken from."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._devices = {device.name: device.cost for device in state.devices}
        self._edges = {edge.name: edge.cost for edge in state.edges}
        self._stages = {stage.name: stage.cost for stage in state.stages}

    def device_cost(self, name: str) -> DeviceCost | None:
        """A device's."""
        return self._devices.get(name)

    def edge_cost(self, name: str) -> EdgeCost | None:
        """An edge's."""
        return self._edges.get(name)

    def stage_node(self, name: str) -> NodeCost | None:
        """What a stage takes to compute."""
        return self._stages[name].node if name in self._stages else None

    def stage_hop(self, name: str) -> LinkCost | None:
        """What the hop to it takes."""
        return self._stages[name].hop if name in self._stages else None

    def noise(self, name: str) -> float:
        """The share by which a device's rounds differed."""
        noises = {device.name: device.noise for device in self._state.devices}
        return noises.get(name, 0.0)

    def step_tokens(self) -> float | None:
        """Of a step."""
        return float(self._state.workload.tokens)

    def micro_batches(self) -> float | None:
        """Of a step."""
        return float(self._state.workload.micro_batches)
