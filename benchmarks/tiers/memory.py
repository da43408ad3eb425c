"""Peak memory of each tier, of real processes, beside a model per device and sequential SL."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.device_memory import device_peak, make_case
from benchmarks.edge_memory import CUTS, LENGTH, RANK, make_model
from benchmarks.edge_memory import run as reference
from benchmarks.light import Shape, each
from benchmarks.throughput import make_texts
from benchmarks.tiers.fleet import Fleet, Turns, play
from sfl.models.folder import open_model
from sfl.node.machine import memory

MB = 1e6
STAGE_CUT = 6
SFL = (2, 4, 8)
"""Devices for which a model each is measured, as far as memory allows."""
PROCESS, GRAPH = 900 * MB, 50 * MB
"""Of a server, and of a sequence's graph at a middle edge, about: whether a cell is tried."""


@dataclass(frozen=True, slots=True)
class Way:
    """How users train. `turns`: one user at each edge at a time.

    `whole` users of each edge train a whole batch, and the others a sequence: their adapter and
    moments are there, and no more graphs than these would be alive at once anyway. None: all do.
    """

    title: str
    three: bool = True
    turns: bool = False
    stages: Mapping[str, Any] = field(default_factory=dict)
    edge: Mapping[str, Any] = field(default_factory=dict)
    whole: int | None = None


WAYS = {
    "turns": Way("three tiers, one user at each edge at a time", turns=True, whole=2),
    "shared": Way(
        "three tiers, all at once, recompute, one deep LoRA",
        stages={"adapters": "shared"},
        edge={"recompute": True},
    ),
    "at once": Way("three tiers, all at once"),
    "two": Way("two tiers, one server", three=False, whole=8),
}


@dataclass(frozen=True, slots=True)
class Peaks:
    """Bytes at most of each process, imports included."""

    edges: tuple[float, ...]
    stage: float = 0.0
    cloud: float = 0.0

    @property
    def largest(self) -> float:
        """Of the largest server."""
        return max(*self.edges, self.stage)

    @property
    def total(self) -> float:
        """Of all servers together, the cloud too."""
        return sum(self.edges) + self.stage + self.cloud


class Cells:
    """What was measured with one batch, in a file so that it can be taken up again."""

    def __init__(self, scratch: Path, batch: int, kept: Path | None, measures: bool) -> None:
        self._scratch, self._batch, self._kept, self._measures = scratch, batch, kept, measures
        self._all: dict[str, dict[str, Any]] = {}
        if kept is not None and kept.exists():
            self._all = json.loads(kept.read_text())
        self._own = self._all.setdefault(f"batch {batch} x {LENGTH}", {})

    def peaks(self, key: str, users: int, edges: int) -> Peaks | None:
        """Of a run; None where memory has no room for it."""
        way = WAYS[key]
        edges = edges if way.three else 1
        needed = (edges + way.three) * PROCESS
        if way.three and not way.turns and not way.edge:
            needed += users * self._batch * GRAPH
        found = self._cell(
            f"{key} {users} {edges}",
            needed,
            lambda: measure(self._model(), way, users, edges, self._batch),
        )
        return (
            None if found is None else Peaks(tuple(found["edges"]), found["stage"], found["cloud"])
        )

    def sequential(self, users: int) -> float | None:
        """Of a server with one user and one model at a time."""
        found = self._cell(f"sl {users}", 0.0, lambda: self._reference("sl", users))
        return None if found is None else float(found)

    def sfl(self, users: int) -> tuple[float, bool]:
        """Of a server with a model for each, and whether that was run; else by the slope."""
        known: dict[int, float] = {}
        for count in SFL:
            needed = _continued(known, count) if len(known) > 1 else 0.0
            run = partial(self._reference, "splitfed", count)
            found = self._cell(f"splitfed {count}", needed, run)
            if found is not None:
                known[count] = found
        return (known[users], True) if users in known else (_continued(known, users), False)

    def user(self) -> float | None:
        """Of a real device process with two blocks."""
        found = self._cell("user", 0.0, self._user)
        return None if found is None else float(found)

    def _user(self) -> float:
        texts = self._scratch / "texts.jsonl"
        make_texts(texts, 64)
        case = replace(make_case("gpt2", self._scratch / "models"), batch=self._batch)
        return MB * device_peak(case, 2, texts, self._scratch / "user", 1, None)["peak"]

    def _reference(self, mode: str, users: int) -> float:
        cell = reference(self._model(), "gpt2", mode, users, 8, self._batch)
        return cell["peak"] + cell["start"]

    def _cell(self, name: str, needed: float, run: Callable[[], Any]) -> Any:
        if name not in self._own:
            if not self._measures or needed > 0.8 * memory().usable:
                return None
            self._own[name] = run()
            if self._kept is not None:
                self._kept.write_text(json.dumps(self._all, indent=1) + "\n")
        return self._own[name]

    def _model(self) -> Path:
        folder = self._scratch / "gpt2"
        if not folder.exists():
            make_model(folder, "gpt2")
        return folder


