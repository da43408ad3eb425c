"""Prometheus's configuration, rules and alerts, Grafana's files, and all of it on a live run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import yaml
from pydantic import BaseModel, Field

from sfl.metrics.table import METRICS
from sfl.node.certificates.authority import Authority
from sfl.node.certificates.identity import Identity, Role
from sfl.node.machine import memory_limit
from tests.house.fake_board import whole_board
from tests.house.federation import SFL, write_config
from tests.house.files import write_jsonl
from tests.house.paths import QUICKSTART, ROOT
from tests.house.waiting import PATIENCE
from tools import dashboards
from tools.dashboards import DASHBOARDS, RECORDS, metrics_in, render

PROMETHEUS = ROOT / "docker" / "prometheus"
GRAFANA = ROOT / "docker" / "grafana"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
CGROUPS = Path("/sys/fs/cgroup")
PASSWORD = "wrasse-gannet-thrift"
# A frame of activations arrives well within WINDOW, else the round would be stuck in truth.
SLOW = {"link": {"up_mbit": 0.2}, "codec": {"activation": "none", "gradient": "none"}}
"""A device whose link is busy with one batch for seconds."""

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)"
)


def rules() -> list[dict[str, Any]]:
    """Every recording and alert rule."""
    return [
        rule
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# -- rules -----------------------------------------------------------------------------------------


@pytest.mark.process
@needs_promtool
def test_promtool_finds_the_configuration_and_the_rules_sound() -> None:
    assert "2 rule files found" in promtool("check", "config", PROMETHEUS / "prometheus.yml")
    # Its CA's file is in a container only.
    promtool("check", "config", "--syntax-only", PROMETHEUS / "prometheus.tls.yml")
    promtool("check", "rules", *RULES)


@pytest.mark.process
@needs_promtool
def test_each_alert_fires_when_it_should_and_only_then() -> None:
    files = sorted((PROMETHEUS / "tests").glob("*.yml"))
    assert "SUCCESS" in promtool("test", "rules", *files)
    tried = {
        case["alertname"]
        for file in files
        for test in yaml.safe_load(file.read_text())["tests"]
        for case in test.get("alert_rule_test", ())
        if case["exp_alerts"]
    }
    assert tried == {rule["alert"] for rule in rules() if "alert" in rule}


def test_rules_name_what_exists_and_every_alert_says_what_to_do() -> None:
    assert {rule["record"] for rule in rules() if "record" in rule} == set(RECORDS)
    documented = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    for rule in rules():
        metrics_in(rule["expr"])
        if "alert" in rule:
            assert len(rule["annotations"]["summary"].split(". ")) > 1, "what is so, and what to do"
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert f"`{rule['alert']}`" in documented


def test_settings_that_rules_speak_of_exist() -> None:
    documented = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## `(.*)`", documented, re.MULTILINE)
    for rule in rules():
        said = rule.get("annotations", {}).get("summary", "")
        for section, key in re.findall(r"\b(edge|devices|training|network)\.(\w+)", said):
            title = f"[[{section}]]" if section == "devices" else f"[{section}]"
            assert title in sections
            part = documented.split(f"## `{title}`")[1].split("\n## ")[0]
            assert f"| `{key}` |" in part, f"{section}.{key}"


# -- Grafana ---------------------------------------------------------------------------------------


class Strict(BaseModel):
    """What Grafana needs; it ignores what it does not know, this does too."""


class Source(Strict):
    type: Literal["prometheus"]
    uid: str = Field(min_length=1)


class Target(Strict):
    ref_id: str = Field(alias="refId", pattern="^[A-Z]$")
    expr: str = Field(min_length=1)
    datasource: Source


class GridPos(Strict):
    x: int = Field(ge=0, lt=24)
    y: int = Field(ge=0)
    w: int = Field(ge=1, le=24)
    h: int = Field(ge=1)


class Panel(Strict):
    id: int = Field(ge=1)
    type: Literal["timeseries", "stat", "table", "bargauge"]
    title: str = Field(min_length=1)
    description: str
    grid_pos: GridPos = Field(alias="gridPos")
    datasource: Source
    targets: list[Target] = Field(min_length=1)
    options: dict[str, Any]
    field_config: dict[Literal["defaults", "overrides"], Any] = Field(alias="fieldConfig")


class Templating(Strict):
    list: list[dict[str, Any]]


class Dashboard(Strict):
    uid: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,40}$")
    title: str = Field(min_length=1)
    schema_version: int = Field(alias="schemaVersion", ge=30)
    templating: Templating
    time: dict[Literal["from", "to"], str]
    panels: list[Panel] = Field(min_length=1)


def committed() -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in (GRAFANA / "dashboards").iterdir()}


def test_the_committed_dashboards_are_what_the_script_makes(tmp_path: Path) -> None:
    dashboards.write(tmp_path)
    made = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    assert committed() == made, "run: python -m tools.dashboards docker/grafana/dashboards"


@pytest.mark.parametrize("text", committed().values(), ids=committed())
def test_a_dashboard_has_the_fields_that_grafana_needs(text: str) -> None:
    values = Dashboard.model_validate_json(text)
    assert len({panel.id for panel in values.panels}) == len(values.panels)
    names = {variable["name"] for variable in values.templating.list}
    for panel in values.panels:
        assert len({target.ref_id for target in panel.targets}) == len(panel.targets)
        for target in panel.targets:
            used = set(re.findall(r"\$(\w+)", target.expr)) - {"__rate_interval"}
            assert used <= names
            assert target.datasource.uid == "${datasource}"
    for one, other in combinations((panel.grid_pos for panel in values.panels), 2):
        apart = (
            one.x + one.w <= other.x
            or other.x + other.w <= one.x
            or one.y + one.h <= other.y
            or other.y + other.h <= one.y
        )
        assert apart, f"{one} lies over {other}"
        assert one.x + one.w <= 24


def test_every_metric_is_on_some_dashboard_and_no_other() -> None:
    shown = {
        metric.name
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        for query in panel.queries
        for metric in metrics_in(query.expr)
    }
    recorded = {metric.name for rule in rules() for metric in metrics_in(rule["expr"])}
    assert shown | recorded == {metric.name for metric in METRICS}
    for_rules = {"sfl_last_heartbeat_timestamp_seconds", "sfl_wait_end_timestamp_seconds"}
    assert {metric.name for metric in METRICS} - shown <= for_rules
    with pytest.raises(ValueError, match="no metric is named sfl_tokens"):
        metrics_in("rate(sfl_tokens[1m])")
    with pytest.raises(ValueError, match="no metric is named sfl_step_phase_seconds:"):
        metrics_in("sfl_step_phase_seconds")  # a histogram has no series of its own name


def test_every_record_is_read_by_an_alert_or_a_dashboard() -> None:
    read = "".join(map(render, DASHBOARDS)) + "".join(r["expr"] for r in rules() if "alert" in r)
    assert [record for record in RECORDS if record not in read] == []


def test_grafana_finds_the_datasource_and_the_dashboards() -> None:
    folder = GRAFANA / "provisioning"
    sources = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())
    (source,) = sources["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    interval = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]
    assert source["jsonData"]["timeInterval"] == interval["scrape_interval"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "sfl.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"]


# -- a live run ------------------------------------------------------------------------------------


class Server:
    """A Prometheus that watches one run, asked over its own API."""

    def __init__(self, port: int, targets: Path) -> None:
        self.address = f"http://127.0.0.1:{port}/api/v1"
        self.targets = targets

    def watch(self, name: str, log: Path, **labels: str) -> None:
        """Have it scrape a node, where its log says."""
        target = {"targets": [metrics_address(log)], "labels": labels}
        aside = self.targets / f"{name}.tmp"
        aside.write_text(json.dumps([target]))
        aside.rename(aside.with_suffix(".json"))

    def get(self, path: str, **query: str) -> Any:
        url = f"{self.address}/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as response:  # an error is a status of 400
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return answer["data"]

    def ready(self) -> bool:
        try:
            return bool(self.get("targets")["activeTargets"])
        except OSError:
            return False

    def series(self, expr: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.get("query", query=expr)["result"]
        return result

    def unhealthy(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [
            target for target in self.get("targets")["activeTargets"] if target["health"] != "up"
        ]
        return found

    def firing(self) -> set[tuple[str, str]]:
        """Alerts that fire, each with the device it is about."""
        return {
            (alert["labels"]["alertname"], alert["labels"].get("device", ""))
            for alert in self.get("alerts")["alerts"]
            if alert["state"] == "firing"
        }


def until(condition: Callable[[], Any], what: str, seen: Callable[[], object] = str) -> Any:
    """Wait for something that must come; fail with its name, and what was `seen`."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.5)
    raise AssertionError(f"never came: {what}; {seen()}")


