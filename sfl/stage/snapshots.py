"""Snapshots: what one side remembers of a device, on its disk, so that a new process goes on there.

A snapshot is of a point (`sfl.rounds.values.Point`), and is one safetensors file: arrays by name,
and in its header facts as JSON with a digest over all of it. It is there whole or not at all. Edges
may keep each in a store that all of them share as well, so that a device finds it at any of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import safetensors

from sfl.errors import ConfigError, DiskError
from sfl.metrics.stats import SnapshotCount
from sfl.node.files import on_disk, write_pieces
from sfl.node.paths import expanded
from sfl.rounds.values import Point

log = logging.getLogger("sfl.recovery")

GENERATIONS = 2
"""Snapshots of a kind that are kept: the two ends of a stream may be one point apart."""
KEPT_RUNS = 16
"""Runs of which a node keeps snapshots: those that were written to last."""
KEPT_SECONDS = 30 * 86400.0
"""After so long without a snapshot a run counts as given up."""
FORMAT = 3
_FILE = re.compile(r"(round|step)-(\d+)-(\d+)-(\d+)\.safetensors")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

_KINDS = {"f": "F", "i": "I", "u": "U"}
"""safetensors' letters for numpy's, before the bits of a value."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was remembered at a point: arrays by name, and facts that JSON can hold."""

    point: Point
    arrays: Arrays = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def of(self, part: str) -> dict[str, np.ndarray]:
        """The arrays below `part/`."""
        return below(self.arrays, part)


def below(arrays: Arrays, part: str) -> dict[str, np.ndarray]:
    """Those whose names begin with `part/`, without that."""
    start = f"{part}/"
    return {name[len(start) :]: a for name, a in arrays.items() if name.startswith(start)}


def under(part: str, arrays: Arrays) -> dict[str, np.ndarray]:
    """The same arrays, with `part/` before their names."""
    return {f"{part}/{name}": array for name, array in arrays.items()}


def recovery_folder(cache: Path, run_key: str, *names: str) -> Path:
    """Where a node's snapshots of a run are. What is no plain name is replaced by its digest.

    Raises ConfigError where there is no home directory for `cache` to be in.
    """
    key = run_key if _PLAIN.fullmatch(run_key) else hashlib.sha256(run_key.encode()).hexdigest()
    return expanded(cache, "cache_dir").joinpath("recovery", key, *names)


