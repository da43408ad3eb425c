"""What rounds have added to every base: one file a round, and how many of them each node has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import safetensors.numpy

from sfl.adapters.base_updates import as_one_adapter
from sfl.adapters.names import is_lora_a
from sfl.aggregation.contribution import Array
from sfl.metrics.snapshot import NodeKind
from sfl.node.files import write_atomic
from sfl.node.numbered import of_rounds, round_name

Node = tuple[NodeKind, str]


class BaseUpdates:
    """All of a run's, by round, from 1 on without a gap; empty where a strategy folds nothing.

    A node that has just joined holds the base as it is on disk, and so needs every one of them.
    """

    def __init__(self, folder: Path, rounds: int = 0) -> None:
        """`rounds` of a run that goes on have closed: what is there of later ones does not count.

        Where a strategy folds nothing, no round has a file.
        """
        self._folder = folder
        self._files = of_rounds(folder, ".safetensors")[:rounds]
        self._held: dict[Node, int] = {}

    def add(self, values: Mapping[str, Array]) -> None:
        """Keep what the latest round gave. Raises DiskError."""
        path = self._folder / f"{round_name(len(self._files) + 1)}.safetensors"
        write_atomic(path, safetensors.numpy.save(dict(values)))
        self._files.append(path)

    @property
    def latest(self) -> list[str]:
        """The name of the last file, if there is one, in the run's folder."""
        return [f"{self._folder.name}/{path.name}" for path in self._files[-1:]]

    def joined(self, node: Node) -> None:
        """It begins with the base as it is on disk."""
        self._held.pop(node, None)

    def lacking(self, nodes: Iterable[Node]) -> Iterator[tuple[int, bytes]]:
        """(round, safetensors file) of all that one of these nodes lacks; then they have them."""
        nodes = list(nodes)
        first = min(self._held.get(node, 0) for node in nodes)
        self._held.update(dict.fromkeys(nodes, len(self._files)))
        for number, path in enumerate(self._files[first:], first + 1):
            yield number, path.read_bytes()

    def as_adapter(self) -> tuple[dict[str, Array], dict[str, int]]:
        """The sum of them all as an adapter, and what PEFT's configuration says of its rank."""
        if not self._files:
            return {}, {}
        values = as_one_adapter(self._files)
        rank = next(len(array) for name, array in values.items() if is_lora_a(name))
        return values, {"r": rank, "lora_alpha": rank}
