"""One run of real processes, one fault in it, and what it came to.

A supervisor stands for systemd: whoever was killed is started again by the same command.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from sfl.report.records import RoundRecord, read_records
from tests.house.federation import write_config
from tests.house.fleets import fleet
from tests.house.forks import Fork, fork

ROUNDS, STEPS = 3, 4
DEVICES = ("d0", "d1")
LIMIT = 90.0
"""Seconds that a cell may take before it counts as hung."""
STOPPED = 8.0
"""Seconds that a node is stopped for: longer than the idle timeout."""
IDLE = 4.0
PAUSE = 0.3
"""Seconds before a killed node is started again."""


@dataclass(frozen=True)
class Cell:
    """A fault: whom it hits, in what phase, seen by whom at which place (`trapped.PLACES`)."""

    victim: str
    phase: str
    watcher: str
    place: str
    topology: str = "vanilla"
    codec: str = "none"
    signal: int = signal.SIGKILL
    count: int = 1

    @property
    def name(self) -> str:
        kind = "kill" if self.signal == signal.SIGKILL else "stop"
        coded = "" if self.codec == "none" else f", {self.codec}"
        return f"{kind} {self.victim}, {self.phase}, {self.topology}{coded}"


@dataclass
class Verdict:
    """What a cell came to; it holds where `wrong` is empty."""

    cell: Cell | None
    wrong: list[str] = field(default_factory=list)
    equal: bool = False
    seconds: float | None = None
    replayed: str = ""
    logs: str = ""


@dataclass(frozen=True)
class End:
    """What a run leaves that another one of the same kind must leave too."""

    adapter: dict[str, np.ndarray]
    facts: dict[str, Any]
    files: list[str]


class Lab:
    """The nodes of one run, in `folder`."""

    limit = LIMIT
    most_restarts = 3
    """Of each node."""

    def __init__(
        self, folder: Path, cell: Cell | None, topology: str, codec: str, rounds: int = ROUNDS
    ) -> None:
        self.folder = folder
        self.rounds = rounds
        self.cell = cell
        self.nodes: dict[str, Fork] = {}
        self.restarts: Counter[str] = Counter()
        if cell is not None:
            trap = {"node": cell.watcher, "place": cell.place, "victim": cell.victim}
            more = {"count": cell.count, "signal": int(cell.signal)}
            (folder / "trap.json").write_text(json.dumps({**trap, **more}))
        self.ports = free_ports(2)
        self.config = write_config(folder, self._values(topology, codec))
        self._write_nodes()

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "t"

    def _values(self, topology: str, codec: str) -> dict[str, Any]:
        values = fleet(
            self.folder,
            len(DEVICES),
            run={"topology": topology, "rounds": self.rounds, "min_devices": len(DEVICES)},
            training={"local_steps": STEPS},
            codec={"activation": codec, "gradient": codec},
            evaluation={"every": 1},
            network={"idle_timeout": IDLE, "heartbeat_interval": 0.5, "rejoin_timeout": 60},
            cloud={"listen": f"127.0.0.1:{self.ports[0]}", "metrics": {"enabled": False}},
        )
        if topology == "u_shaped":
            for device in values["devices"]:
                device["tail_layers"] = 1
        return values

    def _write_nodes(self) -> None:
        cloud, edge = (f"127.0.0.1:{port}" for port in self.ports)
        common = "threads = 1\nconnect_timeout = 30\n"
        (self.folder / "edge.toml").write_text(
            f'[edge]\ncloud = "{cloud}"\nlisten = "{edge}"\n{common}'
            f'cache_dir = "{self.folder / "cache" / "edge"}"\nmetrics = {{enabled = false}}\n'
        )
        for name in DEVICES:
            (self.folder / f"{name}.toml").write_text(
                f'[device]\nname = "{name}"\nedge = "{edge}"\n{common}'
                f'train = "{self.folder / f"{name}.jsonl"}"\n'
                f'cache_dir = "{self.folder / "cache" / name}"\nmetrics = {{enabled = false}}\n'
            )

    def start(self, name: str) -> None:
        if name == "cloud":
            command = ["cloud", str(self.config), "--resume", "auto"]
        else:
            kind = "edge" if name == "edge" else "device"
            command = [kind, str(self.folder / f"{name}.toml")]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self.nodes[name] = fork(
            [name, str(self.folder), *command],
            environment,
            self.folder / f"{name}.log",
            "tests.faults.trapped",
        )

    def play(self) -> list[str]:
        """Run to the end; what was wrong with the processes themselves."""
        for name in ("cloud", "edge", *DEVICES):
            self.start(name)
        end = time.monotonic() + self.limit
        while time.monotonic() < end:
            self._supervise()
            if all(node.poll() is not None for node in self.nodes.values()):
                break
            time.sleep(0.02)
        return list(self._complaints())

    def _supervise(self) -> None:
        """As systemd: whoever was killed is started again."""
        for name, node in list(self.nodes.items()):
            if node.poll() == -signal.SIGKILL and self.restarts[name] < self.most_restarts:
                self.restarts[name] += 1
                time.sleep(PAUSE)
                self.start(name)
        if self.cell is not None and self.cell.signal == signal.SIGSTOP:
            self._let_go_on(self.cell.victim)

    def _let_go_on(self, victim: str) -> None:
        """Continue a stopped node, once it has been silent for long enough."""
        hit = self.hit()
        if hit is not None and time.monotonic() - hit["at"] > STOPPED:
            self.nodes[victim].send_signal(signal.SIGCONT)

    def _complaints(self) -> Iterator[str]:
        for name, node in self.nodes.items():
            if (code := node.poll()) is None:
                yield f"{name} hangs"
            elif code:
                yield f"{name}: exit code {code}"
        for node in self.nodes.values():
            node.send_signal(signal.SIGCONT)
            node.kill()
        for node in self.nodes.values():
            node.wait(20)

    def seen(self) -> list[dict[str, Any]]:
        path = self.folder / "seen.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def hit(self) -> dict[str, Any] | None:
        return next((one for one in self.seen() if one["what"] == "hit"), None)

    def end(self) -> End:
        records = read_records(self.run / "metrics.jsonl")
        scored = sorted((r.round, r.device) for r in records if isinstance(r, RoundRecord))
        summary = json.loads((self.run / "summary.json").read_text())
        told = ("failure", "rounds", "best_round", "eval_loss_before", "eval_loss_after")
        facts = {key: summary[key] for key in (*told, "tokens_trained")}
        adapter = load_file(self.run / "adapter" / "adapter_model.safetensors")
        return End(adapter, {**facts, "records": scored}, self._left())

    def _left(self) -> list[str]:
        """Files that the run has made, in its folder and in the nodes' caches."""
        folders = (self.run, self.folder / "cache")
        files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.folder)) for path in files)

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text()}" for p in self.folder.glob("*.log"))

    def recovery(self) -> float | None:
        """Seconds from the fault to the victim's first work after it; None where none was left."""
        hit = self.hit()
        if hit is None:
            return None
        later = (
            one["at"] - hit["at"]
            for one in self.seen()
            if one["node"] == hit["victim"] and one["at"] > hit["at"]
        )
        return next(later, None)

    def replayed(self) -> str:
        """Rounds that devices began again, and steps that they took again."""
        rounds, steps = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
        for one in self.seen():
            if one["what"] == "round":
                rounds[one["node"], one["round"]] += 1
            elif one["what"] == "step":
                steps[one["node"], one["round"]] += 1
        again = [
            f"{device} round {round_} ({max(0, steps[device, round_] - STEPS)} steps)"
            for (device, round_), count in sorted(rounds.items())
            if count > 1
        ]
        return ", ".join(again) or "nothing"


