"""The compose files: what they name exists; and, where it is asked for, all of it on an engine.

`make test-compose` asks for it (SFL_TEST_COMPOSE=1); otherwise nothing here builds an image.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import safetensors.numpy
import yaml

from sfl.config import MetricsSettings, load_device, load_edge, load_run
from sfl.config.load import load_stage
from sfl.config.service import load_service
from sfl.metrics.prometheus import NodeCollector, serve_as_set
from sfl.metrics.stats import NodeStats
from sfl.node.certificates.authority import Authority
from sfl.node.certificates.identity import Identity
from sfl.report.summary import RunSummary
from tests.house.options import options_of
from tests.house.paths import QUICKSTART, ROOT

DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yml"
STORAGE = DOCKER / "storage.yml"
SERVICE = DOCKER / "service.yml"
THREE_TIER = DOCKER / "three-tier.yml"
OVERLAYS = (DOCKER / "insecure.yml", DOCKER / "with-gpu.yml", STORAGE, THREE_TIER)
"""Those with which the fleet computes one run."""
FILES = (COMPOSE, *OVERLAYS, SERVICE)
CONFIG = DOCKER / "config"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
HOMES = QUICKSTART
DEVICES = ("device-pi", "device-small", "device")
NODE_SERVICES = ("cloud", "edge", *DEVICES)
KINDS = ("cloud", "edge", "stage", "device")
GO_ON = (
    "run -d --use-aliases cloud cloud --resume RUN --output-dir /runs --certs /certs "
    "--journal postgresql+psycopg://sfl@database/sfl --artifacts s3://sfl/runs"
)
ISSUE = "sfl ca issue anna --role operator --dir /ca --out /tmp/anna >&2 && tar -C /tmp -c anna"
SUBMIT = "exec cloud sfl submit /etc/sfl/run.toml --output-dir /runs"
"""What docs/docker.md says about the overlays, and the tests below do."""
PEM = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=\s]{60}")
"""A private key; programs that read keys hold the first line alone."""


def with_defaults(text: str) -> str:
    """A compose file's text, each ${NAME:-default} replaced by its default."""
    return VARIABLE.sub(lambda found: found[2], text).replace("$$", "$")


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(with_defaults(path.read_text(encoding="utf-8")))
    return values


def services(*files: Path) -> dict[str, dict[str, Any]]:
    """Services of compose.yml with overlays, as far as commands and environments go."""
    found: dict[str, dict[str, Any]] = read(COMPOSE)["services"]
    for file in files:
        for name, values in read(file)["services"].items():
            found[name] = {**found.get(name, {}), **values}
    return found


NODES = [
    pytest.param(name, files, id=f"{name}, {files[0].stem if files else 'mutual TLS'}")
    for files in ((), *((overlay,) for overlay in OVERLAYS))
    for name, service in services(*files).items()
    if service.get("command", [""])[0] in KINDS
]


# -- what the files name ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "files"), NODES)
def test_a_nodes_command_names_options_and_settings_that_exist(
    name: str, files: tuple[Path, ...]
) -> None:
    kind, path, *options = services(*files)[name]["command"]
    assert {option.partition("=")[0] for option in options} <= options_of(kind)
    overrides = [option.removeprefix("--set=") for option in options if "--set=" in option]
    file = CONFIG / Path(path).relative_to("/etc/sfl")
    if kind == "cloud":
        metrics = load_run(file, overrides).cloud.metrics
    elif kind == "edge":
        edge = load_edge(file, overrides)
        assert edge.cloud == load_run(CONFIG / "run.toml").cloud.listen.replace("0.0.0.0", "cloud")
        assert edge.devices == (("cuda:0",) if OVERLAYS[1] in files else ("cpu",))
        assert edge.next == ("stage:7002" if THREE_TIER in files else "")
        metrics = edge.metrics
    elif kind == "stage":
        stage = load_stage(file, overrides)
        assert stage.listen == "0.0.0.0:7002"
        metrics = stage.metrics
    else:
        device = load_device(file, overrides)
        assert device.edge == load_edge(CONFIG / "edge.toml").listen.replace("0.0.0.0", "edge")
        assert "--claim=/certs" in options or device.name == name
        metrics = device.metrics
    assert metrics.enabled
    assert metrics.port == 9400
    secure = OVERLAYS[0] not in files
    assert ("--insecure" in options) is not secure
    assert (metrics.cert is not None) is (secure and kind != "device")
    assert {"--certs=/certs", "--claim=/certs"} & set(options) or not secure


