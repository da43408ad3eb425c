"""What recovery costs: throughput with and without snapshots, a snapshot's size, time to go on.

    python benchmarks/recovery.py                       # all three, on small models
    python benchmarks/recovery.py price --sizes gpt2    # with random weights of GPT-2's size
    python benchmarks/recovery.py price --turns 9 --rounds 6 --ways off rounds
    python benchmarks/recovery.py recovery --plot docs/images/recovery.svg

`price` runs the same settings without snapshots, with one at each round's end, and with one also
every few steps, in turns. Wall time is the sum of the rounds from the second on. CPU time is that
of all nodes meanwhile, so that it counts also where others use the machine. `waits` is what device
and edge together stood still for snapshots, by their own count. `snapshots` writes and
reads again what such a run has left on the disk. `recovery` kills a node with SIGKILL at three
quarters of a round, and tells how much longer the round took than the next one, without a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import tomli_w

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import ROOT
from benchmarks.throughput import make_model, make_texts, processor
from sfl.stage.snapshots import Snapshots

WAYS: dict[str, dict[str, Any]] = {
    "off": {"snapshots": False},
    "rounds": {},
    "steps": {},  # and every so many steps
}
CODECS = ("none", "compact", "delta(token) | int8")
REPEATS = 20
LOOK = 0.25
"""Seconds between two words of a device on how far it is, so that it is killed where it should."""
SCRAPE = 2.0
"""Seconds between two looks at what nodes have counted."""
DEVICE = "device-0"
EDGE = "edge"


@dataclass(frozen=True, slots=True)
class Size:
    """A random Llama: its width, blocks and vocabulary; sequences of a batch, and their length."""

    hidden: int
    layers: int
    vocabulary: int
    batch: int
    length: int


SIZES = {
    "small": Size(256, 6, 2048, 4, 64),
    "gpt2": Size(768, 12, 50257, 2, 64),
}


@dataclass(frozen=True, slots=True)
class Case:
    """What is run: a model on the disk, its texts, rounds of so many steps."""

    size: Size
    model: Path
    texts: Path
    rounds: int
    steps: int
    codec: str
    heartbeat: float = 1.0

    @classmethod
    def made(cls, folder: Path, name: str, rounds: int, steps: int, codec: str = "none") -> Case:
        """With a model and texts made under `folder`."""
        size = SIZES[name]
        model, texts = folder / name, folder / f"{name}.jsonl"
        if not model.exists():
            make_model(model, size.hidden, size.layers, size.vocabulary)
            make_texts(texts, 256)
        return cls(size, model, texts, rounds, steps, codec)

    def settings(self, run: str, folder: Path, recovery: dict[str, Any]) -> dict[str, Any]:
        """The run's file."""
        return {
            "run": {"id": run, "rounds": self.rounds, "output_dir": str(folder)},
            "model": {"path": str(self.model), "max_length": self.size.length},
            "training": {"batch_size": self.size.batch, "local_steps": self.steps},
            "codec": {"activation": self.codec, "gradient": self.codec},
            "data": {"train": str(self.texts), "eval_fraction": 0.01, "blocks": "first"},
            "evaluation": {"every": self.rounds, "full": False, "max_examples": 2},
            "recovery": recovery,
            "network": {"heartbeat_interval": self.heartbeat},
            "edge": {"cache_dir": str(folder / "cache")},
            "devices": [{"name": DEVICE, "cut_layer": 2, "cache_dir": str(folder / "cache")}],
        }


