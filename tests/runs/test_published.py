"""A run that is over has its results in the store, whenever its cloud is killed."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from cloud_aggregator import aggregator
from cloud_aggregator.mirror import StoreMirror, published
from sfl.config import load_run
from sfl.errors import DiskError
from sfl.report.conclusion import can_go_on, conclude
from sfl.report.journal import open_journal
from sfl.store.artifacts import ArtifactStore
from tests.house.federation import finished, write_config
from tests.house.fleets import fleet
from tests.house.stills import assert_same_end, over, stills_of
from tests.house.twin import Twin

WRITES: tuple[tuple[Any, str], ...] = (
    (aggregator, "complete_adapters"),
    (ArtifactStore, "publish"),
    (ArtifactStore, "names"),
    (ArtifactStore, "delete"),
    (aggregator, "drop_working_files"),
    (aggregator, "drop_rounds"),
)
SMALL: dict[str, Any] = {
    "run": {"rounds": 1, "keep_round_adapters": False},
    "training": {"local_steps": 2},
}


def stored(store: Path) -> dict[str, bytes]:
    """What is in a store of one run."""
    files = (path for path in (store / "t").rglob("*") if path.is_file())
    return {path.relative_to(store / "t").as_posix(): path.read_bytes() for path in files}


def of_store(still: Path) -> Path:
    return still.parent.parent / "store"


def settings(folder: Path) -> dict[str, Any]:
    return fleet(folder, 2, cloud={"artifacts": f"file://{folder}/store"}, **SMALL)


@pytest.mark.process
def test_whenever_its_cloud_is_killed_a_run_goes_on_or_is_published(tmp_path: Path) -> None:
    def copied(still: Path) -> None:
        shutil.copytree(tmp_path / "store", of_store(still))
        config = still / "config.toml"
        text = config.read_text()
        config.write_text(text.replace(f"file://{tmp_path}/store", f"file://{of_store(still)}"))

    whole, stills = stills_of(tmp_path, settings(tmp_path), WRITES, copied)
    results = set(stored(tmp_path / "store"))
    assert {"adapter/adapter_model.safetensors", "summary.json", "report.html"} <= results
    assert not any(name.startswith("objects/") for name in results)
    whens = [when for _, when in stills.taken]
    last = [whens.index(name) for name in ("complete_adapters", "drop_working_files")]
    last += [whens.index("publish") + 2, len(whens) - 1 - whens[::-1].index("delete")]
    for index in [*last, len(whens) - 1]:
        still, when = stills.taken[index]
        if not over(still):
            again = finished(Twin(still.parent, {}, resume=still).run())
            if when != "drop_rounds":
                assert_same_end(again, whole)
        assert set(stored(of_store(still))) == results, when
    assert when == "drop_rounds" and over(stills.taken[-1][0])


def test_a_cloud_that_has_lost_its_run_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal(load_run(write_config(tmp_path, fleet(tmp_path, 1))), tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    store = ArtifactStore("cloud.artifacts", f"file://{tmp_path}/store", "t")
    mirror = StoreMirror(tmp_path, store, journal)

    def lost() -> None:
        raise DiskError("cloud.journal: another process has gone on with this run")

    monkeypatch.setattr(journal, "require_own", lost)
    with caplog.at_level(logging.WARNING):
        assert not published(mirror)
    assert "another process has gone on" in caplog.text
    assert not stored(tmp_path / "store")
    monkeypatch.undo()
    assert published(mirror) and set(stored(tmp_path / "store")) == {"summary.json"}
    journal.close()


@pytest.mark.process
def test_a_store_that_fails_at_the_end_gets_the_results_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(store: ArtifactStore, name: str, data: bytes) -> None:
        raise DiskError("cloud.artifacts: it is full")

    monkeypatch.setattr(ArtifactStore, "publish", full)
    first = finished(Twin(tmp_path, settings(tmp_path)).run())
    monkeypatch.undo()
    assert "in its folder only" in caplog.text and can_go_on(first.folder)
    assert not over(first.folder)
    (first.folder / "summary.json").unlink()
    # As whoever started its cloud does:
    conclude(first.folder, load_run(first.folder / "config.toml"), "killed", 1.0)
    again = finished(Twin(tmp_path, {}, resume=first.folder).run())
    assert over(again.folder)
    left = stored(tmp_path / "store")
    assert "summary.json" in left and not any(name.startswith("objects/") for name in left)
