"""Cores, memory, disk and accelerators, as a run would find them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import time
from pathlib import Path

from sfl.cli.doctor.report import Check
from sfl.config.pausing import PauseSettings
from sfl.config.size import size
from sfl.errors import ConfigError
from sfl.node import machine
from sfl.node.board import Board
from sfl.node.paths import expanded
from sfl.node.pausing import blind_rules, decide
from sfl.node.process import SPIN

LITTLE_MEMORY = 500_000_000
"""Less than a device's process with a small model takes."""
LITTLE_DISK = 1_000_000_000
SPUN = "GOMP_SPINCOUNT"
HOT = 80.0
"""Degrees Celsius; boards begin to slow down at 80 to 85."""


def check_cores() -> Check:
    """Usable cores, and why they are fewer than there are."""
    cores = machine.cores()
    quota = "no cgroup quota" if cores.quota is None else f"cgroup quota {cores.quota:g}"
    return Check(
        "cores",
        "ok",
        f'{cores.usable} usable ({cores.affinity} by affinity, {quota}); threads = "auto" takes '
        f"{cores.usable}; {waiting()}",
        figures={
            "usable_cores": cores.usable,
            "affinity_cores": cores.affinity,
            "quota_cores": cores.quota,
            "torch_threads": cores.usable,
        },
    )


def waiting() -> str:
    """How threads of a computation wait for each other: it decides how well nodes share cores."""
    policy = os.environ.get("OMP_WAIT_POLICY")
    if policy is not None:  # the user's own, which nodes leave as it is
        return f"waiting threads: OMP_WAIT_POLICY={policy}"
    return f"waiting threads spin: GOMP_SPINCOUNT={os.environ.get(SPUN, SPIN[SPUN])}"


def check_memory(found: machine.Memory) -> Check:
    """Memory that a run may take."""
    limit = "no cgroup limit" if found.limit is None else f"cgroup limit {size(found.limit)}"
    short = found.usable < LITTLE_MEMORY
    return Check(
        "memory",
        "warning" if short else "ok",
        f"{size(found.usable)} usable ({size(found.total)} in all, {size(found.available)} "
        f"available, {limit})",
        "Close other programs, or raise the limit: a device needs about 0.5 GB." if short else "",
        {
            "total_bytes": found.total,
            "available_bytes": found.available,
            "limit_bytes": found.limit,
            "at_hand_bytes": found.usable,
        },
    )


def check_disk(cache: Path) -> Check:
    """Room for what a device fetches from its edge."""
    try:
        place = expanded(cache, "cache_dir")
    except ConfigError as error:
        return Check("cache", "warning", f"{cache}: {error.problem}", error.fix)
    free = machine.free_disk(place)
    short = free < LITTLE_DISK
    return Check(
        "cache",
        "warning" if short else "ok",
        f"{size(free)} free for {cache}",
        "Free some, or set the device's cache_dir to another disk." if short else "",
        {"path": str(place), "free_bytes": free},
    )


def check_accelerator() -> Check:
    """CUDA devices that torch can use."""
    import torch

    if not torch.cuda.is_available():
        text = f"none (torch {torch.__version__}): everything runs on the CPU"
        return Check("accelerator", "ok", text, figures={"devices": []})
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    names = ", ".join(f"{device.name} ({size(device.total_memory)})" for device in found)
    devices = [{"name": d.name, "memory_bytes": d.total_memory} for d in found]
    return Check("accelerator", "ok", names, figures={"devices": devices})


def check_board(board: Board) -> Check:
    """Temperature, throttling, supply and battery, as far as the machine tells."""
    wrong = list(_complaints(board))
    return Check(
        "board",
        "warning" if wrong else "ok",
        "; ".join([*_readings(board), *(what for what, _ in wrong)]) or "no sensors",
        " ".join(dict.fromkeys(fix for _, fix in wrong)),
        asdict(board),
    )


def check_pause(rules: PauseSettings, board: Board, clock: time) -> Check:
    """Whether a device would pause now, and which of its rules nothing here answers."""
    blind, pause = blind_rules(rules, board), decide(rules, board, clock, None)
    parts = [f"would pause now: {pause.text}"] if pause is not None else []
    parts += [f"pause.{name} has no effect: nothing here can answer it" for name in blind]
    return Check(
        "pause",
        "warning" if parts else "ok",
        "; ".join(parts) or "would not pause now",
        figures={"paused": "" if pause is None else pause.reason, "blind": blind},
    )


def _readings(board: Board) -> Iterator[str]:
    if board.temperature is not None:
        yield f"{board.temperature:.0f} °C"
    if board.charge is not None:
        yield f"battery at {board.charge:.0%}{', in use' if board.on_battery else ''}"
    if board.power is not None:
        yield f"takes {board.power:.1f} W"
    if board.throttled is False and not board.throttled_before:
        yield "clocks not throttled"


def _complaints(board: Board) -> Iterator[tuple[str, str]]:
    """What is wrong, and what to do about it."""
    cool = "Cool the board, or let the device pause: pause.above_celsius."
    supply = "Use a stronger power supply and a short cable."
    if board.temperature is not None and board.temperature >= HOT:
        yield "hot", cool
    if board.undervoltage:
        yield "the power supply is too weak", supply
    elif board.undervoltage_before:
        yield "the power supply was too weak since the start", supply
    if board.throttled:
        yield "clocks are throttled", cool
    elif board.throttled_before:
        yield "clocks were throttled since the start", cool
