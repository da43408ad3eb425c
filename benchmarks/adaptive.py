"""A planner in a run whose links and whose devices' speed change: real processes, six devices.

    python benchmarks/adaptive.py
    python benchmarks/adaptive.py --rounds 8 --turns 1 --uniform      # shorter

Cloud, edge and six devices are processes of their own. Each device dials its edge through a proxy
of this script, which has a rate each way. A process is slow where it is stopped and continued every
PERIOD seconds (SIGSTOP, SIGCONT), so that it has a share of a core. At first the edge is what is
slow, so that deep cuts are good. In the middle of the run one link and one device become slower
(`before`, `after`), for which these cuts are too deep.

Four ways, in turns. `static`: the best cuts for `before`, for all rounds. `fleet`: begins with
these, and the planner may move them. `best`: each half has the cuts that were best for it, told by
`planner.policy = "recorded"`. The best cuts of a half are the quicker of two: what `fleet` comes to
in a run that is like that half, and the best of `--uniform` cuts, each of them measured there.
Without uniform cuts they are the planner's own. `steady`:
`fleet` where nothing changes, beside `static`.

Seconds are those of rounds from the second on, by the cloud's own count. `gain` is what a way
saves of `static`; the aim is 90% of what `best` saves, and on steady links at most 3% more than
`static`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import tomli_w

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import ROOT, needed
from benchmarks.throughput import TOKENIZER, make_model, make_texts
from sfl.planners.decision import Choice, Decision
from sfl.planners.plans import Plan

DEVICES = tuple(f"d{n}" for n in range(6))
LAYERS, HIDDEN = 8, 192
CUTS = range(1, LAYERS)
PERIOD = 0.01
PIECE = 1 << 14
CALIBRATED = 8
"""Rounds in which `fleet` comes to the best cuts of a half."""
Cuts = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Conditions:
    """Shares of a core, and megabits a second each way, by name."""

    speeds: Mapping[str, float]
    links: Mapping[str, float]

    def with_slow(self, device: str, share: float, link: str, megabits: float) -> Conditions:
        """One device and one link are slower."""
        return replace(
            self,
            speeds={**self.speeds, device: share},
            links={**self.links, link: megabits},
        )


SLOWER = "d0", "d1"
"""The device that becomes slower, and the one whose link does."""
BEFORE = Conditions({"edge": 0.3, **dict.fromkeys(DEVICES, 0.2)}, dict.fromkeys(DEVICES, 40.0))
AFTER = BEFORE.with_slow(SLOWER[0], 0.07, SLOWER[1], 2.0)


class Proxy:
    """A port that passes bytes on to another one at a rate each way; its own thread."""

    def __init__(self, target: str) -> None:
        self.megabits = 100.0
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self._start(), self._loop)
        self.address = f"127.0.0.1:{started.result(10)}"

    async def _start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        free = 0.0
        with contextlib.suppress(OSError):
            while piece := await reader.read(PIECE):
                free = max(free, time.monotonic()) + 8e-6 * len(piece) / self.megabits
                await asyncio.sleep(max(0.0, free - time.monotonic()))
                writer.write(piece)
                await writer.drain()
            writer.close()

    def close(self) -> None:
        """Take no more, and pass nothing on."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


class Slowed:
    """A process that has a share of a core; its own thread."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.share = 1.0
        self._process = process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            while not self._stop.is_set() and self._process.poll() is None:
                share = self.share
                if share >= 1.0:
                    time.sleep(PERIOD)
                    continue
                os.kill(self._process.pid, signal.SIGCONT)
                time.sleep(share * PERIOD)
                os.kill(self._process.pid, signal.SIGSTOP)
                time.sleep((1.0 - share) * PERIOD)
            os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """Let it run."""
        self._stop.set()
        self._thread.join(5)


@dataclass(slots=True)
class Fleet:
    """Nodes of one run, with their proxies and speeds."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    proxies: dict[str, Proxy] = field(default_factory=dict)
    slowed: dict[str, Slowed] = field(default_factory=dict)

    def start(self, kind: str, name: str, file: Path) -> subprocess.Popen[bytes]:
        """A node."""
        command = [sys.executable, "-m", "sfl.cli", kind, str(file)]
        if kind != "device":
            command += ["--address-file", str(self.folder / f"{name}.address")]
        with (self.folder / f"{name}.log").open("wb") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said, cwd=ROOT)
        self.processes.append(process)
        if kind != "cloud":
            self.slowed[name] = Slowed(process)
        return process

    def address(self, name: str) -> str:
        """Where a node listens, once it does."""
        path = self.folder / f"{name}.address"
        while not path.exists():
            time.sleep(0.02)
        return path.read_text().strip()

    def be(self, conditions: Conditions) -> None:
        """From now on nodes and links are like that."""
        for name, share in conditions.speeds.items():
            self.slowed[name].share = share
        for name, megabits in conditions.links.items():
            self.proxies[name].megabits = megabits

    def close(self) -> None:
        """End what is left."""
        for slowed in self.slowed.values():
            slowed.close()
        for proxy in self.proxies.values():
            proxy.close()
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
            process.wait()


