"""Snapshots in a store that edges share: in a folder, and in a bucket of a real S3 server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_server.alive import forget_given_up, stay_alive
from sfl.cli.prune import DAY, prune_and_show
from sfl.config.node import EdgeConfig
from sfl.errors import ConfigError, DiskError
from sfl.rounds.values import Point
from sfl.stage.snapshots import Snapshot, Snapshots
from sfl.store.shared import SharedSnapshots, StoredRun
from tests.house.federation import sfl
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


# -- runs that were given up ----------------------------------------------------------------------


def age(url: str, key: str, days: float, s3: Callable[[], S3]) -> None:
    """All that is kept of a run was written so long ago."""
    folder = Path(url.removeprefix("file://"))
    if url.startswith("s3://"):
        folder = s3().folder / url.removeprefix("s3://")
    for path in (folder / "recovery" / key).rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - days * DAY,) * 2)
    if url.startswith("s3://"):
        s3().look_again()


@pytest.fixture
def three(url: str, tmp_path: Path, request: pytest.FixtureRequest) -> SharedSnapshots:
    """Runs of which one was given up, one is new, and one is old and alive."""
    store = SharedSnapshots(url)
    for key in ("old", "new", "alive"):
        for device in ("a", "b"):
            disk = tmp_path / key / device
            Snapshots(disk, key, shared=store.of(key, device)).write(at(Point(1, 4)))
    for key in ("old", "alive"):
        age(url, key, 40, lambda: request.getfixturevalue("s3"))
    store.say_alive("alive", "north")
    return store


def test_runs_are_told_with_what_is_kept_of_them(three: SharedSnapshots) -> None:
    now = time.time()
    old, *others = three.runs()
    assert (old.key, old.devices, old.num_files) == ("old", 2, 2)
    assert old.num_bytes > 1000 and 39 * DAY < now - old.written < 41 * DAY
    assert {own.key for own in others} == {"new", "alive"}
    assert all(now - own.written < 600 for own in others)
    three.check()  # leaves no run


def test_what_was_given_up_is_removed_and_nothing_else(three: SharedSnapshots) -> None:
    now = time.time()
    assert three.forget_given_up(now, 50 * DAY) == []
    size = three.runs()[0].num_bytes
    (gone,) = three.forget_given_up(now, 30 * DAY)
    assert (gone.key, gone.num_bytes) == ("old", size)
    assert three.forget_given_up(now, 30 * DAY) == []
    assert sorted(own.key for own in three.runs()) == ["alive", "new"]
    assert three.of("old", "a").names() == []
    assert len(three.of("alive", "a").names()) == len(three.of("new", "b").names()) == 1


def test_a_run_that_comes_back_in_that_moment_stays(
    three: SharedSnapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, looks = SharedSnapshots.runs, []

    def looked(self: SharedSnapshots) -> list[StoredRun]:
        found = plain(self)
        if not looks:
            self.say_alive("old", "south")
        looks.append(found)
        return found

    monkeypatch.setattr(SharedSnapshots, "runs", looked)
    assert three.forget_given_up(time.time(), 30 * DAY) == []
    assert len(looks) == 2


def test_a_run_that_is_over_is_not_said_to_be_alive(url: str, tmp_path: Path) -> None:
    store = SharedSnapshots(url)
    of(store, tmp_path / "north").write(at(Point(1, 4)))
    store.say_alive(RUN, "north")
    assert len(store.runs()) == 1
    store.forget_run(RUN)
    store.say_alive(RUN, "north")
    assert store.runs() == []


def test_an_edge_says_so_again_and_again_and_forgets_as_it_starts(
    three: SharedSnapshots, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edge_server.alive.EVERY", 0.01)
    said: list[str] = []
    monkeypatch.setattr(three, "say_alive", lambda key, edge: said.append(f"{key} {edge}"))

    async def for_a_while() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stay_alive(three, RUN, "north"), 0.5)
        await stay_alive(None, RUN, "north")

    asyncio.run(for_a_while())
    assert len(said) > 2 and set(said) == {f"{RUN} north"}
    with caplog.at_level("INFO"):
        forget_given_up(three, time.time())
    assert "snapshots of 1 runs that were given up are removed: 0.0 MB" in caplog.text
    assert len(three.runs()) == 2

    def away(*_: object) -> None:
        raise DiskError("edge.snapshots = '...': it does not answer (x). Start it.")

    monkeypatch.setattr(three, "runs", away)
    forget_given_up(three, time.time())
    assert "runs that were given up are still there: edge.snapshots" in caplog.text


def test_a_user_prunes_and_is_told_what_goes(
    three: SharedSnapshots, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prune_and_show(url, 30.0, dry_run=True)
    one, last = capsys.readouterr().out.splitlines()
    assert one.startswith("old: 2 devices, 2 files, ") and one.endswith(" ago")
    assert last.startswith("1 of 3 runs would be removed (--dry-run): ")
    assert len(three.runs()) == 3
    prune_and_show(url, 30.0, dry_run=False)
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 of 3 runs removed: ")
    assert sorted(own.key for own in three.runs()) == ["alive", "new"]
    prune_and_show(url, 30.0, dry_run=False)
    assert capsys.readouterr().out == "0 of 2 runs removed: 0 B\n"


def test_a_store_that_is_none_is_named_and_an_empty_one_is_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="is no store") as raised:
        prune_and_show("/tmp/x", 30.0, dry_run=True)
    assert raised.value.field == "STORE"
    prune_and_show(f"file://{tmp_path}/nothing", 30.0, dry_run=False)
    assert capsys.readouterr().out == "0 of 0 runs removed: 0 B\n"


@pytest.mark.process
def test_the_command_prunes(tmp_path: Path) -> None:
    store = SharedSnapshots(f"file://{tmp_path}/shared")
    of(store, tmp_path / "north").write(at(Point(1, 4)))
    age(f"file://{tmp_path}/shared", RUN, 2, lambda: pytest.fail("a folder"))
    done = sfl("prune", f"file://{tmp_path}/shared", "--days", "1")
    assert done.returncode == 0 and f"{RUN}: 1 device, 1 file," in done.stdout, done.stderr
    assert store.runs() == []
    done = sfl("prune", f"file://{tmp_path}/shared", "--days", "0.001")
    assert done.returncode == 2 and "--days" in done.stderr
    done = sfl("prune", "nowhere")
    assert done.returncode == 2 and "STORE = 'nowhere': is no store" in done.stderr


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
