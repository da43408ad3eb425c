"""A journal on a real PostgreSQL server: killed, cut off, shared, and written twice."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sfl.config import RunConfig, load_run
from sfl.errors import ConfigError, DiskError, NotYet
from sfl.node.certificates.authority import Authority
from sfl.report.journal import check_journal, open_journal, read_journal
from sfl.report.resume import resumed_or_new
from sfl.report.served import SCHEMA, PostgresJournal, PostgresReader, run_ids
from sfl.rounds import Coordinator, DeviceJoined, EdgeReady, Tick
from sfl.rounds.journal import PASSING, Entry
from sfl.store.address import Address
from sfl.store.postgres import PostgresServer
from tests.house.federation import write_config
from tests.house.fleets import fleet
from tests.house.journals import SETTINGS, until
from tests.house.postgres import PASSWORD, Postgres, behind_tls
from tests.house.proxy import Proxy
from tests.house.tls import give, unchecked

pytestmark = pytest.mark.process

ENTRIES = [Entry(float(number), DeviceJoined(f"d{number}", "e")) for number in range(8)]


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFL_TEST_PASSWORD", PASSWORD)


@pytest.fixture
def database(postgres: Postgres) -> str:
    return postgres.database()


def named(url: str) -> Address:
    return Address("cloud.journal", url)


def journal_of(
    server: Postgres, database: str, folder: Path, patience: float = 20.0, port: int | None = None
) -> PostgresJournal:
    folder.mkdir(exist_ok=True)
    return PostgresJournal(named(server.url(database, port)), folder, patience)


def kept(journal: PostgresJournal) -> list[Entry]:
    return list(journal.entries())


def test_runs_in_one_database_know_nothing_of_each_other(
    postgres: Postgres, database: str, tmp_path: Path
) -> None:
    first, second = (journal_of(postgres, database, tmp_path / name) for name in "ab")
    for journal, entries in ((first, ENTRIES[:3]), (second, ENTRIES[3:])):
        for entry in entries:
            journal.append(entry)
        journal.tell_time(9.0)
        journal.mark(Coordinator(SETTINGS).state)
    first.append(Entry(10.0, EdgeReady("e", 4)))
    assert kept(first) == [*ENTRIES[:3], Entry(10.0, EdgeReady("e", 4))]
    assert kept(second) == ENTRIES[3:]
    assert len(first.latest().entries) == 1 and not second.latest().entries
    assert first.run_key != second.run_key
    address = named(postgres.url(database))
    assert run_ids(address, 5.0) == ["a", "b"]
    reader = PostgresReader(address, "b", 5.0)
    assert reader.begun and list(reader.entries()) == ENTRIES[3:]
    nobody = PostgresReader(address, "c", 5.0)
    assert not nobody.begun
    for opened in (first, second, reader, nobody):
        opened.close()


def test_two_clouds_may_begin_at_once(postgres: Postgres, database: str, tmp_path: Path) -> None:
    """Whoever comes first makes the tables."""
    made: list[PostgresJournal] = []

    def begin(name: str) -> None:
        made.append(journal_of(postgres, database, tmp_path / name))

    threads = [threading.Thread(target=begin, args=(f"run{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({journal.run_key for journal in made}) == 6
    for journal in made:
        journal.close()


def test_a_run_has_one_writer(postgres: Postgres, database: str, tmp_path: Path) -> None:
    first = journal_of(postgres, database, tmp_path / "t")
    (tmp_path / "other").mkdir()
    with pytest.raises(DiskError, match="another process is at work on this run"):
        journal_of(postgres, database, tmp_path / "other" / "t", patience=0.3)
    first.append(ENTRIES[0])
    first.close()
    second = journal_of(postgres, database, tmp_path / "other" / "t", patience=0.3)
    assert kept(second) == ENTRIES[:1] and second.run_key == first.run_key
    second.close()


def test_who_lost_the_run_to_another_writes_nothing_more(
    postgres: Postgres, database: str, tmp_path: Path
) -> None:
    """Its machine was cut off, and another went on."""
    first = journal_of(postgres, database, tmp_path / "t")
    first.append(ENTRIES[0])
    first.commit()
    first.server.connection.close()
    (tmp_path / "other").mkdir()
    second = journal_of(postgres, database, tmp_path / "other" / "t")
    second.append(ENTRIES[1])
    second.close()
    first.append(ENTRIES[2])
    with pytest.raises(DiskError, match="another process has gone on with this run"):
        first.commit()
    third = journal_of(postgres, database, tmp_path / "other" / "t")
    assert kept(third) == ENTRIES[:2]
    third.close()


def test_a_connection_that_the_server_ends_is_dialled_again(
    postgres: Postgres, database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sfl")
    journal = journal_of(postgres, database, tmp_path / "t")
    with postgres.connect(database) as other:
        for number, entry in enumerate(ENTRIES):
            own = journal.server.connection.backend_pid
            other.execute("SELECT pg_terminate_backend(%s)", (own,))
            journal.append(entry)
            journal.tell_time(float(number))
            journal.commit()
    assert kept(journal) == ENTRIES
    journal.close()
    assert "the connection broke" in caplog.text and "connected again" in caplog.text
    assert PASSWORD not in caplog.text


class Cutting(Proxy):
    """Cuts once so many pieces have come from the server."""

    left = -1

    def _changed(self, way: Any, data: bytes) -> bytes:
        if way == "down" and self.left >= 0:
            self.left -= 1
            if self.left < 0:
                self._cut()
                return b""
        return super()._changed(way, data)


@pytest.mark.parametrize("pieces", range(6))
@pytest.mark.parametrize("how", ["rows", "a mark"])
def test_what_was_cut_off_is_written_once(
    postgres: Postgres, database: str, tmp_path: Path, pieces: int, how: str
) -> None:
    """Before or after it came to the server."""
    with Cutting(f"127.0.0.1:{postgres.port}") as proxy:
        port = int(proxy.address.rsplit(":", 1)[1])
        journal = journal_of(postgres, database, tmp_path / "t", port=port)
        for entry in ENTRIES[:2]:
            journal.append(entry)
        journal.commit()
        proxy.left = pieces
        state = Coordinator(SETTINGS).state
        for entry in ENTRIES[2:5]:
            journal.append(entry)
        journal.append(Entry(6.0, Tick()))
        journal.tell_time(6.0)
        if how == "rows":
            journal.commit()
        else:
            journal.mark(state)
        for entry in ENTRIES[5:]:
            journal.append(entry)
        found = [entry for entry in kept(journal) if entry.event != Tick()]
        assert found == ENTRIES
        latest = journal.latest()
        marked = (state, tuple(ENTRIES[5:])) if how == "a mark" else (None, latest.entries)
        assert (latest.marked, latest.entries) == marked
        journal.close()


def test_a_server_that_is_killed_is_waited_for(
    postgres: Postgres, database: str, tmp_path: Path
) -> None:
    journal = journal_of(postgres, database, tmp_path / "t")
    heard: list[Entry] = []
    coordinator = Coordinator(SETTINGS, journal=journal, hear=heard.append)
    for number, event in enumerate(until("averaging")):
        if number % 4 == 2:
            postgres.kill()
            back = threading.Timer(0.5, postgres.start)
            back.start()
            coordinator.handle(event, float(number))
            back.join()
        else:
            coordinator.handle(event, float(number))
    told = [entry for entry in kept(journal) if not isinstance(entry.event, PASSING)]
    assert told == [entry for entry in heard if not isinstance(entry.event, PASSING)]
    assert journal.latest().state(SETTINGS).round == coordinator.round
    journal.close()


@pytest.mark.parametrize("how", ["killed", "half-open"])
def test_a_server_that_does_not_come_back_ends_in_a_line(
    postgres: Postgres, database: str, tmp_path: Path, how: str
) -> None:
    with Proxy(f"127.0.0.1:{postgres.port}") as proxy:
        port = int(proxy.address.rsplit(":", 1)[1])
        journal = journal_of(postgres, database, tmp_path / "t", patience=1.0, port=port)
        journal.append(ENTRIES[0])
        if how == "killed":
            postgres.kill()
        else:
            proxy.swallows = True
        began = time.monotonic()
        try:
            with pytest.raises(DiskError) as caught:
                journal.commit()
        finally:
            if how == "killed":
                postgres.start()
        assert time.monotonic() - began < 15.0
        with contextlib.suppress(DiskError):
            journal.close()
    words = r"cloud.journal = 'postgresql\+psycopg://.*: it does not answer .*Start it"
    assert re.match(words, str(caught.value))
    assert PASSWORD not in str(caught.value) and "\n" not in str(caught.value)


PROBLEMS = {
    "no server": (":1/", r"it does not answer \(.*refused.*Start it, or check host"),
    "no database": ("/nothing", r'does not let this process in \(.*"nothing" does not exist'),
    "no such user": ("//nobody:", "password authentication failed.*Set PGPASSWORD"),
    "no variable": ("{NOT_SET}", "the environment has no NOT_SET"),
    "no host": ("@nowhere.invalid", r"it does not answer \(.*resolve"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_is_wrong_is_told_before_the_start(
    postgres: Postgres, database: str, tmp_path: Path, problem: str
) -> None:
    written, words = PROBLEMS[problem]
    url = postgres.url(database)
    url = {
        "no server": url.replace(f":{postgres.port}/", written),
        "no database": url.replace(f"/{database}", written),
        "no such user": url.replace("//tests:", written),
        "no variable": url.replace("{SFL_TEST_PASSWORD}", written),
        "no host": url.replace("@127.0.0.1", written),
    }[problem]
    with pytest.raises(ConfigError, match=words) as caught:
        check_journal(url, "", 2.0)
    later = "not answer" in words
    assert caught.value.exit_code == (NotYet.exit_code if later else ConfigError.exit_code)
    said = str(caught.value)
    assert said.startswith("cloud.journal = ") and PASSWORD not in said and "\n" not in said


TLS = {
    "no CA": ("&sslrootcert=/nowhere/ca.pem", r"root certificate file.*Name the file of its CA"),
    "another CA": (
        "&sslrootcert={folder}/other/ca.pem",
        "certificate verify failed.*Name the file of its CA",
    ),
    "another name": (
        "&sslrootcert={folder}/ca/ca.pem&host=localhost",
        "does not match host name.*Dial it by",
    ),
}
"""What a server with a certificate is refused for, under `sslmode=verify-full`."""


@pytest.fixture
def guarded(postgres: Postgres, database: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a server with a certificate, for 127.0.0.1."""
    authority, _ = Authority.init(tmp_path / "ca")
    Authority.init(tmp_path / "other")
    given = give(authority, tmp_path / "database", "cloud", "cloud", "127.0.0.1")
    with behind_tls(postgres.port, unchecked(given, "cloud", "cloud")) as port:
        yield f"{postgres.url(database, port)}?sslmode=verify-full"


