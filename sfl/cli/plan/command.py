"""`sfl plan`, as a person or a program sees it."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import sfl
from sfl.cli.plan.asked import Asked
from sfl.cli.plan.gather import Gathered, gather
from sfl.cost.predict import DevicePrediction
from sfl.node.files import on_disk, write_atomic
from sfl.planners.comparison import Comparison, Rival, compare
from sfl.planners.situation import planner_of, unfit
from sfl.report import text
from sfl.report.plan_figure import parts_of_round, plan_figure

MOST = 40
"""Devices that the table shows: the slowest."""
EQUAL = 0.0005
"""A share that nobody counts."""


def plan_and_show(asked: Asked) -> int:
    """Decide, and show what comes of it; the exit code."""
    console = Console(highlight=False)
    with Console(stderr=True).status("reading the settings ...") as status:
        gathered = gather(asked, lambda what: status.update(f"{what} ..."))
        status.update("planning ...")
        planner = planner_of(gathered.config.planner.policy)
        assert planner is not None, "somebody is asked"
        compared = compare(
            gathered.state,
            planner.decide(gathered.state),
            {one.name: (one.cut_layer, one.tail_layers) for one in gathered.config.devices},
        )
        with on_disk(asked.figure.absolute().parent, "--figure"):
            write_atomic(asked.figure, plan_figure(compared))
    if asked.as_json:
        typer.echo(json.dumps(as_dict(gathered, compared), indent=2))
    else:
        show(gathered, compared, console)
        console.print(f"figure: {asked.figure}", soft_wrap=True)
    return 0 if compared.foretold.devices else 1


def as_dict(gathered: Gathered, compared: Comparison) -> dict[str, Any]:
    """Plain values for JSON; names of numbers end in their unit."""
    decision, foretold = compared.decision, compared.foretold
    return {
        "sfl": sfl.__version__,
        "policy": decision.policy,
        "measured_devices": sorted(gathered.measured),
        "round_seconds": foretold.seconds,
        "bound_seconds": foretold.bound,
        "slowest": foretold.slowest,
        "joules": foretold.energy.joules,
        "energy_source": foretold.energy.source,
        "why": asdict(decision.why),
        "devices": {name: _device(gathered, compared, name) for name in decision.devices},
        "edges": {
            name: {"load_seconds": edge.load, "joules": edge.energy.joules}
            for name, edge in foretold.edges.items()
        },
        "stages": [
            {"load_seconds": stage.load, "hop_seconds": stage.hop} for stage in foretold.stages
        ],
        "edge_memory_bytes": gathered.edge_bytes,
        "stage_memory_bytes": list(gathered.stage_bytes),
        "rivals": [
            {
                "name": rival.name,
                "round_seconds": rival.seconds,
                "gain": rival.gain(foretold.seconds),
            }
            for rival in compared.rivals
        ],
        "notes": list(gathered.notes),
    }


def _device(gathered: Gathered, compared: Comparison, name: str) -> dict[str, Any]:
    choice, own = compared.decision.devices[name], compared.foretold.devices.get(name)
    values: dict[str, Any] = {
        "cut_layer": choice.cut_layer,
        "stage_cuts": list(choice.stage_cuts or gathered.config.stage_cuts(name)),
        "tail_layers": choice.tail_layers,
        "takes_part": choice.takes_part,
        "activation": choice.activation,
        "gradient": choice.gradient,
        "share": choice.share,
    }
    if own is None:
        return values | {"reason": unfit(gathered.state).get(name, "not chosen")}
    return values | {
        "round_seconds": own.seconds,
        **{f"{part.replace(' ', '_')}_seconds": value for part, value in parts_of(own).items()},
        "memory_bytes": own.memory,
        "bytes_up": own.bytes_up,
        "bytes_down": own.bytes_down,
        "joules": own.energy.joules,
    }


def parts_of(own: DevicePrediction) -> dict[str, float]:
    """Seconds of each part of a round, and what the device waits for others."""
    return {**own.alone, "waits": max(0.0, own.seconds - own.alone_seconds)}


def show(gathered: Gathered, compared: Comparison, console: Console) -> None:
    """The table at its full width, then what it comes to."""
    table = _table(gathered, compared)
    whole = console.measure(table, options=console.options.update_width(1000)).maximum
    console.width = max(console.width, whole)
    console.print(table)
    for line in sentences(gathered, compared):
        console.print(Text(line), soft_wrap=True)


def _table(gathered: Gathered, compared: Comparison) -> Table:
    """The slowest devices first."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    parts = parts_of_round(compared)
    for heading in ("device", "cut", *parts, "round", "memory", "sent", "received", "energy"):
        table.add_column(heading, justify="left" if heading == "device" else "right", no_wrap=True)
    devices = compared.foretold.devices
    ranked = sorted(devices, key=lambda name: (-devices[name].seconds, name))
    for name in ranked[:MOST]:
        table.add_row(*_cells(gathered, compared, name))
    return table


def _cells(gathered: Gathered, compared: Comparison, name: str) -> tuple[str, ...]:
    own, choice = compared.foretold.devices[name], compared.decision.devices[name]
    device = next(one for one in gathered.state.devices if one.name == name)
    cut = ", ".join(map(str, (choice.cut_layer, *(choice.stage_cuts or device.stage_cuts))))
    cut += f" + {choice.tail_layers}" if choice.tail_layers else ""
    budget = device.memory
    memory = text.size(own.memory) + ("" if budget is None else f" of {text.size(budget)}")
    parts = parts_of(own)
    return (
        name,
        cut,
        *(text.duration(parts[part]) for part in parts_of_round(compared)),
        text.duration(own.seconds),
        memory,
        text.size(own.bytes_up),
        text.size(own.bytes_down),
        f"{own.energy.joules:.3g} J {own.energy.source}" if own.energy.joules else "–",
    )


def sentences(gathered: Gathered, compared: Comparison) -> list[str]:
    """What the table comes to, beside what would be simpler."""
    foretold, policy = compared.foretold, compared.decision.policy
    why = compared.decision.why
    length, least = text.duration(foretold.seconds), text.duration(foretold.bound)
    lines = [f"{len(foretold.devices) - MOST} devices more are quicker than these."]
    return [
        *(lines if len(foretold.devices) > MOST else ()),
        f"{policy}: a round of {length}, and it can't be shorter than {least}. It waits for "
        f"{foretold.slowest or 'nobody'}.",
        *map(partial(_beside, foretold.seconds), compared.rivals),
        *([f"Note: {why.note}."] if why.note else ()),
        *(
            f"Edge {name} computes {text.duration(edge.load)} of the round."
            for name, edge in foretold.edges.items()
        ),
        *(
            f"Stage {number} behind the edges computes {text.duration(stage.load)} of it, and the "
            f"busiest hop to it carries messages one way for {text.duration(stage.hop)}."
            for number, stage in enumerate(foretold.stages, 1)
        ),
        f"An edge needs {text.size(gathered.edge_bytes)} of memory at most, whatever is chosen.",
        *(
            f"Stage {number} behind it needs {text.size(needed)} at most."
            for number, needed in enumerate(gathered.stage_bytes, 1)
        ),
        *(f"{name} {reason}." for name, reason in unfit(gathered.state).items()),
        *gathered.notes,
    ]


def _beside(seconds: float, rival: Rival) -> str:
    share = rival.gain(seconds)
    told = "as long" if abs(share) < EQUAL else f"the plan saves {text.percent(share)}"
    if share <= -EQUAL:
        told = f"the plan is {text.percent(-share)} longer"
    return f"  {rival.name}: {text.duration(rival.seconds)}, {told}"