def test_a_services_nodes_name_options_and_settings_that_exist() -> None:
    found = read(SERVICE)["services"]
    assert found.keys() == set(NODE_SERVICES)
    for service in found.values():
        kind, *options = service["command"]
        words = [word.partition("=") for word in options if word.startswith("--")]
        given = {option: value for option, _, value in words}
        overrides = [word.removeprefix("--set=") for word in options if "--set=" in word]
        assert given.keys() <= options_of(kind)
        assert {"--certs", "--claim"} & given.keys()
        assert service["restart"] == "unless-stopped"
        if kind == "cloud":
            settings = load_service(overrides)
            assert (settings.metrics.host, settings.metrics.port) == ("0.0.0.0", 9400)
            assert settings.metrics.cert is not None
            port = settings.listen.removeprefix("0.0.0.0")
            assert service["ports"] == [f"127.0.0.1{port}{port}"]
            continue
        file = CONFIG / Path(options[0]).relative_to("/etc/sfl")
        assert service["healthcheck"] == {"disable": True}, "between two runs nothing answers"
        if kind == "edge":
            edge = load_edge(file, overrides)
            assert given["--service"] == "cloud" + port
            assert given["--max-runs"] == "1" and edge.metrics.port == 9400
        else:
            listens = load_edge(CONFIG / "edge.toml").listen
            assert given["--service"] == listens.replace("0.0.0.0", "edge")
            assert load_device(file, overrides).max_runs == 1


def test_the_runs_devices_are_those_that_get_certificates() -> None:
    (script,) = services()["certificates"]["command"]
    words = script.split()
    assert {word for word in words if word.startswith("--")} <= options_of("ca", "bundle")
    count = int(words[words.index("--devices") + 1])
    named = {words[i + 1] for i, word in enumerate(words) if word == "--device"}
    issued = named | {f"device-{number}" for number in range(count)}
    config = load_run(CONFIG / "run.toml")
    assert {device.name for device in config.devices} == issued
    assert load_device(CONFIG / "device.toml").name not in issued
    assert f"up to {count}" in COMPOSE.read_text()
    assert services()["certificates"]["environment"] == {"EDGE_HOSTS": "edge"}


def test_a_stage_behind_the_edge_gets_a_certificate_and_a_folder_for_it() -> None:
    (two,) = services()["certificates"]["command"]
    added = read(THREE_TIER)["services"]
    (three,) = added["certificates"]["command"]
    assert three == two.replace("${EDGE_HOSTS}", '${EDGE_HOSTS}" --edge "stage=${STAGE_HOSTS}')
    assert added["certificates"]["environment"] == {"STAGE_HOSTS": "stage"}
    # A new volume takes over the owner of the folder in the image.
    made = DOCKERFILE.partition("FROM cloud AS certificates")[2].partition("USER sfl")[0].split()
    mounted = [*services()["certificates"]["volumes"], *added["certificates"]["volumes"]]
    assert {volume.split(":")[1] for volume in mounted} <= set(made)
    # In a folder that is mounted read-only the engine cannot make a place to mount on.
    ((targets, place, _),) = (volume.split(":") for volume in added["prometheus"]["volumes"])
    assert "./prometheus:/etc/prometheus:ro" in services()["prometheus"]["volumes"]
    assert (DOCKER / "prometheus" / Path(place).relative_to("/etc/prometheus")).is_dir()
    edges = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    (files,) = edges["scrape_configs"][1]["file_sd_configs"]
    seen = [Path("/etc/prometheus", pattern) for pattern in files["files"]]
    (file,) = (DOCKER / targets).iterdir()
    assert any(Path(place, file.name).match(str(pattern)) for pattern in seen)


def test_a_stage_lets_in_the_runs_edges_alone() -> None:
    edges = load_run(CONFIG / "run.toml").edges
    assert load_stage(CONFIG / "stage.toml").before == edges
    assert edges == (load_edge(CONFIG / "edge.toml").name,)


def test_the_shipped_model_and_data_are_what_is_trained() -> None:
    config = load_run(CONFIG / "run.toml")
    shipped = load_run(HOMES / "homes.toml")
    for section in ("lora", "training", "codec"):
        assert getattr(config, section) == getattr(shipped, section)
    assert config.model.model_copy(update={"path": shipped.model.path}) == shipped.model
    shared = load_device(CONFIG / "device.toml")
    files = [shared.shared_train, shared.shared_eval]
    for name in ("device-pi", "device-small"):
        device = load_device(CONFIG / f"{name}.toml")
        files += [device.train, device.eval]
    for file in files:
        assert (HOMES / "data" / Path(str(file)).relative_to("/data")).is_file()


def test_mounts_volumes_stages_and_overlays_exist() -> None:
    base = read(COMPOSE)
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    used = set()
    for name, service in base["services"].items():
        if "build" in service:
            build = service["build"]
            assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
            assert build["target"] in stages
            assert service["image"] == f"sfl-{build['target']}"
            assert set(build["args"]) == arguments
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), f"{name}: {source}"
            elif not source.startswith("/"):
                used.add(source)
            else:  # without a name it stays behind a `down`; a replica's needs one of its own
                assert name == "device"
        assert set(service.get("depends_on", ())) <= set(base["services"])
    assert used == set(base["volumes"])
    for overlay in (*OVERLAYS, SERVICE):
        values = read(overlay)
        own = {n: s for n, s in values["services"].items() if n not in base["services"]}
        for service in own.values():
            # Of others, or that of a service before it: docker-compose builds in that order.
            before = [base["services"][name] for name in service.get("depends_on", ())]
            built = {other["image"] for other in before if "build" in other}
            assert ":" in service["image"] or service["image"] in built
        mounted = [volume.split(":")[0] for s in own.values() for volume in s["volumes"]]
        named = {source for source in mounted if source[0] not in ".$"}
        assert named == set(values.get("volumes", ()))
    assert "grafana" in base["services"]
    assert base["services"]["grafana"]["profiles"] == ["monitoring"]


