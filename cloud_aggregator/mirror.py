"""A copy of what a run goes on from, for a cloud whose machine and disk are gone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from sfl.config import RunConfig
from sfl.errors import SflError
from sfl.report.conclusion import MANIFEST, SECRET
from sfl.report.elsewhere import store_of
from sfl.report.journal import RunJournal
from sfl.report.plans import PLANS
from sfl.report.resume import ASKED
from sfl.report.runs import CONCLUSION
from sfl.store.artifacts import ArtifactStore

log = logging.getLogger("sfl.cloud")

SETTINGS = ("config.toml", ASKED, SECRET)
MADE = (MANIFEST, "adapters/round-*/*", "strategy/*", "base_updates/*")
BEST = "adapter_best/*"
SPOOL = "spool/round-*/*.safetensors"
RESULTS = (*CONCLUSION, "config.toml", "metrics.jsonl", PLANS, "adapter/*", BEST)


class Mirror(Protocol):
    """Where a run's files are kept a second time, if anywhere. Every method raises DiskError."""

    def put(self, *patterns: str) -> None:
        """Keep what is new of these; the journal names it with its next commit."""

    def sync(self) -> None:
        """Keep all that is there; with its next commit the journal names nothing that is gone."""

    def prune(self) -> None:
        """Remove what the journal names no more, once that is committed."""

    def publish(self) -> None:
        """The run is over: leave its results, and nothing else."""


class NoMirror:
    """The run's folder has all there is."""

    def put(self, *patterns: str) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def prune(self) -> None:
        """Nothing."""

    def publish(self) -> None:
        """Nothing."""


class StoreMirror:
    """In a bucket or another folder. The journal has the names, and the hash of each file.

    A file is in the store before the journal names it, and as long as it does. All but `publish`
    may be called on any thread.
    """

    def __init__(self, folder: Path, store: ArtifactStore, journal: RunJournal) -> None:
        """Raises DiskError."""
        self._folder = folder
        self._store = store
        self._journal = journal
        self._kept = journal.kept()
        self._seen: dict[str, tuple[int, int]] = {}
        """When a file was written that is kept, and its size."""
        self._one_at_a_time = threading.Lock()
        self._is_over = False

    def put(self, *patterns: str) -> None:
        """Keep what is new of these; the journal names it with its next commit."""
        with self._one_at_a_time:
            if self._is_over:
                return
            for name, path in self._files(patterns):
                self._put(name, path)

    def _put(self, name: str, path: Path) -> None:
        found = path.stat()
        seen = (found.st_mtime_ns, found.st_size)
        if self._seen.get(name) == seen:
            return
        digest = self._store.put(path.read_bytes())
        self._seen[name] = seen
        if self._kept.get(name) != digest:
            self._kept[name] = digest
            self._journal.keep(name, digest)

    def sync(self) -> None:
        """Keep all that is there; with its next commit the journal names nothing that is gone."""
        self.put(*SETTINGS, *MADE, BEST, SPOOL)
        with self._one_at_a_time:
            if self._is_over:
                return
            here = {name for name, _ in self._files((*SETTINGS, *MADE, BEST, SPOOL))}
            for name in self._kept.keys() - here:
                del self._kept[name]
                self._seen.pop(name, None)
                self._journal.drop(name)

    def prune(self) -> None:
        """Remove what the journal names no more, once that is committed."""
        with self._one_at_a_time:
            if not self._is_over:
                self._store.delete(self._store.names() - set(self._kept.values()))

    def publish(self) -> None:
        """The run is over: leave its results, and nothing else.

        Raises DiskError, also where another process has gone on with the run.
        """
        with self._one_at_a_time:
            self._is_over = True
            self._journal.require_own()  # else the results of another process are there, or will be
            for name, path in self._files(RESULTS):
                self._store.publish(name, path.read_bytes())
            for name in self._kept:
                self._journal.drop(name)
            self._kept.clear()
            self._journal.commit()
            self._store.delete(self._store.names())

    def _files(self, patterns: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
        for pattern in patterns:
            for path in sorted(self._folder.glob(pattern)):
                if path.is_file() and not path.name.endswith((".tmp", ".new", ".partial")):
                    yield path.relative_to(self._folder).as_posix(), path


def mirror_of(config: RunConfig, folder: Path, journal: RunJournal) -> Mirror:
    """Where the run's files are kept a second time, if anywhere. Raises ConfigError, DiskError."""
    if not config.cloud.artifacts:
        return NoMirror()
    return StoreMirror(folder, store_of(config, folder.name), journal)


def published(mirror: Mirror) -> bool:
    """Leave the results of a run that is over; what keeps that from being done is a warning."""
    try:
        mirror.publish()
    except SflError as error:
        log.warning("the run's results are in its folder only: %s", error)
        return False
    return True