def test_a_servers_certificate_is_checked_by_the_ca_that_the_url_names(
    guarded: str, tmp_path: Path
) -> None:
    url = f"{guarded}&sslrootcert={tmp_path / 'ca' / 'ca.pem'}"
    check_journal(url, "", 5.0)
    server = PostgresServer(named(url), SCHEMA, 5.0)
    assert server.connection.pgconn.ssl_in_use
    server.close()


@pytest.mark.parametrize("problem", TLS)
def test_a_certificate_that_is_not_trusted_is_a_mistake_and_nothing_to_wait_for(
    guarded: str, tmp_path: Path, problem: str
) -> None:
    options, words = TLS[problem]
    with pytest.raises(ConfigError, match=words) as caught:
        check_journal(guarded + options.format(folder=tmp_path), "", 2.0)
    assert caught.value.exit_code == ConfigError.exit_code


def test_a_server_without_tls_is_refused_where_the_url_wants_it(
    postgres: Postgres, database: str
) -> None:
    with pytest.raises(ConfigError, match=r"does not support SSL.*Have it speak TLS") as caught:
        check_journal(f"{postgres.url(database)}?sslmode=require", "", 2.0)
    assert caught.value.exit_code == ConfigError.exit_code


def run_of(folder: Path, url: str, **sections: Any) -> RunConfig:
    values = fleet(folder, 1, cloud={"journal": url}, **sections)
    return load_run(write_config(folder, values))


