"""`python -m tests.faults.soak [MINUTES [FOLDER]]`: a long run whose devices come and go.

Devices are killed, stopped and started again, and links break, all the time. What each role holds
is sampled: memory (also after a garbage collection), threads, open files, sockets. A line through
the samples behind the warm-up is printed for each, with its spread. Exit code 1 where one rises by
more than its bound. `FOLDER/soak.csv` has all samples, `FOLDER/soak.png` a plot. Where anything is
wrong the nodes' logs are there too.
"""

from __future__ import annotations

import csv
import json
import math
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.faults.lab import Lab
from tests.faults.setup import Setup

COUNT = 8
EVERY = 2.0
"""Seconds between two things that happen to the fleet."""
WARM_UP = 0.25
"""So much of the time is not looked at."""
ENDLESS = 1_000_000
SOON = 0.1
"""Hours of samples behind the warm-up; in fewer, memory still grows to what it takes."""
STEADY = ("d0", "d1")
"""Devices whose process stays, while their links break; the others' processes come and go."""
MB = 1e6
STOPPED = (130, -signal.SIGTERM)
"""How a node ends that is told to stop; the second where it was told before it could heed it."""
STILL = ("hangs", "exit code -9", *(f"exit code {code:d}" for code in STOPPED))
"""How a node may be found at the end: at work, or just disturbed."""


@dataclass(frozen=True)
class Bound:
    """By how much a quantity may rise: an hour's rate; and in all in a run that is soon over."""

    unit: float
    an_hour: float
    in_all: float


BOUNDS = {
    "rss": Bound(MB, 24.0, 96.0),
    "rss_after_gc": Bound(MB, 24.0, 96.0),
    "threads": Bound(1, 2.0, 6.0),
    "sockets": Bound(1, 2.0, 6.0),
    "files": Bound(1, 2.0, 6.0),
}


@dataclass(frozen=True)
class Slope:
    """A line through one quantity of one process; `an_hour` has twice its standard error beside."""

    node: str
    what: str
    first: float
    last: float
    an_hour: float
    spread: float
    hours: float

    @property
    def holds(self) -> bool:
        """Whether it surely rises by no more than it may."""
        bound = BOUNDS[self.what]
        surely = self.an_hour - self.spread
        if self.hours < SOON:
            return surely * self.hours <= bound.in_all
        if bound.unit == 1:  # of what is counted: a pool's last thread may come at any moment
            return surely * min(1.0, self.hours) <= bound.an_hour
        return surely <= bound.an_hour


class Soak(Lab):
    """A fleet that is disturbed for so many minutes."""

    def __init__(self, folder: Path, minutes: float, seed: int = 0, count: int = COUNT) -> None:
        super().__init__(folder, Setup(rounds=ENDLESS, count=count, strikes=ENDLESS))
        self._drawn = random.Random(seed)
        self.minutes = minutes
        self.limit = 60 * minutes
        self.most_restarts = ENDLESS
        self.period = min(5.0, 60 * minutes / 40)
        self.happened = 0
        self._next = time.monotonic() + 10 * EVERY
        (folder / "sample").write_text(str(self.period))

    def place(self) -> None:
        self.stand_between("device")
        self.stand_between("cloud")

    def _supervise(self) -> None:
        super()._supervise()
        for name, node in list(self.nodes.items()):
            if node.poll() in STOPPED:
                self.start_again(name)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            self.happened += 1
            self._disturb()

    def _disturb(self) -> None:
        """Something happens: mostly to a device, now and then to a link."""
        draw = self._drawn.random()
        if draw < 0.1:
            self.proxies["cloud"].cut()
        elif draw < 0.4:
            self.proxies["device"].cut()
        else:
            whom = self._drawn.choice([n for n in self.setup.devices if n not in STEADY])
            kind = self._drawn.choice((signal.SIGKILL, signal.SIGTERM))
            self.nodes[whom].send_signal(kind)

    def status(self) -> dict[str, object]:
        path = self.run / "status.json"
        found: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def samples(self) -> Iterator[dict[str, object]]:
        return (one for one in self.seen() if one["what"] == "sample")


