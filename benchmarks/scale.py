"""A thousand devices over real sockets: one cloud, several edges, adapters of GPT-2 124M.

    python benchmarks/scale.py                                     # 20 minutes on 2 cores, 8 GB
    python benchmarks/scale.py --devices 100 --edges 2 --rounds 3  # 3 minutes
    python benchmarks/scale.py --sums at_edges   # edges add up
    python benchmarks/scale.py --keep scale.json

What is real: the cloud and each edge are processes as always, with journal, spool, snapshots and
checks; each device has a connection of its own; each sends and gets its part of an adapter of the
real size in every round. What is not: devices compute nothing. They are coroutines
(`benchmarks/fleet.py`), and send one ready-made activation of `--tokens` tokens a round. They hold
`--cut` of the 12 blocks, so that an edge computes one block and a small classifier for each: the
question is how many devices cloud, edges and sockets carry, not how fast an edge computes
(`benchmarks/many_devices.py`).

Printed for each round:

    seconds     from the cloud's word that the round begins to the new adapter
    updates/s   devices in it, by those seconds
    told        from that word until a device has its assignment, the round's plan
    whole       until it also has its part of the adapter
    received    from that word until the cloud has the last device's update and report
    averaged    from then to the new adapter
    cloud MB    resident size of the cloud, the most within the round

The last line compares the adapter with what the mean of all updates must be: each device adds a
number of its own to every value of its part. All nodes share this machine, so a time is also that
of the others' work.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import safetensors.numpy
import tomli_w

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fleet import Job, Part
from benchmarks.light import Shape, percentile
from benchmarks.runs import ROOT
from sfl.node.process import quiet_environment
from sfl.report.journal import JournalReader
from sfl.rounds import AdapterReady, ReportReceived, UpdateReceived

BLOCKS, HIDDEN, CLASSES = 12, 768, 2
LEARNING_RATE = 2e-4
LOOK = 0.5  # seconds between two looks at the processes
MB = 1e6


def make_model(folder: Path) -> None:
    """Random weights in the shape of GPT-2 124M, with a classifier."""
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    labels = {number: str(number) for number in range(CLASSES)}
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, id2label=labels)
    GPT2ForSequenceClassification(config).save_pretrained(folder)


def settings(model: Path, names: Sequence[str], edges: Sequence[str], given: Any) -> dict[str, Any]:
    """The run: one step of one sequence in each round."""
    return {
        "run": {
            "id": "run",
            "rounds": given.rounds,
            "edges": list(edges),
            "keep_round_adapters": True,
        },
        "model": {
            "path": str(model),
            "task": "sequence_classification",
            "labels": [str(number) for number in range(CLASSES)],
            "max_length": given.tokens,
        },
        "lora": {"rank": given.rank},
        "training": {
            "batch_size": 1,
            "local_steps": 1,
            "learning_rate": LEARNING_RATE,
            "schedule": "constant",
            "computation": "lean",
        },
        "codec": {"activation": "none", "gradient": "none", "adapter": given.codec},
        "aggregation": {"sums": given.sums},
        "network": {
            "join_timeout": 3600.0,
            "heartbeat_interval": given.heartbeat,
            "idle_timeout": 20 * given.heartbeat,
            "straggler_factor": "off",
        },
        "devices": [{"name": name, "cut_layer": given.cut} for name in names],
    }


def shift(number: int, count: int) -> float:
    """What device `number` of `count` adds to its values: no step of AdamW is longer."""
    return LEARNING_RATE * (0.5 + 0.5 * number / count)


# -- processes -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sample:
    """A process at one moment: resident bytes, open files, CPU seconds so far."""

    at: float
    resident: int
    files: int
    cpu: float


@dataclass(slots=True)
class Node:
    """A process of the run, and what was seen of it."""

    name: str
    process: psutil.Popen
    log: Path
    samples: list[Sample] = field(default_factory=list)

    def look(self, at: float) -> None:
        """One more sample, if it is still there."""
        try:
            with self.process.oneshot():
                times = self.process.cpu_times()
                resident, files = self.process.memory_info().rss, self.process.num_fds()
        except psutil.Error:
            return
        self.samples.append(Sample(at, resident, files, times.user + times.system))

    def within(self, begin: float, end: float) -> list[Sample]:
        """Samples of that time, or at least the last before it."""
        inside = [own for own in self.samples if begin <= own.at <= end]
        return inside or [own for own in self.samples if own.at <= end][-1:]

    def most(self, what: str) -> Any:
        """The largest value that was seen."""
        return max(getattr(own, what) for own in self.samples)


class Machine:
    """Starts the run's processes, watches them, and ends those that are left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[Node] = []

    def start(self, name: str, module: str, *arguments: str) -> Node:
        """A process whose log is JSON lines."""
        log = self.folder / f"{name}.log"
        environment = {**os.environ, "SFL_LOG_FORMAT": "json"}
        with log.open("wb") as out:
            process = psutil.Popen(
                [sys.executable, "-m", module, *arguments],
                stdout=out,
                stderr=out,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )
        self.nodes.append(Node(name, process, log))
        return self.nodes[-1]

    def begin(self, kind: str, name: str, values: Mapping[str, Any]) -> Node:
        """A cloud or an edge."""
        file, address = self.folder / f"{name}.toml", self._address(name)
        file.write_text(tomli_w.dumps(values))
        return self.start(name, "sfl.cli", kind, str(file), "--address-file", str(address))

    def address(self, node: Node) -> str:
        """Where it listens, once it does."""
        while not self._address(node.name).exists():
            self.check(node)
            time.sleep(0.05)
        return self._address(node.name).read_text().strip()

    def _address(self, name: str) -> Path:
        return self.folder / f"{name}.address"

    def check(self, node: Node) -> bool:
        """Whether it has ended well; raises SystemExit where it has ended badly."""
        code = node.process.poll()
        if code:
            raise SystemExit(f"{node.name} ended with {code}:\n{node.log.read_text()[-4000:]}")
        return code is not None

    def wait(self, patience: float) -> None:
        """Until all have ended well. Raises SystemExit."""
        end = time.monotonic() + patience
        while sum(self.check(node) for node in self.nodes) < len(self.nodes):
            if time.monotonic() > end:
                raise SystemExit(f"not over after {patience:g} s; see {self.folder}")
            time.sleep(LOOK)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take samples meanwhile; at the end nothing runs any more."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(LOOK):
                for node in list(self.nodes):
                    node.look(time.time())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            for node in self.nodes:
                if node.process.poll() is None:
                    node.process.kill()
                node.process.wait()


