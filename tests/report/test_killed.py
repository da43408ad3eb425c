"""A killed cloud's run is concluded from its journal: as if the cloud had been stopped then."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cloud_aggregator.records import RunRecords
from sfl.config import RunConfig
from sfl.errors import DiskError
from sfl.report import kept
from sfl.report.conclusion import conclude
from sfl.report.journal import VERSION, JournalReader, SqliteJournal
from sfl.report.kept import KeptAdapters, KeptRounds
from sfl.report.projection import RunProjection
from sfl.report.records import complete_records, read_records
from sfl.report.runs import JOURNAL
from sfl.report.status import RunStatus
from sfl.report.summary import RunSummary
from sfl.rounds import AdapterReady, RunEnded
from sfl.rounds.journal import Entry
from tests.house.fleets import fleet
from tests.house.report_sample import sample_records
from tests.house.retold import assert_retold
from tests.house.twin import Twin

WEIGHTS = "adapter_model.safetensors"
REASON = "cloud: killed by SIGKILL"


def digest(adapter: Path) -> str:
    return hashlib.sha256((adapter / WEIGHTS).read_bytes()).hexdigest()


@dataclass
class Stills:
    """A run's folder as a killed cloud leaves it at each of these moments."""

    config: RunConfig
    aside: Path
    adapters: dict[int, str] = field(default_factory=dict)

    def take(self, moment: str, folder: Path) -> None:
        shutil.copytree(folder, self.aside / moment / folder.name)

    def left(self, moment: str, tmp_path: Path) -> Path:
        """A copy of one of them, to be changed."""
        return shutil.copytree(self.aside / moment / "t", tmp_path / "t")


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> Stills:
    """Around the end of each round, amid a round, and at the end before the summary."""
    folder = tmp_path_factory.mktemp("killed")
    # Learning this fast, the last adapter is not the best.
    values = fleet(
        folder,
        2,
        run={"rounds": 4, "keep_round_adapters": False},
        training={"local_steps": 4, "learning_rate": 1.0},
        evaluation={"every": 1},
    )
    twin = Twin(folder, values)
    stills = Stills(twin.config, folder / "stills")
    keep, summarise = RunRecords.keep, RunRecords._summarise

    def kept_round(records: RunRecords, round_: int, needed: int | None) -> None:
        stills.adapters[round_] = digest(twin.folder / "adapters" / f"round-{round_:04d}")
        stills.take(f"before {round_}", twin.folder)
        keep(records, round_, needed)
        stills.take(f"after {round_}", twin.folder)

    def summarised(records: RunRecords) -> None:
        stills.take("end", twin.folder)
        summarise(records)

    async def story(twin: Twin) -> None:
        await twin.until(lambda: "d0" in twin.held and twin.done() == {"d1"})
        twin.cloud.records.show(twin.cloud.coordinator.state)  # as twice a second
        stills.take("amid 3", twin.folder)
        twin.release("d0")

    twin.at("d0", 3, 1, twin.hold)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunRecords, "keep", kept_round)
        patched.setattr(RunRecords, "_summarise", summarised)
        outcome = twin.run(story)
    assert outcome.code == 0, outcome.output
    return stills


MOMENTS = [f"{when} {n}" for n in range(1, 5) for when in ("before", "after")] + ["amid 3", "end"]


def concluded(folder: Path, config: RunConfig) -> RunSummary:
    conclude(folder, config, REASON, 1234.5)
    return RunSummary.read(folder / "summary.json")


def last_event(folder: Path) -> object:
    with contextlib.closing(JournalReader(folder)) as journal:
        return [*journal.entries()][-1].event


@pytest.mark.parametrize("moment", MOMENTS)
def test_whenever_a_cloud_is_killed_its_journal_tells_the_run(
    stills: Stills, tmp_path: Path, moment: str
) -> None:
    folder = stills.left(moment, tmp_path)
    summary = concluded(folder, stills.config)
    decided = moment == "end"  # how it ended was known by then
    end = RunEnded(True, "every round closed") if decided else RunEnded(False, REASON)
    assert summary.failure == (None if decided else REASON) and last_event(folder) == end
    rounds = 4 if decided else int(moment[-1]) - (moment == "amid 3")
    assert summary.rounds == rounds
    assert summary.wall_seconds != 1234.5  # which is how long somebody waited
    assert_retold(folder, tmp_path / "retold")
    status = RunStatus.read(folder / "status.json")
    phase, left = ("finished", "done") if decided else ("failed", "stopped")
    assert status is not None and (status.phase, status.message) == (phase, end.reason)
    assert {device.state for device in status.devices} == {left}
    # The adapters are those that are told of, also where the cloud had not made them yet.
    assert summary.adapter == str(folder / "adapter")
    assert digest(folder / "adapter") == stills.adapters[rounds]
    assert (summary.best_round is None) == (rounds == 1)
    assert (folder / "adapter_best").is_dir() == (rounds > 1)
    if summary.best_round is not None:
        assert digest(folder / "adapter_best") == stills.adapters[summary.best_round]
    names = {path.name for path in folder.iterdir()}
    working = {"adapters", "spool", "strategy", "base_updates", "manifest.json"}
    if decided:
        assert not names & working
    else:  # it may still go on
        assert {"adapters", "manifest.json"} <= names
    assert not [name for name in names if name.startswith(".")]


