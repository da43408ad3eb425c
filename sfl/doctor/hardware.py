"""Cores, memory, disk and accelerators, as a run would find them."""

from __future__ import annotations

from pathlib import Path

from sfl import machine
from sfl.doctor.report import Check, size

LITTLE_MEMORY = 500_000_000
"""Less than a device's process with a small model takes."""
LITTLE_DISK = 1_000_000_000


def check_cores() -> Check:
    """Usable cores, and why they are fewer than there are."""
    cores = machine.cores()
    quota = "no cgroup quota" if cores.quota is None else f"cgroup quota {cores.quota:g}"
    return Check(
        "cores",
        "ok",
        f'{cores.usable} usable ({cores.affinity} by affinity, {quota}); threads = "auto" takes '
        f"{cores.usable}",
        figures={
            "usable_cores": cores.usable,
            "affinity_cores": cores.affinity,
            "quota_cores": cores.quota,
            "torch_threads": cores.usable,
        },
    )


def check_memory(found: machine.Memory) -> Check:
    """Memory that a run may take."""
    limit = "no cgroup limit" if found.limit is None else f"cgroup limit {size(found.limit)}"
    short = found.at_hand < LITTLE_MEMORY
    return Check(
        "memory",
        "warning" if short else "ok",
        f"{size(found.at_hand)} at hand ({size(found.total)} in all, {size(found.available)} "
        f"available, {limit})",
        "Close other programs, or raise the limit: a device needs about 0.5 GB." if short else "",
        {
            "total_bytes": found.total,
            "available_bytes": found.available,
            "limit_bytes": found.limit,
            "at_hand_bytes": found.at_hand,
        },
    )


def check_disk(cache: Path) -> Check:
    """Room for what a device fetches from its edge."""
    free = machine.free_disk(cache)
    short = free < LITTLE_DISK
    return Check(
        "cache",
        "warning" if short else "ok",
        f"{size(free)} free for {cache}",
        "Free some, or set the device's cache_dir to another disk." if short else "",
        {"path": str(cache.expanduser()), "free_bytes": free},
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
