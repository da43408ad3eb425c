"""One run of real processes, one fault in it, and what it came to.

A supervisor stands for systemd: whoever was killed is started again by the same command.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load_file

from sfl.node.certificates.authority import Authority
from sfl.report.records import RoundRecord, read_records
from tests.faults.setup import SERVERS, STEPS, Hop, Setup
from tests.house.federation import write_config
from tests.house.forks import Fork, fork
from tests.house.proxy import Inside, Proxy
from tests.house.tls import give

LIMIT = 90.0
"""Seconds that a cell may take before it counts as hung."""
PAUSE = 0.3
"""Seconds before a killed node is started again."""


class Fault(Protocol):
    """What goes wrong in a run."""

    setup: Setup

    @property
    def name(self) -> str:
        """What it is, and in what kind of run."""

    def arm(self, lab: Lab) -> None:
        """Prepare it, before the first node starts."""

    def tend(self, lab: Lab) -> None:
        """Do what is due; called every few hundredths of a second."""

    def wrong(self, lab: Lab) -> list[str]:
        """What it finds amiss once the run is over."""


@dataclass
class Verdict:
    """What a cell came to; it holds where `wrong` is empty."""

    name: str
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
    in_turn = False
    """Whether a node starts only once those that it dials listen, so that it dials once."""

    def __init__(self, folder: Path, setup: Setup, fault: Fault | None = None) -> None:
        self.folder = folder
        self.setup = setup
        self.fault = fault
        self.nodes: dict[str, Fork] = {}
        self.restarts: Counter[str] = Counter()
        self.proxies: dict[Hop, Proxy] = {}
        self.near: dict[Hop, str] = {"device": "d0", "cloud": "edge", "stage": "edge"}
        """Whose way a proxy stands in."""
        self.late: set[str] = set()
        """Nodes that the fault starts."""
        self.gone: set[str] = set()
        """Nodes that are not started again."""
        self._asked: set[str] = set()
        servers = ("cloud", "stage", *setup.edges)
        self.ports = dict(zip(servers, free_ports(len(servers)), strict=True))
        self.config = write_config(folder, setup.values(folder, self._address("cloud")))
        if setup.tls:
            roles = (("device", name) for name in setup.devices)
            authority, _ = Authority.init(folder / "ca")
            edges = (("edge", name) for name in ("stage", *setup.edges))
            for role, name in (("cloud", "cloud"), *edges, *roles):
                hosts = () if role == "device" else ("127.0.0.1",)
                give(authority, folder / "certs" / name, role, name, *hosts)  # type: ignore[arg-type]
        self.place()
        self._write_nodes()

    def place(self) -> None:
        """What stands between the nodes, before they are written."""
        if self.fault is not None:
            self.fault.arm(self)

    def stand_between(self, hop: Hop, reads: bool = False) -> Proxy:
        """A proxy on a hop from its beginning to its end; under TLS `reads` looks into it."""
        inside = self._inside(hop) if reads and self.setup.tls else None
        proxy = Proxy(self._address(SERVERS[hop]), inside=inside)
        self.proxies[hop] = proxy.__enter__()
        return proxy

    def _inside(self, hop: Hop) -> Inside:
        """TLS as the server of a hop has it, and as its client has."""
        contexts = []
        names = SERVERS[hop], self.near[hop]
        kinds = (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
        for name, kind in zip(names, kinds, strict=True):
            files = self.folder / "certs" / name
            context = ssl.SSLContext(kind)
            context.load_cert_chain(files / f"{name}.pem", files / f"{name}.key")
            context.load_verify_locations(files / "ca.pem")
            context.verify_mode = ssl.CERT_REQUIRED
            context.set_alpn_protocols(["h2"])
            contexts.append(context)
        return Inside(*contexts)

    def _address(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    def _behind(self, hop: Hop, client: str, server: str = "") -> str:
        """Where the client of a hop dials."""
        server = server or SERVERS[hop]
        proxy = self.proxies.get(hop)
        if proxy is not None and (self.near[hop], SERVERS[hop]) == (client, server):
            return proxy.address
        return self._address(server)

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "t"

    def _write_nodes(self) -> None:
        """A file for each node."""
        setup = self.setup
        for name in setup.edges:
            (self.folder / f"{name}.toml").write_text(self._edge_file(name))
        (self.folder / "stage.toml").write_text(
            f'[stage]\nlisten = "{self._address("stage")}"\n{self._common("stage")}'
        )
        for name in setup.devices:
            home = setup.home(name)
            listed = ""
            if setup.placement != "configured":
                all_ = (f'{edge} = "{self._behind("device", name, edge)}"' for edge in setup.edges)
                listed = f"edges = {{{', '.join(all_)}}}\n"
            (self.folder / f"{name}.toml").write_text(
                f'[device]\nname = "{name}"\nedge = "{self._behind("device", name, home)}"\n'
                f'train = "{self.folder / f"{name}.jsonl"}"\n{listed}{self._common(name)}'
            )

    def _edge_file(self, name: str) -> str:
        setup = self.setup
        text = f'[edge]\nname = "{name}"\ncloud = "{self._behind("cloud", name)}"\n'
        text += f'listen = "{self._address(name)}"\n{self._common(name)}'
        text += f'snapshots = "file://{self.store}"\n' if len(setup.edges) > 1 else ""
        text += f'next = "{self._behind("stage", name)}"\n' if setup.tiered else ""
        return text + (f'model = "{self.folder / "none"}"\n' if name == setup.failing else "")

    def _common(self, name: str) -> str:
        dials = "" if name == "stage" else "connect_timeout = 30\n"
        return (
            f'threads = 1\nmetrics = {{enabled = false}}\n{dials}cache_dir = "{self.cache(name)}"\n'
        )

    @property
    def store(self) -> Path:
        """Of snapshots, where edges share one."""
        return self.folder / "store"

    def cache(self, name: str) -> Path:
        """Where a node keeps its files."""
        return self.folder / "cache" / name

    def start(self, name: str) -> None:
        """Start a node, or start it again."""
        if name == "cloud":
            command = ["cloud", str(self.config), "--resume", "auto"]
        else:
            kind = "edge" if name in self.setup.edges else "device"
            kind = "stage" if name == "stage" else kind
            command = [kind, str(self.folder / f"{name}.toml")]
        if self.setup.tls:
            command += ["--certs", str(self.folder / "certs" / name)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self.nodes[name] = fork(
            [name, str(self.folder), *command],
            environment,
            self.folder / f"{name}.log",
            "tests.faults.trapped",
        )

    def start_again(self, name: str) -> None:
        """As systemd does after a moment."""
        self.restarts[name] += 1
        time.sleep(PAUSE)
        self.start(name)

    def play(self) -> list[str]:
        """Run to the end; what was wrong with the processes themselves."""
        try:
            for name in self.setup.names:
                if name in self.late:
                    continue
                self.start(name)  # the first takes as long as the imports do
                end = time.monotonic() + self.limit
                while self.in_turn and not self._listens(name) and time.monotonic() < end:
                    time.sleep(0.02)
            while time.monotonic() < end:
                were_over = self.are_over()
                self._supervise()  # which may start somebody again
                if were_over and self.are_over():
                    break
                time.sleep(0.02)
            return list(self._complaints())
        finally:
            for proxy in self.proxies.values():
                proxy.__exit__(None, None, None)

    def _listens(self, name: str) -> bool:
        """Whether a node is there for those that dial it; nobody dials a device."""
        log = self.folder / f"{name}.log"
        return name in self.setup.devices or (log.exists() and "listens on" in log.read_text())

    def are_over(self) -> bool:
        """Whether every process has ended."""
        return all(node.poll() is not None for node in self.nodes.values())

    def _supervise(self) -> None:
        """As systemd: whoever was killed is started again."""
        for name, node in list(self.nodes.items()):
            dead = node.poll() == -signal.SIGKILL and name not in self.gone
            if dead and self.restarts[name] < self.most_restarts:
                self.start_again(name)
        if self.fault is not None:
            self.fault.tend(self)

    def _complaints(self) -> Iterator[str]:
        for name, node in self.nodes.items():
            if (code := node.poll()) is None:
                yield f"{name} hangs"
            elif code and name not in self.gone and name not in self.setup.turned_away:
                yield f"{name}: exit code {code}"
        for node in self.nodes.values():
            node.send_signal(signal.SIGCONT)
            node.kill()
        for node in self.nodes.values():
            node.wait(20)

    def seen(self) -> list[dict[str, Any]]:
        path = self.folder / "seen.jsonl"
        text = path.read_text() if path.exists() else ""
        *lines, _ = text.split("\n")  # the last one may not be whole yet
        return [json.loads(line) for line in lines]

    def note_hit(self, victim: str, sign: str = "") -> None:
        """The fault strikes now, from outside; `victim` is who has to recover from it.

        Its next work says that it has, or the next event of the kind `sign`.
        """
        told = {"at": time.monotonic(), "node": "lab", "what": "hit", "victim": victim}
        told |= {"sign": sign} if sign else {}
        with (self.folder / "seen.jsonl").open("a") as file:
            file.write(json.dumps(told) + "\n")

    def hit(self) -> dict[str, Any] | None:
        return next((one for one in self.seen() if one["what"] == "hit"), None)

    def once(self, what: str) -> bool:
        """Whether this is asked for the first time."""
        first = what not in self._asked
        self._asked.add(what)
        return first

    def has_taken(self, name: str, round_: int, step: int) -> bool:
        """Whether a device is behind a step."""
        wanted = {"node": name, "what": "step", "round": round_, "step": step}
        return any(wanted.items() <= one.items() for one in self.seen())

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
        folders = (self.run, self.store, self.folder / "cache")
        files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.folder)) for path in files)

    def places(self) -> dict[str, tuple[str, int]]:
        """Where each device was in the end, and how often it had moved."""
        status = json.loads((self.run / "status.json").read_text())
        return {own["name"]: (own["edge"], own["handovers"]) for own in status["devices"]}

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text()}" for p in self.folder.glob("*.log"))

    def recovery(self) -> float | None:
        """Seconds from the fault to the victim's first work after it; None where none was left."""
        hits = [one for one in self.seen() if one["what"] == "hit"]
        if not hits:
            return None
        hit = hits[-1]
        later = (
            one["at"] - hit["at"]
            for one in self.seen()
            if one["node"] == hit["victim"]
            and one["at"] > hit["at"]
            and hit.get("sign") in (None, one.get("event"))
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


def undisturbed(setup: Setup) -> End:
    """The end of a run without a fault, which is the same with TLS, and whoever may be silent."""
    return _undisturbed(replace(setup, tls=False, strikes=Setup.strikes))


@cache
def _undisturbed(setup: Setup) -> End:
    with TemporaryDirectory() as folder:
        lab = Lab(Path(folder), setup)
        lab.limit += 4 * setup.rounds
        wrong = lab.play()
        assert not wrong, f"{wrong}\n{lab.logs()}"
        return lab.end()


def tried(folder: Path, fault: Fault) -> Verdict:
    """Play a run with a fault, and hold its end against that of a run without."""
    whole = undisturbed(fault.setup)
    lab = Lab(folder, fault.setup, fault)
    verdict = Verdict(fault.name, lab.play(), replayed=lab.replayed(), seconds=lab.recovery())
    verdict.logs = lab.logs()
    judge(verdict, lab, whole)
    verdict.wrong += fault.wrong(lab)
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
    kept = tuple(f"cache/{name}/" for name in lab.gone)  # nobody is there to remove that
    other = [name for name in {*end.files} ^ {*whole.files} if not name.startswith(kept)]
    if other:
        verdict.wrong.append(f"other files: {sorted(other)}")


def same_bits(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(
        np.array_equal(found[name], wanted[name]) for name in found
    )
