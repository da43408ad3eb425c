"""`sfl serve`, `sfl edge` with a [serve] table, `sfl generate --split`: files and processes."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from sfl.adapters.artifact import save_adapter
from sfl.adapters.lora import build_manifest
from sfl.cli.model import load_model
from sfl.cli.serve.here import device_file, edge_file
from sfl.cli.serve.split import generate_split
from sfl.config import LoraSettings, load_run
from sfl.config.serve import load_serve, load_serve_device, load_serve_edge, serves
from sfl.data import load_tokenizer
from sfl.errors import ConfigError
from sfl.models.folder import open_model
from sfl.node.certificates.authority import LOOPBACK, Authority
from sfl.node.certificates.bundle import Wanted, issue_all
from sfl.node.certificates.identity import Identity
from tests.house.federation import surroundings
from tests.house.forks import fork
from tests.house.paths import MODEL, QUICKSTART
from tests.house.tiny_models import busy_values
from tests.house.waiting import PATIENCE

PROMPT = "Turn on the lamp"


def written(path: Path, table: dict[str, Any]) -> Path:
    path.write_text(tomli_w.dumps(table))
    return path


# -- files ----------------------------------------------------------------------------------------


def test_a_file_of_an_edge_that_serves_is_told_from_others(tmp_path: Path) -> None:
    serving = written(tmp_path / "a.toml", {"edge": {"model": str(MODEL)}, "serve": {}})
    training = written(tmp_path / "b.toml", {"edge": {"cloud": "127.0.0.1:1"}})
    assert serves(serving) and not serves(training) and not serves(tmp_path / "nothing")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    table = {"edge": {"model": str(MODEL)}, "serve": {"adapters": {"a": "runs/a"}}}
    config = load_serve_edge(written(tmp_path / "edge.toml", table))
    assert config.serve.adapters == {"a": tmp_path / "runs" / "a"}
    own = {
        "device": {"name": "d", "model": str(MODEL), "edge": "127.0.0.1:1"},
        "serve": {"api_key_file": "key", "draft": "exit:runs/draft"},
    }
    device = load_serve_device(written(tmp_path / "device.toml", own))
    assert device.serve.api_key_file == tmp_path / "key"
    assert device.serve.draft == f"exit:{tmp_path / 'runs' / 'draft'}"
    (tmp_path / "small").mkdir()
    for given, source in (("small", str(tmp_path / "small")), ("hub/name", "hub/name")):
        table = {"model": {"path": "m"}, "devices": [{"name": "d", "draft": f"model:{given}"}]}
        here = load_serve(written(tmp_path / "serve.toml", table))
        assert here.devices[0].draft_source == ("model", source)


def test_one_file_makes_those_of_its_nodes(tmp_path: Path) -> None:
    table = {
        "model": {"path": str(MODEL)},
        "serve": {"batch": 3},
        "edge": {"name": "e"},
        "devices": [{"name": "a"}, {"name": "b", "topology": "u_shaped", "tail_layers": 1}],
    }
    config = load_serve(written(tmp_path / "serve.toml", table), ["serve.max_tokens=9"])
    edge = edge_file(config)
    assert (edge.edge.name, edge.edge.model, edge.serve.batch) == ("e", str(MODEL), 3)
    assert edge.serve.max_tokens == 9
    device = device_file(config, config.devices[1], "127.0.0.1:5")
    assert (device.device.name, device.device.edge) == ("b", "127.0.0.1:5")
    assert (device.serve.topology, device.serve.tail_layers) == ("u_shaped", 1)


@pytest.mark.parametrize(
    ("load", "table", "said"),
    [
        (load_serve_edge, {"edge": {}, "serve": {}}, "edge.model = None: serving needs it"),
        (load_serve_edge, {"serve": {}}, r"edge = .*the table is missing"),
        (
            load_serve_edge,
            {"edge": {"model": "m"}, "serve": {"adapters": {"base": "x"}}},
            "'base' is the model without one",
        ),
        (load_serve_edge, {"edge": {"model": "m"}, "serve": {"batchs": 3}}, "batch"),
        (
            load_serve_edge,
            {"edge": {"model": "m"}, "serve": {"max_tokens": 2 << 20}},  # no device takes it
            "serve.max_tokens = 2097152",
        ),
        (
            load_serve_device,
            {"device": {"name": "d", "model": "m"}, "serve": {}},
            "device.edge = '': serving needs it",
        ),
        (
            load_serve_device,
            {"device": {"name": "d", "model": "m", "edge": "e"}, "serve": {"tail_layers": 1}},
            'needs topology "u_shaped"',
        ),
        (
            load_serve,
            {"model": {"path": "m"}, "devices": [{"name": "a"}, {"name": "a"}]},
            "'a' is given twice",
        ),
        (load_serve, {"modle": {}}, "Did you mean 'model'"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(
    load: Callable[[Path], object], table: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        load(written(tmp_path / "file.toml", table))


# -- generate --split -----------------------------------------------------------------------------


def an_adapter(folder: Path) -> Path:
    manifest = build_manifest(open_model(MODEL), "causal_lm", 0, LoraSettings(rank=4, alpha=8))
    save_adapter(folder, busy_values(manifest), manifest.peft_config)
    return folder


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_a_prompt_over_the_split_is_pefts_answer(topology: str, tmp_path: Path) -> None:
    overrides = [f'model.path="{MODEL}"', f'run.topology="{topology}"']
    config = load_run(QUICKSTART / "homes.toml", overrides)
    an_adapter(tmp_path / "adapter")
    tokenizer = load_tokenizer(MODEL)
    ids = (*tokenizer.prefix, *tokenizer.encode([PROMPT])[0])
    for adapter in (None, tmp_path / "adapter"):
        model = load_model(config, adapter, open_model(MODEL))
        prompt = torch.tensor([ids])
        made = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=16,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=list(tokenizer.markers.stop_ids),
        )[0, len(ids) :].tolist()
        expected = [token for token in made if token not in tokenizer.markers.stop_ids]
        assert generate_split(config, str(MODEL), adapter, ids, 16) == expected


# -- processes ------------------------------------------------------------------------------------


class Node:
    """A process of `sfl`, and what it has said."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        self.process = fork(arguments, surroundings(), log)

    def until(self, words: str) -> None:
        deadline = time.monotonic() + 2 * PATIENCE
        while words not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    started: list[Node] = []

    def start(name: str, *arguments: str) -> Node:
        started.append(Node(tmp_path / f"{name}.log", *arguments))
        return started[-1]

    yield start
    for node in started:
        if node.process.poll() is None:
            node.kill()


