"""What the coordinator costs by the number of devices: CPU seconds of a run's decisions alone.

    python benchmarks/joining.py                 # a few seconds
    python benchmarks/joining.py 100 400 1600
    python benchmarks/joining.py --journal       # with the journal that the cloud keeps, in a file

`join`: an edge and every device are there and ready, until round 1 starts. `round`: all parts and
reports of round 1, each after a heartbeat and a tick, until it is to be merged. No socket, no
model; without `--journal` no file: only what is decided.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sfl.config import RunSettings
from sfl.report.journal import SqliteJournal
from sfl.rounds import (
    Aggregate,
    Coordinator,
    DeviceJoined,
    DeviceMoved,
    DeviceReady,
    EdgeReady,
    Event,
    ReportReceived,
    StartRound,
    Tick,
    UpdateReceived,
)
from sfl.rounds.journal import Journal, MemoryJournal


def joining(names: list[str]) -> Iterable[Event]:
    """An edge, then every device joins and is ready."""
    yield EdgeReady("edge", 4)
    for name in names:
        yield DeviceJoined(name, "edge")
        yield DeviceReady(name, 10)


def training(names: list[str]) -> Iterable[Event]:
    """What round 1 brings."""
    for name in names:
        yield DeviceMoved(name, 1)
        yield Tick()
        yield UpdateReceived(name, "device", 1, 5)
        yield UpdateReceived(name, "edge", 1, 5)
        yield ReportReceived(name, 1)


def cost(coordinator: Coordinator, events: Iterable[Event], ends_with: type) -> tuple[float, int]:
    """(CPU seconds, events); the last has to come to a command of that type."""
    number, last, began = 0, [], time.process_time()
    for event in events:
        last, number = coordinator.handle(event, 1.0), number + 1
    seconds = time.process_time() - began
    assert isinstance(last[-1], ends_with), last
    return seconds, number


def settings(names: Iterable[str]) -> RunSettings:
    """Of a run of these devices."""
    devices = [{"name": name, "cut_layer": 1} for name in names]
    training_ = {"local_steps": 5, "batch_size": 4}
    values = {"model": {"path": "m"}, "run": {"rounds": 2}, "training": training_}
    return RunSettings.model_validate({**values, "devices": devices})


def main(numbers: list[int], to_file: bool) -> None:
    """Print a line for each number of devices."""
    print("devices   join s  us/event   round s  us/event")
    for number in numbers:
        names = [f"d{place:05d}" for place in range(number)]
        with tempfile.TemporaryDirectory() as folder:
            journal = SqliteJournal(Path(folder)) if to_file else MemoryJournal()
            print(f"{number:7d}{measured(names, journal)}", flush=True)
            journal.close()


def measured(names: list[str], journal: Journal) -> str:
    """Seconds of both parts, and microseconds an event."""
    coordinator = Coordinator(settings(names), journal=journal)
    line = ""
    for events, ends_with in ((joining(names), StartRound), (training(names), Aggregate)):
        seconds, count = cost(coordinator, events, ends_with)
        line += f"  {seconds:7.3f}  {1e6 * seconds / count:8.1f}"
    return line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What the coordinator costs by devices.")
    parser.add_argument("numbers", nargs="*", type=int, default=[100, 1000, 10_000])
    parser.add_argument("--journal", action="store_true")
    options = parser.parse_args()
    main(options.numbers, options.journal)
