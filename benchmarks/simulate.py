"""The simulator: how large a fleet it plays in what time, and how near it is to real runs.

    python -m benchmarks.simulate --only big       # some minutes on one core
    python -m benchmarks.simulate --only real      # five minutes on two cores
    python -m benchmarks.simulate --only real --devices 1 2

`big`: 10,000 devices at 200 edges, 100 rounds of 10 steps, all through the real coordinator. No
file is written. Seconds are those of the process (CPU) and of the clock.

`real`: runs of real processes on this machine with shaped links, so slow that they and not the
cores decide the time. Costs are taken from a run of two devices with other links, as `--from` does.
Then each run is simulated from its own file, and both journals are compared:

- seconds from the beginning of round 1 to the last report;
- of each device, its events in their order; of the run, rounds and averages in their order. A
  device's part, its report and its edge's part of one round go out at one moment: they may come in
  any order;
- of two devices, the order of any two events of a round that are apart by more than 5% of that
  round in the real run. Closer ones may change places from run to run.

Events that only tell the time (ticks, heartbeats, statistics, words of the log) are left out.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import tomli_w

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import run
from benchmarks.throughput import LENGTH, full_length, make_model, make_texts
from sfl.cli.simulate import model_of
from sfl.config.load import load_simulated
from sfl.report.fitting import as_table, fitted_from
from sfl.report.journal import JournalReader
from sfl.rounds.journal import Entry
from sfl.simulate.fitted import NOTHING_FITTED, Fitted
from sfl.simulate.fleet import fleet_of, with_classes
from sfl.simulate.ledger import Outcome
from sfl.simulate.simulation import Simulation

TOLD = (
    "DeviceJoined",
    "DeviceReady",
    "RoundBegan",
    "UpdateReceived",
    "ReportReceived",
    "AdapterReady",
    "Fault",
)
"""Events that are compared."""
DELIVERY = ("ReportReceived", "UpdateReceived")
"""What a device delivers of a round, in any order: all three come within milliseconds."""
APART = 0.05
"""Of a round: what is closer may change places."""

BIG: dict[str, Any] = {
    "run": {"rounds": 100},
    "model": {"path": "stated", "max_length": 96},
    "training": {"batch_size": 16, "local_steps": 10},
    "codec": {"activation": "none", "gradient": "none"},
    "devices": [{"name": "like", "cut_layer": 2}],
    "simulate": {
        "devices": 10_000,
        "model": {"num_layers": 12, "hidden_size": 768},
        "edge": {"count": 200, "tflops": 20.0, "watts": 250.0},
        "classes": [
            {
                "name": "phone",
                "share": 0.8,
                "tflops": 1.0,
                "spread": 0.4,
                "up_mbit": 20.0,
                "down_mbit": 60.0,
                "latency_ms": 30.0,
                "link_spread": 0.5,
                "power": {"compute": 4.0, "send": 1.8, "receive": 1.2, "idle": 0.4},
            },
            {
                "name": "gateway",
                "share": 0.2,
                "tflops": 2.0,
                "up_mbit": 50.0,
                "down_mbit": 100.0,
                "latency_ms": 10.0,
            },
        ],
    },
}


def simulated(
    file: Path, fitted: Fitted = NOTHING_FITTED, overrides: Iterable[str] = ()
) -> tuple[Outcome, list[Entry]]:
    """A file's run, and what its journal would have."""
    shown = None if fitted is NOTHING_FITTED else as_table(fitted)
    config = with_classes(load_simulated(file, overrides, shown))
    heard: list[Entry] = []
    simulation = Simulation(config, fleet_of(config, *model_of(config), fitted), heard.append)
    return simulation.run(), heard


