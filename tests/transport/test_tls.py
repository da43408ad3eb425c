"""Mutual TLS on every hop, over real processes and sockets, and everything that is refused."""

from __future__ import annotations

import base64
import json
import logging
import socket
import ssl
import stat
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from sfl.cli.ca import ca_app
from sfl.config import MetricsSettings, RunSettings, load_device, load_edge, load_run
from sfl.errors import ConfigError, ProtocolError, Refused
from sfl.metrics.prometheus import NodeCollector, serve_as_set
from sfl.metrics.snapshot import NodeKind, NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.node.certificates.authority import Authority, read_pair
from sfl.node.certificates.bundle import Wanted, issue_all
from sfl.node.certificates.identity import Identity, Role, covers, identity_in, server_name
from sfl.node.certificates.own import OwnCertificate, load_own, own_certificate, own_in, settings_in
from sfl.transport.bulk.probe import probe_edge
from sfl.transport.cloud.reporting import Reporting
from sfl.transport.dialling import wait_for_peer
from sfl.transport.frames import wire
from sfl.transport.security.credentials import open_channel
from sfl.transport.security.diagnosis import why_refused
from sfl.transport.security.doorkeeper import MAY_CALL
from sfl.transport.security.handshakes import explain
from sfl.v1 import cloud_pb2, edge_pb2, tensor_pb2
from tests.house.federation import sfl, surroundings, write_config
from tests.house.fleets import fleet
from tests.house.forks import fork
from tests.house.named import Runs
from tests.house.paths import ROOT
from tests.house.tls import (
    DAY,
    FUTURE,
    PAST,
    Guarded,
    Where,
    ending,
    give,
    read_folder,
    server,
    unchecked,
)
from tests.house.waiting import PATIENCE, until


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- the CA ----------------------------------------------------------------------------------------