class Launched:
    """A run under way: `sfl run`, its status and the processes of its nodes."""

    def __init__(self, case: Case, folder: Path, recovery: dict[str, Any]) -> None:
        self.folder = folder
        self.run = folder / "r"
        path = folder / "run.toml"
        path.write_text(tomli_w.dumps(case.settings("r", folder, recovery)))
        command = [sys.executable, "-m", "sfl.cli", "run", str(path)]
        self._said = (folder / "said.txt").open("w+")
        self._process = subprocess.Popen(
            command, stdout=self._said, stderr=subprocess.STDOUT, cwd=ROOT
        )

    def looks(self, seconds: float = 0.05) -> Iterator[dict[str, Any]]:
        """Its status, again and again, until it has ended. Raises SystemExit where it fails."""
        while self._process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                yield json.loads((self.run / "status.json").read_text())
            time.sleep(seconds)
        if self._process.returncode != 0:
            self._said.seek(0)
            raise SystemExit(self._said.read())

    def nodes(self) -> dict[str, psutil.Process]:
        """By kind."""
        found = {}
        for child in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                words = " ".join(child.cmdline()).split()
                if words[:1] == ["sfl"] and len(words) > 2:
                    found[words[1]] = child
        return found

    def waited(self) -> float:
        """Seconds that device and edge have waited for snapshots, by the edge's /metrics."""
        with contextlib.suppress(OSError):
            found = re.search(r"metrics at (http\S+)", (self.run / "logs" / "edge.log").read_text())
            if found is not None:
                with urllib.request.urlopen(found[1], timeout=5) as answer:
                    text: str = answer.read().decode()
                return sum(map(float, re.findall(r"(?m)^sfl_snapshot_wait\S+ (\S+)$", text)))
        return 0.0

    def round_seconds(self) -> dict[int, float]:
        """How long each round took, by its number."""
        lines = (self.run / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return {own["round"]: own["seconds"] for own in records if own["kind"] == "cloud"}


@contextlib.contextmanager
def launched(case: Case, recovery: dict[str, Any]) -> Iterator[Launched]:
    """A run in a folder of its own, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="recovery-", dir=case.model.parent))
    run = Launched(case, folder, recovery)
    try:
        yield run
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- the price -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Price:
    """Of the rounds after the first: seconds that passed, CPU seconds of all nodes, and seconds in
    which device and edge could only wait for a snapshot to be on the disk."""

    wall: float
    cpu: float
    waited: float


def priced(case: Case, recovery: dict[str, Any]) -> Price:
    """One run."""
    first = last = began = waited = looked = 0.0
    nodes: list[psutil.Process] = []
    with launched(case, recovery) as run:
        for status in run.looks():
            if status["phase"] != "training" or status["round"] < 2:
                continue
            if not nodes:
                nodes = list(run.nodes().values())
                first, began, looked = used(nodes), run.waited(), time.monotonic()
            last = used(nodes) or last
            if time.monotonic() - looked > SCRAPE:  # each costs the edge some of its time
                waited, looked = run.waited() or waited, time.monotonic()
        rounds = run.round_seconds()
    wall = sum(seconds for number, seconds in rounds.items() if 2 <= number <= case.rounds)
    return Price(wall, last - first, waited - began)


def used(nodes: list[psutil.Process]) -> float:
    """CPU seconds of these processes so far; 0 where one has ended."""
    try:
        times = [node.cpu_times() for node in nodes]
    except psutil.Error:
        return 0.0
    return sum(own.user + own.system for own in times)


def show_price(folder: Path, options: argparse.Namespace) -> None:
    """One table for each size: each way's medians, and how much more than without snapshots."""
    for name in options.sizes:
        case = Case.made(folder, name, options.rounds, options.steps)
        ways = {way: WAYS[way] for way in ("off", *options.ways)}
        if "steps" in ways:
            ways["steps"] = {"snapshot_steps": options.every}
        found: dict[str, list[Price]] = {way: [] for way in ways}
        for turn in range(options.turns):
            order = list(ways) if turn % 2 == 0 else list(reversed(ways))
            for way in order:
                price = priced(case, ways[way])
                found[way].append(price)
                sys.stderr.write(f"{name}, {titled(way, options.every)}: {price}\n")
        counted = (case.rounds - 1) * case.steps
        print(
            f"\n{name}: {case.size}; {counted} steps in {case.rounds - 1} rounds, "
            f"{options.turns} turns"
        )
        for way, prices in found.items():
            print(f"  {titled(way, options.every):34} {told(prices, found['off'], case)}")


def titled(way: str, every: int) -> str:
    """A way in words."""
    return {
        "off": "no snapshots",
        "rounds": "one at each round's end",
        "steps": f"and after every {every} steps",
    }[way]


def told(prices: list[Price], off: list[Price], case: Case) -> str:
    """Medians, lowest and highest, and the median of each turn's ratio to that without."""
    wall = compared("wall", [own.wall for own in prices], [own.wall for own in off])
    cpu = compared("CPU", [own.cpu for own in prices], [own.cpu for own in off])
    tokens = (case.rounds - 1) * case.steps * case.size.batch * case.size.length
    rate = tokens / median(price.wall for price in prices)
    still = median(price.waited for price in prices) / (case.rounds - 1)
    return f"{rate:6,.0f} tokens/s; {wall}; {cpu}; waits {still * 1e3:.0f} ms a round"


def compared(what: str, seconds: list[float], off: list[float]) -> str:
    """The same of one kind of seconds."""
    more = [own / without - 1 for own, without in zip(seconds, off, strict=True)]
    spread = f"({min(seconds):.2f} to {max(seconds):.2f})"
    apart = f"({min(more):+.1%} to {max(more):+.1%})"
    return f"{what} {median(seconds):6.2f} s {spread}, {median(more):+.1%} {apart}"


# -- a snapshot ------------------------------------------------------------------------------------


def show_snapshots(folder: Path, options: argparse.Namespace) -> None:
    """Bytes of each side's snapshots, and medians of writing and reading them."""
    print(f"\nsnapshots: medians of {REPEATS} writes and reads on this disk")
    for name in options.sizes:
        for codec in options.codecs:
            case = Case.made(folder, name, 2, max(3, options.every + 1), codec)
            kept = folder / "kept"
            shutil.rmtree(kept, ignore_errors=True)
            with launched(case, {"snapshot_steps": options.every}) as run:
                for status in run.looks(0.02):
                    if status["round"] == 2:
                        keep(run.folder / "cache" / "recovery", kept)
            for path in sorted(kept.rglob("*.safetensors")):
                print(f"  {name}, {codec:20} {timed(path, folder / 'again')}")


def keep(source: Path, aside: Path) -> None:
    """Copy the first of each side's snapshots of each kind, while the run still has them."""
    with contextlib.suppress(OSError):  # the run ends, and removes them
        keep_each(source, aside)


def keep_each(source: Path, aside: Path) -> None:
    """The same. Raises OSError where they go meanwhile."""
    for path in source.rglob("*.safetensors"):
        side = "edge" if path.parents[1].name == EDGE else "device"
        kind = path.name.partition("-")[0]
        target = aside / f"{side}-{kind}" / path.name
        if not target.parent.exists() and not path.name.startswith("."):
            target.parent.mkdir(parents=True)
            with contextlib.suppress(OSError):
                shutil.copyfile(path, target)


def timed(path: Path, again: Path) -> str:
    """A snapshot written and read again: its bytes, and milliseconds."""
    key = run_key(path)
    found = Snapshots(path.parent, key)
    (point,) = found.points()
    snapshot = found.read(point)
    assert snapshot is not None, "it was sound a moment ago"
    target = Snapshots(again, key)
    last = path.name.startswith("round")
    write, busy = clocked(partial(target.write, snapshot, last))
    read, _ = clocked(partial(target.read, point))
    target.clear()
    kind = path.parent.name.replace("-round", ", a round's end").replace("-step", ", within one")
    size = path.stat().st_size
    return (
        f"{kind:22} {size:>12,} bytes, write {write * 1e3:7.1f} ms (CPU {busy * 1e3:6.1f} ms), "
        f"read {read * 1e3:7.1f} ms"
    )


def run_key(path: Path) -> str:
    """Of the run that a snapshot is of, by its header."""
    import safetensors

    with safetensors.safe_open(path, "numpy") as file:
        told: dict[str, Any] = json.loads((file.metadata() or {})["recovery"])
    return str(told["run"])


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    """Median seconds, and median CPU seconds."""
    seconds, busy = [], []
    for _ in range(REPEATS):
        began, used_before = time.perf_counter(), time.process_time()
        work()
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - used_before)
    return median(seconds), median(busy)


