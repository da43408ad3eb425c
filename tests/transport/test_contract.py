"""Peers that say what they must not, over real sockets: it costs them their stream, nobody else's.

A device at a real edge, an edge at a real cloud, and an edge that devices dial.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from sfl.config import RunSettings
from sfl.data.example import DataNotes, Dataset
from sfl.errors import ConfigError, LinkLost, ProtocolError, RunFailed, SflError
from sfl.metrics.stats import NodeStats
from sfl.node.buffers import Chunks
from sfl.rounds.assignment import assign
from sfl.rounds.values import EdgeBase, Steps
from sfl.stage.messages import Kind
from sfl.transport.bulk.fetch import fetch_model
from sfl.transport.device.end import DeviceEnd
from sfl.transport.device.reader import Reader
from sfl.transport.frames.chunks import TensorAssembly
from sfl.transport.frames.envelope import Frame, _varint
from sfl.transport.frames.seal import seal
from sfl.transport.frames.wire import EDGE_FETCH_FILE, EDGE_LIST_FILES
from sfl.transport.frames.words import to_assignment
from sfl.v1 import cloud_pb2, edge_pb2, tensor_pb2
from tests.house.federation import write_config
from tests.house.fleets import fleet
from tests.house.hostile import MANIFEST, Device, Edge, edge_server, snapshot
from tests.house.links import joined
from tests.house.nodes import ByHand
from tests.house.waiting import PATIENCE, until

FORGED = "gone\n2026-11-26 12:00:00,000 ERROR   sfl.cloud: FORGED\x1b[31m \u202e\u2028" + "x" * 9000
DEEP = "[" * 100_000
HUGE = "9" * 400


def told(name: str, /, **changes: Any) -> str:
    """Statistics with some other values."""
    return json.dumps({**json.loads(snapshot(name)), **changes})


def report(name: str, /, **fields: Any) -> tensor_pb2.RoundReport:
    """What an honest device would report of round 1, but for `fields`."""
    honest = {"round": 1, "num_steps": 40, "train_loss": 1.0, "snapshot": snapshot(name)}
    return tensor_pb2.RoundReport(**{**honest, **fields})


# -- a device at its edge --------------------------------------------------------------------------

Attack = Callable[[Device], None]


def reports(**fields: Any) -> Attack:
    return lambda peer: peer.say(report=report(peer.name, **fields))


def beats(**changes: Any) -> Attack:
    return lambda peer: peer.say(
        heartbeat=tensor_pb2.Heartbeat(snapshot=told(peer.name, **changes))
    )


def bytes_of(data: bytes) -> Attack:
    return lambda peer: peer.say_bytes(data)


BESIDE = tensor_pb2.NamedTensor(name="x", codec="none", dtype="float32", shape=[1, 2], num_bytes=8)


def activation(**fields: Any) -> tensor_pb2.TensorFrame:
    honest = {
        "kind": 1,
        "purpose": 1,
        "round": 1,
        "num_micro_batches": 1,
        "lengths": [2],
        "codec": "none",
        "dtype": "float32",
        "shape": [2, 32],
        "num_bytes": 256,
    }
    header = tensor_pb2.TensorHeader(**{**honest, **fields})
    return tensor_pb2.TensorFrame(header=header, kind=header.kind, data=bytes(256), last=True)


def tensors(**fields: Any) -> Attack:
    return lambda peer: peer.say(tensor=activation(**fields))


def adapters(*headers: dict[str, Any]) -> Attack:
    def attack(peer: Device) -> None:
        for fields in headers:
            honest = {"round": 1, "final_step": 40, "num_bytes": 0, "scaling": 2.0}
            header = tensor_pb2.AdapterHeader(**{**honest, **fields})
            peer.say(adapter=tensor_pb2.AdapterFrame(header=header, last=header.num_bytes == 0))

    return attack


def twice_ready(peer: Device) -> None:
    peer.ready()


def flood(peer: Device) -> None:
    for _ in range(2000):
        peer.say(heartbeat=tensor_pb2.Heartbeat(snapshot=snapshot(peer.name)))


def filled(message: Any) -> Any:
    """The message made as large as an edge takes by a field that nobody knows, which is passed on:
    with the device's name beside it, no cloud takes it."""
    size = (8 << 20) - 18 - 7 - message.ByteSize()
    message.MergeFromString(_varint(15000 << 3 | 2) + _varint(size) + bytes(size))
    return message


def full_report(peer: Device) -> None:
    peer.say(report=filled(report(peer.name)))