@pytest.mark.process
def test_the_ca_is_made_once_and_its_keys_are_private(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    for said in ("made a CA", "unchanged"):
        done = sfl("ca", "init", "--dir", ca)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
    key = (ca / "ca.key").read_bytes()
    assert mode(ca) == 0o700
    assert mode(ca / "ca.key") == 0o600
    out = tmp_path / "pi"
    done = sfl("ca", "issue", "pi", "--role", "device", "--dir", ca, "--out", out)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["ca.pem", "pi.key", "pi.pem"]
    assert mode(out) == 0o700
    assert mode(out / "pi.key") == 0o600
    own = load_own("device.tls", settings_in(out, "pi"), "device", "pi")
    assert own.identity == Identity("device", "pi")
    assert not list(tmp_path.rglob("*.tmp"))
    shown = sfl("ca", "show", "--dir", ca)
    assert "device   pi" in shown.stdout
    assert (ca / "ca.key").read_bytes() == key
    assert "PRIVATE" not in shown.stdout + done.stdout


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show"], ["--dir", "there is no CA", "sfl ca init"]),
        (["issue", "a", "--role", "device"], ["--dir", "there is no CA"]),
    ],
)
def test_there_must_be_a_ca(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    done = sfl("ca", *arguments, "--dir", tmp_path / "none")
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr


def test_what_cannot_be_issued(tmp_path: Path) -> None:
    authority, _ = Authority.init(tmp_path / "ca", days=100)
    for identity, hosts, days, words in (
        (Identity("device", "a b"), (), 1, "NAME"),
        (Identity("operator", "a"), ("h",), 1, "--host"),
        (Identity("edge", "a"), ("http://h",), 1, "--host"),
        (Identity("edge", "a"), ("h:5",), 1, "--host"),
        (Identity("edge", "a"), (), 101, "--days"),
        (Identity("edge", "a"), (), 0, "--days"),
    ):
        with pytest.raises(ConfigError, match=words):
            authority.issue(identity, hosts, days)
    give(authority, tmp_path / "out", "device", "a")
    with pytest.raises(ConfigError, match="is of device 'a'"):
        give(authority, tmp_path / "out", "edge", "a")
    (tmp_path / "ca" / "ca.key").write_text("nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        Authority.open(tmp_path / "ca")
    (tmp_path / "ca" / "ca.key").unlink()
    with pytest.raises(ConfigError, match=r"not its ca\.key"):
        Authority.init(tmp_path / "ca")


@pytest.mark.process
def test_a_bundle_issues_what_is_lacking_and_nothing_else(
    tmp_path: Path, dated: Callable[[Where], None]
) -> None:
    options = ("--dir", tmp_path / "ca", "--out", tmp_path / "nodes")
    first = sfl("ca", "bundle", "--devices", "2", "--edge", "e=10.0.0.5,edge.lan", *options)
    assert first.stdout.count("issued") == 4, first.stdout + first.stderr
    keys = {path: path.read_bytes() for path in tmp_path.rglob("*.key")}
    again = sfl("ca", "bundle", "--devices", "3", "--edge", "e=10.0.0.5,edge.lan", *options)
    assert (again.stdout.count("unchanged"), again.stdout.count("issued")) == (4, 1)
    assert all(path.read_bytes() == content for path, content in keys.items())
    authority, another = Authority.open(tmp_path / "ca"), Authority.create()
    wanted = Wanted(Identity("device", "device-0"))
    issued: list[bool] = []

    def issue() -> None:
        issue_all(authority, [wanted], tmp_path / "nodes", 60, lambda _, new: issued.append(new))

    (tmp_path / "nodes/device-0/device-0.key").write_bytes(
        keys[tmp_path / "nodes/device-1/device-1.key"]
    )
    issue()  # another's key
    issue()  # all is well
    dated((-DAY, DAY))
    issue_all(authority, [Wanted(Identity("device", "short"))], tmp_path / "nodes")
    wanted = Wanted(Identity("device", "short"))
    issue()  # at its end
    authority = another
    wanted = Wanted(Identity("device", "device-0"))
    issue()  # of another CA
    assert issued == [True, False, True, True]


def test_names_in_certificates() -> None:
    assert identity_in(["https://x", "sfl://edge/e"]) == Identity("edge", "e")
    for uris in ([], ["sfl://boss/e"], ["sfl://edge/"], ["sfl://edge/a/b"], ["sfl://edge/e"] * 2):
        assert identity_in(uris) is None
    assert server_name("edge", "Edge.Lan.") == "edge.lan.edge.sfl"
    assert server_name("cloud", "::1") == f"{'0000-' * 7}0001.cloud.sfl"
    assert covers(["a.edge.sfl"], "a.edge.sfl")
    assert covers(["*.lan.edge.sfl"], "x.lan.edge.sfl")
    assert not covers(["*.lan.edge.sfl"], "x.y.lan.edge.sfl")
    assert not covers(["a.cloud.sfl"], "a.edge.sfl")


# -- a node's own files ----------------------------------------------------------------------------


def spoilt(folder: Path, authority: Authority, dates: Callable[[Where], None]) -> Iterator[Any]:
    """Each mistake, made to a good folder; the field and words of the error."""
    key, cert, ca = folder / "a.key", folder / "a.pem", folder / "ca.pem"
    good = {path: path.read_bytes() for path in (key, cert, ca)}
    other = Authority.create("other")
    for path, content, field, words in (
        (key, None, "device.tls.key", "no such file"),
        (cert, b"nonsense", "device.tls.cert", "not a certificate and key in PEM"),
        (ca, b"nonsense", "device.tls.ca", "holds no certificate"),
        (ca, other.cert_pem, "device.tls.cert", "was not issued by the CA"),
        (
            key,
            authority.issue(Identity("device", "a")).key_pem,
            "device.tls.key",
            "does not belong to the certificate",
        ),
    ):
        path.unlink() if content is None else path.write_bytes(content)
        yield field, words
        for there, before in good.items():
            there.write_bytes(before)
            there.chmod(0o600)
    for where, words in ((PAST, "expired on"), (FUTURE, "is not valid before")):
        dates(where)
        give(authority, folder, "device", "a")
        yield "device.tls.cert", words
    dates((-DAY, DAY))
    cert.unlink()
    give(authority, folder, "operator", "a")
    yield "device.tls.cert", "is of operator 'a', this is device 'a'"
    issued = authority.issue(Identity("device", "b"))
    cert.write_bytes(issued.cert_pem)
    key.write_bytes(issued.key_pem)
    yield "device.tls.cert", "is of device 'b', this is device 'a'"


def test_what_is_wrong_with_a_certificate_is_said_before_anything_is_dialled(
    tmp_path: Path, dated: Callable[[Where], None], caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority.create()
    folder = give(authority, tmp_path / "a", "device", "a")
    for field, words in spoilt(folder, authority, dated):
        with pytest.raises(ConfigError, match=words) as caught:
            own_certificate("device", "a", None, folder)
        assert caught.value.field == field
        assert "PRIVATE" not in str(caught.value)
    (folder / "a.pem").unlink()
    give(authority, folder, "device", "a")
    assert "others on this machine" not in caplog.text
    (folder / "a.key").chmod(0o644)
    own = own_in(folder)
    assert "others on this machine can read it" in caplog.text
    assert "expires on" in caplog.text  # in a day
    assert own.key.read_text() not in repr(own) and "PRIVATE" not in repr(own)
    with pytest.raises(ConfigError, match="0 keys"):
        own_in(tmp_path)


@pytest.mark.process
def test_paths_of_certificates_are_relative_to_the_file(tmp_path: Path) -> None:
    tls = 'tls = { ca = "c/ca.pem", cert = "c/n.pem", key = "/k" }\n'
    metrics = 'metrics = { username = "u", password_file = "p" }\n'
    file = tmp_path / "node.toml"
    for kind, load in (("edge", load_edge), ("device", load_device)):
        file.write_text(f'[{kind}]\nname = "n"\n{tls}{metrics}')
        node: Any = load(file)
        assert (node.tls.ca, node.tls.key) == (tmp_path / "c/ca.pem", Path("/k"))
        assert node.metrics.password_file == tmp_path / "p"
    values = fleet(tmp_path, 1)
    config = write_config(tmp_path, values)
    config.write_text(config.read_text() + f"\n[cloud]\n{tls}")
    cloud = load_run(config).cloud
    assert cloud.tls is not None and cloud.tls.cert == tmp_path / "c/n.pem"
    done = sfl("run", config)
    assert done.returncode == 2
    assert "cloud.tls.ca" in done.stderr and "no such file" in done.stderr
    with pytest.raises(ConfigError, match=r"cloud\.metrics\.cert"):
        load_run(config, ["cloud.metrics.cert=x"])


# -- a whole run -----------------------------------------------------------------------------------


@pytest.mark.process
def test_a_run_gives_the_same_adapter_with_tls_and_without(runs: Runs) -> None:
    adapters = []
    for name in ("vanilla", "tls"):
        outcome = runs(name)
        adapters.append((outcome.folder / "adapter" / "adapter_model.safetensors").read_bytes())
        said = "TLS 1.3" in outcome.logs()
        assert said == (name == "tls"), outcome.logs()
    assert adapters[0] == adapters[1]
    # Nothing of the run's CA is left, and nothing of it was kept in what the run wrote.
    assert not (outcome.folder / "tls").exists()
    assert not list(outcome.folder.rglob("*.key"))
    for path in outcome.folder.rglob("*"):
        assert not path.is_file() or b"PRIVATE KEY" not in path.read_bytes(), path
    kept = tomllib.loads((outcome.folder / "config.toml").read_text())
    assert not any("tls" in part for part in (kept["cloud"], kept["edge"], *kept["devices"]))


# -- who is refused --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    values = fleet(folder, 2, run={"rounds": 2}, training={"local_steps": 80})
    values["network"] = {**values.get("network", {}), "join_timeout": 900}  # devices come last
    nodes = Guarded(folder, values)
    yield nodes
    nodes.stop()


def refusal(address: str, role: Role, own: OwnCertificate | None) -> str:
    """What a client that waits for a channel is told."""
    channel = open_channel("edge", address, False, own, role)
    try:
        with pytest.raises(Refused) as caught:
            wait_for_peer(channel, "peer", 30.0, lambda: why_refused(address, role, own))
    finally:
        channel.close()
    return str(caught.value)


def logged(nodes: Guarded, name: str, words: str) -> None:
    until(lambda: words in nodes.log(name), f"{words!r} in the log of the {name}")


@pytest.mark.process
def test_certificates_that_tls_itself_refuses(
    guarded: Guarded, tmp_path: Path, dated: Callable[[Where], None]
) -> None:
    address = guarded.edge_address
    stranger = unchecked(give(Authority.create(), tmp_path / "s", "device", "d0"), "device", "d0")
    assert "not issued by the CA" in refusal(address, "edge", stranger)
    # One that takes our CA's word for the edge, and shows a certificate of its own CA.
    (stranger.ca).write_bytes(guarded.authority.cert_pem)
    assert "it rejects the certificate" in refusal(address, "edge", stranger)
    logged(guarded, "edge", "certificate is not of this node's CA: one of the two has another")
    said_of = {"has expired": "has expired, by this", "not yet valid": "is not valid yet, by this"}
    for where, words in ((PAST, "has expired"), (FUTURE, "not yet valid")):
        dated(where)
        folder = give(guarded.authority, tmp_path / words, "device", "d0")
        said = refusal(address, "edge", unchecked(folder, "device", "d0"))
        assert "it rejects the certificate" in said and "log" in said
        logged(guarded, "edge", f"its certificate {said_of[words]}")
    assert "accepts TLS only" in refusal(address, "edge", None)
    logged(
        guarded, "edge", "a connection was refused: it does not use TLS, and this node requires it"
    )
    channel = grpc.secure_channel(
        address,
        grpc.ssl_channel_credentials(guarded.authority.cert_pem),
        options=(("grpc.ssl_target_name_override", server_name("edge", "127.0.0.1")),),
    )
    with pytest.raises(grpc.RpcError):
        wire.EDGE_LIST_FILES.stub(channel)(edge_pb2.FilesRequest(device="d0"), timeout=30)
    channel.close()
    logged(guarded, "edge", "a connection was refused: it sent no certificate; give it one")
    # Each as a line of the log, and nothing as gRPC wrote it.
    assert "Handshake failed" not in guarded.log("edge")
    assert (
        guarded.log("edge").count("WARNING sfl.transport.security.handshakes: a connection was")
        >= 5
    )


GRPC_SAYS = (
    "I1121 20:39:13.462954   20391 ssl_transport_security.cc:2563] Handshake failed with error "
    "SSL_ERROR_SSL: error:100000f7:SSL routines:OPENSSL_internal:{}: {}"
)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (GRPC_SAYS.format("HTTP_REQUEST", "x"), "it does not use TLS"),
        (GRPC_SAYS.format("EXCESSIVE_MESSAGE_SIZE", "x"), "(EXCESSIVE_MESSAGE_SIZE)"),
        (GRPC_SAYS.format("CERTIFICATE_VERIFY_FAILED", "odd"), "is rejected (odd)"),
        ("E1 x.cc:3238] No match found for server name: a.edge.sfl", "asked for a.edge.sfl, which"),
        ("E0000 chttp2_transport.cc:1] something else failed", None),
        ("Fatal Python error: Segmentation fault", None),
    ],
)
def test_a_line_of_grpc_is_explained_or_left_as_it_is(line: str, said: str | None) -> None:
    reason = explain(line + "\n")
    assert reason is None if said is None else said in str(reason)


@pytest.mark.process
def test_what_else_goes_to_standard_error_gets_there() -> None:
    """Native lines, lines of the log, a child's, and a crash's."""
    code = (
        "import logging, os, sys\n"
        "from sfl.node.logs import start_logging\n"
        "from sfl.transport.security.handshakes import explained_handshakes\n"
        "start_logging('json')\n"
        "with explained_handshakes():\n"
        f"    os.write(2, {GRPC_SAYS.format('WRONG_VERSION_NUMBER', 'x').encode()!r} + b'\\n')\n"
        "    os.write(2, b'native\\n')\n"
        "    print('python', file=sys.stderr)\n"
        "    os.system('echo child >&2')\n"
        "    os.write(2, b'no end of line')\n"
        "os.write(2, b'|after\\n')\n"
        "logging.warning('later')\n"
        "with explained_handshakes():\n"
        "    os.kill(os.getpid(), 11)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == -11
    for words in ("native\n", "python\n", "child\n", "no end of line|after\n"):
        assert words in done.stderr
    assert "Fatal Python error: Segmentation fault" in done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [line["message"][:16] for line in lines] == ["a connection was", "later"]


@pytest.mark.process
def test_servers_that_a_client_refuses(
    guarded: Guarded, tmp_path: Path, dated: Callable[[Where], None]
) -> None:
    own = guarded.own("edge", "e2")
    assert "is of edge 'edge', not of a node of role cloud" in refusal(
        guarded.edge_address, "cloud", own
    )
    port = guarded.edge_address.rpartition(":")[2]
    elsewhere = refusal(f"localhost:{port}", "edge", own)
    assert "is for 127.0.0.1, not for localhost" in elsewhere and "--host localhost" in elsewhere
    logged(guarded, "edge", "a client asked for localhost.edge.sfl, which is not in")
    for where, words in ((PAST, "expired on"), (FUTURE, "is not valid before")):
        dated(where)
        folder = give(guarded.authority, tmp_path / words, "edge", "old", "127.0.0.1")
        with server(read_folder(folder, "old")) as address:
            assert words in refusal(address, "edge", own)
    with socket.socket() as silent:  # nobody listens, or nobody answers: not TLS's fault
        silent.bind(("127.0.0.1", 0))
        silent_address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert why_refused(silent_address, "edge", own) is None
        silent.listen()
        assert why_refused(silent_address, "edge", own) is None


@pytest.mark.process
def test_tls_to_a_plaintext_port_is_said_on_both_sides(guarded: Guarded, tmp_path: Path) -> None:
    file, address = tmp_path / "edge.toml", tmp_path / "address"
    file.write_text('[edge]\ncloud = "127.0.0.1:1"\nconnect_timeout = 600\n')
    command = ["edge", str(file), "--address-file", str(address)]
    process = fork(command, surroundings(), tmp_path / "log")
    try:
        until(address.exists, "the address of the edge")
        said = refusal(address.read_text(), "edge", guarded.own("device", "d0"))
        assert "does not use TLS" in said
        wanted = "it asks for TLS, and this node has no certificate"
        until(lambda: wanted in (tmp_path / "log").read_text(), "a line in the edge's log")
    finally:
        process.kill()
        process.wait()


@pytest.mark.process
def test_a_new_ca_beside_the_old_one(guarded: Guarded, tmp_path: Path) -> None:
    new = Authority.create("new")
    own = guarded.own("device", "d0")
    folder = give(new, tmp_path / "n", "edge", "n", "127.0.0.1")
    with server(read_folder(folder, "n")) as address:
        assert "not issued by the CA" in refusal(address, "edge", own)
        for ca in (own.ca, folder / "ca.pem"):
            ca.write_bytes(guarded.authority.cert_pem + new.cert_pem)
        load_own("tls", settings_in(own.cert.parent, "d0"), "device", "d0")
        load_own("tls", settings_in(folder, "n"), "edge", "n")
    with server(read_folder(folder, "n")) as address:
        channel = open_channel("edge", address, False, own, "edge")
        wait_for_peer(channel, "peer", 30.0, lambda: why_refused(address, "edge", own))
        channel.close()


@pytest.mark.process
def test_a_name_is_the_certificates(guarded: Guarded) -> None:
    d0, edge = guarded.own("device", "d0"), guarded.edge_address
    hello = edge_pb2.DeviceMessage(
        hello=edge_pb2.DeviceHello(device="d1", wire_version=wire.WIRE_VERSION)
    )
    for method, ask in (
        (wire.EDGE_SESSION, hello),
        (wire.EDGE_LIST_FILES, edge_pb2.FilesRequest(device="d1")),
        (wire.EDGE_FETCH_FILE, edge_pb2.FileRequest(device="d1", name="model.safetensors")),
    ):
        said = ending(method, edge, "edge", d0, ask)
        assert "certificate is of device 'd0'" in said and "device 'd1'" in said
    logged(guarded, "edge", "device 'd0' says it is device 'd1'")
    claim = cloud_pb2.EdgeReportMessage(
        hello=cloud_pb2.EdgeHello(edge="edge", wire_version=wire.WIRE_VERSION)
    )
    cloud = guarded.address("cloud")
    said = ending(wire.CLOUD_SESSION, cloud, "cloud", guarded.own("edge", "e2"), claim)
    assert "certificate is of edge 'e2'" in said and "edge 'edge'" in said
    logged(guarded, "cloud", "edge 'e2' says it is edge 'edge'")


@pytest.mark.process
def test_a_role_opens_its_own_doors_only(guarded: Guarded) -> None:
    device_, operator = guarded.own("device", "d0"), guarded.own("operator", "ops")
    second, edge = guarded.own("edge", "e2"), guarded.edge_address
    cloud = guarded.address("cloud")
    hello = edge_pb2.DeviceMessage(hello=edge_pb2.DeviceHello(device="d0"))
    report = cloud_pb2.EdgeReportMessage(hello=cloud_pb2.EdgeHello(edge="edge"))
    for own in (operator, second):
        assert "open to: device" in ending(wire.EDGE_SESSION, edge, "edge", own, hello)
        ask = edge_pb2.FilesRequest(device="d0")
        assert "open to: device" in ending(wire.EDGE_LIST_FILES, edge, "edge", own, ask)
    for own in (operator, device_):
        assert "open to: edge" in ending(wire.CLOUD_SESSION, cloud, "cloud", own, report)
    logged(guarded, "cloud", "the certificate is of device 'd0', and this is open to: edge")
    for own in (operator, device_, second):
        assert probe_edge(edge, insecure=False, own=own).up_bytes > 0


def test_every_method_has_its_roles() -> None:
    methods = [value for value in vars(wire).values() if isinstance(value, wire.Method)]
    assert {method.path for method in methods} == set(MAY_CALL)


@pytest.mark.process
def test_tls_1_2_is_refused(guarded: Guarded) -> None:
    host, _, port = guarded.edge_address.rpartition(":")
    own = guarded.own("device", "d0")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(own.ca)
    context.load_cert_chain(own.cert, own.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        pytest.raises(OSError),
        socket.create_connection((host, int(port)), PATIENCE) as raw,
        context.wrap_socket(raw),
    ):
        pass


@pytest.mark.process
@pytest.mark.parametrize("how", ["plain", "stranger", "expired"])
def test_a_node_that_is_refused_ends_with_a_reason(
    guarded: Guarded, tmp_path: Path, dated: Callable[[Where], None], how: str
) -> None:
    file = tmp_path / "d0.toml"
    file.write_text(f'[device]\nname = "d0"\nedge = "{guarded.edge_address}"\nthreads = 1\n')
    options: list[str] = []
    if how != "plain":
        if how == "expired":
            dated(PAST)
        authority = guarded.authority if how == "expired" else Authority.create()
        options = ["--certs", str(give(authority, tmp_path / "c", "device", "d0"))]
    done = sfl("device", file, *options, timeout=PATIENCE)
    code, words = {
        "plain": (1, f"edge at {guarded.edge_address}: it accepts TLS only"),
        "stranger": (1, "its certificate was not issued by the CA in"),
        "expired": (2, "device.tls.cert"),
    }[how]
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    if how == "expired":
        assert "expired on" in done.stderr


@pytest.mark.process
def test_after_all_of_that_and_more_of_it_the_run_ends_well(
    guarded: Guarded, tmp_path: Path
) -> None:
    devices = [guarded.device(number) for number in range(2)]
    until(
        lambda: all(d["step"] > 2 for d in guarded.status().get("devices", [{"step": 0}])),
        "the first steps",
    )
    address = guarded.edge_address
    stranger = unchecked(give(Authority.create(), tmp_path, "device", "d0"), "device", "d0")
    assert "not issued by the CA" in refusal(address, "edge", stranger)
    assert "accepts TLS only" in refusal(address, "edge", None)
    ask = edge_pb2.FilesRequest(device="d1")
    said = ending(wire.EDGE_LIST_FILES, address, "edge", guarded.own("device", "d0"), ask)
    assert "does not stand for device 'd1'" in said
    assert guarded.cloud.poll() is None
    outcome = guarded.outcome()
    assert outcome.code == 0, outcome.output + guarded.log("edge") + guarded.log("d0")
    assert outcome.summary["faults"] == []
    assert all(process.wait(PATIENCE) == 0 for process in devices)
    assert "PRIVATE" not in "".join(map(guarded.log, ("cloud", "edge", "d0", "d1")))


class Deaf:
    """A cloud's shell that notes what it is told."""

    heartbeat_interval, idle_timeout = 1.0, 30.0
    stats = NodeStats("cloud", "cloud")
    run_settings = RunSettings.model_validate(
        {"model": {"path": "m"}, "devices": [{"name": "mine"}]}
    )

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.told.append(name)

    def heard(self, snapshot: NodeSnapshot) -> None:
        self.told.append(f"{snapshot.kind} {snapshot.name}")


def test_an_edge_speaks_for_its_own_devices_only(caplog: pytest.LogCaptureFixture) -> None:
    host: Any = Deaf()
    stream = Reporting("e", host)
    stream.admitted("mine")
    header = tensor_pb2.AdapterHeader(round=1, device="theirs", side="device")
    for message in (
        cloud_pb2.EdgeReportMessage(left=cloud_pb2.DeviceLeft(device="theirs")),
        cloud_pb2.EdgeReportMessage(report=tensor_pb2.RoundReport(device="theirs")),
        cloud_pb2.EdgeReportMessage(device_ready=cloud_pb2.DeviceIsReady(device="theirs")),
        cloud_pb2.EdgeReportMessage(adapter=tensor_pb2.AdapterFrame(header=header, data=b"x")),
        cloud_pb2.EdgeReportMessage(adapter=tensor_pb2.AdapterFrame(data=b"x", last=True)),
    ):
        stream._take(message)
    assert host.told == []
    assert caplog.text.count("which is not its own") == 4
    stream._take(cloud_pb2.EdgeReportMessage(left=cloud_pb2.DeviceLeft(device="mine")))
    assert host.told == ["device_left"]


def test_an_edge_tells_statistics_of_its_own_devices_only() -> None:
    def told(kind: NodeKind, name: str) -> str:
        return NodeSnapshot(name, kind).to_json()

    host: Any = Deaf()
    stream = Reporting("e", host)
    stream.admitted("mine")
    others = [told("device", "theirs"), told("edge", "mine"), told("cloud", "cloud")]
    beat = tensor_pb2.Heartbeat(
        snapshot=told("edge", "e"), devices=[*others, told("device", "mine")]
    )
    stream._take(cloud_pb2.EdgeReportMessage(heartbeat=beat))
    assert host.told == ["edge e", "device mine"]
    forged = tensor_pb2.Heartbeat(snapshot=told("edge", "other"))
    with pytest.raises(ProtocolError, match="in place of"):
        stream._take(cloud_pb2.EdgeReportMessage(heartbeat=forged))
    ready = edge_pb2.DeviceReady(num_examples=8, snapshot=told("edge", "e"))
    about = cloud_pb2.DeviceIsReady(device="mine", ready=ready)
    stream._take(cloud_pb2.EdgeReportMessage(device_ready=about))
    assert host.told == ["edge e", "device mine", "device_broke"]


# -- /metrics --------------------------------------------------------------------------------------


def scrape(url: str, context: ssl.SSLContext | None, login: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url)
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_behind_tls_and_a_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = give(Authority.create(), tmp_path / "e", "edge", "e", "127.0.0.1")
    secret = tmp_path / "password"
    secret.write_text("schönes:geheimnis\n")
    secret.chmod(0o600)
    values = MetricsSettings(
        cert=folder / "e.pem", key=folder / "e.key", username="prom", password_file=secret
    )
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    with serve_as_set(values, NodeCollector(NodeStats("e", "edge"))) as node:
        assert f"https://127.0.0.1:{node.port}/metrics" in caplog.text
        url = f"https://127.0.0.1:{node.port}/metrics"
        with socket.create_connection(("127.0.0.1", node.port)):  # says nothing, blocks nobody
            code, text = scrape(url, context, "prom:schönes:geheimnis")
        assert code == 200 and "sfl_" in text
        for login in ("", "prom:wrong", "other:schönes:geheimnis", "prom"):
            code, text = scrape(url, context, login)
            assert code == 401 and "sfl_" not in text
        with pytest.raises(OSError):
            scrape(url.replace("https", "http"), None)
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            scrape(url, ssl.create_default_context())
    assert "geheimnis" not in caplog.text + repr(values)
    secret.write_text("")
    with pytest.raises(ConfigError, match=r"metrics.password_file .* is empty"):
        serve_as_set(values, NodeCollector(NodeStats("e", "edge")))
    secret.unlink()
    with pytest.raises(ConfigError, match=r"metrics.password_file .* cannot be read"):
        serve_as_set(values, NodeCollector(NodeStats("e", "edge")))


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(tmp_path: Path) -> None:
    folder = give(Authority.create(), tmp_path / "e", "edge", "e", "127.0.0.1")
    key = folder / "e.key"
    pair = read_pair(folder / "e.pem", key)
    key.write_bytes(
        pair.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match=r"edge\.tls\.key .* is encrypted"):
        load_own("edge.tls", settings_in(folder, "e"), "edge", "e")
    values = MetricsSettings(cert=folder / "e.pem", key=key)
    with pytest.raises(ConfigError, match=r"metrics\.key .* is encrypted"):
        serve_as_set(values, NodeCollector(NodeStats("e", "edge")))


def test_help_says_what_a_ca_can_do() -> None:
    for command in ([], ["init"], ["issue"], ["show"], ["bundle"]):
        done = CliRunner().invoke(ca_app, [*command, "--help"])
        assert done.exit_code == 0
        assert "Usage" in done.stdout


def test_an_edge_says_how_it_is_with_every_report_however_short_the_rounds_are() -> None:
    """Of many devices and short rounds that is often, and no flood."""
    host = Deaf()
    stream = Reporting("e", cast("Any", host))
    stream.devices["mine"] = cast("Any", Deaf())
    beat = tensor_pb2.Heartbeat(snapshot=NodeSnapshot("e", "edge").to_json())
    report = tensor_pb2.RoundReport(device="mine")
    for _ in range(1000):
        stream._take(cloud_pb2.EdgeReportMessage(heartbeat=beat))
        stream._take(cloud_pb2.EdgeReportMessage(report=report))
    assert host.told.count("reported") == 1000
    with pytest.raises(ProtocolError, match="heartbeats a second"):
        for _ in range(1000):
            stream._take(cloud_pb2.EdgeReportMessage(heartbeat=beat))
