"""A run's journal in a database: one process writes, any may read meanwhile.

By default it is `run.sqlite` in the run's folder. `cloud.journal` names a PostgreSQL server.
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy.dialects.sqlite import pysqlite

from sfl.config import RunConfig
from sfl.errors import ConfigError
from sfl.node.extras import require_postgres
from sfl.node.lock import FolderLock
from sfl.report.runs import JOURNAL, LOCK
from sfl.rounds.journal import PASSING, Entry, Journal, Latest, subject
from sfl.rounds.plain import NotReadable, event_from_json, state_from_json, to_json
from sfl.rounds.state import RunState
from sfl.store.address import Address
from sfl.store.schema import Schema
from sfl.store.sqlite import SqliteFile
from sfl.store.tables import OF_FILE, VERSION, Said, Statements, Values

T = TypeVar("T")

MIGRATIONS = "sfl.store.migrations"

SCHEMA = Schema(OF_FILE.all, MIGRATIONS, VERSION)
KINDS = tuple(kind.__name__ for kind in PASSING)
SETTING = "cloud.journal"

_ANOTHER_RUN = "Begin another run, with another run.id or none."
_ONE = 1
"""The run of a file, which has no other."""


@cache
def for_sqlite() -> Statements:
    """What a file is told."""
    return Statements(OF_FILE, pysqlite.SQLiteDialect_pysqlite(), KINDS)


class Database(Protocol):
    """Where a run's events are."""

    def asked(self, work: Callable[[], T]) -> T:
        """What `work` finds by `ask`. Raises DiskError."""

    def ask(self, said: Said, **values: object) -> list[Any]:
        """The rows that answer."""

    def close(self) -> None:
        """Nothing more is asked. Raises DiskError."""


class WritableDatabase(Database, Protocol):
    """Where one process may write a run's events."""

    def write(
        self,
        append: str,
        rows: Sequence[Values],
        more: Sequence[tuple[str, Values]] = (),
        *,
        durable: bool = False,
    ) -> None:
        """Rows, then other statements: all of it or nothing. Raises DiskError."""

    def require_own(self) -> None:
        """Raises DiskError where another process has written the run meanwhile."""


def _time(value: object) -> float:
    """Seconds as they are in a row. Raises NotReadable."""
    if not isinstance(value, float) or not math.isfinite(value):
        raise NotReadable(f"{value!r} is no time")
    return value


class StoredJournal:
    """What a database has of a run, also while its cloud writes. Nothing of it is changed."""

    def __init__(self, database: Database, statements: Statements, run: int) -> None:
        self._database = database
        self._statements = statements
        self._run = run

    @property
    def begun(self) -> bool:
        """Whether a cloud has made it."""
        return True

    def entries(self) -> Iterator[Entry]:
        """All events; before the last mark, without those that nobody looks at later."""
        return iter(self._database.asked(lambda: self._after(0)))

    def _after(self, number: int) -> list[Entry]:
        rows = self._database.ask(self._statements.after, run=self._run, number=number)
        return [Entry(_time(now), event_from_json(event)) for now, event in rows]

    def latest(self) -> Latest:
        """What a state is rebuilt from."""
        return self._database.asked(self._latest)

    def _latest(self) -> Latest:
        said, ask = self._statements, self._database.ask
        marks, told = ask(said.marked, run=self._run), ask(said.told, run=self._run)
        number, marked = (marks[0][0], state_from_json(marks[0][1])) if marks else (0, None)
        ((last,),) = ask(said.last, run=self._run)
        if not isinstance(number, int) or number > last:
            raise NotReadable(f"its state is of event {number!r}, and {last} is the last")
        clock = _time(told[0][0]) if told else 0.0
        entries = tuple(self._after(number))
        times = [clock, *(entry.now for entry in entries[-1:])]
        if marked is not None:
            times.append(marked.now)
        return Latest(marked, entries, max(times))

    def kept(self) -> dict[str, str]:
        """The files that are in a store, by their names in the run's folder: the hash of each."""
        found = self._database.asked(
            lambda: self._database.ask(self._statements.kept, run=self._run)
        )
        return {str(name): str(digest) for name, digest in found}

    def close(self) -> None:
        """Nothing more is read."""
        self._database.close()


