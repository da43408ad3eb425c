"""What this machine gives a process: cores, memory, disk, less what a cgroup takes away.

Only the standard library (psutil off Linux), so that it is known before torch is loaded.
"""

from __future__ import annotations

import math
import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
UNLIMITED = 1 << 60
"""A memory limit of version 1 that is none reads as nearly 2^63."""


@dataclass(frozen=True, slots=True)
class Cores:
    """`affinity`: cores the scheduler may use; `quota`: a cgroup's bound in cores, or None."""

    affinity: int
    quota: float | None

    @property
    def usable(self) -> int:
        """Threads that can run at once; a quota is rounded up, since its rest would be idle."""
        if self.quota is None:
            return self.affinity
        return max(1, min(self.affinity, math.ceil(self.quota)))


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes. `limit` is the narrowest of the cgroups', `limit_used` what counts against it."""

    total: int
    available: int
    limit: int | None
    limit_used: int

    @property
    def usable(self) -> int:
        """What a new process may take without swapping or being killed."""
        if self.limit is None:
            return self.available
        return max(0, min(self.available, self.limit - self.limit_used))


def cores() -> Cores:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        affinity = len(os.sched_getaffinity(0))
    else:
        affinity = os.cpu_count() or 1
    return Cores(affinity, cpu_quota())


def memory() -> Memory:
    """Memory of this machine, and the cgroup's share of it."""
    total, available = _system_memory(MEMINFO)
    limit, used = memory_limit()
    if limit is not None and limit >= total:
        limit, used = None, 0
    return Memory(total, available, limit, used)


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def cpu_quota(own: Path = OWN_CGROUPS, root: Path = CGROUPS) -> float | None:
    """The narrowest CPU bound of this process's cgroups (version 1 or 2), in cores."""
    quotas = []
    for folder in _folders(own, root, "cpu"):
        both = _read(folder / "cpu.max").split() or [
            _read(folder / "cpu.cfs_quota_us"),
            _read(folder / "cpu.cfs_period_us"),
        ]
        if len(both) == 2 and all(number.isdecimal() for number in both) and int(both[1]):
            quotas.append(int(both[0]) / int(both[1]))
    return min(quotas, default=None)


def memory_limit(own: Path = OWN_CGROUPS, root: Path = CGROUPS) -> tuple[int | None, int]:
    """(narrowest memory limit of this process's cgroups, bytes that count against it).

    File cache that the kernel can drop does not count. (None, 0) without a limit.
    """
    found: tuple[int | None, int] = (None, 0)
    for folder in _folders(own, root, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if not limit or limit >= UNLIMITED or (found[0] is not None and limit >= found[0]):
            continue
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        found = (limit, max(0, used - _droppable(folder / "memory.stat")))
    return found


def _folders(own: Path, root: Path, controller: str) -> Iterator[Path]:
    """This process's cgroup and all above it; in a container only the root may be visible."""
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        folder = top / path.lstrip("/")
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def _droppable(stat: Path) -> int:
    fields = dict(line.split() for line in _read(stat).splitlines() if line.count(" ") == 1)
    return int(fields.get("total_inactive_file") or fields.get("inactive_file") or 0)


def _system_memory(meminfo: Path) -> tuple[int, int]:
    fields = dict(line.split(":", 1) for line in _read(meminfo).splitlines() if ":" in line)
    if "MemTotal" in fields and "MemAvailable" in fields:
        return _kibibytes(fields["MemTotal"]), _kibibytes(fields["MemAvailable"])
    import psutil  # only off Linux

    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def _kibibytes(text: str) -> int:
    return int(text.split()[0]) * 1024


def _number(path: Path) -> int:
    text = _read(path)
    return int(text) if text.isdecimal() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def open_files() -> int:
    """Files that this process may have open at once."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def allow_open_files() -> None:
    """As many open files as the system lets this process have: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


MOST_OPEN_FILES = 1 << 16
