"""A database on a PostgreSQL server: dialled again where the connection breaks."""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from sfl.errors import Damaged, DiskError
from sfl.rounds.plain import NotReadable
from sfl.store.address import NO_ANSWER, Address
from sfl.store.schema import Schema
from sfl.store.tables import Said, Statements, Values

log = logging.getLogger("sfl.store")

T = TypeVar("T")

SCHEMA = "sfl"
"""Where all tables are, so that another program's may have the same names."""
_UPGRADING, _WRITING = 0x5F10, 0x5F11
"""What advisory locks are for: the first of their two numbers."""
_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two attempts to dial."""
_SESSION = (
    "SELECT set_config('search_path', %s, false), "
    # A machine that has gone then does not hold its run for hours.
    "set_config('tcp_keepalives_idle', '10', false), "
    "set_config('tcp_keepalives_interval', '5', false), "
    "set_config('tcp_keepalives_count', '3', false)"
)
_END_OWN = (
    "SELECT pg_terminate_backend(pid) FROM pg_locks "
    "WHERE locktype = 'advisory' AND pid = %s AND classid = %s AND objid = %s"
)
_ANOTHER_RUN = "Begin another run, with another run.id or none."

_FIXES: tuple[tuple[type[psycopg.Error], str, str], ...] = (
    (errors.DiskFull, "its disk is full", "Make room there."),
    (errors.InsufficientPrivilege, "its user may not do that", f"Give it the schema {SCHEMA}."),
    (errors.ReadOnlySqlTransaction, "it only reads", "Name the server that writes."),
    (errors.UndefinedTable, "a table is missing", _ANOTHER_RUN),
)
_ITS_CA = "Name the file of its CA's certificate in the URL: &sslrootcert=FILE."
_REFUSALS = (
    ("password authentication failed", "Set PGPASSWORD, or ${NAME} in its place."),
    ("no password supplied", "Set PGPASSWORD, or ${NAME} in its place."),
    ("root certificate file", _ITS_CA),
    ("certificate verify failed", _ITS_CA),
    ("does not match host name", "Dial it by a name that its certificate has."),
    ("does not support SSL", "Have it speak TLS, or choose another sslmode."),
    ("does not exist", "Create it, or name another."),
    ("too many clients", "Raise max_connections there."),
)
"""Words of a server that answers, and does not let in: nothing that another attempt fixes."""


class NotAnswered(psycopg.OperationalError):
    """The server is there, and says nothing."""


class _Impatient(psycopg.Connection[Values]):
    """A connection whose questions are answered within `patience` seconds, or it is closed."""

    patience = 10.0
    backend_pid = 0
    """The server's process, by which the server ends it."""

    def wait(self, gen: Any, *given: Any, **named: Any) -> Any:
        """What a question comes to."""
        try:
            return super().wait(_within(gen, self.patience), *given, **named)
        except NotAnswered:
            self.close()
            raise


def _within(gen: Generator[Any, Any, T], seconds: float) -> Generator[Any, Any, T]:
    end = time.monotonic() + seconds
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > end:
                raise NotAnswered(f"no answer within {seconds:g} s")
            wanted = gen.send(ready)
    except StopIteration as done:
        result: T = done.value
        return result


