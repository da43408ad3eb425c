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
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

import numpy as np
from safetensors.numpy import load_file

from sfl.node.certificates.authority import Authority
from sfl.report.records import RoundRecord, read_records
from tests.house.federation import write_config
from tests.house.fleets import fleet, tiny
from tests.house.forks import Fork, fork
from tests.house.proxy import Inside, Proxy
from tests.house.tls import give

ROUNDS, STEPS = 3, 4
LIMIT = 90.0
"""Seconds that a cell may take before it counts as hung."""
IDLE = 4.0
"""Seconds of silence after which a peer counts as lost."""
PAUSE = 0.3
"""Seconds before a killed node is started again."""


Hop = Literal["device", "cloud", "stage"]
"""Where a proxy may stand: between d0 and the edge, the edge and the cloud, or the edge and the
stage behind it."""
SERVERS: dict[Hop, str] = {"device": "edge", "cloud": "cloud", "stage": "stage"}
"""Who is dialled."""


@dataclass(frozen=True)
class Setup:
    """What a run is like, but for its fault."""

    topology: str = "vanilla"
    codec: str = "none"
    rounds: int = ROUNDS
    clip: bool = False
    """Both sides exchange the norms of their gradients."""
    tls: bool = False
    count: int = 2
    """Of devices."""
    strikes: int = 3
    """A device that is silent so often is out: where links are half-open all the time, more."""

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(f"d{number}" for number in range(self.count))

    @property
    def names(self) -> tuple[str, ...]:
        return "cloud", *(["stage"] if self.tiered else []), "edge", *self.devices

    @property
    def tiered(self) -> bool:
        """Whether a stage is behind the edge."""
        return self.topology.startswith("three_tier")

    def connections(self, hop: Hop) -> int:
        """How many an undisturbed run makes over a hop: to a stage one for each device."""
        return self.count if hop == "stage" else 1

    def __str__(self) -> str:
        codec = "" if self.codec == "none" else f", {self.codec}"
        return f"{self.topology}{codec}{', TLS' if self.tls else ''}"


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
        self.ports = dict(zip(("cloud", "edge", "stage"), free_ports(3), strict=True))
        self.commands: dict[str, list[str]] = {}
        self.config = write_config(folder, self._values())
        if setup.tls:
            roles = (("device", name) for name in setup.devices)
            authority, _ = Authority.init(folder / "ca")
            servers = (("cloud", "cloud"), ("edge", "edge"), ("edge", "stage"))
            for role, name in (*servers, *roles):
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
        names = SERVERS[hop], "d0" if hop == "device" else "edge"
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

    def _behind(self, hop: Hop) -> str:
        """Where the client of a hop dials."""
        if (proxy := self.proxies.get(hop)) is not None:
            return proxy.address
        return self._address(SERVERS[hop])

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "t"

    def _values(self) -> dict[str, Any]:
        setup = self.setup
        clip = {"max_grad_norm": 0.5} if setup.clip else {}
        values = fleet(
            self.folder,
            setup.count,
            run={"topology": setup.topology, "rounds": setup.rounds, "min_devices": setup.count},
            training={"local_steps": STEPS, **clip},
            codec={"activation": setup.codec, "gradient": setup.codec},
            evaluation={"every": 1},
            aggregation={"strikes": setup.strikes},
            network={"idle_timeout": IDLE, "heartbeat_interval": 0.5, "rejoin_timeout": 60},
            cloud={"listen": self._address("cloud"), "metrics": {"enabled": False}},
        )
        if setup.tiered:
            values["model"]["path"] = str(tiny("llama", '{"num_hidden_layers": 4}'))
            values["stages"] = {"cuts": [2]}
        if setup.topology.endswith("u_shaped"):
            for device in values["devices"]:
                device["tail_layers"] = 1
        return values

    def _write_nodes(self) -> None:
        common = "threads = 1\nconnect_timeout = 30\n"
        (self.folder / "edge.toml").write_text(
            f'[edge]\ncloud = "{self._behind("cloud")}"\nlisten = "{self._address("edge")}"\n'
            f'{common}cache_dir = "{self.cache("edge")}"\nmetrics = {{enabled = false}}\n'
            + (f'next = "{self._behind("stage")}"\n' if self.setup.tiered else "")
        )
        (self.folder / "stage.toml").write_text(
            f'[stage]\nlisten = "{self._address("stage")}"\nmetrics = {{enabled = false}}\n'
            f'{common}cache_dir = "{self.cache("stage")}"\n'
        )
        for name in self.setup.devices:
            edge = self._behind("device") if name == "d0" else self._address("edge")
            (self.folder / f"{name}.toml").write_text(
                f'[device]\nname = "{name}"\nedge = "{edge}"\n{common}'
                f'train = "{self.folder / f"{name}.jsonl"}"\n'
                f'cache_dir = "{self.cache(name)}"\nmetrics = {{enabled = false}}\n'
            )

    def cache(self, name: str) -> Path:
        """Where a node keeps its files."""
        return self.folder / "cache" / name

    def start(self, name: str) -> None:
        """Start a node, or start it again."""
        if name == "cloud":
            command = ["cloud", str(self.config), "--resume", "auto"]
        else:
            kind = name if name in ("edge", "stage") else "device"
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
            if node.poll() == -signal.SIGKILL and self.restarts[name] < self.most_restarts:
                self.start_again(name)
        if self.fault is not None:
            self.fault.tend(self)

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
        folders = (self.run, self.folder / "cache")
        files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.folder)) for path in files)

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


@cache
def undisturbed(setup: Setup) -> End:
    """The end of a run without a fault."""
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
    if end.files != whole.files:
        verdict.wrong.append(f"other files: {sorted(set(end.files) ^ set(whole.files))}")


def same_bits(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(
        np.array_equal(found[name], wanted[name]) for name in found
    )
