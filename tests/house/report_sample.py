"""A made-up run, in the shapes that real ones have, for the tests of metrics and reports."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from sfl.config import RunSettings
from sfl.metrics.snapshot import PHASES, NodeKind, NodeSnapshot, Phase
from sfl.metrics.stats import NodeStats
from sfl.report.records import NodeRecord, Record, RoundRecord
from sfl.report.summary import Fault, RunSummary, build_summary

HOMES = ("home-maple", "home-birch", "home-cedar")


def sample_settings(devices: tuple[str, ...] = HOMES, task: str = "causal_lm") -> RunSettings:
    """Settings of a run of these devices."""
    labels = ["no", "yes"] if task == "sequence_classification" else []
    return RunSettings.model_validate(
        {
            "run": {"id": "sample", "topology": "u_shaped", "rounds": 6},
            "model": {"path": "examples/quickstart/model", "task": task, "labels": labels},
            "codec": {"activation": "int8 | zstd", "gradient": "fp16"},
            "devices": [
                {"name": name, "cut_layer": 1 + index % 2, "tail_layers": 1}
                for index, name in enumerate(devices)
            ],
        }
    )


def sample_snapshot(
    name: str, kind: NodeKind, share: float = 1.0, started_at: float = 1000.0
) -> NodeSnapshot:
    """A node's statistics when `share` of the run is over; `name` varies them."""
    spread = 1 + 0.1 * (sum(name.encode()) % 5)
    stats = NodeStats(name, kind, started_at=started_at)
    seconds: dict[Phase, float] = dict(
        zip(PHASES, (0.2, 9, 1.2, 0.4, 5, 0.3, 0.9, 14, 2, 0.5), strict=True)
    )
    if kind != "cloud":
        for phase, duration in seconds.items():
            for _ in range(10):
                stats.phases.observe(phase, duration * spread * share / 10)
        sent = int(4e6 * spread * share)
        device = kind == "device"
        stats.bytes.add("up", "activation", sent if device else 0, 4 * sent if device else 0)
        stats.bytes.add("up", "gradient", 2 * sent if device else 0, 4 * sent if device else 0)
        stats.bytes.add("down", "gradient", 2 * sent if device else 0, 4 * sent if device else 0)
        stats.bytes.add("down", "activation", sent if device else 0, 4 * sent if device else 0)
        stats.bytes.add("up", "adapter", sent // 3, sent // 3)
        stats.bytes.add("down", "adapter", sent // 3, sent // 3)
        stats.bytes.add("down", "weights", int(2.5e6) if device else 0)
        stats.bytes.add("up", "evaluation", sent // 2 if device else 0, 2 * sent if device else 0)
        stats.bytes.add("up", "control", int(9e4 * share))
    stats.tokens = int(60_000 * spread * share)
    resident = {"device": 310e6, "edge": 540e6, "cloud": 92e6}[kind] * spread
    return dataclasses.replace(
        stats.snapshot(),
        resident_bytes=int(resident),
        peak_resident_bytes=int(resident * 1.1),
        accelerator_bytes=0,
    )


def sample_records(
    devices: tuple[str, ...] = HOMES, rounds: int = 6, text_only: bool = False
) -> list[Record]:
    """Records of a run that learns; the second device misses round 3."""
    records: list[Record] = []
    for number in range(rounds + 1):
        share = number / rounds
        for index, name in enumerate(devices):
            if number == 3 and index == 1 and len(devices) > 1:
                continue
            level = math.exp(-0.75 * number) * (1 + 0.12 * index)
            examples = 40 + 10 * index
            right = round(examples * max(0.02, 0.96 - 0.03 * index - level))
            records.append(
                RoundRecord(
                    round=number,
                    device=name,
                    train_loss=2.1 * level + 0.06 if number else None,
                    eval_loss_sum=(2.3 * level + 0.09) * examples * 20,
                    eval_targets=examples * 20,
                    eval_correct=None if text_only else right,
                    eval_examples=examples,
                    num_examples=240 + 30 * index,
                    steps=40 if number else 0,
                    tokens=9_000 + 700 * index if number else 0,
                    seconds=6.5 + index if number else 0.0,
                    snapshot=sample_snapshot(name, "device", share),
                )
            )
        records.append(NodeRecord(number, 8.2, sample_snapshot("edge", "edge", share)))
        records.append(NodeRecord(number, 8.2, sample_snapshot("cloud", "cloud", share)))
    return records


def sample_summary(devices: tuple[str, ...] = HOMES, text_only: bool = False) -> RunSummary:
    """The summary of those records."""
    records = sample_records(devices, text_only=text_only)
    return build_summary(
        sample_settings(devices),
        "20250301-101500-k3f9",
        records,
        [sample_snapshot(name, "device") for name in devices],
        train_seconds=52.4,
        wall_seconds=71.9,
        faults=[
            Fault(3, devices[min(1, len(devices) - 1)], "lost its link; left out of the round")
        ],
        adapter=str(Path("runs") / "20250301-101500-k3f9" / "adapter"),
        best_round=6,
    )