def _continued(known: Mapping[int, float], users: int) -> float:
    few, many = min(known), max(known)
    return known[many] + (users - many) * (known[many] - known[few]) / (many - few)


# -- one run ---------------------------------------------------------------------------------------


def measure(model: Path, way: Way, users: int, edges: int, batch: int) -> dict[str, Any]:
    """Peak bytes of the processes of one run: a round of two steps of every user."""
    names = [f"user-{number:02}" for number in range(users)]
    places = [f"edge-{number}" for number in range(edges)]
    locks = [threading.Lock() if way.turns else None for _ in places]
    many = users if way.whole is None else way.whole
    shape = open_model(model)
    short, whole = (
        Shape(n, LENGTH, shape.hidden_size, shape.vocab_size, per_token=True) for n in (1, batch)
    )
    devices = [
        (Turns(name, whole if n // edges < many else short, locks[n % edges]), places[n % edges])
        for n, name in enumerate(names)
    ]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        own = {"cache_dir": str(folder / "cache"), "swap_dir": str(folder / "swap")}
        fleet = Fleet(
            folder,
            settings(model, way, names, places, batch),
            places,
            own | dict(way.edge),
            own if way.three else None,
        )
        summary = play(fleet, devices)
    return {
        "edges": [edge.peak_rss_bytes for edge in summary.edges],
        "stage": sum(stage.peak_rss_bytes for stage in summary.stages),
        "cloud": summary.cloud.peak_rss_bytes,
    }


def settings(
    model: Path, way: Way, names: list[str], edges: list[str], batch: int
) -> dict[str, Any]:
    """A run of one round; nothing is evaluated, because light devices say a score of their own."""
    stages = {"stages": {"cuts": [STAGE_CUT], **way.stages}} if way.three else {}
    return {
        "run": {
            "rounds": 1,
            "topology": "three_tier" if way.three else "vanilla",
            "edges": edges,
        },
        "model": {"path": str(model), "max_length": LENGTH},
        "lora": {"rank": RANK},
        "training": {"batch_size": batch, "local_steps": 2, "computation": "lean"},
        "codec": {"activation": "none", "gradient": "none"},
        "network": {"join_timeout": 1800.0, "round_timeout": 7200.0, "idle_timeout": 600.0},
        "devices": each(names, lambda name: {"cut_layer": CUTS[int(name[-2:]) % len(CUTS)]}),
        **stages,
    }


# -- the tables ------------------------------------------------------------------------------------


def show(cells: Cells, sizes: list[tuple[int, int]], ways: list[str]) -> None:
    """A table of each way, and its ratios in both readings of the paper's figure."""
    user = cells.user()
    sl = cells.sequential(sizes[0][0])
    assert user is not None and sl is not None, "these fit any machine that runs this"
    print(f"a user's process {user / MB:,.0f} MB; a server of sequential SL {sl / MB:,.0f} MB")
    for key in ways:
        print(f"\n{WAYS[key].title}")
        print(
            f"{'users':>7}{'edges':>7}{'SFL server':>13}{'edge':>9}{'stage':>9}{'largest':>9}"
            f"{'against SFL':>13}{'SL':>7}{'servers':>10}{'against SFL':>13}{'with users':>12}"
            f"{'against SFL':>13}"
        )
        for users, edges in sizes:
            peaks = cells.peaks(key, users, edges)
            model_each, run = cells.sfl(users)
            print(row(users, edges, peaks, (model_each, run), sl, user), flush=True)


def row(
    users: int, edges: int, peaks: Peaks | None, sfl: tuple[float, bool], sl: float, user: float
) -> str:
    """One line; `~` before what was not run."""
    head = f"{users:7}{edges:7}{('' if sfl[1] else '~') + f'{sfl[0] / MB:,.0f}':>13}"
    if peaks is None:
        return f"{head}   no room for it on this machine"
    return (
        f"{head}{max(peaks.edges) / MB:9,.0f}{peaks.stage / MB:9,.0f}{peaks.largest / MB:9,.0f}"
        f"{peaks.largest / sfl[0] - 1:+13.1%}{peaks.largest / sl - 1:+7.0%}"
        f"{peaks.total / MB:10,.0f}{peaks.total / sfl[0] - 1:+13.1%}"
        f"{(peaks.total + users * user) / MB:12,.0f}"
        f"{(peaks.total + users * user) / (sfl[0] + users * user) - 1:+13.1%}"
    )