def play(folder: Path, model: Path, given: Any) -> list[Node]:
    """One run to its end; its processes, each with what was seen of it."""
    names = [f"device-{number:05}" for number in range(given.devices)]
    edges = [f"edge-{number}" for number in range(given.edges)]
    run = settings(model, names, edges, given)
    machine = Machine(folder)
    with machine.watched():
        run["run"]["output_dir"] = str(folder)
        cloud = machine.address(machine.begin("cloud", "cloud", run))
        begun = [
            machine.begin("edge", edge, {"edge": _edge(folder, edge, cloud, given)})
            for edge in edges
        ]
        addresses = [machine.address(node) for node in begun]
        shape = Shape(1, given.tokens, HIDDEN, CLASSES, per_token=False)
        for number in range(given.processes):
            parts = tuple(
                Part(names[own], addresses[own % len(edges)], shift(own, given.devices))
                for own in range(number, given.devices, given.processes)
            )
            file = folder / f"devices-{number}.json"
            Job(parts, shape, str(folder / f"seen-{number}.json")).write(file)
            machine.start(f"devices-{number}", "benchmarks.fleet", str(file))
        machine.wait(given.patience)
    return machine.nodes


def _edge(folder: Path, name: str, cloud: str, given: Any) -> dict[str, Any]:
    return {
        "name": name,
        "cloud": cloud,
        "threads": 1,
        "batch_devices": given.together,
        "cache_dir": str(folder / "cache"),
        "connect_timeout": 600.0,
    }


# -- what it came to -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Round:
    """One round, in seconds and bytes."""

    number: int
    devices: int
    seconds: float
    told: tuple[float, float]
    """p50 and p99."""
    whole: tuple[float, float]
    """As above."""
    received: float
    averaged: float
    cloud_bytes: int

    @property
    def rate(self) -> float:
        """Updates a second."""
        return self.devices / self.seconds


def rounds_of(folder: Path, nodes: Sequence[Node], given: Any) -> list[Round]:
    """What the journal, the cloud's log and the devices tell of each round."""
    began = _began(folder / "cloud.log")
    zero, came, ready = _from_journal(folder / "run", began)
    told, whole = _at(folder, given.processes, 1), _at(folder, given.processes, 2)
    found = []
    for number in range(1, given.rounds + 1):
        begin = began[number]
        received, end = zero + came[number], zero + ready[number]
        inside = nodes[0].within(begin, end)
        found.append(
            Round(
                number,
                len(whole[number]),
                end - begin,
                _waits(told[number], begin),
                _waits(whole[number], begin),
                received - begin,
                end - received,
                max(own.resident for own in inside),
            )
        )
    return found


def _began(log: Path) -> dict[int, float]:
    """When the cloud said that each round begins, in Unix seconds."""
    began: dict[int, float] = {}
    for line in log.read_text().splitlines():
        said = json.loads(line)
        words = said["message"].split()
        if words[:1] == ["round"] and words[2:3] == ["of"]:
            began.setdefault(int(words[1]), datetime.fromisoformat(said["time"]).timestamp())
    return began


def _from_journal(
    run: Path, began: Mapping[int, float]
) -> tuple[float, dict[int, float], dict[int, float]]:
    """The Unix time of the run's second 0; when the last of each round came, and its adapter."""
    came: dict[int, float] = {}
    ready: dict[int, float] = {}
    zero = None
    for entry in JournalReader(run).entries():
        match entry.event:
            case UpdateReceived(round=round_) | ReportReceived(round=round_):
                came[round_] = entry.now
            case AdapterReady(round=round_):
                ready[round_] = entry.now
            case event if type(event).__name__ == "RoundBegan" and zero is None:
                zero = began[1] - entry.now
    assert zero is not None, "no round began"
    return zero, came, ready


