"""What the nodes of a run cost: as measured, or like the others, or as good as can be guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from sfl.config import RunSettings
from sfl.cost.energy import NO_POWER, PowerModel
from sfl.cost.values import (
    DeviceCost,
    EdgeCost,
    LinkCost,
    NodeCost,
    StageCost,
    ValueBits,
    Workload,
)
from sfl.cost.work import MOMENTS
from sfl.plan import SERVERS
from sfl.planners.outset import (
    FLOPS,
    ModelFacts,
    adapter_bytes,
    guessed_device,
    guessed_edge,
    guessed_stage_node,
    stated_bits,
    stated_hop,
    stated_hop_bits,
    stated_link,
    workload,
)

Cost = TypeVar("Cost", DeviceCost, EdgeCost)
Known = TypeVar("Known")


class Seen(Protocol):
    """What a run has shown; None of what it has not."""

    def device_cost(self, name: str) -> DeviceCost | None:
        """A device's costs."""

    def edge_cost(self, name: str) -> EdgeCost | None:
        """An edge's costs."""

    def stage_node(self, name: str) -> NodeCost | None:
        """What a stage behind the edges takes to compute."""

    def noise(self, name: str) -> float:
        """The share by which a device's rounds differ where nothing has changed."""

    def stage_hop(self, name: str) -> LinkCost | None:
        """What the hop to it takes, from an edge or from the stage before it."""

    def step_tokens(self) -> float | None:
        """Real tokens of a step, the median over devices."""

    def micro_batches(self) -> float | None:
        """Of a step, the median over devices."""


class NothingSeen:
    """A run that has shown nothing yet."""

    def device_cost(self, name: str) -> DeviceCost | None:
        """Nothing."""
        return None

    def edge_cost(self, name: str) -> EdgeCost | None:
        """Nothing."""
        return None

    def stage_node(self, name: str) -> NodeCost | None:
        """Nothing."""
        return None

    def noise(self, name: str) -> float:
        """Nothing."""
        return 0.0

    def stage_hop(self, name: str) -> LinkCost | None:
        """Nothing."""
        return None

    def step_tokens(self) -> float | None:
        """Nothing."""
        return None

    def micro_batches(self) -> float | None:
        """Nothing."""
        return None


@dataclass(frozen=True, slots=True)
class Speeds:
    """Operations a second of nodes that have shown nothing; a stage's None: as an edge."""

    device: float = FLOPS
    edge: float = FLOPS
    stage: float | None = None


@dataclass(frozen=True)
class Costs:
    """Of these devices and edges, and of the stages behind them; `seen` are devices that were
    measured, by name."""

    settings: RunSettings
    facts: ModelFacts
    devices: dict[str, DeviceCost]
    edges: dict[str, EdgeCost]
    seen: frozenset[str]
    tokens: float | None = None
    micro_batches: float | None = None
    stages: dict[str, StageCost] = field(default_factory=dict)

    @staticmethod
    def of(
        settings: RunSettings,
        facts: ModelFacts,
        shown: Seen,
        devices: Iterable[str],
        edges: Iterable[str],
        speeds: Speeds | None = None,
        tokens: float | None = None,
    ) -> Costs:
        """What was measured, else what the median of the others has, else a guess.

        `tokens` are those of a step before one was seen. Bits of values before any crossed are
        those that its codecs usually take.
        """
        own, far = list(devices), list(edges)
        measured = _sound(own, shown.device_cost)
        at_edges = _sound(far, shown.edge_cost)
        known = speeds or Speeds()
        found = {}
        for name in own:
            cost = measured.get(name) or _like(measured, settings, name)
            cost = cost or guessed_device(facts, settings, name, known.device)
            lora = adapter_bytes(facts, settings, name)
            found[name] = replace(
                cost,
                bits=stated_bits(settings, name) if cost.bits == ValueBits() else cost.bits,
                lora_bytes=lora,
                moment_bytes=MOMENTS * lora,
                power=cost.power if cost.power != NO_POWER else _stated_power(settings),
                hop_bits=stated_hop_bits(settings, name),
            )
        other = _median(at_edges.values())
        other = guessed_edge(facts, known.edge) if other is None else other
        served = {name: _clocked(settings, at_edges.get(name, other)) for name in far}
        seen = frozenset(measured) if at_edges else frozenset()
        step = shown.step_tokens() or tokens
        deep = _stages(settings, facts, shown, known.stage, other.node)
        return Costs(settings, facts, found, served, seen, step, shown.micro_batches(), deep)

    def workload(self, steps: int) -> Workload:
        """A round of so many steps."""
        return workload(self.facts, self.settings, steps, self.tokens, self.micro_batches)


def _stages(
    settings: RunSettings, facts: ModelFacts, shown: Seen, flops: float | None, edge: NodeCost
) -> dict[str, StageCost]:
    """Those that the run has behind its edges, the first one first; none in two tiers."""
    count = len(settings.stage_cuts(settings.devices[0].name))
    names = SERVERS[1 : 1 + count]
    nodes, hops = _sound(names, shown.stage_node), _sound(names, shown.stage_hop)
    guess, stated = guessed_stage_node(facts, flops, edge), stated_hop(settings)
    return {name: StageCost(nodes.get(name, guess), hops.get(name, stated)) for name in names}


def _stated_power(settings: RunSettings) -> PowerModel:
    """Of a device that cannot measure it, as the settings state it."""
    own = settings.planner
    return PowerModel(own.device_watts, own.radio_watts, own.radio_watts)


def _clocked(settings: RunSettings, cost: EdgeCost) -> EdgeCost:
    """An edge's clock as the settings state it, and its watts where it has measured none."""
    own, clock = settings.planner, cost.clock
    if clock.watts == 0.0:
        clock = replace(clock, watts=own.edge_watts, source="modelled")
    return replace(cost, clock=replace(clock, least=own.edge_least_clock))


def _sound(names: Iterable[str], cost_of: Callable[[str], Known | None]) -> dict[str, Known]:
    """What these nodes have shown; sums of which nothing can be made count as not shown."""
    found = {}
    for name in names:
        with suppress(ArithmeticError):
            if (cost := cost_of(name)) is not None:
                found[name] = cost
    return found


def _like(measured: dict[str, DeviceCost], settings: RunSettings, name: str) -> DeviceCost | None:
    """A device of which nothing is known, with its own limits of the link."""
    usual = _median(measured.values())
    if usual is None:
        return None
    own = settings.device(name).link
    shaped = own.up_mbit or own.down_mbit or own.delay_ms
    return replace(usual, link=stated_link(settings, name)) if shaped else usual


def _median(costs: Iterable[Cost]) -> Cost | None:
    """The one whose blocks take neither longest nor least."""
    ranked = sorted(costs, key=lambda cost: cost.node.block.both)
    return ranked[len(ranked) // 2] if ranked else None
