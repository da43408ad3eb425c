"""What a teacher has said, on the edge's disk: rows of sequences by what the sequences are.

A sequence that comes again needs no teacher. Whoever goes round and round through more sequences
than fit is served best if some of them stay: so what is full takes no more, and gives up only what
no run has asked for since this one began.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

log = logging.getLogger("sfl.edge")

_WAIT = 5.0
"""Seconds for another process that writes."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, data BLOB NOT NULL, life INTEGER NOT NULL)
WITHOUT ROWID
"""


def key_of(said: bytes, places: npt.NDArray[np.int64] | None) -> bytes:
    """A sequence, by what tells it from others, and those of its tokens whose rows are wanted."""
    found = hashlib.sha256(said)
    found.update(b"all" if places is None else places.astype("<i8").tobytes())
    return found.digest()


class RowCache:
    """At most `most_bytes` of rows in the file at `path`; for one thread.

    A file that cannot be read or written costs no more than what it would have saved: it is said
    once, and nothing is kept from then on.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.hits = 0
        self.misses = 0
        self._path = path
        self._most = most_bytes
        self._file: sqlite3.Connection | None = None
        self._bytes = 0
        self._life = 0
        self._used: set[bytes] = set()
        try:
            self._open()
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = _opened(self._path)
        except sqlite3.OperationalError:
            raise  # another process has it, or the disk fails: the file itself may be sound
        except sqlite3.DatabaseError:
            log.warning("%s is damaged: what the teacher has said is asked anew", self._path)
            self._path.unlink()
            self._file = _opened(self._path)
        found = self._file.execute("SELECT coalesce(sum(length(data)), 0), max(life) FROM rows")
        self._bytes, last = found.fetchone()
        self._life = (last or 0) + 1

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The rows of those sequences that are kept."""
        if self._file is None:
            return {}
        marks = ", ".join("?" * len(keys))
        try:
            found = dict(
                self._file.execute(f"SELECT key, data FROM rows WHERE key IN ({marks})", keys)
            )
            self._use(found)
        except sqlite3.Error as error:
            self._give_up(error)
            return {}
        self.hits += sum(key in found for key in keys)
        self.misses += sum(key not in found for key in keys)
        return found

    def put(self, rows: Mapping[bytes, bytes]) -> None:
        """Keep these, as far as there is room."""
        if self._file is None or not rows:
            return
        try:
            with self._file:
                for key, data in rows.items():
                    if self._bytes + len(data) > self._most and not self._make_room(len(data)):
                        break
                    self._file.execute(
                        "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", (key, data, self._life)
                    )
                    self._bytes += len(data)
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        """The file stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _use(self, found: Mapping[bytes, bytes]) -> None:
        """These have been asked for in this life."""
        assert self._file is not None
        fresh = [key for key in found if key not in self._used]
        if fresh:
            with self._file:
                self._file.executemany(
                    "UPDATE rows SET life = ? WHERE key = ?", [(self._life, key) for key in fresh]
                )
            self._used.update(fresh)

    def _make_room(self, needed: int) -> bool:
        """Give up rows of lives before, the oldest first; whether so many bytes are free then."""
        assert self._file is not None
        old = self._file.execute(
            "SELECT key, length(data) FROM rows WHERE life < ? ORDER BY life LIMIT 256",
            (self._life,),
        ).fetchall()
        for key, size in old:
            if self._bytes + needed <= self._most:
                break
            self._file.execute("DELETE FROM rows WHERE key = ?", (key,))
            self._bytes -= size
        return self._bytes + needed <= self._most

    def _give_up(self, error: Exception) -> None:
        log.warning("%s: %s; nothing of what the teacher says is kept", self._path, error)
        self.close()


def _opened(path: Path) -> sqlite3.Connection:
    # The compute thread's alone; who takes an edge down closes it when that has ended.
    file = sqlite3.connect(path, timeout=_WAIT, check_same_thread=False)
    try:
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = NORMAL")
        file.execute(_SCHEMA)
    except sqlite3.Error:
        file.close()
        raise
    return file
