"""All cells of the fault matrix."""

from __future__ import annotations

import signal

from tests.faults import disks, kills, links
from tests.faults.kills import kill
from tests.faults.lab import Fault, Setup

ALL: list[Fault] = [
    *kills.killed(),
    *kills.stopped(),
    *kills.coded(),
    *disks.filled(),
    *links.weather(),
    *links.torn(),
]
VANILLA, U_SHAPED = Setup("vanilla"), Setup("u_shaped")
SHORT: list[Fault] = [
    kill("forward in flight", "d0", VANILLA),
    kill("snapshot write", "d0", U_SHAPED),
    kill("between the two optimizer steps", "edge", U_SHAPED),
    kill("update upload", "edge", VANILLA),
    kill("aggregation", "cloud", VANILLA),
    kill("evaluation", "cloud", U_SHAPED),
    kill("backward in flight", "d0", U_SHAPED, signal.SIGSTOP),
]
"""Those that every run of the tests plays: each role, in both topologies."""
