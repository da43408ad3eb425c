"""The logs of a run's nodes in one place, as their agents send them, each bounded."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from sfl.config.base import NODE_NAME
from sfl.node.logs import Sparing

log = logging.getLogger("sfl.service")
sparing = Sparing(log)

MOST_BYTES = 64 << 20
"""Of one node's log in one run; what comes after it is dropped."""


LINES = 1 << 16
"""Bytes of one log that are handed on at once."""


class Tails:
    """Reads what logs have come to say, in whole lines; the logs of a run, or one of them."""

    def __init__(self, folder: Path, node: str = "") -> None:
        self._folder, self._node = folder, node
        self._read: dict[Path, int] = {}

    def next(self, last: bool = False) -> list[tuple[str, bytes]]:
        """(node, lines) of each log that has any; `last`: also a line that has no end."""
        paths = sorted(self._folder.glob(f"{self._node or '*'}.log"))
        found = ((path.stem, self._more(path, last)) for path in paths)
        return [(node, data) for node, data in found if data]

    def _more(self, path: Path, last: bool) -> bytes:
        begin = self._read.get(path, 0)
        with path.open("rb") as file:
            file.seek(begin)
            data = file.read(LINES)
        if len(data) < LINES and not last:
            data = data[: data.rfind(b"\n") + 1]
        self._read[path] = begin + len(data)
        return data


class NodeLogs:
    """A folder with NAME.log for each node."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of(cls, run_folder: Path) -> NodeLogs:
        """Of a run, by its folder."""
        return cls(run_folder / "logs")

    def path(self, node: str) -> Path:
        """Where a node's log is. Raises ValueError for what is no name of a node."""
        if not re.fullmatch(NODE_NAME, node):
            raise ValueError(f"{node!r} is no name of a node")
        return self._folder / f"{node}.log"

    def size(self, node: str) -> int:
        """Bytes that are known of a node's log."""
        path = self.path(node)
        return path.stat().st_size if path.exists() else 0

    def take(self, node: str, offset: int, data: bytes) -> None:
        """The next of a node's log; what is known already is left out.

        A disk that takes no more loses lines, and stops nothing.
        """
        there = self.size(node)
        new = data[max(0, there - offset) :] if offset <= there else data
        if not new or there + len(new) > MOST_BYTES or node == "cloud":
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self.path(node).open("ab") as file:
                file.write(new)
        except OSError as error:
            sparing.warning("disk", "%s: %s; its lines are lost", self.path(node), error)
