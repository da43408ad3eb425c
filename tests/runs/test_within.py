"""`recovery.snapshot_steps` on real processes: who is killed in a long round goes on within it."""

from __future__ import annotations

import re
import signal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.faults.lab import End, Lab, same_bits
from tests.faults.setup import Setup

pytestmark = pytest.mark.process

STEPS, EVERY, KILLED_AT = 40, 8, 20


class LongRounds(Setup):
    """Rounds of many steps, with snapshots within."""

    def values(self, folder: Path, cloud: str) -> dict[str, Any]:
        values = super().values(folder, cloud)
        values["training"]["local_steps"] = STEPS
        values["recovery"] = {"snapshot_steps": EVERY}
        for device in values["devices"]:
            device["link"] = {"delay_ms": 10}  # so that a round takes a while
        return values


SETUP = LongRounds("u_shaped", rounds=2)
DEVICES = SETUP.devices


class Long(Lab):
    """A node is killed once `d0` has done some steps of round 2."""

    limit = 240.0

    def __init__(self, folder: Path, victim: str | None) -> None:
        self.victim = victim
        self.killed_at: dict[str, int] = {}
        """The last step that each device was seen to take before that, from 0."""
        super().__init__(folder, SETUP)

    def _supervise(self) -> None:
        if self.victim is not None and not self.killed_at:
            taken = {device: self.steps(device)[-1:] for device in DEVICES}
            if taken["d0"] and taken["d0"][0] >= KILLED_AT:
                self.killed_at = {device: own[0] if own else -1 for device, own in taken.items()}
                self.nodes[self.victim].send_signal(signal.SIGKILL)
        super()._supervise()

    def steps(self, device: str) -> list[int]:
        """Steps of round 2 that a device has taken, in its order."""
        return [
            one["step"]
            for one in self.seen()
            if one["what"] == "step" and (one["node"], one["round"]) == (device, 2)
        ]


def played(folder: Path, victim: str | None) -> tuple[Long, End]:
    lab = Long(folder, victim)
    wrong = lab.play()
    assert not wrong, f"{wrong}\n{lab.logs()}"
    return lab, lab.end()


@cache
def undisturbed() -> End:
    with TemporaryDirectory() as folder:
        return played(Path(folder), None)[1]


@pytest.mark.parametrize("victim", ["d0", "edge"])
def test_who_is_killed_within_a_long_round_goes_on_from_its_last_snapshot(
    tmp_path: Path, victim: str
) -> None:
    lab, end = played(tmp_path, victim)
    whole = undisturbed()
    assert same_bits(end.adapter, whole.adapter) and end.facts == whole.facts
    assert end.files == whole.files
    hit = DEVICES if victim == "edge" else (victim,)
    for device in hit:
        log = (lab.folder / f"{device}.log").read_text()
        (after,) = map(int, re.findall(r"round 2 goes on after step (\d+)", log))
        # Both sides have it, and it is the last or the one before: one side may have died first.
        assert after % EVERY == 0 and after >= (lab.killed_at["d0"] // EVERY - 1) * EVERY > 0
        taken = lab.steps(device)
        again = len(taken) - 1 - taken[::-1].index(after)  # once only, if it was killed right there
        assert taken[again:] == list(range(after, STEPS)), "it begins again at that step"
        assert taken[:again] == list(range(again)), "and has taken each before once"
    for device in set(DEVICES) - set(hit):
        assert lab.steps(device) == list(range(STEPS))
