"""Files of a run's folder by the digests in its journal: what was changed on the disk is found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from sfl.errors import DiskError
from sfl.node.files import on_disk
from sfl.node.numbered import round_of

CHUNK = 1 << 20


class Sealed:
    """Digests (SHA-256) by a file's name in the folder; a file that has none passes."""

    def __init__(self, folder: Path, digests: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._digests = dict(digests or {})

    def seal(self, names: Iterable[str]) -> dict[str, str]:
        """The digests of these files, as they are now. Raises DiskError."""
        digests = {name: self._digest(name) for name in names}
        self._digests |= digests
        return digests

    def require(self, name: str) -> None:
        """Raises DiskError where a file is gone, or is not what was written."""
        found = self._digest(name)
        if self._digests.get(name, found) != found:
            path, fix = self._folder / name, "Restore the file, or begin another run."
            raise DiskError(f"{path}: it was changed since it was written (SHA-256). {fix}")

    def require_all(self, start: str, rounds: int) -> None:
        """The same of all whose names begin so, of rounds up to one."""
        for name in [own for own in self._digests if own.startswith(start)]:
            if round_of(name) <= rounds:
                self.require(name)

    def forget_before(self, round_: int, start: str) -> None:
        """Rounds before one are loaded no more, but for names that begin so."""
        self._digests = {
            name: digest
            for name, digest in self._digests.items()
            if name.startswith(start) or max(map(round_of, Path(name).parts)) >= round_
        }

    def _digest(self, name: str) -> str:
        total = hashlib.sha256()
        with on_disk(self._folder / name), (self._folder / name).open("rb") as file:
            while piece := file.read(CHUNK):
                total.update(piece)
        return total.hexdigest()