def asked(port: int, **body: Any) -> Any:
    data = json.dumps({"model": "base", "prompt": PROMPT, "temperature": 0, **body}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        data,
        {"Content-Type": "application/json"},
    )
    return urllib.request.urlopen(request, timeout=2 * PATIENCE)


def once_it_is_back(port: int) -> Any:
    """An answer; a machine with other work may start an edge more slowly than a device waits."""
    deadline = time.monotonic() + 4 * PATIENCE
    while True:
        try:
            with asked(port, max_tokens=5) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            assert error.code == 503 and time.monotonic() < deadline, error.read()


def free_port() -> int:
    import socket

    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port: int = own.getsockname()[1]
        return port


def certificate(folder: Path) -> dict[str, str]:
    """A node's `tls` table."""
    files = {"ca": "ca.pem", "cert": f"{folder.name}.pem", "key": f"{folder.name}.key"}
    return {name: str(folder / file) for name, file in files.items()}


@pytest.mark.process
def test_an_edge_that_is_killed_in_mid_answer_costs_no_token(
    tmp_path: Path, nodes: Callable[..., Node]
) -> None:
    """Over TLS, with the certificate of each, and with guesses under way."""
    edge_port, port = free_port(), free_port()
    wanted = [Wanted(Identity("edge", "e"), LOOPBACK), Wanted(Identity("device", "d"))]
    issue_all(Authority.create(), wanted, tmp_path)
    table = {
        "edge": {
            "name": "e",
            "model": str(MODEL),
            "listen": f"127.0.0.1:{edge_port}",
            "threads": 1,
            "tls": certificate(tmp_path / "e"),
        },
        "serve": {"kv_memory": "64MB", "adapters": {"a": str(an_adapter(tmp_path / "a"))}},
    }
    own = {
        "device": {
            "name": "d",
            "model": str(MODEL),
            "edge": f"127.0.0.1:{edge_port}",
            "tls": certificate(tmp_path / "d"),
        },
        "serve": {"listen": f"127.0.0.1:{port}", "topology": "u_shaped", "draft": "lookup"},
    }
    edge_toml = str(written(tmp_path / "edge.toml", table))
    device_toml = str(written(tmp_path / "device.toml", own))
    edge = nodes("edge", "edge", edge_toml)
    device = nodes("device", "serve", "--device", device_toml)
    device.until("chat at")
    with asked(port, max_tokens=200) as answer:
        whole = json.load(answer)["choices"][0]["text"]
    with asked(port, max_tokens=200, stream=True) as stream:
        lines = [stream.readline() for _ in range(20)]
        edge.kill()
        nodes("edge again", "edge", edge_toml)
        lines += stream.readlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    assert not [event for event in events if "error" in event], events[-1]
    assert "".join(event["choices"][0]["text"] for event in events) == whole
    assert "goes on" in device.log.read_text()
    # And the device: its next process answers the same, to whoever asks again.
    with asked(port, max_tokens=200, stream=True) as stream:
        begun = [stream.readline() for _ in range(20)]
        device.kill()
    pieces = [json.loads(line[6:]) for line in begun if line.startswith(b"data: {")]
    said = "".join(piece["choices"][0]["text"] for piece in pieces)
    assert said and whole.startswith(said) and said != whole
    own["serve"]["draft"] = "none"  # guesses have changed nothing
    again = nodes("device again", "serve", "--device", str(written(tmp_path / "again.toml", own)))
    again.until("chat at")
    with asked(port, max_tokens=200) as answer:
        assert json.load(answer)["choices"][0]["text"] == whole
    with asked(port, model="a", max_tokens=200) as answer:  # its part comes from the edge
        assert json.load(answer)["choices"][0]["text"] != whole


@pytest.mark.process
def test_one_command_serves_on_this_machine_and_leaves_nothing_running(
    tmp_path: Path, nodes: Callable[..., Node]
) -> None:
    port = free_port()
    table = {
        "model": {"path": str(MODEL)},
        "serve": {"kv_memory": "64MB"},
        "devices": [{"name": "d", "listen": f"127.0.0.1:{port}"}],
    }
    here = nodes("serve", "serve", str(written(tmp_path / "serve.toml", table)))
    here.until("chat at")
    with asked(port, max_tokens=5) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 5
    children = Path(f"/proc/{here.process.pid}/task/{here.process.pid}/children").read_text()
    assert len(children.split()) == 2
    os.kill(int(children.split()[0]), signal.SIGKILL)  # the edge: another one takes its place
    assert once_it_is_back(port)["usage"]["completion_tokens"] == 5
    assert "killed by signal 9; restart 1 of 5" in here.log.read_text()
    children = Path(f"/proc/{here.process.pid}/task/{here.process.pid}/children").read_text()
    here.process.send_signal(signal.SIGTERM)
    assert here.process.wait(PATIENCE) == 130
    assert not [child for child in children.split() if _alive(int(child))]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
