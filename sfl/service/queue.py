"""The queue of a service, in its folder: what was submitted, and what became of it.

SQLite with a write-ahead log, so that commands may look at it, and put runs into it, while a
service is at work. Every change is on the disk before anybody is told of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from sfl.errors import DiskError
from sfl.jobs.values import OPEN, Job
from sfl.node.files import on_disk
from sfl.node.lock import is_held

SERVICE = ".service"
"""The service's own folder, beside those of its runs."""
QUEUE = "queue.sqlite"
LOCK = "lock"
"""Held by the service that is at work."""
BUSY = 10.0
"""Seconds to wait for another process that writes."""

_META = sa.MetaData()
JOBS = sa.Table(
    "jobs",
    _META,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.Text, unique=True, nullable=False),
    sa.Column("key", sa.Text, unique=True, nullable=False),
    sa.Column("settings", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("submitted_at", sa.Float, nullable=False),
    sa.Column("submitted_by", sa.Text, nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float, nullable=False),
    sa.Column("waits", sa.Text, nullable=False),
    sa.Column("waits_since", sa.Float, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
_FIELDS = [field.name for field in dataclasses.fields(Job)]


class Taken(Exception):
    """A run of that name is in the queue already."""


class JobQueue:
    """Runs in the order in which they came."""

    def __init__(self, output_dir: Path) -> None:
        """Makes what is missing. Raises DiskError."""
        self.folder = output_dir / SERVICE
        with on_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._engine = sa.create_engine(
            f"sqlite:///{self.folder / QUEUE}",
            poolclass=NullPool,
            connect_args={"timeout": BUSY},
        )
        sa.event.listen(self._engine, "connect", _connected)
        with self._writing() as connection:
            _META.create_all(connection)

    @property
    def served(self) -> bool:
        """Whether a service is at work on it. Raises DiskError."""
        return is_held(self.folder / LOCK)

    def add(self, job: Job) -> Job:
        """Put a run at the end, or find that of its key. Raises Taken, DiskError."""
        try:
            with self._writing() as connection:
                connection.execute(JOBS.insert().values(**dataclasses.asdict(job)))
        except IntegrityError:
            there = self.by_key(job.key)
            if there is None:
                raise Taken(job.run) from None
            return there
        return job

    def by_key(self, key: str) -> Job | None:
        """The run that was submitted under a key."""
        return next(iter(self._select(JOBS.c.key == key)), None)

    def get(self, run: str) -> Job | None:
        """A run by its id."""
        return next(iter(self._select(JOBS.c.run == run)), None)

    def all(self) -> Sequence[Job]:
        """All runs, in the order in which they came."""
        return self._select(sa.true())

    def open(self) -> Sequence[Job]:
        """Those that have not ended."""
        return self._select(JOBS.c.state.in_(OPEN))

    def change(self, run: str, *, only: Sequence[str] = (), **values: object) -> bool:
        """Note something of a run, `only` if it is in one of these states; whether that was done.

        Raises DiskError.
        """
        where = JOBS.c.run == run
        if only:
            where = sa.and_(where, JOBS.c.state.in_(only))
        with self._writing() as connection:
            done = connection.execute(JOBS.update().where(where).values(**values))
            return bool(done.rowcount)

    def _select(self, where: sa.ColumnElement[bool]) -> list[Job]:
        columns = [JOBS.c[name] for name in _FIELDS]
        with self._reading() as connection:
            rows = connection.execute(sa.select(*columns).where(where).order_by(JOBS.c.number))
            return [Job(**row._mapping) for row in rows]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with _as_ours(self.folder), self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with _as_ours(self.folder), self._engine.connect() as connection:
            yield connection


def existing(output_dir: Path) -> JobQueue | None:
    """The queue of a folder; None where no service was there yet. Raises DiskError."""
    return JobQueue(output_dir) if (output_dir / SERVICE / QUEUE).exists() else None


@contextlib.contextmanager
def _as_ours(folder: Path) -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except SQLAlchemyError as error:
        raise DiskError(f"{folder / QUEUE}: {getattr(error, 'orig', None) or error}") from None


def _connected(connection: sqlite3.Connection, record: Any) -> None:
    """Durable before it is told, and readable meanwhile."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}").close()
