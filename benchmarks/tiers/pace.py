"""Rounds of two and of three tiers over slow links, measured and foretold."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.cost_model import HIDDEN, LAYERS, heard, make_data, make_model, reports
from benchmarks.runs import effective, run
from sfl.cost.closed_loop import Turns, round_ends
from sfl.cost.predict import turns_of
from sfl.cost.step import step_cost
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, Workload
from sfl.metrics.snapshot import NodeSnapshot
from sfl.planners.observed import EdgeReport, Observations
from sfl.report.journal import read_journal
from sfl.rounds import AdapterReady, Event, Fact
from sfl.rounds.values import RoundReport

DEVICES = ("harbour", "meadow")
CUT, STAGE_CUT = 2, 5
EDGE, HOP_UP, STAGE, HOP_DOWN = range(4)
ROUNDS = 3
FAST, SLOW = 100.0, 5.0
"""Mbit/s of the two hops: one is 20 times as slow as the other."""
CODECS = ("none", "compact")


@dataclass(frozen=True, slots=True)
class Way:
    """Where the model's end is, and the rates (Mbit/s) of a device's link and of the hop behind the
    edge, the same both ways."""

    title: str
    link: float
    hop: float = 0.0

    @property
    def tiers(self) -> int:
        """Two where no hop is behind the edge."""
        return 3 if self.hop else 2


@dataclass(frozen=True, slots=True)
class Panel:
    """Ways that are run in turn; the first is the reference."""

    title: str
    ways: tuple[Way, ...]


PANELS = (
    Panel(
        "the hop behind the edge has 1/20 of a device's rate",
        (
            Way("two tiers", FAST),
            Way("three tiers", FAST, SLOW),
            Way("two tiers, the server behind the slow hop", SLOW / len(DEVICES)),
        ),
    ),
    Panel(
        "a device's link has 1/20 of the rate of the hop",
        (Way("two tiers", SLOW), Way("three tiers", SLOW, FAST)),
    ),
)
FITTED = Way("fitted on", 30.0)


@dataclass(frozen=True, slots=True)
class Measured:
    """A run: what its nodes showed, and each device's reports of rounds after the first."""

    events: tuple[Event | Fact, ...]

    @property
    def late(self) -> list[RoundReport]:
        """Without the first round, which warms up."""
        return [one for one in reports(self.events) if one.round > 1]

    @property
    def rounds(self) -> list[float]:
        """Seconds of each round: its slowest device."""
        numbers = sorted({one.round for one in self.late})
        return [max(r.train_seconds for r in self.late if r.round == n) for n in numbers]

    @property
    def tokens(self) -> dict[str, float]:
        """Real tokens of a step, by device."""
        found = {}
        for name in DEVICES:
            own = [one for one in self.late if one.device == name]
            found[name] = sum(r.num_tokens for r in own) / sum(r.num_steps for r in own)
        return found


class Track:
    """Runs ways with one codec, on one model and data, in a folder."""

    def __init__(self, folder: Path, codec: str, steps: int) -> None:
        self._folder, self._codec, self._steps = folder, codec, steps
        self._model = folder / "model"
        self._data = folder / "data.jsonl"
        if not self._model.exists():
            make_model(self._model)
            make_data(self._data)
        self._count = 0

    def run(self, way: Way) -> Measured:
        """`sfl run` to its end."""
        self._count += 1
        name = f"{self._codec}-{self._count}"
        path = self._folder / f"{name}.toml"
        path.write_text(tomli_w.dumps(self._config(way)))
        run(path, self._folder, name, [])
        journal = read_journal(effective(self._folder, name), self._folder / name)
        assert journal is not None
        try:
            return Measured(tuple(entry.event for entry in journal.entries()))
        finally:
            journal.close()

    def _config(self, way: Way) -> dict[str, Any]:
        link = {"up_mbit": way.link, "down_mbit": way.link}
        tiers: dict[str, Any] = {"run": {"rounds": ROUNDS}}
        if way.tiers == 3:
            tiers["run"]["topology"] = "three_tier"
            tiers["stages"] = {"cuts": [STAGE_CUT], "up_mbit": way.hop, "down_mbit": way.hop}
            tiers["stage"] = {"threads": 1}
        return tiers | {
            "model": {"path": str(self._model), "max_length": 96},
            "training": {
                "batch_size": 8,
                "local_steps": self._steps,
                "micro_batches": 1,
                "computation": "lean",
            },
            "codec": {"activation": self._codec, "gradient": self._codec},
            "edge": {"threads": 1},
            "data": {"train": str(self._data), "eval_fraction": 0.1},
            "evaluation": {"every": ROUNDS, "max_examples": 8, "full": False},
            "devices": [
                {"name": name, "cut_layer": CUT, "threads": 1, "link": link} for name in DEVICES
            ],
        }