def test_what_the_images_copy_exists_and_is_let_through() -> None:
    let_through = (ROOT / ".dockerignore").read_text().splitlines()
    for found in re.finditer(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in found[1].split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(
                line.startswith("!") and Path(source).is_relative_to(line[1:])
                for line in let_through
            ), source
    assert let_through[1] == "*"


@pytest.mark.process
def test_torch_is_cleaned_whatever_the_bases_python(tmp_path: Path) -> None:
    """The stage's own command in a real shell; pip is a stand-in that lays files out."""
    found = re.search(r"^FROM builder AS torch\n.*?^RUN (.+?[^\\])\n", DOCKERFILE, re.M | re.S)
    assert found is not None
    added, venv = tmp_path / "added", tmp_path / "venv"
    command = found[1].replace("/added", str(added)).replace("/opt/venv", str(venv))
    command = command.replace("/build/", f"{ROOT}/")
    pip = tmp_path / "bin" / "pip"

    def cleaned(layout: str) -> tuple[int, set[str]]:
        """The exit code, and what reaches the next stages of a torch that lies in `layout`."""
        shutil.rmtree(added, ignore_errors=True)
        shutil.rmtree(venv, ignore_errors=True)
        venv.mkdir()
        torch = added / layout / "torch"
        files = ("__init__.py", "include/c10.h", "share/cmake/a", "test/b", "bin/protoc-3.1",
                 "bin/test_api", "bin/torch_shm_manager")  # fmt: skip
        lay = [f"mkdir -p $(dirname {torch / file}); touch {torch / file}" for file in files]
        pip.parent.mkdir(exist_ok=True)
        pip.write_text("\n".join(("#!/bin/sh", *lay, "")))
        pip.chmod(0o755)
        path = f"{pip.parent}:{os.environ['PATH']}"
        done = subprocess.run(["sh", "-c", command], env={"PATH": path}, check=False)
        left = (venv / layout / "torch").rglob("*")
        return done.returncode, {file.name for file in left if file.is_file()}

    for layout in ("lib/python3.11", "lib/python3.14", "lib64/python3.13t"):
        assert cleaned(f"{layout}/site-packages") == (0, {"__init__.py", "torch_shm_manager"})
    # Where nothing would be cleaned the build says so.
    assert cleaned("opt/elsewhere")[0] != 0


@pytest.mark.parametrize("file", [COMPOSE, *OVERLAYS], ids=lambda path: path.name)
def test_who_hears_that_the_run_has_ended_is_not_started_again(file: Path) -> None:
    """`on-failure` starts again whoever exits with anything but 0."""
    found = yaml.safe_load(file.read_text())["services"]
    for service in {*NODE_SERVICES, "stage"} & found.keys():
        option = "--resume=auto" if service == "cloud" else "--supervised"
        assert option in found[service]["command"], service


def test_every_node_is_locked_down() -> None:
    for name, service in services(STORAGE, THREE_TIER).items():
        if name == "grafana":
            continue
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    stored = services(STORAGE)
    reached = {name for name, service in stored.items() if "storage" in service.get("networks", ())}
    assert reached == {"cloud", "database", "artifacts"}, "devices reach no server"
    assert read(STORAGE)["networks"] == {"storage": {"internal": True}}
    for name in NODE_SERVICES:
        assert services()[name]["restart"].startswith("on-failure")
    for name in ("device", "device-pi", "device-small"):
        assert services()[name]["mem_limit"]
        assert services()[name]["cpus"] <= 1, "an engine refuses more cores than it has"
    for published in ("edge", "stage", "prometheus", "grafana"):
        for port in services(THREE_TIER)[published]["ports"]:
            assert port.startswith("127.0.0.1:"), "nothing is open to others unless asked for"


def test_an_image_installs_what_its_node_needs_and_the_pins_are_there() -> None:
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=]", line)[0] for line in project["dependencies"]}
    project_extras = project["optional-dependencies"]
    lists = {
        path.stem: {
            line for line in path.read_text().split("\n") if line and not line.startswith("#")
        }
        for path in (DOCKER / "requirements").iterdir()
    }
    assert set.union(*lists.values()) | {"torch", "datasets"} == needed
    assert needed <= pinned
    more = read(STORAGE)["services"]["cloud"]["build"]["args"]["CLOUD_PACKAGES"].split()
    extras = [line for name in ("postgres", "s3") for line in project_extras[name]]
    assert more == [re.split(r"[<>=]", line)[0] for line in extras]
    storage = {"alembic", "fsspec", "sqlalchemy"}
    assert lists["cloud"] - storage <= lists["device"] | lists["edge"]


