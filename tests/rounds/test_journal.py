"""Journals, in memory and in a file: what was kept is there again, and a run goes on from it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloud_aggregator.clock import RunClock
from sfl.config import RunConfig, RunSettings
from sfl.errors import ConfigError, DiskError
from sfl.report.journal import VERSION, JournalReader, SqliteJournal
from sfl.report.runs import JOURNAL, open_run_folder
from sfl.rounds import (
    Coordinator,
    DeviceJoined,
    DeviceMoved,
    DeviceReady,
    EdgeLost,
    EdgeReady,
    Evict,
    FinishRun,
    NodeHeard,
    Phase,
    RoundBegan,
    RunEnded,
    StartRound,
    Tick,
)
from sfl.rounds.journal import PASSING, Entry, Journal, MemoryJournal
from tests.house.journals import SETTINGS, files_of, until
from tests.house.postgres import opening
from tests.house.rebuilt import fill_up

Reopen = Callable[[], Journal]


@pytest.fixture(params=["memory", "SQLite", pytest.param("PostgreSQL", marks=pytest.mark.process)])
def reopen(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Reopen:
    """Gives the journal, and the same one each time."""
    if request.param == "memory":
        journal = MemoryJournal()
        return lambda: journal
    if request.param == "SQLite":
        return lambda: SqliteJournal(tmp_path)
    return opening(request.getfixturevalue("postgres"), tmp_path, monkeypatch)


def test_what_was_kept_is_there_again(reopen: Reopen) -> None:
    entries = [Entry(0.1, EdgeReady("e", 4)), Entry(1 / 3, DeviceJoined("d0", "e"))]
    journal = reopen()
    for entry in entries:
        journal.append(entry)
    journal.tell_time(7.25)
    journal.close()
    again = reopen()
    assert list(again.entries()) == entries
    assert again.latest().entries == tuple(entries) and again.latest().now == 7.25
    again.close()


def test_an_empty_journal_is_a_run_that_begins(reopen: Reopen) -> None:
    journal = reopen()
    assert journal.latest().state(SETTINGS) == Coordinator(SETTINGS).state
    journal.close()


def test_a_mark_stands_for_all_before_it(reopen: Reopen) -> None:
    journal = reopen()
    coordinator = Coordinator(SETTINGS, journal=journal)
    coordinator.handle(EdgeReady("e", 4), 0.5)
    coordinator.handle(DeviceMoved("d0", 1), 0.5)
    for name in ("d0", "d1"):
        coordinator.handle(DeviceJoined(name, "e"), 1.0)
        coordinator.handle(DeviceMoved(name, 1), 1.0)
        commands = coordinator.handle(DeviceReady(name, 10), 1.0)
    assert isinstance(commands[-1], StartRound)
    latest = journal.latest()
    assert latest.marked == coordinator.state and not latest.entries
    # The events stay, for whoever wants to tell of them; heartbeats do not.
    kinds = [type(entry.event) for entry in journal.entries()]
    assert kinds == [EdgeReady, *[DeviceJoined, DeviceReady] * 2, RoundBegan]
    coordinator.handle(DeviceMoved("d0", 9), 2.0)
    assert [entry.event for entry in journal.latest().entries] == [DeviceMoved("d0", 9)]
    assert journal.latest().state(SETTINGS) == coordinator.state
    journal.close()


def test_what_changes_nothing_costs_no_entry(reopen: Reopen) -> None:
    journal = reopen()
    coordinator = Coordinator(SETTINGS, journal=journal)
    for second in range(20):
        coordinator.handle(Tick(), float(second))
        coordinator.handle(DeviceMoved("d0", 3), float(second))
        coordinator.handle(DeviceJoined(f"stranger {second}", "e"), float(second))
    assert not list(journal.entries()) and journal.latest().now == 19.0
    journal.close()


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.ROUND])
def test_after_an_hour_away_deadlines_stand_where_they_stood(reopen: Reopen, phase: Phase) -> None:
    journal = reopen()
    coordinator = Coordinator(SETTINGS, journal=journal)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    for name in ("d0", "d1") if phase is Phase.ROUND else ():
        coordinator.handle(DeviceJoined(name, "e"), 1.0)
        coordinator.handle(DeviceReady(name, 10), 1.0)
    coordinator.handle(Tick(), 21.0)
    assert coordinator.phase is phase
    left = coordinator.state.time_left
    assert left == (30.0 if phase is Phase.ROUND else 9.0)
    journal.close()
    # The run's own clock stood still meanwhile: it goes on at 21 s.
    journal = reopen()
    later = Coordinator(SETTINGS, journal=journal)
    later.state = journal.latest().state(SETTINGS)
    assert later.state == coordinator.state and later.state.time_left == left
    assert later.handle(Tick(), 21.0 + left - 0.5) == []
    *_, end = later.handle(Tick(), 21.0 + left)
    assert isinstance(end, FinishRun)
    journal.close()


@pytest.mark.process
def test_what_was_committed_outlives_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from sfl.rounds import *\n"
        "from sfl.report.journal import SqliteJournal; from sfl.rounds.journal import Entry\n"
        "journal = SqliteJournal(Path(sys.argv[1]))\n"
        "journal.append(Entry(1.5, DeviceJoined('d0', 'e'))); journal.commit()\n"
        "journal.append(Entry(2.5, DeviceJoined('d1', 'e'))); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == 9
    journal = SqliteJournal(tmp_path)
    assert list(journal.entries()) == [Entry(1.5, DeviceJoined("d0", "e"))]
    journal.close()


def test_whenever_the_process_is_killed_the_journal_has_what_was_told(tmp_path: Path) -> None:
    """Of the files as they are after each event; a copy is what a killed process leaves."""
    heard: list[Entry] = []
    (tmp_path / "run").mkdir()
    journal = SqliteJournal(tmp_path / "run")
    coordinator = Coordinator(SETTINGS, journal=journal, hear=heard.append)
    for number, event in enumerate([*until("averaging"), EdgeLost("e", "gone")]):
        coordinator.handle(event, float(number))
        kept = [entry for entry in heard if not isinstance(entry.event, PASSING)]
        assert left_by(journal, tmp_path / f"event {number}") == kept
    coordinator.tell(Evict("d0", "said by the cloud"), 99.0)
    assert left_by(journal, tmp_path / "fact")[-1] == heard[-1]
    journal.close()


@pytest.mark.parametrize("room", [True, False])
def test_what_a_full_disk_did_not_take_is_told_when_the_journal_has_it(
    tmp_path: Path, room: bool
) -> None:
    heard: list[Entry] = []
    (tmp_path / "run").mkdir()
    journal = SqliteJournal(tmp_path / "run")
    coordinator = Coordinator(SETTINGS, journal=journal, hear=heard.append)
    for event in until("training"):
        coordinator.handle(event, 1.0)
    fill_up(journal)
    before = list(heard)
    with pytest.raises(DiskError):
        coordinator.handle(EdgeLost("e", "x" * 100_000), 2.0)
    with pytest.raises(DiskError):
        coordinator.tell(NodeHeard("cloud", "cloud", "{}"), 2.5)
    assert heard == before
    if room:
        journal.file.connection.execute("PRAGMA max_page_count = 100000")
        coordinator.tell(RunEnded(False, "full"), 3.0)
        assert left_by(journal, tmp_path / "aside") == [
            entry for entry in heard if not isinstance(entry.event, PASSING)
        ]
        journal.close()
    else:
        with pytest.raises(DiskError):
            coordinator.tell(RunEnded(False, "full"), 3.0)
    assert heard[-1].event == RunEnded(False, "full")


def left_by(journal: SqliteJournal, aside: Path) -> list[Entry]:
    """What a journal's files tell at this moment, without its process; heartbeats apart."""
    shutil.copytree(journal.file.path.parent, aside)
    copy = SqliteJournal(aside)
    entries = [entry for entry in copy.entries() if not isinstance(entry.event, PASSING)]
    copy.close()
    return entries


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    coordinator = Coordinator(SETTINGS, journal=SqliteJournal(tmp_path))
    journal: Any = coordinator.journal
    fill_up(journal)
    with pytest.raises(DiskError, match=r"its disk is full.*Make room there") as caught:
        for number in range(10_000):
            coordinator.handle(EdgeLost(f"e{number}", "x" * 1000), 1.0)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DiskError):
        SqliteJournal(tmp_path)


