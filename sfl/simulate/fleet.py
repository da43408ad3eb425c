"""The devices of a simulated run: which class each is of, and what was drawn for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfl.config import DeviceEntry, RunConfig
from sfl.config.simulate import DeviceClass, SimulateSettings
from sfl.cost.energy import NO_POWER, ClockRange, PowerModel
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost, StageCost
from sfl.cost.work import Batch, ModelShape
from sfl.errors import ConfigError
from sfl.planners.outset import stated_hop
from sfl.simulate.chance import Chance
from sfl.simulate.channel import UNLIMITED, Channel, channel
from sfl.simulate.costs import Legal, evaluation_bits, hop_bits, node_cost, value_bits
from sfl.simulate.fitted import NOTHING_FITTED, Fitted

HEARTBEAT = 1_800
"""Bytes of a heartbeat with its statistics, as real runs send them."""


@dataclass(frozen=True, slots=True)
class Specimen:
    """One device, apart from what it does: costs at its mean speed, its link, its latency (s)."""

    name: str
    place: int
    kind: DeviceClass
    edge: str
    cost: DeviceCost
    channel: Channel
    latency: float
    evaluation_bits: float
    fits: bool
    control: float = 0.0
    """Megabits a second that its heartbeats take of its way up."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everybody, and what they train."""

    settings: SimulateSettings
    shape: ModelShape
    batch: Batch
    devices: tuple[Specimen, ...]
    edges: tuple[str, ...]
    edge_cost: EdgeCost
    needs: Legal
    """Bytes that a device needs at a cut and a tail."""
    stages: tuple[StageCost, ...] = ()
    """Behind all edges, the first one first."""


def with_classes(config: RunConfig) -> RunConfig:
    """With the cuts of classes that state one. Raises ConfigError."""
    stated = stated_of(config)
    entries = []
    for entry, kind in zip(config.devices, classes_of(config, stated), strict=True):
        found = {"cut_layer": kind.cut_layer, "tail_layers": kind.tail_layers}
        update = {name: value for name, value in found.items() if value is not None}
        entries.append(entry.model_copy(update=update) if update else entry)
    return config.model_copy(update={"devices": tuple(entries)})


def stated_of(config: RunConfig) -> SimulateSettings:
    """The fleet of a file that states one."""
    assert config.simulate is not None, "the file was read as one of a simulated run"
    return config.simulate


def classes_of(config: RunConfig, stated: SimulateSettings) -> list[DeviceClass]:
    """Each device's class: as the file says, or drawn by the classes' shares.

    Raises ConfigError where a class names a device that the run does not have.
    """
    placed = {name: kind for kind in stated.classes for name in kind.devices}
    for name in placed:
        if not config.knows(name):
            raise ConfigError(
                f"simulate.classes.{placed[name].name}.devices",
                name,
                "the run has no device of that name",
                "Name one of [[devices]], or leave it out.",
            )
    chance = Chance(config.run.seed, "simulate", "class")
    return [
        placed.get(entry.name) or _drawn(stated.classes, chance.uniform(number))
        for number, entry in enumerate(config.devices)
    ]


def _drawn(classes: Sequence[DeviceClass], share: float) -> DeviceClass:
    left = share * sum(kind.share for kind in classes)
    for kind in classes:
        left -= kind.share
        if left < 0.0:
            return kind
    return classes[-1]


def fleet_of(
    config: RunConfig, shape: ModelShape, needs: Legal, fitted: Fitted = NOTHING_FITTED
) -> Fleet:
    """Everybody of a run's settings; `needs` forecasts a device's memory, `fitted` is what a real
    run has shown. Raises ConfigError."""
    stated = stated_of(config)
    size = config.training.batch_size
    tokens = None if fitted.tokens is None else max(1, round(fitted.tokens / size))
    batch = Batch(size, stated.tokens or tokens or config.model.max_length)
    edges = edge_names(config, stated)
    kinds = classes_of(config, stated)
    devices = tuple(
        _specimen(
            config, shape, batch, needs, fitted, entry, kind, number, edges[number % len(edges)]
        )
        for number, (entry, kind) in enumerate(zip(config.devices, kinds, strict=True))
    )
    clock = ClockRange(stated.edge.least_clock, stated.edge.watts, settable=True)
    cost = EdgeCost(node_cost(stated.edge, shape, batch, config.lora.rank), clock)
    if fitted.edge is not None:
        cost = fitted.edge
    stages = _stages(config, stated, shape, batch, fitted, cost.node)
    return Fleet(stated, shape, batch, devices, edges, cost, needs, stages)


