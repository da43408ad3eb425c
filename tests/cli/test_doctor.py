"""`sfl doctor`: real processes and sockets; broken machines are made by hand."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch
from rich.console import Console

from sfl.cli.doctor.command import _print
from sfl.cli.doctor.edge import check_own_edge
from sfl.cli.doctor.files import check_config, load_config
from sfl.cli.doctor.fits import Base, check_devices, cut_rows, load_of, measure_base, read_size
from sfl.cli.doctor.hardware import check_cores
from sfl.cli.doctor.quantised import check_bitsandbytes
from sfl.config import EdgeConfig, LocalDevice, RunConfig, RunSettings, load_run
from sfl.config.node import StageConfig
from sfl.errors import ConfigError, PeerUnavailable, ProtocolError, Refused
from sfl.models.folder import open_model
from sfl.models.memory.device_budget import device_load, fit_device
from sfl.models.memory.footprint import (
    BASE_BYTES,
    EdgeDevice,
    EdgeForecast,
    Load,
    device_footprint,
)
from sfl.models.span import build_span
from sfl.node.machine import Cores, Memory, cpu_quota, memory_limit
from sfl.plan import Plan
from sfl.stage.device import DeviceStage
from sfl.stage.precision import Precision, fastest_dtype
from sfl.transport.bulk import probe_service
from sfl.transport.bulk.probe import probe_edge
from sfl.transport.frames.wire import EDGE_PROBE, generic_handler
from sfl.v1 import edge_pb2
from tests.house.assigned import assigned
from tests.house.federation import SFL, sfl, surroundings, write_config
from tests.house.files import write_jsonl
from tests.house.fleets import completions, device, settings, tiny
from tests.house.forks import fork
from tests.house.paths import ROOT, STORIES
from tests.house.tiny_models import CASES, opened

LIMIT = probe_service.MESSAGE_BYTES


def doctor(*arguments: str | Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(exit code, the whole JSON report, its checks by name)."""
    done = sfl("doctor", *arguments, "--format", "json")
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    return done.returncode, report, {check["name"]: check for check in report["checks"]}


# -- the machine, a model, a file ------------------------------------------------------------------


@pytest.mark.process
def test_a_sound_machine(tmp_path: Path) -> None:
    code, report, checks = doctor("--model", STORIES, "--memory", "100GB")
    assert report["ok"] == (code == 0) == all(c["mark"] != "problem" for c in report["checks"])
    assert checks["cores"]["figures"]["usable_cores"] >= 1
    memory = checks["memory"]["figures"]
    assert 0 < memory["at_hand_bytes"] <= memory["total_bytes"]
    assert checks["precision"]["figures"]["float32_gflops"] > 0
    assert checks["precision"]["figures"]["dtype"] in ("float32", "bfloat16")
    assert checks["codec"]["figures"]["encode_seconds"] > 0
    assert checks["cuts"]["figures"]["fitting_cut_layers"] == [0, 1, 2, 3, 4]
    assert "link" not in checks
    rows = report["cut_layers"]
    parts = ("base", "weights", "adapter", "optimizer", "activations", "messages")
    for row in rows:
        assert row["total_bytes"] == sum(row[f"{part}_bytes"] for part in parts)
    assert [row["total_bytes"] for row in rows] == sorted(row["total_bytes"] for row in rows)


def run_file(folder: Path, *cuts: int) -> Path:
    values = settings(tiny("llama"))
    values["devices"] = [
        device(f"d{number}", completions(folder / f"d{number}.jsonl", number), cut)
        for number, cut in enumerate(cuts)
    ]
    return write_config(folder, values)


@pytest.mark.process
def test_a_run_that_does_not_fit_says_what_would(tmp_path: Path) -> None:
    path = run_file(tmp_path, 0, 2)
    _, report, _ = doctor(path, "--set", "training.batch_size=512")
    first, middle, last = (row["total_bytes"] for row in report["cut_layers"])
    assert first < middle < last
    # What the process itself takes differs a little from start to start; a cut differs by more.
    room = (middle + last) // 2
    code, report, checks = doctor(path, "--memory", str(room), "--set", "training.batch_size=512")
    assert code == 1
    assert [row["fits"] for row in report["cut_layers"]] == [True, True, False]
    assert checks["file"]["mark"] == checks["data"]["mark"] == checks["device d0"]["mark"] == "ok"
    assert checks["device d1"]["mark"] == "problem"
    assert "devices.d1.cut_layer to 1" in checks["device d1"]["fix"]
    assert checks["sfl run"]["mark"] == "warning"
    assert checks["edge"]["figures"]["cut_layers"] == [0, 2]