# -- foretold --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fit:
    """Costs of the devices and of a server, from a run of two tiers."""

    devices: dict[str, DeviceCost]
    edge: EdgeCost


def fit(measured: Measured) -> Fit:
    """From what its nodes showed."""
    seen = Observations()
    for event in measured.events:
        if isinstance(event, AdapterReady):
            for node in map(NodeSnapshot.from_json, event.servers):
                if node.kind == "edge":
                    word = EdgeReport("edge", node.costs, node.started_at, node.dtype)
                    seen = seen.with_edge(word)
    for number in range(1, ROUNDS + 1):
        own = [one for one in reports(measured.events) if one.round == number]
        seen = seen.with_round(map(heard, own))
    devices = {name: seen.device_cost(name) for name in DEVICES}
    edge = seen.edge_cost("edge")
    known = {name: cost for name, cost in devices.items() if cost is not None}
    assert edge is not None and len(known) == len(DEVICES), "a round tells all nodes' costs"
    return Fit(known, edge)


def foretell(known: Fit, way: Way, tokens: dict[str, float], steps: int) -> float:
    """Seconds of a round: that of its slowest device. A stage is as quick as the edge."""
    turns = []
    for name in DEVICES:
        work = Workload(LAYERS, HIDDEN, round(tokens[name]), steps)
        device = known.devices[name]
        device = replace(device, link=_link(way.link, device.link.latency))
        if way.tiers == 2:
            turns.append(turns_of(step_cost(work, device, known.edge, CUT)))
        else:
            hop = _link(way.hop, device.link.latency)
            turns.append(three_tiers(work, device, known.edge, hop))
    return max(round_ends(turns, steps, 4))


def _link(mbit: float, latency: float) -> LinkCost:
    return LinkCost(mbit * 1e6 / 8, mbit * 1e6 / 8, latency)


def three_tiers(work: Workload, device: DeviceCost, edge: EdgeCost, hop: LinkCost) -> Turns:
    """A step of one micro-batch through edge, hop and stage, and back.

    The hop is one queue each way for all devices of the edge; its messages are coded like others.
    """
    step, node, tokens = step_cost(work, device, edge, CUT), edge.node, work.tokens
    (leg,) = step.legs
    middle, deep = work.blocks(CUT, STAGE_CUT), work.blocks(STAGE_CUT, LAYERS)
    back = node.backward(tokens, middle) + node.step.seconds(STAGE_CUT - CUT)
    both = node.forward(tokens, deep) + node.backward(tokens, deep) + tokens * node.head.both
    encode, decode = node.encode.seconds(tokens), node.decode.seconds(tokens)
    visits = (
        (leg.head, node.forward(tokens, middle)),
        (encode, leg.bytes_up / hop.up),
        (hop.latency + device.handover + decode, both + node.step.seconds(LAYERS - STAGE_CUT)),
        (encode, leg.bytes_down / hop.down),
        (hop.latency + decode, back),
    )
    return Turns(visits, leg.down + step.backward, stations=(EDGE, HOP_UP, STAGE, HOP_DOWN, EDGE))


# -- the table -------------------------------------------------------------------------------------


def show_all(folder: Path, turns: int, steps: int) -> None:
    """Every codec, every panel."""
    for codec in CODECS:
        track = Track(folder, codec, steps)
        known = fit(track.run(FITTED))
        for panel in PANELS:
            print(f"\n{panel.title}, codec {codec}; {steps} steps of each of {len(DEVICES)} devices")
            for line in lines(track, known, panel, turns, steps):
                print(line, flush=True)


def lines(track: Track, known: Fit, panel: Panel, turns: int, steps: int) -> Iterator[str]:
    """One for each way, once all turns are over."""
    seconds: dict[Way, list[float]] = {way: [] for way in panel.ways}
    tokens: dict[str, float] = {}
    for _ in range(turns):
        for way in panel.ways:
            measured = track.run(way)
            seconds[way] += measured.rounds
            tokens = measured.tokens
    reference = statistics.median(seconds[panel.ways[0]])
    told = {way: foretell(known, way, tokens, steps) for way in panel.ways}
    for way, own in seconds.items():
        took, ratio = statistics.median(own), told[way] / told[panel.ways[0]]
        yield (
            f"  {way.title:42} {took:6.2f} s ({min(own):.2f} to {max(own):.2f})  "
            f"{took / reference:5.2f} of two tiers; foretold {told[way]:6.2f} s "
            f"({told[way] / took - 1:+.0%}), {ratio:.2f} of two"
        )
