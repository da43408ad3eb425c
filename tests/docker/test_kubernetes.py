"""The manifests for Kubernetes: what they render to, its schema, and that what they name exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from sqlalchemy import make_url

from sfl.config import load_device, load_edge, load_run
from sfl.config.load import load_stage
from tests.house.options import options_of
from tests.house.paths import ROOT

pytestmark = pytest.mark.process  # kubectl renders

FOLDER = ROOT / "docker" / "kubernetes"
COMPONENTS = tuple(
    re.findall(
        r"^# - components/(\S+)", (FOLDER / "kustomization.yaml").read_text("utf-8"), re.MULTILINE
    )
)
"""As the file to apply lists them: a component may change what one before it has brought."""
VERSIONS = ("1.32", "1.34", "1.37")
"""Of Kubernetes: `podReplacementPolicy` and `ReadWriteOncePod` are there in all of them."""
OURS = ("sfl-cloud", "sfl-edge", "sfl-device")
NAME = "app.kubernetes.io/component"
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
LOADERS = {"cloud": load_run, "edge": load_edge, "stage": load_stage, "device": load_device}
MADE_BY_HAND = {
    "cloud-certificates",
    "edge-certificates",
    "stage-certificates",
    "device-certificates",
    "database-certificates",
    "storage",
}
"""Secrets: docs/kubernetes.md says how."""

Manifest = dict[str, Any]


def kubectl() -> str:
    beside = Path(sys.executable).with_name("kubectl")
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if found is None:
        pytest.skip("there is no kubectl")
    return found


def render(folder: Path, components: tuple[str, ...], more: str = "") -> list[Manifest]:
    """What `kubectl apply -k` would send with these components, and with `more` at the end of the
    file to apply; `folder` is empty."""
    place = folder / "kubernetes"
    shutil.copytree(FOLDER, place)
    text = (place / "kustomization.yaml").read_text(encoding="utf-8")
    chosen = "".join(f"\n  - components/{name}" for name in components) or " []"
    assert "components: []" in text
    (place / "kustomization.yaml").write_text(
        text.replace("components: []", f"components:{chosen}") + more
    )
    done = subprocess.run(
        [kubectl(), "kustomize", str(place)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    return render(tmp_path_factory.mktemp("base"), ())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    return render(tmp_path_factory.mktemp("whole"), COMPONENTS)


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [one for one in manifests if one["kind"] in kinds]


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Templates of pods, by the name of what makes them."""
    makers = of_kind(manifests, "Job", "StatefulSet")
    return {one["metadata"]["name"]: one["spec"]["template"] for one in makers}


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def node(manifests: list[Manifest], name: str) -> tuple[list[str], Any, Manifest]:
    """A node's options, the settings that its first pod has, and its container."""
    (container,) = pods(manifests)[name]["spec"]["containers"]
    kind, path, *options = container["args"]
    options = [option.replace("$(POD_NAME)", f"{name}-0") for option in options]
    overrides = [option.removeprefix("--set=") for option in options if "--set=" in option]
    volumes = {own["name"]: own for own in pods(manifests)[name]["spec"]["volumes"]}
    (mount,) = [own for own in container["volumeMounts"] if own["mountPath"] == "/etc/sfl"]
    map_name = volumes[mount["name"]]["configMap"]["name"]
    (settings,) = [
        one for one in of_kind(manifests, "ConfigMap") if one["metadata"]["name"] == map_name
    ]
    file = Path(path).relative_to("/etc/sfl").name
    (local,) = [own for own in FOLDER.rglob(file) if own.parent.name == "config"]
    assert settings["data"][file] == local.read_text(encoding="utf-8")
    return options, LOADERS[kind](local, overrides), container


# -- the schema ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_of_kubernetes_own_schema(whole: list[Manifest], version: str) -> None:
    """Strictly: a key that the schema does not have is refused."""
    for manifest in whole:
        if manifest["kind"] != "PodMonitor":  # the Prometheus operator's own
            found = kubernetes_validate.validate(manifest, version, strict=True)
            assert found.startswith(version)


