"""What a device consents to, tried by an edge that asks for anything, over real TLS."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from device_agent.agent import DeviceAgent
from device_agent.consent import Consent
from sfl.cli.launch.node import device_node
from sfl.config import DeviceConfig, MetricsSettings, RunConfig, RunSettings, load_device, load_run
from sfl.data import load_tokenizer
from sfl.errors import ConfigError, ModelError
from sfl.node.certificates.authority import Authority
from sfl.node.certificates.own import load_own, settings_in
from sfl.rounds.assignment import assign
from sfl.rounds.values import DeviceWelcome, EdgeBase, Steps
from sfl.transport.frames.chunks import adapter_frames
from sfl.transport.frames.wire import EDGE_SESSION, WIRE_VERSION, generic_handler
from sfl.transport.frames.words import to_assignment, to_welcome
from sfl.v1 import edge_pb2, tensor_pb2
from tests.house.federation import sfl, write_config
from tests.house.files import write_jsonl
from tests.house.fleets import completions, fleet, tiny
from tests.house.named import Runs, copied
from tests.house.nodes import ByHand
from tests.house.tls import give, read_folder
from tests.house.waiting import PATIENCE, until

SECRET = "mother's maiden name"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("consent")
    (folder / "secret.txt").write_text(f"{SECRET}\n" * 20)
    completions(folder / "own.jsonl", 0)
    return folder


@pytest.fixture(scope="module")
def run_config(folder: Path) -> RunConfig:
    values = fleet(folder, 1)
    values["devices"][0]["train"] = str(folder / "own.jsonl")
    return load_run(write_config(folder, values))


def asked(config: RunConfig, *overrides: str) -> RunSettings:
    """What a hostile cloud or edge tells a device of the run."""
    entry = {"name": "d0", "cut_layer": 1}
    values = config.settings.model_dump(mode="json")
    values["devices"] = [entry]
    for override in overrides:
        section, key, value = override.split(":", 2)
        (entry if section == "device" else values[section])[key] = (
            int(value) if value.isdigit() else value
        )
    return RunSettings.model_validate(values)


class HostileEdge:
    """Says what a test wants, and keeps what the device says."""

    def __init__(self, folder: Path, settings: RunSettings, codecs: dict[str, str]) -> None:
        authority = Authority.create()
        edge = give(authority, folder / "edge", "edge", "edge", "127.0.0.1")
        device = give(authority, folder / "device", "device", "d0")
        self.own = load_own("device.tls", settings_in(device, "d0"), "device", "d0")
        self._settings, self._codecs = settings, codecs
        self.heard: list[edge_pb2.DeviceMessage] = []
        self.gone = threading.Event()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers(
            (generic_handler("sfl.v1.Edge", {EDGE_SESSION: self._session}),)
        )
        port = self._server.add_secure_port("127.0.0.1:0", read_folder(edge, "edge"))
        self.address = f"127.0.0.1:{port}"

    def __enter__(self) -> HostileEdge:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def _session(self, requests: Any, context: Any) -> Iterator[edge_pb2.EdgeMessage]:
        for message in requests:
            if not isinstance(message, edge_pb2.DeviceMessage):
                continue  # an activation
            self.heard.append(message)
            body = message.WhichOneof("body")
            if body == "hello":
                assert message.hello.wire_version == WIRE_VERSION
                own = assign(self._settings, EdgeBase(3), "d0")
                yield edge_pb2.EdgeMessage(
                    welcome=to_welcome(DeviceWelcome(self._settings, "t", own))
                )
            elif body == "ready":
                told = assign(self._settings, EdgeBase(3), "d0", 1, steps=Steps(2, 0, 2))
                codecs = told.codecs.model_copy(update=self._codecs)
                told = replace(told, codecs=codecs)
                yield edge_pb2.EdgeMessage(start=to_assignment(told))
                for frame in adapter_frames(tensor_pb2.AdapterHeader(round=1), b""):
                    yield edge_pb2.EdgeMessage(adapter=frame)
            elif body == "goodbye":
                self.gone.set()
                return

    def said(self, body: str) -> list[Any]:
        return [getattr(m, body) for m in self.heard if m.WhichOneof("body") == body]


def declined(folder: Path, edge: HostileEdge, **own: Any) -> str:
    """The reason of a device that takes no part."""
    values = {"train": folder / "own.jsonl", "model": str(tiny("llama")), **own}
    config = DeviceConfig(
        name="d0",
        edge=edge.address,
        cache_dir=folder / "cache",
        metrics=MetricsSettings(enabled=False),
        **values,
    )
    with edge, pytest.raises(ConfigError) as caught:
        DeviceAgent(config, insecure=False, own=edge.own).run(PATIENCE)
    assert edge.gone.wait(PATIENCE)
    assert caught.value.exit_code == 2
    assert edge.said("goodbye") == [str(caught.value)]  # so the others learn why
    return str(caught.value)


@pytest.mark.process
@pytest.mark.parametrize(
    ("ask", "own", "words"),
    [
        (["device:cut_layer:0"], {}, ["device.consent.min_cut_layer = 1", "cut_layer 0"]),
        (["device:cut_layer:1"], {"min_cut_layer": 2}, ["min_cut_layer = 2", "cut_layer 1"]),
        ([], {"topologies": ["u_shaped"]}, ["consent.topologies", "topology is vanilla"]),
        (["run:topology:u_shaped"], {"topologies": ["vanilla"]}, ["topology is u_shaped"]),
        (["codec:activation:fp16"], {"codecs": ["none"]}, ["the run codes activation as 'fp16'"]),
        (["codec:adapter:int8"], {"codecs": ["none"]}, ["the run codes adapter as 'int8'"]),
        (["codec:activation:auto", "codec:gradient:auto"], {"codecs": ["none"]}, ["activation"]),
    ],
)
def test_a_device_declines_what_its_own_file_does_not_allow(
    folder: Path,
    tmp_path: Path,
    run_config: RunConfig,
    ask: list[str],
    own: dict[str, Any],
    words: list[str],
) -> None:
    edge = HostileEdge(tmp_path, asked(run_config, *ask), {})
    reason = declined(folder, edge, consent=own)
    for word in [*words, "this device declines"]:
        assert word in reason
    assert not edge.said("ready")  # nothing of its data was read


@pytest.mark.process
@pytest.mark.parametrize("key", ["train", "eval"])
def test_a_path_never_comes_from_a_peer(
    folder: Path, tmp_path: Path, run_config: RunConfig, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: opened.append(str(self)) or real(self, *a, **k)
    )
    settings = asked(run_config, f"data:{key}:{folder / 'secret.txt'}")
    edge = HostileEdge(tmp_path, settings, {"activation": "fp16"})
    if key == "train":
        reason = declined(folder, edge, train=None)
        assert "device.train = None" in reason and "shared_train" in reason
    else:
        # It takes part, with what it holds out of its own; the codec ends it.
        declined(folder, edge, consent={"codecs": ["none"]})
        assert edge.said("ready")[0].num_eval_examples < 5
    assert str(folder / "secret.txt") not in opened
    assert SECRET not in "".join(map(str, edge.heard))


@pytest.mark.process
def test_an_edge_does_not_change_the_codec_in_mid_run(
    folder: Path, tmp_path: Path, run_config: RunConfig
) -> None:
    edge = HostileEdge(tmp_path, asked(run_config), {"gradient": "topk(0.3) | stochastic(4)"})
    reason = declined(folder, edge, consent={"codecs": ["none"]})
    assert "the run codes gradient as 'topk(0.3) | stochastic(4)'" in reason
    assert edge.said("ready") and not edge.said("adapter") and not edge.said("report")


def test_code_never_comes_from_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anybody asked at the terminal whether to run it."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    for named in ({}, {"tokenizer_class": "StrangeTokenizer"}):
        model = tmp_path / f"model{len(named)}"
        shutil.copytree(tiny("llama"), model)
        code = {"auto_map": {"AutoTokenizer": ["some/where--tokens.Strange", None]}, **named}
        file = model / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | code))
        config = model / "config.json"
        strange = json.loads(config.read_text()) | {"model_type": "strange"}
        config.write_text(json.dumps(strange))
        with contextlib.suppress(ModelError):
            load_tokenizer(model)


# -- the settings ----------------------------------------------------------------------------------


def own_file(folder: Path, **values: Any) -> DeviceConfig:
    return DeviceConfig(name="d0", **{"train": folder / "own.jsonl", **values})


def agreed(consent: Consent, settings: RunSettings) -> RunSettings:
    """What a device makes of settings, and of what it is assigned by them when it joins."""
    own = assign(settings, EdgeBase(4), settings.devices[0].name)
    return consent.agreed(settings, own)


@pytest.mark.process
def test_what_a_device_agrees_to_by_default(folder: Path, run_config: RunConfig) -> None:
    consent = Consent(own_file(folder))
    for ask in ("run:topology:u_shaped", "codec:activation:extreme", "device:cut_layer:2"):
        agreed(consent, asked(run_config, ask))
    presets = Consent(own_file(folder, consent={"codecs": ["compact", "fine"]}))
    written_out = ["codec:gradient:uniform(2, dither) | rans", "codec:activation:compact"]
    agreed(presets, asked(run_config, *written_out))
    with pytest.raises(ConfigError, match=r"gradient as 'uniform\(4, dither\) \| rans'"):
        agreed(
            presets, asked(run_config, "codec:gradient:uniform(4, dither) | rans", written_out[1])
        )
    with pytest.raises(ConfigError, match=r"device\.consent\.codecs = 'fp17'"):
        Consent(own_file(folder, consent={"codecs": ["fp17"]}))


@pytest.mark.process
def test_a_shared_file_is_the_devices_own_and_shared_out(
    folder: Path, run_config: RunConfig
) -> None:
    config = own_file(folder, train=None, shared_train=folder / "own.jsonl")
    hostile = asked(run_config, f"data:eval:{folder / 'secret.txt'}")
    data = agreed(Consent(config), hostile).data
    assert (data.train, data.eval) == (folder / "own.jsonl", None)


@pytest.mark.process
@pytest.mark.parametrize("key", ["train", "eval", "shared_train", "shared_eval"])
def test_data_lie_in_the_folders_that_a_device_reads_from(tmp_path: Path, key: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.jsonl").symlink_to(tmp_path / "other.jsonl")
    file = tmp_path / "device.toml"

    def check(source: str) -> None:
        file.write_text(
            f'[device]\nname = "d"\n{key} = "{source}"\n[device.consent]\ndata_dirs = ["data"]\n'
        )
        config = load_device(file)
        assert config.consent.data_dirs == (tmp_path / "data",)
        Consent(config).check_sources()

    check("data/a.jsonl")
    for source in ("b.jsonl", "data/../b.jsonl", "/etc/passwd", "data/link.jsonl", "no/body"):
        if source == "data/link.jsonl":
            (tmp_path / "other.jsonl").touch()
        with pytest.raises(ConfigError) as caught:
            check(source)
        assert caught.value.field == f"device.{key}"
        assert "device.consent.data_dirs" in str(caught.value)
    if key != "train":
        return
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "b"}])
    file.write_text(file.read_text().replace("no/body", "b.jsonl"))
    for command in ("device", "doctor"):
        done = sfl(command, file)
        assert "device.consent.data_dirs" in done.stdout + done.stderr
        assert done.returncode == {"device": 2, "doctor": 1}[command]


# -- runs ------------------------------------------------------------------------------------------


@pytest.mark.process
def test_on_one_machine_the_runs_file_is_the_devices_own(runs: Runs, tmp_path: Path) -> None:
    outcome = copied(runs("shared_data"), tmp_path)  # a node's files are written into it
    counts = [entry["num_examples"] for entry in outcome.summary["devices"]]
    assert 20 < sum(counts) < 30 and max(counts) - min(counts) <= 1
    node = device_node(
        outcome.folder, load_run(outcome.folder / "config.toml"), "d0", {"edge": "127.0.0.1:1"}
    )
    assert str(load_device(node.config).shared_train) == str(tmp_path / "all.jsonl")


@pytest.mark.process
def test_the_others_go_on_and_the_cloud_says_why_a_device_declined(tmp_path: Path) -> None:
    values = fleet(tmp_path, 3, run={"rounds": 1, "min_devices": 2})
    values["network"] = {**values.get("network", {}), "join_timeout": 900, "join_grace": 1.0}
    values["devices"][2]["cut_layer"] = 0
    values["data"]["eval"] = str(tmp_path / "nowhere.txt")  # a path of the cloud's, not sent on
    nodes = ByHand(tmp_path, values)
    try:
        declining = nodes.device(2, least_cut=1)
        assert declining.wait(PATIENCE) == 2
        until(lambda: nodes.status().get("faults"), "the fault")
        for number in range(2):
            nodes.device(number)
        outcome = nodes.outcome()
    finally:
        nodes.stop()
    assert outcome.code == 0, outcome.output
    first = next(fault for fault in outcome.summary["faults"] if fault["node"] == "d2")
    assert "device.consent.min_cut_layer = 1" in first["problem"]
    assert "cut_layer 0; this device declines" in nodes.log("d2")
    assert "Traceback" not in nodes.log("d2") + nodes.log("edge") + nodes.log("cloud")