def full_ready(peer: Device) -> None:
    peer.say(ready=filled(edge_pb2.DeviceReady(num_examples=8, snapshot=snapshot(peer.name))))


def norms(peer: Device) -> None:
    peer.say(norm=edge_pb2.GradientNorm(round=1, step=0, squared=math.nan))


IN_A_ROUND: list[tuple[str, Attack, str]] = [
    ("spans cut short", reports(spans='{"a":'), "the spans of a step are malformed"),
    ("spans nested deep", reports(spans=DEEP), "the spans of a step are malformed"),
    ("spans not a list", reports(spans='{"a": 1}'), "the spans of a step are malformed"),
    ("spans without end", reports(spans=f'[["forward","a",0,1,{HUGE}]]'), "spans of a step"),
    ("another round", reports(round=3), "round = 3 of a report, and round 1 is open"),
    ("other steps", reports(num_steps=2), "num_steps of a report = 2, and 40 was expected"),
    ("loss NaN", reports(train_loss=math.nan), "train_loss = nan"),
    ("loss below 0", reports(train_loss=-1.0), "train_loss = -1.0"),
    ("tokens", reports(num_tokens=2**63), "num_tokens = 9223372036854775808"),
    ("seconds", reports(train_seconds=math.inf), "seconds of a report = inf"),
    ("timings", reports(rehearsal=[1.0]), "timings in a report = 1, and 0 was expected"),
    (
        "examples of a score",
        reports(evaluation=tensor_pb2.Score(num_examples=3)),
        "num_examples of a score = 3: 0 to 2",
    ),
    (
        "score",
        reports(evaluation=tensor_pb2.Score(num_examples=2, num_correct=3)),
        "num_correct = 3: 0 to 2",
    ),
    (
        "sample",
        reports(
            evaluation=tensor_pb2.Score(num_examples=1), sample=tensor_pb2.Score(num_examples=2)
        ),
        "num_examples of a score = 2: 0 to 1",
    ),
    ("no statistics", reports(snapshot="nothing"), "statistics of a node are not JSON"),
    ("statistics nested deep", reports(snapshot=DEEP[:60000]), "are not JSON"),
    ("statistics long", reports(snapshot=DEEP), "65536 are allowed"),
    ("another's statistics", beats(name="d0"), "statistics of device 'd0' in place of device"),
    ("a number of 400 digits", beats(loss=int(HUGE)), "is not a number within"),
    ("a negative count", beats(tokens=-1), "-1 is not a count"),
    ("a word with a line end", beats(paused="a\nb"), "is not a word"),
    ("half a surrogate pair", beats(paused="\ud800"), "is not a word"),
    ("a wrong type", beats(bytes=[1]), "malformed"),
    ("a flood", flood, "heartbeats a second"),
    ("ready twice", twice_ready, "ready was said twice"),
    ("a norm NaN", norms, "squared norm of a gradient = nan"),
    ("no protobuf", bytes_of(b"\xff\xff\xff"), "a message of 12 bytes is not protobuf"),
    ("not UTF-8", bytes_of(b"\x42\x02\xff\xfe"), "is not protobuf"),
    ("empty", bytes_of(b""), "an empty message was not expected"),
    ("of another version", bytes_of(b"\xfa\x07\x01x"), "an empty message was not expected"),
    ("hello again", lambda peer: peer.hello() and None, "hello was not expected"),
    ("a kind of tensor", tensors(kind=9), "kind 9 of a tensor does not exist"),
    ("a purpose", tensors(purpose=7), "7 is not a valid Purpose"),
    ("normalizer", tensors(normalizer=2**32 - 1), "normalizer = 4294967295"),
    ("micro-batches", tensors(num_micro_batches=2**31), "num_micro_batches = 2147483648"),
    ("sequences", tensors(lengths=[1] * 5000, shape=[5000, 32]), "sequences of a tensor = 5000"),
    ("a tensor beside", tensors(named=[BESIDE]), "tensor 'x' was not expected"),
    ("many beside", tensors(named=[BESIDE] * 5000), "5000 named tensors; 16 are allowed"),
    ("one beside twice", tensors(named=[BESIDE] * 2), "'x' is no name of a tensor, or comes twice"),
    (
        "more beside than came",
        tensors(named=[tensor_pb2.NamedTensor(name="x", shape=[1, 2], num_bytes=2**64 - 1)]),
        "named tensors of more than the 256 bytes that came",
    ),
    ("length", tensors(lengths=[2**32 - 1] * 2), "does not fit"),
    ("an adapter too large", adapters({"num_bytes": 700 << 20}), "num_bytes of an adapter"),
    ("of another round", adapters({"round": 4_000_000_000}), "round = 4000000000 of an adapter"),
    ("twice", adapters({"num_bytes": 100}, {}), "the device's part of round 1 came twice"),
    ("scaling", adapters({"scaling": math.nan}), "scaling of an adapter = nan"),
    ("a report that fills a message", full_report, "a report takes 83885"),
    (
        "a signature of 7 MiB",
        adapters({"signature": tensor_pb2.Signature(value=bytes(7 << 20))}),
        "the header of an adapter takes 73",
    ),
    ("a codec that is longer in words", tensors(codec="\x01" * 3_000_000), r"codec '\x01\x01"),
]


