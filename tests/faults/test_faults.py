"""Short forms of `make test-faults`, `make test-chaos` and `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.cells import SHORT
from tests.faults.chaos import chaos
from tests.faults.disks import FullDisk, may_mount
from tests.faults.lab import Fault, tried
from tests.faults.soak import COUNT, slopes, soaked, table

pytestmark = pytest.mark.process


@pytest.mark.parametrize("cell", SHORT, ids=lambda cell: cell.name)
def test_a_fault_changes_no_bit(tmp_path: Path, cell: Fault) -> None:
    if isinstance(cell, FullDisk) and not may_mount(tmp_path / "mount"):
        pytest.skip("a small disk of its own takes the right to mount one")
    verdict = tried(tmp_path, cell)
    assert not verdict.wrong, "\n".join([*verdict.wrong, verdict.logs])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_faults_change_no_bit(tmp_path: Path, seed: int) -> None:
    verdict, _ = chaos(tmp_path, 4, seed)
    assert not verdict.wrong, "\n".join([*verdict.wrong, verdict.logs])


def test_what_nodes_hold_stays_flat_while_devices_come_and_go(tmp_path: Path) -> None:
    wrong, found, samples, _ = soaked(tmp_path, minutes=0.5, count=COUNT // 2)
    assert not wrong, f"{wrong}\n{table(found)}"
    assert samples


def test_what_rises_is_told() -> None:
    def sample(number: int, **more: float) -> dict[str, object]:
        held = {"rss": 1e8, "rss_after_gc": 1e8, "threads": 9, "sockets": 5, "files": 12}
        return {"at": 60.0 * number, "node": "edge", "pid": 7, **held, **more}

    flat = slopes([sample(number) for number in range(60)])
    assert all(one.holds for one in flat) and len(flat) == 5
    rising = slopes([sample(number, threads=9 + number / 4) for number in range(60)])
    assert [one.what for one in rising if not one.holds] == ["threads"]
    (threads,) = [one for one in rising if one.what == "threads"]
    assert threads.an_hour == pytest.approx(15.0)