def free_ports(count: int) -> list[int]:
    """Of this machine, free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@cache
def undisturbed(topology: str, codec: str, rounds: int = ROUNDS) -> End:
    """The end of a run without a fault."""
    with TemporaryDirectory() as folder:
        lab = Lab(Path(folder), None, topology, codec, rounds)
        wrong = lab.play()
        assert not wrong, f"{wrong}\n{lab.logs()}"
        return lab.end()


def tried(folder: Path, cell: Cell) -> Verdict:
    """Play a cell, and hold its end against that of a run without a fault."""
    whole = undisturbed(cell.topology, cell.codec)
    lab = Lab(folder, cell, cell.topology, cell.codec)
    verdict = Verdict(cell, lab.play(), replayed=lab.replayed(), seconds=lab.recovery())
    verdict.logs = lab.logs()
    if lab.hit() is None:
        verdict.wrong.append(f"never came to {cell.place!r}")
    judge(verdict, lab, whole)
    return verdict


def judge(verdict: Verdict, lab: Lab, whole: End) -> None:
    """Hold a run's end against that of one without a fault."""
    try:
        end = lab.end()
    except OSError as error:
        verdict.wrong.append(f"no end: {error}")
        return
    verdict.equal = same_bits(end.adapter, whole.adapter)
    if not verdict.equal:
        verdict.wrong.append("another adapter")
    for key, wanted in whole.facts.items():
        if end.facts[key] != wanted:
            verdict.wrong.append(f"{key}: {end.facts[key]}, not {wanted}")
    if end.files != whole.files:
        verdict.wrong.append(f"other files: {sorted(set(end.files) ^ set(whole.files))}")


def same_bits(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(
        np.array_equal(found[name], wanted[name]) for name in found
    )