@pytest.mark.process
def test_text_marks_every_line_and_gives_fixes(tmp_path: Path) -> None:
    done = sfl("doctor", run_file(tmp_path, 1), "--memory", "50MB")
    assert done.returncode == 1
    assert "✓ cores" in done.stdout
    assert "✗ cuts" in done.stdout
    assert "Lower training.batch_size" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda values, folder: values["training"].update(learning_rat=1), "learning_rate"),
        (lambda values, folder: values["devices"][0].update(cut_layer=9), "Choose 0 to 2"),
        (lambda values, folder: values["codec"].update(activation="int7"), "int7"),
        (lambda values, folder: values["model"].update(path=str(folder / "absent")), "absent"),
    ],
    ids=["key", "cut", "codec", "model"],
)
def test_what_is_wrong_with_a_file(
    tmp_path: Path, write: Callable[[dict[str, Any], Path], None], words: str
) -> None:
    values = settings(tiny("llama"), codec={})
    values["devices"] = [device("a", completions(tmp_path / "a.jsonl", 0), 1)]
    write(values, tmp_path)
    done = sfl("doctor", write_config(tmp_path, values))
    assert done.returncode == 1
    assert "✗" in done.stdout
    assert words in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.process
def test_an_edge_with_devices_of_given_cuts(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(f'[edge]\nmodel = "{tiny("llama")}"\n')
    _, _, checks = doctor(path, "--cuts", "1,1,2", "--memory", "100GB")
    edge = checks["edge"]
    assert edge["mark"] == "ok"
    assert "3 devices (cut_layer 1, 1, 2) need" in edge["text"]
    figures = edge["figures"]
    parts = ("base", "weights", "adapter", "optimizer", "activations", "messages")
    assert figures["total_bytes"] == sum(figures[f"{part}_bytes"] for part in parts)
    folder = open_model(str(tiny("llama")))
    load = Load(batch_size=8, length=min(512, folder.context_length))
    cuts = [Plan.split(folder.num_layers, cut, 0, "vanilla").middle for cut in (1, 1, 2)]
    forecast = EdgeForecast(
        folder, [EdgeDevice(cut, load, coded_value_bytes=2) for cut in cuts], lean=True
    )
    wanted = forecast.footprint(in_flight=8, allowance=4, recompute=[False] * 3)
    assert figures["total_bytes"] == wanted.total


def test_a_stage_s_file_is_looked_at_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "stage.toml"
    path.write_text('[stage]\nlisten = "127.0.0.1:0"\nnext = "10.0.0.9:7003"\n')
    config = load_config(path, ())
    assert isinstance(config, StageConfig) and config.next == "10.0.0.9:7003"
    check = check_config(path, config, None)
    assert check.mark == "ok" and "a stage's file" in check.text


def test_an_edge_that_does_not_fit_or_cannot_be(tmp_path: Path) -> None:
    folder = open_model(str(tiny("llama")))
    load = Load(batch_size=8, length=min(512, folder.context_length))
    small = check_own_edge(EdgeConfig(), load, folder, (1,), 10**8)
    assert small.mark == "problem" and "batch_size" in small.fix
    tight = check_own_edge(EdgeConfig(memory=10**8), load, folder, (1,), 10**12)
    assert tight.mark == "problem" and "edge.memory" in tight.text
    deep = check_own_edge(EdgeConfig(), load, folder, (99,), 10**12)
    assert deep.mark == "problem" and "--cuts = 99" in deep.text


@pytest.mark.process
def test_a_device_file_with_nobody_at_its_edge(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    data = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "w1", "completion": "w2"}])
    path.write_text(f'[device]\nname = "a"\nedge = "127.0.0.1:9"\ntrain = "{data}"\n')
    code, _, checks = doctor(path)
    assert code == 1
    assert checks["file"]["mark"] == "ok"
    assert checks["link"]["mark"] == "problem"
    assert "127.0.0.1:9 did not answer" in checks["link"]["text"]
    assert checks["link"]["fix"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "12XB"], "--memory = '12XB': is not a size"),
        (["--format", "yaml"], "yaml"),
        (["--cuts", "1,b"], "--cuts = '1,b': is not a list of cut layers"),
    ],
)
def test_bad_options_end_at_once(arguments: list[str], words: str) -> None:
    done = sfl("doctor", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_sizes_as_people_write_them() -> None:
    assert read_size("x", "512MB") == 512_000_000
    assert read_size("x", "1.5 GiB") == 3 << 29
    assert read_size("x", "1000") == 1000
    for wrong in ("", "GB", "-1", "1e9", "2 TB"):
        with pytest.raises(ConfigError):
            read_size("x", wrong)


def test_cgroups_of_both_versions(tmp_path: Path) -> None:
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "a" / "b").mkdir(parents=True)
    own.write_text("0::/a/b\n")
    assert cpu_quota(own, root) is None
    assert memory_limit(own, root) == (None, 0)
    (root / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (root / "a" / "cpu.max").write_text("150000 100000\n")
    (root / "a" / "memory.max").write_text("1000\n")
    (root / "a" / "memory.current").write_text("600\n")
    (root / "a" / "memory.stat").write_text("anon 300\ninactive_file 200\n")
    assert cpu_quota(own, root) == 1.5
    assert memory_limit(own, root) == (1000, 400)
    own.write_text("4:memory:/x\n3:cpu,cpuacct:/x\n0::/\n")
    for controller in ("memory", "cpu"):
        (root / controller / "x").mkdir(parents=True)
    (root / "cpu" / "x" / "cpu.cfs_quota_us").write_text("-1\n")
    (root / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (root / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (root / "memory" / "memory.limit_in_bytes").write_text(f"{(1 << 63) - 4096}\n")
    (root / "memory" / "x" / "memory.limit_in_bytes").write_text("5000\n")
    assert cpu_quota(own, root) == 0.5
    assert memory_limit(own, root) == (5000, 0)
    assert Cores(8, 1.5).usable == 2
    assert Cores(8, None).usable == 8
    assert Cores(1, 0.5).usable == 1
    assert Memory(100, 80, 50, 20).usable == 30


# -- precision -------------------------------------------------------------------------------------


def test_bfloat16_only_where_it_was_measured_faster() -> None:
    assert Precision("cpu", 1, 10.0, 30.0).dtype == "bfloat16"
    assert Precision("cpu", 1, 10.0, 10.5).dtype == "float32"
    assert Precision("cpu", 1, 10.0, 0.0).dtype == "float32"
    found = fastest_dtype(1)
    assert found.float32_gflops > 0
    assert found.threads == 1


# -- footprint -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "task"), CASES)
@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_weights_and_adapters_are_foretold_to_the_byte(kind: str, task: Any, topology: Any) -> None:
    folder = opened(kind)
    run = RunSettings.model_validate(
        {
            "run": {"topology": topology},
            "model": {"path": str(folder.path), "task": task, "max_length": 24}
            | ({} if task == "causal_lm" else {"labels": ["a", "b", "c"]}),
            "lora": {"rank": 3},
            "devices": [{"name": "a", "cut_layer": 2}],
        }
    )
    plan = Plan.split(folder.num_layers, 2, 0, topology)
    foretold = device_footprint(folder, plan.device_spans, Load(4, 24, 3, task, 3))
    stage = DeviceStage("a", assigned(run, plan), folder, run)
    adapter = sum(p.numel() for p in stage.parameters.values()) * 4
    frozen = {
        tensor.data_ptr(): tensor.numel() * 4
        for part in stage.parts
        for name, tensor in part.model.model.state_dict(keep_vars=True).items()
        if not any(f"{saved}." in name for saved in part.model.saved)
    }
    # A classifier is a dense layer or two, whose biases are not counted.
    assert abs(foretold.adapter - adapter) <= (0 if task == "causal_lm" else 4 * 200)
    if task == "causal_lm":
        assert foretold.weights == sum(frozen.values())
    assert foretold.optimizer == 3 * foretold.adapter
    assert foretold.total > BASE_BYTES


@pytest.mark.parametrize("quantised", ["nf4", "int8"])
def test_a_quantised_base_is_foretold(quantised: Any) -> None:
    pytest.importorskip("bitsandbytes")
    folder = opened("llama")
    span = Plan.split(folder.num_layers, 2, 0, "vanilla").front
    model = build_span(
        folder, span, task="causal_lm", num_labels=0, dtype=torch.float32, quantised=quantised
    )
    # The state's tensors only: rotary frequencies are computed, and a few dozen bytes.
    held = sum(t.numel() * t.element_size() for t in model.state_dict(keep_vars=True).values())
    foretold = device_footprint(folder, [span], Load(1, 8, quantised=quantised)).weights
    assert foretold == held


def test_more_tokens_and_more_blocks_need_more() -> None:
    folder = open_model(STORIES)

    def total(cut: int, batch: int, length: int, topology: Any = "vanilla") -> int:
        spans = Plan.split(folder.num_layers, cut, 0, topology).device_spans
        return device_footprint(folder, spans, Load(batch, length)).total

    assert total(1, 4, 64) < total(1, 8, 64) < total(2, 8, 64) < total(2, 8, 128)
    assert total(1, 4, 64) < total(1, 4, 64, "u_shaped")


def test_what_fits_is_what_the_device_itself_decides() -> None:
    folder, base = open_model(STORIES), Base(310_000_000, returned=True)
    values: dict[str, Any] = {
        "model": {"path": str(STORIES), "max_length": 128},
        "training": {"batch_size": 96},
        "devices": [{"name": "roomy"}, {"name": "tight"}, {"name": "refused"}],
    }
    for entry in values["devices"]:
        entry |= {"cut_layer": 4, "train": "x.jsonl"}
    values["devices"][1] |= {"memory": 480_000_000}
    values["devices"][2] |= {"memory": 200_000_000}
    config = RunConfig.model_validate(values)
    load = load_of(config, folder)
    rows = cut_rows(folder, load, config, 10**12, base, LocalDevice())
    checks = {
        check.name: check for check in check_devices(config, load, folder, rows, 10**12, base)
    }
    for entry in config.devices[:2]:
        plan = Plan.split(folder.num_layers, 4, 0, "vanilla")
        own = device_load(folder, config.settings, config.rank(entry.name), "float32", "none")
        way = fit_device(folder, plan, own, entry, base.num_bytes, base.returned)
        found = checks[f"device {entry.name}"]
        assert found.mark == "ok"
        assert found.figures["saves"] == asdict(way)
        foretold = device_footprint(folder, plan.device_spans, own, base.num_bytes, way)
        assert found.figures["total_bytes"] == foretold.total
    saved = checks["device tight"].figures["saves"]
    assert saved["recompute"] and not checks["device roomy"].figures["saves"]["recompute"]
    refused = checks["device refused"]
    assert refused.mark == "problem" and "at least" in refused.text and "give more" in refused.fix


def test_the_sample_of_the_docs_is_what_the_command_prints() -> None:
    config = load_run(ROOT / "examples" / "quickstart" / "homes.toml")
    # A process as it was where the sample was printed: the rest of a footprint is no measurement.
    folder, room, base = open_model(config.model.path), 430_000_000, Base(300_000_000, True)
    load = load_of(config, folder)
    rows = cut_rows(folder, load, config, room, base, LocalDevice())
    output = io.StringIO()
    console = Console(file=output, highlight=False, soft_wrap=True)  # as the command has it
    for check in check_devices(config, load, folder, rows, room, base):
        _print(console, check)
    lines = output.getvalue().splitlines()[:3]
    assert "\n".join(("```", *lines, "```")) in (ROOT / "docs" / "doctor.md").read_text()


@pytest.mark.process
def test_the_process_is_measured_as_a_device_has_it() -> None:
    base = measure_base("llama")
    # A process that also holds transformers' compiler takes 60 MB more.
    assert 10**8 < base.num_bytes < BASE_BYTES
    assert measure_base("no_such_model") == Base(BASE_BYTES, returned=True, measured=False)


# -- bitsandbytes ----------------------------------------------------------------------------------

FAKES = {
    "aborts": ("import os\nos.abort()\n", "problem", "crashes (SIGABRT)"),
    "lacks a library": ("raise OSError('libfoo.so: not found')\n", "problem", "libfoo.so"),
    "is missing": (
        "raise ModuleNotFoundError('none', name='bitsandbytes')\n",
        "warning",
        "not installed",
    ),
    "is wrong": (
        "import torch\nfrom types import SimpleNamespace\n__version__ = '0'\n"
        "class functional:\n"
        "    def quantize_4bit(w, blocksize, quant_type):\n"
        "        scales = torch.ones(w.numel() // blocksize)\n"
        "        packed = torch.zeros(w.numel() // 2, 1, dtype=torch.uint8)\n"
        "        return packed, SimpleNamespace(absmax=scales)\n"
        "    QuantState = staticmethod(lambda shape, **others: shape)\n"
        "    dequantize_4bit = staticmethod(lambda packed, shape: torch.zeros(shape))\n"
        "    int8_vectorwise_quant = staticmethod(lambda w: (1 / 0))\n",
        "problem",
        "off by 100.00%",
    ),
}


@pytest.mark.process
@pytest.mark.parametrize("how", FAKES)
def test_a_bitsandbytes_that_fails(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, mark, words = FAKES[how]
    (tmp_path / "bitsandbytes.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    check = check_bitsandbytes()
    assert check.mark == mark, check
    assert words in check.text
    assert check.fix


@pytest.mark.process
def test_a_crashing_bitsandbytes_is_reported_and_not_suffered(tmp_path: Path) -> None:
    (tmp_path / "bitsandbytes.py").write_text("import os\nos.abort()\n")
    done = subprocess.run(
        [*SFL, "doctor", "--format", "json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1, done.stderr
    (check,) = [c for c in json.loads(done.stdout)["checks"] if c["name"] == "bitsandbytes"]
    assert "SIGABRT" in check["text"]


# -- the link --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edge_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real edge that waits for a cloud: nobody has joined, or could."""
    folder = tmp_path_factory.mktemp("edge")
    (folder / "edge.toml").write_text('[edge]\ncloud = "127.0.0.1:9"\nconnect_timeout = 600\n')
    place = folder / "address"
    command = ["edge", str(folder / "edge.toml"), "--address-file", str(place)]
    process = fork(command, surroundings(), folder / "log")
    end = time.monotonic() + 120
    while not place.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    assert place.exists(), (folder / "log").read_text()
    yield place.read_text()
    process.send_signal(signal.SIGTERM)
    process.wait()


@pytest.mark.process
def test_doctor_measures_the_link(edge_address: str) -> None:
    _, _, checks = doctor("--edge", edge_address)
    link = checks["link"]
    assert link["mark"] == "ok", link
    figures = link["figures"]
    assert 0 < figures["round_trip_median_seconds"] <= figures["round_trip_p95_seconds"]
    assert figures["up_bytes_per_second"] > 0
    assert figures["down_bytes_per_second"] > 0
    assert figures["up_bytes"] + figures["down_bytes"] <= probe_service.STREAM_BYTES


def ask(address: str, *requests: edge_pb2.ProbeRequest) -> list[edge_pb2.ProbeReply]:
    with grpc.insecure_channel(address) as channel:
        return list(EDGE_PROBE.stub(channel)(iter(requests)))


@pytest.mark.process
def test_an_edge_answers_within_bounds_and_no_further(edge_address: str) -> None:
    replies = ask(
        edge_address,
        edge_pb2.ProbeRequest(payload=bytes(100), reply_bytes=7),
        edge_pb2.ProbeRequest(payload=bytes(LIMIT), reply_bytes=LIMIT),
    )
    assert [len(reply.payload) for reply in replies] == [7, LIMIT]
    assert replies[-1].received_bytes == LIMIT + 100
    whole = edge_pb2.ProbeRequest(reply_bytes=LIMIT)
    for requests, words in (
        ([edge_pb2.ProbeRequest(reply_bytes=LIMIT + 1)], "a message"),
        ([edge_pb2.ProbeRequest(reply_bytes=(1 << 32) - 1)], "a message"),
        ([edge_pb2.ProbeRequest(payload=bytes(LIMIT + 1))], "a message"),
        ([whole] * (probe_service.STREAM_BYTES // LIMIT + 1), "may move"),
    ):
        with pytest.raises(grpc.RpcError) as refusal:
            ask(edge_address, *requests)
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert words in refusal.value.details()
    # None of that has hurt it.
    assert ask(edge_address, edge_pb2.ProbeRequest(reply_bytes=1))[0].payload == b"\x00"


@pytest.mark.process
def test_a_third_link_test_waits_its_turn(edge_address: str) -> None:
    with grpc.insecure_channel(edge_address) as channel:
        held = []
        for _ in range(probe_service.STREAMS):
            more = threading.Event()

            def requests(more: threading.Event = more) -> Iterator[edge_pb2.ProbeRequest]:
                yield edge_pb2.ProbeRequest(reply_bytes=probe_service.LIGHT_BYTES + 1)
                more.wait()

            call = EDGE_PROBE.stub(channel)(requests())
            next(call)
            held.append((call, more))
        with pytest.raises(Refused, match="link tests are running"):
            probe_edge(edge_address, insecure=False)
        for call, more in held:
            call.cancel()
            more.set()
    # Their places are free again as soon as the edge has noticed.
    end = time.monotonic() + 60
    while True:
        try:
            assert probe_edge(edge_address, insecure=False).up_bytes > 0
            return
        except Refused:
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.fixture
def serve() -> Iterator[Callable[[dict[Any, Any]], str]]:
    """Handlers of the edge's service on a socket, in an event loop of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers: list[grpc.aio.Server] = []

    async def start(behaviours: dict[Any, Any]) -> str:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((generic_handler("sfl.v1.Edge", behaviours),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    async def stop() -> None:
        for server in servers:
            await server.stop(None)

    yield lambda behaviours: asyncio.run_coroutine_threadsafe(start(behaviours), loop).result()
    asyncio.run_coroutine_threadsafe(stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.parametrize("silent", [True, False], ids=["says nothing", "reads nothing"])
def test_nobody_holds_an_edge_up(
    serve: Callable[[dict[Any, Any]], str], monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    monkeypatch.setattr(probe_service, "STREAM_SECONDS", 0.5)
    address = serve({EDGE_PROBE: probe_service.ProbeService().serve})
    over = threading.Event()

    def requests() -> Iterator[edge_pb2.ProbeRequest]:
        if not silent:
            yield from [edge_pb2.ProbeRequest(reply_bytes=LIMIT)] * 15
        over.wait()

    with grpc.insecure_channel(address) as channel:
        call = EDGE_PROBE.stub(channel)(requests())
        with ThreadPoolExecutor(1) as pool:
            # Only the status is waited for; replies that came are read by nobody.
            code = pool.submit(call.code).result() if silent else None
            if not silent:
                time.sleep(1.0)
                with pytest.raises(grpc.RpcError) as refusal:
                    list(call)
                code = refusal.value.code()
        over.set()
    assert code is grpc.StatusCode.FAILED_PRECONDITION


def test_addresses_that_are_no_edge(serve: Callable[[dict[Any, Any]], str]) -> None:
    with pytest.raises(ProtocolError, match="no link test"):
        probe_edge(serve({}), insecure=False)
    with pytest.raises(PeerUnavailable, match="did not answer"):
        probe_edge("127.0.0.1:9", insecure=False, connect_timeout=0.5)
    with pytest.raises(ConfigError, match="is not host:port"):
        probe_edge("127.0.0.1", insecure=False)
    with pytest.raises(ConfigError, match="not loopback"):
        probe_edge("192.0.2.1:7", insecure=False)


def test_doctor_says_how_threads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    assert "spin: GOMP_SPINCOUNT=77" in check_cores().text
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert "waiting threads: OMP_WAIT_POLICY=PASSIVE" in check_cores().text
