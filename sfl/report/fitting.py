"""What a run's journal shows of its costs, for a simulated fleet that is like it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from sfl.cost.values import LinkCost, NodeCost
from sfl.errors import ConfigError
from sfl.plan import SERVERS
from sfl.report.journal import JournalReader
from sfl.report.observing import Observing
from sfl.report.runs import JOURNAL
from sfl.rounds import AdapterReady, DeviceJoined, DeviceReady, ReportReceived, UpdateReceived
from sfl.rounds.journal import Entry
from sfl.simulate.fitted import Fitted


def fitted_from(folder: Path) -> Fitted:
    """Of a run's folder. Raises ConfigError where its journal shows no costs, DiskError."""
    if not (folder / JOURNAL).exists():
        problem = "has no journal in its folder"
        raise ConfigError("--from", folder.name, problem, "Name a run that has trained.")
    reader = JournalReader(folder)
    try:
        fitted = fitted_of(list(reader.entries()))
    finally:
        reader.close()
    if not fitted.devices or fitted.edge is None:
        problem = "has shown no costs"
        raise ConfigError("--from", folder.name, problem, "Name a run that has closed a round.")
    return fitted


def fitted_of(entries: Sequence[Entry]) -> Fitted:
    """Of all that happened in a run."""
    seen = Observing()
    for entry in entries:
        seen.take(entry)
    joined = {e.event.device: e.event.edge for e in entries if isinstance(e.event, DeviceJoined)}
    devices = {name: cost for name in joined if (cost := seen.device_cost(name)) is not None}
    edges = [own for name in joined.values() if (own := seen.edge_cost(name)) is not None]
    facts = [
        e.event.facts
        for e in entries
        if isinstance(e.event, DeviceReady) and e.event.facts is not None
    ]
    counts = [(each.num_examples, each.num_eval_examples) for each in facts]
    return Fitted(
        devices,
        max(edges, key=lambda cost: cost.node.block.both, default=None),
        seen.step_tokens(),
        _load(entries),
        _averaging(entries),
        _means(counts) if counts else None,
        *_stages(seen),
    )


def _stages(seen: Observing) -> tuple[tuple[NodeCost, ...], tuple[LinkCost, ...]]:
    """Those that have shown what they take, the first one first, and the hops to them."""
    names = SERVERS[1 : 1 + len(seen.known.stages)]
    nodes = [node for name in names if (node := seen.stage_node(name)) is not None]
    hops = [hop for name in names if (hop := seen.stage_hop(name)) is not None]
    return (
        tuple(nodes) if len(nodes) == len(names) else (),
        tuple(hops) if len(hops) == len(names) else (),
    )


def _means(counts: Sequence[tuple[int, int]]) -> tuple[int, int]:
    trained, held_out = (fmean(each) for each in zip(*counts, strict=True))
    return round(trained), round(held_out)


def _load(entries: Sequence[Entry]) -> float | None:
    """Seconds from being let in until a device was ready."""
    joined: dict[str, float] = {}
    taken = []
    for entry in entries:
        if isinstance(entry.event, DeviceJoined):
            joined[entry.event.device] = entry.now
        elif isinstance(entry.event, DeviceReady) and entry.event.device in joined:
            taken.append(entry.now - joined.pop(entry.event.device))
    return median(taken) if taken else None


def _averaging(entries: Sequence[Entry]) -> float | None:
    """Seconds from the last part of a round until its average was there."""
    last, taken = None, []
    for entry in entries:
        if isinstance(entry.event, UpdateReceived | ReportReceived):
            last = entry.now
        elif isinstance(entry.event, AdapterReady) and entry.event.round and last is not None:
            taken.append(entry.now - last)
    return median(taken) if taken else None


def as_table(fitted: Fitted) -> dict[str, Any]:
    """`[simulate]` of a file that does not state it. The speeds in it are never looked at."""
    kind: dict[str, Any] = {"name": "measured", "tflops": 1.0}
    if fitted.load is not None:
        kind["load_seconds"] = fitted.load
    table: dict[str, Any] = {"classes": [kind], "edge": {"tflops": 1.0}}
    if fitted.averaging is not None:
        table["cloud"] = {"averaging_seconds": fitted.averaging}
    if fitted.examples is not None:
        table["examples"], table["eval_examples"] = fitted.examples
    return table