def test_a_name_that_a_run_has_is_refused(
    postgres: Postgres, database: str, tmp_path: Path
) -> None:
    """Another machine's folder tells nothing of it."""
    config = run_of(tmp_path, postgres.url(database))
    check_journal(config.cloud.journal, config.run.id, 5.0)
    (tmp_path / "t").mkdir()
    assert read_journal(config, tmp_path / "t") is None
    journal = open_journal(config, tmp_path / "t")
    check_journal(config.cloud.journal, config.run.id, 5.0)  # its cloud had begun nothing
    journal.append(ENTRIES[0])
    journal.close()
    with pytest.raises(ConfigError, match=r"run.id = 't': .* has a run of that name"):
        check_journal(config.cloud.journal, config.run.id, 5.0)
    found = read_journal(config, tmp_path / "t")
    assert found is not None and list(found.entries()) == ENTRIES[:1]
    found.close()


def test_a_database_without_an_encoding_keeps_text(postgres: Postgres, tmp_path: Path) -> None:
    """`SQL_ASCII` is what a server makes that was set up without a locale."""
    with postgres.connect("postgres") as own:
        own.execute(
            "CREATE DATABASE plain TEMPLATE template0 ENCODING 'SQL_ASCII' "
            "LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    journal = journal_of(postgres, "plain", tmp_path / "t")
    for entry in ENTRIES:
        journal.append(entry)
    journal.commit()
    assert list(journal.entries()) == ENTRIES
    journal.close()


def test_a_run_whose_server_is_away_is_waited_for_and_kept(
    postgres: Postgres,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a service manager starts again after a machine's start, before the server is up."""
    config = run_of(tmp_path, postgres.url(database), run={"id": ""})
    folder, _ = resumed_or_new(config)
    monkeypatch.setattr("sfl.report.journal.patience", lambda config: 0.5)
    postgres.kill()
    starting = threading.Timer(1.5, postgres.start)
    try:
        began = time.monotonic()
        with pytest.raises(NotYet, match="it does not answer"):
            resumed_or_new(config)
        assert time.monotonic() - began >= 0.5
    finally:
        starting.start()
    monkeypatch.setattr("sfl.report.journal.patience", lambda config: 30.0)
    try:
        assert resumed_or_new(config)[0] == folder
    finally:
        starting.join()
    assert [path for path in config.run.output_dir.iterdir() if path.is_dir()] == [folder]
    assert "it does not answer" in caplog.text and "dialling it again for 30 s" in caplog.text


def test_a_database_of_a_newer_version_is_refused(
    postgres: Postgres, database: str, tmp_path: Path
) -> None:
    journal_of(postgres, database, tmp_path / "t").close()
    with postgres.connect(database) as other:
        other.execute("UPDATE sfl.alembic_version SET version_num = '99'")
    with pytest.raises(DiskError, match=r"version 99, and this is .* Use the sfl that wrote it"):
        journal_of(postgres, database, tmp_path / "t")


def test_a_damaged_row_is_told(postgres: Postgres, database: str, tmp_path: Path) -> None:
    journal = journal_of(postgres, database, tmp_path / "t")
    journal.append(ENTRIES[0])
    journal.commit()
    with postgres.connect(database) as other:
        other.execute("UPDATE sfl.events SET event = '\\x7b'")
    with pytest.raises(DiskError, match=r"its journal is damaged.*another run.id"):
        journal.entries()
    journal.close()


def test_a_user_who_may_not_make_tables_is_told(
    postgres: Postgres, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres.connect(database) as other:
        other.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    monkeypatch.setenv("SFL_TEST_PASSWORD", "guest")
    url = postgres.url(database).replace("//tests:", "//guest:")
    with pytest.raises(ConfigError, match=r"may not do that \(permission denied.*schema sfl"):
        PostgresReader(named(url), "t", 5.0)


def test_the_password_may_be_the_environments(
    postgres: Postgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url(database).replace(":${SFL_TEST_PASSWORD}", "")
    with pytest.raises(ConfigError, match=r"no password supplied.*Set PGPASSWORD"):
        PostgresReader(named(url), "t", 5.0)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    PostgresReader(named(url), "t", 5.0).close()