def test_every_variable_is_explained() -> None:
    explained = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
    for file in FILES:
        for found in VARIABLE.finditer(file.read_text(encoding="utf-8")):
            assert f"`{found[1]}`" in explained, found[1]


@pytest.mark.parametrize("command", [GO_ON, ISSUE, SUBMIT], ids=["go on", "issue", "submit"])
def test_the_guide_has_the_commands_that_are_run_here(command: str) -> None:
    guide = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8").replace("\\\n", " ")
    assert command in " ".join(guide.split())


def test_prometheus_scrapes_the_same_with_and_without_tls() -> None:
    plain, tls = (
        yaml.safe_load((DOCKER / "prometheus" / name).read_text())
        for name in ("prometheus.yml", "prometheus.tls.yml")
    )
    named, listed = tls["scrape_configs"][::2], tls["scrape_configs"][1::2]
    for job in tls["scrape_configs"]:
        assert job.pop("scheme") == "https"
    for job, files in zip(named, listed, strict=True):
        names = job["dns_sd_configs"][0]["names"]
        assert job.pop("tls_config") == {"ca_file": "/trust/ca.pem", "server_name": names[0]}
        # A name for all would hold for a host in a file, too, whose certificate has its own.
        assert files.pop("tls_config") == {"ca_file": "/trust/ca.pem"}
        (relabel,) = files.pop("relabel_configs")
        assert relabel == {"target_label": "job", "replacement": job["job_name"]}
        assert files.pop("job_name") == f"{job['job_name']}-files"
        job |= files
    tls["scrape_configs"] = named
    assert tls == plain


