"""A service and its agents as processes, and commands of its operators."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from sfl.node.certificates.authority import Authority
from sfl.node.certificates.own import OwnCertificate, own_in
from sfl.transport.jobs.client import ServiceClient
from tests.house.federation import Outcome, sfl, surroundings
from tests.house.fleets import completions, device, settings, tiny
from tests.house.forks import AGENTS, Process, fork
from tests.house.tls import give
from tests.house.waiting import PATIENCE, until

NAMES = ("d0", "d1")


def data_in(folder: Path) -> dict[str, Path]:
    """Each device's own file."""
    return {
        name: completions(folder / f"{name}.jsonl", number) for number, name in enumerate(NAMES)
    }


class Served:
    """A service, one edge agent and device agents, started by hand in a folder."""

    program = AGENTS
    """What its processes are: with nodes that are forked, or with `sfl.cli` as a user's."""

    def __init__(self, folder: Path, max_runs: int = 2, devices: Sequence[str] = NAMES) -> None:
        self.folder = folder
        self.max_runs = max_runs
        self.processes: dict[str, Process] = {}
        self.data = data_in(folder)
        self.output_dir = folder / "runs"
        self.listen = self.edge_address = "127.0.0.1:0"
        self.start_service()
        self.start_edge()
        for name in devices:
            self.start_device(name)

    # -- processes --------------------------------------------------------------------------------

    def options(self, name: str) -> list[str]:
        """Further options of a process; none here."""
        return []

    def start_service(self) -> None:
        """At the same address as before, if there was one."""
        file = self.folder / "service.address"
        file.unlink(missing_ok=True)
        self._start(
            "service",
            *("cloud", "--output-dir", str(self.output_dir), "--max-runs", str(self.max_runs)),
            *("--set", f"service.listen={self.listen!r}", "--address-file", str(file)),
        )
        until(lambda: file.exists() and file.read_text(), "the service's address")
        self.listen = file.read_text()

    def start_edge(self) -> None:
        file, address = self.folder / "edge.toml", self.folder / "edge.address"
        own = {
            "threads": 1,
            "cache_dir": str(self.folder / "cache"),
            "service": self.listen,
            "listen": self.edge_address,
        }
        file.write_text(tomli_w.dumps({"edge": own}))
        address.unlink(missing_ok=True)
        self._start("edge", "edge", str(file), "--address-file", str(address))
        until(lambda: address.exists() and address.read_text(), "the edge's address")
        self.edge_address = address.read_text()

    def start_device(self, name: str, service: str = "", **more: Any) -> None:
        """Attached through its edge, unless another address is named."""
        file = self.folder / f"{name}.toml"
        own = {
            "name": name,
            "threads": 1,
            "train": str(self.data[name]),
            "cache_dir": str(self.folder / "cache"),
            **more,
        }
        file.write_text(tomli_w.dumps({"device": own}))
        self._start(name, "device", str(file), "--service", service or self.edge_address)

    def _start(self, name: str, *command: str) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        log = self.folder / f"{name}.log"
        self.processes[name] = fork([*command, *self.options(name)], environment, log, self.program)

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait(PATIENCE)

    def stop(self) -> None:
        """All of it; a node is gone soon after its agent."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        until(lambda: not self.nodes(), "the end of all nodes")

    def nodes(self) -> list[str]:
        """Command lines of nodes of runs that are there."""
        modules = ("cloud_aggregator", "edge_server", "device_agent")
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or [])
            if str(self.folder) in line and any(f"-m {module}" in line for module in modules):
                found.append(line)
        return found

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    # -- operators --------------------------------------------------------------------------------

    def run_file(self, name: str, devices: Sequence[str] = NAMES, **sections: Any) -> Path:
        """A run's file; the same run by itself is `values`."""
        path = self.folder / f"{name}.toml"
        values = run_of(self.data, devices, **sections)
        values["run"] = {**values["run"], "id": name}
        path.write_text(tomli_w.dumps(values))
        return path

    def sfl(self, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """A command of an operator's."""
        where = ("--service", self.listen, *self.operator())
        return sfl(command, *arguments, *where, timeout=PATIENCE)

    def operator(self) -> list[str]:
        """Further options of commands; none here."""
        return []

    def json(self, command: str, *arguments: str | Path) -> Any:
        done = self.sfl(command, *arguments, "--format", "json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def submit(self, name: str, devices: Sequence[str] = NAMES, **sections: Any) -> str:
        run: str = self.json("submit", self.run_file(name, devices, **sections))["run"]
        return run

    def standing(self, run: str = "") -> Any:
        """What `sfl status --format json` prints, asked from here: it is waited for often."""
        client = ServiceClient(self.listen, False, self.operators_own(), PATIENCE)
        try:
            return client.standing(run).as_json()
        finally:
            client.close()

    def operators_own(self) -> OwnCertificate | None:
        """What an operator shows; nothing here."""
        return None

    def row(self, run: str) -> dict[str, Any]:
        row: dict[str, Any] = self.standing(run)["runs"][0]
        return row

    def status(self, run: str) -> dict[str, Any]:
        """As its cloud says it; empty before it does."""
        path = self.output_dir / run / "status.json"
        values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return values

    def ended(self, run: str) -> Outcome:
        """Wait for a run's end."""
        row = until(lambda: (found := self.row(run))["ended_at"] and found, f"the end of {run}")
        code = 0 if row["state"] == "finished" else 1
        return Outcome(code, f"{row}\n{self.log('service')}", self.output_dir / run)

    def attached(self, count: int = 3) -> list[dict[str, Any]]:
        """Wait until so many agents are there."""

        until(lambda: len(self.standing()["agents"]) == count, f"{count} agents")
        return self.json("status")["agents"]  # type: ignore[no-any-return]

    def at_rest(self) -> None:
        """Wait until no agent has a run."""
        until(
            lambda: all(not agent["runs"] for agent in self.standing()["agents"]), "agents at rest"
        )


class GuardedService(Served):
    """With certificates on every link; a device attaches to the service itself."""

    def __init__(self, folder: Path) -> None:
        self.authority, _ = Authority.init(folder / "ca")
        self.certs = folder / "certs"
        for role, name in (("cloud", "service"), ("edge", "edge"), ("operator", "anna")):
            self.give(role, name)
        for name in ("d0", "d1"):
            self.give("device", name)
        super().__init__(folder, devices=["d0"])
        self.start_device("d1", self.listen)

    def give(self, role: Any, name: str) -> Path:
        own = "cloud" if role == "cloud" else name
        hosts = ("127.0.0.1",) if role in ("cloud", "edge") else ()
        return give(self.authority, self.certs / name, role, own, *hosts)

    def options(self, name: str) -> list[str]:
        return ["--certs", str(self.certs / name)]

    def operator(self) -> list[str]:
        return ["--certs", str(self.certs / "anna")]

    def operators_own(self) -> OwnCertificate:
        return own_in(self.certs / "anna")


def started(served: Served, *command: str) -> Process:
    """An operator's command that goes on."""
    return fork([*command, "--service", served.listen, *served.operator()], surroundings())


def run_of(
    data: dict[str, Path], devices: Sequence[str] = NAMES, **sections: Any
) -> dict[str, Any]:
    """A run's settings for `sfl run` and for a service alike; `link` is each device's."""
    link = {"link": sections.pop("link")} if "link" in sections else {}
    own = {
        "run": {"rounds": 2, "keep_round_adapters": False, **sections.pop("run", {})},
        "training": {"local_steps": 10, **sections.pop("training", {})},
        **sections,
    }
    values = settings(tiny("llama"), **own)
    values["devices"] = [device(name, data[name], 1, **link) for name in devices]
    return values