@dataclass(frozen=True, slots=True)
class Case:
    """A model and texts on the disk, rounds of so many steps."""

    model: Path
    texts: Path
    rounds: int
    steps: int

    def settings(self, folder: Path, cuts: Cuts, planner: Mapping[str, Any]) -> dict[str, Any]:
        """The run's file."""
        devices = [
            {"name": name, "cut_layer": cuts[name], "cut_range": [CUTS[0], CUTS[-1]]}
            for name in DEVICES
        ]
        return {
            "run": {"id": "r", "rounds": self.rounds, "output_dir": str(folder)},
            "model": {"path": str(self.model), "max_length": 32},
            "training": {"batch_size": 2, "local_steps": self.steps},
            "codec": {"activation": "int8", "gradient": "int8"},
            "data": {"eval_fraction": 0.02, "blocks": "first"},
            "evaluation": {"every": self.rounds, "full": False, "max_examples": 2},
            "planner": dict(planner),
            "network": {"idle_timeout": 60.0},
            "devices": devices,
        }


@dataclass(frozen=True, slots=True)
class Played:
    """Seconds of each round by the cloud's count, and the cuts of the last one."""

    seconds: Mapping[int, float]
    cuts: Cuts

    def between(self, first: int, last: int) -> float:
        """Seconds of these rounds."""
        return sum(self.seconds[number] for number in range(first, last + 1))


def played(
    case: Case,
    cuts: Cuts,
    planner: Mapping[str, Any],
    halves: tuple[Conditions, Conditions],
    plans: Sequence[Plan] = (),
) -> Played:
    """One run; the second half of its rounds has other conditions. Raises SystemExit."""
    with tempfile.TemporaryDirectory(dir=case.model.parent) as name:
        folder = Path(name)
        fleet = Fleet(folder)
        try:
            return _played(case, fleet, cuts, planner, halves, plans)
        finally:
            fleet.close()


def _played(
    case: Case,
    fleet: Fleet,
    cuts: Cuts,
    planner: Mapping[str, Any],
    halves: tuple[Conditions, Conditions],
    plans: Sequence[Plan],
) -> Played:
    folder = fleet.folder
    if plans:
        path = folder / "plans.jsonl"
        path.write_text("".join(plan.as_json() + "\n" for plan in plans))
        planner = {**planner, "plans": str(path)}
    run = folder / "run.toml"
    run.write_text(tomli_w.dumps(case.settings(folder, cuts, planner)))
    cloud = fleet.start("cloud", "cloud", run)
    edge = folder / "edge.toml"
    own = {"cloud": fleet.address("cloud"), "threads": 1, "cache_dir": str(folder / "cache")}
    edge.write_text(tomli_w.dumps({"edge": {**own, "model": str(case.model)}}))
    fleet.start("edge", "edge", edge)
    for number, device in enumerate(DEVICES):
        fleet.proxies[device] = Proxy(fleet.address("edge"))
        _start_device(case, fleet, number, device)
    _change(case, fleet, cloud, halves)
    if cloud.wait() != 0:
        raise SystemExit((folder / "cloud.log").read_text())
    return _told(folder / "r", cuts)


def _start_device(case: Case, fleet: Fleet, number: int, device: str) -> None:
    file = fleet.folder / f"{device}.toml"
    own = {
        "name": device,
        "edge": fleet.proxies[device].address,
        "threads": 1,
        "model": str(case.model),
        "train": str(case.texts),
        "cache_dir": str(fleet.folder / "cache"),
    }
    file.write_text(tomli_w.dumps({"device": own}))
    fleet.start("device", device, file)


