"""What a run of the fault matrix is like, but for its fault: its nodes and their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.house.files import write_jsonl
from tests.house.fleets import fleet, tiny

ROUNDS, STEPS = 3, 4
IDLE = 4.0
"""Seconds of silence after which a peer counts as lost."""
FAILOVER = 1.0
"""Seconds after which a device dials another edge than its own."""

GRACE = 1.0
"""Seconds that a run waits for a device that may come back with other rows."""

Hop = Literal["device", "cloud", "stage"]
"""Where a proxy may stand: between d0 and the edge, an edge and the cloud, or the edge and the
stage behind it."""
SERVERS: dict[Hop, str] = {"device": "edge", "cloud": "cloud", "stage": "stage"}
"""Who is dialled."""
TWO = ("edge", "south")
"""Edges of a run that has two."""


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
    edges: tuple[str, ...] = ("edge",)
    """Devices are at them by turns, but where they are `together`: then all are at the first."""
    together: bool = False
    sums: bool = False
    """Edges add up what their devices train."""
    placement: str = "configured"
    unlike: bool = False
    """One more device has rows of another form, and is turned away."""
    shared: bool = False
    """The stage has one adapter for all devices."""
    failing: str = ""
    """An edge that has no model, and says so."""

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(f"d{number}" for number in range(self.count + self.unlike))

    @property
    def names(self) -> tuple[str, ...]:
        return "cloud", *(["stage"] if self.tiered else []), *self.edges, *self.devices

    @property
    def tiered(self) -> bool:
        """Whether a stage is behind the edge."""
        return self.topology.startswith("three_tier")

    @property
    def turned_away(self) -> tuple[str, ...]:
        """Whose process ends before the run does, and badly."""
        return *([self.failing] if self.failing else []), *self.devices[self.count :]

    def home(self, device: str) -> str:
        """The edge that a device dials."""
        return self.edges[0 if self.together else self.devices.index(device) % len(self.edges)]

    def connections(self, hop: Hop) -> int:
        """How many an undisturbed run makes over a hop: to a stage one for each device of d0's
        edge, and one for the end of the run."""
        here = [name for name in self.devices[: self.count] if self.home(name) == self.edges[0]]
        return len(here) + 1 if hop == "stage" else 1

    def __str__(self) -> str:
        kinds = {
            self.codec: self.codec != "none",
            "two edges": len(self.edges) > 1,
            "sums": self.sums,
            "shared": self.shared,
            "TLS": self.tls,
        }
        return ", ".join([self.topology, *(name for name, so in kinds.items() if so)])

    def values(self, folder: Path, cloud: str) -> dict[str, Any]:
        """The run's file; `cloud` is where its cloud listens."""
        clip = {"max_grad_norm": 0.5} if self.clip else {}
        run: dict[str, Any] = {"placement": self.placement} if len(self.edges) > 1 else {}
        run |= {"edges": list(self.edges)} if len(self.edges) > 1 else {}
        values = fleet(
            folder,
            len(self.devices),
            run={
                **run,
                "topology": self.topology,
                "rounds": self.rounds,
                "min_devices": self.count,
            },
            training={"local_steps": STEPS, **clip},
            codec={"activation": self.codec, "gradient": self.codec},
            evaluation={"every": 1},
            aggregation={"strikes": self.strikes, **({"sums": "at_edges"} if self.sums else {})},
            network={
                "idle_timeout": IDLE,
                "heartbeat_interval": 0.5,
                "rejoin_timeout": 60,
                "failover_seconds": FAILOVER,
                **({"join_grace": GRACE} if self.unlike else {}),
            },
            cloud={"listen": cloud, "metrics": {"enabled": False}},
        )
        if self.tiered:
            values["model"]["path"] = str(tiny("llama", '{"num_hidden_layers": 4}'))
            values["stages"] = {"cuts": [2], **({"adapters": "shared"} if self.shared else {})}
        if self.topology.endswith("u_shaped"):
            for device in values["devices"]:
                device["tail_layers"] = 1
        if self.unlike:
            rows = [{"text": f"w{n} w{n + 1} w{n + 2} w{n + 3}"} for n in range(14)]
            write_jsonl(folder / f"{self.devices[-1]}.jsonl", rows)
        return values
