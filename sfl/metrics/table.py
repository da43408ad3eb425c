"""The one table of metrics: what /metrics shows and what docs/metrics.md lists.

A new metric is one entry here. This module knows values and names, no exposition library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import sfl
from sfl.metrics.histogram import BUCKETS, Histogram
from sfl.metrics.metric import (
    ALL,
    BASES,
    CLOUD,
    COMPUTING,
    DEVICE,
    DIALLING,
    SERVERS,
    Metric,
    Sample,
)
from sfl.metrics.serving_table import SERVING_METRICS
from sfl.metrics.snapshot import ROLES, ByteTotals, NodeSnapshot, Role
from sfl.node.pausing import REASONS


def _value(name: str) -> Callable[[NodeSnapshot], Iterable[Sample]]:
    """Reader of one plain field; None shows nothing."""

    def read(snapshot: NodeSnapshot) -> list[Sample]:
        value = getattr(snapshot, name)
        return [] if value is None else [((), float(value))]

    return read


def _bytes(
    of: Callable[[ByteTotals], tuple[Mapping[Role, int], Mapping[Role, int]]],
) -> Callable[[NodeSnapshot], Iterable[Sample]]:
    def read(snapshot: NodeSnapshot) -> list[Sample]:
        up, down = of(snapshot.bytes)
        return [
            ((direction, role), float(counts.get(role, 0)))
            for direction, counts in (("up", up), ("down", down))
            for role in ROLES
        ]

    return read


def _stage_bytes(snapshot: NodeSnapshot) -> list[Sample]:
    own = snapshot.stage_bytes
    return [
        ((direction, role), float(counts.get(role, 0)))
        for direction, counts in (("up", own.up), ("down", own.down))
        for role in ROLES
        if own.any
    ]


def _phases(snapshot: NodeSnapshot) -> list[Sample]:
    return [
        ((phase,), Histogram(BUCKETS, totals.buckets, totals.seconds))
        for phase, totals in snapshot.phases.items()
    ]


def _wait_starts(snapshot: NodeSnapshot) -> list[Sample]:
    return [((own.whom, own.what), own.since) for own in snapshot.waits]


def _wait_ends(snapshot: NodeSnapshot) -> list[Sample]:
    waits = snapshot.waits
    return [((own.whom, own.what), own.until) for own in waits if own.until is not None]


def _paused(snapshot: NodeSnapshot) -> list[Sample]:
    return [((reason,), float(snapshot.paused == reason)) for reason in REASONS]


def _build(snapshot: NodeSnapshot) -> list[Sample]:
    # A device's version is not in its heartbeat; it runs the same wire version, or is refused.
    return [((sfl.__version__, snapshot.kind), 1.0)] if snapshot.seen_at is None else []


METRICS: tuple[Metric, ...] = (
    Metric(
        "sfl_build_info", "info", "", ("version", "kind"), ALL,
        "Version of sfl that this process runs, and its kind of node. Always 1.",
        _build,
    ),
    Metric(
        "sfl_start_time_seconds", "gauge", "seconds", (), ALL,
        "Unix time at which the process started. Its counters begin there.",
        _value("started_at"),
    ),
    Metric(
        "sfl_last_heartbeat_timestamp_seconds", "gauge", "seconds", (), DEVICE,
        "Unix time at which the edge last received this device's statistics. Only at the edge.",
        _value("seen_at"),
    ),
    Metric(
        "sfl_round", "gauge", "", (), ALL,
        "Round that the node works on, or finished last. 0 before the first.",
        _value("round"),
    ),
    Metric(
        "sfl_step", "gauge", "", (), DEVICE,
        "Last optimizer step finished in the round.",
        _value("step"),
    ),
    Metric(
        "sfl_steps_total", "counter", "", (), DEVICE,
        "Optimizer steps finished, over all rounds.",
        _value("steps_total"),
    ),
    Metric(
        "sfl_nonfinite_losses_total", "counter", "", (), DEVICE,
        "Steps and evaluations whose values were infinite or not a number.",
        _value("nonfinite_losses"),
    ),
    Metric(
        "sfl_tokens_total", "counter", "", (), DEVICE,
        "Real (unpadded) tokens trained on.",
        _value("tokens"),
    ),
    Metric(
        "sfl_loss", "gauge", "", (), DEVICE,
        "Training loss of the last optimizer step: the mean over scored tokens or examples.",
        _value("loss"),
    ),
    Metric(
        "sfl_eval_loss", "gauge", "", (), DEVICE,
        "Loss on the device's held-out split at the last evaluation.",
        _value("eval_loss"),
    ),
    Metric(
        "sfl_eval_accuracy_ratio", "gauge", "ratio", (), DEVICE,
        "Exact match (prompt/completion) or accuracy (labels) at the last evaluation, 0 to 1.",
        _value("eval_accuracy"),
    ),
    Metric(
        "sfl_step_phase_seconds", "histogram", "seconds", ("phase",), COMPUTING,
        "Time of one piece of work, by phase. Of a batch over devices: the device's share.",
        _phases,
    ),
    Metric(
        "sfl_wire_bytes_total", "counter", "bytes", ("direction", "role"), DIALLING,
        "Serialised message bytes on the node's link, towards the cloud (up) and back (down).",
        _bytes(lambda totals: (totals.up, totals.down)),
    ),
    Metric(
        "sfl_wire_raw_bytes_total", "counter", "bytes", ("direction", "role"), DIALLING,
        "Size of the tensors in those messages without compression: 4 bytes a value, real tokens "
        "only.",
        _bytes(lambda totals: (totals.up_raw, totals.down_raw)),
    ),
    Metric(
        "sfl_stage_wire_bytes_total", "counter", "bytes", ("direction", "role"), BASES,
        "Bytes of messages between this server and the stage behind it. Only in three tiers.",
        _stage_bytes,
    ),
    Metric(
        "sfl_queue_depth", "gauge", "", (), COMPUTING,
        "Micro-batches without an answer: arrived at an edge, or sent by a device.",
        _value("queue_depth"),
    ),
    Metric(
        "sfl_window", "gauge", "", (), DEVICE,
        "Micro-batches that a device keeps in flight in training. They keep its link and its edge "
        "busy, within the edge's credits.",
        _value("window"),
    ),
    Metric(
        "sfl_connected_nodes", "gauge", "", (), SERVERS,
        "Connected nodes: an edge's devices, or the cloud's edges.",
        _value("connected"),
    ),
    Metric(
        "sfl_resting_adapters", "gauge", "", (), BASES,
        "Devices whose LoRA and optimizer state are swapped to a file (`edge.resident_adapters`).",
        _value("adapters_resting"),
    ),
    Metric(
        "sfl_woken_adapters_total", "counter", "", (), BASES,
        "How often such a state was read back for a step or a round.",
        _value("adapters_woken"),
    ),
    Metric(
        "sfl_snapshots_total", "counter", "", (), COMPUTING,
        "Snapshots written, from which another process of the node can go on.",
        _value("snapshots_written"),
    ),
    Metric(
        "sfl_snapshot_seconds_total", "counter", "seconds", (), COMPUTING,
        "Time that writing them took, mostly beside other work.",
        _value("snapshot_seconds"),
    ),
    Metric(
        "sfl_snapshot_wait_seconds_total", "counter", "seconds", (), COMPUTING,
        "Time that a device's part in a round waited for a snapshot to be on the disk.",
        _value("snapshot_wait"),
    ),
    Metric(
        "sfl_snapshot_size_bytes", "gauge", "bytes", (), COMPUTING,
        "Size of the last snapshot.",
        _value("snapshot_size"),
    ),
    Metric(
        "sfl_buffered_updates", "gauge", "", (), CLOUD,
        "Whole updates that wait for an average. Absent where no update may be late.",
        _value("buffered"),
    ),
    Metric(
        "sfl_update_staleness", "gauge", "", (), CLOUD,
        "Adapters that were made since an update began: the mean over the last average. Absent "
        "where no update may be late.",
        _value("staleness"),
    ),
    Metric(
        "sfl_faults_total", "counter", "", (), ALL,
        "Links lost, messages refused and devices left out of a round, as seen by this node.",
        _value("faults"),
    ),
    Metric(
        "sfl_handovers_total", "counter", "", (), DEVICE,
        "Times that the device came to another edge than it was at (docs/edges.md).",
        _value("handovers"),
    ),
    Metric(
        "sfl_wait_start_timestamp_seconds", "gauge", "seconds", ("whom", "what"), ALL,
        "Unix time since which the node has waited for another one. Absent while it does not.",
        _wait_starts,
    ),
    Metric(
        "sfl_wait_end_timestamp_seconds", "gauge", "seconds", ("whom", "what"), ALL,
        "Unix time until which it waits at most. Absent where it waits for as long as it hears "
        "from the other one.",
        _wait_ends,
    ),
    Metric(
        "sfl_resident_memory_bytes", "gauge", "bytes", (), ALL,
        "Resident memory of the process.",
        _value("resident_bytes"),
    ),
    Metric(
        "sfl_peak_resident_memory_bytes", "gauge", "bytes", (), ALL,
        "Highest resident memory of the process since it started.",
        _value("peak_resident_bytes"),
    ),
    Metric(
        "sfl_accelerator_memory_bytes", "gauge", "bytes", (), ALL,
        "Memory that torch holds on CUDA devices. 0 without one.",
        _value("accelerator_bytes"),
    ),
    Metric(
        "sfl_memory_limit_bytes", "gauge", "bytes", (), ALL,
        "Memory at which the kernel kills the process: its cgroup's limit, otherwise the "
        "machine's.",
        _value("memory_limit_bytes"),
    ),
    Metric(
        "sfl_memory_limit_used_bytes", "gauge", "bytes", (), ALL,
        "Memory that counts against that limit now, of this process and all others under it.",
        _value("memory_limit_used_bytes"),
    ),
    Metric(
        "sfl_certificate_expiry_timestamp_seconds", "gauge", "seconds", (), ALL,
        "Unix time at which the node's own certificate (its `tls`) expires. Absent without one.",
        _value("certificate_expiry"),
    ),
    Metric(
        "sfl_paused", "gauge", "", ("reason",), DEVICE,
        "1 while the device pauses for this reason (its `pause`), otherwise 0: heat, charge, "
        "hours, metered.",
        _paused,
    ),
    Metric(
        "sfl_temperature_celsius", "gauge", "celsius", (), DEVICE,
        "Temperature of the board's hottest thermal zone. Absent without one.",
        _value("temperature"),
    ),
    Metric(
        "sfl_throttled", "gauge", "", (), DEVICE,
        "1 while the board lowers its clocks because of heat or power, otherwise 0. Absent where "
        "it does not report that.",
        _value("throttled"),
    ),
    Metric(
        "sfl_undervoltage", "gauge", "", (), DEVICE,
        "1 while the board's supply voltage is too low, otherwise 0. Absent where it does not "
        "report that.",
        _value("undervoltage"),
    ),
    Metric(
        "sfl_battery_charge_ratio", "gauge", "ratio", (), DEVICE,
        "Charge of the device's battery, 0 to 1. Absent without one.",
        _value("charge"),
    ),
    Metric(
        "sfl_on_battery", "gauge", "", (), DEVICE,
        "1 while the device's battery is discharging, otherwise 0. Absent without one.",
        _value("on_battery"),
    ),
    Metric(
        "sfl_power_watts", "gauge", "watts", (), DEVICE,
        "Power that the board draws, where it measures that (Jetson).",
        _value("power"),
    ),
    *SERVING_METRICS,
)  # fmt: skip
