"""What goes wrong, tried: bad settings and data, absent peers, bad messages, killed processes.

Real processes and sockets, unless a test says otherwise. A user's mistake is one line that names
field, value and fix; nothing hangs, and nothing is left running.
"""

from __future__ import annotations

import contextlib
import json
import queue
import random
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from sfl.codec.pipeline import parse
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.transport.frames.tensors import encode_tensor
from sfl.transport.frames.wire import EDGE_SESSION, WIRE_VERSION
from sfl.v1 import edge_pb2
from tests.house.federation import sfl, write_config
from tests.house.files import write_jsonl
from tests.house.fleets import LASTING, LOST_IS_LOST, device, fleet, lasting, settings, tiny
from tests.house.nodes import ByHand, launched, left_running, node_process
from tests.house.twin import Twin, played
from tests.house.waiting import PATIENCE, until

pytestmark = pytest.mark.process

# -- (a) configuration and data --------------------------------------------------------------------


def occupied() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def no_model(values: dict[str, Any], folder: Path) -> None:
    values["model"]["path"] = str(folder / "absent")


def pickled_model(values: dict[str, Any], folder: Path) -> None:
    model = folder / "pickled"
    model.mkdir()
    (model / "config.json").write_text((tiny("llama") / "config.json").read_text())
    (model / "pytorch_model.bin").write_bytes(b"\x80")
    values["model"]["path"] = str(model)


def no_data(values: dict[str, Any], folder: Path) -> None:
    values["devices"][1]["train"] = str(folder / "absent.jsonl")


def deep_cut(values: dict[str, Any], folder: Path) -> None:
    values["devices"][0]["cut_layer"] = 7


def vanilla_tail(values: dict[str, Any], folder: Path) -> None:
    values["devices"][0]["tail_layers"] = 1


def beyond_the_context(values: dict[str, Any], folder: Path) -> None:
    values["model"]["max_length"] = 65


def unknown_key(values: dict[str, Any], folder: Path) -> None:
    values["training"]["learning_rat"] = 1


def strange_label(values: dict[str, Any], folder: Path) -> None:
    rows = [{"text": "w1 w2", "label": "yes"}] * 6 + [{"text": "w1", "label": "perhaps"}]
    values["model"] |= {"task": "sequence_classification", "labels": ["yes", "no"]}
    for entry in values["devices"]:
        entry["train"] = str(write_jsonl(folder / "labels.jsonl", rows))


def empty_part(values: dict[str, Any], folder: Path) -> None:
    rows = [{"prompt": "w1", "completion": "w2"}]
    values["data"]["train"] = str(write_jsonl(folder / "few.jsonl", rows))
    for entry in values["devices"]:
        del entry["train"]


def broken_row(values: dict[str, Any], folder: Path) -> None:
    (folder / "broken.jsonl").write_text('{"prompt": "w1", "completion": "w2"}\n{"prompt" 5}\n')
    values["devices"][0]["train"] = str(folder / "broken.jsonl")


def bad_codec(values: dict[str, Any], folder: Path) -> None:
    values["codec"] = {"activation": "int7"}


def strange_target(values: dict[str, Any], folder: Path) -> None:
    values["lora"]["target_modules"] = ["query_proj"]


def idle_batching(values: dict[str, Any], folder: Path) -> None:
    values["edge"]["batch_devices"] = 4


MISTAKES = [
    (no_model, ["model.path", "absent", "no such folder"]),
    (pickled_model, ["model.path", ".bin", "save_pretrained"]),
    (no_data, ["devices.d1.train", "absent.jsonl"]),
    (deep_cut, ["devices.d0.cut_layer = 7", "3 blocks", "0 to 2"]),
    (vanilla_tail, ["tail_layers = 1", "vanilla", "u_shaped"]),
    (beyond_the_context, ["model.max_length = 65", "context is 64 tokens", "at most 64"]),
    (unknown_key, ["training.learning_rat = 1", "unknown key", "'learning_rate'"]),
    (strange_label, ["perhaps", "line 7", "['yes', 'no']"]),
    (empty_part, ["data.train", "2"]),
    (broken_row, ["broken.jsonl", "line 2"]),
    (bad_codec, ["codec", "int7", "int8"]),
    (strange_target, ["lora.target_modules", "query_proj", "q_proj"]),
    (idle_batching, ["edge.batch_devices = 4", "reference", "to 1", "computation to lean"]),
]


