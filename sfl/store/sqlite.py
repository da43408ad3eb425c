"""A database in a SQLite file: opened by SQLAlchemy, and what SQLite says of it in words."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import StaticPool

from sfl.errors import Damaged, DiskError
from sfl.node.files import on_disk
from sfl.rounds.plain import NotReadable
from sfl.store.schema import Schema
from sfl.store.tables import Said, Values

T = TypeVar("T")

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


class SqliteFile:
    """One connection to a file of a schema, which is Python's own: quick.

    `fix` says what to do about a damaged file.
    """

    def __init__(self, path: Path, schema: Schema, fix: str, *, writes: bool) -> None:
        """With `writes` the file is made or migrated, else not one byte of it is changed.

        Raises DiskError, also for a file that is damaged, held, or of a newer version.
        """
        self.path = path
        self._schema = schema
        self._fix = fix
        with self.in_words():
            self.connection = self._to_write() if writes else self._to_read()

    # -- opening ----------------------------------------------------------------------------------

    def _to_write(self) -> sqlite3.Connection:
        file = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
        try:
            found = self._require_version(file)
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("PRAGMA synchronous = NORMAL")
            self._bring_up(file, found)
        except BaseException:
            file.close()
            raise
        return file

    def _to_read(self) -> sqlite3.Connection:
        """Without a log the file is whole; unless told so, SQLite would make one."""
        log = self.path.with_name(f"{self.path.name}-wal")
        logged = log.exists() and log.stat().st_size > 0
        how = "mode=ro" if logged else "mode=ro&immutable=1"
        name = f"{self.path.absolute().as_uri()}?{how}"
        file = sqlite3.connect(name, timeout=PATIENCE, isolation_level=None, uri=True)
        try:
            found = self._require_version(file)
            if found == self._schema.version or not _has_tables(file):
                return file
            copy = sqlite3.connect(":memory:", isolation_level=None)
            file.backup(copy)
            file.close()
            self._bring_up(copy, found)
        except BaseException:
            file.close()
            raise
        return copy

    def _require_version(self, file: sqlite3.Connection) -> int:
        """Raises DiskError where a later `sfl` wrote the file: its tables may mean something else.

        A file of version 0 is new, or was written before versions were.
        """
        found: int
        (found,) = file.execute("PRAGMA user_version").fetchone()
        if not 0 <= found <= self._schema.version:
            problem = f"it is of version {found}, and this is for version {self._schema.version}"
            raise DiskError(f"{self.path}: {problem}. Use the sfl that wrote it.")
        return found

    def _bring_up(self, file: sqlite3.Connection, found: int) -> None:
        """All of it or nothing."""
        if found == self._schema.version:
            return
        with engine_on(file).begin() as connection:
            self._schema.bring_up(connection, found, new=not _has_tables(file))
            connection.exec_driver_sql(f"PRAGMA user_version = {self._schema.version}")

    # -- what is asked and said -------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether its tables are there: whoever makes it may be killed before."""
        with self.in_words():
            return _has_tables(self.connection)

    def asked(self, work: Callable[[], T]) -> T:
        """What `work` finds by `ask`. Raises DiskError."""
        with self.in_words():
            return work()

    def ask(self, said: Said, **values: object) -> list[Any]:
        """The rows that answer."""
        return self.connection.execute(said.text, said.values(**values)).fetchall()

    def write(
        self,
        append: str,
        rows: Sequence[Values],
        more: Sequence[tuple[str, Values]] = (),
        *,
        durable: bool = False,
    ) -> None:
        """Rows, then other statements: all of it or nothing. Raises DiskError."""
        if durable:
            with self._durably():
                self._write(append, rows, more)
        else:
            self._write(append, rows, more)

    def require_own(self) -> None:
        """Nothing: whoever writes holds the lock of the folder."""

    def _write(
        self, append: str, rows: Sequence[Values], more: Sequence[tuple[str, Values]]
    ) -> None:
        try:
            if len(rows) == 1 and not more:
                self.connection.execute(append, rows[0])  # a transaction of its own
            elif rows or more:
                self._write_together(append, rows, more)
        except Exception:
            with self.in_words():  # only now: entering it costs what writing a row does
                raise

    def _write_together(
        self, append: str, rows: Sequence[Values], more: Sequence[tuple[str, Values]]
    ) -> None:
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(append, rows)
            for statement, values in more:
                connection.execute(statement, values)
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _durably(self) -> Iterator[None]:
        """A commit in here waits for the disk. Raises DiskError."""
        with self.in_words():
            self.connection.execute("PRAGMA synchronous = FULL")
        try:
            yield
        finally:
            with self.in_words():
                self.connection.execute("PRAGMA synchronous = NORMAL")

    def checkpoint(self) -> None:
        """Put the log into the file, as far as nobody reads. Raises DiskError."""
        with self.in_words():
            self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Nothing more is asked. Raises DiskError."""
        with self.in_words():
            self.connection.close()

    # -- in words ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def in_words(self) -> Iterator[None]:
        """What SQLite says of the disk or the file is raised as DiskError."""
        with on_disk(self.path.parent):
            try:
                yield
            except NotReadable as error:
                raise self._damaged(error) from None
            except DatabaseError as error:  # SQLAlchemy's, about the driver's
                raise self._told(error.orig or error) from error
            except sqlite3.DatabaseError as error:
                if (told := self._told(error)) is error:
                    raise
                raise told from error

    def _told(self, error: BaseException) -> BaseException:
        # What Python's own module says has no code; of reading it is: no UTF-8.
        number: int | None = getattr(error, "sqlite_errorcode", None)
        code = None if number is None else number & 0xFF
        unread = code is None and isinstance(error, sqlite3.OperationalError)
        if unread or code in _DAMAGED:
            return self._damaged(error)
        if code in _HELD:
            fix = "Close that program; while a run goes on, read a copy of the folder."
            return DiskError(f"{self.path}: another program holds it ({error}). {fix}")
        if code is None or code not in _ERRNO:
            return error
        return OSError(_ERRNO[code], str(error))

    def _damaged(self, error: BaseException) -> DiskError:
        return Damaged(f"{self.path}: it is damaged ({error}). {self._fix}")


def engine_on(file: sqlite3.Connection) -> Engine:
    """SQLAlchemy on a connection of Python's own, which begins no transaction by itself."""
    engine = create_engine("sqlite://", creator=lambda: file, poolclass=StaticPool)
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _has_tables(file: sqlite3.Connection) -> bool:
    (tables,) = file.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return bool(tables)
