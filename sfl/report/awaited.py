"""Whom edges and devices wait for, as they said last: on the run's own clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sfl.metrics.snapshot import NodeKind, NodeSnapshot
from sfl.metrics.waits import FIRST_LINE, IN_WORDS
from sfl.metrics.waits import Wait as Said
from sfl.report.status import OF_A_PHASE, Wait
from sfl.rounds import RunState


@dataclass(frozen=True, slots=True)
class Word:
    """A node's waits, by its own clock, which showed `taken_at` as it said them.

    `said` is when that was, in seconds that the run had been up.
    """

    waits: tuple[Said, ...]
    taken_at: float
    said: float

    def at(self, who: str, now: float) -> Iterator[Wait]:
        """As they are by now: two clocks are never compared, only how much each went on."""
        late = max(0.0, now - self.said)
        for own in self.waits:
            seconds = max(0.0, self.taken_at - own.since)
            left = None if own.until is None else max(0.0, own.until - self.taken_at - late)
            what = IN_WORDS[own.what]
            yield Wait(who, own.whom, what, seconds + late, left, kind=own.what, said=late)


class LastWords:
    """What each node has said last of whom it waits for, as long as it is connected.

    An edge repeats what its devices and stages have said: words may come late, and in any order.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[NodeKind, str], Word] = {}
        self._joined: dict[str, float] = {}

    def heard(self, snapshot: NodeSnapshot, now: float) -> None:
        """A node's statistics; where they do not say when they were taken, no wait is known."""
        waits = snapshot.waits if snapshot.taken_at else ()
        word = Word(waits, snapshot.taken_at, now - snapshot.age)
        if snapshot.kind != "device" or word.said >= self._joined.get(snapshot.name, 0.0):
            self._of[snapshot.kind, snapshot.name] = word

    def has_newer(self, snapshot: NodeSnapshot, now: float) -> bool:
        """Whether a node has said something after these statistics of it, which come by now."""
        known = self._of.get((snapshot.kind, snapshot.name))
        return known is not None and now - snapshot.age < known.said

    def joined(self, device: str, now: float) -> None:
        """A device joins, maybe another process of it: what it said before says nothing of it."""
        self._joined[device] = now
        self.forget("device", device)

    def forget(self, kind: NodeKind, name: str) -> None:
        """It is not connected any more: what it waits for now nobody knows."""
        self._of.pop((kind, name), None)

    def forget_all(self) -> None:
        """Nobody is connected."""
        self._of.clear()
        self._joined.clear()

    def waits(self, state: RunState, within: float) -> Iterator[Wait]:
        """Of the cloud, then of edges and devices, the longest first; who only waits for orders
        comes last.

        Without what the cloud's state tells, without what has not lasted for as long as the log
        would have it, and without words older than `within` seconds: those links are broken.
        """
        found = [
            wait
            for (kind, name), word in self._of.items()
            if kind != "device" or name in state.roster.devices
            for wait in word.at(kind if kind == "cloud" else f"{kind} {name}", state.now)
            if _counts(wait, kind) and wait.said < within
        ]
        yield from sorted(found, key=_order)


def _counts(wait: Wait, kind: NodeKind) -> bool:
    if kind == "cloud":
        return wait.kind not in ("return", *OF_A_PHASE)  # of which its state tells more
    return wait.seconds - wait.said >= FIRST_LINE


def _order(wait: Wait) -> tuple[bool, bool, bool, float]:
    by = wait.who.partition(" ")[0]
    return wait.kind == "orders", by == "device", by == "edge", -wait.seconds