def test_a_key_that_no_schema_has_is_refused(base: list[Manifest]) -> None:
    (job,) = of_kind(base, "Job")
    wrong = {**job, "spec": {**job["spec"], "backofLimit": 3}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_each_component_renders_by_itself(tmp_path: Path) -> None:
    for name in COMPONENTS:
        assert render(tmp_path / name, (name,))


def test_the_file_to_apply_lists_every_component_and_begins_without_any() -> None:
    text = (FOLDER / "kustomization.yaml").read_text(encoding="utf-8")
    assert {path.name for path in (FOLDER / "components").iterdir()} == set(COMPONENTS)
    assert yaml.safe_load(text)["components"] == []
    for name in COMPONENTS:
        assert f"`{name}`" in PAGE


# -- what they name --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cloud", "edge", "stage", "device"])
def test_a_nodes_command_names_options_and_settings_that_exist(
    whole: list[Manifest], name: str
) -> None:
    options, settings, container = node(whole, name)
    assert {option.partition("=")[0] for option in options} <= options_of(name)
    assert "--certs=/certs" in options
    assert ("--supervised" in options) is (name != "cloud")
    if name == "device":
        assert settings.name == "device-0"
        return
    metrics = settings.cloud.metrics if name == "cloud" else settings.metrics
    assert (metrics.enabled, metrics.host, metrics.port) == (True, "0.0.0.0", 9400)
    own = name if name == "cloud" else f"{name}-0"
    assert str(metrics.cert) == f"/certs/{own}.pem"
    assert str(metrics.key) == f"/certs/{own}.key"
    assert container["startupProbe"]["exec"]["command"] == ["python3", "/opt/health.py"]
    assert "COPY docker/health.py /opt/health.py" in DOCKERFILE


def test_the_runs_edges_are_the_pods_of_the_set(base: list[Manifest]) -> None:
    (edges,) = of_kind(base, "StatefulSet")
    named = tuple(f"edge-{number}" for number in range(edges["spec"]["replicas"]))
    assert node(base, "cloud")[1].run.edges == named
    edge = node(base, "edge")[1]
    assert edge.name == named[0]
    assert edge.advertise == f"{named[0]}.edge:7001"


def test_a_stage_lets_in_the_runs_edges_alone(whole: list[Manifest]) -> None:
    assert node(whole, "stage")[1].before == node(whole, "cloud")[1].run.edges


def test_edges_share_what_they_remember_and_a_run_places_devices_as_they_dial(
    base: list[Manifest],
) -> None:
    """A balancer has chosen; in a volume that all edges write a device finds its session again."""
    edge, pod = node(base, "edge")[1], pods(base)["edge"]
    place = edge.snapshots.removeprefix("file://")
    mounts = {own["mountPath"]: own["name"] for own in pod["spec"]["containers"][0]["volumeMounts"]}
    (volume,) = [own for own in pod["spec"]["volumes"] if own["name"] == mounts[place]]
    name = volume["persistentVolumeClaim"]["claimName"]
    (claim,) = [
        one for one in of_kind(base, "PersistentVolumeClaim") if one["metadata"]["name"] == name
    ]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert node(base, "cloud")[1].run.placement == "configured"


def test_the_devices_of_the_cluster_are_devices_of_the_run(whole: list[Manifest]) -> None:
    (devices,) = [
        one for one in of_kind(whole, "StatefulSet") if one["metadata"]["name"] == "device"
    ]
    names = {f"device-{number}" for number in range(devices["spec"]["replicas"])}
    assert {device.name for device in node(whole, "cloud")[1].devices} == names


def test_addresses_are_services_whose_pods_listen_there(whole: list[Manifest]) -> None:
    services = {one["metadata"]["name"]: one["spec"] for one in of_kind(whole, "Service")}
    by_component = {pod["metadata"]["labels"][NAME]: pod for pod in pods(whole).values()}
    cloud, edge, stage, device = (node(whole, own)[1] for own in LOADERS)
    dialled = {edge.cloud: cloud.cloud.listen, edge.next: stage.listen, device.edge: edge.listen}
    for address, listens in dialled.items():
        host, port = address.split(":")
        assert listens == f"0.0.0.0:{port}"
        assert int(port) in {own["port"] for own in services[host]["ports"]}
    for spec in services.values():
        (container,) = by_component[spec["selector"][NAME]]["spec"]["containers"]
        listening = {own["containerPort"] for own in container.get("ports", ())}
        assert {own["port"] for own in spec.get("ports", ())} <= listening
    for made in of_kind(whole, "StatefulSet"):
        assert services[made["spec"]["serviceName"]]["clusterIP"] == "None"


def test_a_run_has_three_tiers_and_two_stores_with_their_components(whole: list[Manifest]) -> None:
    cloud = node(whole, "cloud")[1]
    assert (cloud.run.topology, cloud.stages.cuts) == ("three_tier", (3,))
    assert cloud.cloud.journal.startswith("postgresql+psycopg://")
    assert cloud.cloud.artifacts.startswith("s3://")
    options = make_url(cloud.cloud.journal).query
    assert options["sslmode"] == "verify-full"
    own = Path(str(options["sslrootcert"]))
    (container,) = pods(whole)["cloud"]["spec"]["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {one["name"]: one for one in pods(whole)["cloud"]["spec"]["volumes"]}
    secret = volumes[mounts[str(own.parent)]]["secret"]["secretName"]
    assert f"create secret generic {secret} --from-file={own.name}=" in PAGE
    assert node(whole, "edge")[1].next == "stage:7002"


def test_images_are_those_of_the_dockerfile(whole: list[Manifest]) -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    used = {
        own["image"].partition(":")[0] for pod in pods(whole).values() for own in containers(pod)
    }
    assert used == set(OURS)
    assert {name.removeprefix("sfl-") for name in OURS} <= targets


def test_all_that_is_mounted_is_there(whole: list[Manifest]) -> None:
    maps = {one["metadata"]["name"] for one in of_kind(whole, "ConfigMap")}
    claims = {one["metadata"]["name"] for one in of_kind(whole, "PersistentVolumeClaim")}
    secrets = set()
    made = {one["metadata"]["name"]: one["spec"] for one in of_kind(whole, "Job", "StatefulSet")}
    for name, pod in pods(whole).items():
        own_claims = {own["metadata"]["name"] for own in made[name].get("volumeClaimTemplates", ())}
        volumes = {own["name"] for own in pod["spec"]["volumes"]} | own_claims
        mounted = {own["name"] for one in containers(pod) for own in one["volumeMounts"]}
        assert mounted == volumes
        for volume in pod["spec"]["volumes"]:
            assert volume.get("configMap", {}).get("name") in {*maps, None}
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in {*claims, None}
            secrets.add(volume.get("secret", {}).get("secretName"))
        for source in pod["spec"]["containers"][0].get("envFrom", ()):
            assert source.get("configMapRef", {}).get("name") in {*maps, None}
            secrets.add(source.get("secretRef", {}).get("name"))
    assert secrets - {None} == MADE_BY_HAND
    for name in MADE_BY_HAND:
        assert f"create secret generic {name}" in PAGE


# -- what a pod may do -----------------------------------------------------------------------------


def test_every_pod_is_locked_and_bounded(whole: list[Manifest]) -> None:
    (uid,) = re.findall(r"useradd --uid (\d+)", DOCKERFILE)
    for pod in [*pods(whole).values(), *of_kind(whole, "Pod")]:
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsUser"] == int(uid)
        assert spec["securityContext"]["fsGroup"] == int(uid)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}


def test_a_node_sees_its_own_key_only(whole: list[Manifest]) -> None:
    """The Secret with all of them is mounted where they are sorted out, and nowhere else."""
    for name, pod in pods(whole).items():
        first, *others = pod["spec"]["initContainers"]
        (container,) = pod["spec"]["containers"]
        own = "cloud" if name == "cloud" else "$(POD_NAME)"
        assert first["args"] == [
            f"umask 077; cp /keys/ca.pem /keys/{own}.pem /keys/{own}.key /certs/"
        ]
        assert "keys" in {mount["name"] for mount in first["volumeMounts"]}
        for other in (*others, container):
            assert "keys" not in {mount["name"] for mount in other["volumeMounts"]}
        (keys,) = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "keys"]
        assert keys["secret"]["defaultMode"] == 0o440