@pytest.mark.parametrize(("spoil", "words"), MISTAKES, ids=lambda v: getattr(v, "__name__", ""))
def test_a_mistake_is_one_line_that_names_field_value_and_fix(
    tmp_path: Path, spoil: Callable[[dict[str, Any], Path], None], words: list[str]
) -> None:
    values = fleet(tmp_path, 2)
    spoil(values, tmp_path)
    done = sfl("run", write_config(tmp_path, values), timeout=PATIENCE)
    assert done.returncode not in (0, 70), done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(errors) == 1, done.stderr
    for word in words:
        assert word in errors[0], errors[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert not left_running(tmp_path)


@pytest.mark.parametrize("node", ["cloud", "edge"])
def test_a_port_in_use_is_named(tmp_path: Path, node: str) -> None:
    with contextlib.contextmanager(occupied)() as port:
        values = fleet(tmp_path, 2)
        values.setdefault(node, {})["listen"] = f"127.0.0.1:{port}"
        done = sfl("run", write_config(tmp_path, values), timeout=PATIENCE)
    assert done.returncode != 0
    assert f"{node}.listen = '127.0.0.1:{port}'" in done.stderr
    assert "in use" in done.stderr
    assert not left_running(tmp_path)


def test_a_run_of_that_name_exists(tmp_path: Path) -> None:
    config = write_config(tmp_path, fleet(tmp_path, 2))
    (tmp_path / "runs" / "t").mkdir(parents=True)
    (tmp_path / "runs" / "t" / "metrics.jsonl").write_text("")
    done = sfl("run", config, timeout=PATIENCE)
    assert done.returncode != 0
    assert "run.id = 't'" in done.stderr


@pytest.mark.parametrize("command", [["cloud"], ["run"]])
def test_an_address_that_others_can_reach_needs_insecure(
    tmp_path: Path, command: list[str]
) -> None:
    values = fleet(tmp_path, 2)
    values["cloud"] = {"listen": "0.0.0.0:0"}
    done = sfl(*command, write_config(tmp_path, values), timeout=PATIENCE)
    assert done.returncode != 0
    assert "cloud.listen = '0.0.0.0:0'" in done.stderr
    assert "--insecure" in done.stderr


# -- (b) a peer that is not there ------------------------------------------------------------------


@pytest.mark.parametrize(("command", "peer"), [("edge", "cloud"), ("device", "edge")])
def test_an_absent_peer_is_waited_for_and_then_named(
    tmp_path: Path, command: str, peer: str
) -> None:
    file = tmp_path / "node.toml"
    file.write_text(f'[{command}]\nname = "n"\n{peer} = "127.0.0.1:1"\nconnect_timeout = 6\n')
    done = sfl(command, file, timeout=PATIENCE)
    assert done.returncode == 1
    assert f"waiting for {peer} at 127.0.0.1:1" in done.stderr
    assert f"{peer} at 127.0.0.1:1 did not answer within 6 s" in done.stderr
    assert "Traceback" not in done.stderr


# -- a run whose nodes are started by hand ---------------------------------------------------------


class Batching(ByHand):
    """With an edge that is to batch over devices."""

    edge_lines = "batch_devices = 2\n"


def test_an_edge_started_by_hand_refuses_a_run_that_it_cannot_batch(tmp_path: Path) -> None:
    once = {"rejoin_timeout": 0}  # or the cloud waits for an edge that is started again
    values = fleet(tmp_path, 2, training={"computation": "reference"}, network=once)
    nodes = Batching(tmp_path, values)
    try:
        outcome = nodes.outcome()
        assert nodes.edge.wait(PATIENCE) != 0 != outcome.code
    finally:
        nodes.stop()
    for said in (outcome.output, nodes.log("edge")):
        for word in ("edge.batch_devices = 2", "computation is reference", "Set it to 1"):
            assert word in said, said
        assert "Traceback" not in said


def test_a_killed_device_is_left_out_and_joins_again_with_weights_from_its_edge(
    by_hand: Callable[..., ByHand],
) -> None:
    network = {"idle_timeout": 300.0, "rejoin_timeout": 2.0}
    nodes = by_hand("all", training={"local_steps": 20}, network=network)
    devices = [nodes.device(number) for number in range(3)]
    until(
        lambda: (
            nodes.status().get("round", 0) >= 1
            and all(d["step"] > 5 for d in nodes.status()["devices"])
        ),
        "steps of round 1",
    )
    shown = nodes.metrics("edge")
    for number in range(3):
        assert re.search(rf'sfl_tokens_total{{.*device="d{number}".*}} [1-9]', shown), shown
    assert re.search(r'sfl_step_phase_seconds_count{.*phase="forward".*} [1-9]', shown)
    assert "sfl_resident_memory_bytes" in nodes.metrics("cloud")
    devices[0].send_signal(signal.SIGSTOP)  # so that the round is not over before d1 is back
    devices[1].kill()
    until(lambda: nodes.status()["faults"], "the fault")
    nodes.device(1)
    until(
        lambda: {d["name"]: d["state"] for d in nodes.status()["devices"]}["d1"] == "ready",
        "the device again",
    )
    devices[0].send_signal(signal.SIGCONT)
    outcome = nodes.outcome()
    assert outcome.code == 0, outcome.output
    summary = outcome.summary
    (fault,) = summary["faults"]
    assert fault["node"] == "d1"
    assert summary["rounds"] == 3
    taken = {entry["name"]: entry["rounds"] for entry in summary["devices"]}
    assert taken["d0"] == taken["d2"] == 3
    assert 1 <= taken["d1"] < 3
    # Devices had no model folder: their span came from the edge, once; they share one cache here.
    fetched = [nodes.log(f"d{number}").count("fetching model.safetensors") for number in range(3)]
    assert 1 <= sum(fetched) <= 3
    assert nodes.log("d1").count("joining again") == 0
    blobs = list((nodes.folder / "cache" / "blobs").iterdir())
    whole = (tiny("llama") / "model.safetensors").stat().st_size
    assert blobs and max(blob.stat().st_size for blob in blobs) < whole


def test_a_device_that_falls_silent_is_left_out(by_hand: Callable[..., ByHand]) -> None:
    # Longer than a busy machine may need to import torch, during which nothing else can run.
    network = {"idle_timeout": 10.0, "heartbeat_interval": 0.5, "rejoin_timeout": 0}
    nodes = by_hand("all", training=LASTING, network=network)
    devices = [nodes.device(number) for number in range(3)]
    until(
        lambda: (
            nodes.status().get("round", 0) >= 1
            and all(d["step"] > 3 for d in nodes.status()["devices"])
        ),
        "steps of round 1",
    )
    devices[2].send_signal(signal.SIGSTOP)
    outcome = nodes.outcome()
    devices[2].send_signal(signal.SIGCONT)
    assert outcome.code == 0, outcome.output
    (fault,) = outcome.summary["faults"]
    assert fault["node"] == "d2"
    assert "not a byte" in fault["problem"]


# -- (c) bad messages ------------------------------------------------------------------------------


class Client:
    """A device written by hand, that says whatever a test wants."""

    def __init__(self, address: str, name: str, version: int = WIRE_VERSION) -> None:
        self._channel = grpc.insecure_channel(address)
        self._out: queue.SimpleQueue[edge_pb2.DeviceMessage | None] = queue.SimpleQueue()
        self.call = EDGE_SESSION.stub(self._channel)(iter(self._out.get, None))
        self.say(hello=edge_pb2.DeviceHello(device=name, wire_version=version))

    def say(self, **body: Any) -> None:
        self._out.put(edge_pb2.DeviceMessage(**body))

    def hear(self, body: str) -> Any:
        for message in self.call:
            if message.WhichOneof("body") == body:
                return getattr(message, body)
        raise AssertionError(f"no {body} came")

    def ending(self) -> tuple[grpc.StatusCode, str]:
        """How the edge closed the stream."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as error:
            return error.code(), error.details()
        finally:
            self._out.put(None)
            self._channel.close()
        raise AssertionError("the stream was closed without a reason")


def activation(rows: torch.Tensor, lengths: tuple[int, ...], **more: Any) -> list[Any]:
    key = Key(Purpose.TRAINING, more.pop("round", 1), more.pop("step", 0), more.pop("micro", 0))
    labels = torch.ones(sum(lengths), dtype=torch.int32).numpy()
    message = TensorMessage(
        Kind.ACTIVATION, key, more.pop("count", 1), lengths, rows, more.pop("labels", labels)
    )
    return encode_tensor(message, parse("none").encode(rows))


def bad_rows(value: float) -> torch.Tensor:
    rows = torch.zeros(4, 32)
    rows[1, 1] = value
    return rows


BAD_TENSORS: list[tuple[str, Callable[[], list[Any]], str]] = [
    ("width", lambda: activation(torch.zeros(4, 31), (4,)), "shape"),
    ("rows", lambda: activation(torch.zeros(3, 32), (4,)), "does not fit 4 tokens"),
    ("nan", lambda: activation(bad_rows(float("nan")), (4,)), "NaN or infinite"),
    ("infinite", lambda: activation(bad_rows(float("inf")), (4,)), "NaN or infinite"),
    ("dtype", lambda: activation(torch.zeros(4, 32, dtype=torch.float16), (4,)), "dtype"),
    ("step", lambda: activation(torch.zeros(4, 32), (4,), step=3), "step 3 arrived"),
    ("round", lambda: activation(torch.zeros(4, 32), (4,), round=9), "round 9 is not open"),
    ("length", lambda: activation(torch.zeros(25, 32), (25,)), "max_length"),
    (
        "labels",
        lambda: activation(torch.zeros(4, 32), (4,), labels=torch.full((4,), 999).int().numpy()),
        "label is outside",
    ),
    ("frame", lambda: activation(torch.ones(3000, 32), (3000,))[-1:], "bytes announced"),
]


def test_bad_messages_close_their_own_stream_and_no_other(by_hand: Callable[..., ByHand]) -> None:
    # The bad client takes the third place again and again, and the others go on.
    nodes = by_hand(
        run={"rounds": 2, "min_devices": 2}, training={"local_steps": 5}, network={"credits": 2}
    )
    wrong = Client(nodes.edge_address, "d2", version=99).ending()
    assert wrong[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert "wire version 99" in wrong[1]
    unknown = Client(nodes.edge_address, "stranger").ending()
    assert unknown[0] is grpc.StatusCode.FAILED_PRECONDITION
    assert "known: d0, d1, d2" in unknown[1]
    bad = Client(nodes.edge_address, "d2")
    bad.hear("welcome")
    double = Client(nodes.edge_address, "d2").ending()
    assert double[0] is grpc.StatusCode.ALREADY_EXISTS
    assert "connected already" in double[1]
    for number in range(2):
        nodes.device(number)
    bad.say(ready=edge_pb2.DeviceReady(num_examples=8, snapshot=_snapshot("d2")))
    assert bad.hear("start").round == 1
    name, make, words = BAD_TENSORS[0]
    for frame in make():
        bad.say(tensor=frame.message())
    code, details = bad.ending()
    assert code is grpc.StatusCode.INVALID_ARGUMENT, (name, details)
    assert words in details
    outcome = nodes.outcome()
    assert outcome.code == 0, outcome.output
    assert {fault["node"] for fault in outcome.summary["faults"]} == {"d2"}


def _snapshot(name: str) -> str:
    from sfl.metrics.stats import NodeStats

    return NodeStats(name, "device").snapshot().to_json()


@pytest.fixture(scope="module")
def lone_edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByHand]:
    """A run of one device that fails whenever the device does: each bad tensor needs its own."""
    folder = tmp_path_factory.mktemp("bad")
    values = fleet(folder, 12, run={"rounds": 1, "min_devices": 1}, network={"credits": 2})
    nodes = ByHand(folder, values)
    yield nodes
    nodes.stop()


@pytest.fixture(scope="module")
def clients(lone_edge: ByHand) -> list[Client]:
    """All twelve devices of a run, by hand, in an open round."""
    opened = [Client(lone_edge.edge_address, f"d{number}") for number in range(12)]
    for number, client in enumerate(opened):
        client.hear("welcome")
        client.say(ready=edge_pb2.DeviceReady(num_examples=8, snapshot=_snapshot(f"d{number}")))
    for client in opened:
        assert client.hear("start").round == 1
    return opened


@pytest.mark.parametrize(
    "number", range(len(BAD_TENSORS)), ids=[name for name, _, _ in BAD_TENSORS]
)
def test_a_bad_tensor_closes_its_stream_with_a_status_that_says_why(
    clients: list[Client], number: int
) -> None:
    _, make, words = BAD_TENSORS[number]
    for frame in make():
        clients[number].say(tensor=frame.message())
    code, details = clients[number].ending()
    assert code is grpc.StatusCode.INVALID_ARGUMENT, details
    assert words in details


def test_more_in_flight_than_credits_closes_the_stream(clients: list[Client]) -> None:
    for micro in range(4):
        for frame in activation(torch.zeros(4, 32), (4,), micro=micro, count=4):
            clients[10].say(tensor=frame.message())
    code, details = clients[10].ending()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "network.credits" in details


# -- (d) sequences over the context ----------------------------------------------------------------


def test_long_sequences_are_cut_and_counted(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = [f"w{number}" for number in range(20)]
    rows = [{"prompt": " ".join(rng.choices(words, k=30)), "completion": "w1 w2"}] * 5
    rows += [{"prompt": "w3", "completion": "w4"}] * 5
    values = settings(tiny("llama"), run={"rounds": 1})
    values["devices"] = [device("a", write_jsonl(tmp_path / "a.jsonl", rows), 1)]
    outcome = played(tmp_path, values)
    assert outcome.code == 0, outcome.output
    log = outcome.logs()
    cut = "5 examples were longer than 24 tokens and were cut, the prompt first, from its left"
    assert f"sfl.device: {cut}" in log
    assert f"sfl.cloud: device a: {cut}" in log


# -- (e) interrupted, (f) killed ------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_running_and_nothing_half_written(
    tmp_path: Path, how: signal.Signals
) -> None:
    process = launched(tmp_path, lasting(tmp_path, training={"local_steps": 5000}), alone=True)
    process.send_signal(how)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not left_running(tmp_path)
    folder = tmp_path / "runs" / "t"
    assert json.loads((folder / "summary.json").read_text())["failure"]
    assert json.loads((folder / "status.json").read_text())["phase"] == "failed"
    leftovers = [p for p in folder.rglob("*") if p.suffix in (".tmp", ".partial")]
    assert not leftovers


def test_children_end_when_the_launcher_is_killed(tmp_path: Path) -> None:
    process = launched(tmp_path, lasting(tmp_path, training={"local_steps": 5000}), alone=True)
    process.kill()
    process.communicate()
    until(lambda: not left_running(tmp_path), "the end of all children")


def test_a_killed_device_does_not_stop_the_run(tmp_path: Path) -> None:
    process = launched(tmp_path, lasting(tmp_path, **LOST_IS_LOST))
    node_process(tmp_path, "d0").kill()
    output, errors = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == 0, output + errors
    summary = json.loads((tmp_path / "runs" / "t" / "summary.json").read_text())
    assert [fault["node"] for fault in summary["faults"]] == ["d0"]
    assert summary["rounds"] == 3
    assert not left_running(tmp_path)


@pytest.mark.parametrize("name", ["edge", "cloud"])
def test_a_killed_server_ends_the_run_and_is_named(tmp_path: Path, name: str) -> None:
    process = launched(tmp_path, lasting(tmp_path, training={"local_steps": 5000}, **LOST_IS_LOST))
    node_process(tmp_path, name).kill()
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode not in (0, 70)
    assert name in errors
    assert "SIGKILL" in errors
    assert not left_running(tmp_path)


def test_too_few_devices_end_the_run_with_their_names(tmp_path: Path) -> None:
    """With processes: `test_too_few_devices_are_the_reason_everywhere`."""
    twin = Twin(tmp_path, fleet(tmp_path, **LOST_IS_LOST))
    for name in ("d0", "d1"):
        twin.at(name, 1, 3, twin.lose)
    outcome = twin.run()
    assert outcome.code == 1
    assert "at least 2 devices" in outcome.output
    assert "d0: " in outcome.output and "d1: " in outcome.output


def test_help_is_everywhere() -> None:
    for command in (
        [],
        ["run"],
        ["cloud"],
        ["edge"],
        ["device"],
        ["eval"],
        ["generate"],
        ["export"],
        ["init"],
        ["doctor"],
        ["config"],
        ["config", "show"],
    ):
        done = sfl(*command, "--help")
        assert done.returncode == 0
        assert "Usage" in done.stdout
    for package in ("cloud_aggregator", "edge_server", "device_agent"):
        done = sfl("--help", module=package)
        assert done.returncode == 0
        assert "CONFIG" in done.stdout.upper()