def ended(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class MemoryGroup:
    """A cgroup of the test's own (version 1 or 2), where this user may make one."""

    def __init__(self) -> None:
        self.limit: Path | None = None
        for root, limit in ((CGROUPS / "memory", "memory.limit_in_bytes"), (CGROUPS, "memory.max")):
            folder = root / f"sfl-test-{os.getpid()}"
            with contextlib.suppress(OSError):
                folder.mkdir()
                if (folder / limit).exists():
                    self.limit = folder / limit
                    return
                folder.rmdir()

    @property
    def entered(self) -> list[str]:
        """What a command is begun with, to be run in the group."""
        if self.limit is None:
            return []
        procs = self.limit.with_name("cgroup.procs")
        return ["sh", "-c", f'echo $$ > {procs} && exec "$@"', "sh"]

    def close(self) -> None:
        if self.limit is not None:
            until(lambda: not self._left(), "the end of all in the cgroup")
            self.limit.parent.rmdir()

    def _left(self) -> str:
        assert self.limit is not None
        return self.limit.with_name("cgroup.procs").read_text()


@dataclass
class LiveRun:
    """A run of three devices that outlasts the test: c has a slow link, certificates end soon.

    The cloud and device a serve metrics behind TLS and a password, the edge and c without.
    """

    home: Path
    group: MemoryGroup

    @property
    def folder(self) -> Path:
        """What the run writes."""
        return self.home / "runs" / "t"

    def node(self, kind: str, name: str) -> psutil.Process:
        """A node's process."""
        (found,) = (
            process
            for process in psutil.process_iter(["cmdline"])
            if " ".join(process.info["cmdline"] or []).startswith(f"sfl {kind} {name} ")
            and str(self.home) in " ".join(process.info["cmdline"])
        )
        return found


def local_device(folder: Path, name: str, home: str, **values: Any) -> dict[str, Any]:
    """A device with some of the quickstart's commands."""
    entry: dict[str, Any] = {"name": name, "threads": 1, **values}
    for split, count in (("train", 24), ("eval", 4)):
        lines = (QUICKSTART / "data" / home / f"{split}.jsonl").read_text().splitlines()
        path = folder / "data" / f"{name}-{split}.jsonl"
        entry[split] = str(write_jsonl(path, [json.loads(line) for line in lines[:count]]))
    return entry


def start_run(folder: Path, values: dict[str, Any], group: MemoryGroup) -> subprocess.Popen[bytes]:
    board = whole_board(folder / "board")
    with (folder / "output").open("wb") as output:
        return subprocess.Popen(
            [*group.entered, *SFL, "run", str(write_config(folder, values))],
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "SFL_BOARD_ROOT": str(board.root)},
        )


