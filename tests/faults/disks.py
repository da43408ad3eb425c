"""Disks that are full in the middle of a run, and have room again after a while.

A node's folder is a small tmpfs of its own, so these need the right to mount.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.kills import PLACES
from tests.faults.lab import Lab
from tests.faults.setup import Setup

SIZE = "32m"
FULL_FOR = 2.0
"""Seconds until there is room again."""
MOST = 8
"""So many times as long at most, until those are started again whom the fault ends."""
SAYS = "its disk is full"


@dataclass
class FullDisk:
    """A node's disk is full from a place on, for a while. Who ends of it is started again."""

    victim: str
    phase: str
    watcher: str
    place: str
    setup: Setup = field(default_factory=Setup)
    may_end: bool = False
    """Whether its node may end; it then says why, in one line, and so may those who need it."""

    @property
    def name(self) -> str:
        return f"full disk of {self.victim}, {self.phase}, {self.setup}"

    def folder(self, lab: Lab) -> Path:
        return lab.folder / "runs" if self.victim == "cloud" else lab.cache(self.victim)

    def arm(self, lab: Lab) -> None:
        mount(self.folder(lab))
        trap = {"node": self.watcher, "place": self.place, "victim": self.victim}
        fill = str(self.folder(lab) / "filler")
        (lab.folder / "trap.json").write_text(json.dumps({**trap, "fill": fill}))

    def tend(self, lab: Lab) -> None:
        """Make room, and start again who has ended."""
        hit, filler = lab.hit(), self.folder(lab) / "filler"
        if hit is None or not self._is_due(lab, hit["at"]):
            return
        if filler.exists():
            filler.unlink()
            lab.note_hit(self.victim)  # from now on it can go on
        if not self.may_end:
            return
        if self.victim == "cloud" and not lab.restarts["cloud"] and not ended(lab, "cloud"):
            return
        others = [name for name in lab.setup.names if name != self.victim]
        told = self.victim != "cloud" or all(ended(lab, name) for name in others)
        if not told and time.monotonic() - hit["at"] < MOST * FULL_FOR:
            return  # the others end as well, for its reason
        for name in lab.setup.names:
            if ended(lab, name) and not lab.restarts[name]:
                lab.start_again(name)

    def _is_due(self, lab: Lab, hit: float) -> bool:
        """After a while; or sooner, where the run would be over by then."""
        if time.monotonic() - hit > FULL_FOR or lab.are_over():
            return True
        return not self.may_end and SAYS in self._log(lab)

    def _log(self, lab: Lab) -> str:
        return (lab.folder / f"{self.victim}.log").read_text()

    def wrong(self, lab: Lab) -> list[str]:
        """What its node has said, where it may end; and its disk is taken away again."""
        unmount(self.folder(lab))
        text = self._log(lab)
        wrong = [] if lab.hit() is not None else ["it never struck"]
        wrong += [] if SAYS in text else [f"{self.victim} does not say so"]
        return wrong + (["a traceback"] if "Traceback" in text else [])


def ended(lab: Lab, name: str) -> bool:
    """Whether a node's process is over, and not because the run is."""
    return lab.nodes[name].poll() not in (None, 0)


def may_mount(folder: Path) -> bool:
    """Whether this user may mount a file system."""
    try:
        mount(folder)
    except (OSError, subprocess.CalledProcessError):
        return False
    unmount(folder)
    return True


def mount(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)],
        check=True,
        capture_output=True,
    )


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def full(victim: str, phase: str, setup: Setup, may_end: bool = False) -> FullDisk:
    watcher, place = PLACES[phase][victim]
    return FullDisk(victim, phase, watcher, place, setup, may_end)


def filled() -> list[FullDisk]:
    found = []
    for setup in (Setup("vanilla"), Setup("u_shaped")):
        found += [
            full("d0", "backward in flight", setup),
            full("d0", "weights transfer", setup, may_end=True),
            full("edge", "backward in flight", setup),
            full("cloud", "backward in flight", setup, may_end=True),
            full("cloud", "snapshot write", setup, may_end=True),
            full("cloud", "update upload", setup, may_end=True),
            full("cloud", "aggregation", setup, may_end=True),
            full("cloud", "evaluation", setup, may_end=True),
        ]
    return found
