"""Nodes that are killed or stopped, in each phase of a run."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass

from tests.faults.lab import Lab, Setup

STOPPED = 8.0
"""Seconds that a node is stopped for: longer than the idle timeout."""


@dataclass(frozen=True)
class Kill:
    """A signal: whom it hits, in what phase, seen by whom at which place (`trapped.PLACES`)."""

    victim: str
    phase: str
    watcher: str
    place: str
    setup: Setup
    signal: int = signal.SIGKILL

    @property
    def name(self) -> str:
        kind = "kill" if self.signal == signal.SIGKILL else "stop"
        return f"{kind} {self.victim}, {self.phase}, {self.setup}"

    def arm(self, lab: Lab) -> None:
        trap = {"node": self.watcher, "place": self.place, "victim": self.victim}
        (lab.folder / "trap.json").write_text(json.dumps({**trap, "signal": int(self.signal)}))

    def tend(self, lab: Lab) -> None:
        """Continue a stopped node, once it has been silent for long enough."""
        if self.signal != signal.SIGSTOP:
            return
        hit = lab.hit()
        if hit is not None and time.monotonic() - hit["at"] > STOPPED:
            lab.nodes[self.victim].send_signal(signal.SIGCONT)

    def wrong(self, lab: Lab) -> list[str]:
        return [] if lab.hit() is not None else [f"never came to {self.place!r}"]


PLACES: dict[str, dict[str, tuple[str, str]]] = {
    "joining": {
        "d0": ("d0", "ready"),
        "edge": ("edge", "admitting"),
        "cloud": ("cloud", "cloud hears a device"),
    },
    "weights transfer": {
        "d0": ("d0", "fetching"),
        "edge": ("edge", "serving a file"),
        "cloud": ("d0", "fetching"),
    },
    "forward in flight": {
        "d0": ("d0", "activation sent"),
        "edge": ("edge", "activation came"),
        "cloud": ("d0", "activation sent"),
    },
    "backward in flight": {
        "d0": ("d0", "gradient came"),
        "edge": ("edge", "gradient made"),
        "cloud": ("edge", "gradient made"),
    },
    "between the two optimizer steps": {
        "d0": ("d0", "device before step"),
        "edge": ("edge", "edge after step"),
        "cloud": ("edge", "edge after step"),
    },
    "snapshot write": {
        "d0": ("d0", "snapshot half written"),
        "edge": ("edge", "snapshot half written"),
        "cloud": ("cloud", "journal's mark"),
    },
    "update upload": {
        "d0": ("d0", "update half sent"),
        "edge": ("edge", "update relayed"),
        "cloud": ("cloud", "update half written"),
    },
    "aggregation": {
        "d0": ("cloud", "averaging"),
        "edge": ("cloud", "averaging"),
        "cloud": ("cloud", "averaging"),
    },
    "plan broadcast": {
        "d0": ("d0", "round begins"),
        "edge": ("edge", "orders came"),
        "cloud": ("cloud", "orders go out"),
    },
    "evaluation": {
        "d0": ("d0", "evaluation sent"),
        "edge": ("edge", "evaluation came"),
        "cloud": ("d0", "evaluation sent"),
    },
    "last round": {
        "d0": ("d0", "last step sent"),
        "edge": ("edge", "last step came"),
        "cloud": ("d0", "last step sent"),
    },
    "last evaluation": {
        "d0": ("d0", "last evaluation sent"),
        "edge": ("edge", "last evaluation came"),
        "cloud": ("d0", "last evaluation sent"),
    },
}
"""By phase and victim: who sees that it is there, and at which place."""


TOPOLOGIES = (Setup("vanilla"), Setup("u_shaped"))


def kill(phase: str, victim: str, setup: Setup, signal: int = signal.SIGKILL) -> Kill:
    watcher, place = PLACES[phase][victim]
    return Kill(victim, phase, watcher, place, setup, signal)


def killed() -> list[Kill]:
    return [
        kill(phase, victim, setup)
        for setup in TOPOLOGIES
        for phase, victims in PLACES.items()
        for victim in victims
    ]


STAGE: dict[str, tuple[str, str]] = {
    "forward in flight": ("stage", "activation came"),
    "backward in flight": ("stage", "gradient made"),
    "between the two optimizer steps": ("stage", "edge after step"),
    "snapshot write": ("stage", "snapshot half written"),
    "update upload": ("stage", "stage's part sent"),
    "aggregation": ("cloud", "averaging"),
    "plan broadcast": ("stage", "stage begins"),
    "evaluation": ("stage", "evaluation came"),
    "last round": ("stage", "last step came"),
    "last evaluation": ("stage", "last evaluation came"),
}
"""The same for a stage behind the edge."""
TIERED = (Setup("three_tier"), Setup("three_tier_u_shaped", tls=True))


def behind() -> list[Kill]:
    """A stage that is killed or stopped, and what is before it where there is one."""
    found = [
        Kill("stage", phase, watcher, place, setup)
        for setup in TIERED
        for phase, (watcher, place) in STAGE.items()
    ]
    found += [
        kill(phase, victim, setup)
        for setup in TIERED
        for phase in ("joining", "backward in flight", "snapshot write", "update upload")
        for victim in ("d0", "edge", "cloud")
    ]
    stop = Kill("stage", "backward in flight", "stage", "gradient made", TIERED[0], signal.SIGSTOP)
    return [*found, stop]


def stopped() -> list[Kill]:
    return [
        kill("backward in flight", victim, setup, signal.SIGSTOP)
        for setup in TOPOLOGIES
        for victim in ("d0", "edge", "cloud")
    ]


def coded() -> list[Kill]:
    return [
        kill("backward in flight", victim, Setup(setup.topology, "compact"))
        for setup in TOPOLOGIES
        for victim in ("d0", "edge", "cloud")
    ]
