"""`docs/metrics.md`, written from the table of metrics: `python -m tools.metrics_page`."""

from __future__ import annotations

import sys

from sfl.metrics.histogram import BUCKETS
from sfl.metrics.metric import Metric
from sfl.metrics.service import SERVICE_METRICS, ServiceMetric
from sfl.metrics.snapshot import PHASES, ROLES
from sfl.metrics.table import METRICS

_HEAD = """\
<!-- Written by `python -m tools.metrics_page > docs/metrics.md`; a test holds it in step. -->

# Metrics

Every node can serve `/metrics` in Prometheus's text format, or in OpenMetrics if the client asks
for it. The table `metrics` in the node's own file says where: `enabled`, `host`, `port` (0 takes a
free port and logs it). By default the cloud and the edges serve on loopback, and devices do not.

## Which nodes to scrape

Scrape the **cloud** and every **edge**. A device behind a home router cannot be reached. It sends
its statistics with its heartbeat, and its edge shows them with a `device` label.

A device can also have an endpoint of its own (`[device.metrics]`, `enabled = true`; `host` is
loopback or a LAN address). It shows the *same series under the same names and the same `device`
label*. Choose one of the two for each device:

| scrape | what you get |
| --- | --- |
| **its edge** (default) | values as old as the last heartbeat; the device needs no open port |
| **the device itself** | fresh values, and a visible failure (`up == 0`) when the device is gone |

`time() - sfl_last_heartbeat_timestamp_seconds` shows how old an edge's values of a device are.

If you scrape both, every sum over devices counts twice. To scrape devices and edges in one
Prometheus, drop the edge's copy with the `metric_relabel_configs` below.

Nothing else counts twice:

- The end that opens a link counts its bytes. A device counts its link to its edge, an edge its link
  to the cloud, and the cloud none. `up` is towards the cloud, `down` comes from it.
- Only devices count steps, tokens and losses, so `sum(sfl_tokens_total)` is the run's.
- Series of an edge or the cloud itself have an empty `device` label, which Prometheus treats as no
  label. `{device!=""}` selects devices, and `{device=""}` the servers.
- Counters start at 0 when a process starts (`sfl_start_time_seconds`). `rate` and `increase` handle
  that.

```yaml
scrape_configs:
  - job_name: sfl
    scrape_interval: 5s
    static_configs:
      - targets: ["cloud.example:9400", "edge-1.example:9400"]

  # Only for devices that a Prometheus in their own network scrapes directly; then add to the job
  # above:
  #   metric_relabel_configs:
  #     - source_labels: [device]
  #       regex: "home-a|home-b"
  #       action: drop
  - job_name: sfl-devices
    static_configs:
      - targets: ["home-a.lan:9400", "home-b.lan:9400"]
```

## The metrics

Sizes are in bytes, and durations in seconds. All metrics have the label `device`; the column
"labels" lists the others. The column "nodes" says whose series they are. An edge also shows its
devices' series.

"""

_SERVICE = """
### A service

A [service](service.md) of runs has its own `/metrics`: `--set service.metrics.port=9400`.

| metric | type | labels | what it says |
| --- | --- | --- | --- |
"""

_TAIL = """
## Labels

- `device`: name of the device; empty for an edge or the cloud.
- `direction`: `up` (towards the cloud) or `down`.
- `role`: {roles}.
  `activation` and `gradient` are of training only. What crosses the cut in evaluations is
  `evaluation`. Heartbeats and other small messages are `control`.
- `phase`: {phases}.
  The next section explains them.

## Nodes that answer

Series that begin with `sfl_serve_` are of nodes that [answer with a model](serving.md). There the
edge also shows its devices' series. Series of training stay 0 on such nodes.

Idle conversations keep their pages until others need them. So `sfl_serve_kv_bytes` near its budget
is no fault by itself.

## Phases of a step

| phase | what it measures |
| --- | --- |
| `collate` | a micro-batch is put together |
| `forward`, `backward` | the node's own blocks |
| `encode`, `decode` | the codec |
| `send` | one frame, until gRPC has written it or the shaped link is free |
| `wait` | the compute thread waits for a peer's message |
| `receive` | a tensor, from its first frame to its last; near 0 if it is one frame |
| `step` | gradients are gathered, clipped and applied |

Histogram buckets end, in seconds, at
{buckets}.

## Useful queries

| question | query |
| --- | --- |
| tokens/s of each device | `sum by (device) (rate(sfl_tokens_total[1m]))` |
| how many times smaller than float32 | `sum(sfl_wire_raw_bytes_total{{role=~"activation\\|gradient"}}) / sum(sfl_wire_bytes_total{{role=~"activation\\|gradient"}})` |
| 95% of waits are shorter than | `histogram_quantile(0.95, sum by (device, le) (rate(sfl_step_phase_seconds_bucket{{phase="wait"}}[5m])))` |
| tokens a round trip, with drafts | `rate(sfl_serve_answer_tokens_total[5m]) / rate(sfl_serve_round_trips_total[5m])` |
| 95% of first tokens come within | `histogram_quantile(0.95, sum by (device, le) (rate(sfl_serve_first_token_seconds_bucket[5m])))` |
| silent for ten seconds | `time() - sfl_last_heartbeat_timestamp_seconds > 10` |
"""  # noqa: E501


def markdown() -> str:
    """The whole of docs/metrics.md."""
    head = "| metric | type | unit | labels | nodes | what it says |\n"
    rule = "| --- | --- | --- | --- | --- | --- |\n"
    tail = _TAIL.format(
        roles=", ".join(f"`{role}`" for role in ROLES),
        phases=", ".join(f"`{phase}`" for phase in PHASES),
        buckets=", ".join(f"{bound:g}" for bound in BUCKETS),
    )
    rows = "".join(_row(metric) for metric in METRICS)
    of_service = "".join(_service_row(metric) for metric in SERVICE_METRICS)
    return _HEAD + head + rule + rows + _SERVICE + of_service + tail


def _service_row(metric: ServiceMetric) -> str:
    kind = "counter" if metric.counter else "gauge"
    return f"| `{metric.name}` | {kind} | `{metric.label}` | {metric.help} |\n"


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    cells = (
        f"`{metric.name}`",
        metric.type,
        metric.unit,
        labels,
        ", ".join(metric.nodes),
        metric.help,
    )
    return "| " + " | ".join(cells) + " |\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
