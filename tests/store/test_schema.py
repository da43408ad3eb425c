"""A journal's tables: migrations make what the code asks for, and old files stay readable."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from setuptools import find_packages
from sqlalchemy import Connection, MetaData, text

from sfl.errors import DiskError
from sfl.report import journal, served
from sfl.report.journal import JournalReader, SqliteJournal
from sfl.report.runs import JOURNAL
from sfl.rounds import Coordinator, DeviceJoined, Phase
from sfl.rounds.journal import Entry
from sfl.store import postgres as server
from sfl.store import sqlite
from sfl.store.schema import Schema
from tests.house.journals import SETTINGS, files_of
from tests.house.paths import ROOT
from tests.house.postgres import Postgres

VERSION_1 = Path(__file__).parent / "version1.sqlite"
"""Of a run of two devices in its first round, as the code of version 1 wrote it."""
KEY = "567fb0565f82df90424a023062fb83b7"
TOLD = ["EdgeReady", *["DeviceJoined", "DeviceReady"] * 2, "RoundBegan", "NodeHeard", "DeviceMoved"]


@pytest.fixture(params=["SQLite", pytest.param("PostgreSQL", marks=pytest.mark.process)])
def opened(request: pytest.FixtureRequest) -> Iterator[tuple[Connection, Schema]]:
    """An empty database, and what belongs there; within a transaction."""
    if request.param == "SQLite":
        file = sqlite3.connect(":memory:", isolation_level=None)
        with contextlib.closing(file), sqlite.engine_on(file).begin() as connection:
            yield connection, journal.SCHEMA
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    with postgres.connect(postgres.database()) as own, server.engine_on(own).begin() as connection:
        yield connection, served.SCHEMA


def differences(connection: Connection, tables: MetaData) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection), tables))


def test_migrations_make_the_tables_that_are_asked_for(opened: tuple[Connection, Schema]) -> None:
    connection, schema = opened
    schema.bring_up(connection, 0, new=False)
    assert schema.found(connection) == schema.version
    assert not differences(connection, schema.tables)


def test_new_tables_are_what_migrations_make(opened: tuple[Connection, Schema]) -> None:
    connection, schema = opened
    assert schema.found(connection) == 0
    schema.bring_up(connection, 0, new=True)
    assert schema.found(connection) == schema.version
    assert not differences(connection, schema.tables)
    connection.execute(text("DROP TABLE clock"))
    assert differences(connection, schema.tables)  # it would be seen


def test_an_installed_project_has_its_migrations() -> None:
    found = find_packages(ROOT, include=["sfl*"])
    assert {"sfl.store.migrations", "sfl.store.migrations.versions"} <= set(found)


# -- files of version 1 ----------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copyfile(VERSION_1, tmp_path / JOURNAL)
    return tmp_path


def test_an_old_file_is_read_and_stays_as_it_is(old: Path) -> None:
    before = files_of(old)
    with contextlib.closing(JournalReader(old)) as reader:
        assert reader.begun
        assert [type(entry.event).__name__ for entry in reader.entries()] == TOLD
        latest = reader.latest()
    assert files_of(old) == before
    state = latest.state(SETTINGS)
    assert (state.round, state.phase, latest.now) == (1, Phase.ROUND, 7.25)


def test_an_old_file_is_gone_on_with(old: Path) -> None:
    with contextlib.closing(JournalReader(old)) as reader:
        entries, state = list(reader.entries()), reader.latest().state(SETTINGS)
    with contextlib.closing(SqliteJournal(old)) as written:
        assert written.run_key == KEY
        assert list(written.entries()) == entries
        assert written.latest().state(SETTINGS) == state
        more = Entry(9.0, DeviceJoined("d0", "e"))
        written.append(more)
    before = files_of(old)
    with contextlib.closing(SqliteJournal(old)) as again:
        assert again.run_key == KEY
        assert list(again.entries()) == [*entries, more]
    assert files_of(old) == before
    with contextlib.closing(sqlite3.connect(old / JOURNAL)) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (journal.VERSION,)
        assert file.execute("SELECT version_num FROM alembic_version").fetchone() == (
            str(journal.VERSION),
        )


def test_an_old_file_that_cannot_be_brought_up_stays_old(old: Path) -> None:
    """All of a migration or nothing."""
    with contextlib.closing(sqlite3.connect(old / JOURNAL)) as file:
        file.execute("CREATE TABLE runs(x)")
        file.commit()
    with pytest.raises(Exception, match="already exists"):
        SqliteJournal(old)
    with contextlib.closing(sqlite3.connect(old / JOURNAL)) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (1,)
        assert file.execute("SELECT count(*) FROM events").fetchone() == (len(TOLD),)


def test_a_file_that_is_older_than_versions_is_gone_on_with(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / JOURNAL)) as file:
        file.execute(
            "CREATE TABLE events(number INTEGER PRIMARY KEY, now REAL NOT NULL, "
            "kind TEXT NOT NULL, subject TEXT, event BLOB NOT NULL)"
        )
        file.commit()
    with contextlib.closing(JournalReader(tmp_path)) as reader:
        assert not list(reader.entries()) and reader.latest().now == 0.0
    with contextlib.closing(SqliteJournal(tmp_path)) as written:
        state = Coordinator(SETTINGS).state
        written.mark(state)
        assert written.latest().marked == state and len(written.run_key) == 32


def test_a_file_that_an_older_sfl_may_not_read_says_so(old: Path) -> None:
    """The check that version 1 had refuses version 2 as well."""
    SqliteJournal(old).close()
    with contextlib.closing(sqlite3.connect(old / JOURNAL)) as file:
        file.execute("PRAGMA user_version = 99")
    with pytest.raises(DiskError, match=r"version 99, and this is for version 3. Use the sfl that"):
        JournalReader(old)