def big(devices: int, rounds: int) -> None:
    """Print one row."""
    file = {**BIG, "run": {"rounds": rounds}, "simulate": {**BIG["simulate"], "devices": devices}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fleet.toml"
        path.write_text(tomli_w.dumps(file))
        config = with_classes(load_simulated(path))
        fleet = fleet_of(config, *model_of(config))
    cpu, wall = time.process_time(), time.perf_counter()
    outcome = Simulation(config, fleet).run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    assert outcome.ok, outcome.reason
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print("| devices | rounds | steps | coordinator's events | CPU s | wall s | peak GB | days |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {devices:,} | {len(outcome.rounds)} | {outcome.steps:,} | {outcome.events:,} | "
        f"{cpu:.0f} | {wall:.0f} | {peak:.2f} | {outcome.seconds / 86400:.2f} |",
        flush=True,
    )


# -- against real runs -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Compared:
    """A real run and its simulation: seconds, events, pairs that are apart, those in one order."""

    real: float
    simulated: float
    events: int
    same: bool
    apart: int
    in_order: int


def settings(folder: Path, rates: Sequence[float], rounds: int) -> dict[str, Any]:
    """A run of so many devices, whose links differ."""
    devices = [
        {
            "name": f"d{number}",
            "cut_layer": 1 + number % 2,
            "link": {"up_mbit": rate, "down_mbit": 2.0 * rate, "delay_ms": 20.0},
            "train": str(folder / "texts.jsonl"),
            "eval": str(folder / "held_out.jsonl"),
        }
        for number, rate in enumerate(rates)
    ]
    return {
        "run": {"rounds": rounds},
        "model": {"path": str(folder / "model"), "max_length": LENGTH},
        "training": {"batch_size": 8, "local_steps": 4, "micro_batches": 1},
        "codec": {"activation": "none", "gradient": "none"},
        "data": full_length(),
        "devices": devices,
        "edge": {"threads": 1},
    }


def played(folder: Path, name: str, rates: Sequence[float], rounds: int) -> Path:
    """A real run; its folder. Its file is beside it."""
    file = folder / f"{name}.toml"
    file.write_text(tomli_w.dumps(settings(folder, rates, rounds)))
    run(file, folder / "runs", name, [])
    return folder / "runs" / name


def events(entries: Iterable[Entry]) -> list[tuple[tuple[Any, ...], float]]:
    """(what, when) of what is compared."""
    found = []
    for entry in entries:
        event: Any = entry.event
        kind = type(event).__name__
        if kind in TOLD:
            what = (kind, *(getattr(event, key, "") for key in ("device", "round", "side")))
            found.append((what, entry.now))
    return found


def compared(real: Path, file: Path, fitted: Fitted) -> Compared:
    """A real run with what its file gives in the simulator."""
    reader = JournalReader(real)
    theirs = events(reader.entries())
    reader.close()
    ours = events(simulated(file, fitted)[1])
    apart, in_order = _pairs(theirs, dict(ours))
    return Compared(
        _seconds(theirs), _seconds(ours), len(theirs), _same(theirs, ours), apart, in_order
    )


def _seconds(found: Sequence[tuple[tuple[Any, ...], float]]) -> float:
    began = next(now for what, now in found if what[0] == "RoundBegan")
    return max(now for what, now in found if what[0] == "ReportReceived") - began


def _same(
    theirs: Sequence[tuple[tuple[Any, ...], float]], ours: Sequence[tuple[tuple[Any, ...], float]]
) -> bool:
    """Of each device, and of the run itself, the same events in the same order."""

    def by_device(found: Sequence[tuple[tuple[Any, ...], float]]) -> dict[str, list[Any]]:
        lists: dict[str, list[Any]] = {}
        for what, _ in found:
            own = lists.setdefault(what[1], [])
            own.append(what)
            if what[0] in DELIVERY:
                last = [each for each in own[-3:] if each[0] in DELIVERY and each[2] == what[2]]
                own[-len(last) :] = sorted(last)
        return lists

    return by_device(theirs) == by_device(ours)


def _pairs(
    theirs: Sequence[tuple[tuple[Any, ...], float]], ours: dict[tuple[Any, ...], float]
) -> tuple[int, int]:
    """Pairs of two devices' events of one round that are apart, and those in the same order."""
    rounds: dict[int, list[tuple[tuple[Any, ...], float]]] = {}
    for what, now in theirs:
        if what[0] in ("UpdateReceived", "ReportReceived"):
            rounds.setdefault(what[2], []).append((what, now))
    apart = in_order = 0
    for number, found in rounds.items():
        began = next(now for what, now in theirs if what[0] == "RoundBegan" and what[2] == number)
        least = APART * (max(now for _, now in found) - began)
        for (one, early), (other, late) in combinations(found, 2):
            if one[1] != other[1] and late - early > least:
                apart += 1
                in_order += ours[one] < ours[other]
    return apart, in_order


def real(numbers: Sequence[int], rounds: int) -> None:
    """A row for each number of devices."""
    print("| devices | real, s | simulated, s | error | events | the same | apart | in order |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", 128, 4, 1280)
        make_texts(folder / "texts.jsonl", 64)
        make_texts(folder / "held_out.jsonl", 16)
        fitted = fitted_from(played(folder, "like", (6.0, 8.0), 2))
        for number in numbers:
            rates = [1.0 + 0.125 * place for place in range(number)]
            own = played(folder, f"of-{number}", rates, rounds)
            found = compared(own, folder / f"of-{number}.toml", fitted)
            print(
                f"| {number} | {found.real:.2f} | {found.simulated:.2f} | "
                f"{found.simulated / found.real - 1.0:+.1%} | {found.events} | "
                f"{'yes' if found.same else 'NO'} | {found.apart} | {found.in_order} |",
                flush=True,
            )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="The simulator's time, and its error.")
    parser.add_argument("--only", choices=("big", "real"))
    parser.add_argument("--devices", nargs="*", type=int)
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    if options.only in (None, "big"):
        big((options.devices or [10_000])[0], options.rounds or 100)
    if options.only in (None, "real"):
        real(options.devices or (1, 2, 4, 8), options.rounds or 2)


if __name__ == "__main__":
    main()
