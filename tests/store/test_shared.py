"""Snapshots in a store that edges share: in a folder, and in a bucket of a real S3 server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sfl.config.node import EdgeConfig
from sfl.errors import ConfigError, DiskError
from sfl.rounds.values import Point
from sfl.stage.snapshots import Snapshot, Snapshots
from sfl.store.shared import SharedSnapshots
from tests.house.s3 import S3

RUN = "0123abcd"


@pytest.fixture(params=["folder", pytest.param("S3", marks=pytest.mark.process)])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        return f"file://{tmp_path}/shared here"
    server: S3 = request.getfixturevalue("s3")
    server.use(monkeypatch)
    return f"s3://{server.bucket()}/some/prefix"


def at(point: Point, value: float = 1.0) -> Snapshot:
    arrays = {
        "moments/a": np.full((3, 4), value, np.float32),
        "codecs/table": np.arange(5, dtype=np.int16),
        "codecs/used": np.array([True, False]),
    }
    return Snapshot(point, arrays, {"codecs": ["none"], "cut": [1, 0]})


def of(store: SharedSnapshots, disk: Path, device: str = "d") -> Snapshots:
    """An edge's, with a disk of its own."""
    return Snapshots(disk, RUN, shared=store.of(RUN, device))


def same(one: Snapshot | None, other: Snapshot) -> bool:
    return (
        one is not None
        and one.facts == other.facts
        and one.arrays.keys() == other.arrays.keys()
        and all(
            np.array_equal(one.arrays[name], array) and one.arrays[name].dtype == array.dtype
            for name, array in other.arrays.items()
        )
    )


def test_one_edge_reads_what_another_has_written(url: str, tmp_path: Path) -> None:
    store = SharedSnapshots(url)
    store.check()
    north, south = of(store, tmp_path / "north"), of(SharedSnapshots(url), tmp_path / "south")
    assert south.points() == ()
    points = [Point(number, 4, 1) for number in (1, 2, 3)]
    for point in points:
        north.write(at(point, point.round))
    assert south.points() == north.points() == tuple(points[1:])
    assert same(south.read(points[2]), at(points[2], 3))
    assert of(store, tmp_path / "other", "another").points() == ()
    south.go_back_to(points[1])
    assert of(store, tmp_path / "west").points() == (points[1],)
    south.clear()
    assert of(store, tmp_path / "west").points() == ()
    assert north.points() == tuple(points[1:])  # on its own disk


def test_two_pasts_of_one_step_do_not_cost_the_step_before(url: str, tmp_path: Path) -> None:
    """An edge that was cut off from its cloud may still write, while the device is elsewhere."""
    store = SharedSnapshots(url)
    north, south = of(store, tmp_path / "north"), of(store, tmp_path / "south")
    north.write(at(Point(1, 4, 1)))
    south.write(at(Point(2, 4, 2)))
    north.write(at(Point(2, 4, 1)))
    west = of(store, tmp_path / "west")
    assert west.points() == (Point(1, 4, 1), Point(2, 4, 1), Point(2, 4, 2))


def test_a_run_that_is_over_leaves_nothing(url: str, tmp_path: Path) -> None:
    store = SharedSnapshots(url)
    of(store, tmp_path / "north").write(at(Point(1, 4)))
    other = Snapshots(tmp_path / "north", "another", shared=store.of("another", "d"))
    other.write(at(Point(1, 4)))
    store.forget_run(RUN)
    store.forget_run(RUN)  # by the other edge
    assert store.of(RUN, "d").names() == []
    assert len(store.of("another", "d").names()) == 1


def test_what_was_changed_there_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    store = SharedSnapshots(f"file://{folder}")
    of(store, tmp_path / "north").write(at(Point(1, 4)))
    (file,) = folder.rglob("*.safetensors")
    for damaged in (file.read_bytes()[:-1], b"", b"\x00" * 100, file.read_bytes()[:-1] + b"x"):
        file.write_bytes(damaged)
        assert of(store, tmp_path / "south").points() == ()
        assert of(store, tmp_path / "south").read(Point(1, 4)) is None


def test_a_store_that_is_away_costs_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SharedSnapshots(f"file://{tmp_path}/shared")
    edge = of(store, tmp_path / "north")

    def away(*_: object) -> None:
        raise DiskError("edge.snapshots = '...': it does not answer (x). Start it.")

    monkeypatch.setattr("sfl.store.place.write_atomic", away)
    edge.write(at(Point(1, 4)))
    assert edge.points() == (Point(1, 4),)
    assert "no snapshot of step 4 of round 1: edge.snapshots" in caplog.text


def test_stores_are_told_apart_and_their_addresses_are_not_told() -> None:
    one, other = (SharedSnapshots(f"file:///{name}") for name in ("one", "other"))
    assert one.label == SharedSnapshots("file:///one").label != other.label
    assert "one" not in one.label


@pytest.mark.parametrize("url", ["/tmp/x", "http://x", "s3://", "s3://u:secret@host/b"])
def test_what_is_no_store_is_refused(url: str) -> None:
    with pytest.raises((ConfigError, ValueError)):
        EdgeConfig(snapshots=url)
