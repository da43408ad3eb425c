"""Rounds of two and of three tiers over slow links, measured and foretold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import tomli_w

from benchmarks.cost_model import LAYERS, heard, make_data, make_model, reports
from benchmarks.runs import effective, run
from sfl.cost.closed_loop import round_ends
from sfl.cost.predict import turns_of
from sfl.cost.step import step_cost
from sfl.cost.tiers import NOTHING_BEHIND, Behind, num_stations
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost, StageCost, Workload
from sfl.metrics.snapshot import NodeSnapshot
from sfl.planners.observed import Observations, StageReport
from sfl.report.journal import read_journal
from sfl.rounds import AdapterReady, Event, Fact
from sfl.rounds.values import RoundReport

DEVICES = ("harbour", "meadow")
CUT, STAGE_CUT = 2, 5
HIDDEN = 96
ROUNDS = 3
FAST, SLOW = 20.0, 1.0
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
FITTED = Way("two tiers", 5.0)


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
            make_model(self._model, HIDDEN)
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
    """What devices and their edge cost, and a stage where one was seen."""

    devices: Mapping[str, DeviceCost]
    edge: EdgeCost
    stage: NodeCost | None


def fit(measured: Measured) -> Fit:
    """From what a run's nodes showed."""
    seen = Observations()
    for number in range(1, ROUNDS + 1):
        own = [one for one in reports(measured.events) if one.round == number]
        closed = [e for e in measured.events if isinstance(e, AdapterReady) and e.round == number]
        stages = [told for event in closed for told in _stages(event)]
        seen = seen.with_round(map(heard, own), stages=stages)
    devices = {name: cost for name in DEVICES if (cost := seen.device_cost(name)) is not None}
    edge = seen.edge_cost("edge")
    assert edge is not None and len(devices) == len(DEVICES), "a round tells all costs"
    return Fit(devices, edge, seen.stage_node("stage"))


def _stages(event: AdapterReady) -> Iterator[StageReport]:
    for own in map(NodeSnapshot.from_json, event.servers):
        if own.kind == "stage":
            yield StageReport(own.name, own.costs, own.started_at, own.dtype)


def foretell(known: Fit, way: Way, tokens: Mapping[str, float], steps: int) -> float:
    """Seconds of a round: that of its slowest device. Loopback itself takes no time.

    A stage that was not seen is as quick as the edge.
    """
    behind = NOTHING_BEHIND
    if way.tiers == 3:
        stage = StageCost(known.stage or known.edge.node, _link(way.hop))
        behind = Behind((stage,), (STAGE_CUT,))
    turns = []
    for name in DEVICES:
        work = Workload(LAYERS, HIDDEN, round(tokens[name]), steps)
        device = replace(known.devices[name], link=_link(way.link))
        turns.append(turns_of(step_cost(work, device, known.edge, CUT, behind=behind)))
    return max(round_ends(turns, steps, num_stations(1, len(behind.stages))))


def _link(mbit: float) -> LinkCost:
    return LinkCost(mbit * 1e6 / 8, mbit * 1e6 / 8)


# -- the table -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Row:
    """One way: seconds of its rounds, and those foretold by the passes of each of its runs."""

    seconds: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    tokens: Mapping[str, float] = field(default_factory=dict)

    def take(self, measured: Measured, way: Way, steps: int) -> None:
        """One run more."""
        self.seconds += measured.rounds
        self.tokens = measured.tokens
        self.own.append(foretell(fit(measured), way, self.tokens, steps))


def show_all(folder: Path, codecs: Sequence[str], turns: int, steps: int) -> None:
    """Every codec, every panel."""
    print(f"{len(DEVICES)} devices, {steps} steps a round, medians; measured (least to most), ")
    print("foretold from a run of two tiers, and from the passes of the runs themselves")
    for codec in codecs:
        track = Track(folder, codec, steps)
        known = fit(track.run(FITTED))
        for panel in PANELS:
            print(f"\n{panel.title}, codec {codec}", flush=True)
            rows = run_in_turn(track, panel, turns, steps)
            show(known, rows, steps)


def run_in_turn(track: Track, panel: Panel, turns: int, steps: int) -> dict[Way, Row]:
    """A B A B ..."""
    rows = {way: Row() for way in panel.ways}
    for _ in range(turns):
        for way, row in rows.items():
            row.take(track.run(way), way, steps)
    return rows


def show(known: Fit, rows: Mapping[Way, Row], steps: int) -> None:
    """A line for each way, with its ratios to the first."""
    figures = {
        way: (median(row.seconds), foretell(known, way, row.tokens, steps), median(row.own))
        for way, row in rows.items()
    }
    first = next(iter(figures.values()))
    for way, own in figures.items():
        ratios = [one / base for one, base in zip(own, first, strict=True)]
        least, most = min(rows[way].seconds), max(rows[way].seconds)
        print(
            f"  {way.title:42}{own[0]:6.2f} s ({least:.2f} to {most:.2f}) {ratios[0]:5.2f}   "
            f"foretold{own[1]:6.2f} s ({own[1] / own[0] - 1:+.0%}) {ratios[1]:5.2f}   "
            f"by its own passes{own[2]:6.2f} s ({own[2] / own[0] - 1:+.0%}) {ratios[2]:5.2f}",
            flush=True,
        )
