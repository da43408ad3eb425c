"""Grafana's dashboards, written from the table of metrics, so that no panel names one that is not.

`python -m tools.dashboards docker/grafana/dashboards`; no node imports this.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sfl.metrics.table import METRICS, Metric

SCHEMA_VERSION = 39  # of Grafana 11; newer ones convert it
RECORDS = (
    "sfl:heartbeat_age_seconds",
    "sfl:tokens:rate1m",
    "sfl:payload_bytes:increase10m",
    "sfl:link_busy:ratio5m",
    "sfl:memory_limit_used:ratio",
    "sfl:compression:ratio",
)
"""What docker/prometheus/rules/records.yml records; a test holds the two together."""

Kind = Literal["timeseries", "stat", "table", "bargauge"]
Json = dict[str, Any]

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_NAME = re.compile(r"\bsfl[_:][a-zA-Z0-9_:]+")
_WIDTH = 24  # columns of Grafana's grid


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and what its series are called in the legend."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture; `unit` is Grafana's name of it."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 12
    height: int = 8
    stacked: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at a dashboard's head: the values of `label` in `series`."""

    name: str
    series: str
    label: str
    many: bool = True


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One file."""

    uid: str
    title: str
    variables: tuple[Variable, ...]
    panels: tuple[Panel, ...]


def _panel(title: str, expr: str, legend: str = "", unit: str = "short", **more: Any) -> Panel:
    return Panel(title, (Query(expr, legend),), unit, **more)


def _number(title: str, expr: str, unit: str = "short") -> Panel:
    return _panel(title, expr, "", unit, kind="stat", width=4, height=4)


RUN = Variable("run", "sfl_round", "run")
DEVICES = Variable("device", "sfl_step", "device")
DEVICE = Variable("device", "sfl_step", "device", many=False)
EDGE = Variable("edge", 'up{job="sfl-edge"}', "instance")

_ALL = 'run=~"$run"'
_DEVICES = 'run=~"$run", device=~"$device", device!=""'
_EDGE = 'run=~"$run", job="sfl-edge", instance=~"$edge", device=""'
_RATE = "[$__rate_interval]"
_BUSY = "sfl_step_phase_seconds_sum"

FLEET = Dashboard(
    "sfl-fleet",
    "sfl: fleet",
    (RUN, DEVICES),
    (
        _number("Round", f'max(sfl_round{{{_ALL}, job="sfl-cloud"}})'),
        _number("Devices connected", f'sum(sfl_connected_nodes{{{_ALL}, job="sfl-edge"}})'),
        _number("Tokens a second", f"sum(sfl:tokens:rate1m{{{_ALL}}})"),
        _number("Training loss, mean", f"avg(sfl_loss{{{_ALL}}})"),
        _number("Accuracy, mean", f"avg(sfl_eval_accuracy_ratio{{{_ALL}}})", "percentunit"),
        _number("Faults", f"sum(sfl_faults_total{{{_ALL}}})"),
        _panel("Training loss", f"sfl_loss{{{_DEVICES}}}", "{{device}}"),
        _panel("Held-out loss", f"sfl_eval_loss{{{_DEVICES}}}", "{{device}}"),
        _panel(
            "Held-out accuracy", f"sfl_eval_accuracy_ratio{{{_DEVICES}}}", "{{device}}",
            "percentunit",
        ),
        _panel("Tokens a second", f"sfl:tokens:rate1m{{{_DEVICES}}}", "{{device}}"),
        _panel("Step in the round", f"sfl_step{{{_DEVICES}}}", "{{device}}"),
        _panel(
            "Seconds since heard", f"sfl:heartbeat_age_seconds{{{_DEVICES}}}", "{{device}}", "s",
            note="Age of each device's last heartbeat; SflDeviceSilent fires at 15 s.",
        ),
        _panel(
            "Who waits for whom",
            f"time() - sfl_wait_start_timestamp_seconds{{{_ALL}}}",
            "{{device}} {{instance}}: {{whom}}, {{what}}", "s",
            note="Seconds so far; SflWaitEnds fires before a lost node is given up.",
        ),
        Panel(
            "Late updates",
            (
                Query(f"sfl_buffered_updates{{{_ALL}}}", "waiting for an average"),
                Query(f"sfl_update_staleness{{{_ALL}}}", "staleness, mean of the last average"),
            ),
            note="Of asynchronous runs, and of those that count late updates.",
        ),
        _panel(
            "Memory limit in use", f"sfl:memory_limit_used:ratio{{{_ALL}}}",
            "{{device}} {{instance}}", "percentunit",
            note="Of each node's cgroup or machine; SflMemoryNearLimit fires at 90%.",
        ),
        _panel(
            "Losses not finite",
            f"sum by (device) (sfl_nonfinite_losses_total{{{_DEVICES}}})", "{{device}}",
        ),
        _panel(
            "Firing alerts", 'ALERTS{alertname=~"Sfl.+", alertstate="firing"}',
            kind="table", note="Empty when all is well.",
        ),
        _panel(
            "Nodes", f"sfl_build_info{{{_ALL}}}", kind="table",
        ),
        _panel(
            "Up for", f"time() - sfl_start_time_seconds{{{_ALL}}}", "{{device}} {{instance}}", "s",
        ),
        _panel(
            "Certificates end in",
            f"sfl_certificate_expiry_timestamp_seconds{{{_ALL}}} - time()",
            "{{device}} {{instance}}", "s",
            note="SflCertificateExpiring fires two weeks before.",
        ),
        _panel("Targets", 'up{job=~"sfl-.+"}', "{{job}} {{instance}}"),
    ),
)  # fmt: skip

EDGES = Dashboard(
    "sfl-edge",
    "sfl: edge",
    (RUN, EDGE),
    (
        _panel(
            "Micro-batches waiting", f"sfl_queue_depth{{{_EDGE}}}",
            "waiting at {{instance}}",
        ),
        _panel("Devices connected", f"sfl_connected_nodes{{{_EDGE}}}", "{{instance}}"),
        _panel(
            "Where its time goes",
            f"sum by (phase) (rate({_BUSY}{{{_EDGE}}}{_RATE}))", "{{phase}}",
            "percentunit", stacked=True,
            note="Seconds a second in each phase: the compute thread is full where it does not "
            "wait. Codecs and links work beside it, so the sum may pass 1.",
        ),
        _panel(
            "95% of the work in each phase takes less than",
            f"histogram_quantile(0.95, sum by (phase, le) "
            f"(rate(sfl_step_phase_seconds_bucket{{{_EDGE}}}{_RATE})))",
            "{{phase}}", "s",
        ),
        _panel(
            "Bytes a second, to and from the cloud",
            f"sum by (direction) (rate(sfl_wire_bytes_total{{{_EDGE}}}{_RATE}))", "{{direction}}",
            "Bps",
        ),
        _panel(
            "Bytes a second, to and from its devices",
            'sum by (direction) (rate(sfl_wire_bytes_total{run=~"$run", job="sfl-edge", '
            f'instance=~"$edge", device!=""}}{_RATE}))', "{{direction}}", "Bps",
            note="Counted by the devices, as of their last heartbeats.",
        ),
        _panel(
            "Bytes a second, to and from the stage behind it",
            f"sum by (direction, role) (rate(sfl_stage_wire_bytes_total{{{_EDGE}}}{_RATE}))",
            "{{direction}} {{role}}", "Bps", stacked=True,
            note="Only in three tiers.",
        ),
        Panel(
            "Memory",
            (
                Query(f"sfl_resident_memory_bytes{{{_EDGE}}}", "resident {{instance}}"),
                Query(f"sfl_peak_resident_memory_bytes{{{_EDGE}}}", "peak {{instance}}"),
                Query(f"sfl_accelerator_memory_bytes{{{_EDGE}}}", "accelerator {{instance}}"),
                Query(f"sfl_memory_limit_used_bytes{{{_EDGE}}}", "against the limit {{instance}}"),
                Query(f"sfl_memory_limit_bytes{{{_EDGE}}}", "limit {{instance}}"),
            ),
            "decbytes",
        ),
        _panel("Faults", f"sfl_faults_total{{{_EDGE}}}", "{{instance}}"),
        _panel(
            "Seconds since its devices were heard",
            'time() - sfl_last_heartbeat_timestamp_seconds{run=~"$run", instance=~"$edge"}',
            "{{device}}", "s",
        ),
        _panel("Round", f"sfl_round{{{_EDGE}}}", "{{instance}}"),
        Panel(
            "Adapters in files",
            (
                Query(f"sfl_resting_adapters{{{_EDGE}}}", "swapped out {{instance}}"),
                Query(f"rate(sfl_woken_adapters_total{{{_EDGE}}}{_RATE})", "read a second"),
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
        _number("Round", f"max(sfl_round{{{_DEVICES}}})"),
        _number("Step in the round", f"max(sfl_step{{{_DEVICES}}})"),
        _number("Steps in all", f"max(sfl_steps_total{{{_DEVICES}}})"),
        _number("Training loss", f"max(sfl_loss{{{_DEVICES}}})"),
        _number("Accuracy", f"max(sfl_eval_accuracy_ratio{{{_DEVICES}}})", "percentunit"),
        _number("Since heard", f"max(sfl:heartbeat_age_seconds{{{_DEVICES}}})", "s"),
        Panel(
            "Loss",
            (
                Query(f"sfl_loss{{{_DEVICES}}}", "training"),
                Query(f"sfl_eval_loss{{{_DEVICES}}}", "held out"),
            ),
        ),
        _panel("Tokens a second", f"rate(sfl_tokens_total{{{_DEVICES}}}{_RATE})", "{{device}}"),
        _panel(
            "Where its time goes",
            f'sum by (phase) (rate({_BUSY}{{{_DEVICES}, phase!="step"}}{_RATE}))',
            "{{phase}}", "percentunit",
            note="Seconds a second in each phase. Threads overlap: the sum may pass 1.",
        ),
        _panel(
            "Time of one piece of work, by phase",
            f"sum by (phase) (rate({_BUSY}{{{_DEVICES}}}{_RATE})) / "
            f"sum by (phase) (rate(sfl_step_phase_seconds_count{{{_DEVICES}}}{_RATE}))",
            "{{phase}}", "s",
        ),
        Panel(
            "Waits for the edge: half, and 95%, are shorter than",
            tuple(
                Query(
                    f"histogram_quantile({share}, sum by (le) (rate("
                    f'sfl_step_phase_seconds_bucket{{{_DEVICES}, phase="wait"}}{_RATE})))', name,
                )
                for share, name in (("0.5", "half"), ("0.95", "95%"))
            ),
            "s",
        ),
        _panel(
            "Link busy", f"sfl:link_busy:ratio5m{{{_DEVICES}}}", "{{phase}}", "percentunit",
            note="Share of the time in which tensors move; SflLinkSaturated fires at 90%.",
        ),
        _panel(
            "Bytes a second",
            f"sum by (direction, role) (rate(sfl_wire_bytes_total{{{_DEVICES}}}{_RATE}))",
            "{{direction}} {{role}}", "Bps", stacked=True,
        ),
        Panel(
            "Micro-batches in flight",
            (
                Query(f"sfl_queue_depth{{{_DEVICES}}}", "{{device}}"),
                Query(f"sfl_window{{{_DEVICES}}}", "{{device}} window"),
            ),
        ),
        Panel(
            "Memory",
            (
                Query(f"sfl_resident_memory_bytes{{{_DEVICES}}}", "resident"),
                Query(f"sfl_peak_resident_memory_bytes{{{_DEVICES}}}", "peak"),
                Query(f"sfl_accelerator_memory_bytes{{{_DEVICES}}}", "accelerator"),
                Query(f"sfl_memory_limit_used_bytes{{{_DEVICES}}}", "against the limit"),
                Query(f"sfl_memory_limit_bytes{{{_DEVICES}}}", "limit"),
            ),
            "decbytes",
        ),
        _panel("Faults", f"sfl_faults_total{{{_DEVICES}}}", "{{device}}"),
        _panel(
            "Handovers to another edge", f"sfl_handovers_total{{{_DEVICES}}}", "{{device}}",
            note="Times that it came to another edge than it was at (docs/edges.md).",
        ),
        _panel(
            "Temperature", f"sfl_temperature_celsius{{{_DEVICES}}}", "{{device}}", "celsius",
            note="Its `pause.above_celsius` pauses it.",
        ),
        _panel(
            "Paused", f"sfl_paused{{{_DEVICES}}}", "{{reason}}",
            note="Its `pause` settings.",
        ),
        Panel(
            "Held down",
            (
                Query(f"sfl_throttled{{{_DEVICES}}}", "throttled"),
                Query(f"sfl_undervoltage{{{_DEVICES}}}", "too little voltage"),
                Query(f"sfl_on_battery{{{_DEVICES}}}", "on battery"),
            ),
        ),
        _panel(
            "Battery", f"sfl_battery_charge_ratio{{{_DEVICES}}}", "{{device}}", "percentunit",
        ),
        _panel("Power taken in", f"sfl_power_watts{{{_DEVICES}}}", "{{device}}", "watt"),
    ),
)  # fmt: skip

COST = Dashboard(
    "sfl-cost",
    "sfl: cost in bytes and seconds",
    (RUN, DEVICES),
    (
        _number("Bytes in all", f"sum(sfl_wire_bytes_total{{{_DEVICES}}})", "decbytes"),
        _number(
            "Bytes a token",
            f'sum(sfl_wire_bytes_total{{{_DEVICES}, role=~"activation|gradient"}}) '
            f"/ sum(sfl_tokens_total{{{_DEVICES}}})", "decbytes",
        ),
        _number("Smaller than float32", f"avg(sfl:compression:ratio{{{_DEVICES}}})"),
        _number(
            "Tensor bytes, 10 min", f"sum(sfl:payload_bytes:increase10m{{{_ALL}}})", "decbytes",
        ),
        _number(
            "Device seconds computing",
            f'sum({_BUSY}{{{_DEVICES}, phase=~"forward|backward"}})', "s",
        ),
        _number(
            "Device seconds waiting",
            f'sum({_BUSY}{{{_DEVICES}, phase="wait"}})', "s",
        ),
        _panel(
            "Bytes by device", f"sum by (device) (sfl_wire_bytes_total{{{_DEVICES}}})",
            "{{device}}", "decbytes", kind="bargauge",
        ),
        _panel(
            "Bytes by what they are for",
            f"sum by (role, direction) (sfl_wire_bytes_total{{{_DEVICES}}})",
            "{{role}} {{direction}}", "decbytes", kind="bargauge",
        ),
        _panel(
            "Bytes a second by device",
            f"sum by (device) (rate(sfl_wire_bytes_total{{{_DEVICES}}}{_RATE}))", "{{device}}",
            "Bps", stacked=True,
        ),
        _panel(
            "What they would be in float32, a second",
            f"sum by (device) (rate(sfl_wire_raw_bytes_total{{{_DEVICES}}}{_RATE}))", "{{device}}",
            "Bps", stacked=True,
        ),
        _panel(
            "How many times smaller than float32", f"sfl:compression:ratio{{{_DEVICES}}}",
            "{{device}}",
        ),
        _panel(
            "Bytes a step",
            f"sum by (device) (rate(sfl_wire_bytes_total{{{_DEVICES}}}{_RATE})) "
            f"/ sum by (device) (rate(sfl_steps_total{{{_DEVICES}}}{_RATE}))",
            "{{device}}", "decbytes",
        ),
        _panel(
            "Device seconds by phase",
            f'sum by (phase) ({_BUSY}{{{_DEVICES}, phase!="step"}})',
            "{{phase}}", "s", kind="bargauge",
        ),
        _panel(
            "Edge seconds by phase",
            f'sum by (phase) ({_BUSY}{{{_ALL}, job="sfl-edge", device=""}})',
            "{{phase}}", "s", kind="bargauge",
        ),
        _panel(
            "Seconds of waiting a step",
            f'sum by (device) (rate({_BUSY}{{{_DEVICES}, phase="wait"}}{_RATE})) '
            f"/ sum by (device) (rate(sfl_steps_total{{{_DEVICES}}}{_RATE}))",
            "{{device}}", "s",
        ),
        Panel(
            "Seconds of snapshots",
            (
                Query(
                    f"sum(rate(sfl_snapshot_seconds_total{{{_ALL}}}{_RATE}))", "writing, a second"
                ),
                Query(
                    f"sum(rate(sfl_snapshot_wait_seconds_total{{{_ALL}}}{_RATE}))",
                    "waiting for the disk, a second",
                ),
            ),
            "s",
        ),
        Panel(
            "Snapshots written",
            (Query(f"sum(sfl_snapshots_total{{{_ALL}}})", "in all"),),
        ),
        _panel(
            "Size of the last snapshot", f"sfl_snapshot_size_bytes{{{_ALL}}}",
            "{{device}} {{instance}}", "decbytes",
        ),
        _panel(
            "Highest memory of a process", f"sfl_peak_resident_memory_bytes{{{_ALL}}}",
            "{{device}} {{instance}}", "decbytes",
        ),
    ),
)  # fmt: skip

DASHBOARDS = (FLEET, EDGES, ONE_DEVICE, COST)


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
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > _WIDTH:
            x, y, row = 0, y + row, 0
        place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
        yield {"id": number, "gridPos": place, **_drawn(panel)}
        x, row = x + panel.width, max(row, panel.height)


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
