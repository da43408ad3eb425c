"""Who is believed, and what a device consents to: edges that are named, devices that sign."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tomli_w

from sfl.certificates.identity import NAME, identity_in
from sfl.certificates.own import OwnCertificate
from sfl.config import load_run
from sfl.errors import ConfigError, ProtocolError
from sfl.launch.run import check_names
from sfl.runs import find_run
from sfl.transport.credentials import open_channel
from sfl.transport.spool import Spool
from sfl.transport.wire import CLOUD_SESSION, WIRE_VERSION
from sfl.v1 import cloud_pb2, tensor_pb2
from tests.federation import ROOT, SFL, sfl, write_config
from tests.test_failures import PATIENCE, fleet, until
from tests.test_tls import Guarded, ending

# -- names -----------------------------------------------------------------------------------------


def run_file(folder: Path, **values: Any) -> Path:
    path = folder / "run.toml"
    whole = {"model": {"path": "m"}, "devices": [{"name": "d0"}], **values}
    path.write_text(tomli_w.dumps(whole))
    return path


@pytest.mark.parametrize("name", ["..", ".", "../x", "-x", "a/b", "a\nb", "x" * 101, "ä", "a\0"])
def test_a_name_that_becomes_a_path_leads_nowhere(tmp_path: Path, name: str) -> None:
    for values, field in (
        ({"run": {"id": name}}, "run.id"),
        ({"devices": [{"name": name}]}, "devices.0.name"),
        ({"edge": {"name": name}}, "edge.name"),
        ({"run": {"edges": ["edge", name]}}, "run.edges.1"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_run(run_file(tmp_path, **values))
        assert caught.value.field == field
    assert NAME.fullmatch(name) is None
    assert identity_in([f"sfl://device/{name}"]) is None
    header = tensor_pb2.AdapterHeader(round=1, device=name, side="device")
    with pytest.raises(ProtocolError, match="no part 'device' of device"):
        Spool(tmp_path / "spool").open(header)
    assert not (tmp_path / "spool").exists()


def test_a_run_is_found_in_its_folder_only(tmp_path: Path) -> None:
    for name in ("runs/one", "else"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.toml").touch()
    runs = tmp_path / "runs"
    assert find_run("on", runs) == runs / "one"
    for name in ("../else", str(tmp_path / "else"), "o[n]e", "*"):
        with pytest.raises(ConfigError, match="no such run"):
            find_run(name, runs)


def test_the_files_of_two_nodes_never_meet(tmp_path: Path) -> None:
    for values, field in (
        ({"devices": [{"name": "edge"}]}, "devices.edge.name"),
        ({"devices": [{"name": "cloud"}]}, "devices.cloud.name"),
        ({"edge": {"name": "cloud"}}, "edge.name"),
        ({"run": {"edges": ["north", "south"]}}, "run.edges"),
        ({"run": {"edges": ["north"]}, "edge": {"name": "south"}}, "run.edges"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_names(load_run(run_file(tmp_path, **values)))
        assert caught.value.field == field
    with pytest.raises(ConfigError, match="'a' stands twice"):
        load_run(run_file(tmp_path, run={"edges": ["a", "b", "a"]}))


def test_the_usual_single_edge_needs_no_line(tmp_path: Path) -> None:
    assert load_run(run_file(tmp_path)).edges == ("edge",)
    assert load_run(run_file(tmp_path, edge={"name": "attic"})).edges == ("attic",)
    both = load_run(run_file(tmp_path, run={"edges": ["a", "b"]}, edge={"name": "b"}))
    assert both.edges == ("a", "b")
    check_names(both)
    assert load_run(ROOT / "docker/config/run.toml").edges == ("edge",)


# -- edges, over real TLS --------------------------------------------------------------------------


class Trusting(Guarded):
    """A cloud with a certificate, and nobody else yet."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.edges = values["run"].get("edges", ["edge"])
        super().__init__(folder, values)

    def start(self, kind: str, file: Path, name: str = "") -> subprocess.Popen[bytes]:
        if kind == "edge":  # by hand, where a test wants one
            (self.folder / "edge.address").write_text("127.0.0.1:1")
            return self.cloud
        return super().start(kind, file, name)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trusting]:
    folder = tmp_path_factory.mktemp("cloud")
    values = fleet(folder, 2, run={"edges": ["edge", "north"]})
    nodes = Trusting(folder, values)
    yield nodes
    nodes.stop()


def edge_hello(name: str) -> cloud_pb2.EdgeReportMessage:
    hello = cloud_pb2.EdgeHello(edge=name, wire_version=WIRE_VERSION)
    return cloud_pb2.EdgeReportMessage(hello=hello)


def test_another_edge_of_the_same_ca_is_refused(cloud: Trusting) -> None:
    address = cloud.address("cloud")
    said = ending(CLOUD_SESSION, address, "cloud", cloud.own("edge", "edge2"), edge_hello("edge2"))
    assert "no edge 'edge2' in this run; known: edge, north; name it in run.edges" in said
    assert "edge 'edge2' refused" in cloud.log("cloud")
    for name in ("edge", "north"):
        call, channel = dialled(address, cloud.own("edge", name), edge_hello(name))
        assert next(call).WhichOneof("body") == "settings"
        call.cancel()
        channel.close()
    file = cloud.folder / "edge2.toml"
    file.write_text(f'[edge]\nname = "edge2"\ncloud = "{address}"\n')
    certs = cloud.folder / "more" / "edge-edge2"
    done = sfl("edge", file, "--certs", certs, timeout=PATIENCE)
    assert done.returncode == 1
    assert "run.edges" in done.stderr and "Traceback" not in done.stderr


def dialled(
    address: str, own: OwnCertificate | None, *messages: cloud_pb2.EdgeReportMessage
) -> tuple[Any, grpc.Channel]:
    channel = open_channel("edge", address, False, own, "cloud")
    return CLOUD_SESSION.stub(channel)(iter(messages), timeout=60), channel


def test_edges_are_named_without_tls_too(tmp_path: Path) -> None:
    file = write_config(tmp_path, fleet(tmp_path, 2))
    where = tmp_path / "address"
    command = [*SFL, "cloud", str(file), "--address-file", str(where)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        until(where.exists, "the cloud's address")
        said = ending(CLOUD_SESSION, where.read_text(), "cloud", None, edge_hello("other"))
        assert "no edge 'other' in this run; known: edge" in said
    finally:
        process.kill()
        process.wait()