def _waits(moments: Sequence[float], begin: float) -> tuple[float, float]:
    waits = [at - begin for at in moments]
    return percentile(waits, 0.5), percentile(waits, 0.99)


def _at(folder: Path, processes: int, column: int) -> dict[int, list[float]]:
    """When each device saw something, by round: a column of `Seen.rounds`."""
    found: dict[int, list[float]] = {}
    for number in range(processes):
        for device in json.loads((folder / f"seen-{number}.json").read_text()):
            for row in device["rounds"]:
                found.setdefault(row[0], []).append(row[column])
    return found


def joined(folder: Path, processes: int) -> tuple[float, float]:
    """Seconds until the last device had joined, and the p99 of one device's own."""
    seen = [
        device
        for number in range(processes)
        for device in json.loads((folder / f"seen-{number}.json").read_text())
    ]
    own = [device["ready"] - device["dialled"] for device in seen]
    first = min(device["dialled"] for device in seen)
    return max(device["ready"] for device in seen) - first, percentile(own, 0.99)


def deviation(folder: Path, given: Any) -> float:
    """Of the last adapter from the first plus the mean of all that devices have added.

    The most of any value, as a share of what a round adds.
    """
    first, last = (
        safetensors.numpy.load_file(folder / "run" / name / "adapter_model.safetensors")
        for name in ("adapters/round-0000", "adapter")
    )
    mean = sum(shift(number, given.devices) for number in range(given.devices)) / given.devices
    worst = 0.0
    for name, values in last.items():
        if any(f".h.{block}." in name for block in range(given.cut)):
            added = values.astype("float64") - first[name]
            worst = max(worst, float(abs(added - given.rounds * mean).max()))
    return float(worst / mean)


def show(folder: Path, nodes: Sequence[Node], rounds: Sequence[Round], given: Any) -> None:
    """The tables."""
    seconds, slowest = joined(folder, given.processes)
    print(f"joined in {seconds:.1f} s, one device in {slowest:.1f} s (p99)\n")
    head = f"{'round':>5}{'devices':>9}{'seconds':>9}{'updates/s':>11}"
    waits = f"{'told p50':>10}{'p99':>7}{'whole p50':>11}{'p99':>7}"
    print(f"{head}{waits}{'received':>10}{'averaged':>10}{'cloud MB':>10}")
    for own in rounds:
        print(
            f"{own.number:5}{own.devices:9}{own.seconds:9.1f}{own.rate:11.1f}{own.told[0]:10.2f}"
            f"{own.told[1]:7.2f}{own.whole[0]:11.2f}{own.whole[1]:7.2f}{own.received:10.1f}"
            f"{own.averaged:10.2f}{own.cloud_bytes / MB:10.0f}"
        )
    print(f"\n{'node':<12}{'peak MB':>9}{'files':>7}{'CPU s':>8}")
    for node in nodes:
        print(
            f"{node.name:<12}{node.most('resident') / MB:9.0f}{node.most('files'):7}"
            f"{node.most('cpu'):8.1f}"
        )
    if len(rounds) > 2:
        grown = rounds[-1].cloud_bytes - rounds[1].cloud_bytes
        print(f"\ncloud: {grown / MB / (len(rounds) - 2):+.2f} MB a round from round 2 on")
    print(
        f"every update is in the average: off by {deviation(folder, given):.1e} of a round's change"
    )


def sizes(folder: Path) -> str:
    """Of the adapter."""
    values = safetensors.numpy.load_file(folder / "run" / "adapter" / "adapter_model.safetensors")
    count = sum(own.size for own in values.values())
    return f"{count:,} values, {4 * count / MB:.2f} MB"


def main() -> None:
    """One run, and what it came to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--edges", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2, help="that play the devices")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--cut", type=int, default=BLOCKS - 1, help="blocks of a device")
    parser.add_argument("--tokens", type=int, default=2, help="of a device's one sequence")
    parser.add_argument("--together", type=int, default=8, help="edge.batch_devices")
    parser.add_argument("--heartbeat", type=float, default=15.0, help="heartbeat_interval")
    parser.add_argument("--sums", default="flat", choices=("flat", "by_edge", "at_edges"))
    parser.add_argument("--codec", default="none", help="of adapters")
    parser.add_argument("--patience", type=float, default=3600.0, help="seconds for the whole run")
    parser.add_argument("--keep", type=Path, help="write rounds and samples to this file")
    given = parser.parse_args()
    quiet_environment()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # its processes end with it
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_model(folder / "model")
        nodes = play(folder, folder / "model", given)
        rounds = rounds_of(folder, nodes, given)
        print(
            f"{given.devices} devices, {given.edges} edges, sums {given.sums}; an adapter is "
            f"{sizes(folder)} at rank {given.rank}, a device's part {given.cut} of {BLOCKS} blocks"
        )
        show(folder, nodes, rounds, given)
        if given.keep:
            seen = {node.name: [asdict(own) for own in node.samples] for node in nodes}
            kept = {"rounds": [asdict(own) for own in rounds], "samples": seen}
            given.keep.write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