@pytest.fixture(scope="module")
def live_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    home = tmp_path_factory.mktemp("live")
    (home / "password").write_text(PASSWORD)
    (home / "password").chmod(0o600)
    authority = Authority.create()
    nodes: tuple[tuple[Role, str], ...] = (
        ("cloud", "cloud"), ("edge", "edge"), ("device", "a"), ("device", "b"), ("device", "c"),
    )  # fmt: skip
    own: dict[str, Any] = {}
    for role, name in nodes:
        folder = home / "certs" / name
        authority.write(authority.issue(Identity(role, name), ("127.0.0.1",), days=10), folder)
        files = {"ca": "ca.pem", "cert": f"{name}.pem", "key": f"{name}.key"}
        own[name] = {"tls": {key: str(folder / file) for key, file in files.items()}}
    locked = {"username": "prometheus", "password_file": str(home / "password")}
    for name in ("cloud", "a"):
        pair = {key: own[name]["tls"][key] for key in ("cert", "key")}
        own[name]["metrics"] = {"enabled": True, **locked, **pair}
    own["c"]["metrics"] = {"enabled": True}
    values = {
        "run": {"rounds": 1000, "min_devices": 1},
        "launch": {"restarts": 0},
        "network": {"rejoin_timeout": 5},  # else a round that waits for b is stuck, by these rules
        "model": {"path": str(QUICKSTART / "model"), "max_length": 96},
        "lora": {"rank": 4},
        "training": {"batch_size": 4, "local_steps": 4},
        "cloud": own["cloud"],
        "edge": own["edge"],
        "devices": [
            local_device(home, "a", "harbour", **own["a"]),
            local_device(home, "b", "loft", **own["b"]),
            local_device(home, "c", "meadow", **SLOW, **own["c"]),
        ],
    }
    group = MemoryGroup()
    process = start_run(home, values, group)
    try:
        yield LiveRun(home, group)
    finally:
        ended(process)
        group.close()


