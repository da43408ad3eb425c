"""What nodes measure: counted in the hot path, read as snapshots, shown by sinks elsewhere."""

from sfl.metrics.memory import MemoryUse, accelerator_bytes, memory_use
from sfl.metrics.snapshot import ByteTotals, NodeSnapshot, PhaseTotals, combine
from sfl.metrics.stats import ByteCount, NodeStats, PhaseTimes

__all__ = [
    "ByteCount",
    "ByteTotals",
    "MemoryUse",
    "NodeSnapshot",
    "NodeStats",
    "PhaseTimes",
    "PhaseTotals",
    "accelerator_bytes",
    "combine",
    "memory_use",
]
