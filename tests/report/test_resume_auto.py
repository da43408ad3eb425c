"""What a cloud that is started again by a service manager goes on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sfl.config import load_run
from sfl.report import resume
from sfl.report.resume import resumed_or_new
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