def test_no_manifest_holds_a_secret(whole: list[Manifest]) -> None:
    assert not of_kind(whole, "Secret")
    for path in FOLDER.rglob("*.*"):
        text = path.read_text(encoding="utf-8")
        assert "PRIVATE KEY" not in text
        assert not re.search(r"://[^/\s]*:[^/\s$]*@", text), "a password in a URL"


def test_only_the_way_of_a_run_is_open(whole: list[Manifest]) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(whole, "NetworkPolicy")}
    assert policies["closed"]["podSelector"] == {}
    assert policies["closed"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policies["closed"]
    ways = {
        (source["podSelector"]["matchLabels"][NAME], spec["podSelector"]["matchLabels"][NAME])
        for spec in policies.values()
        for rule in spec.get("ingress", ())
        for source in rule.get("from", ())
        if "podSelector" in source
    }
    assert ways == {("edge", "cloud"), ("edge", "stage")}
    left = {
        (spec["podSelector"]["matchLabels"][NAME], target["podSelector"]["matchLabels"][NAME])
        for spec in policies.values()
        for rule in spec.get("egress", ())
        for target in rule["to"]
        if "podSelector" in target
    }
    assert left == {*ways, ("device", "edge")}


# -- a run's beginning -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "volume"),
    [("cloud", "model"), ("edge", "model"), ("stage", "model"), ("device", "data")],
)
def test_nobody_begins_before_a_volume_is_filled(
    whole: list[Manifest], tmp_path: Path, name: str, volume: str
) -> None:
    """An edge without a model fails, and with it the run; the file it waits for is written last."""
    (waits,) = [own for own in pods(whole)[name]["spec"]["initContainers"] if own["name"] == volume]
    marker = f"/{volume}/.copied"
    (script,) = waits["args"]
    own = tmp_path / "volume"
    command = [
        *waits["command"],
        script.replace(f"/{volume}", str(own)).replace("sleep 2", "exit 3"),
    ]
    (own / "half").mkdir(parents=True)
    assert subprocess.run(command, check=False).returncode == 3
    (own / ".copied").touch()
    assert subprocess.run(command, check=False).returncode == 0
    (loader,) = of_kind(whole, "Pod")
    filled = loader["spec"]["containers"][0]["volumeMounts"]
    for mount in (waits["volumeMounts"], filled):
        assert (volume, f"/{volume}") in {(one["name"], one["mountPath"]) for one in mount}
    assert marker in PAGE
    copied, marked = PAGE.index("cp MODEL/. loader:/model"), PAGE.index("touch /model/.copied")
    assert copied < marked


