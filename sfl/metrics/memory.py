"""How much memory this process holds, without importing anything to find out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from sfl.node import machine

_STATUS = Path("/proc/self/status")
LIBRARY_BYTES = 62_000_000
"""Pages of torch's and other libraries that a training device has used (x86-64, torch 2.13 CPU)."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of one process, in bytes.

    `accelerator` is what torch's allocator holds on CUDA devices, 0 without one. `limit` is where
    the kernel begins to kill: the cgroup's, else the machine's memory; `limit_used` what counts
    against it, of this process and of all others under the same limit.
    """

    resident: int
    peak_resident: int
    accelerator: int
    limit: int
    limit_used: int


UNKNOWN = MemoryUse(0, 0, 0, 0, 0)


def memory_use() -> MemoryUse:
    """Memory of this process now, and its highest resident size since it started.

    Raises OSError and others where the system does not tell.
    """
    resident, peak = _from_proc(_STATUS) or _portable()
    found = machine.memory()
    if found.limit is None:
        limit, used = found.total, found.total - found.available
    else:
        limit, used = found.limit, found.limit_used
    return MemoryUse(resident, max(resident, peak), accelerator_bytes(), limit, used)


def working_bytes() -> int:
    """Resident size of this process as it is once it works: with its libraries' pages.

    A forked process has few of them at first, one that has imported all itself has them already.
    """
    fields = _fields(_STATUS)
    if "RssFile" not in fields:
        return memory_use().resident
    mapped = _kibibytes(fields["RssFile"])
    return _kibibytes(fields["VmRSS"]) + max(0, LIBRARY_BYTES - mapped)


def accelerator_bytes() -> int:
    """Bytes that torch's allocator holds on all CUDA devices; 0 where torch is not loaded."""
    torch = sys.modules.get("torch")  # never import it: that alone costs 220 MB
    cuda = getattr(torch, "cuda", None)  # None too while another thread is still importing it
    if cuda is None or not cuda.is_initialized():
        return 0
    return sum(int(cuda.memory_reserved(index)) for index in range(cuda.device_count()))


def _from_proc(status: Path) -> tuple[int, int] | None:
    """(VmRSS, VmHWM) in bytes, or None off Linux.

    `getrusage` is no substitute on Linux: its maximum is inherited over exec, so a small process
    started by a large one reports the large one's peak.
    """
    fields = _fields(status)
    if "VmRSS" not in fields or "VmHWM" not in fields:
        return None
    return _kibibytes(fields["VmRSS"]), _kibibytes(fields["VmHWM"])


def _fields(status: Path) -> dict[str, str]:
    """The lines of a `status` file by name; none off Linux."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return {}
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _kibibytes(text: str) -> int:
    return int(text.split()[0]) * 1024


def _portable() -> tuple[int, int]:
    import psutil  # only off Linux

    memory = psutil.Process().memory_info()
    peak = getattr(memory, "peak_wset", 0) or _rusage_peak()
    return int(memory.rss), int(peak)


def _rusage_peak() -> int:
    try:
        import resource  # POSIX only
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