# -- recovery --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Killed:
    """A kind of node that was killed in round 2, with a snapshot `every` so many steps, or none."""

    steps: int
    victim: str
    every: int
    alone: float
    """Seconds that a round takes without a fault."""
    longer: float
    """Seconds that round 2 took beyond that."""
    again: int
    """Steps that were done and had to be done again."""

    def __str__(self) -> str:
        wide = f"every {self.every}" if self.every else "none"
        return (
            f"{self.steps:5}  {self.alone:11.2f} s  {self.victim:6}  {wide:>10}  "
            f"{self.longer:20.2f} s  {self.again} steps and what was in flight"
        )


def show_recovery(folder: Path, options: argparse.Namespace) -> None:
    """How much longer a round took in which a node was killed, by its length."""
    print("\nrecovery: killed at three quarters of round 2 of 3; sfl run waits 1 s to start again")
    print("  steps  round 3 alone  victim  every step  round 2 took longer by  part done again")
    rows = []
    for steps in options.lengths:
        case = replace(Case.made(folder, options.sizes[0], 3, steps), heartbeat=LOOK)
        for victim in ("device", "edge"):
            for every in (0, options.every):
                rows.append(recovered(case, victim, every, options.kills))
                print(f"  {rows[-1]}", flush=True)
    if options.plot is not None:
        draw(rows, options.plot)