class JournalReader(StoredJournal):
    """What the journal in a run's folder has. Not one byte of it is changed.

    A journal that its cloud has closed is read without any file beside it; one of an older version
    is brought up in memory.
    """

    def __init__(self, folder: Path) -> None:
        """Raises DiskError, also for a file that is damaged, held, or of a newer version."""
        self.file = SqliteFile(folder / JOURNAL, SCHEMA, _ANOTHER_RUN, writes=False)
        super().__init__(self.file, for_sqlite(), _ONE)

    @property
    def begun(self) -> bool:
        """Whether its tables are there: whoever makes it may be killed before."""
        return self.file.begun


class WrittenJournal(StoredJournal):
    """A commit outlives the process. Rows wait in memory until then."""

    def __init__(
        self,
        database: WritableDatabase,
        statements: Statements,
        run: int,
        run_key: str,
        lock: FolderLock,
    ) -> None:
        """`lock` is let go of at the end."""
        super().__init__(database, statements, run)
        self.run_key = run_key
        """Random, made with the journal: it tells this run from another of the same id."""
        self._writable = database
        self._lock = lock
        self._rows: list[Values] = []
        self._told: float | None = None
        self._files: deque[tuple[str, Values]] = deque()
        """What is to be said of files; other threads add to it."""
        self._append_text = statements.append.text
        self._last, self._since = database.asked(self._numbers)

    def _numbers(self) -> tuple[int, int]:
        """The last number that was given, and that of the last mark."""
        ((last,),) = self._database.ask(self._statements.last, run=self._run)
        marks = self._database.ask(self._statements.marked, run=self._run)
        marked = marks[0][0] if marks and isinstance(marks[0][0], int) else 0
        return max(last, marked), marked

    def append(self, entry: Entry) -> None:
        """Keep an event with the next `commit`; until then it is in memory only."""
        event = entry.event
        self._last += 1
        kind, about = type(event).__name__, subject(event)
        self._rows.append((self._run, self._last, entry.now, kind, about, to_json(event)))

    def tell_time(self, now: float) -> None:
        """The run has been up so long."""
        self._told = now

    def keep(self, name: str, digest: str) -> None:
        """A file of the run's folder is in a store; with the next `commit`. Of any thread."""
        keep = self._statements.keep
        self._files.append((keep.text, keep.values(run=self._run, name=name, digest=digest)))

    def drop(self, name: str) -> None:
        """That file is not needed any more; with the next `commit`."""
        drop = self._statements.drop
        self._files.append((drop.text, drop.values(run=self._run, name=name)))

    def require_own(self) -> None:
        """Raises DiskError where another process has written the run meanwhile."""
        self._writable.require_own()

    def mark(self, state: RunState) -> None:
        """Keep the state after the latest event, also through a power cut."""
        forget, mark = self._statements.forget, self._statements.mark
        more = [
            (forget.text, forget.values(run=self._run, number=self._since)),
            (mark.text, mark.values(run=self._run, state=to_json(state))),
        ]
        self._write(more, durable=True)
        self._since = self._last

    def commit(self, *, durable: bool = False) -> None:
        """What was kept outlives this process, however it ends; if `durable`, a power cut too."""
        self._write(durable=durable)

    def _write(self, more: Sequence[tuple[str, Values]] = (), *, durable: bool = False) -> None:
        """Rows and time that wait, then `more`: all of it or nothing, and then it waits on."""
        if self._told is not None:
            tell = self._statements.tell_time
            more = [*more, (tell.text, tell.values(run=self._run, now=self._told))]
        files = list(self._files) if self._files else ()
        if files:
            more = [*more, *files]
        self._writable.write(self._append_text, self._rows, more, durable=durable)
        self._rows = []
        self._told = None
        for _ in files:
            self._files.popleft()

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


