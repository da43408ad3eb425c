"""All cells of the fault matrix."""

from __future__ import annotations

import signal

from tests.faults import disks, kills, links
from tests.faults.kills import kill
from tests.faults.lab import Fault
from tests.faults.setup import Setup

ALL: list[Fault] = [
    *kills.killed(),
    *kills.stopped(),
    *kills.coded(),
    *disks.filled(),
    *links.weather(),
    *links.torn(),
    *kills.behind(),
    *links.torn_behind(),
    *links.torn_among_edges(),
    *links.broken_among_edges(),
    *kills.moved(),
    *kills.summed(),
]
VANILLA, U_SHAPED = Setup("vanilla"), Setup("u_shaped")
CHOSEN = {
    "full disk of edge, backward in flight, u_shaped",
    "full disk of cloud, update upload, vanilla",
    "device-edge: round trips of 0.2 s, vanilla",
    "device-edge: single bytes, u_shaped, TLS",
    "edge-cloud: a flipped bit up, vanilla",
    "cut in 'activation of training', device to edge, u_shaped, TLS",
    "cut in 'finish', cloud to edge, u_shaped, TLS",
}
"""Of full disks and links."""
BEHIND = {
    "kill stage, backward in flight, three_tier",
    "kill stage, update upload, three_tier_u_shaped, TLS",
    "edge-stage: half-open, three_tier_u_shaped, TLS",
    "cut in 'start', edge to stage, three_tier",
}
"""Of runs with a stage behind the edge."""
SHORT: list[Fault] = [
    kill("forward in flight", "d0", VANILLA),
    kill("snapshot write", "d0", U_SHAPED),
    kill("between the two optimizer steps", "edge", U_SHAPED),
    kill("update upload", "edge", VANILLA),
    kill("aggregation", "cloud", VANILLA),
    kill("evaluation", "cloud", U_SHAPED),
    kill("backward in flight", "d0", U_SHAPED, signal.SIGSTOP),
    *(cell for cell in kills.behind() if cell.name in BEHIND),
    *(cell for cell in [*links.weather(), *links.torn_behind()] if cell.name in BEHIND),
    *(cell for cell in [*disks.filled(), *links.weather(), *links.torn()] if cell.name in CHOSEN),
]
"""Those that every run of the tests plays: each role, in both topologies."""