def recovered(case: Case, victim: str, every: int, kills: int) -> Killed:
    """Medians of so many runs."""
    longer, alone, again = [], [], 0
    for _ in range(kills):
        hit = 0
        with launched(case, {"snapshot_steps": every}) as run:
            for status in run.looks():
                step = status["devices"][0]["step"]
                if not hit and status["round"] == 2 and 3 * case.steps // 4 <= step < case.steps:
                    os.kill(run.nodes()[victim].pid, signal.SIGKILL)
                    hit = step
            rounds = run.round_seconds()
        assert hit, f"round 2 of {case.steps} steps was over before it was seen"
        longer.append(rounds[2] - rounds[3])
        alone.append(rounds[3])
        again = max(again, hit if not every else hit % every)
    return Killed(case.steps, victim, every, median(alone), median(longer), again)


def draw(rows: list[Killed], path: Path) -> None:
    """A round's length against what a kill in it costs."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "sfl"
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4.0))
    lines: dict[tuple[int, str], list[Killed]] = {}
    for row in rows:
        lines.setdefault((row.every, row.victim), []).append(row)
    for (every, victim), own in lines.items():
        label = f"{victim}, {f'snapshots every {every} steps' if every else 'at rounds only'}"
        own.sort(key=lambda row: row.alone)
        axis.plot(
            [row.alone for row in own],
            [row.longer for row in own],
            color="#1f6f8b" if every else "#c0562b",
            linestyle="-" if victim == "device" else "--",
            marker="o",
            markersize=4,
            linewidth=1.6,
            label=label,
        )
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("seconds of a round without a fault")
    axis.set_ylabel("seconds longer with a kill at 3/4")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    print(f"\nplot: {path}")


def arguments() -> argparse.Namespace:
    """What is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", nargs="*", default=["price", "snapshots", "recovery"])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="beside `off`")
    parser.add_argument("--turns", type=int, default=5, help="how often each way is run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help="of a round")
    parser.add_argument("--every", type=int, default=4, help="steps between snapshots in a round")
    parser.add_argument("--codecs", nargs="+", default=CODECS, help="of snapshots' runs")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 64, 256], help="of a round")
    parser.add_argument("--kills", type=int, default=3, help="how often each node is killed")
    parser.add_argument("--plot", type=Path, help="where to draw what `recovery` found")
    return parser.parse_args()


def main() -> None:
    """Print what was asked for."""
    options = arguments()
    shows = {"price": show_price, "snapshots": show_snapshots, "recovery": show_recovery}
    with tempfile.TemporaryDirectory() as temporary:
        print(f"{processor()}; {len(os.sched_getaffinity(0))} cores")
        for what in options.what:
            shows[what](Path(temporary), options)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
