"""Nodes as processes: started by hand, found, and gone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.house.federation import SFL, Outcome, surroundings, write_config
from tests.house.forks import Process, fork, fresh
from tests.house.paths import ROOT
from tests.house.waiting import PATIENCE, until

PLAIN = list(SFL)


def left_running(folder: Path) -> list[str]:
    """Command lines of processes that know this folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(folder) in line and process.pid != os.getpid():
            found.append(line)
    return found


class ByHand:
    """Nodes started one by one, as they are on several machines."""

    edge_lines = ""
    """Further lines of the edge's file."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder = folder
        self.values = values
        self.processes: list[Process] = []
        self.config = write_config(folder, values)
        self.cloud = self.start("cloud", self.config)
        cloud = self.address("cloud")
        self.edge_file = folder / "edge.toml"
        self.edge_file.write_text(
            f'[edge]\ncloud = "{cloud}"\nthreads = 1\ncache_dir = "{folder / "cache"}"\n'
            f"{self.edge_lines}"
        )
        self.edge = self.start("edge", self.edge_file)
        self.edge_address = self.address("edge")

    def start(self, kind: str, file: Path, name: str = "") -> Process:
        command = [kind, str(file), *self.options(name or kind)]
        if kind != "device":
            command += ["--address-file", str(self.folder / f"{name or kind}.address")]
        log = self.folder / f"{name or kind}.log"
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            **self.environment(name or kind),
        }
        process: Process
        if SFL != PLAIN:  # what a node is wrapped in
            with log.open("ab") as said:
                process = subprocess.Popen(
                    [*SFL, *command], stdout=said, stderr=said, cwd=ROOT, env=environment
                )
        else:
            process = fork(command, environment, log)
        self.processes.append(process)
        return process

    def environment(self, name: str) -> dict[str, str]:
        """Further environment of a node; none here."""
        return {}

    def options(self, name: str) -> list[str]:
        """Further options of a node; none here."""
        return []

    def device(
        self, number: int, least_cut: int = 0, edge: str | None = None, more: str = ""
    ) -> Process:
        name = self.values["devices"][number]["name"]
        file = self.folder / f"{name}.toml"
        file.write_text(
            f'[device]\nname = "{name}"\nedge = "{edge or self.edge_address}"\nthreads = 1\n'
            f'train = "{self.folder / f"{name}.jsonl"}"\ncache_dir = "{self.folder / "cache"}"\n'
            f"connect_timeout = 10\nconsent = {{min_cut_layer = {least_cut}}}\n{more}"
        )
        return self.start("device", file, name)

    def address(self, kind: str) -> str:
        path = self.folder / f"{kind}.address"
        until(path.exists, f"address of the {kind}")
        return path.read_text().strip()

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""  # a node makes it when it begins

    def metrics(self, name: str) -> str:
        """What Prometheus would scrape from a node."""
        url = re.search(r"metrics at (http://\S+)", self.log(name))
        assert url is not None
        with urllib.request.urlopen(url[1], timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def status(self) -> dict[str, Any]:
        path = self.folder / "runs" / "t" / "status.json"
        values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return values

    def outcome(self) -> Outcome:
        code = self.cloud.wait(PATIENCE)
        return Outcome(code, self.log("cloud"), self.folder / "runs" / "t")

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


class ManyEdges(ByHand):
    """A cloud and several edges that share a store of snapshots; each has a cache of its own."""

    def __init__(self, folder: Path, values: dict[str, Any], names: Sequence[str]) -> None:
        self.edges: dict[str, Process] = {}
        self.addresses: dict[str, str] = {}
        self.names = names
        self.edge_lines = f'name = "{names[0]}"\nsnapshots = "file://{folder / "store"}"\n'
        super().__init__(folder, values)
        self.edges[names[0]], self.addresses[names[0]] = self.edge, self.edge_address
        for name in names[1:]:
            file = folder / f"{name}.toml"
            text = self.edge_file.read_text()
            text = text.replace(f'"{folder / "cache"}"', f'"{folder / "cache" / name}"')
            file.write_text(text.replace(f'name = "{names[0]}"', f'name = "{name}"'))
            self.edges[name] = self.start("edge", file, name)
            self.addresses[name] = self.address(name)

    def places(self) -> dict[str, tuple[str, int]]:
        """Where each device is, and how often it came to another edge."""
        devices = self.status().get("devices", ())
        return {own["name"]: (own["edge"], own["handovers"]) for own in devices}


def launched(folder: Path, values: dict[str, Any], *options: str, alone: bool = False) -> Process:
    """`sfl run` amid its first round; `alone` as a user's: with processes of its own."""
    command = ["run", str(write_config(folder, values)), *options]
    process = (fresh if alone else fork)(command, surroundings())
    until(lambda: _training(folder), "the first steps")
    return process


def _training(folder: Path) -> bool:
    path = folder / "runs" / "t" / "status.json"
    return path.exists() and any(d["step"] > 2 for d in json.loads(path.read_text())["devices"])


def node_process(folder: Path, name: str) -> psutil.Process:
    """A node of the run, by its command line."""
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if line.startswith("sfl ") and f"/{name}.error" in line and str(folder) in line:
            return process
    raise AssertionError(f"{name} is not running")
