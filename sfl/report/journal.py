"""A run's journal as a SQLite file, `run.sqlite`: one process writes, any may read meanwhile."""

from __future__ import annotations

import contextlib
import errno
import math
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from sfl.errors import DiskError
from sfl.node.files import on_disk
from sfl.node.lock import FolderLock
from sfl.report.runs import JOURNAL, LOCK
from sfl.rounds.journal import PASSING, Entry, Latest, subject
from sfl.rounds.plain import NotReadable, event_from_json, state_from_json, to_json
from sfl.rounds.state import RunState

# Of a subject only the latest event stays; it takes a number above all others before the one that
# it replaces goes, so that numbers only grow (and AUTOINCREMENT, which writes a page more, is not
# needed).
_TABLES = """
CREATE TABLE IF NOT EXISTS events(
  number INTEGER PRIMARY KEY, now REAL NOT NULL, kind TEXT NOT NULL,
  subject TEXT, event BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS subjects ON events(subject) WHERE subject IS NOT NULL;
CREATE TABLE IF NOT EXISTS marks(
  one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, state BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS clock(one INTEGER PRIMARY KEY CHECK (one = 1), now REAL NOT NULL);
CREATE TABLE IF NOT EXISTS run(one INTEGER PRIMARY KEY CHECK (one = 1), key TEXT NOT NULL);
"""
_APPEND = "INSERT OR REPLACE INTO events(now, kind, subject, event) VALUES(?, ?, ?, ?)"
_TELL_TIME = "INSERT OR REPLACE INTO clock VALUES(1, ?)"
_NAME_RUN = "INSERT OR IGNORE INTO run VALUES(1, ?)"
_MARK = "INSERT OR REPLACE INTO marks SELECT 1, coalesce(max(number), 0), ? FROM events"
_FORGET = (
    "DELETE FROM events WHERE number > coalesce((SELECT number FROM marks), 0) AND kind IN "
    f"({', '.join(repr(kind.__name__) for kind in PASSING)})"
)
_EVENTS = "SELECT now, event FROM events WHERE number > ? ORDER BY number"

VERSION = 1
"""Of the tables, as `PRAGMA user_version`. Who changes them counts it up."""

PATIENCE = 0.2
"""Seconds that a commit waits for another program. The whole cloud stands still meanwhile."""

_ERRNO = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
}
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_HELD = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

Row = tuple[float, str, str | None, bytes]
Statement = tuple[str, tuple[object, ...]]


def _time(value: object) -> float:
    """Seconds as they are in a row. Raises NotReadable."""
    if not isinstance(value, float) or not math.isfinite(value):
        raise NotReadable(f"{value!r} is no time")
    return value


class JournalReader:
    """What a run's journal has, also while its cloud writes. Not one byte of it is changed.

    A journal that its cloud has closed is read without any file beside it.
    """

    def __init__(self, folder: Path) -> None:
        """Raises DiskError, also for a file that is damaged, held, or of another version."""
        self._folder = folder
        with self._on_disk():
            self._file = self._connected()
            self._version = self._require_version()

    def _connected(self) -> sqlite3.Connection:
        """To read. Without a log the file is whole; unless told so, SQLite would make one."""
        log = self._folder / f"{JOURNAL}-wal"
        logged = log.exists() and log.stat().st_size > 0
        how = "mode=ro" if logged else "mode=ro&immutable=1"
        name = f"{(self._folder / JOURNAL).absolute().as_uri()}?{how}"
        return sqlite3.connect(name, timeout=PATIENCE, isolation_level=None, uri=True)

    def _require_version(self) -> int:
        """Raises DiskError where another `sfl` wrote the file: its tables may mean something else.

        A file of version 0 is new, or was written before versions were.
        """
        found: int
        (found,) = self._file.execute("PRAGMA user_version").fetchone()
        if found not in (0, VERSION):
            self._file.close()
            problem = f"it is of version {found}, and this is for version {VERSION}"
            raise DiskError(f"{self._folder / JOURNAL}: {problem}. Use the sfl that wrote it.")
        return found

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        """What SQLite says of the disk or the file is raised as DiskError."""
        with on_disk(self._folder):
            try:
                yield
            except NotReadable as error:
                raise self._damaged(error) from None
            except sqlite3.DatabaseError as error:
                # What Python's own module says has no code; of reading it is: no UTF-8.
                number: int | None = getattr(error, "sqlite_errorcode", None)
                code = None if number is None else number & 0xFF
                unread = code is None and isinstance(error, sqlite3.OperationalError)
                if unread or code in _DAMAGED:
                    raise self._damaged(error) from None
                if code in _HELD:
                    raise self._held(error) from None
                if code is None or code not in _ERRNO:
                    raise
                raise OSError(_ERRNO[code], str(error)) from error

    def _damaged(self, error: Exception) -> DiskError:
        path = self._folder / JOURNAL
        fix = "Begin another run, with another run.id or none."
        return DiskError(f"{path}: it is damaged ({error}). {fix}")

    def _held(self, error: Exception) -> DiskError:
        path = self._folder / JOURNAL
        fix = "Close that program; while a run goes on, read a copy of the folder."
        return DiskError(f"{path}: another program holds it ({error}). {fix}")

    @property
    def begun(self) -> bool:
        """Whether its tables are there: whoever makes it may be killed before."""
        with self._on_disk():
            (tables,) = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return bool(tables)

    def entries(self) -> Iterator[Entry]:
        """All events; before the last mark, without those that nobody looks at later."""
        return iter(self._after(0))

    def _after(self, number: int) -> list[Entry]:
        with self._on_disk():
            rows = self._file.execute(_EVENTS, (number,)).fetchall()
            return [Entry(_time(now), event_from_json(event)) for now, event in rows]

    def latest(self) -> Latest:
        """What a state is rebuilt from."""
        with self._on_disk():
            row = self._file.execute("SELECT number, state FROM marks").fetchone()
            told = self._file.execute("SELECT now FROM clock").fetchone()
            number, marked = (0, None) if row is None else (row[0], state_from_json(row[1]))
            (last,) = self._file.execute("SELECT coalesce(max(number), 0) FROM events").fetchone()
            if not isinstance(number, int) or number > last:
                raise NotReadable(f"its state is of event {number!r}, and {last} is the last")
            clock = 0.0 if told is None else _time(told[0])
        entries = tuple(self._after(number))
        times = [clock, *(entry.now for entry in entries[-1:])]
        if marked is not None:
            times.append(marked.now)
        return Latest(marked, entries, max(times))

    def close(self) -> None:
        """Nothing more is read."""
        with self._on_disk():
            self._file.close()