def slopes(samples: Sequence[dict[str, object]]) -> list[Slope]:
    """Of each quantity of each process that was there all the time behind the warm-up."""
    began, ended = (pick(float(one["at"]) for one in samples) for pick in (min, max))  # type: ignore[arg-type]
    warm = began + WARM_UP * (ended - began)
    found = []
    of: dict[tuple[str, int], list[dict[str, object]]] = {}
    for one in samples:
        if float(one["at"]) >= warm:  # type: ignore[arg-type]
            of.setdefault((str(one["node"]), int(one["pid"])), []).append(one)  # type: ignore[call-overload]
    for (node, _), own in sorted(of.items()):
        times = np.array([float(one["at"]) for one in own]) / 3600  # type: ignore[arg-type]
        if len(own) < 5 or times[-1] - times[0] < 0.8 * (ended - warm) / 3600:
            continue
        for what, bound in BOUNDS.items():
            values = np.array([float(one[what]) for one in own]) / bound.unit  # type: ignore[arg-type]
            slope, error = line(times, values)
            hours = float(times[-1] - times[0])
            ends = float(values[0]), float(values[-1])
            found.append(Slope(node, what, *ends, slope, 2 * error, hours))
    return found


def line(times: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Least squares: the slope and its standard error."""
    centred = times - times.mean()
    square = float((centred**2).sum())
    slope = float((centred * values).sum()) / square
    rest = values - values.mean() - slope * centred
    return slope, math.sqrt(float((rest**2).sum()) / max(1, len(times) - 2) / square)


def table(found: Sequence[Slope]) -> str:
    rows = ["| node | what | first | last | an hour | spread | |", "|---|---|---|---|---|---|---|"]
    rows += [
        f"| {one.node} | {one.what} | {one.first:.1f} | {one.last:.1f} | {one.an_hour:+.1f} "
        f"| {one.spread:.1f} | {'flat' if one.holds else 'RISES'} |"
        for one in found
    ]
    return "\n".join(rows)


def keep(folder: Path, samples: Sequence[dict[str, object]]) -> None:
    """All samples as a table, and a plot of them."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    names = ("at", "node", "pid", *BOUNDS)
    with (folder / "soak.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, names, extrasaction="ignore")
        rows.writeheader()
        rows.writerows(samples)
    figure = Figure(figsize=(10, 12))
    began = min(float(one["at"]) for one in samples)  # type: ignore[arg-type]
    for place, (what, bound) in zip(
        figure.subplots(len(BOUNDS), sharex=True), BOUNDS.items(), strict=True
    ):
        place.set_ylabel(what if bound.unit == 1 else f"{what}, MB")
        for node in sorted({str(one["node"]) for one in samples}):
            own = [one for one in samples if one["node"] == node]
            times = [(float(one["at"]) - began) / 60 for one in own]  # type: ignore[arg-type]
            values = [float(one[what]) / bound.unit for one in own]  # type: ignore[arg-type]
            place.plot(times, values, ".", markersize=2, label=node)
    place.set_xlabel("minutes")
    place.legend(fontsize="small", ncol=5)
    figure.savefig(folder / "soak.png", dpi=100)


def keep_logs(folder: Path, kept: Path) -> None:
    """What each node has said."""
    for path in folder.rglob("*.log"):
        shutil.copy(path, kept / "-".join(path.relative_to(folder).parts))


def soaked(
    folder: Path, minutes: float, count: int = COUNT
) -> tuple[list[str], list[Slope], list[dict[str, object]], str]:
    """What is wrong after such a run, its slopes, all samples, and a line of what went on."""
    lab = Soak(folder, minutes, count=count)
    told = [one for one in lab.play() if not one.endswith(STILL)]
    samples = list(lab.samples())
    found = slopes(samples)
    wrong = told + [f"{one.node}: {one.what} rises" for one in found if not one.holds]
    status = lab.status()
    lacking = {"cloud", "edge", *STEADY} - {one.node for one in found}
    wrong += [f"{name} was not there all the time" for name in sorted(lacking)]
    restarts = sum(lab.restarts.values())
    line = f"{minutes:g} minutes, round {status.get('round')}, {restarts} restarts, "
    return wrong, found, samples, line + f"{lab.happened} disturbances"


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    kept = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("runs/soak")
    with TemporaryDirectory() as folder:
        wrong, found, samples, line = soaked(Path(folder), minutes)
        keep(kept, samples)
        if wrong:
            keep_logs(Path(folder), kept)
    said = "all flat" if not wrong else "; ".join(wrong)
    sys.stdout.write(f"{table(found)}\n\n{line}: {said}\nsamples: {kept / 'soak.csv'}\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
