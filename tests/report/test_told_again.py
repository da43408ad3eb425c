"""What comes a second time, and whose process began a second time: told once, and added up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sfl.config import RunConfig, load_run
from sfl.config.node import TlsSettings
from sfl.errors import ConfigError, DiskError
from sfl.metrics.snapshot import ByteTotals, NodeSnapshot
from sfl.node.lock import FolderLock
from sfl.report.journal import SqliteJournal
from sfl.report.projection import RunProjection
from sfl.report.resume import resumed
from sfl.report.runs import LOCK, write_effective
from sfl.report.statistics import MOST_LIVES, Statistics
from sfl.rounds import (
    CloudRestarted,
    DeviceReady,
    Event,
    Fact,
    RunEnded,
)
from sfl.rounds import ReportReceived as Reported
from sfl.rounds.journal import Entry, subject
from sfl.rounds.messages import NodeHeard
from sfl.rounds.values import DeviceFacts, RoundReport, Score
from tests.house.federation import write_config
from tests.house.fleets import fleet

FACTS = DeviceFacts(num_examples=10, example_kind="completion")


def snapshot(started_at: float, up: int, name: str = "d0", kind: str = "device") -> NodeSnapshot:
    counted = ByteTotals({"adapter": up})
    return NodeSnapshot(name, kind, started_at=started_at, bytes=counted)  # type: ignore[arg-type]


def report(round_: int, steps: int = 4, loss: float = 1.0) -> Reported:
    score = Score(12.0, 10, 3, 4)
    said = snapshot(1.0, 5).to_json()
    return Reported(
        "d0", round_, RoundReport(round_, "d0", steps, loss, 100, 2.0, score, snapshot=said)
    )


def told(events: Sequence[Event | Fact]) -> RunProjection:
    entries = [Entry(float(number), event) for number, event in enumerate(events)]
    return RunProjection.of(entries)


READY = DeviceReady("d0", 10, facts=FACTS)


def test_a_report_that_comes_again_is_no_second_record() -> None:
    once = told([READY, report(1), report(2)])
    again = told([READY, report(1), report(1), report(2), report(2)])
    assert again.records == once.records and len(once.records) == 2
    assert again.rounds.best_round() == once.rounds.best_round()
    ended = told([READY, report(1), report(1), report(2), RunEnded(False, "x")])
    assert len(ended.records) == 3


def test_a_round_that_was_begun_again_counts_as_it_ended() -> None:
    """Its training differs where nobody had kept the moments; what it began with does not."""
    found = told([READY, report(1, loss=1.0), report(1, loss=0.5), report(2)])
    assert [getattr(record, "train_loss", None) for record in found.records] == [None, 0.5]


def test_an_end_that_was_none_leaves_no_record() -> None:
    """What was trained and not evaluated by then is told once, with its score."""
    gone_on = [READY, report(1), RunEnded(False, "interrupted"), CloudRestarted(), READY, report(2)]
    found = told(gone_on)
    assert found.records == told([READY, report(1), READY, report(2)]).records
    assert found.end is None and found.message == ""


def test_what_a_node_counted_adds_up_over_its_lives() -> None:
    statistics = Statistics()
    for started_at, up in ((1.0, 5), (1.0, 7), (2.0, 1), (2.0, 4)):
        own = snapshot(started_at, up)
        statistics.heard(own, statistics.life_of(own))
    assert [own.bytes.total_up for own in statistics.all()] == [7, 4]
    assert statistics.of("device", "d0").bytes.total_up == 4
    assert statistics.life_of(snapshot(2.0, 9)) == 1 and statistics.life_of(snapshot(3.0, 0)) == 2


def test_a_node_that_begins_all_day_fills_no_disk() -> None:
    statistics = Statistics()
    for number in range(MOST_LIVES + 50):
        own = snapshot(float(number), 1)
        statistics.heard(own, statistics.life_of(own))
    assert len(statistics.all()) == MOST_LIVES + 1


def test_the_journal_keeps_the_latest_of_each_life() -> None:
    def heard(life: int) -> NodeHeard:
        return NodeHeard("device", "d0", "{}", life)

    assert subject(heard(0)) == "device d0"
    assert len({subject(heard(life)) for life in range(3)}) == 3


# -- one process at a time -------------------------------------------------------------------------


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    first = SqliteJournal(tmp_path)
    with pytest.raises(DiskError, match="another process is at work on this run"):
        SqliteJournal(tmp_path)
    key = first.run_key
    first.close()
    second = SqliteJournal(tmp_path)
    assert second.run_key == key and len(key) == 32
    second.close()
    assert not (tmp_path / LOCK).exists()


def test_runs_of_one_name_have_keys_of_their_own(tmp_path: Path) -> None:
    keys = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        journal = SqliteJournal(tmp_path / name)
        keys.append(journal.run_key)
        journal.close()
    assert keys[0] != keys[1]


def test_a_lock_that_was_removed_meanwhile_is_nobodys(tmp_path: Path) -> None:
    first = FolderLock(tmp_path / "lock")
    first.release()
    first.release()
    FolderLock(tmp_path / "lock").release()
    assert not list(tmp_path.iterdir())


# -- which run goes on -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["training.local_steps", "run.id", "cloud.listening", "cloud.tls", "network"]
)
def test_a_run_goes_on_with_its_own_settings(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="a run goes on with the settings that it has"):
        resumed("t", [f"{key}=1"], output_dir=tmp_path)


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--resume = 'nothing': no such run"):
        resumed("nothing", output_dir=tmp_path)


def test_where_a_run_listens_may_change(tmp_path: Path, config: RunConfig) -> None:
    folder = tmp_path / "20260101-a"
    write_effective(config, folder)
    found, own = resumed("2026", ['cloud.listen="127.0.0.1:1"'], output_dir=tmp_path)
    assert found == folder and own.cloud.listen == "127.0.0.1:1"
    assert own.run.id == folder.name and own.run.output_dir == tmp_path
    held = FolderLock(folder / LOCK)
    with pytest.raises(DiskError, match="another process"):
        resumed("2026", output_dir=tmp_path)
    held.release()


def test_what_a_node_has_of_its_machine_may_change(tmp_path: Path, config: RunConfig) -> None:
    write_effective(config, tmp_path / "t")
    paths = {key: tmp_path / f"{key}.pem" for key in ("ca", "cert", "key")}
    given = [f'cloud.tls.{key}="{path}"' for key, path in paths.items()]
    _, own = resumed("t", [*given, "cloud.metrics.port=9"], output_dir=tmp_path)
    assert own.cloud.tls == TlsSettings(**paths) and own.cloud.metrics.port == 9


def test_a_run_whose_cloud_was_never_up_goes_on_by_its_path(
    tmp_path: Path, config: RunConfig
) -> None:
    folder = tmp_path / "t"
    write_effective(config, folder)
    assert resumed(str(folder))[0] == folder
    (folder / "config.toml").write_text("[run]\n")  # somebody's own file, beside his data
    with pytest.raises(ConfigError, match="no such run"):
        resumed(str(folder))


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    (tmp_path / "made").mkdir()
    return load_run(write_config(tmp_path / "made", fleet(tmp_path / "made", 2)))
