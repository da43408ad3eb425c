"""Grafana's dashboards, written from the table of metrics, so that no panel names one that is not.

`python -m tools.dashboards docker/grafana/dashboards`; no node imports this.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sfl.metrics.metric import Metric
from sfl.metrics.table import METRICS
from tools.panels import (
    ALL,
    DEVICE,
    DEVICES,
    EDGE,
    OF_EDGE,
    ON_DEVICE,
    RATE,
    RUN,
    Dashboard,
    Kind,
    Panel,
    Query,
    Variable,
    number,
    panel,
)
from tools.serving_dashboard import ANSWERS

SCHEMA_VERSION = 39  # of Grafana 11; newer ones convert it
RECORDS = (
    "sfl:heartbeat_age_seconds",
    "sfl:tokens:rate1m",
    "sfl:payload_bytes:increase10m",
    "sfl:link_busy:ratio5m",
    "sfl:memory_limit_used:ratio",
    "sfl:compression:ratio",
    "sfl:first_token_seconds:p95",
)
"""What docker/prometheus/rules/records.yml records; a test holds the two together."""

Json = dict[str, Any]

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_NAME = re.compile(r"\bsfl[_:][a-zA-Z0-9_:]+")
_WIDTH = 24  # columns of Grafana's grid
_BUSY = "sfl_step_phase_seconds_sum"

FLEET = Dashboard(
    "sfl-fleet",
    "sfl: fleet",
    (RUN, DEVICES),
    (
        number("Round", f'max(sfl_round{{{ALL}, job="sfl-cloud"}})'),
        number("Devices connected", f'sum(sfl_connected_nodes{{{ALL}, job="sfl-edge"}})'),
        number("Tokens a second", f"sum(sfl:tokens:rate1m{{{ALL}}})"),
        number("Training loss, mean", f"avg(sfl_loss{{{ALL}}})"),
        number("Accuracy, mean", f"avg(sfl_eval_accuracy_ratio{{{ALL}}})", "percentunit"),
        number("Faults", f"sum(sfl_faults_total{{{ALL}}})"),
        panel("Training loss", f"sfl_loss{{{ON_DEVICE}}}", "{{device}}"),
        panel("Held-out loss", f"sfl_eval_loss{{{ON_DEVICE}}}", "{{device}}"),
        panel(
            "Held-out accuracy", f"sfl_eval_accuracy_ratio{{{ON_DEVICE}}}", "{{device}}",
            "percentunit",
        ),
        panel("Tokens a second", f"sfl:tokens:rate1m{{{ON_DEVICE}}}", "{{device}}"),
        panel("Step in the round", f"sfl_step{{{ON_DEVICE}}}", "{{device}}"),
        panel(
            "Seconds since heard", f"sfl:heartbeat_age_seconds{{{ON_DEVICE}}}", "{{device}}", "s",
            note="Age of each device's last heartbeat; SflDeviceSilent fires at 15 s.",
        ),
        panel(
            "Who waits for whom",
            f"time() - sfl_wait_start_timestamp_seconds{{{ALL}}}",
            "{{device}} {{instance}}: {{whom}}, {{what}}", "s",
            note="Seconds so far; SflWaitEnds fires before a lost node is given up.",
        ),
        Panel(
            "Late updates",
            (
                Query(f"sfl_buffered_updates{{{ALL}}}", "waiting for an average"),
                Query(f"sfl_update_staleness{{{ALL}}}", "staleness, mean of the last average"),
            ),
            note="Of asynchronous runs, and of those that count late updates.",
        ),
        panel(
            "Memory limit in use", f"sfl:memory_limit_used:ratio{{{ALL}}}",
            "{{device}} {{instance}}", "percentunit",
            note="Of each node's cgroup or machine; SflMemoryNearLimit fires at 90%.",
        ),
        panel(
            "Losses not finite",
            f"sum by (device) (sfl_nonfinite_losses_total{{{ON_DEVICE}}})", "{{device}}",
        ),
        panel(
            "Firing alerts", 'ALERTS{alertname=~"Sfl.+", alertstate="firing"}',
            kind="table", note="Empty when all is well.",
        ),
        panel(
            "Nodes", f"sfl_build_info{{{ALL}}}", kind="table",
        ),
        panel(
            "Up for", f"time() - sfl_start_time_seconds{{{ALL}}}", "{{device}} {{instance}}", "s",
        ),
        panel(
            "Certificates end in",
            f"sfl_certificate_expiry_timestamp_seconds{{{ALL}}} - time()",
            "{{device}} {{instance}}", "s",
            note="SflCertificateExpiring fires two weeks before.",
        ),
        panel("Targets", 'up{job=~"sfl-.+"}', "{{job}} {{instance}}"),
    ),
)  # fmt: skip

EDGES = Dashboard(
    "sfl-edge",
    "sfl: edge",
    (RUN, EDGE),
    (
        panel(
            "Micro-batches waiting", f"sfl_queue_depth{{{OF_EDGE}}}",
            "waiting at {{instance}}",
        ),
        panel("Devices connected", f"sfl_connected_nodes{{{OF_EDGE}}}", "{{instance}}"),
        panel(
            "Where its time goes",
            f"sum by (phase) (rate({_BUSY}{{{OF_EDGE}}}{RATE}))", "{{phase}}",
            "percentunit", stacked=True,
            note="Seconds a second in each phase: the compute thread is full where it does not "
            "wait. Codecs and links work beside it, so the sum may pass 1.",
        ),
        panel(
            "95% of the work in each phase takes less than",
            f"histogram_quantile(0.95, sum by (phase, le) "
            f"(rate(sfl_step_phase_seconds_bucket{{{OF_EDGE}}}{RATE})))",
            "{{phase}}", "s",
        ),
        panel(
            "Bytes a second, to and from the cloud",
            f"sum by (direction) (rate(sfl_wire_bytes_total{{{OF_EDGE}}}{RATE}))", "{{direction}}",
            "Bps",
        ),
        panel(
            "Bytes a second, to and from its devices",
            'sum by (direction) (rate(sfl_wire_bytes_total{run=~"$run", job="sfl-edge", '
            f'instance=~"$edge", device!=""}}{RATE}))', "{{direction}}", "Bps",
            note="Counted by the devices, as of their last heartbeats.",
        ),
        panel(
            "Bytes a second, to and from the stage behind it",
            f"sum by (direction, role) (rate(sfl_stage_wire_bytes_total{{{OF_EDGE}}}{RATE}))",
            "{{direction}} {{role}}", "Bps", stacked=True,
            note="Only in three tiers.",
        ),
        Panel(
            "Memory",
            (
                Query(f"sfl_resident_memory_bytes{{{OF_EDGE}}}", "resident {{instance}}"),
                Query(f"sfl_peak_resident_memory_bytes{{{OF_EDGE}}}", "peak {{instance}}"),
                Query(f"sfl_accelerator_memory_bytes{{{OF_EDGE}}}", "accelerator {{instance}}"),
                Query(
                    f"sfl_memory_limit_used_bytes{{{OF_EDGE}}}", "against the limit {{instance}}",
                ),
                Query(f"sfl_memory_limit_bytes{{{OF_EDGE}}}", "limit {{instance}}"),
            ),
            "decbytes",
        ),
        panel("Faults", f"sfl_faults_total{{{OF_EDGE}}}", "{{instance}}"),
        panel(
            "Seconds since its devices were heard",
            'time() - sfl_last_heartbeat_timestamp_seconds{run=~"$run", instance=~"$edge"}',
            "{{device}}", "s",
        ),
        panel("Round", f"sfl_round{{{OF_EDGE}}}", "{{instance}}"),
        Panel(
            "Adapters in files",
            (
                Query(f"sfl_resting_adapters{{{OF_EDGE}}}", "swapped out {{instance}}"),
                Query(f"rate(sfl_woken_adapters_total{{{OF_EDGE}}}{RATE})", "read a second"),
            ),
            note="With edge.resident_adapters; more of them in memory read less.",
        ),
    ),
)  # fmt: skip

ONE_DEVICE = Dashboard(
    "sfl-device",
    "sfl: one device",
    (RUN, DEVICE),
    (
        number("Round", f"max(sfl_round{{{ON_DEVICE}}})"),
        number("Step in the round", f"max(sfl_step{{{ON_DEVICE}}})"),
        number("Steps in all", f"max(sfl_steps_total{{{ON_DEVICE}}})"),
        number("Training loss", f"max(sfl_loss{{{ON_DEVICE}}})"),
        number("Accuracy", f"max(sfl_eval_accuracy_ratio{{{ON_DEVICE}}})", "percentunit"),
        number("Since heard", f"max(sfl:heartbeat_age_seconds{{{ON_DEVICE}}})", "s"),
        Panel(
            "Loss",
            (
                Query(f"sfl_loss{{{ON_DEVICE}}}", "training"),
                Query(f"sfl_eval_loss{{{ON_DEVICE}}}", "held out"),
            ),
        ),
        panel("Tokens a second", f"rate(sfl_tokens_total{{{ON_DEVICE}}}{RATE})", "{{device}}"),
        panel(
            "Where its time goes",
            f'sum by (phase) (rate({_BUSY}{{{ON_DEVICE}, phase!="step"}}{RATE}))',
            "{{phase}}", "percentunit",
            note="Seconds a second in each phase. Threads overlap: the sum may pass 1.",
        ),
        panel(
            "Time of one piece of work, by phase",
            f"sum by (phase) (rate({_BUSY}{{{ON_DEVICE}}}{RATE})) / "
            f"sum by (phase) (rate(sfl_step_phase_seconds_count{{{ON_DEVICE}}}{RATE}))",
            "{{phase}}", "s",
        ),
        Panel(
            "Waits for the edge: half, and 95%, are shorter than",
            tuple(
                Query(
                    f"histogram_quantile({share}, sum by (le) (rate("
                    f'sfl_step_phase_seconds_bucket{{{ON_DEVICE}, phase="wait"}}{RATE})))', name,
                )
                for share, name in (("0.5", "half"), ("0.95", "95%"))
            ),
            "s",
        ),
        panel(
            "Link busy", f"sfl:link_busy:ratio5m{{{ON_DEVICE}}}", "{{phase}}", "percentunit",
            note="Share of the time in which tensors move; SflLinkSaturated fires at 90%.",
        ),
        panel(
            "Bytes a second",
            f"sum by (direction, role) (rate(sfl_wire_bytes_total{{{ON_DEVICE}}}{RATE}))",
            "{{direction}} {{role}}", "Bps", stacked=True,
        ),
        Panel(
            "Micro-batches in flight",
            (
                Query(f"sfl_queue_depth{{{ON_DEVICE}}}", "{{device}}"),
                Query(f"sfl_window{{{ON_DEVICE}}}", "{{device}} window"),
            ),
        ),
        Panel(
            "Memory",
            (
                Query(f"sfl_resident_memory_bytes{{{ON_DEVICE}}}", "resident"),
                Query(f"sfl_peak_resident_memory_bytes{{{ON_DEVICE}}}", "peak"),
                Query(f"sfl_accelerator_memory_bytes{{{ON_DEVICE}}}", "accelerator"),
                Query(f"sfl_memory_limit_used_bytes{{{ON_DEVICE}}}", "against the limit"),
                Query(f"sfl_memory_limit_bytes{{{ON_DEVICE}}}", "limit"),
            ),
            "decbytes",
        ),
        panel("Faults", f"sfl_faults_total{{{ON_DEVICE}}}", "{{device}}"),
        panel(
            "Handovers to another edge", f"sfl_handovers_total{{{ON_DEVICE}}}", "{{device}}",
            note="Times that it came to another edge than it was at (docs/edges.md).",
        ),
        panel(
            "Temperature", f"sfl_temperature_celsius{{{ON_DEVICE}}}", "{{device}}", "celsius",
            note="Its `pause.above_celsius` pauses it.",
        ),
        panel(
            "Paused", f"sfl_paused{{{ON_DEVICE}}}", "{{reason}}",
            note="Its `pause` settings.",
        ),
        Panel(
            "Held down",
            (
                Query(f"sfl_throttled{{{ON_DEVICE}}}", "throttled"),
                Query(f"sfl_undervoltage{{{ON_DEVICE}}}", "too little voltage"),
                Query(f"sfl_on_battery{{{ON_DEVICE}}}", "on battery"),
            ),
        ),
        panel(
            "Battery", f"sfl_battery_charge_ratio{{{ON_DEVICE}}}", "{{device}}", "percentunit",
        ),
        panel("Power taken in", f"sfl_power_watts{{{ON_DEVICE}}}", "{{device}}", "watt"),
    ),
)  # fmt: skip

COST = Dashboard(
    "sfl-cost",
    "sfl: cost in bytes and seconds",
    (RUN, DEVICES),
    (
        number("Bytes in all", f"sum(sfl_wire_bytes_total{{{ON_DEVICE}}})", "decbytes"),
        number(
            "Bytes a token",
            f'sum(sfl_wire_bytes_total{{{ON_DEVICE}, role=~"activation|gradient"}}) '
            f"/ sum(sfl_tokens_total{{{ON_DEVICE}}})", "decbytes",
        ),
        number("Smaller than float32", f"avg(sfl:compression:ratio{{{ON_DEVICE}}})"),
        number(
            "Tensor bytes, 10 min", f"sum(sfl:payload_bytes:increase10m{{{ALL}}})", "decbytes",
        ),
        number(
            "Device seconds computing",
            f'sum({_BUSY}{{{ON_DEVICE}, phase=~"forward|backward"}})', "s",
        ),
        number(
            "Device seconds waiting",
            f'sum({_BUSY}{{{ON_DEVICE}, phase="wait"}})', "s",
        ),
        panel(
            "Bytes by device", f"sum by (device) (sfl_wire_bytes_total{{{ON_DEVICE}}})",
            "{{device}}", "decbytes", kind="bargauge",
        ),
        panel(
            "Bytes by what they are for",
            f"sum by (role, direction) (sfl_wire_bytes_total{{{ON_DEVICE}}})",
            "{{role}} {{direction}}", "decbytes", kind="bargauge",
        ),
        panel(
            "Bytes a second by device",
            f"sum by (device) (rate(sfl_wire_bytes_total{{{ON_DEVICE}}}{RATE}))", "{{device}}",
            "Bps", stacked=True,
        ),
        panel(
            "What they would be in float32, a second",
            f"sum by (device) (rate(sfl_wire_raw_bytes_total{{{ON_DEVICE}}}{RATE}))", "{{device}}",
            "Bps", stacked=True,
        ),
        panel(
            "How many times smaller than float32", f"sfl:compression:ratio{{{ON_DEVICE}}}",
            "{{device}}",
        ),
        panel(
            "Bytes a step",
            f"sum by (device) (rate(sfl_wire_bytes_total{{{ON_DEVICE}}}{RATE})) "
            f"/ sum by (device) (rate(sfl_steps_total{{{ON_DEVICE}}}{RATE}))",
            "{{device}}", "decbytes",
        ),
        panel(
            "Device seconds by phase",
            f'sum by (phase) ({_BUSY}{{{ON_DEVICE}, phase!="step"}})',
            "{{phase}}", "s", kind="bargauge",
        ),
        panel(
            "Edge seconds by phase",
            f'sum by (phase) ({_BUSY}{{{ALL}, job="sfl-edge", device=""}})',
            "{{phase}}", "s", kind="bargauge",
        ),
        panel(
            "Seconds of waiting a step",
            f'sum by (device) (rate({_BUSY}{{{ON_DEVICE}, phase="wait"}}{RATE})) '
            f"/ sum by (device) (rate(sfl_steps_total{{{ON_DEVICE}}}{RATE}))",
            "{{device}}", "s",
        ),
        Panel(
            "Seconds of snapshots",
            (
                Query(
                    f"sum(rate(sfl_snapshot_seconds_total{{{ALL}}}{RATE}))", "writing, a second"
                ),
                Query(
                    f"sum(rate(sfl_snapshot_wait_seconds_total{{{ALL}}}{RATE}))",
                    "waiting for the disk, a second",
                ),
            ),
            "s",
        ),
        Panel(
            "Snapshots written",
            (Query(f"sum(sfl_snapshots_total{{{ALL}}})", "in all"),),
        ),
        panel(
            "Size of the last snapshot", f"sfl_snapshot_size_bytes{{{ALL}}}",
            "{{device}} {{instance}}", "decbytes",
        ),
        panel(
            "Highest memory of a process", f"sfl_peak_resident_memory_bytes{{{ALL}}}",
            "{{device}} {{instance}}", "decbytes",
        ),
    ),
)  # fmt: skip


DASHBOARDS = (FLEET, EDGES, ONE_DEVICE, COST, ANSWERS)


def render(dashboard: Dashboard) -> str:
    """One file's text. Raises ValueError where an expression names an unknown metric."""
    values = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["sfl"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [_link(other) for other in DASHBOARDS if other is not dashboard],
        "templating": {"list": [_datasource(), *map(_variable, dashboard.variables)]},
        "panels": list(_laid_out(dashboard.panels)),
    }
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def metrics_in(expr: str) -> list[Metric]:
    """The table's entries that an expression names. Raises ValueError for any other name."""
    found = []
    for name in _NAME.findall(expr):
        if name in RECORDS:
            continue
        metric = _SERIES.get(name)
        if metric is None:
            raise ValueError(f"no metric is named {name}: {expr}")
        found.append(metric)
    return found