def metrics_address(log: Path) -> str:
    """Where a node says that it serves its metrics."""

    def found() -> str:
        text = log.read_text() if log.exists() else ""
        match = re.search(r"metrics at https?://([\d.:]+)/metrics", text)
        return match[1] if match else ""

    return str(until(found, f"the address of metrics in {log}"))


WINDOW = "15s"


def quick(expr: str) -> str:
    """A rule's expression that looks back over seconds, not minutes."""
    return re.sub(r"(\[|offset )\d+m\b", rf"\g<1>{WINDOW}", expr)


def shortened(folder: Path, home: Path) -> Path:
    """The committed configuration and rules in `folder`, quicker, and without names to look up.

    The cloud is scraped over TLS with a password, as device a is; of the devices' own endpoints
    only `up` is kept, since their edge has the rest.
    """
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    locked = {
        "scheme": "https",
        "tls_config": {"ca_file": str(home / "certs" / "a" / "ca.pem")},
        "basic_auth": {"username": "prometheus", "password_file": str(home / "password")},
    }
    cloud, edge = config["scrape_configs"]
    for job in (cloud, edge):
        del job["dns_sd_configs"]
    cloud |= locked
    nothing = [{"source_labels": ["__name__"], "regex": ".+", "action": "drop"}]
    for name, door in (("a", locked), ("c", {})):
        files = [{"files": [f"targets/{name}.json"]}]
        job = {"job_name": name, "file_sd_configs": files, "metric_relabel_configs": nothing}
        config["scrape_configs"].append(job | door)
    (folder / "rules").mkdir(parents=True)
    for path in RULES:
        values = yaml.safe_load(path.read_text())
        for group in values["groups"]:
            for rule in group["rules"]:
                rule["expr"] = quick(rule["expr"])
                if "for" in rule:
                    rule["for"] = "0s"
        (folder / "rules" / path.name).write_text(yaml.safe_dump(values))
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def server(live_run: LiveRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Prometheus over the live run, its targets found by file."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = shortened(folder, live_run.home)
    (folder / "targets").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = Server(port, folder / "targets")
    for name in ("cloud", "edge", "a", "c"):
        asked.watch(name, live_run.folder / "logs" / f"{name}.log")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
            env={**os.environ, "GOMAXPROCS": "1"},
        )
        try:
            until(asked.ready, "Prometheus", (folder / "log").read_text)
            yield asked
        finally:
            ended(process)


def asked_by_grafana(expr: str) -> str:
    """An expression with its variables put in, as Grafana does."""
    chosen = {"run": ".*", "edge": ".*", "device": "a|b", "__rate_interval": "10s"}
    return re.sub(r"\$(\w+)", lambda name: chosen[name[1]], expr)


