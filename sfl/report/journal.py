"""A run's journal as a SQLite file, `run.sqlite`: one process writes, any may read meanwhile."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sfl.node.files import on_disk
from sfl.rounds.journal import PASSING, Entry, Latest
from sfl.rounds.plain import event_from_json, state_from_json, to_json
from sfl.rounds.state import RunState

NAME = "run.sqlite"

_TABLES = """
CREATE TABLE IF NOT EXISTS events(
  number INTEGER PRIMARY KEY, now REAL NOT NULL, kind TEXT NOT NULL, event BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS marks(
  one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, state BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS clock(one INTEGER PRIMARY KEY CHECK (one = 1), now REAL NOT NULL);
"""
_APPEND = "INSERT INTO events(now, kind, event) VALUES(?, ?, ?)"
_TELL_TIME = "INSERT OR REPLACE INTO clock VALUES(1, ?)"
_MARK = "INSERT OR REPLACE INTO marks SELECT 1, coalesce(max(number), 0), ? FROM events"
_FORGET = "DELETE FROM events WHERE kind = ?"
_EVENTS = "SELECT now, event FROM events WHERE number > ? ORDER BY number"

_ERRNO = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
}


class SqliteJournal:
    """In WAL mode: a commit outlives the process, a mark a power cut as well."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with self._on_disk():
            self._file = sqlite3.connect(folder / NAME, isolation_level=None)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.executescript(_TABLES)

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        """What SQLite says of the disk is raised as DiskError."""
        with on_disk(self._folder):
            try:
                yield
            except sqlite3.OperationalError as error:
                number = _ERRNO.get(error.sqlite_errorcode & 0xFF)
                if number is None:
                    raise
                raise OSError(number, str(error)) from error

    def _write(self, statement: str, *values: object) -> None:
        with self._on_disk():
            if not self._file.in_transaction:
                self._file.execute("BEGIN IMMEDIATE")
            self._file.execute(statement, values)

    def append(self, entry: Entry) -> None:
        """Keep an event, at the latest with the next `commit`."""
        self._write(_APPEND, entry.now, type(entry.event).__name__, to_json(entry.event))

    def tell_time(self, now: float) -> None:
        """The run has been up so long, and nothing else happened."""
        self._write(_TELL_TIME, now)

    def mark(self, state: RunState) -> None:
        """Keep the state after the latest event, also through a power cut."""
        for kind in PASSING:
            self._write(_FORGET, kind.__name__)
        self._write(_MARK, to_json(state))  # with the number that is the last one now
        self.commit()
        with self._on_disk():
            self._file.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def commit(self) -> None:
        """What was kept outlives this process, however it ends."""
        with self._on_disk():
            if self._file.in_transaction:
                self._file.execute("COMMIT")

    def entries(self) -> Iterator[Entry]:
        """All events; before the last mark, without those that nobody looks at later."""
        return iter(self._after(0))

    def _after(self, number: int) -> list[Entry]:
        with self._on_disk():
            rows = self._file.execute(_EVENTS, (number,)).fetchall()
        return [Entry(now, event_from_json(event)) for now, event in rows]

    def latest(self) -> Latest:
        """What a state is rebuilt from."""
        with self._on_disk():
            row = self._file.execute("SELECT number, state FROM marks").fetchone()
            told = self._file.execute("SELECT now FROM clock").fetchone()
        number, marked = (0, None) if row is None else (row[0], state_from_json(row[1]))
        entries = tuple(self._after(number))
        times = [0.0 if told is None else told[0], *(entry.now for entry in entries[-1:])]
        if marked is not None:
            times.append(marked.now)
        return Latest(marked, entries, max(times))

    def close(self) -> None:
        """Nothing more comes."""
        self.commit()
        with self._on_disk():
            self._file.close()
