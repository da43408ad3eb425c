"""What a planner knows: devices with their legal cuts and costs, edges, and what a run aims at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING

from sfl.cost.digits import rounded
from sfl.cost.predict import Placed, Prediction, predict
from sfl.cost.tiers import Behind
from sfl.cost.values import DeviceCost, EdgeCost, StageCost, Workload
from sfl.planners.decision import Choice, Memory
from sfl.planners.told import Cut, Outcome

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@dataclass(frozen=True)
class DeviceState:
    """A device as a planner sees it. `cuts` are those that its settings allow, in any order.

    `at` is its present cut, None before the first round. `memory` is its budget in bytes. `success`
    is the share of its rounds that it finished. `stage_cuts` are the blocks before each stage
    behind its edge. They stay, unless there is a `stage_range`: the least and the most that the one
    stage may have before it. Then `cuts` are those that go with any of these. `noise` is the share
    by which its rounds differ where nothing has changed.
    """

    name: str
    edge: str
    cost: DeviceCost
    cuts: tuple[Cut, ...]
    at: tuple[int, int] | None = None
    memory: int | None = None
    success: float = 1.0
    outcome: Outcome | None = None
    stage_cuts: tuple[int, ...] = ()
    noise: float = 0.0
    stage_range: tuple[int, int] | None = None

    @cached_property
    def legal(self) -> tuple[Cut, ...]:
        """The allowed cuts that fit its memory, the fewest blocks first."""
        budget = self.memory
        return tuple(sorted(c for c in self.cuts if budget is None or c.memory <= budget))

    def choice(self, cut: Cut) -> Choice:
        """That cut, and all else as it is."""
        return Choice(cut.cut_layer, cut.tail_layers)

    def choices(self, num_layers: int) -> list[Choice]:
        """Every way to cut its model of so many blocks: its legal cuts, each with every place of
        the stage that goes with it."""
        if self.stage_range is None:
            return [self.choice(cut) for cut in self.legal]
        least, most = self.stage_range
        return [
            replace(self.choice(cut), stage_cuts=(stage,))
            for cut in self.legal
            for stage in range(least, most + 1)
            if cut.cut_layer < stage < num_layers - cut.tail_layers
        ]

    def with_stage(self, stage: int, num_layers: int) -> DeviceState:
        """The same with the stage at that place, for good, and the cuts that go with it."""
        cuts = tuple(c for c in self.cuts if c.cut_layer < stage < num_layers - c.tail_layers)
        return replace(self, cuts=cuts, stage_cuts=(stage,), stage_range=None)


@dataclass(frozen=True, slots=True)
class EdgeState:
    """An edge. `load` are seconds a round in which it works for somebody else."""

    name: str
    cost: EdgeCost
    load: float = 0.0


@dataclass(frozen=True, slots=True)
class StageState:
    """A stage behind the edges."""

    name: str
    cost: StageCost


@dataclass(frozen=True, slots=True)
class Aims:
    """What a run wants of its planner; each planner reads some.

    `hysteresis`: a move has to gain this share at least. A decision holds for `every_rounds`. What
    a move costs, it is to save within `pays_back` rounds, or as long as the decision holds.
    `slow_rounds`: a planner of two timescales moves cuts that rarely, in decisions.
    `weight` is that of delay against energy, 0 to 1. `energy` is a budget in joules a round, and
    `delay_value` what a second is worth against it (Lyapunov's V). `select` devices take part, all
    where it is 0; of those never seen at most `newcomers` at once. `deadline` in seconds a round.
    `keep` is the least share of values that a sparse codec may keep; `keep_bits` are of each.
    """

    hysteresis: float = 0.03
    every_rounds: int = 1
    pays_back: int = 5
    slow_rounds: int = 10
    weight: float = 0.5
    energy: float | None = None
    delay_value: float = 1.0
    select: int = 0
    newcomers: int = 1
    deadline: float | None = None
    keep: float = 0.3
    keep_bits: int = 4


@dataclass(frozen=True)
class State:
    """Everything that a decision depends on, so that it can be taken again.

    `recorded` is what another run chose for this round. `memory` is what the last decision left.
    """

    round: int
    workload: Workload
    devices: tuple[DeviceState, ...]
    edges: tuple[EdgeState, ...]
    aims: Aims = Aims()
    seed: int = 0
    memory: Memory = field(default_factory=dict)
    recorded: Mapping[str, Choice] = field(default_factory=dict)
    stages: tuple[StageState, ...] = ()
    """Behind the edges, in the order in which activations reach them."""

    @cached_property
    def able(self) -> tuple[DeviceState, ...]:
        """The devices that have a legal cut; the others cannot take part."""
        return tuple(device for device in self.devices if device.legal)

    def at_edges(self) -> dict[str, list[DeviceState]]:
        """The same by their edges, without edges that have none."""
        found: dict[str, list[DeviceState]] = {}
        for device in self.able:
            found.setdefault(device.edge, []).append(device)
        return found

    def edge(self, name: str) -> EdgeState:
        """By name."""
        return self._edges[name]

    def behind(self, device: DeviceState, choice: Choice) -> Behind:
        """The stages behind a device's edge."""
        return Behind(self._stage_costs, choice.stage_cuts or device.stage_cuts)

    @cached_property
    def _stage_costs(self) -> tuple[StageCost, ...]:
        return tuple(stage.cost for stage in self.stages)

    @cached_property
    def _edges(self) -> dict[str, EdgeState]:
        return {edge.name: edge for edge in self.edges}

    def staying(self) -> State:
        """The same with the present cut as a device's only one; who has none may choose."""
        return replace(self, devices=tuple(_pinned(device) for device in self.devices))

    def with_stages_where_they_are(self) -> State:
        """The same where no stage may have another place."""
        layers = self.workload.num_layers
        devices = (
            own if own.stage_range is None else own.with_stage(own.stage_cuts[0], layers)
            for own in self.devices
        )
        return replace(self, devices=tuple(devices))

    def rounded(self) -> State:
        """The same with costs of no more digits than are measured: its line is shorter by a third,
        and what is decided from it can be decided from its line."""
        devices = tuple(replace(own, cost=rounded(own.cost)) for own in self.devices)
        edges = tuple(replace(own, cost=rounded(own.cost)) for own in self.edges)
        stages = tuple(replace(own, cost=rounded(own.cost)) for own in self.stages)
        return replace(self, devices=devices, edges=edges, stages=stages)

    def as_json(self) -> str:
        """One line, without what is as usual: a large fleet has many cuts."""
        return _adapter().dump_json(self, exclude_defaults=True).decode()

    @staticmethod
    def from_json(line: str | bytes) -> State:
        """The same back. Raises pydantic's ValidationError, a ValueError, for anything else."""
        return _adapter().validate_json(line)


def _pinned(device: DeviceState) -> DeviceState:
    present = tuple(cut for cut in device.legal if cut.at == device.at)
    return replace(device, cuts=present, stage_range=None) if present else device


def placed(state: State, choices: Mapping[str, Choice]) -> list[Placed]:
    """Those who take part, as the cost model wants them."""
    devices = {device.name: device for device in state.devices}
    found = []
    for name, choice in choices.items():
        if not choice.takes_part:
            continue
        device = devices[name]
        memory = next((cut.memory for cut in device.cuts if cut.at == choice.at), 0)
        cost = as_chosen(device.cost, choice)
        edge = choice.edge or device.edge
        shares = choice.edge_clock, choice.edge_share
        stages = choice.stage_cuts or device.stage_cuts
        found.append(Placed(name, cost, edge, *choice.at, *shares, memory, stages))
    return found


def foretold(state: State, choices: Mapping[str, Choice]) -> Prediction:
    """A round of these choices."""
    edges = {edge.name: edge.cost for edge in state.edges}
    stages = [stage.cost for stage in state.stages]
    return predict(state.workload, placed(state, choices), edges, stages)


def as_chosen(cost: DeviceCost, choice: Choice) -> DeviceCost:
    """With the choice's share of the link, and its bits of what crosses."""
    link, bits, share = cost.link, cost.bits, choice.share
    if share != 1.0:
        link = replace(link, up=share * link.up, down=share * link.down)
    if choice.activation_bits is not None:
        every = (choice.activation_bits,)
        bits = replace(bits, activation=every, hidden=every)
    if choice.gradient_bits is not None:
        every = (choice.gradient_bits,)
        bits = replace(bits, gradient=every, tail_gradient=every)
    if link is cost.link and bits is cost.bits:
        return cost
    return replace(cost, link=link, bits=bits)


@cache
def _adapter() -> TypeAdapter[State]:
    from pydantic import TypeAdapter

    return TypeAdapter(State)
