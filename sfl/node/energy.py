"""Joules that this machine has drawn, from counters that Linux and NVIDIA's driver let a user read.

A Jetson's input is the whole board's: its watts are summed over time. Elsewhere processors count by
themselves (RAPL, often for root only), and GPUs do (NVML, from Volta on). All that runs on the
machine is in them, not this process alone.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sfl.node.board import board_power, number_in, text_in

ZONES = "sys/class/powercap"
WHOLE = "psys"
"""The zone that has the whole platform."""
MEMORY = "dram"
"""A zone within a package's that is not counted there."""

Gpus = Callable[[], Mapping[str, float]]


def no_gpus() -> Mapping[str, float]:
    """None is read."""
    return {}


class EnergyMeter:
    """Adds up what was drawn since the first reading; thread-safe.

    `root` is the folder that the machine's `/sys` is in. `gpus` gives each GPU's joules.
    """

    def __init__(
        self, root: Path, gpus: Gpus = no_gpus, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root = root
        self._gpus = gpus
        self._clock = clock
        self._lock = threading.Lock()
        self._counters: dict[str, float] = {}
        self._power: tuple[float, float] | None = None
        self._joules: float | None = None

    def read(self) -> float | None:
        """Joules so far; None where nothing can be read. Watts are averaged since the last call."""
        with self._lock:
            now, watts = self._clock(), board_power(self._root)
            if watts is not None:
                self._add(self._over_time(now, watts))
            else:
                for name, (joules, most) in self._read().items():
                    self._add(self._since(name, joules, most))
            return self._joules

    def _add(self, joules: float) -> None:
        self._joules = (self._joules or 0.0) + joules

    def _over_time(self, now: float, watts: float) -> float:
        """By the trapezoid since the last reading."""
        before, self._power = self._power, (now, watts)
        return 0.0 if before is None else (now - before[0]) * (watts + before[1]) / 2.0

    def _since(self, name: str, joules: float, most: float) -> float:
        """A counter begins again at 0 after `most`; where that is not known, nothing is added."""
        before = self._counters.get(name, joules)
        self._counters[name] = joules
        return joules - before if joules >= before else max(0.0, joules - before + most)

    def _read(self) -> dict[str, tuple[float, float]]:
        """Each counter's joules, and where it begins again."""
        found = {name: (joules, 0.0) for name, joules in self._gpus().items()}
        return {**found, **_processors(self._root)}


NO_METER = EnergyMeter(Path("/nonexistent"))


def _processors(root: Path) -> dict[str, tuple[float, float]]:
    """The platform's zone where there is one, else packages and their memory."""
    zones = {zone: text_in(zone / "name") for zone in sorted((root / ZONES).glob("*rapl:*"))}
    whole = [zone for zone, name in zones.items() if name == WHOLE]
    counted = whole or [
        zone for zone, name in zones.items() if zone.name.count(":") == 1 or name == MEMORY
    ]
    read = {zone: number_in(zone / "energy_uj") for zone in counted}
    return {
        zone.name: (1e-6 * joules, 1e-6 * (number_in(zone / "max_energy_range_uj") or 0))
        for zone, joules in read.items()
        if joules is not None
    }


def nvidia_gpus() -> Gpus:
    """Reads NVIDIA's counters where its library for Python is installed; else none."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no library, no driver, no permission: no reading
        return no_gpus

    def read() -> Mapping[str, float]:
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            return {
                f"gpu{i}": 1e-3 * nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
                for i, handle in enumerate(handles)
            }
        except nvml.NVMLError:
            return {}

    return read