def write(folder: Path) -> None:
    """All dashboards as files of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        path = folder / f"{dashboard.uid}.json"
        path.write_text(render(dashboard), encoding="utf-8")


def _series(metric: Metric) -> Iterator[str]:
    if metric.type == "histogram":
        yield from (f"{metric.name}_{part}" for part in ("bucket", "sum", "count"))
    else:
        yield metric.name


_SERIES = {name: metric for metric in METRICS for name in _series(metric)}


def _laid_out(panels: Sequence[Panel]) -> Iterator[Json]:
    """Panels from left to right, a new row where one does not fit."""
    x = y = row = 0
    for place, own in enumerate(panels, start=1):
        if x + own.width > _WIDTH:
            x, y, row = 0, y + row, 0
        grid = {"x": x, "y": y, "w": own.width, "h": own.height}
        yield {"id": place, "gridPos": grid, **_drawn(own)}
        x, row = x + own.width, max(row, own.height)


def _drawn(panel: Panel) -> Json:
    metrics = {metric.name: metric for query in panel.queries for metric in metrics_in(query.expr)}
    custom: Json = {"stacking": {"mode": "normal"}, "fillOpacity": 25} if panel.stacked else {}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": " ".join(filter(None, (panel.note, *(m.help for m in metrics.values())))),
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom}, "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "range": panel.kind == "timeseries",
                "instant": panel.kind != "timeseries",
                "format": "table" if panel.kind == "table" else "time_series",
            }
            for index, query in enumerate(panel.queries)
        ],
    }


_LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: dict[Kind, Json] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": _LAST, "colorMode": "none", "graphMode": "none"},
    "bargauge": {"reduceOptions": _LAST, "orientation": "horizontal", "displayMode": "basic"},
    "table": {"showHeader": True},
}


def _link(dashboard: Dashboard) -> Json:
    return {
        "title": dashboard.title,
        "type": "link",
        "url": f"/d/{dashboard.uid}",
        "keepTime": True,
        "includeVars": True,
        "targetBlank": False,
        "asDropdown": False,
        "icon": "dashboard",
        "tags": [],
        "tooltip": "",
    }


def _datasource() -> Json:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
    }


def _variable(variable: Variable) -> Json:
    metrics_in(variable.series)
    return {
        "name": variable.name,
        "type": "query",
        "datasource": _SOURCE,
        "query": f"label_values({variable.series}, {variable.label})",
        "definition": f"label_values({variable.series}, {variable.label})",
        "refresh": 2,
        "sort": 1,
        "multi": variable.many,
        "includeAll": variable.many,
        # ".*" also matches series without the label, as where targets have no `run`.
        "allValue": ".*" if variable.many else None,
        "current": {"text": "All", "value": "$__all"} if variable.many else {},
        "hide": 0,
    }


if __name__ == "__main__":
    write(Path(sys.argv[1]))
