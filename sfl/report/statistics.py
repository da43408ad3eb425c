"""The latest statistics of each node of a run."""

from __future__ import annotations

from sfl.metrics.snapshot import NodeKind, NodeSnapshot

MOST_LIVES = 1000
"""Of one node that are told apart: it says itself when it began."""


class Statistics:
    """By kind and name; a later one takes the place of one before.

    Of a node that was started again the last of each life stays beside it: what it had counted.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], NodeSnapshot] = {}
        self._lives: dict[tuple[str, str, int], NodeSnapshot] = {}
        self._latest: dict[tuple[str, str], int] = {}

    def heard(self, snapshot: NodeSnapshot, life: int | None = None) -> None:
        """Keep a node's latest statistics; without a `life` they are in a record as well."""
        key = snapshot.kind, snapshot.name
        self._known[key] = snapshot
        if life is not None:
            self._lives[*key, life] = snapshot
            self._latest[key] = life

    def life_of(self, snapshot: NodeSnapshot) -> int:
        """Which of a node's lives these statistics are of: the latest known, or a new one."""
        key = snapshot.kind, snapshot.name
        if (life := self._latest.get(key)) is None:
            return 0
        same = self._lives[*key, life].started_at == snapshot.started_at
        return life if same else min(life + 1, MOST_LIVES)

    def of(self, kind: NodeKind, name: str) -> NodeSnapshot:
        """A node's latest statistics; nothing counted where it has not said any."""
        return self._known.get((kind, name), NodeSnapshot(name, kind))

    def all(self) -> list[NodeSnapshot]:
        """Of every life of every node that has said any, in the order of their first."""
        return list(self._lives.values())

    def devices(self) -> dict[str, NodeSnapshot]:
        """Of every device, by name."""
        return {name: own for (kind, name), own in self._known.items() if kind == "device"}

    def servers(self) -> list[NodeSnapshot]:
        """Of the cloud and of each edge, in the order of their names."""
        known = sorted(self._known.items())
        return [snapshot for (kind, _), snapshot in known if kind != "device"]
