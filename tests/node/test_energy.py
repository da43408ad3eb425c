"""Joules of made-up machines: a Jetson's rail, RAPL's zones, a GPU's counter."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sfl.node.energy import EnergyMeter, nvidia_gpus
from tests.house.fake_board import FakeBoard

ZONES = "sys/class/powercap"


def zone(board: FakeBoard, name: str, kind: str, joules: float, most: float = 262_143.0) -> None:
    board.put(f"{ZONES}/{name}/name", kind)
    board.put(f"{ZONES}/{name}/energy_uj", str(round(joules * 1e6)))
    board.put(f"{ZONES}/{name}/max_energy_range_uj", str(round(most * 1e6)))


def test_a_jetsons_watts_are_summed_over_time(tmp_path: Path) -> None:
    board, now = FakeBoard(tmp_path), [100.0]
    meter = EnergyMeter(tmp_path, clock=lambda: now[0])
    board.jetson_power(5.0, 1.0)
    assert meter.read() == 0.0
    now[0] = 104.0
    board.jetson_power(5.0, 2.0)
    assert meter.read() == pytest.approx(4 * (5 + 10) / 2)
    now[0] = 106.0
    assert meter.read() == pytest.approx(30 + 20)


def test_packages_and_their_memory_are_counted_once(tmp_path: Path) -> None:
    board = FakeBoard(tmp_path)
    for add in (0.0, 10.0):
        zone(board, "intel-rapl:0", "package-0", 1000 + add)
        zone(board, "intel-rapl:0:0", "core", 700 + add)  # within the package
        zone(board, "intel-rapl:0:1", "dram", 50 + add / 2)
        zone(board, "intel-rapl:1", "package-1", 2000 + 2 * add)
        if not add:
            meter = EnergyMeter(tmp_path)
            assert meter.read() == 0.0
    assert meter.read() == pytest.approx(10 + 5 + 20)


def test_the_platforms_zone_has_all(tmp_path: Path) -> None:
    board = FakeBoard(tmp_path)
    zone(board, "intel-rapl:0", "package-0", 1000)
    zone(board, "intel-rapl:1", "psys", 5000)
    meter = EnergyMeter(tmp_path)
    meter.read()
    zone(board, "intel-rapl:0", "package-0", 1007)
    zone(board, "intel-rapl:1", "psys", 5011)
    assert meter.read() == pytest.approx(11)


def test_a_counter_begins_again(tmp_path: Path) -> None:
    board = FakeBoard(tmp_path)
    zone(board, "intel-rapl:0", "package-0", 95, most=100)
    meter = EnergyMeter(tmp_path)
    meter.read()
    zone(board, "intel-rapl:0", "package-0", 3, most=100)
    assert meter.read() == pytest.approx(8)


def test_a_zone_that_only_root_reads_is_none(tmp_path: Path) -> None:
    FakeBoard(tmp_path).put(f"{ZONES}/intel-rapl:0/name", "package-0")
    assert EnergyMeter(tmp_path).read() is None


def test_gpus_count_beside_processors(tmp_path: Path) -> None:
    zone(FakeBoard(tmp_path), "intel-rapl:0", "package-0", 10)
    counts = iter((500.0, 620.0))
    meter = EnergyMeter(tmp_path, lambda: {"gpu0": next(counts)})
    assert meter.read() == 0.0
    zone(FakeBoard(tmp_path), "intel-rapl:0", "package-0", 15)
    assert meter.read() == pytest.approx(120 + 5)


def test_nvidias_library_is_asked_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Exception):
        pass

    library = SimpleNamespace(
        NVMLError=Broken,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 1500 * (handle + 1),
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert nvidia_gpus()() == {"gpu0": 1.5, "gpu1": 3.0}

    def fails(handle: int) -> int:
        raise Broken

    library.nvmlDeviceGetTotalEnergyConsumption = fails
    assert nvidia_gpus()() == {}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvidia_gpus()() == {}