class SqliteJournal(JournalReader):
    """A commit outlives the process, and a mark a power cut as well.

    That is WAL with `synchronous = NORMAL`: a commit is one write to the log and waits for no
    disk, so that an event costs microseconds; the disk is waited for where the log is put into the
    file. After a power cut the file is whole, and what is lost are the latest commits since then:
    a round's beginning is never among them. Rows wait in memory until their commit.
    """

    def __init__(self, folder: Path) -> None:
        """Raises DiskError, also for a file that is damaged, held, or of another version."""
        self._lock = FolderLock(folder / LOCK)
        try:
            super().__init__(folder)
            self._rows: list[Row] = []
            self._told: float | None = None
            with self._on_disk():
                self._file.execute("PRAGMA journal_mode = WAL")
                self._file.execute("PRAGMA synchronous = NORMAL")
                self._file.executescript(_TABLES)
                if self._version != VERSION:
                    self._file.execute(f"PRAGMA user_version = {VERSION}")
                self.run_key = self._name_run()
        except BaseException:
            self._lock.release()
            raise

    def _name_run(self) -> str:
        """Random, made with the journal: it tells this run from another of the same id."""
        self._file.execute(_NAME_RUN, (secrets.token_hex(16),))
        key: str
        (key,) = self._file.execute("SELECT key FROM run").fetchone()
        return key

    def _connected(self) -> sqlite3.Connection:
        """To read and to write; makes the file where there is none."""
        return sqlite3.connect(self._folder / JOURNAL, timeout=PATIENCE, isolation_level=None)

    def append(self, entry: Entry) -> None:
        """Keep an event with the next `commit`; until then it is in memory only."""
        event = entry.event
        self._rows.append((entry.now, type(event).__name__, subject(event), to_json(event)))

    def tell_time(self, now: float) -> None:
        """The run has been up so long."""
        self._told = now

    def mark(self, state: RunState) -> None:
        """Keep the state after the latest event, also through a power cut."""
        # The mark has the number that is the last one then. Its commit waits for the disk: the
        # checkpoint alone does so only as far as no reader keeps the log.
        with self._durably():
            self._write([(_FORGET, ()), (_MARK, (to_json(state),))])
        with self._on_disk():
            self._file.execute("PRAGMA wal_checkpoint(PASSIVE)")

    @contextlib.contextmanager
    def _durably(self) -> Iterator[None]:
        """A commit in here waits for the disk."""
        with self._on_disk():
            self._file.execute("PRAGMA synchronous = FULL")
        try:
            yield
        finally:
            with self._on_disk():
                self._file.execute("PRAGMA synchronous = NORMAL")

    def commit(self, *, durable: bool = False) -> None:
        """What was kept outlives this process, however it ends; if `durable`, a power cut too."""
        with self._durably() if durable else contextlib.nullcontext():
            self._write([])

    def _write(self, more: Sequence[Statement]) -> None:
        """Rows and time that wait, then `more`: all of it or nothing, and then it waits on."""
        statements = [*more]
        if self._told is not None:
            statements.append((_TELL_TIME, (self._told,)))
        try:
            if len(self._rows) == 1 and not statements:
                self._file.execute(_APPEND, self._rows[0])  # a transaction of its own
            elif self._rows or statements:
                self._write_together(statements)
        except Exception:
            with self._on_disk():  # only now: entering it costs what writing a row does
                raise
        self._rows.clear()
        self._told = None

    def _write_together(self, statements: Sequence[Statement]) -> None:
        self._file.execute("BEGIN IMMEDIATE")
        try:
            self._file.executemany(_APPEND, self._rows)
            for statement, values in statements:
                self._file.execute(statement, values)
            self._file.execute("COMMIT")
        finally:
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")

    def entries(self) -> Iterator[Entry]:
        """All events, also those that wait for a commit, which is made."""
        self.commit()
        return super().entries()

    def latest(self) -> Latest:
        """What a state is rebuilt from, also of events that wait for a commit, which is made."""
        self.commit()
        return super().latest()

    def close(self) -> None:
        """Nothing more comes. Raises DiskError where the last of it could not be kept."""
        try:
            self.commit()
        finally:
            try:
                super().close()
            finally:
                self._lock.release()