class PostgresServer:
    """One connection to a server; `patience` is how long it is dialled, in seconds."""

    def __init__(
        self, address: Address, schema: Schema, patience: float, waits: bool = False
    ) -> None:
        """With `waits` a server that does not answer is dialled for `patience` seconds.

        Raises ConfigError where it cannot be used, DiskError where its tables are too new.
        """
        self.address = address
        self._url = address.url()
        self._patience = patience
        try:
            self.connection = self._waited_for() if waits else self._dialled()
            with _closed_on_error(self.connection):
                self._bring_up(schema)
        except (psycopg.Error, DBAPIError) as error:
            raise address.wrong(*_problem(error)) from None

    def _waited_for(self) -> _Impatient:
        """Raises psycopg.Error, also where it still does not answer."""
        until, pause = time.monotonic() + self._patience, 0.0
        while True:
            try:
                return self._dialled()
            except psycopg.Error as error:
                problem, _ = _problem(error)
                if time.monotonic() > until or not problem.startswith(NO_ANSWER):
                    raise
                if not pause:
                    words = "%s: %s; dialling it again for %g s"
                    log.warning(words, self.address, problem, self._patience)
                pause = min(max(2 * pause, _PAUSE), _LONGEST_PAUSE)
                time.sleep(pause * random.random())

    def _dialled(self) -> _Impatient:
        """Raises psycopg.Error."""
        url = self._url
        given = {
            "host": url.host,
            "port": url.port,
            "user": url.username,
            "password": url.password,
            "dbname": url.database,
            **url.query,
        }
        known: dict[str, Any] = {name: value for name, value in given.items() if value}
        known.setdefault("connect_timeout", max(2, round(self._patience)))
        known.setdefault("application_name", "sfl")
        known["client_encoding"] = "utf8"  # a database without an encoding would answer with bytes
        connection = _Impatient.connect(**known, autocommit=True)
        connection.patience = self._patience
        connection.backend_pid = connection.info.backend_pid
        with _closed_on_error(connection):
            connection.execute(_SESSION, (SCHEMA,))
        return connection

    def _bring_up(self, schema: Schema) -> None:
        """Make or migrate the tables; others that do so at the same time wait. Raises DiskError."""
        with engine_on(self.connection).begin() as connection:
            if schema.found(connection) == schema.version:
                return
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_UPGRADING}, 0)"))
            if (found := schema.found(connection)) > schema.version:
                problem = f"it is of version {found}, and this is for version {schema.version}"
                raise DiskError(f"{self.address}: {problem}. Use the sfl that wrote it.")
            if found == 0:
                connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
            schema.bring_up(connection, found, new=found == 0)

    def asked(self, work: Callable[[], T]) -> T:
        """What `work` finds by `ask`. Raises DiskError."""
        with self.in_words():
            return work()

    def ask(self, said: Said, **values: object) -> list[Any]:
        """The rows that answer. Raises psycopg.Error."""
        return self.connection.execute(said.text.encode(), said.values(**values)).fetchall()

    def say(self, said: Said, **values: object) -> None:
        """What has no answer. Raises psycopg.Error."""
        self.connection.execute(said.text.encode(), said.values(**values))

    def close(self) -> None:
        """Nothing more is asked."""
        self.connection.close()

    @contextlib.contextmanager
    def in_words(self) -> Iterator[None]:
        """What the server or the network says is raised as DiskError."""
        try:
            with self._of_rows():
                yield
        except psycopg.Error as error:
            raise self.told(*_problem(error)) from error

    @contextlib.contextmanager
    def _of_rows(self) -> Iterator[None]:
        """Rows that nobody can have written are raised as DiskError."""
        try:
            yield
        except NotReadable as error:
            problem = f"its journal is damaged ({error})"
            raise Damaged(f"{self.address}: {problem}. {_ANOTHER_RUN}") from None

    def told(self, problem: str, fix: str) -> DiskError:
        """What is wrong with it."""
        return DiskError(f"{self.address}: {problem}. {fix}")