@pytest.mark.process
@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not there")
@pytest.mark.parametrize("overlay", [None, *OVERLAYS, SERVICE], ids=lambda path: path and path.stem)
def test_docker_compose_takes_the_files(overlay: Path | None) -> None:
    more = [] if overlay is None else ["-f", str(overlay)]
    done = subprocess.run(
        ["docker-compose", "-f", str(COMPOSE), *more, "config", "-q"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.process
@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not there")
@pytest.mark.parametrize("overlays", [(), OVERLAYS[:1]], ids=["TLS", "insecure"])
def test_every_node_logs_as_it_is_told(overlays: tuple[Path, ...]) -> None:
    files = [part for file in (COMPOSE, *overlays) for part in ("-f", str(file))]
    done = subprocess.run(
        ["docker-compose", *files, "config"],
        env={**os.environ, "SFL_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
        check=True,
    )
    told = yaml.safe_load(done.stdout)["services"]
    for name in NODE_SERVICES:
        environment = {"SFL_LOG_FORMAT": "json"}
        if overlays and name in ("cloud", "edge"):
            environment["SFL_HEALTH"] = "http://localhost:9400/metrics"
        assert told[name]["environment"] == environment


# -- the health check ------------------------------------------------------------------------------


def health(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, DOCKER / "health.py"],
        env={"SFL_HEALTH": url},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.process
def test_a_node_that_answers_is_healthy_and_another_is_not() -> None:
    settings = MetricsSettings(port=0)
    with serve_as_set(settings, NodeCollector(NodeStats("pi", "device"))) as server:
        url = f"http://127.0.0.1:{server.port}/metrics"
        done = health(url)
        assert (done.returncode, done.stderr) == (0, "")
    done = health(url)
    assert done.returncode == 1
    assert url in done.stderr
    assert "Traceback" not in done.stderr
    # Over TLS without the CA in /certs: said, not broken off.
    done = health("https://127.0.0.1:1/metrics")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


# -- images without secrets ------------------------------------------------------------------------


def private_keys(saved: IO[bytes]) -> tuple[int, list[str]]:
    """How many files the layers of saved images hold, and those with a private key in them."""
    count, found = 0, []
    with tarfile.open(fileobj=saved, mode="r|") as whole:
        for layer in whole:
            content = whole.extractfile(layer) if layer.isfile() else None
            if content is None:
                continue
            with (
                contextlib.suppress(tarfile.ReadError),  # a manifest is no layer
                tarfile.open(fileobj=content, mode="r|*") as files,
            ):
                for file in files:
                    count += 1
                    if file.isfile() and file.size < 1 << 20:  # a key is short
                        inside = files.extractfile(file)
                        assert inside is not None
                        if file.name.endswith(".key") or PEM.search(inside.read()):
                            found.append(file.name)
    return count, found


def packed(files: dict[str, bytes], mode: Any = "w") -> io.BytesIO:
    """A tar of these files."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    made.seek(0)
    return made


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_key_in_a_layer_is_found(mode: str) -> None:
    authority = Authority.create()
    issued = authority.issue(Identity("device", "d"))
    harmless = {"usr/lib/ssh.py": b'"-----BEGIN PRIVATE KEY-----"\n' * 9, "a.pem": issued.cert_pem}
    layer = packed(harmless, mode).getvalue()
    saved = {"manifest.json": b"{}", "1/layer.tar": layer}
    assert private_keys(packed(saved)) == (2, [])
    layer = packed({"srv/d": b"#\n" + issued.key_pem, "e.key": b"x"}, mode).getvalue()
    assert private_keys(packed({**saved, "2/layer.tar": layer})) == (4, ["srv/d", "e.key"])


@pytest.mark.process
def test_what_a_ca_makes_in_a_checkout_is_not_taken_along(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")

    def seen() -> str:
        command = ["git", "-C", str(tmp_path), "status", "--porcelain", "--untracked-files=all"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    authority, _ = Authority.init(tmp_path / "own")
    issued = authority.issue(Identity("device", "d"))
    authority.write(issued, tmp_path / "own" / "nodes" / "d")
    assert seen() == ""
    authority.write(issued, tmp_path / "elsewhere")
    assert "elsewhere/d.key" in seen()
    shutil.copy(ROOT / ".gitignore", tmp_path)
    assert seen() == "?? .gitignore\n"


# -- a real engine ---------------------------------------------------------------------------------

ASKED = "SFL_TEST_COMPOSE"
PROJECT = "sfl-test"
PATIENCE = 900.0
"""Seconds for a step of a test or a few rounds, on a machine that has much else to do."""


def engine() -> str | None:
    """Why nothing can be run here, if so."""
    if os.environ.get(ASKED) != "1":
        return f"builds and runs images: make test-compose (sets {ASKED}=1)"
    if shutil.which("docker") is None:
        return "docker is not installed"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return "no docker engine answers"
    if not any(works(command) for command in COMMANDS):
        return "neither `docker compose` nor `docker-compose` is installed"
    return None


COMMANDS = (["docker", "compose"], ["docker-compose"])


def works(command: list[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    asked = subprocess.run([*command, "version"], capture_output=True, check=False)
    return asked.returncode == 0


REASON = engine()
needs_engine = pytest.mark.skipif(REASON is not None, reason=REASON or "")


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done.stdout.strip()


class Fleet:
    """A compose project of its own, beside the user's."""

    def __init__(self, *overlays: Path, **variables: str) -> None:
        command = next(command for command in COMMANDS if works(command))
        files = [part for file in (COMPOSE, *overlays) for part in ("-f", str(file))]
        self.command = [*command, *files, "-p", PROJECT]
        # Ports that are free, so that a fleet of the user's is not in the way.
        named = ("EDGE", "STAGE", "PROMETHEUS", "SERVICE")
        free = {f"SFL_{name}_PORT": "127.0.0.1:" for name in named}
        self.environment = {**os.environ, **free, **variables}

    def __call__(self, *arguments: str) -> str:
        """A compose command; what it printed."""
        done = subprocess.run(
            [*self.command, *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def containers(self, service: str) -> list[str]:
        label = f"label=com.docker.compose.service={service}"
        mine = f"label=com.docker.compose.project={PROJECT}"
        return docker("ps", "-aq", "--filter", mine, "--filter", label).split()

    def container(self, service: str) -> dict[str, Any]:
        (found,) = self.containers(service)
        return self.state(found)

    def state(self, container: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(docker("inspect", container))[0]
        return values

    def logs(self) -> str:
        """The end of everybody's log."""
        return self("logs", "--no-color", "--tail=15")

    def prometheus(self, path: str, **query: str) -> Any:
        address = self("port", "prometheus", "9090")
        url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def series(self, expr: str) -> list[dict[str, str]]:
        """The labels of each series of an expression; none while Prometheus is not there yet."""
        try:
            found = self.prometheus("query", query=expr)["result"]
        except OSError:
            return []
        return [series["metric"] for series in found]

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """What a condition is at last; waits for PATIENCE, again if a round has come meanwhile."""
        reached = -1
        while (now := self.round()) > reached:
            reached, end = now, time.monotonic() + PATIENCE
            while time.monotonic() < end:
                if result := condition():
                    return result
                time.sleep(1.0)
        raise AssertionError(f"never came: {what}\n{self.logs()}")

    def scraped(self) -> bool:
        return {labels["job"] for labels in self.series("up == 1")} == {"sfl-cloud", "sfl-edge"}

    def round(self) -> int:
        """The latest that its cloud has written of; 0 while there is none."""
        code = (
            "import json, pathlib;"
            "found = pathlib.Path('/runs').glob('*/status.json');"
            "print(max((json.loads(path.read_text())['round'] for path in found), default=0))"
        )
        clouds = self.containers("cloud")
        asked = [docker("exec", cloud, "python3", "-c", code, check=False) for cloud in clouds]
        return max((int(answer) for answer in asked if answer.isdecimal()), default=0)

    def finished(self, *services: str) -> bool:
        states = [self.state(c)["State"]["Status"] for s in services for c in self.containers(s)]
        return set(states) == {"exited"}

    def down(self) -> None:
        self("down", "--volumes", "--remove-orphans", "--timeout=20")


def kill(container: str) -> None:
    """End a container's process with SIGKILL from outside, as the kernel does when memory is out.

    `docker kill` will not do: an engine does not restart what its user has killed.
    """
    pid = json.loads(docker("inspect", container))[0]["State"]["Pid"]
    code = f"import os; os.kill({pid}, 9)"
    docker(
        *("run", "--rm", "--pid=host", "--user=0", "--network=none"),
        *("--entrypoint=python3", "sfl-cloud", "-c", code),
    )


def runs(fleet: Fleet, to: Path) -> Path:
    """The one run that the cloud's container left, copied out."""
    (cloud,) = fleet.containers("cloud")
    docker("cp", f"{cloud}:/runs", str(to))
    (run,) = (to / "runs").iterdir()
    return run


@pytest.fixture(scope="module")
def images() -> None:
    Fleet()("build")


def own_config(folder: Path, rounds: int) -> str:
    """A user's own configuration: the shipped one with another number of rounds."""
    own = folder / "config"
    shutil.copytree(CONFIG, own)
    run = (own / "run.toml").read_text()
    assert "rounds = 10" in run
    (own / "run.toml").write_text(run.replace("rounds = 10", f"rounds = {rounds}"))
    own.chmod(0o755)
    return str(own)


@pytest.fixture
def fleet(images: None, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(SFL_CONFIG=own_config(tmp_path, 6))
    fleet.down()
    yield fleet
    fleet.down()
    left = docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}")
    assert left == ""
    assert docker("volume", "ls", "-q", "--filter", f"name={PROJECT}_") == ""


@pytest.mark.process
@needs_engine
def test_a_run_in_containers_goes_on_when_a_device_is_killed(fleet: Fleet, tmp_path: Path) -> None:
    fleet("up", "-d", "--scale", "device=2")
    everybody = {"device-pi", "device-small", "device-0", "device-1"}
    fleet.until(fleet.scraped, "both targets in Prometheus")
    targets = fleet.prometheus("targets")["activeTargets"]
    assert {target["scrapeUrl"].split(":")[0] for target in targets} == {"https"}

    def seen(expr: str) -> set[str]:
        return {labels["device"] for labels in fleet.series(expr)}

    fleet.until(lambda: seen("sfl_steps_total > 0") == everybody, "steps of all devices")
    for service in NODE_SERVICES:
        for container in fleet.containers(service):
            values = fleet.state(container)
            assert values["HostConfig"]["ReadonlyRootfs"] is True
            assert docker("exec", container, "id", "-u") == "10001"
            assert values["Config"]["StopSignal"] == "SIGTERM"
            fleet.until(
                lambda c=container: fleet.state(c)["State"]["Health"]["Status"] == "healthy",
                f"health of {service}",
            )
    # A node has its own key, and no other's; the CA's stays where it was made.
    for service, keys in (("edge", ["edge.key"]), ("device-pi", ["device-pi.key"])):
        code = "import pathlib; print(*sorted(p.name for p in pathlib.Path('/').glob('c*/*.key')))"
        found = docker("exec", fleet.containers(service)[0], "python3", "-c", code)
        assert found.split() == keys

    # Not before it has told of a round: what it scored at first is compared with the last.
    pi = 'sfl_round{device="device-pi"} > 1'
    fleet.until(lambda: seen(pi) == {"device-pi"}, "the second round")
    (victim,) = fleet.containers("device-pi")
    kill(victim)
    fleet.until(lambda: fleet.state(victim)["RestartCount"] == 1, "the device's restart")
    fleet.until(lambda: fleet.finished(*NODE_SERVICES), "the end of the run")
    for service in NODE_SERVICES:
        for container in fleet.containers(service):
            state = fleet.state(container)["State"]
            assert state["ExitCode"] == 0, f"{service}\n{fleet.logs()}"
            assert state["OOMKilled"] is False

    run = runs(fleet, tmp_path)
    summary = RunSummary.read(run / "summary.json")
    assert summary.failure is None
    assert summary.rounds == summary.rounds_planned
    assert not any(f.node in ("device-pi", "device-small") for f in summary.faults)
    parts = {device.name: device.rounds for device in summary.devices}
    assert everybody <= set(parts)
    assert parts["device-pi"] == summary.rounds, "it came back into its round"
    assert "device-pi" in summary.eval_devices, "it was there at the end"
    assert parts["device-small"] == summary.rounds
    assert summary.eval_loss_after is not None
    assert summary.eval_loss_before is not None
    assert summary.eval_loss_after < summary.eval_loss_before
    adapter = safetensors.numpy.load_file(run / "adapter" / "adapter_model.safetensors")
    assert adapter
    for name, values in adapter.items():
        assert np.isfinite(values).all(), name
        assert np.any(values), name
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"


# -- as if nothing had happened --------------------------------------------------------------------

PAIR = ("device-pi", "device-small")


@contextlib.contextmanager
def pair_of_devices(folder: Path, *overlays: Path) -> Iterator[Fleet]:
    """A fleet whose short run has two devices, both from its first round to its last."""
    config = Path(own_config(folder, 4))
    run = (config / "run.toml").read_text()
    assert "local_steps = 20" in run
    shorter = run.replace("local_steps = 20", "local_steps = 5")
    (config / "run.toml").write_text(shorter.partition("# One for each replica")[0])
    fleet = Fleet(*overlays, SFL_CONFIG=str(config))
    fleet.down()
    try:
        yield fleet
    finally:
        fleet.down()


def kill_and_see_it_back(fleet: Fleet, service: str) -> None:
    (victim,) = fleet.containers(service)
    kill(victim)
    fleet.until(lambda: fleet.state(victim)["RestartCount"] == 1, f"the restart of {service}")


def start_pair(fleet: Fleet, until_round: int = 0) -> None:
    fleet("up", "-d", "--scale", "device=0")
    fleet.until(lambda: fleet.round() >= until_round, f"round {until_round}")


def ended_well(fleet: Fleet, to: Path) -> Path:
    """Wait for the run's end; its folder."""
    nodes = ("cloud", "edge", *(("stage",) if fleet.containers("stage") else ()), *PAIR)
    fleet.until(lambda: fleet.finished(*nodes), "the end of the run")
    for service in nodes:
        assert fleet.container(service)["State"]["ExitCode"] == 0, f"{service}\n{fleet.logs()}"
    return runs(fleet, to)


def require_images(fleet: Fleet, *names: str) -> None:
    """Skips where the engine has no image of a service, and gets none."""
    told = yaml.safe_load(fleet("config"))["services"]
    for image in (told[name]["image"] for name in names):
        asked = (["docker", *command, image] for command in (("image", "inspect"), ("pull",)))
        if all(subprocess.run(command, capture_output=True).returncode for command in asked):
            pytest.skip(f"the engine has no image {image}")


def tensors(run: Path, adapter: str = "adapter") -> bytes:
    return (run / adapter / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(images: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two devices with which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pair_of_devices(folder) as fleet:
        start_pair(fleet)
        return ended_well(fleet, folder)


def assert_as_if_nothing_had_happened(run: Path, undisturbed: Path) -> None:
    summary = RunSummary.read(run / "summary.json")
    expected = RunSummary.read(undisturbed / "summary.json")
    for found in (summary, expected):
        assert (found.failure, found.rounds) == (None, found.rounds_planned)
        assert found.faults == expected.faults == ()
        assert {device.name: device.rounds for device in found.devices} == dict.fromkeys(
            PAIR, found.rounds
        )
    for adapter in ("adapter", "adapter_best"):
        assert tensors(run, adapter) == tensors(undisturbed, adapter)
    assert set(summary.eval_devices) == set(expected.eval_devices) == set(PAIR)
    for score in ("eval_loss_before", "eval_loss_after"):
        assert getattr(summary, score) == getattr(expected, score)


@pytest.mark.process
@needs_engine
def test_a_run_in_containers_goes_on_when_its_cloud_is_killed(
    undisturbed: Path, tmp_path: Path
) -> None:
    """And its edge: that one by the kernel, so that the engine starts it again."""
    with pair_of_devices(tmp_path) as fleet:
        start_pair(fleet, until_round=2)
        fleet("kill", "cloud")
        fleet("start", "cloud")  # an engine leaves alone what was killed through it
        fleet.until(lambda: fleet.round() >= 3, "the third round")
        kill_and_see_it_back(fleet, "edge")
        run = ended_well(fleet, tmp_path)
    assert_as_if_nothing_had_happened(run, undisturbed)


@pytest.mark.process
@needs_engine
def test_a_device_that_is_killed_in_its_container_changes_no_bit(
    undisturbed: Path, tmp_path: Path
) -> None:
    with pair_of_devices(tmp_path) as fleet:
        start_pair(fleet, until_round=2)
        kill_and_see_it_back(fleet, "device-pi")
        run = ended_well(fleet, tmp_path)
    assert_as_if_nothing_had_happened(run, undisturbed)


@pytest.mark.process
@needs_engine
def test_a_stage_and_its_edge_that_are_killed_in_containers_change_no_bit(
    images: None, tmp_path: Path
) -> None:
    """Beside a run of the same three tiers with which nothing happens."""
    folder = tmp_path / "undisturbed"
    with pair_of_devices(folder, THREE_TIER) as fleet:
        start_pair(fleet)
        stage = 'up{job="sfl-edge", instance="stage:9400"} == 1'
        fleet.until(lambda: fleet.series(stage), "the stage in Prometheus")
        undisturbed = ended_well(fleet, folder)
    assert RunSummary.read(undisturbed / "summary.json").bytes_between_servers
    with pair_of_devices(tmp_path, THREE_TIER) as fleet:
        start_pair(fleet, until_round=2)
        kill_and_see_it_back(fleet, "stage")
        fleet.until(lambda: fleet.round() >= 3, "the third round")
        kill_and_see_it_back(fleet, "edge")
        run = ended_well(fleet, tmp_path)
    assert_as_if_nothing_had_happened(run, undisturbed)


@pytest.mark.process
@needs_engine
def test_a_run_in_a_database_and_a_bucket_outlives_its_clouds_volume(
    undisturbed: Path, tmp_path: Path
) -> None:
    with pair_of_devices(tmp_path, STORAGE) as fleet:
        require_images(fleet, "database", "artifacts")
        fleet("build", "cloud")
        start_pair(fleet, until_round=2)
        run_id = fleet("exec", "-T", "cloud", "ls", "/runs").split()[0]
        fleet("kill", "cloud")
        fleet("rm", "--force", "cloud")
        docker("volume", "rm", f"{PROJECT}_runs")
        fleet(*GO_ON.replace("RUN", run_id).split())
        run = ended_well(fleet, tmp_path)
    assert run.name == run_id
    assert_as_if_nothing_had_happened(run, undisturbed)


@pytest.mark.process
@needs_engine
def test_a_service_in_containers_computes_one_run_after_the_other(
    undisturbed: Path, tmp_path: Path
) -> None:
    """One is submitted in the cloud's container, one from here; the service dies in between."""
    with pair_of_devices(tmp_path, SERVICE) as fleet:
        start_pair(fleet)
        first = fleet(*SUBMIT.replace("exec", "exec -T").split()).split()[0]
        issue = [*fleet.command, "run", "--rm", "-T", "certificates", ISSUE]
        issued = subprocess.run(issue, capture_output=True, env=fleet.environment, check=True)
        with tarfile.open(fileobj=io.BytesIO(issued.stdout)) as keys:
            keys.extractall(tmp_path, filter="data")

        def sfl(*command: str) -> str:
            given = ("--service", fleet("port", "cloud", "7000"), "--certs", tmp_path / "anna")
            done = subprocess.run(
                [sys.executable, "-m", "sfl.cli", *command, *given],
                capture_output=True, text=True, check=False, cwd=ROOT,
            )  # fmt: skip
            assert done.returncode == 0, f"{done.stderr}\n{fleet.logs()}"
            return done.stdout

        second = sfl("submit", f"{fleet.environment['SFL_CONFIG']}/run.toml").split()[0]
        fleet.until(lambda: fleet.round() >= 2, "the second round")
        (cloud,) = fleet.containers("cloud")
        kill(cloud)
        fleet.until(lambda: fleet.state(cloud)["RestartCount"] == 1, "the service's restart")
        fleet.until(lambda: fleet.state(cloud)["State"]["Health"]["Status"] == "healthy", "health")
        for run_id in (first, second):
            sfl("watch", run_id, "--format", "json", "--timeout", "60")
            assert "round 1 of 4" in sfl("logs", run_id, "cloud")
            assert sfl("logs", run_id, "device-pi")
        rows = json.loads(sfl("list", "--format", "json"))
        states = {row["run"]: row["state"] for row in rows}
        assert states == dict.fromkeys((first, second), "finished")
        for service in ("cloud", "edge", *PAIR):
            state = fleet.container(service)["State"]
            assert (state["Status"], state["OOMKilled"]) == ("running", False)
        docker("cp", f"{cloud}:/runs", str(tmp_path))
    for run_id in (first, second):
        assert_as_if_nothing_had_happened(tmp_path / "runs" / run_id, undisturbed)


@pytest.mark.process
@needs_engine
def test_no_image_holds_a_private_key(images: None) -> None:
    names = {
        service["image"] for service in read(COMPOSE)["services"].values() if "build" in service
    }
    with subprocess.Popen(["docker", "save", *sorted(names)], stdout=subprocess.PIPE) as saving:
        assert saving.stdout is not None
        count, found = private_keys(saving.stdout)
    assert saving.returncode == 0
    assert count > 10_000, "every layer was read"
    assert found == []


@pytest.mark.process
@needs_engine
def test_without_tls_every_node_is_scraped_too(images: None, tmp_path: Path) -> None:
    """One short round, with the user's own configuration."""
    fleet = Fleet(OVERLAYS[0], SFL_CONFIG=own_config(tmp_path, 2))
    fleet.down()
    try:
        fleet("up", "-d")
        fleet.until(fleet.scraped, "both targets in Prometheus")
        targets = fleet.prometheus("targets")["activeTargets"]
        assert {target["scrapeUrl"].split(":")[0] for target in targets} == {"http"}
        fleet.until(lambda: fleet.finished(*NODE_SERVICES), "the end of the run")
        summary = RunSummary.read(runs(fleet, tmp_path) / "summary.json")
        assert summary.failure is None
        trained = {device.name for device in summary.devices if device.rounds}
        assert trained == {"device-pi", "device-small", "device-0"}
    finally:
        fleet.down()
