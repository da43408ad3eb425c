"""Who is believed, and what a device consents to: edges that are named, devices that sign."""

from __future__ import annotations

import copy
import json
import math
import queue
import random
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric import rsa

from sfl.adapters.lora import build_manifest, given_values
from sfl.cli.launch.preflight import check_names
from sfl.config import RunConfig, load_run
from sfl.errors import ConfigError, ProtocolError, Refused
from sfl.metrics.stats import NodeStats
from sfl.models.folder import open_model
from sfl.node.certificates import authority as authority_module
from sfl.node.certificates.authority import Authority
from sfl.node.certificates.identity import NAME, Identity, Role, identity_in
from sfl.node.certificates.own import OwnCertificate, load_own, settings_in
from sfl.node.certificates.signing import Trust
from sfl.report.runs import find_run
from sfl.transport.cloud.spool import Spool
from sfl.transport.frames.chunks import adapter_bytes, adapter_frames
from sfl.transport.frames.wire import CLOUD_SESSION, WIRE_VERSION
from sfl.transport.security.credentials import open_channel
from sfl.transport.security.signed import DeviceSignatures, NotSigned, SignatureCheck, statement
from sfl.v1 import cloud_pb2, edge_pb2, tensor_pb2
from tests.house.federation import run, sfl, surroundings, write_config
from tests.house.fleets import fleet
from tests.house.forks import fork
from tests.house.paths import ROOT
from tests.house.tls import FUTURE, PAST, Guarded, Where, ending, give, unchecked
from tests.house.waiting import PATIENCE, until

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
        Spool(tmp_path / "spool").begin(header)
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
        ({"run": {"edges": ["north", "cloud"]}}, "run.edges"),
        ({"run": {"edges": ["north", "d"]}, "devices": [{"name": "d"}]}, "devices.d.name"),
        ({"run": {"edges": ["north"]}, "edge": {"name": "south"}}, "run.edges"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_names(load_run(run_file(tmp_path, **values)))
        assert caught.value.field == field
    with pytest.raises(ConfigError, match="'a' is given twice"):
        load_run(run_file(tmp_path, run={"edges": ["a", "b", "a"]}))


def test_the_usual_single_edge_needs_no_line(tmp_path: Path) -> None:
    assert load_run(run_file(tmp_path)).edges == ("edge",)
    assert load_run(run_file(tmp_path, edge={"name": "attic"})).edges == ("attic",)
    both = load_run(run_file(tmp_path, run={"edges": ["a", "b"]}, edge={"name": "b"}))
    assert both.edges == ("a", "b")
    check_names(both)
    check_names(load_run(run_file(tmp_path, run={"edges": ["a", "b"]})))
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


@pytest.mark.process
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


@pytest.mark.process
def test_edges_are_named_without_tls_too(tmp_path: Path) -> None:
    file = write_config(tmp_path, fleet(tmp_path, 2))
    where = tmp_path / "address"
    command = ["cloud", str(file), "--address-file", str(where)]
    process = fork(command, surroundings(), tmp_path / "log")
    try:
        until(where.exists, "the cloud's address")
        said = ending(CLOUD_SESSION, where.read_text(), "cloud", None, edge_hello("other"))
        assert "no edge 'other' in this run; known: edge" in said
    finally:
        process.kill()
        process.wait()


# -- what a device signs ---------------------------------------------------------------------------

VALUES = {"b": np.ones((2, 3), np.float32), "a": np.zeros(4, np.float32)}


class Pair:
    """A device's end and the cloud's, with an edge between them that a test plays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create()
        self.trust = Trust(Authority.create("other").cert_pem + self.authority.cert_pem)
        self.device = DeviceSignatures("d0", self.own("d0"))
        self.check = SignatureCheck("run", "edge", self.trust)

    def own(self, name: str, role: Role = "device") -> OwnCertificate:
        folder = give(self.authority, self.folder / f"{role}-{name}", role, name)
        return load_own("tls", settings_in(folder, name), role, name)

    def asked(self, check: SignatureCheck | None = None, **other: Any) -> cloud_pb2.DeviceJoin:
        """The device's answer to a challenge."""
        check = check or self.check
        values = {"run_id": "run", "edge": "edge", "nonce": check.challenge, **other}
        proof = self.device.proof(edge_pb2.Challenge(**values))
        return cloud_pb2.DeviceJoin(device="d0", proof=proof)

    def join(self) -> None:
        self.check.join(self.asked())
        self.check.admitted("d0")

    def update(self, round_: int = 1, **more: Any) -> tensor_pb2.AdapterHeader:
        header = tensor_pb2.AdapterHeader(
            round=round_, final_step=3, device="d0", side="device", scaling=2.0, **more
        )
        self.device.update(header, VALUES)
        return header

    def spooled(self, values: dict[str, np.ndarray]) -> Path:
        path = self.folder / "part"
        path.write_bytes(adapter_bytes(values))
        return path


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def test_what_a_device_said_itself_counts(pair: Pair) -> None:
    pair.join()
    ready = edge_pb2.DeviceReady(num_examples=7, snapshot="{}")
    pair.device.ready(ready)
    pair.check.ready("d0", ready)
    for round_ in (1, 2):
        report = tensor_pb2.RoundReport(round=round_, device="d0", train_loss=0.5)
        update = pair.update(round_)
        pair.device.report(report)
        report.edge_spans = report.edge_passes = "[]"  # its edge's own
        pair.check.report(report)  # may overtake the update
        pair.check.update(update, pair.spooled(VALUES))
    edges = tensor_pb2.AdapterHeader(round=2, device="d0", side="edge")
    pair.check.update(edges, pair.folder / "nothing")
    # It comes back, and the statements of its first joining are worth nothing.
    pair.join()
    with pytest.raises(NotSigned, match="update is not signed by it: the signature does not fit"):
        pair.check.update(update, pair.spooled(VALUES))


def test_an_edge_presents_its_devices_again_over_a_new_stream_and_only_then(pair: Pair) -> None:
    first = pair.asked()
    pair.check.join(first)
    pair.check.admitted("d0")
    report = tensor_pb2.RoundReport(round=1, device="d0")
    pair.device.report(report)
    pair.check.report(report)
    with pytest.raises(NotSigned, match="join is not signed by it: it was sent before"):
        pair.check.join(first)
    pair.check.begin_stream()
    pair.check.join(first)
    pair.check.admitted("d0")
    pair.check.report(report)  # as it is told again
    with pytest.raises(NotSigned, match="report is not signed by it: it was sent before"):
        pair.check.report(report)
    with pytest.raises(NotSigned, match="it was sent before"):
        pair.check.join(first)  # once a stream
    pair.join()
    pair.check.begin_stream()
    with pytest.raises(NotSigned, match="it was sent before"):
        pair.check.join(first)  # of an older joining


def test_what_a_device_remembers_may_be_news_and_the_rest_is_as_it_said(pair: Pair) -> None:
    pair.join()
    ready = edge_pb2.DeviceReady(num_examples=7, snapshot="{}")
    pair.device.ready(ready)
    ready.points.add(round=1, step=4)
    pair.check.ready("d0", ready)


def test_a_join_that_the_device_did_not_say_is_none(pair: Pair) -> None:
    def refused(join: cloud_pb2.DeviceJoin, words: str) -> None:
        with pytest.raises(NotSigned, match=words) as caught:
            pair.check.join(join)
        assert caught.value.device == join.device

    refused(cloud_pb2.DeviceJoin(device="d0"), "without its certificate")
    good = pair.asked()
    other = SignatureCheck("run", "edge", pair.trust)
    for join in (
        pair.asked(other),  # of another stream of that edge
        pair.asked(run_id="another"),
        pair.asked(edge="north"),
    ):
        refused(join, "the signature does not fit")
    stolen = cloud_pb2.DeviceJoin(device="d0", proof=good.proof)
    stolen.proof.signature = b""
    refused(stolen, "there is no signature")
    refused(cloud_pb2.DeviceJoin(device="d1", proof=good.proof), "certificate is of device 'd0'")
    pair.device = DeviceSignatures("d0", pair.own("d0", "operator"))
    refused(pair.asked(), "certificate is of operator 'd0'")
    pair.authority, kept = Authority.create("forged"), pair.authority
    pair.device = DeviceSignatures("d0", pair.own("d0", "device"))
    refused(pair.asked(), "not issued by this run's CA")
    pair.authority = kept
    for certificate in (b"\x30\x03abc", b"x" * 20_000):
        join = cloud_pb2.DeviceJoin(device="d0", proof=good.proof)
        join.proof.certificate = certificate
        refused(join, "certificate")
    with pytest.MonkeyPatch.context() as patch:  # the cloud remembers each, so none is long
        patch.setattr("secrets.token_bytes", lambda count: b"x" * 1000)
        pair.device = DeviceSignatures("d0", pair.own("d0"))
        refused(pair.asked(), "its number has not 16 bytes")
    pair.check.join(good)
    refused(good, "it was sent before")
    with pytest.raises(NotSigned, match="has not joined through this edge"):
        pair.check.ready("d0", edge_pb2.DeviceReady())  # asked, and not let in


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_bytes_that_were_a_certificate_are_refused_and_nothing_else(pair: Pair) -> None:
    """Changed by a hostile edge, anywhere: a refusal, whatever the package calls it."""
    good, rng, refused = pair.asked().proof.certificate, random.Random(0), 0
    for _ in range(4000):
        certificate = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            certificate[rng.randrange(len(good))] ^= rng.randrange(1, 256)
        try:
            pair.trust.key_of(bytes(certificate), Identity("device", "d0"))
        except Refused:
            refused += 1
    assert refused > 3990


def test_a_certificate_out_of_time_signs_nothing(
    pair: Pair, request: pytest.FixtureRequest
) -> None:
    date: Callable[[Where], None] = request.getfixturevalue("dated")
    for number, where in enumerate((PAST, FUTURE)):
        date(where)
        folder = give(pair.authority, pair.folder / f"dated{number}", "device", "d0")
        pair.device = DeviceSignatures("d0", unchecked(folder, "device", "d0"))
        with pytest.raises(NotSigned, match="not valid today"):
            pair.check.join(pair.asked())


def header_of(shape: list[int]) -> bytes:
    """A safetensors file of one tensor, of that shape, with at most one value."""
    size = 4 * math.prod(shape)
    entry = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    header = json.dumps(entry).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def test_an_edge_cannot_change_or_repeat_what_a_device_said(pair: Pair) -> None:
    pair.join()
    whole = pair.spooled(VALUES)
    first, second = pair.update(1), pair.update(2)
    pair.check.update(first, whole)

    def refused(header: tensor_pb2.AdapterHeader, file: Path, words: str) -> None:
        with pytest.raises(NotSigned, match=words):
            pair.check.update(header, file)

    refused(first, whole, "it was sent before")
    for field, value in (("round", 3), ("final_step", 4), ("scaling", 1.0), ("device", "d1")):
        changed = copy.deepcopy(second)
        setattr(changed, field, value)
        refused(changed, whole, "does not fit" if field != "device" else "has not joined")
    replayed = copy.deepcopy(second)  # a signature of another round
    replayed.signature.CopyFrom(first.signature)
    refused(replayed, whole, "does not fit")
    later = copy.deepcopy(second)
    later.signature.sequence = 2**64 - 1
    refused(later, whole, "does not fit")
    for values in (
        {**VALUES, "b": VALUES["b"] + 0.25},
        {"a": VALUES["a"]},
        {"c": VALUES["b"], "a": VALUES["a"]},
        {**VALUES, "b": VALUES["b"].T.copy()},
    ):
        refused(second, pair.spooled(values), "does not fit")
    refused(second, pair.spooled({**VALUES, "b": VALUES["b"].astype(np.float16)}), "not F32")
    shapes = ([1] * 100, [0, 2**62])  # which a header may hold, and no array of numpy's has
    for content in (b"", b"rubbish", *(header_of(shape) for shape in shapes)):
        (pair.folder / "part").write_bytes(content)
        refused(second, pair.folder / "part", "is not signed by it")
    pair.check.update(second, pair.spooled(VALUES))

    report = tensor_pb2.RoundReport(round=1, device="d0", num_steps=3)
    pair.device.report(report)
    ready = edge_pb2.DeviceReady(num_examples=7)
    pair.device.ready(ready)
    report.num_steps, ready.num_examples = 4, 2**40
    with pytest.raises(NotSigned, match="report is not signed"):
        pair.check.report(report)
    with pytest.raises(NotSigned, match="ready is not signed"):
        pair.check.ready("d0", ready)


def test_no_edge_tells_a_device_other_cuts_or_other_memory(pair: Pair) -> None:
    pair.join()
    told = edge_pb2.LegalCut(cut_layer=2, memory=5)
    ready = edge_pb2.DeviceReady(num_examples=7, cuts=[told], memory=9)
    pair.device.ready(ready)
    for change in ({"memory": 8}, {"cuts": []}, {"cuts": [{"cut_layer": 2, "memory": 4}]}):
        other = edge_pb2.DeviceReady()
        other.CopyFrom(ready)
        for name in change:
            other.ClearField(name)
        other.MergeFrom(edge_pb2.DeviceReady(**change))
        with pytest.raises(NotSigned, match="ready is not signed"):
            pair.check.ready("d0", other)
    pair.check.ready("d0", ready)


def test_an_rsa_key_signs_too(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        authority_module.ec,
        "generate_private_key",
        lambda curve: rsa.generate_private_key(65537, 2048),
    )
    pair.device = DeviceSignatures("d0", pair.own("d0"))
    pair.join()
    pair.check.update(pair.update(), pair.spooled(VALUES))


def test_without_tls_nothing_is_signed(tmp_path: Path) -> None:
    device, check = DeviceSignatures("d0", None), SignatureCheck("run", "edge", None)
    assert check.challenge == b""
    check.join(cloud_pb2.DeviceJoin(device="d0"))
    ready = edge_pb2.DeviceReady(num_examples=7)
    device.ready(ready)
    assert not ready.HasField("signature")
    check.ready("d0", ready)
    check.update(tensor_pb2.AdapterHeader(device="d0", side="device"), tmp_path / "none")


def test_parts_of_a_statement_do_not_run_into_each_other() -> None:
    assert statement("ab", "c") != statement("a", "bc")
    assert len({statement(part) for part in (1, 1.0, "1", b"\x01", 2**63)}) == 5


def test_an_update_that_is_refused_leaves_the_one_before_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    header = tensor_pb2.AdapterHeader(round=1, device="d0", side="device", num_bytes=1)
    for content in (b"a", b"b"):
        part = spool.begin(header)
        part.write(content)
        if content == b"a":
            part.close()
            continue
        with pytest.raises(NotSigned):
            part.close(forged)
    assert spool.path(1, "d0", "device").read_bytes() == b"a"


def forged(path: Path) -> None:
    assert path.read_bytes() == b"b"
    raise NotSigned("d0", "update", "the signature does not fit")


# -- a lying edge in a live run --------------------------------------------------------------------


class Liar:
    """An edge of the run, with a good certificate, that says what a test wants."""

    def __init__(self, nodes: Guarded, name: str) -> None:
        self._out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        own = nodes.own("edge", name)
        self._channel = open_channel("edge", nodes.address("cloud"), False, own, "cloud")
        self._call = CLOUD_SESSION.stub(self._channel)(iter(self._out.get, None))
        self._out.put(edge_hello(name))
        self.settings = self.hear("settings")
        self.name = name

    def say(self, **body: Any) -> None:
        self._out.put(cloud_pb2.EdgeReportMessage(**body))

    def hear(self, body: str) -> Any:
        for message in self._call:
            if message.WhichOneof("body") == body:
                return getattr(message, body)
        raise AssertionError(f"no {body} came")

    def send(self, header: tensor_pb2.AdapterHeader, payload: bytes) -> None:
        for frame in adapter_frames(header, payload):
            self.say(adapter=frame)

    def ready(self, settings: RunConfig) -> None:
        """Say that there is a base, as an edge does before any device can come."""
        stats = NodeStats(self.name, "edge").snapshot().to_json()
        self.say(heartbeat=tensor_pb2.Heartbeat(snapshot=stats))
        folder = open_model(settings.model.path)
        manifest = build_manifest(folder, "causal_lm", 0, settings.lora)
        given = adapter_bytes(given_values(folder, manifest))
        self.say(ready=cloud_pb2.EdgeReady(manifest=manifest.to_json(), address="-", given=given))

    def challenge(self) -> edge_pb2.Challenge:
        nonce, run_id = self.settings.challenge, self.settings.run_id
        return edge_pb2.Challenge(run_id=run_id, edge=self.name, nonce=nonce)

    def close(self) -> None:
        self._out.put(None)
        self._call.cancel()
        self._channel.close()


@pytest.mark.process
def test_a_lying_edge_costs_its_own_devices_only(tmp_path: Path) -> None:
    """`south` invents a join and an update of d0, who never dialled it, and repeats what d2, who
    did, has signed for another round."""
    values = fleet(
        tmp_path,
        3,
        run={"edges": ["edge", "south"], "rounds": 2, "min_devices": 2},
        training={"local_steps": 4},
    )
    values["network"] = {**values.get("network", {}), "join_timeout": 900, "rejoin_timeout": 0}
    nodes = Guarded(tmp_path, values)
    try:
        until(lambda: "base loaded" in nodes.log("edge"), "the honest edge")
        liar = Liar(nodes, "south")
        liar.ready(load_run(nodes.config))
        public = DeviceSignatures("d0", nodes.own("device", "d0")).proof(edge_pb2.Challenge())
        for proof in (None, edge_pb2.Proof(certificate=public.certificate, signature=b"x")):
            liar.say(join=cloud_pb2.DeviceJoin(device="d0", proof=proof))
            admission = liar.hear("admission")
            assert (admission.device, admission.in_use) == ("d0", False)
            assert "edge south: its join is not signed by it" in admission.refusal
        forged_part = {"x": np.full(3, 0.25, np.float32)}
        header = tensor_pb2.AdapterHeader(round=1, device="d0", side="device")
        liar.send(header, adapter_bytes(forged_part))

        theirs = DeviceSignatures("d2", nodes.own("device", "d2"))
        proof = theirs.proof(liar.challenge())
        liar.say(join=cloud_pb2.DeviceJoin(device="d2", proof=proof))
        assert liar.hear("admission").refusal == ""
        snapshot = NodeStats("d2", "device").snapshot().to_json()
        ready = edge_pb2.DeviceReady(num_examples=8, snapshot=snapshot)
        theirs.ready(ready)
        liar.say(device_ready=cloud_pb2.DeviceIsReady(device="d2", ready=ready))
        devices = [nodes.device(number) for number in range(2)]
        assert liar.hear("start").round == 1
        header = tensor_pb2.AdapterHeader(
            round=2, final_step=4, device="d2", side="device", scaling=2.0
        )
        theirs.update(header, forged_part)
        header.round = 1
        liar.send(header, adapter_bytes(forged_part))
        assert "its update is not signed by it" in liar.hear("evict").reason
        assert liar.hear("finish").ok
        liar.close()  # a cloud waits for its edges to hang up
        outcome = nodes.outcome()
        assert outcome.code == 0, outcome.output + nodes.log("edge")
        assert all(process.wait(PATIENCE) == 0 for process in devices)
    finally:
        nodes.stop()
    summary = outcome.summary
    taken = {entry["name"]: entry["rounds"] for entry in summary["devices"]}
    assert (taken["d0"], taken["d1"], taken.get("d2", 0)) == (2, 2, 0)
    reasons = [fault["problem"] for fault in summary["faults"] if fault["node"] == "d2"]
    assert "edge south: its update is not signed by it: the signature does not fit" in reasons
    assert "device d0 refused: edge south: its join is not signed by it" in nodes.log("cloud")
    assert "adapter of device 'd0', which is not its own" in nodes.log("cloud")
    assert "Traceback" not in nodes.log("cloud") + nodes.log("edge")


@pytest.mark.process
@pytest.mark.parametrize("adapter", ["none", "stochastic(4) | zstd"])
def test_coded_adapters_and_rehearsals_are_signed_too(tmp_path: Path, adapter: str) -> None:
    values = fleet(
        tmp_path,
        2,
        run={"rounds": 2, "topology": "u_shaped"},
        training={"local_steps": 2, "micro_batches": "auto"},
        codec={"adapter": adapter},
    )
    for entry in values["devices"]:
        entry["tail_layers"] = 1
    outcome = run(tmp_path, values, "--tls")
    assert outcome.code == 0, outcome.output + outcome.logs()
    assert outcome.summary["faults"] == []
