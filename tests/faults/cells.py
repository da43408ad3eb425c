"""All cells of the fault matrix."""

from __future__ import annotations

import signal

from tests.faults.lab import Cell

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


def cell(phase: str, victim: str, topology: str, **more: object) -> Cell:
    watcher, place = PLACES[phase][victim]
    return Cell(victim, phase, watcher, place, topology, **more)  # type: ignore[arg-type]


def killed() -> list[Cell]:
    return [
        cell(phase, victim, topology)
        for topology in ("vanilla", "u_shaped")
        for phase, victims in PLACES.items()
        for victim in victims
    ]


def stopped() -> list[Cell]:
    return [
        cell("backward in flight", victim, topology, signal=signal.SIGSTOP)
        for topology in ("vanilla", "u_shaped")
        for victim in ("d0", "edge", "cloud")
    ]


def coded() -> list[Cell]:
    return [
        cell("backward in flight", victim, topology, codec="compact")
        for topology in ("vanilla", "u_shaped")
        for victim in ("d0", "edge", "cloud")
    ]


ALL = [*killed(), *stopped(), *coded()]
SHORT = [
    cell("forward in flight", "d0", "vanilla"),
    cell("snapshot write", "d0", "u_shaped"),
    cell("between the two optimizer steps", "edge", "u_shaped"),
    cell("update upload", "edge", "vanilla"),
    cell("aggregation", "cloud", "vanilla"),
    cell("evaluation", "cloud", "u_shaped"),
    cell("backward in flight", "d0", "u_shaped", signal=signal.SIGSTOP),
]
"""Those that every run of the tests plays: each role, in both topologies."""
