"""Nodes that are killed or stopped, in each phase of a run."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass

from tests.faults.lab import Lab
from tests.faults.setup import TWO, Setup

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
    for_good: bool = False
    """Nobody starts it again: its devices go to the other edge."""
    asks: bool = False
    """In round 1 d0 asks for the other edge."""

    @property
    def name(self) -> str:
        kind = "kill" if self.signal == signal.SIGKILL else "stop"
        victim = f"{self.victim}{' for good' if self.for_good else ''}"
        return f"{kind} {victim}, {self.phase}, {self.setup}"

    def arm(self, lab: Lab) -> None:
        trap = {"node": self.watcher, "place": self.place, "victim": self.victim}
        if self.for_good:
            lab.gone.add(self.victim)
            trap["recovers"] = "d0"
        (lab.folder / "trap.json").write_text(json.dumps({**trap, "signal": int(self.signal)}))

    def tend(self, lab: Lab) -> None:
        """Continue a stopped node, once it has been silent for long enough."""
        if self.asks and lab.has_taken("d0", 1, 1) and lab.once("asked"):
            lab.nodes["d0"].send_signal(signal.SIGUSR1)
        if self.signal != signal.SIGSTOP:
            return
        hit = lab.hit()
        if hit is not None and time.monotonic() - hit["at"] > STOPPED:
            lab.nodes[self.victim].send_signal(signal.SIGCONT)

    def wrong(self, lab: Lab) -> list[str]:
        if lab.hit() is None:
            return [f"never came to {self.place!r}"]
        # One that was to go, and is killed or finds nobody there, may stay where it is.
        moved = self.victim == "d1" if self.asks else self.for_good
        if moved and (place := lab.places()["d0"]) != ("south", 1):
            return ["d0 is at {} after {} moves".format(*place)]
        return []


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


HANDING_OVER = {
    "d0": ("d0", "told to go"),
    "d1": ("d0", "told to go"),
    "edge": ("edge", "handing over"),
    "south": ("south", "admitting d0"),
    "cloud": ("cloud", "sending on"),
}
"""The same while d0, which has asked for it, goes on to the other edge."""
ADDING_UP = {
    "d0": ("edge", "adding up"),
    "edge": ("edge", "adding up"),
    "cloud": ("edge", "adding up"),
}
"""The same while edges add up what their devices have trained."""
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
        kill(phase, victim, setup, signal.SIGSTOP)
        for setup in TOPOLOGIES
        for phase, victims in PLACES.items()
        for victim in victims
    ]


def coded() -> list[Kill]:
    return [
        kill("backward in flight", victim, Setup(setup.topology, "compact"))
        for setup in TOPOLOGIES
        for victim in ("d0", "edge", "cloud")
    ]


MOVED = ("forward in flight", "snapshot write", "update upload", "aggregation", "evaluation")
"""Phases in which an edge dies for good."""
APART = (Setup("vanilla", edges=TWO), Setup("u_shaped", edges=TWO, tls=True))
TIERED_APART = (
    Setup("three_tier", edges=TWO),
    Setup("three_tier_u_shaped", edges=TWO, tls=True),
)
SUMMED = (
    Setup("vanilla", edges=TWO, sums=True),
    Setup("u_shaped", edges=TWO, sums=True, tls=True),
)


def moved() -> list[Kill]:
    """Two edges: d0 goes to the other one, since its own dies or since it asks for that."""
    found: list[Kill] = []
    for setup in (*APART, *TIERED_APART):
        for phase in MOVED:
            watcher, place = PLACES[phase]["edge"]
            found.append(Kill("edge", phase, watcher, place, setup, for_good=True))
        found += [
            Kill(victim, "handover", watcher, place, setup, asks=True)
            for victim, (watcher, place) in HANDING_OVER.items()
        ]
        found += [kill("backward in flight", victim, setup) for victim in ("edge", "cloud")]
    watcher, place = STAGE["backward in flight"]
    stages = (Kill("stage", "backward in flight", watcher, place, own) for own in TIERED_APART)
    return [*found, *stages]


def summed() -> list[Kill]:
    """Two edges add up what their devices train."""
    found: list[Kill] = []
    for setup in SUMMED:
        found += [
            Kill(victim, "sum", watcher, place, setup)
            for victim, (watcher, place) in ADDING_UP.items()
        ]
        found += [
            kill(phase, victim, setup)
            for phase in ("snapshot write", "aggregation", "last round")
            for victim in ("d0", "edge", "cloud")
        ]
        found.append(Kill("edge", "sum", "edge", "adding up", setup, for_good=True))
    return found