def forget_run(cache: Path, run_key: str, name: str) -> None:
    """Remove all that a node of this name keeps of a run that is over."""
    # Others of this machine may have theirs there, and without a home there is nothing.
    with contextlib.suppress(OSError, ConfigError):
        folder = recovery_folder(cache, run_key, name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.rmdir()
        folder.parent.parent.rmdir()


def forget_old_runs(cache: Path, name: str, now: float) -> int:
    """Remove what a node of this name keeps of runs that were given up; how many there were.

    The last KEPT_RUNS stay, unless nothing was written for KEPT_SECONDS by `now` (Unix seconds).
    """
    try:
        root = recovery_folder(cache, "run").parent
        found = [(_last_written(run / name), run.name) for run in root.iterdir()]
    except (OSError, ConfigError):
        return 0  # there is nothing yet
    there = sorted(((at, key) for at, key in found if at > 0.0), reverse=True)
    old = [
        key
        for place, (at, key) in enumerate(there)
        if place >= KEPT_RUNS or now - at > KEPT_SECONDS
    ]
    for key in old:
        forget_run(cache, key, name)
    if old:
        log.info("snapshots of %d runs that were given up are removed", len(old))
    return len(old)


def _last_written(folder: Path) -> float:
    """When the newest file below a folder was written, in Unix seconds; 0 where there is none."""
    newest = 0.0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process removes it
            newest = max(newest, path.stat().st_mtime)
    return newest


class Shelf(Protocol):
    """Where one side's snapshots of one device are. Every method raises DiskError."""

    def names(self) -> list[str]:
        """Those of its files."""

    def write(self, name: str, pieces: Sequence[bytes | memoryview]) -> None:
        """Keep a file, whole or not at all."""

    def read(self, name: str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
        """The header and the arrays of one. Raises ValueError, SafetensorError for what is none."""

    def remove(self, names: Iterable[str]) -> None:
        """Drop files, those of them that are there."""


SharedShelf = Callable[[str, str], Shelf]
"""Where snapshots of a run's device are that other edges find as well."""


class OnDisk:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def names(self) -> list[str]:
        """Those of its files; none where there is no folder yet."""
        try:
            return [path.name for path in self.folder.iterdir()]
        except OSError:
            return []

    def write(self, name: str, pieces: Sequence[bytes | memoryview]) -> None:
        """Keep a file. Raises DiskError."""
        with on_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_pieces(self.folder / name, pieces)

    def read(self, name: str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
        """Its arrays stay in the file until they are used. Raises OSError, SafetensorError."""
        with safetensors.safe_open(self.folder / name, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return dict(file.metadata() or {}), arrays

    def remove(self, names: Iterable[str]) -> None:
        """Drop files. Raises DiskError."""
        with on_disk(self.folder):
            for name in names:
                (self.folder / name).unlink(missing_ok=True)


class Snapshots:
    """One side's snapshots of one device in one run: two of rounds' ends, two within rounds.

    What is kept in several places is read from the first that has it.
    """

    def __init__(
        self,
        folder: Path,
        run_key: str,
        count: SnapshotCount | None = None,
        shared: Shelf | None = None,
    ) -> None:
        """What is written is told to `count`; it is `shared` with other nodes there."""
        self.count = count or SnapshotCount()
        self._folder = folder
        self._shelves: tuple[Shelf, ...] = (OnDisk(folder), *(() if shared is None else (shared,)))
        self._run_key = run_key

    @classmethod
    def under(
        cls,
        cache: Path | None,
        run_key: str,
        *names: str,
        count: SnapshotCount,
        shared: Shelf | None = None,
    ) -> Self | None:
        """Those in a node's cache; None where it has none."""
        try:
            if cache is None:
                return None
            return cls(recovery_folder(cache, run_key, *names), run_key, count, shared)
        except ConfigError as error:
            log.warning("nothing is kept for a restart: %s", error)
            return None

    def points(self) -> tuple[Point, ...]:
        """Of what there are sound snapshots, oldest first."""
        there = {point for shelf in self._shelves for point in _points(shelf)}
        return tuple(point for point in sorted(there) if self.read(point) is not None)

    def write(self, snapshot: Snapshot, last: bool = True) -> None:
        """Keep a snapshot; `last` says that it is of a round's end. A full disk costs a warning."""
        began = time.perf_counter()
        point = snapshot.point
        facts = {"format": FORMAT, "run": self._run_key, "point": astuple(point)}
        said = json.dumps({**facts, "facts": dict(snapshot.facts)}, sort_keys=True)
        arrays = {name: np.asarray(array, order="C") for name, array in snapshot.arrays.items()}
        header = {"recovery": said, "digest": _digest(said, arrays)}
        pieces: list[bytes | memoryview] = [_start(arrays, header)]
        pieces += [_bytes(arrays[name]) for name in _in_order(arrays)]
        for shelf in self._shelves:
            try:
                shelf.write(_name(point, last), pieces)
                _keep_newest(shelf, last)
            except DiskError as error:
                what = "no snapshot of step %d of round %d: %s"
                log.warning(what, point.step, point.round, error)
            else:
                size = sum(len(piece) for piece in pieces)
                self.count.wrote(time.perf_counter() - began, size)
                began = time.perf_counter()

    def read(self, point: Point) -> Snapshot | None:
        """The snapshot of a point; None where there is none, or one that is torn or foreign."""
        for shelf in self._shelves:
            name = _points(shelf).get(point)
            if name is None:
                continue
            try:
                return self._sound(point, *shelf.read(name))
            except (OSError, ValueError, DiskError, safetensors.SafetensorError) as error:
                log.warning("snapshot %s in %s is not used: %s", name, shelf, error)
        return None

    def go_back_to(self, after: Point) -> None:
        """Remove those that are of a later point, or of the same one in another lineage."""
        for shelf in self._shelves:
            with contextlib.suppress(DiskError):  # what is left is of another lineage
                shelf.remove(
                    name
                    for point, name in _points(shelf).items()
                    if point != after and (point.round, point.step) >= (after.round, after.step)
                )

    def clear(self) -> None:
        """Remove all of them."""
        for shelf in self._shelves:
            with contextlib.suppress(DiskError):
                shelf.remove(_points(shelf).values())
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _sound(
        self, point: Point, header: Mapping[str, str], arrays: dict[str, np.ndarray]
    ) -> Snapshot:
        """Raises ValueError where it is not what was written, or another run's."""
        said = header.get("recovery", "")
        if header.get("digest") != _digest(said, arrays):
            raise ValueError("its digest does not fit")
        told = json.loads(said)
        if (told["format"], told["run"]) != (FORMAT, self._run_key):
            raise ValueError(f"it is of run {told['run']!r:.40}, format {told['format']!r:.8}")
        if told["point"] != [*astuple(point)]:
            raise ValueError("it is of another point than its name says")
        return Snapshot(point, arrays, told["facts"])


def _name(point: Point, last: bool) -> str:
    kind = "round" if last else "step"
    return f"{kind}-{point.round:06d}-{point.step:08d}-{point.lineage:06d}.safetensors"


def _points(shelf: Shelf, kind: str = "") -> dict[Point, str]:
    """What the names of its files say, of one kind or of both."""
    try:
        found = [(_FILE.fullmatch(name), name) for name in shelf.names()]
    except DiskError as error:
        log.warning("snapshots in %s are not known: %s", shelf, error)
        return {}
    return {
        Point(int(said[2]), int(said[3]), int(said[4])): name
        for said, name in found
        if said is not None and kind in ("", said[1])
    }


def _keep_newest(shelf: Shelf, last: bool) -> None:
    """Of one step in two pasts both stay, so that neither costs the step before. Raises
    DiskError."""
    names = _points(shelf, "round" if last else "step")
    steps = sorted({(point.round, point.step) for point in names})[-GENERATIONS:]
    shelf.remove(name for point, name in names.items() if (point.round, point.step) not in steps)


def _digest(said: str, arrays: Arrays) -> str:
    """Over facts, and names, types, shapes and bytes of all arrays."""
    total = hashlib.blake2b(said.encode(), digest_size=32)
    for name in sorted(arrays):
        array = arrays[name]
        total.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        total.update(_bytes(array))
    return total.hexdigest()


def _start(arrays: Arrays, header: Mapping[str, str]) -> bytes:
    """What a safetensors file has before its arrays.

    Written here, since the library copies all arrays twice, or names a file before it is on disk.
    """
    told: dict[str, Any] = {"__metadata__": header}
    at = 0
    for name in _in_order(arrays):
        array = arrays[name]
        ends = [at, at := at + array.nbytes]
        told[name] = {"dtype": _type(array.dtype), "shape": array.shape, "data_offsets": ends}
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 8)  # arrays begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def _in_order(arrays: Arrays) -> list[str]:
    """Large values first, so that each begins at a multiple of its size."""
    return sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))


def _type(of: np.dtype) -> str:
    return "BOOL" if of.kind == "b" else f"{_KINDS[of.kind]}{8 * of.itemsize}"


def _bytes(array: np.ndarray) -> memoryview:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data