# -- a run's life ----------------------------------------------------------------------------------


def test_one_cloud_at_a_time_writes_a_run_and_a_users_mistake_ends_it(
    base: list[Manifest],
) -> None:
    (job,) = of_kind(base, "Job")
    (claim,) = [
        one for one in of_kind(base, "PersistentVolumeClaim") if one["metadata"]["name"] == "runs"
    ]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert job["spec"]["podReplacementPolicy"] == "Failed"
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    ends = [
        rule for rule in job["spec"]["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"
    ]
    assert [rule["onExitCodes"]["values"] for rule in ends] == [[2]]
    assert "--resume=auto" in node(base, "cloud")[0]


def test_a_run_goes_on_without_its_volume_as_the_page_says(tmp_path: Path) -> None:
    """Its name and where it is kept stand in the command, in place of the settings' file."""
    (patch,) = re.findall(r"```yaml\n(patches:.*?)```", PAGE, re.DOTALL)
    begun = pods(render(tmp_path / "before", ("storage",)))["cloud"]["spec"]["containers"][0]
    goes_on = pods(render(tmp_path / "after", ("storage",), patch))["cloud"]["spec"]["containers"][
        0
    ]
    kind, *options = goes_on["args"]
    named = dict(option.removeprefix("--").split("=", 1) for option in options)
    assert kind == "cloud" and {f"--{name}" for name in named} <= options_of("cloud")
    assert named["resume"] == "RUN"
    for kept in ("journal", "artifacts"):
        assert f"--set=cloud.{kept}={named[kept]}" in begun["args"]
    assert [own.pop("args") for own in (begun, goes_on)] and begun == goes_on


def test_the_pages_commands_exist() -> None:
    lines = PAGE.replace("\\\n", " ").splitlines()
    (bundle,) = [line.split() for line in lines if line.strip().startswith("sfl ca bundle")]
    assert {word for word in bundle if word.startswith("--")} <= options_of("ca", "bundle")
    assert bundle[bundle.index("--cloud") + 1] == "cloud"
    edges = [bundle[at + 1] for at, word in enumerate(bundle) if word == "--edge"]
    assert {edge.partition("=")[0] for edge in edges} == {"edge-0", "edge-1", "stage-0"}
    for edge in edges:
        name, _, hosts = edge.partition("=")
        wanted = {"stage"} if name == "stage-0" else {"edge", "devices"}
        assert wanted <= set(hosts.split(","))