def _stages(
    config: RunConfig,
    stated: SimulateSettings,
    shape: ModelShape,
    batch: Batch,
    fitted: Fitted,
    edge: NodeCost,
) -> tuple[StageCost, ...]:
    """As stated, else as a run has shown them, else as quick as an edge; none in two tiers."""
    count, own = len(config.stage_cuts(config.devices[0].name)), config.stages
    shaped = bool(own.up_mbit or own.down_mbit or own.delay_ms)
    found = []
    for number in range(count):
        seen = number < len(fitted.hops) and not shaped
        hop = fitted.hops[number] if seen else stated_hop(config.settings)
        node = fitted.stages[number] if number < len(fitted.stages) else edge
        if stated.stage is not None:
            node = node_cost(stated.stage, shape, batch, config.lora.rank)
        found.append(StageCost(node, hop))
    return tuple(found)


def edge_names(config: RunConfig, stated: SimulateSettings) -> tuple[str, ...]:
    """Those of the settings, or as many as the file asks for."""
    count = stated.edge.count
    if count is None or count == len(config.edges):
        return config.edges
    return tuple(f"edge{number}" for number in range(count))


def _specimen(
    config: RunConfig,
    shape: ModelShape,
    batch: Batch,
    needs: Legal,
    fitted: Fitted,
    entry: DeviceEntry,
    kind: DeviceClass,
    place: int,
    edge: str,
) -> Specimen:
    key, stated = (config.run.seed, "simulate", entry.name), stated_of(config)
    chance, rank = Chance(*key, "device"), config.rank(entry.name)
    rates = chance.factor(1, kind.link_spread)
    known = fitted.of(entry.name, chance.uniform(4))
    seen = None if known is None else known.link
    up, down, delay = _link(entry, kind, seen)
    up, down = rates * up, rates * down
    way, codecs = channel(kind, up, down, *key), config.codecs(entry.name, 1)
    slower = chance.factor(0, kind.spread)
    node = node_cost(kind, shape, batch, rank, slower)
    cost = DeviceCost(
        node if known is None else known.node.slower(slower),
        link_cost(way, 0.0, delay / 1000.0),
        value_bits(stated.bits, codecs) if known is None else known.bits,
        shape.lora_bytes(0, rank),
        shape.moment_bytes(0, rank),
        power=_power(kind, known),
        hop_bits=hop_bits(stated.bits, codecs) if config.is_tiered else None,
    )
    room = needs(entry.cut_layer, entry.tail_layers)
    fits = kind.memory is None or room <= kind.memory
    bits = evaluation_bits(stated.bits, codecs)
    control = HEARTBEAT * 8e-6 / config.network.heartbeat_interval
    return Specimen(entry.name, place, kind, edge, cost, way, delay / 1000.0, bits, fits, control)


def _link(
    entry: DeviceEntry, kind: DeviceClass, seen: LinkCost | None
) -> tuple[float, float, float]:
    """Megabits a second up and down, milliseconds: as stated, else as shaped, else as seen."""
    own = entry.link
    shaped = bool(own.up_mbit or own.down_mbit or own.delay_ms)
    if seen is None or shaped:
        usual = UNLIMITED, UNLIMITED, own.delay_ms
    else:
        usual = seen.up * 8e-6, seen.down * 8e-6, 1000.0 * seen.latency
    return (
        kind.up_mbit or own.up_mbit or usual[0],
        kind.down_mbit or own.down_mbit or usual[1],
        usual[2] if kind.latency_ms is None else kind.latency_ms,
    )


def _power(kind: DeviceClass, known: DeviceCost | None) -> PowerModel:
    stated = PowerModel(**kind.power.model_dump())
    return known.power if known is not None and stated == NO_POWER else stated


def link_cost(way: Channel, now: float, latency: float) -> LinkCost:
    """A link as it is at a time, in bytes a second."""
    up, down = way.rates(now)
    return LinkCost(up * 1e6 / 8.0, down * 1e6 / 8.0, latency)