def _change(
    case: Case,
    fleet: Fleet,
    cloud: subprocess.Popen[bytes],
    halves: tuple[Conditions, Conditions],
) -> None:
    """Have the conditions of each half as it begins."""
    first, second = halves
    for round_ in _rounds(fleet.folder / "cloud.log", cloud):
        fleet.be(second if round_ > case.rounds // 2 else first)


def _rounds(log: Path, cloud: subprocess.Popen[bytes]) -> Iterator[int]:
    seen = 0
    while cloud.poll() is None:
        found = re.findall(r"sfl\.cloud: round (\d+) of", log.read_text())
        for number in found[seen:]:
            yield int(number)
        seen = len(found)
        time.sleep(0.01)


def _told(run: Path, cuts: Cuts) -> Played:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    seconds = {own["round"]: own["seconds"] for own in records if own["kind"] == "cloud"}
    plans = run / "plans.jsonl"
    if not plans.exists():
        return Played(seconds, cuts)
    last = Plan.from_json(plans.read_text().splitlines()[-1], with_state=False).decision
    return Played(seconds, {name: choice.cut_layer for name, choice in last.devices.items()})


def recorded(*parts: tuple[int, Cuts]) -> list[Plan]:
    """These cuts from these rounds on, as a run's own file has them."""
    return [
        Plan(Decision(first, "recorded", {name: Choice(cut) for name, cut in cuts.items()}))
        for first, cuts in parts
    ]


def best_cuts(case: Case, start: Cuts, conditions: Conditions, uniform: Sequence[int]) -> Cuts:
    """The quickest, measured: what the planner comes to, uniform ones, and those with the two nodes
    that become slower at another one."""
    halves = conditions, conditions
    found = [played(replace(case, rounds=CALIBRATED), start, {"policy": "fleet"}, halves).cuts]
    found += [dict.fromkeys(DEVICES, cut) for cut in uniform]
    if conditions is AFTER:
        found += [{**start, **dict.fromkeys(SLOWER, cut)} for cut in uniform]
    distinct = [cuts for number, cuts in enumerate(found) if cuts not in found[:number]]
    found = distinct
    if len(found) == 1:
        return found[0]
    times = [
        played(replace(case, rounds=3), cuts, {"policy": "off"}, halves).between(2, 3)
        for cuts in found
    ]
    for cuts, seconds in zip(found, times, strict=True):
        print(f"  {shown(cuts)}: {seconds / 2:.2f} s a round", flush=True)
    return found[times.index(min(times))]


def shown(cuts: Cuts) -> str:
    """As a few digits."""
    return "-".join(str(cuts[name]) for name in DEVICES)


def compare(case: Case, turns: int, uniform: Sequence[int]) -> dict[str, float]:
    """All ways, in turns; medians of their seconds."""
    middle = dict.fromkeys(DEVICES, 2)
    print("best cuts before the change:", flush=True)
    first = best_cuts(case, middle, BEFORE, uniform)
    print("best cuts after it:", flush=True)
    second = best_cuts(case, first, AFTER, uniform)
    half, last = case.rounds // 2, case.rounds
    changing, steady = (BEFORE, AFTER), (BEFORE, BEFORE)
    both = recorded((1, first), (half + 1, second))
    ways: dict[str, tuple[dict[str, Any], tuple[Conditions, Conditions], Sequence[Plan]]] = {
        "static": ({"policy": "off"}, changing, ()),
        "fleet": ({"policy": "fleet"}, changing, ()),
        "best": ({"policy": "recorded"}, changing, both),
        "static, steady": ({"policy": "off"}, steady, ()),
        "fleet, steady": ({"policy": "fleet"}, steady, ()),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, (planner, halves, plans) in ways.items():
            found = played(case, first, planner, halves, plans)
            times[name].append(found.between(2, last))
            halves_told = f"{found.between(2, half):.1f} + {found.between(half + 1, last):.1f} s"
            print(f"  {name}: {halves_told}, at the end {shown(found.cuts)}", flush=True)
    return {name: median(values) for name, values in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--uniform", type=int, nargs="*", default=[2, 5, 7])
    own = parser.parse_args()
    needed(TOKENIZER)
    with tempfile.TemporaryDirectory() as name:
        model, texts = Path(name) / "model", Path(name) / "texts.jsonl"
        make_model(model, HIDDEN, LAYERS, 2048)
        make_texts(texts, 128)
        times = compare(Case(model, texts, own.rounds, own.steps), own.turns, own.uniform)
    static, possible = times["static"], times["static"] - times["best"]
    print("| way | seconds | saves of static | of what best saves |\n|---|---|---|---|")
    for way in ("static", "fleet", "best"):
        saved = static - times[way]
        share = f"{saved / possible:.0%}" if possible > 0 else "-"
        print(f"| {way} | {times[way]:.1f} | {saved / static:.1%} | {share} |")
    more = times["fleet, steady"] / times["static, steady"] - 1.0
    print(f"| fleet, steady | {times['fleet, steady']:.1f} | {-more:.1%} of steady static | - |")


if __name__ == "__main__":
    main()