class SqliteJournal(WrittenJournal):
    """A commit outlives the process, and a mark a power cut as well.

    That is WAL with `synchronous = NORMAL`: a commit is one write to the log and waits for no
    disk, so that an event costs microseconds; the disk is waited for where the log is put into the
    file. After a power cut the file is whole, and what is lost are the latest commits since then:
    a round's beginning is never among them.
    """

    def __init__(self, folder: Path) -> None:
        """Raises DiskError, also for a file that is damaged, held, or of a newer version."""
        lock = FolderLock(folder / LOCK)
        try:
            self.file = file = SqliteFile(folder / JOURNAL, SCHEMA, _ANOTHER_RUN, writes=True)
            super().__init__(file, for_sqlite(), _ONE, file.asked(self._name_run), lock)
        except BaseException:
            lock.release()
            raise

    def _name_run(self) -> str:
        said, file = for_sqlite(), self.file
        if not file.ask(said.named, id=""):
            file.ask(said.name_run, id="", key=secrets.token_hex(16))
        ((_, key),) = file.ask(said.named, id="")
        return str(key)

    def mark(self, state: RunState) -> None:
        """Keep the state after the latest event, also through a power cut."""
        # Its commit waits for the disk: the checkpoint alone does so only as far as no reader keeps
        # the log.
        super().mark(state)
        self.file.checkpoint()


# -- by the settings -------------------------------------------------------------------------------


class RunJournal(Journal, Protocol):
    """A journal that its cloud writes."""

    run_key: str
    """Random, made with the journal: it tells this run from another of the same id."""

    def keep(self, name: str, digest: str) -> None:
        """A file of the run's folder is in a store; with the next `commit`. Of any thread."""

    def drop(self, name: str) -> None:
        """That file is not needed any more; with the next `commit`."""

    def kept(self) -> dict[str, str]:
        """The files that are in a store, by their names in the run's folder: the hash of each."""

    def require_own(self) -> None:
        """Raises DiskError where another process has written the run meanwhile."""


def open_journal(config: RunConfig, folder: Path) -> RunJournal:
    """The journal of a run, to be written. Raises ConfigError, DiskError."""
    if not config.cloud.journal:
        return SqliteJournal(folder)
    address = _address(config.cloud.journal)
    from sfl.report.served import PostgresJournal  # an extra, only where it is asked for

    return PostgresJournal(address, folder, patience(config))


def read_journal(config: RunConfig, folder: Path, waits: bool = False) -> StoredJournal | None:
    """The journal of a run, or None where no cloud has begun one.

    With `waits` a server that does not answer is dialled for `patience`. Raises ConfigError,
    DiskError.
    """
    journal: StoredJournal
    if not config.cloud.journal:
        if not (folder / JOURNAL).exists():
            return None
        journal = JournalReader(folder)
    else:
        address = _address(config.cloud.journal)
        from sfl.report.served import PostgresReader  # an extra, only where it is asked for

        journal = PostgresReader(address, folder.name, patience(config), waits)
    if journal.begun:
        return journal
    journal.close()
    return None


def check_journal(url: str, run_id: str, seconds: float) -> None:
    """That a new run can have its journal there; no name: any. Raises ConfigError, DiskError."""
    if not url:
        return
    address = _address(url)
    from sfl.report.served import PostgresReader  # an extra, only where it is asked for

    journal = PostgresReader(address, run_id, seconds)
    try:
        if run_id and any(True for _ in journal.entries()):
            problem = f"{address} has a run of that name"
            raise ConfigError("run.id", run_id, problem, "Choose another, or none.")
    finally:
        journal.close()


def patience(config: RunConfig) -> float:
    """Seconds that a server is dialled: the cloud stands still meanwhile, and is not given up."""
    return config.network.idle_timeout / 2


def _address(url: str) -> Address:
    """Raises ConfigError."""
    require_postgres(SETTING, url)
    return Address(SETTING, url)