def test_the_best_adapter_is_not_always_the_last(stills: Stills, tmp_path: Path) -> None:
    summary = concluded(stills.left("end", tmp_path), stills.config)
    assert summary.best_round not in (None, summary.rounds)


LINES = {
    "the last lines": lambda told: told.splitlines(keepends=True)[:-3],
    "half of the last line": lambda told: [told[:-100]],
    "all but half of a line": lambda told: [told[:100]],
    "all lines": lambda told: [],
    "a line amid": lambda told: [b"rubbish\n", *told.splitlines(keepends=True)[1:]],
}


@pytest.mark.parametrize("missing", [*LINES, "the file"])
def test_lines_that_are_missing_are_told_by_the_journal(
    stills: Stills, tmp_path: Path, missing: str
) -> None:
    folder = stills.left("amid 3", tmp_path)
    lines = folder / "metrics.jsonl"
    whole = lines.read_bytes()
    if missing == "the file":
        lines.unlink()
    else:
        lines.write_bytes(b"".join(LINES[missing](whole)))
    summary = concluded(folder, stills.config)
    assert lines.read_bytes().startswith(whole)
    assert (summary.rounds, summary.failure) == (2, REASON)
    assert_retold(folder, tmp_path / "retold")


@pytest.mark.parametrize("missing", ["nothing there", "half a status"])
def test_the_status_is_told_by_the_journal(stills: Stills, tmp_path: Path, missing: str) -> None:
    folder = stills.left("amid 3", tmp_path)
    status = folder / "status.json"
    if missing == "nothing there":
        status.unlink()
    else:
        status.write_bytes(status.read_bytes()[:50])
    concluded(folder, stills.config)
    assert_retold(folder, tmp_path / "retold")
    after = RunStatus.read(status)
    assert after is not None and (after.round, after.sequence) == (3, 1)


