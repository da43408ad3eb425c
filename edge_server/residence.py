"""Which devices' adapters are in a server's memory, by its settings."""

from __future__ import annotations

from sfl.config import EdgeConfig
from sfl.metrics.stats import NodeStats
from sfl.node.files import writable_folder
from sfl.stage.swapping import Residence


def residence_of(config: EdgeConfig, stats: NodeStats) -> Residence | None:
    """What decides which adapters are in memory, where not all of them may be."""
    if config.resident_adapters is None:
        return None
    where = None
    if config.swap_to == "disk":
        where = writable_folder(config.swap_dir, "edge.swap_dir")
    return Residence(config.resident_adapters, where, stats)