def test_what_is_no_disk_is_a_bug(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    with sqlite3.connect(tmp_path / JOURNAL) as other:
        other.execute("DROP TABLE clock")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        journal.tell_time(1.0)
        journal.commit()


def test_the_words_of_a_failing_disk(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR | 1 << 8
    with pytest.raises(DiskError, match="its disk fails"), journal.file.in_words():
        raise error


@pytest.mark.parametrize("damage", ["no database", "a page", "a row"])
def test_a_damaged_file_is_told_with_what_to_do(tmp_path: Path, damage: str) -> None:
    journal = SqliteJournal(tmp_path)
    for number in range(200):
        journal.append(Entry(1.0, DeviceJoined(f"d{number}", "e" * 100)))
    journal.close()
    path = tmp_path / JOURNAL
    if damage == "a row":
        with sqlite3.connect(path) as other:
            other.execute("UPDATE events SET event = x'7b' WHERE number = 3")
        other.close()
    else:
        whole = path.read_bytes()
        page = b"\xff" * 4096
        path.write_bytes(page * 2 if damage == "no database" else whole[:4096] + page * 20)
    with pytest.raises(DiskError, match=r"is damaged \(.*another run.id") as caught:
        list(SqliteJournal(tmp_path).entries())
    assert str(caught.value).startswith(f"{path}: ")


def test_of_a_node_only_its_latest_statistics_stay(reopen: Reopen) -> None:
    journal = reopen()
    for number in range(5):
        for name in ("d0", "d1"):
            journal.append(Entry(float(number), NodeHeard("device", name, str(number))))
        journal.commit()
    journal.append(Entry(5.0, NodeHeard("device", "d0", "5")))
    heard = [NodeHeard("device", "d1", "4"), NodeHeard("device", "d0", "5")]
    assert [entry.event for entry in journal.entries()] == heard
    journal.close()


def test_what_could_not_be_written_waits(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    fill_up(journal)
    entry = Entry(1.0, EdgeLost("e", "x" * 100_000))
    journal.append(entry)
    with pytest.raises(DiskError, match="its disk is full"):
        journal.commit()
    journal.file.connection.execute("PRAGMA max_page_count = 100000")
    assert list(journal.entries()) == [entry]
    journal.close()


@pytest.mark.parametrize("stage", ["waiting", "grace", "training", "straggling", "averaging"])
def test_an_hour_away_evicts_nobody(tmp_path: Path, stage: str) -> None:
    """The same ticks give the same commands as in a cloud that was never away."""
    network = {"round_timeout": 50.0, "join_timeout": 30.0, "join_grace": 20.0}
    network |= {"straggler_seconds": 10.0, "straggler_factor": 2.0}
    settings = RunSettings.model_validate(SETTINGS.model_dump() | {"network": network})
    if stage == "grace":
        run = {"rounds": 2, "min_devices": 1}
        settings = RunSettings.model_validate(settings.model_dump() | {"run": run})
    seconds = [1000.0]
    clock, journal = RunClock(lambda: seconds[0]), SqliteJournal(tmp_path)
    stayed = Coordinator(settings, journal=journal)
    for event in until(stage):
        seconds[0] += 1.0
        stayed.handle(event, clock.now())
    stayed.handle(Tick(), clock.now())
    assert stayed.phase is not Phase.OVER
    journal.close()
    seconds[0] += 3600.0
    journal = SqliteJournal(tmp_path)
    latest = journal.latest()
    back = Coordinator(settings, latest.now, journal)
    back.state = latest.state(settings)
    later = RunClock(lambda: seconds[0], latest.now)
    assert back.state == stayed.state and back.handle(Tick(), later.now()) == []
    stayed.journal, wanted, found = MemoryJournal(), [], []
    began, there = latest.now, seconds[0]
    for second in range(1, 120):
        seconds[0] = there + second / 2
        wanted.append(stayed.handle(Tick(), began + second / 2))
        found.append(back.handle(Tick(), later.now()))
    assert found == wanted and any(found)
    journal.close()


DAMAGED = {
    "event of no UTF-8": "UPDATE events SET event = CAST(x'ff00' AS TEXT) WHERE number = 2",
    "event is a number": "UPDATE events SET event = 7 WHERE number = 2",
    "time is text": "UPDATE events SET now = 'abc' WHERE number = 2",
    "time without end": "UPDATE events SET now = 9e999 WHERE number = 2",
    "clock is text": "INSERT OR REPLACE INTO clock VALUES(1, 'abc')",
    "state is a number": "UPDATE marks SET state = 3",
    "mark beyond the last event": "UPDATE marks SET number = 99",
    "mark is text": "UPDATE marks SET number = 'x'",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_row_of_the_wrong_kind_is_damage(tmp_path: Path, damage: str) -> None:
    journal = SqliteJournal(tmp_path)
    journal.append(Entry(1.0, EdgeReady("e", 4)))
    journal.mark(Coordinator(SETTINGS).state)
    journal.append(Entry(2.0, DeviceJoined("d0", "e")))
    journal.commit()
    journal.file.connection.execute(DAMAGED[damage])
    with pytest.raises(DiskError, match="it is damaged"):
        journal.latest()
        list(journal.entries())
    journal.close()


def test_a_file_that_another_program_holds_is_told_soon(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    entry = Entry(3.0, DeviceJoined("d0", "e"))
    other = sqlite3.connect(tmp_path / JOURNAL, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    journal.append(entry)
    began = time.monotonic()
    with pytest.raises(DiskError, match=r"another program holds it .*Close that program"):
        journal.commit()
    assert time.monotonic() - began < 3.0
    other.execute("ROLLBACK")
    other.close()
    assert list(journal.entries()) == [entry]
    journal.close()


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    SqliteJournal(tmp_path).close()
    with sqlite3.connect(tmp_path / JOURNAL) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (VERSION,)
        other.execute(f"PRAGMA user_version = {VERSION + 1}")
    other.close()
    with pytest.raises(DiskError, match=f"version {VERSION + 1}.*Use the sfl that wrote it"):
        SqliteJournal(tmp_path)


@pytest.mark.parametrize("ended", ["closed", "killed"])
def test_who_reads_a_journal_changes_nothing(tmp_path: Path, ended: str) -> None:
    (tmp_path / "run").mkdir()
    journal = SqliteJournal(tmp_path / "run")
    entries = [Entry(1.0, EdgeReady("e", 4)), Entry(2.0, DeviceJoined("d0", "e"))]
    journal.append(entries[0])
    journal.mark(Coordinator(SETTINGS).state)
    journal.append(entries[1])
    journal.tell_time(7.0)
    journal.commit()
    folder = tmp_path / "run" if ended == "closed" else tmp_path / "a killed run's #1"
    if ended == "killed":
        shutil.copytree(tmp_path / "run", folder)
        (folder / f"{JOURNAL}-shm").unlink()
    journal.close()
    before = files_of(folder)
    assert (set(before) == {JOURNAL}) == (ended == "closed")
    reader = JournalReader(folder)
    assert reader.begun and list(reader.entries()) == entries
    assert reader.latest().entries == (entries[1],) and reader.latest().now == 7.0
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.file.connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    reader.close()
    assert files_of(folder) == before


def test_a_journal_is_read_while_its_run_goes_on(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    reader = JournalReader(tmp_path)
    assert not list(reader.entries())
    for number in range(3):
        journal.append(Entry(float(number), DeviceJoined(f"d{number}", "e")))
        assert len(list(reader.entries())) == number  # what was committed
        journal.commit()
    reader.close()
    journal.close()


def test_a_journal_that_is_opened_again_stays_as_it_is(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    journal.append(Entry(1.0, DeviceJoined("d0", "e")))
    journal.close()
    before = files_of(tmp_path)
    SqliteJournal(tmp_path).close()
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("problem", ["rubbish", "version", "held"])
def test_what_cannot_be_read_is_told_with_what_to_do(tmp_path: Path, problem: str) -> None:
    words = {
        "rubbish": r"it is damaged .*another run\.id",
        "version": "Use the sfl that wrote it",
        "held": "another program holds it .*Close that program",
    }
    path = tmp_path / JOURNAL
    SqliteJournal(tmp_path).close()
    other = sqlite3.connect(path)
    if problem == "rubbish":
        path.write_bytes(b"rubbish" * 1000)
    if problem == "version":
        other.execute(f"PRAGMA user_version = {VERSION + 1}")
    if problem == "held":
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("CREATE TABLE more(x)")
    with pytest.raises(DiskError, match=words[problem]):
        JournalReader(tmp_path)
    other.close()


def test_a_mark_waits_for_the_disk_and_a_commit_does_not(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    said: list[str] = []
    journal.file.connection.set_trace_callback(said.append)
    journal.append(Entry(1.0, DeviceJoined("d0", "e")))
    journal.commit()
    assert not any("PRAGMA" in statement for statement in said)
    assert journal.file.connection.execute("PRAGMA synchronous").fetchone() == (1,)  # NORMAL
    said.clear()
    journal.mark(Coordinator(SETTINGS).state)
    told = [s for s in said if s.startswith(("PRAGMA", "COMMIT"))]
    assert told == [
        "PRAGMA synchronous = FULL",
        "COMMIT",
        "PRAGMA synchronous = NORMAL",
        "PRAGMA wal_checkpoint(PASSIVE)",
    ]
    assert journal.file.connection.execute("PRAGMA synchronous").fetchone() == (1,)
    journal.close()


def test_a_journal_without_its_run_is_no_beginning(tmp_path: Path) -> None:
    values = SETTINGS.model_dump()
    values["run"] |= {"id": "t", "output_dir": str(tmp_path)}
    config = RunConfig.model_validate(values)
    folder = open_run_folder(config)
    SqliteJournal(folder).close()
    with pytest.raises(ConfigError, match=r"run\.sqlite is of a run of that name"):
        open_run_folder(config)
    (folder / "summary.json").write_text("{}")  # it ended before its cloud was up
    assert open_run_folder(config) == folder and not (folder / JOURNAL).exists()
