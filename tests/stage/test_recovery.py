"""Who is killed at any step goes on from snapshots, and trains the same adapter to the last bit."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from sfl.errors import SnapshotMissing
from sfl.rounds.values import BEGINNING, Point
from sfl.stage.messages import RoundOutcome
from sfl.stage.remembered import Remembered
from sfl.stage.snapshots import (
    KEPT_RUNS,
    Snapshot,
    Snapshots,
    below,
    forget_old_runs,
    forget_run,
    recovery_folder,
)
from sfl.transport.device.inproc import InProcessTraining
from tests.house.alone import NAME, ROUNDS, STEPS, Alone
from tests.house.reference import assert_same_bits

pytestmark = pytest.mark.process  # each takes seconds

UNCODED = {"activation": "none", "gradient": "none"}
CODECS: dict[str, Mapping[str, str]] = {
    "none": UNCODED,
    "compact": {"activation": "compact", "gradient": "compact"},
    "token": {"activation": "delta(token) | int8", "gradient": "int8"},
    "adapter": {**UNCODED, "adapter": "topk(0.2) | int8"},
    "sft": {"activation": "sft", "gradient": "sft", "adapter": "int8"},
}
SIDES = ("device", "edge")
WITHIN = [
    ("none", "fedavg", None),
    ("none", "fedprox", 0.05),
    ("compact", "fedavg", 0.05),
    ("adapter", "fedprox", None),
    ("sft", "fedavg", None),
    ("token", "flora", None),
]


class Killed(BaseException):
    """Both processes are gone, in the middle of a step."""


class Dying(InProcessTraining):
    """A link whose both ends die once so many messages, and another one, are computed with."""

    left = 10**9

    def send(self, message: Any) -> None:
        super().send(message)
        self.left -= 1
        if self.left < 0:
            raise Killed


def kept(folder: Path, run: str = "r") -> dict[str, Snapshots]:
    return {side: Snapshots(recovery_folder(folder / side, run, NAME), run) for side in SIDES}


def rebuilt(run: Alone, snapshots: Mapping[str, Snapshots]) -> tuple[Any, Dying]:
    """A trainer and its link, as new processes have them."""
    stage = run.stage()
    link = run.ends(stage, None, snapshots)
    dying = Dying(link.device, link.edge, link.session)  # type: ignore[arg-type]
    return run.trainer(dying, stage), dying


def common(link: InProcessTraining, round_: int) -> Point:
    """What a cloud would name: the last point that both sides have from before a round."""
    points = set(link.device.remembered.points) & set(link.edge.remembered.points)
    return max((point for point in points if point < Point(round_)), default=Point(0))


def replayed(run: Alone, folder: Path, killed_after: int, again: int = 1) -> dict[str, np.ndarray]:
    """The adapter, where round 2 is begun again by new processes after so many messages of it."""
    trainer, link = rebuilt(run, kept(folder))
    values: Mapping[str, np.ndarray] = run.first
    for round_ in range(1, ROUNDS + 1):
        if round_ == 2:
            for _ in range(again):
                link.left = killed_after
                with pytest.raises(Killed):
                    trainer.run_round(link.begin_round(run.start(2), values))
                trainer, link = rebuilt(run, kept(folder))
                assert common(link, 2) == run.start(2).after
        values = link.end_round(trainer.run_round(link.begin_round(run.start(round_), values)))
    return dict(values)


def test_what_two_pasts_have_left_of_one_step_is_not_taken_for_the_same(tmp_path: Path) -> None:
    """Round 2 is done at one edge, of which the cloud hears nothing, and again at another one."""
    run = Alone("vanilla", UNCODED)
    device = Snapshots(recovery_folder(tmp_path / "device", "r", NAME), "r")
    edges = {
        name: Snapshots(recovery_folder(tmp_path / name, "r", NAME), "r")
        for name in ("north", "south")
    }

    def done(edge: str, round_: int, after: Point, lineage: int) -> None:
        trainer, link = rebuilt(run, {"device": device, "edge": edges[edge]})
        assert common(link, round_) == after
        own = replace(run.start(round_), after=after, lineage=lineage)
        link.end_round(trainer.run_round(link.begin_round(own, run.first)))

    done("north", 1, BEGINNING, 1)
    done("north", 2, Point(1, STEPS, 1), 1)
    done("south", 2, BEGINNING, 2)
    assert device.points() == (Point(2, STEPS, 2),)
    _, link = rebuilt(run, {"device": device, "edge": edges["north"]})
    assert link.edge.remembered.points == (Point(1, STEPS, 1), Point(2, STEPS, 1))
    assert common(link, 3) == BEGINNING
    done("north", 3, BEGINNING, 3)
    assert edges["north"].points() == device.points() == (Point(3, STEPS, 3),)


def test_who_goes_back_keeps_nothing_that_came_later(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, "r")
    for point in (Point(1, 4, 1), Point(3, 4, 1)):
        snapshots.write(Snapshot(point, ARRAYS))
    for point in (Point(2, 2, 1), Point(2, 2, 2)):
        snapshots.write(Snapshot(point, ARRAYS), last=False)
    remembered = Remembered(snapshots)
    found = remembered.go_on_from(Point(2, 2, 1), trains=True)
    assert found is not None and found.point == Point(2, 2, 1)
    assert snapshots.points() == (Point(1, 4, 1), Point(2, 2, 1))


def test_a_snapshot_from_before_lineages_counts_as_missing(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, "r")
    snapshots.write(Snapshot(HERE, ARRAYS))
    only(tmp_path).rename(tmp_path / "round-000002-00000004.safetensors")
    assert snapshots.points() == ()


@cache
def undisturbed(topology: str, codec: str, strategy: str) -> dict[str, np.ndarray]:
    return Alone(topology, CODECS[codec], strategy).over_ends()


@pytest.mark.parametrize(
    ("codec", "strategy"),
    [
        ("none", "fedavg"),
        ("none", "fedprox"),
        ("none", "flora"),
        ("compact", "fedavg"),
        ("token", "fedavg"),
        ("adapter", "fedavg"),
        ("sft", "fedprox"),
    ],
)
@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_killed_at_any_message_of_a_round_it_trains_the_same_adapter(
    tmp_path: Path, topology: str, codec: str, strategy: str
) -> None:
    run = Alone(topology, CODECS[codec], strategy)
    expected = undisturbed(topology, codec, strategy)
    per_step = 1 if topology == "vanilla" else 2
    for killed_after in range(per_step * STEPS):
        found = replayed(run, tmp_path / str(killed_after), killed_after)
        assert_same_bits(found, expected)


def test_norms_and_being_killed_again_and_again_change_nothing(tmp_path: Path) -> None:
    run = Alone("u_shaped", CODECS["compact"], max_grad_norm=0.05)
    expected = run.over_ends()
    assert_same_bits(replayed(run, tmp_path, 4, again=3), expected)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(("codec", "strategy", "norm"), WITHIN)
@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_a_round_goes_on_within_from_steps_that_both_sides_have(
    tmp_path: Path, topology: str, codec: str, strategy: str, norm: float | None, every: int
) -> None:
    run = Alone(topology, CODECS[codec], strategy, every, max_grad_norm=norm)
    expected, told = whole(topology, codec, strategy, norm)
    per_step = (1 if topology == "vanilla" else 2) + (norm is not None)
    starts = set()
    for killed_after in range(per_step * STEPS):
        found, outcome, done = gone_on(run, tmp_path / str(killed_after), killed_after)
        assert_same_bits(found, expected)
        starts.add(done)
        for field in ("num_steps", "train_loss", "num_tokens", "evaluation", "sample"):
            assert getattr(outcome, field) == getattr(told, field), field
    assert max(starts) == STEPS - 1 and starts <= {0, every, 2}


@cache
def whole(
    topology: str, codec: str, strategy: str, norm: float | None
) -> tuple[dict[str, np.ndarray], RoundOutcome]:
    """The adapter and what is told of round 2, where nothing happens."""
    with TemporaryDirectory() as folder:
        run = Alone(topology, CODECS[codec], strategy, max_grad_norm=norm)
        return gone_on(run, Path(folder), None)[:2]


def gone_on(
    run: Alone, folder: Path, killed_after: int | None
) -> tuple[dict[str, np.ndarray], RoundOutcome, int]:
    """The adapter, what is told of round 2, and how many of its steps were not done again."""
    trainer, link = rebuilt(run, kept(folder))
    values: Mapping[str, np.ndarray] = run.first
    for round_ in range(1, ROUNDS + 1):
        own = replace(run.start(round_), evaluate="all")
        if round_ == 2 and killed_after is not None:
            link.left = killed_after + 1  # all held-out examples are one batch
            with pytest.raises(Killed):
                trainer.run_round(link.begin_round(own, values))
            trainer, link = rebuilt(run, kept(folder))
            own = replace(own, after=common(link, 3))
        outcome = trainer.run_round(link.begin_round(own, values))
        if round_ == 2:
            second, done = outcome, own.after.step if own.after.round == 2 else 0
        values = link.end_round(outcome)
    return dict(values), second, done


@pytest.mark.parametrize(
    ("codec", "part"), [("none", "moments"), ("compact", "codecs"), ("adapter", "adapter")]
)
def test_each_part_of_a_snapshot_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, part: str
) -> None:
    def without(snapshot: Snapshot, own: str) -> dict[str, np.ndarray]:
        return {} if own == part else below(snapshot.arrays, own)

    monkeypatch.setattr(Snapshot, "of", without)
    found = replayed(Alone("vanilla", CODECS[codec]), tmp_path, 1)
    expected = undisturbed("vanilla", codec, "fedavg")
    assert not all(np.array_equal(found[name], expected[name]) for name in expected)


def test_tables_of_samples_are_forgotten_by_both_ends(tmp_path: Path) -> None:
    codec = {"activation": "delta(sample) | int8", "gradient": "none"}
    run = Alone("vanilla", codec)
    found = replayed(run, tmp_path, 1)
    assert found.keys() == run.first.keys()
    for side in kept(tmp_path).values():
        snapshot = side.read(Point(ROUNDS, STEPS))
        assert snapshot is not None and not snapshot.of("codecs") and snapshot.of("moments")


def test_a_point_that_is_not_there_is_never_guessed(tmp_path: Path) -> None:
    run = Alone("vanilla", UNCODED)
    trainer, link = rebuilt(run, kept(tmp_path))
    values = link.end_round(trainer.run_round(link.begin_round(run.start(1), run.first)))
    for snapshots in (kept(tmp_path, "another"), {}, kept(tmp_path / "elsewhere")):
        _, link = rebuilt(run, snapshots)
        with pytest.raises(SnapshotMissing, match=r"step 3 of round 1 .* no snapshot of that"):
            link.begin_round(run.start(2), values)


def test_from_the_beginning_nothing_is_remembered(tmp_path: Path) -> None:
    run = Alone("vanilla", CODECS["sft"])
    trainer, link = rebuilt(run, kept(tmp_path))
    link.end_round(trainer.run_round(link.begin_round(run.start(1), run.first)))
    values = link.end_round(trainer.run_round(link.begin_round(run.start(1), run.first)))
    fresh, other = rebuilt(run, {})
    expected = other.end_round(fresh.run_round(other.begin_round(run.start(1), run.first)))
    assert_same_bits(values, expected)


# -- the files -------------------------------------------------------------------------------------

HERE = Point(2, 4)
ARRAYS = {
    "moments/a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "moments/step": np.float32(3.0).reshape(()),
    "codecs/rows": np.arange(8, dtype=np.uint16).reshape(2, 4),
    "codecs/empty": np.zeros((0, 4), np.int64),
}


def written(folder: Path, point: Point = HERE, run: str = "r") -> Snapshots:
    snapshots = Snapshots(folder, run)
    snapshots.write(Snapshot(point, ARRAYS, {"codecs": {"activation": "none"}}))
    return snapshots


def only(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    found = written(tmp_path / "new" / "folder").read(HERE)
    assert found is not None and found.point == HERE
    assert found.facts == {"codecs": {"activation": "none"}}
    assert found.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found.arrays[name].dtype == array.dtype
        assert np.array_equal(found.arrays[name], array)
        assert found.arrays[name].shape == array.shape
    assert found.of("codecs").keys() == {"rows", "empty"}


def test_a_snapshot_is_a_safetensors_file_of_any_values(tmp_path: Path) -> None:
    types = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?")
    arrays = {name: np.arange(6).astype(name).reshape(2, 3) for name in types}
    arrays["turned"] = np.arange(6, dtype=np.float32).reshape(2, 3).T
    snapshots = Snapshots(tmp_path, "r")
    snapshots.write(Snapshot(HERE, arrays, {"said": "né"}))
    read = safetensors.numpy.load(only(tmp_path).read_bytes())
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype and np.array_equal(read[name], array)
    assert snapshots.count.size == only(tmp_path).stat().st_size
    found = snapshots.read(HERE)
    assert found is not None and found.facts == {"said": "né"}


@pytest.mark.parametrize("kept_part", [0.0, 0.2, 0.5, 0.99])
def test_a_torn_file_counts_as_not_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kept_part: float
) -> None:
    snapshots, path = written(tmp_path), only(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept_part)])
    assert snapshots.read(HERE) is None and snapshots.points() == ()
    assert "is not used" in caplog.text


def test_a_flipped_bit_anywhere_counts_as_not_there(tmp_path: Path) -> None:
    snapshots, path = written(tmp_path), only(tmp_path)
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        found = snapshots.read(HERE)
        if found is not None:  # a name of the file's own that nobody reads
            for name, array in ARRAYS.items():
                assert np.array_equal(found.arrays[name], array)


def test_another_runs_file_counts_as_not_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path, run="another")
    snapshots = Snapshots(tmp_path, "r")
    assert snapshots.points() == () and "it is of run 'another'" in caplog.text
    only(tmp_path).rename(tmp_path / "round-000003-00000004-000000.safetensors")
    assert Snapshots(tmp_path, "another").points() == ()


def test_two_generations_of_each_kind_are_kept(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, "r")
    for round_ in (1, 2, 3):
        for step in (2, 4):
            snapshots.write(Snapshot(Point(round_, step), ARRAYS), last=False)
        snapshots.write(Snapshot(Point(round_, 5), ARRAYS))
    assert snapshots.points() == (Point(2, 5), Point(3, 2), Point(3, 4), Point(3, 5))
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}
    snapshots.clear()
    assert not tmp_path.exists()


def test_a_full_disk_costs_a_line_and_never_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Alone("vanilla", CODECS["compact"])

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    trainer, link = rebuilt(run, kept(tmp_path))
    values = link.end_round(trainer.run_round(link.begin_round(run.start(1), run.first)))
    monkeypatch.setattr(os, "fsync", full)
    for round_ in (2, 3):
        values = link.end_round(trainer.run_round(link.begin_round(run.start(round_), values)))
    assert_same_bits(values, undisturbed("vanilla", "compact", "fedavg"))
    assert "no snapshot of step 3 of round 3" in caplog.text and "its disk is full" in caplog.text
    monkeypatch.undo()
    assert kept(tmp_path)["device"].points() == (Point(1, STEPS),)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_run_that_is_over_leaves_nothing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(recovery_folder(tmp_path, "r", name))
    forget_run(tmp_path, "r", "a")
    assert [path.name for path in (tmp_path / "recovery" / "r").iterdir()] == ["b"]
    forget_run(tmp_path, "r", "b")
    assert not list(tmp_path.iterdir())


def test_a_runs_key_is_no_way_out_of_the_folder(tmp_path: Path) -> None:
    for key in ("../../out", "/etc", "", ".", "..", "a/b"):
        inside = recovery_folder(tmp_path, key, "d").resolve()
        assert inside.parent.parent == (tmp_path / "recovery").resolve()


def test_of_runs_that_were_given_up_the_latest_stay(tmp_path: Path) -> None:
    """A device's files, and an edge's, which has a folder for each device."""
    day = 86400.0
    now = 400 * day
    ages = {f"r{number:02}": number for number in range(KEPT_RUNS + 3)}
    for names, who in ((("d",), "d"), (("e", "d"), "e")):
        for run, age in ages.items():
            folder = recovery_folder(tmp_path, run, *names)
            written(folder)
            for path in (*folder.iterdir(), folder):
                os.utime(path, (now - age * day, now - age * day))
        assert forget_old_runs(tmp_path, who, now) == 3
        assert forget_old_runs(tmp_path, who, now) == 0
        kept = {run for run in ages if recovery_folder(tmp_path, run, *names).exists()}
        assert kept == {run for run, age in ages.items() if age < KEPT_RUNS}
        assert forget_old_runs(tmp_path, who, now + 20 * day) == KEPT_RUNS - 11
    assert forget_old_runs(tmp_path, "d", now + 31 * day) == 11
    assert recovery_folder(tmp_path, "r00", "e", "d").exists(), "another node's stay"
    assert forget_old_runs(tmp_path, "e", now + 31 * day) == 11
    assert not (tmp_path / "recovery").exists()
    assert forget_old_runs(tmp_path / "nowhere", "d", now) == 0


def test_a_disk_that_hangs_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others' work goes on; once the disk answers, snapshots are written again."""
    monkeypatch.setattr("sfl.stage.remembered.DISK_SECONDS", 0.05)
    snapshots, answers = Snapshots(tmp_path, "r"), threading.Event()
    write, begun = Snapshots.write, []

    def hanging(own: Snapshots, snapshot: Snapshot, last: bool = True) -> None:
        begun.append(snapshot.point)
        assert answers.wait(60.0)
        write(own, snapshot, last)

    monkeypatch.setattr(Snapshots, "write", hanging)
    remembered = Remembered(snapshots)
    for step in (1, 2, 3):
        remembered.passed(Point(1, step), ARRAYS, {})
        remembered.written()
    remembered.reached(Point(1, 4), ARRAYS, {})
    remembered.written()
    assert begun == [Point(1, 1)] and remembered.at == Point(1, 4)
    assert caplog.text.count("its disk has not answered for 0.05 s") == 1
    answers.set()
    for _ in range(1000):
        remembered.written()
        if remembered._writing is None:
            break
        time.sleep(0.01)
    remembered.reached(Point(2, 4), ARRAYS, {})
    remembered.written()
    assert snapshots.points() == (Point(1, 1), Point(2, 4))
