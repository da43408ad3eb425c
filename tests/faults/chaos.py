"""`python -m tests.faults.chaos [FAULTS [SEED]]`: many random faults in one run, then its verdict.

Nodes are killed, and links break on both hops. A seed gives what strikes whom, and how much is done
between two faults; so a run can be played again. What is under way at a fault still depends on the
machine. Exit code 1 where the end is another one.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.lab import LIMIT, Lab, Verdict, judge, undisturbed
from tests.faults.setup import IDLE, Hop, Setup
from tests.house.http2 import Conversation, Passed
from tests.house.proxy import BOTH, Proxy, Way

MOST_DONE = 40
"""Things that are done between two faults, at most: steps on a side, or events of the cloud."""
KILLS = 0.6
"""So many of all faults are kills."""
LINKS = ("reset", "torn", "flipped up", "flipped down", "half-open", "no way up", "no way down")
NAMES = Setup().names
LONG = 1.5 * IDLE
"""Seconds for which nothing gets through a link."""


@dataclass(frozen=True)
class Strike:
    """A fault: what strikes whom, a node or a hop, after so many things that were done."""

    what: str
    whom: str
    after: int


def plan(drawn: random.Random, count: int) -> list[Strike]:
    """So many faults, as a seed has them."""
    found = []
    for _ in range(count):
        after = drawn.randint(2, MOST_DONE)
        if drawn.random() < KILLS:
            found.append(Strike("kill", drawn.choice(NAMES), after))
        else:
            found.append(Strike(drawn.choice(LINKS), drawn.choice(("device", "cloud")), after))
    return found


class Chaos(Lab):
    """A run in which one fault follows another."""

    def __init__(self, folder: Path, count: int, seed: int) -> None:
        drawn = random.Random(seed)
        topology, tls = drawn.choice(("vanilla", "u_shaped")), drawn.random() < 0.5
        super().__init__(
            folder, Setup(topology, rounds=rounds_for(count), tls=tls, strikes=count + 1)
        )
        self.limit = LIMIT + 20 * count
        self.most_restarts = count
        self.plan = plan(drawn, count)
        self.struck: list[Strike] = []
        self._done = 0
        self._torn: set[Hop] = set()
        self._mends: list[tuple[float, Proxy]] = []

    def place(self) -> None:
        """Proxies on both hops."""
        hops: tuple[Hop, ...] = ("device", "cloud")
        for hop in hops:
            tears = partial(self._tears, hop)
            self.stand_between(hop, reads=True).watch = partial(Conversation, tears)

    def _tears(self, hop: Hop, passed: Passed) -> bool:
        """Whether a link is cut off in this message: the next that is no heartbeat."""
        due = hop in self._torn and passed.kind != "heartbeat"
        if due:
            self._torn.discard(hop)
        return due

    def _supervise(self) -> None:
        super()._supervise()
        now = time.monotonic()
        for end, proxy in self._mends:
            if now >= end:
                proxy.blocked = set()
        self._mends = [one for one in self._mends if one[0] > now]
        if len(self.struck) == len(self.plan):
            return
        due = self.plan[len(self.struck)]
        path = self.folder / "seen.jsonl"
        done = path.read_bytes().count(b"\n") if path.exists() else 0
        if done - self._done >= due.after and self._strikes(due):
            self.struck.append(due)
            self._done = done

    def _strikes(self, due: Strike) -> bool:
        """Have a fault strike; whether it has, or its node is just not there."""
        if due.what != "kill":
            self._break(due.what, "device" if due.whom == "device" else "cloud")
            return True
        if self.nodes[due.whom].poll() is not None:
            return False
        self.nodes[due.whom].kill()
        until_gone(self, due.whom)
        return True

    def _break(self, what: str, hop: Hop) -> None:
        proxy = self.proxies[hop]
        ways: dict[str, set[Way]] = {
            "half-open": set(BOTH),
            "no way up": {"up"},
            "no way down": {"down"},
        }
        others: dict[str, Callable[[], object]] = {
            "reset": proxy.cut,
            "torn": lambda: self._torn.add(hop),
            "flipped up": lambda: proxy.flip("up", 40),
            "flipped down": lambda: proxy.flip("down", 40),
        }
        if what in ways:
            proxy.blocked = ways[what]
            self._mends.append((time.monotonic() + LONG, proxy))
        else:
            others[what]()


def until_gone(lab: Lab, victim: str) -> None:
    """Wait until the process that was killed is over, so that no kill meets it twice."""
    end = time.monotonic() + 10
    while lab.nodes[victim].poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def rounds_for(count: int) -> int:
    """So many that a run does not end before its last fault."""
    return 3 + count // 2


def chaos(folder: Path, count: int, seed: int) -> tuple[Verdict, Chaos]:
    """Play a run with so many faults, and judge its end."""
    lab = Chaos(folder, count, seed)
    whole = undisturbed(lab.setup)
    verdict = Verdict("chaos", lab.play(), replayed=lab.replayed(), logs=lab.logs())
    if len(lab.struck) < count:
        verdict.wrong.append(f"over after {len(lab.struck)} of {count} faults")
    judge(verdict, lab, whole)
    return verdict, lab


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        verdict, lab = chaos(Path(folder), count, seed)
    counts = Counter(f"{one.what} {one.whom}" for one in lab.struck)
    said = "the same end" if not verdict.wrong else "; ".join(one[:160] for one in verdict.wrong)
    seconds = time.monotonic() - began
    told = ", ".join(f"{what} {many}" for what, many in sorted(counts.items()))
    sys.stdout.write(
        f"seed {seed}, {lab.setup}, {lab.setup.rounds} rounds, {len(lab.struck)} faults, "
        f"{seconds:.0f} s: {said}\nfaults: {told}\nbegun again: {verdict.replayed}\n"
    )
    if verdict.wrong and (keep := os.environ.get("SFL_FAULTS_LOGS")):
        (Path(keep) / f"chaos-{seed}.log").write_text(verdict.logs)
    sys.exit(bool(verdict.wrong))


if __name__ == "__main__":
    main()
