"""What one metric is: a name, a help text, and how it is read of a node's snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from sfl.metrics.histogram import Histogram
from sfl.metrics.snapshot import KINDS, NodeKind, NodeSnapshot

MetricType = Literal["counter", "gauge", "histogram", "info"]
Value = float | Histogram
Sample = tuple[tuple[str, ...], Value]  # label values beside `device`, and the value

ALL: tuple[NodeKind, ...] = KINDS
DEVICE: tuple[NodeKind, ...] = ("device",)
BASES: tuple[NodeKind, ...] = ("edge", "stage")  # they hold one base for many devices
EDGE: tuple[NodeKind, ...] = ("edge",)
CLOUD: tuple[NodeKind, ...] = ("cloud",)
COMPUTING: tuple[NodeKind, ...] = ("device", "edge", "stage")
DIALLING: tuple[NodeKind, ...] = ("device", "edge")  # each link is counted by the end that opens it
SERVERS: tuple[NodeKind, ...] = ("edge", "stage", "cloud")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family; `labels` come beside `device`, which all have.

    `read` gives the samples of one node's snapshot: none where it has nothing to show.
    """

    name: str
    type: MetricType
    unit: str
    labels: tuple[str, ...]
    nodes: tuple[NodeKind, ...]
    help: str
    read: Callable[[NodeSnapshot], Iterable[Sample]]