class Alone(ByHand):
    """A run whose devices are all of them by hand."""


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    folder = tmp_path_factory.mktemp("hostile")
    count = len(IN_A_ROUND) + 16
    values = fleet(folder, count, run={"rounds": 1, "min_devices": 1})
    values["network"] = {**values.get("network", {}), "join_timeout": 900}
    nodes = Alone(folder, values)
    yield nodes
    nodes.stop()


@pytest.fixture(scope="module")
def in_a_round(edge: Alone) -> list[Device]:
    """All devices of the run, in an open round."""
    peers = [
        Device(edge.edge_address, f"d{number}").join().ready()
        for number in range(len(edge.values["devices"]))
    ]
    for peer in peers:
        assert peer.hear("start").round == 1
    return peers


@pytest.fixture(scope="module")
def early(edge: Alone) -> None:
    """What needs a name that no round has yet, before all names are in one."""
    attacks: list[tuple[Attack, str]] = [
        (reports(), "a report came that was not expected"),
        (adapters({}), "no adapter of side 'device' is expected"),
        (lambda peer: peer.ready(num_examples=0), "num_examples = 0"),
        (lambda peer: peer.ready(example_kind="odd\n"), r"example_kind = 'odd\n'"),
        (lambda peer: peer.ready(num_eval_examples=2**40), "num_eval_examples = "),
        (
            lambda peer: peer.ready(num_eval_examples=10_000_001),
            "num_eval_examples = 10000001: 0 to",
        ),
        (lambda peer: peer.ready(num_repeated=2**40), "num_repeated = "),
        (lambda peer: peer.ready(num_tokens=2**63), "num_tokens = "),
        (lambda peer: peer.ready(layout="x" * (3 << 20)), "layout = 'xxx"),
        (lambda peer: peer.ready(chat_template="\x1b[31m" * 3), "it is not a digest"),
        (full_ready, "ready takes 8388590"),
    ]
    for number, (what, words) in enumerate(attacks):
        peer = Device(edge.edge_address, f"d{number}").join()
        what(peer)
        code, details = peer.ending()
        assert (code, words in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details
    for first, words in (
        (lambda peer: peer.say(tensor=activation()), "a stream begins with a hello"),
        (bytes_of(b"\xff\xff"), "is not protobuf"),
        (bytes_of(b""), "a stream begins with a hello"),
    ):
        peer = Device(edge.edge_address, "d0")
        first(peer)
        code, details = peer.ending()
        assert (code, words in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details
    channel = grpc.insecure_channel(edge.edge_address)
    for method in (EDGE_LIST_FILES, EDGE_FETCH_FILE):
        make = channel.unary_stream if method.streams[1] else channel.unary_unary
        with pytest.raises(grpc.RpcError) as caught:
            answer = make(method.path)(seal(b"\xff\xff"), timeout=PATIENCE)
            list(answer)
        assert "is not protobuf" in caught.value.details()
    channel.close()
    until(lambda: edge.status(), "the status")


@pytest.mark.process
@pytest.mark.parametrize("number", range(len(IN_A_ROUND)), ids=[name for name, _, _ in IN_A_ROUND])
def test_what_a_device_may_not_say_ends_its_own_stream(
    early: None, edge: Alone, in_a_round: list[Device], number: int
) -> None:
    _, attack, words = IN_A_ROUND[number]
    peer = in_a_round[number]
    attack(peer)
    code, details = peer.ending()
    assert code is grpc.StatusCode.INVALID_ARGUMENT, details
    assert words in details
    assert edge.edge.poll() is None and edge.cloud.poll() is None


@pytest.mark.process
def test_a_goodbye_forges_no_line(early: None, edge: Alone, in_a_round: list[Device]) -> None:
    peer = in_a_round[len(IN_A_ROUND)]
    peer.say(goodbye=FORGED)
    for node in ("edge", "cloud"):
        until(lambda node=node: "FORGED" in edge.log(node), f"the goodbye in the {node}'s log")
        (line,) = [line for line in edge.log(node).splitlines() if "FORGED" in line]
        assert r"gone\n2026-11-26" in line and r"\x1b[31m \u202e\u2028" in line
        assert len(line) < 1000
    until(lambda: any("FORGED" in fault for fault in edge.status()["faults"]), "the fault")
    assert all("\n" not in fault and "\x1b" not in fault for fault in edge.status()["faults"])
    peer.close()


def large(data: bytes, padding: int, crumbs: int = 0) -> bytes:
    """A message that holds a frame of `data`, and far more bytes around it."""
    frame = tensor_pb2.TensorFrame(data=data, kind=1).SerializeToString()  # type: ignore[arg-type]
    if crumbs:
        frame = frame + (b"\x12\x01x" * crumbs) + b"\x12\x00"
    else:
        frame = b"\x12" + _varint(padding) + bytes(padding) + frame + b"\x12\x00"
    return b"\x1a" + _varint(len(frame)) + frame


@pytest.mark.process
def test_what_a_stream_holds_is_what_it_counts(
    early: None, edge: Alone, in_a_round: list[Device]
) -> None:
    """Frames that count nothing: their messages are not kept alive by a view of them."""
    process = psutil.Process(edge.edge.pid)
    for number, (count, padding, crumbs) in enumerate(((120, 7 << 20, 0), (4, 0, 1 << 20))):
        peer = in_a_round[len(IN_A_ROUND) + 1 + number]
        header = tensor_pb2.TensorHeader(kind=1, num_bytes=1024)  # type: ignore[arg-type]
        peer.say(tensor=tensor_pb2.TensorFrame(header=header, kind=header.kind))
        before = process.memory_info().rss
        message = large(b"", padding, crumbs)
        for _ in range(count):
            peer.say_bytes(message)
        peer.say_bytes(b"")
        code, details = peer.ending()
        assert code is grpc.StatusCode.INVALID_ARGUMENT and "empty message" in details
        assert process.memory_info().rss - before < 200 << 20


@pytest.mark.parametrize("size", [1, 100, 1 << 16])
def test_a_payload_in_crumbs_comes_out_whole(size: int) -> None:
    payload = bytes(range(256)) * 1024
    header = tensor_pb2.TensorHeader(kind=1, num_bytes=len(payload))  # type: ignore[arg-type]
    assembly = TensorAssembly(len(payload))
    for at in range(0, len(payload), size):
        data = payload[at : at + size]
        last = at + size >= len(payload)
        whole = assembly.add(Frame(header if at == 0 else None, Chunks([data]), last, 1))
        assert (whole is not None) == last
    assert whole is not None and bytes(whole[1]) == payload
    assert len(whole[1].pieces) <= 1 + len(payload) // (1 << 16)


@pytest.mark.process
def test_none_of_it_is_a_bug_and_the_rest_goes_on(
    early: None, edge: Alone, in_a_round: list[Device]
) -> None:
    for node in ("edge", "cloud"):
        assert "Traceback" not in edge.log(node)
        assert "a bug" not in edge.log(node)
    # Somebody who has said nothing wrong is still there.
    in_a_round[-1].say(heartbeat=tensor_pb2.Heartbeat(snapshot=snapshot(in_a_round[-1].name)))
    in_a_round[-1].hear("heartbeat")


# -- an edge at its cloud --------------------------------------------------------------------------


class CloudAlone(ByHand):
    """A cloud whose edges are all by hand."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder, self.values, self.processes = folder, values, []
        self.config = write_config(folder, values)
        self.cloud = self.start("cloud", self.config)
        self.cloud_address = self.address("cloud")


def of(device: str, body: str, **fields: Any) -> cloud_pb2.EdgeReportMessage:
    """What an edge says of one of its devices."""
    if body == "report":
        said = report(device, **fields)
        said.device = device
        return cloud_pb2.EdgeReportMessage(report=said)
    if body == "ready":
        honest = {"num_examples": 8, "num_eval_examples": 2, "snapshot": snapshot(device)}
        ready = cloud_pb2.DeviceIsReady(
            device=device, ready=edge_pb2.DeviceReady(**{**honest, **fields})
        )
        return cloud_pb2.EdgeReportMessage(device_ready=ready)
    honest = {"round": 1, "final_step": 40, "num_bytes": 4, "scaling": 2.0, "side": "device"}
    header = tensor_pb2.AdapterHeader(device=device, **{**honest, **fields})
    frame = tensor_pb2.AdapterFrame(header=header, data=b"1234", last=True)
    return cloud_pb2.EdgeReportMessage(adapter=frame)


SPOKEN: list[tuple[str, dict[str, Any], str]] = [
    ("ready", {"num_examples": 0}, "num_examples = 0"),
    ("ready", {"snapshot": snapshot("other")}, "in place of device"),
    ("report", {"spans": '{"a":'}, "the spans of a step are malformed"),
    ("report", {"edge_spans": DEEP}, "the spans of a step are malformed"),
    ("report", {"round": 3}, "round = 3 of a report"),
    ("report", {"train_loss": math.nan}, "train_loss = nan"),
    ("report", {"snapshot": told("d0", loss=int(HUGE))}, "is not a number within"),
    ("adapter", {"round": 4_000_000_000}, "round = 4000000000 of an adapter"),
    ("adapter", {"num_bytes": 200 << 20}, "num_bytes of an adapter = 209715200"),
    ("adapter", {"num_bytes": 3}, "more than the announced 3 bytes came"),
    ("adapter", {"num_bytes": 5}, "4 bytes came, 5 were announced"),
    ("adapter", {"side": "../../x"}, "no adapter of side '../../x' is expected"),
    ("adapter", {"side": "edge", "scaling": math.inf}, "scaling of an adapter = inf"),
]


@pytest.mark.process
def test_what_is_wrong_with_one_device_costs_that_device_and_not_its_edge(tmp_path: Path) -> None:
    values = fleet(tmp_path, len(SPOKEN) + 1, run={"rounds": 1, "edges": ["e1", "e2"]})
    values["network"] = {**values.get("network", {}), "join_timeout": 900}
    nodes = CloudAlone(tmp_path, values)
    try:
        edge = Edge(nodes.cloud_address, "e1").join()
        names = [entry["name"] for entry in values["devices"]]
        early = [name for name, (body, _, _) in zip(names, SPOKEN, strict=False) if body == "ready"]
        for name in names:
            edge.bring(name)
        for name, (body, fields, words) in zip(names, SPOKEN, strict=False):
            if body == "ready":
                edge.say_bytes(of(name, body, **fields).SerializeToString())
                evicted = edge.hear("evict")
                assert evicted.device == name and words in evicted.reason
        late = [name for name in names if name not in early]
        for name in early:
            edge.bring(name)  # not for good
        for name in names:
            edge.say_bytes(of(name, "ready").SerializeToString())
        assert {entry.device for entry in edge.hear("start").devices} == set(names)
        assert late[-1] == names[-1]
        for name, (body, fields, words) in zip(names, SPOKEN, strict=False):
            if body != "ready":
                edge.say_bytes(of(name, body, **fields).SerializeToString())
                evicted = edge.hear("evict")
                assert evicted.device == name and words in evicted.reason, evicted
        # The last device has said nothing wrong: its edge still speaks for it.
        edge.say_bytes(of(names[-1], "report").SerializeToString())
        until(
            lambda: {d["name"]: d["state"] for d in nodes.status()["devices"]}[names[-1]] == "done",
            "the report of the last device",
        )
        spooled = [p.name for p in (tmp_path / "runs" / "t").rglob("*") if "spool" in str(p)]
        assert not any(".partial" in name for name in spooled)
        # And what is wrong with an edge's own words ends that edge's stream alone.
        for first, words in (
            (b"\xff\xff\xff", "is not protobuf"),
            (b"", "a stream begins with a hello"),
        ):
            other = Edge(nodes.cloud_address, "e2")
            other.say_bytes(first)
            code, details = other.ending()
            assert (code, words in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details
        large = json.dumps({**json.loads(MANIFEST.to_json()), "num_layers": 2**40})
        for manifest in (DEEP, "{}", large, MANIFEST.to_json().replace("[2, 4]", "[-2, 4e9]")):
            other = Edge(nodes.cloud_address, "e2").join(manifest)
            code, details = other.ending()
            assert code is grpc.StatusCode.INVALID_ARGUMENT, details
            assert "adapter manifest" in details
        edge.say(heartbeat=tensor_pb2.Heartbeat(snapshot=snapshot("e1", "edge")))
        edge.hear("heartbeat")
        assert "Traceback" not in nodes.log("cloud") and "a bug" not in nodes.log("cloud")
    finally:
        edge.close()
        nodes.stop()


# -- an edge that devices dial ---------------------------------------------------------------------

SETTINGS = RunSettings.model_validate({"model": {"path": "m"}, "devices": [{"name": "d"}]})
JOINED = assign(SETTINGS, EdgeBase(3), "d")
TOLD = assign(SETTINGS, EdgeBase(3), "d", 1, steps=Steps(2, 0, 2))
WELCOME = {
    "settings": SETTINGS.model_dump_json(),
    "run_id": "r",
    "assignment": to_assignment(JOINED),
}


def edge_says(
    *messages: edge_pb2.EdgeMessage | bytes,
) -> Callable[[Iterator[Any]], Iterator[bytes]]:
    def session(requests: Iterator[Any]) -> Iterator[bytes]:
        for message in messages:
            next(requests)  # a hello, and what comes once the device has its span
            yield message if isinstance(message, bytes) else message.SerializeToString()
        for _ in requests:
            pass

    return session


def welcome(**fields: Any) -> edge_pb2.EdgeMessage:
    return edge_pb2.EdgeMessage(welcome=edge_pb2.Welcome(**{**WELCOME, **fields}))


def start(**fields: Any) -> edge_pb2.EdgeMessage:
    return edge_pb2.EdgeMessage(start=changed(to_assignment(TOLD), **fields))


def changed(honest: edge_pb2.Assignment, **fields: Any) -> edge_pb2.Assignment:
    said = edge_pb2.Assignment(**fields)
    for name in fields:
        honest.ClearField(name)  # type: ignore[arg-type]
    honest.MergeFrom(said)
    return honest


def loads(**fields: Any) -> edge_pb2.EdgeMessage:
    """A welcome whose assignment is another."""
    return welcome(assignment=changed(to_assignment(JOINED), **fields))


def cut(first: int, last: int, holder: int = edge_pb2.HOLDER_EDGE) -> list[edge_pb2.HeldSpan]:
    """A device's embedding and first block, and a span after them."""
    return [
        edge_pb2.HeldSpan(last=1, embedding=True, holder=edge_pb2.HOLDER_DEVICE),
        edge_pb2.HeldSpan(first=first, last=last, head=True, holder=holder),  # type: ignore[arg-type]
    ]


def coded(activation: str) -> str:
    """A round's codecs with another one for activations."""
    return TOLD.codecs.model_copy(update={"activation": activation}).model_dump_json()


def adapter(**fields: Any) -> edge_pb2.EdgeMessage:
    header = tensor_pb2.AdapterHeader(**{"round": 1, "num_bytes": 4, **fields})
    frame = tensor_pb2.AdapterFrame(header=header, data=b"1234", last=True)
    return edge_pb2.EdgeMessage(adapter=frame)


def from_edge(**fields: Any) -> edge_pb2.EdgeMessage:
    return edge_pb2.EdgeMessage(tensor=activation(kind=int(Kind.GRADIENT), **fields))


EDGES: list[tuple[str, list[edge_pb2.EdgeMessage | bytes], type[SflError], str]] = [
    ("no protobuf", [b"\xff\xff"], ProtocolError, "a message of 11 bytes is not protobuf"),
    ("empty", [b""], ProtocolError, "an empty message"),
    ("no settings", [welcome(settings="{")], ProtocolError, "the run's settings"),
    ("nested deep", [welcome(settings=DEEP)], ProtocolError, "the run's settings"),
    (
        "not in it",
        [welcome(settings=WELCOME["settings"].replace('"d"', '"e"'))],
        ProtocolError,
        "have no device 'd'",
    ),
    ("run_id", [welcome(run_id="../x\n")], ProtocolError, r"run_id = '../x\n'"),
    ("layers", [loads(plan=cut(1, 2**31))], ProtocolError, "plan[1].last = 2147483648"),
    ("credits", [loads(credits=5)], ProtocolError, "credits = 5: 1 to 4"),
    ("rank", [loads(rank=9)], ProtocolError, "assignment.rank = 9: 1 to 8"),
    ("scaling", [loads(scaling=float("nan"))], ProtocolError, "assignment.scaling = nan"),
    ("no plan", [loads(plan=[])], ProtocolError, "spans of a plan = 0: 1 to"),
    ("a gap", [loads(plan=cut(2, 3))], ProtocolError, "plan[1].first = 2: 1 to 1"),
    ("a holder", [loads(plan=cut(1, 3, 7))], ProtocolError, "holder 7 is not known"),
    ("no edge", [loads(plan=cut(1, 3, 1))], ProtocolError, "plan = device, device: with"),
    ("nothing left", [loads(plan=cut(1, 1))], ProtocolError, "no block is the edge's"),
    ("another model", [welcome(), start(plan=cut(1, 4))], ProtocolError, "4 blocks: the model"),
    ("rank later", [welcome(), start(rank=0)], ProtocolError, "assignment.rank = 0: 1 to 8"),
    ("before welcome", [start()], ProtocolError, "before it said welcome"),
    ("twice", [welcome(), welcome()], ProtocolError, "said welcome twice"),
    ("steps", [welcome(), start(num_steps=3)], ProtocolError, "num_steps = 3: 0 to 2"),
    ("round", [welcome(), start(round=99)], ProtocolError, "round = 99"),
    ("pieces", [welcome(), start(micro_batches=2**20)], ProtocolError, "micro_batches = 1048576"),
    (
        "rehearsal",
        [welcome(), start(rehearse=[1] * 1000)],
        ProtocolError,
        "assignment.rehearse = 1000",
    ),
    (
        "rehearsed and trained",
        [welcome(), start(rehearse=[1])],
        ProtocolError,
        "num_steps = 2: a rehearsal trains nothing",
    ),
    (
        "steps past the end",
        [welcome(), start(first_step=1)],
        ProtocolError,
        "first_step = 1: 0 to 0",
    ),
    (
        "no codec",
        [loads(codecs=coded("nonsense"))],
        ProtocolError,
        "assignment.codecs.activation = 'nonsense': not a codec",
    ),
    (
        "no codec later",
        [welcome(), start(codecs=coded("delta(bigram) | none"))],
        ProtocolError,
        "assignment.codecs.activation = 'delta(bigram) | none': not a codec",
    ),
    (
        "a long codec",
        [welcome(), start(codecs=coded("x" * 2000))],
        ProtocolError,
        "characters of assignment.codecs.activation = 2000: 1 to 1024",
    ),
    ("codecs", [welcome(), start(codecs="[]")], ProtocolError, "codecs of a round"),
    ("adapter first", [welcome(), adapter()], ProtocolError, "before its round was announced"),
    ("adapter", [welcome(), start(), adapter(num_bytes=3 << 30)], ProtocolError, "are allowed"),
    ("no adapter", [welcome(), start(), adapter()], ProtocolError, "not a safetensors file"),
    ("tensor", [welcome(), start(), from_edge(num_bytes=1 << 30)], ProtocolError, "are allowed"),
    (
        "beside",
        [welcome(), start(), from_edge(named=[BESIDE])],
        ProtocolError,
        "tensor 'x' was not expected",
    ),
    ("kind", [welcome(), start(), from_edge(purpose=9)], ProtocolError, "not a valid Purpose"),
    (
        "norm",
        [welcome(), edge_pb2.EdgeMessage(norm=edge_pb2.GradientNorm(squared=-1.0))],
        ProtocolError,
        "squared norm of a gradient = -1.0",
    ),
    (
        "forged",
        [welcome(), edge_pb2.EdgeMessage(finish=edge_pb2.Finish(reason=FORGED))],
        RunFailed,
        r"gone\n2026-11-26",
    ),
]


def test_what_folds_is_bounded_by_the_span_too() -> None:
    values = {"model": {"path": "m"}, "devices": [{"name": "d"}, {"name": "e"}]}
    settings = RunSettings.model_validate({**values, "aggregation": {"strategy": "flora"}})
    stats = NodeStats("d", "device")
    own = assign(settings, EdgeBase(3), "d")
    end = DeviceEnd("d", own, settings, stats.phases, peer_compiled=True)
    reader = Reader(end, stats, lambda item: None)
    with pytest.raises(ProtocolError, match="1048576 bytes announced, 0 are allowed"):
        reader.take(adapter(side="stack", num_bytes=1 << 20))  # nor is any due before
    end.expect(lambda told: [(8, 64), (64, 8)], 64)
    with pytest.raises(ProtocolError, match="bytes announced"):
        reader.take(adapter(side="stack", num_bytes=1 << 20))
    header = tensor_pb2.AdapterHeader(side="stack", num_bytes=2 * 4 * 1024)  # of both devices
    reader.take(edge_pb2.EdgeMessage(adapter=tensor_pb2.AdapterFrame(header=header)))


def at_once(*messages: edge_pb2.EdgeMessage) -> Callable[[Iterator[Any]], Iterator[bytes]]:
    def session(requests: Iterator[Any]) -> Iterator[bytes]:
        next(requests)
        yield from (message.SerializeToString() for message in messages)
        for _ in requests:
            pass

    return session


@pytest.mark.process
def test_an_edge_that_sends_without_end_fills_no_device() -> None:
    """While it loads, or computes, a device takes nothing: what comes meanwhile would pile up."""
    norm = edge_pb2.EdgeMessage(norm=edge_pb2.GradientNorm(round=1))
    with edge_server(at_once(welcome(), *[norm] * 1000)) as address:
        link = joined(address, "d", PATIENCE)
        try:
            until(lambda: link.line._ended is not None, "the end of the stream")
            assert link.line._inbox.qsize() <= 20
            with pytest.raises(ProtocolError, match="more came than was requested"):
                for _ in range(20):
                    link.receive()
        finally:
            link.close()


def test_a_run_that_fails_while_a_device_fetches_is_its_reason() -> None:
    finish = edge_pb2.EdgeMessage(finish=edge_pb2.Finish(ok=False, reason="no CUDA device"))
    with edge_server(at_once(welcome(), finish)) as address:
        link = joined(address, "d", PATIENCE)
        try:
            until(lambda: link.line._ended is not None, "the end of the run")
            told = link.why(LinkLost("the transfer beside it broke"))
            assert isinstance(told, RunFailed) and str(told) == "no CUDA device"
        finally:
            link.close()


@pytest.mark.parametrize("number", range(len(EDGES)), ids=[name for name, _, _, _ in EDGES])
def test_what_an_edge_may_not_say_is_a_clear_end_for_its_device(number: int) -> None:
    _, messages, kind, words = EDGES[number]
    with edge_server(edge_says(*messages)) as address:
        with pytest.raises(kind) as caught, closing(joined(address, "d", PATIENCE)) as link:
            link.expect(lambda told: [(2, 2)], 32)
            for _ in range(3):
                link.ready(Dataset([], [], "text", DataNotes()))
            for _ in link.orders():
                pass
        assert words in str(caught.value)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 2100


@pytest.mark.process
def test_a_round_that_overtakes_the_welcome_is_the_edges_fault() -> None:
    norm = edge_pb2.EdgeMessage(norm=edge_pb2.GradientNorm(round=1))
    for early in (start(), from_edge(), adapter(), norm):
        with (
            edge_server(at_once(early, welcome())) as address,
            pytest.raises(ProtocolError, match="spoke of a round before it said welcome"),
        ):
            joined(address, "d", PATIENCE)


def test_a_round_may_be_announced_in_one_breath_with_the_welcome() -> None:
    """The thread that joins may still be at the welcome."""
    finish = edge_pb2.EdgeMessage(finish=edge_pb2.Finish(ok=True))
    with edge_server(at_once(welcome(), start(), finish)) as address:
        for _ in range(20):
            with closing(joined(address, "d", PATIENCE)) as link:
                assert list(link.orders()) == []


def listing(*sizes: int, names: str = "vocab.txt") -> bytes:
    files = [
        edge_pb2.FileEntry(name=names, num_bytes=size, sha256=f"{number:064x}")
        for number, size in enumerate(sizes)
    ]
    return edge_pb2.FileList(files=files).SerializeToString()


def twice(*sizes: int) -> bytes:
    """Files of one hash, of which only the last one's size fits the disk."""
    files = [edge_pb2.FileEntry(name="vocab.txt", num_bytes=s, sha256="0" * 64) for s in sizes]
    return edge_pb2.FileList(files=files).SerializeToString()


@pytest.mark.parametrize(
    ("files", "kind", "words"),
    [
        (b"\xff\xff", ProtocolError, "is not protobuf"),
        (listing(*[1] * 1000), ProtocolError, "1000 files from the edge"),
        (listing(1, names="../x"), ProtocolError, "not a plain file name"),
        (listing(2**60), ConfigError, "MB free, and the model's files from the edge take"),
        (listing(10), ProtocolError, "is longer than the 10 bytes it announced"),
        (twice(2**60, 1), ProtocolError, "has the hash of a file of another size"),
    ],
)
def test_a_fetch_is_no_more_than_was_announced(
    tmp_path: Path, files: bytes, kind: type[SflError], words: str
) -> None:
    def chunks() -> Iterator[bytes]:
        while True:
            yield edge_pb2.FileChunk(data=bytes(1 << 16)).SerializeToString()

    with (
        edge_server(edge_says(), lambda: files, chunks) as address,
        grpc.insecure_channel(address) as channel,
    ):
        with pytest.raises(kind, match=words):
            fetch_model(channel, "d", tmp_path, NodeStats("d", "device"), 10.0)
        left = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        assert left <= 1 << 16
