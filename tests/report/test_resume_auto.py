"""What a cloud that is started again by a service manager goes on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sfl.config import RunConfig, load_run
from sfl.errors import DiskError, NoAnswer, SflError
from sfl.report import resume
from sfl.report.conclusion import can_go_on, conclude
from sfl.report.resume import resumed_or_new
from sfl.report.runs import open_run_folder
from tests.house.federation import write_config
from tests.house.fleets import fleet


def chosen(folder: Path, **sections: Any) -> Path:
    """The folder that these settings lead to."""
    values = fleet(folder, 1, **{**sections, "run": {"id": "", **sections.get("run", {})}})
    return resumed_or_new(load_run(write_config(folder, values)))[0]


def test_a_run_that_was_stopped_goes_on_with_the_same_settings_only(tmp_path: Path) -> None:
    first = chosen(tmp_path)
    assert chosen(tmp_path) == first
    other = chosen(tmp_path, run={"rounds": 7})
    assert other != first
    assert chosen(tmp_path, run={"rounds": 7}) == other
    assert chosen(tmp_path) == first


def test_a_run_that_has_ended_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = chosen(tmp_path)
    monkeypatch.setattr(resume, "_has_ended", lambda folder, config: folder.name == first.name)
    second = chosen(tmp_path)
    assert second != first
    assert chosen(tmp_path) == second


def test_a_run_that_nobody_asked_for_like_this_is_left_alone(tmp_path: Path) -> None:
    first = chosen(tmp_path)
    (first / "asked.toml").unlink()
    assert chosen(tmp_path) != first


def test_a_run_whose_journal_is_damaged_keeps_nobody_from_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = chosen(tmp_path)
    (first / "run.sqlite").write_bytes(b"x" * 5000)
    assert chosen(tmp_path) != first
    assert f"run {first.name} cannot go on" in caplog.text and "damaged" in caplog.text


@pytest.mark.parametrize(
    "error", [NoAnswer("cloud.journal", "", "it does not answer", ""), DiskError("it is held")]
)
def test_what_may_be_otherwise_later_begins_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: SflError
) -> None:
    first = chosen(tmp_path)

    def away(config: RunConfig, folder: Path, waits: bool = False) -> None:
        raise error

    monkeypatch.setattr(resume, "read_journal", away)
    with pytest.raises(type(error)):
        chosen(tmp_path)
    monkeypatch.undo()
    assert chosen(tmp_path) == first
    assert [path.parent for path in tmp_path.rglob("asked.toml")] == [first]


def test_a_run_whose_database_is_away_is_not_given_up(tmp_path: Path) -> None:
    url = "postgresql+psycopg://sfl@127.0.0.1:1/sfl"
    values = fleet(tmp_path, 1, cloud={"journal": url})
    config = load_run(write_config(tmp_path, values))
    folder = open_run_folder(config)
    (folder / "manifest.json").write_text("{}")
    (folder / "spool").mkdir()
    conclude(folder, config, "killed", 1.0)
    assert (folder / "summary.json").exists() and (folder / "spool").exists()
    assert can_go_on(folder)