def shown() -> list[str]:
    """Every expression of every committed dashboard but that of nodes that answer."""
    return [
        asked_by_grafana(target["expr"])
        for name, text in committed().items()
        if name != "sfl-serving.json"
        for panel in json.loads(text)["panels"]
        for target in panel["targets"]
    ]


@pytest.mark.process
def test_secrets_are_in_no_log_no_metric_and_no_process_list(live_run: LiveRun) -> None:
    for name in ("cloud", "edge", "a", "c"):
        metrics_address(live_run.folder / "logs" / f"{name}.log")
    keys = [key.read_text().splitlines()[1] for key in (live_run.home / "certs").rglob("*.key")]
    assert len(keys) == 5
    lines = [
        " ".join(process.cmdline() + [f"{k}={v}" for k, v in process.environ().items()])
        for process in (live_run.node("edge", "edge"), live_run.node("device", "a"))
    ]
    lines += [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    written = [path for path in live_run.folder.rglob("*") if path.is_file()]
    assert len(written) > 5
    lines += [path.read_bytes().decode(errors="replace") for path in written]
    address = metrics_address(live_run.folder / "logs" / "edge.log")
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        lines.append(answer.read().decode())
    for line in lines:
        assert not any(secret in line for secret in (PASSWORD, "PRIVATE KEY", *keys))


@pytest.mark.process
@needs_prometheus
def test_every_node_is_scraped_with_tls_and_without(server: Server) -> None:
    until(lambda: not server.unhealthy(), "healthy targets", server.unhealthy)
    up = {series["metric"]["job"] for series in server.series("up == 1")}
    assert up == {"sfl-cloud", "sfl-edge", "a", "c"}
    schemes = {
        target["labels"]["job"]: target["scrapeUrl"].split(":")[0]
        for target in server.get("targets")["activeTargets"]
    }
    assert schemes == {"sfl-cloud": "https", "a": "https", "sfl-edge": "http", "c": "http"}
    until(lambda: len(server.series("scrape_samples_scraped > 5")) == 4, "series from each of them")


@pytest.mark.process
@needs_prometheus
def test_dashboards_and_rules_are_answered_from_a_live_run(server: Server) -> None:
    until(lambda: len(server.series("sfl_steps_total > 2")) == 3, "steps of all devices")

    def empty() -> list[str]:
        # Alerts are to come: the fleet's panel of them is asked once one fires. Nobody is late.
        apart = "ALERTS", "sfl_buffered_updates", "sfl_update_staleness"
        asked = [expr for expr in shown() if not any(name in expr for name in apart)]
        return [expr for expr in asked if not server.series(expr)]

    until(lambda: not empty(), "series of every expression", empty)
    for rule in rules():
        server.series(rule["expr"])
    until(
        lambda: all(
            rule["health"] == "ok"
            for group in server.get("rules")["groups"]
            for rule in group["rules"]
        ),
        "the evaluation of all rules",
    )
    errors = [
        rule["lastError"]
        for group in server.get("rules")["groups"]
        for rule in group["rules"]
        if rule.get("lastError")
    ]
    assert errors == []
    for record in RECORDS:
        if record != "sfl:first_token_seconds:p95":  # of nodes that answer
            assert server.series(record), record


# -- faults, made for real, and the alerts that they fire; in this order, on one run ---------------


def fires(server: Server, alert: str, device: str = "") -> None:
    until(lambda: (alert, device) in server.firing(), alert, server.firing)


@pytest.mark.process
@needs_prometheus
def test_certificates_of_ten_days_fire(server: Server) -> None:
    for device in ("", "a", "b", "c"):
        fires(server, "SflCertificateExpiring", device)


@pytest.mark.process
@needs_prometheus
def test_a_slow_link_fires_for_its_device(server: Server) -> None:
    fires(server, "SflLinkSaturated", "c")
    assert ("SflLinkSaturated", "a") not in server.firing()


@pytest.mark.process
@needs_prometheus
def test_a_tight_memory_limit_fires(server: Server, live_run: LiveRun) -> None:
    limit = live_run.group.limit
    if limit is None:
        pytest.skip("no cgroup of its own can be made here")
    assert "SflMemoryNearLimit" not in {alert for alert, _ in server.firing()}
    whose = Path(f"/proc/{live_run.node('edge', 'edge').pid}/cgroup")
    unlimited = limit.read_text()
    try:
        limit.write_text(str(64 << 30))
        used = memory_limit(whose)[1]
        assert used > 0
        limit.write_text(str(int(used / 0.94)))
        fires(server, "SflMemoryNearLimit")
    finally:
        limit.write_text(unlimited)


@pytest.mark.process
@needs_prometheus
def test_a_killed_device_raises_its_alert_and_no_other_device(
    server: Server, live_run: LiveRun
) -> None:
    until(lambda: len(server.series("sfl_steps_total > 0")) == 3, "steps of all devices")
    assert not {alert for alert in server.firing() if alert[0] == "SflDeviceSilent"}
    live_run.node("device", "b").kill()
    fires(server, "SflDeviceSilent", "b")
    assert ("SflDeviceSilent", "a") not in server.firing()
    assert server.series('ALERTS{alertname=~"Sfl.+", alertstate="firing"}')  # the fleet's panel


@pytest.mark.process
@needs_prometheus
def test_a_round_whose_devices_stand_still_is_stuck(server: Server, live_run: LiveRun) -> None:
    assert "SflRoundStuck" not in {alert for alert, _ in server.firing()}
    devices = [live_run.node("device", name) for name in ("a", "c")]
    try:
        for device in devices:
            device.suspend()
        fires(server, "SflRoundStuck")
    finally:
        for device in devices:
            device.resume()


@contextlib.contextmanager
def another_run(
    server: Server, live_run: LiveRun, folder: Path, values: dict[str, Any], edge: str
) -> Iterator[None]:
    """One long round of the quickstart's model beside the live run, its edge scraped meanwhile."""
    common = {
        "run": {"rounds": 1},
        "model": {"path": str(QUICKSTART / "model"), "max_length": 96},
    }
    process = start_run(folder, common | values, live_run.group)
    try:
        server.watch(
            f"edge-another-{edge}", folder / "runs" / "t" / "logs" / f"{edge}.log", run=edge
        )
        yield
    finally:
        (server.targets / f"edge-another-{edge}.json").unlink(missing_ok=True)
        ended(process)


@pytest.mark.process
@needs_prometheus
def test_a_learning_rate_that_breaks_the_loss_fires(
    server: Server, live_run: LiveRun, tmp_path: Path
) -> None:
    values = {
        # The hot one cannot compute from its second step on, leaves the round and waits for the
        # next, while the other is still busy with its first: else the run would be over.
        "training": {"batch_size": 4, "local_steps": 5000, "learning_rate": 1e30},
        "run": {"rounds": 1, "min_devices": 1},
        "devices": [
            local_device(tmp_path, "hot", "harbour", cut_layer=0),
            local_device(tmp_path, "slow", "loft", cut_layer=0, **SLOW),
        ],
    }
    with another_run(server, live_run, tmp_path, values, "edge"):
        fires(server, "SflLossNotFinite", "hot")


@pytest.mark.process
@needs_prometheus
def test_an_edge_that_does_not_keep_up_fires(
    server: Server, live_run: LiveRun, tmp_path: Path
) -> None:
    values = {
        # Devices that hold no block are done with four micro-batches before the edge is with one.
        "training": {"batch_size": 24, "micro_batches": 4, "local_steps": 5000},
        "edge": {"name": "busy", "threads": 1},
        "devices": [
            local_device(tmp_path, name, home, cut_layer=0)
            for name, home in (("one", "harbour"), ("two", "loft"))
        ],
    }
    assert "SflQueueGrowing" not in {alert for alert, _ in server.firing()}
    with another_run(server, live_run, tmp_path, values, "busy"):
        fires(server, "SflQueueGrowing")


@pytest.mark.process
@needs_prometheus
def test_a_dead_edge_cannot_be_scraped(server: Server, live_run: LiveRun) -> None:
    until(lambda: ("SflTargetDown", "") not in server.firing(), "an end of SflTargetDown")
    live_run.node("edge", "edge").kill()
    fires(server, "SflTargetDown")
