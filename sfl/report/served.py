"""A run's journal on a PostgreSQL server, which has those of many runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from sqlalchemy import Dialect
from sqlalchemy.dialects.postgresql import psycopg as dialect

from sfl.node.lock import FolderLock
from sfl.report.journal import KINDS, MIGRATIONS, StoredJournal, WrittenJournal
from sfl.report.runs import LOCK
from sfl.store.address import Address
from sfl.store.postgres import PostgresServer, PostgresWriter
from sfl.store.schema import Schema
from sfl.store.tables import OF_SERVER, VERSION, Statements

SCHEMA = Schema(OF_SERVER.all, MIGRATIONS, VERSION)
_DIALECT: Callable[..., Dialect] = dialect.PGDialect_psycopg
NOBODY = 0
"""The number of a run that is not there: theirs begin with 1."""


@cache
def for_postgres() -> Statements:
    """What a server is told."""
    return Statements(OF_SERVER, _DIALECT(paramstyle="format"), KINDS)


class PostgresReader(StoredJournal):
    """What a server has of a run."""

    def __init__(self, address: Address, run_id: str, patience: float, waits: bool = False) -> None:
        """Raises ConfigError where the server cannot be used, DiskError."""
        self.server = server = PostgresServer(address, SCHEMA, patience, waits)
        found = server.asked(lambda: server.ask(for_postgres().named, id=run_id))
        super().__init__(server, for_postgres(), int(found[0][0]) if found else NOBODY)

    @property
    def begun(self) -> bool:
        """Whether a cloud has begun the run."""
        return self._run != NOBODY


class PostgresJournal(WrittenJournal):
    """A commit is the server's: it outlives this process, its machine and its disk.

    One process writes a run: by a lock of the server that goes with the connection, and by a name
    that whoever writes next replaces.
    """

    def __init__(self, address: Address, folder: Path, patience: float) -> None:
        """Raises ConfigError where the server cannot be used, DiskError."""
        lock = FolderLock(folder / LOCK)
        try:
            said = for_postgres()
            server = PostgresWriter(address, SCHEMA, patience, said, folder.name)
            self.server = server
            super().__init__(server, said, server.run, server.run_key, lock)
        except BaseException:
            lock.release()
            raise


def run_ids(address: Address, patience: float) -> list[str]:
    """The ids of the runs on a server, the latest last. Raises ConfigError, DiskError."""
    server = PostgresServer(address, SCHEMA, patience)
    try:
        return [str(name) for (name,) in server.asked(lambda: server.ask(for_postgres().ids))]
    finally:
        server.close()