class PostgresWriter(PostgresServer):
    """The connection of the one process that writes a run.

    Where it breaks, another is dialled, and what was said last is said again, to the same end.
    """

    def __init__(
        self, address: Address, schema: Schema, patience: float, statements: Statements, run_id: str
    ) -> None:
        """Makes the run where there is none. Raises ConfigError, and DiskError, also where another
        process writes the run."""
        super().__init__(address, schema, patience)
        self._statements = statements
        self._writer = secrets.token_hex(16)
        with _closed_on_error(self.connection), self.in_words():
            self.run, self.run_key = self._named(run_id)
            self._hold(time.monotonic() + patience, self.connection)
            self.say(statements.take_over, run=self.run, writer=self._writer)
            self._committed = self._last()

    def _named(self, run_id: str) -> tuple[int, str]:
        """The number of the run, and its key."""
        self.say(self._statements.name_run, id=run_id, key=secrets.token_hex(16))
        ((run, key),) = self.ask(self._statements.named, id=run_id)
        return int(str(run)), str(key)

    def _last(self) -> int:
        """The highest number that was ever given."""
        numbers = self.ask(self._statements.last, run=self.run)
        numbers += self.ask(self._statements.marked, run=self.run)
        return max(int(str(number)) for number, *_ in numbers)

    @property
    def committed(self) -> int:
        """The number of the last row that is there."""
        return self._committed

    # -- one writer -------------------------------------------------------------------------------

    def _hold(self, until: float, connection: _Impatient) -> None:
        """Take the run's lock, which goes with the connection. Raises DiskError, psycopg.Error."""
        waited = False
        while not self._taken(connection):
            if time.monotonic() > until:
                problem = "another process is at work on this run"
                raise self.told(problem, "Stop that one, or begin another run.")
            if not waited:
                log.warning("%s: another process is at work on this run; waiting", self.address)
            waited = True
            time.sleep(_PAUSE)

    def _taken(self, connection: _Impatient) -> bool:
        question = f"SELECT pg_try_advisory_lock({_WRITING}, {self.run})"
        found = connection.execute(question.encode()).fetchone()
        return found is not None and bool(found[0])

    def _require_own(self, connection: _Impatient) -> None:
        """Raises DiskError where another process has written the run meanwhile."""
        said = self._statements.writer
        found = connection.execute(said.text.encode(), said.values(run=self.run)).fetchone()
        if found is None or found[0] != self._writer:
            problem = "another process has gone on with this run"
            raise self.told(problem, "Leave it to that one.")

    def require_own(self) -> None:
        """Raises DiskError where another process has written the run meanwhile."""
        self._over_any(lambda again: self._require_own(self.connection))

    # -- what is written --------------------------------------------------------------------------

    def asked(self, work: Callable[[], T]) -> T:
        """What `work` finds by `ask`, over another connection where this one breaks."""
        return self._over_any(lambda again: work())

    def write(
        self,
        append: str,
        rows: Sequence[Values],
        more: Sequence[tuple[str, Values]] = (),
        *,
        durable: bool = False,
    ) -> None:
        """Rows, then other statements: all of it or nothing. Raises DiskError.

        All are durable, as far as the server's own `synchronous_commit` says so.
        """
        if not rows and not more:
            return
        self._over_any(lambda again: self._write_together(append, rows, more, again))
        if rows:
            self._committed = int(str(rows[-1][1]))

    def _write_together(
        self,
        append: str,
        rows: Sequence[Values],
        more: Sequence[tuple[str, Values]],
        again: bool,
    ) -> None:
        """What may have come to the server before its answer was lost goes first."""
        drop = self._statements.drop_after
        with self.connection.transaction(), self.connection.cursor() as cursor:
            if again:
                values = drop.values(run=self.run, number=self._committed)
                cursor.execute(drop.text.encode(), values)
            if rows:
                cursor.executemany(append.encode(), rows)
            for statement, values in more:
                cursor.execute(statement.encode(), values)

    def _over_any(self, work: Callable[[bool], T]) -> T:
        """Do it, over another connection where this one breaks, and say whether it is again."""
        again = False
        while True:
            try:
                with self._of_rows():
                    return work(again)
            except psycopg.Error as error:
                if not self.connection.closed:
                    raise self.told(*_problem(error)) from error
                self._dial_again(error)
                again = True

    def _dial_again(self, why: psycopg.Error) -> None:
        """Until `patience` is over. Raises DiskError."""
        began = time.monotonic()
        until, pause = began + self._patience, _PAUSE
        words = "%s: the connection broke (%s); dialling it again for %g s"
        log.warning(words, self.address, _in_a_line(why), self._patience)
        while True:
            try:
                self.connection = self._regained(until)
                break
            except psycopg.Error as error:
                if time.monotonic() > until:
                    raise self.told(*_problem(error)) from error
                time.sleep(pause * random.random())
                pause = min(2 * pause, _LONGEST_PAUSE)
        log.info("%s: connected again after %.1f s", self.address, time.monotonic() - began)

    def _regained(self, until: float) -> _Impatient:
        """Another connection, which has the run. Raises DiskError, psycopg.Error."""
        connection = self._dialled()
        with _closed_on_error(connection):
            # The server may not know yet that the one before broke.
            connection.execute(_END_OWN, (self.connection.backend_pid, _WRITING, self.run))
            self._hold(until, connection)
            self._require_own(connection)
        return connection


@contextlib.contextmanager
def _closed_on_error(connection: _Impatient) -> Iterator[None]:
    """A connection that is of no use is not left open."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


def engine_on(connection: psycopg.Connection[Any]) -> Engine:
    """SQLAlchemy on a connection of the driver's own, which begins no transaction by itself."""
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: connection, poolclass=StaticPool
    )
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _problem(error: Exception) -> tuple[str, str]:
    """(what is wrong, what to do)."""
    if isinstance(error, DBAPIError) and isinstance(error.orig, Exception):
        error = error.orig
    said = _in_a_line(error)
    for kind, problem, fix in _FIXES:
        if isinstance(error, kind):
            return f"{problem} ({said})", fix
    for words, fix in _REFUSALS:
        if words in said:
            return f"it does not let this process in ({said})", fix
    if isinstance(error, psycopg.OperationalError):
        return f"{NO_ANSWER} ({said})", "Start it, or check host, port and network."
    return f"it refuses ({said})", "Look into its log."


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
