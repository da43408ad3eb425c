"""`python -m tests.faults.chaos [KILLS [SEED]]`: many random kills in one run, then its verdict.

A seed gives who is killed, and how much is done between two kills; so a run can be played again.
What is under way at a kill still depends on the machine. Exit code 1 where the end is another one.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.lab import DEVICES, LIMIT, Lab, Verdict, judge, undisturbed

MOST_DONE = 25
"""Things that are done between two kills, at most: a step on one side, or an event of the cloud."""
TOPOLOGIES = ("vanilla", "u_shaped")


class Chaos(Lab):
    """A run in which nodes are killed, one after another."""

    def __init__(self, folder: Path, kills: int, seed: int) -> None:
        drawn = random.Random(seed)
        topology = drawn.choice(TOPOLOGIES)
        super().__init__(folder, None, topology, "none", rounds_for(kills))
        self.topology = topology
        self.limit = LIMIT + 6 * kills
        self.most_restarts = kills
        names = ("cloud", "edge", *DEVICES)
        self.plan = [(drawn.choice(names), drawn.randint(2, MOST_DONE)) for _ in range(kills)]
        self.killed: list[str] = []
        self._done = 0

    def _supervise(self) -> None:
        super()._supervise()
        if len(self.killed) == len(self.plan):
            return
        victim, after = self.plan[len(self.killed)]
        path = self.folder / "seen.jsonl"
        done = path.read_bytes().count(b"\n") if path.exists() else 0
        if done - self._done >= after and self.nodes[victim].poll() is None:
            self.nodes[victim].kill()
            self.killed.append(victim)
            self._done = done
            until_gone(self, victim)


def until_gone(lab: Lab, victim: str) -> None:
    """Wait until the process that was killed is over, so that no kill meets it twice."""
    end = time.monotonic() + 10
    while lab.nodes[victim].poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def rounds_for(kills: int) -> int:
    """So many that a run does not end before its last kill."""
    return 3 + kills // 6


def chaos(folder: Path, kills: int, seed: int) -> tuple[Verdict, Chaos]:
    """Play a run with so many kills, and judge its end."""
    lab = Chaos(folder, kills, seed)
    whole = undisturbed(lab.topology, "none", lab.rounds)
    verdict = Verdict(None, lab.play(), replayed=lab.replayed(), logs=lab.logs())
    if len(lab.killed) < kills:
        verdict.wrong.append(f"over after {len(lab.killed)} of {kills} kills")
    judge(verdict, lab, whole)
    return verdict, lab


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        verdict, lab = chaos(Path(folder), kills, seed)
    counts = ", ".join(f"{name} {lab.killed.count(name)}" for name in ("cloud", "edge", *DEVICES))
    said = "the same end" if not verdict.wrong else "; ".join(one[:160] for one in verdict.wrong)
    seconds = time.monotonic() - began
    sys.stdout.write(
        f"seed {seed}, {lab.topology}, {lab.rounds} rounds, {len(lab.killed)} kills ({counts}), "
        f"{seconds:.0f} s: {said}\nbegun again: {verdict.replayed}\n"
    )
    if verdict.wrong and (keep := os.environ.get("SFL_FAULTS_LOGS")):
        (Path(keep) / f"chaos-{seed}.log").write_text(verdict.logs)
    sys.exit(bool(verdict.wrong))


if __name__ == "__main__":
    main()
