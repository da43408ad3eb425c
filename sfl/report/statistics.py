"""The latest statistics of each node of a run."""

from __future__ import annotations

import zlib
from dataclasses import replace

from sfl.cost.shown import NOTHING
from sfl.metrics.snapshot import NodeKind, NodeSnapshot

MOST_LIVES = 1000
"""Of one node that are told apart: it says itself when it began."""


class Statistics:
    """By kind and name; a later one takes the place of one before.

    Of a node that was started again the last of each life stays beside it: what it had counted.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], NodeSnapshot] = {}
        self._latest: dict[tuple[str, str], tuple[int, NodeSnapshot]] = {}
        """The life that each is in."""
        self._before: dict[tuple[str, str, int], bytes] = {}
        """The lives before that, small: a node may have hundreds, which are looked at once."""

    def heard(self, snapshot: NodeSnapshot, life: int | None = None) -> None:
        """Keep a node's latest statistics; without a `life` they are in a record as well."""
        key = snapshot.kind, snapshot.name
        self._known[key] = snapshot
        if life is None:
            return
        latest, last = self._latest.get(key, (life, snapshot))
        if latest != life:
            self._before[*key, latest] = _packed(last)
        self._latest[key] = life, snapshot

    def life_of(self, snapshot: NodeSnapshot) -> int:
        """Which of a node's lives these statistics are of: the latest known, or a new one."""
        known = self._latest.get((snapshot.kind, snapshot.name))
        if known is None:
            return 0
        life, last = known
        return life if last.started_at == snapshot.started_at else min(life + 1, MOST_LIVES)

    def of(self, kind: NodeKind, name: str) -> NodeSnapshot:
        """A node's latest statistics; nothing counted where it has not said any."""
        return self._known.get((kind, name), NodeSnapshot(name, kind))

    def all(self) -> list[NodeSnapshot]:
        """Of every life of every node that has said any."""
        before = [_unpacked(own) for own in self._before.values()]
        return [*before, *(last for _, last in self._latest.values())]

    def devices(self) -> dict[str, NodeSnapshot]:
        """Of every device, by name."""
        return {name: own for (kind, name), own in self._known.items() if kind == "device"}

    def servers(self) -> list[NodeSnapshot]:
        """Of the cloud and of each edge, in the order of their names."""
        known = sorted(self._known.items())
        return [snapshot for (kind, _), snapshot in known if kind != "device"]


def _packed(snapshot: NodeSnapshot) -> bytes:
    """What adds up over lives, and little else."""
    return zlib.compress(replace(snapshot, waits=(), costs=NOTHING).to_json().encode())


def _unpacked(packed: bytes) -> NodeSnapshot:
    return NodeSnapshot.from_json(zlib.decompress(packed).decode())