@pytest.mark.parametrize("problem", ["damaged", "no page", "version", "held", "gone", "empty"])
def test_without_its_journal_the_other_files_tell_the_run(
    stills: Stills, tmp_path: Path, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = stills.left("amid 3", tmp_path)
    path = folder / JOURNAL
    lines = (folder / "metrics.jsonl").read_bytes()
    held = contextlib.ExitStack()
    if problem in ("damaged", "no page", "gone", "empty"):
        for beside in (f"{JOURNAL}-wal", f"{JOURNAL}-shm"):
            (folder / beside).unlink(missing_ok=True)
        path.write_bytes({"damaged": b"rubbish" * 1000, "no page": b"rubbish"}.get(problem, b""))
        if problem == "gone":
            path.unlink()
    else:
        other = held.enter_context(contextlib.closing(sqlite3.connect(path, isolation_level=None)))
        if problem == "version":
            other.execute(f"PRAGMA user_version = {VERSION + 1}")
        else:
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
    with held:
        summary = concluded(folder, stills.config)
    assert (summary.failure, summary.rounds, summary.wall_seconds) == (REASON, 2, 1234.5)
    assert summary.eval_loss_before is not None and summary.adapter == str(folder / "adapter")
    assert (folder / "metrics.jsonl").read_bytes() == lines
    assert summary.best_round == 1 and digest(folder / "adapter_best") == stills.adapters[1]
    assert not (folder / "adapters").exists() and (folder / "report.html").exists()
    status = RunStatus.read(folder / "status.json")
    assert status is not None and (status.phase, status.message) == ("failed", REASON)
    assert {device.state for device in status.devices} == {"stopped"}
    said = {"damaged": "it is damaged", "version": "Use the sfl that", "held": "another program"}
    assert ("tell of it, not its journal" in caplog.text) == (problem not in ("gone", "empty"))
    assert said.get(problem, "") in caplog.text


def test_a_journal_that_can_only_be_read_is_told_all_the_same(
    stills: Stills, tmp_path: Path
) -> None:
    """The summary alone has the end then."""
    folder = stills.left("amid 3", tmp_path / "free")
    free = concluded(folder, stills.config).to_dict()
    folder = stills.left("amid 3", tmp_path / "busy")
    before = last_event(folder)
    other = sqlite3.connect(folder / JOURNAL, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    busy = concluded(folder, stills.config).to_dict()
    other.close()
    assert busy.pop("adapter") != free.pop("adapter")
    assert busy == free and last_event(folder) == before
    assert (folder / "metrics.jsonl").read_bytes() == (
        tmp_path / "free" / "t" / "metrics.jsonl"
    ).read_bytes()


def test_a_disk_without_room_for_the_best_adapter_keeps_the_one_before(
    stills: Stills, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stills.left("before 3", tmp_path)

    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept.shutil, "copyfile", full)
    summary = concluded(folder, stills.config)
    assert summary.failure == REASON and summary.rounds == 3
    assert digest(folder / "adapter") == stills.adapters[2]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_run_that_ended_twice_is_told_by_its_last_end(stills: Stills, tmp_path: Path) -> None:
    folder = stills.left("amid 3", tmp_path)
    first = concluded(folder, stills.config)
    (folder / "summary.json").unlink()
    conclude(folder, stills.config, "another reason", 0.0)
    second = RunSummary.read(folder / "summary.json")
    assert second.failure == "another reason"
    assert {**second.to_dict(), "failure": REASON} == first.to_dict()
    assert_retold(folder, tmp_path / "retold")


def test_a_cloud_that_told_nothing_leaves_no_lines(stills: Stills, tmp_path: Path) -> None:
    """So that its name is free for another run."""
    SqliteJournal(tmp_path).close()
    summary = concluded(tmp_path, stills.config)
    assert (summary.failure, summary.wall_seconds) == (REASON, 1234.5)
    assert not (tmp_path / "metrics.jsonl").exists() and not (tmp_path / "status.json").exists()


def test_lines_are_completed_in_place(tmp_path: Path) -> None:
    path, records = tmp_path / "metrics.jsonl", sample_records()
    complete_records(path, [])
    assert not path.exists()
    complete_records(path, records)
    whole = path.read_bytes()
    assert read_records(path) == records
    for length in (0, 1, len(whole) // 2, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:length])
        number = path.stat().st_ino
        complete_records(path, records)
        assert path.read_bytes() == whole and path.stat().st_ino == number
    path.write_bytes(whole + b"{}\n")
    complete_records(path, records)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("names", [["adapters"], [".adapters.old"], ["adapters", "adapters/r"]])
def test_no_adapter_is_ever_half_removed(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is removed has another name by then."""
    for name in names:
        (tmp_path / name).mkdir()
    seen: list[str] = []
    rmtree = shutil.rmtree
    monkeypatch.setattr(
        kept.shutil, "rmtree", lambda path, **more: (seen.append(path.name), rmtree(path, **more))
    )
    KeptAdapters(tmp_path, every_round=False).drop_rounds()
    assert seen == [".adapters.old"] and not list(tmp_path.iterdir())


def test_an_adapter_that_cannot_be_kept_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapters" / "round-0001").mkdir(parents=True)
    (tmp_path / "adapters" / "round-0001" / WEIGHTS).write_bytes(b"values")
    adapters = KeptAdapters(tmp_path, every_round=False)
    with monkeypatch.context() as patched:
        patched.setattr(kept.shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "")))
        with pytest.raises(DiskError):
            adapters.choose_best(1)
    assert adapters.best_round is None
    adapters.choose_best(1)
    assert (tmp_path / "adapter_best" / WEIGHTS).read_bytes() == b"values"
    assert adapters.best_round == 1


@pytest.mark.parametrize("every_round", [True, False])
def test_a_round_whose_adapter_is_gone_is_not_the_best(tmp_path: Path, every_round: bool) -> None:
    """Who reports late makes it the best of those that were evaluated."""
    adapters = KeptAdapters(tmp_path, every_round)
    for round_, best in ((1, None), (2, None), (3, 2), (4, 1)):
        made = tmp_path / "adapters" / f"round-{round_:04d}"
        made.mkdir(parents=True)
        (made / WEIGHTS).write_text(str(round_))
        adapters.choose_best(best)
    assert adapters.best_round == (1 if every_round else 2)
    assert (tmp_path / "adapter_best" / WEIGHTS).read_text() == str(adapters.best_round)


@pytest.mark.parametrize("every_round", [True, False])
def test_which_adapters_are_kept_is_told_by_the_journal(
    stills: Stills, tmp_path: Path, every_round: bool
) -> None:
    """Of each beginning of a run: what its folder has then."""
    with contextlib.closing(JournalReader(stills.left("end", tmp_path))) as journal:
        entries: list[Entry] = list(journal.entries())
    folder, told, rounds = tmp_path / "kept", RunProjection(), KeptRounds(every_round)
    folder.mkdir()
    adapters = KeptAdapters(folder, every_round)
    for entry in entries:
        told.take(entry)
        rounds.take(entry.event, told)
        if isinstance(entry.event, AdapterReady) and (number := entry.event.round):
            made = folder / "adapters" / f"round-{number:04d}"
            made.mkdir(parents=True)
            (made / WEIGHTS).write_text(str(number))
            adapters.replace("adapter", number)
        if isinstance(entry.event, AdapterReady | RunEnded) and entry.event != AdapterReady(0):
            adapters.choose_best(told.rounds.best_round())
            found = folder / "adapter_best" / WEIGHTS
            assert (int(found.read_text()) if found.exists() else None) == rounds.best
            if (folder / "adapter").is_dir():
                assert (folder / "adapter" / WEIGHTS).read_text() == str(rounds.latest)
