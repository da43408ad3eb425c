"""The latest statistics of each node of a run."""

from __future__ import annotations

from sfl.metrics.snapshot import NodeKind, NodeSnapshot


class Snapshots:
    """By kind and name; a later one takes the place of one before."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], NodeSnapshot] = {}

    def heard(self, snapshot: NodeSnapshot) -> None:
        """Keep a node's latest statistics."""
        self._known[snapshot.kind, snapshot.name] = snapshot

    def of(self, kind: NodeKind, name: str) -> NodeSnapshot:
        """A node's latest statistics; nothing counted where it has not said any."""
        return self._known.get((kind, name), NodeSnapshot(name, kind))

    def all(self) -> list[NodeSnapshot]:
        """Of every node that has said any, in the order of their first."""
        return list(self._known.values())

    def devices(self) -> dict[str, NodeSnapshot]:
        """Of every device, by name."""
        return {name: own for (kind, name), own in self._known.items() if kind == "device"}

    def servers(self) -> list[NodeSnapshot]:
        """Of the cloud and of each edge, in the order of their names."""
        known = sorted(self._known.items())
        return [snapshot for (kind, _), snapshot in known if kind != "device"]
