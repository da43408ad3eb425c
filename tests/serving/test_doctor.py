"""`sfl doctor` on files of nodes that serve: held to real ones, and what can never fit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from device_agent.serving.talk import Wish
from sfl.adapters.artifact import save_adapter
from sfl.adapters.lora import build_manifest
from sfl.cli.doctor.report import Check
from sfl.cli.doctor.serving import check_serving, load_served
from sfl.config import LoraSettings
from sfl.errors import ConfigError
from sfl.models.folder import open_model
from sfl.models.kv.size import page_bytes
from sfl.plan import Span
from sfl.stage.base import BaseForm
from sfl.stage.serving.exits import ExitHeader, exit_span, own_parameters, write_exit
from sfl.stage.serving.spans import serving_span
from sfl.transport.serve.digest import model_digest
from tests.house.conversations import LONGEST, PROMPT, folder_of
from tests.house.federation import sfl
from tests.house.fleets import tiny
from tests.house.paths import MODEL
from tests.house.serving import device, edge_config, saved_adapter, serving
from tests.house.tiny_models import LAYERS, busy_values

ROOM = 8 << 30
BASE = 300_000_000


def written(folder: Path, **tables: Any) -> Path:
    path = folder / "serve.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


def checked(path: Path, room: int = ROOM, model: Path = MODEL) -> dict[str, Check]:
    file = load_served(path, ())
    assert file is not None
    return {check.name: check for check in check_serving(file, open_model(model), room, BASE)}


# -- the forecast is what a real edge counts ------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_keys_and_values_take_what_was_foretold(kind: str, dtype: str, tmp_path: Path) -> None:
    model = folder_of(kind)
    tables = {
        "edge": {"model": model, "dtype": dtype},
        "serve": {"cut_layer": 1, "kv_memory": "1MB", "max_tokens": 64},
    }
    foretold = checked(written(tmp_path, **tables), model=Path(model))["edge"].figures

    async def run() -> None:
        config = edge_config(kind, kv_memory="1MB", max_tokens=64)
        config = config.model_copy(update={"edge": config.edge.model_copy(update={"dtype": dtype})})
        async with serving(config) as (edge, address), device(address, kind=kind) as own:
            await own.say(Wish("one", PROMPT, 60))
            await own.say(Wish("two", PROMPT, 20))
            pool = edge._opened.result().conversations.base.pool
            assert pool.used == 3  # of 64 tokens each
            figures = edge.stats.snapshot().serving
            assert figures is not None
            assert pool.nbytes == figures.held.kv_bytes == 3 * foretold["page_bytes"]
            assert figures.held.kv_budget == foretold["kv_bytes"]
            assert pool.total == foretold["pages"]
            assert len(pool.blocks) == LAYERS - 1 - len(pool.keeping.windowed)

    asyncio.run(run())


def test_as_many_conversations_fit_as_were_foretold(tmp_path: Path) -> None:
    tables = {
        "edge": {"model": folder_of("llama")},
        "serve": {"cut_layer": 1, "kv_memory": "200KB", "max_tokens": LONGEST},
    }
    path = written(tmp_path, **tables)
    foretold = checked(path, model=Path(folder_of("llama")))["edge"].figures
    count = foretold["conversations"]
    assert foretold["longest_tokens"] == LONGEST and count > 1

    async def run() -> None:
        config = edge_config(kv_memory="200KB", max_tokens=LONGEST)
        async with serving(config) as (edge, address), device(address) as own:
            conversations = edge._opened.result().conversations
            for number in range(count):
                await own.say(Wish(f"{number}", PROMPT, LONGEST))
            assert (conversations.spilled, conversations.forgotten) == (0, 0)

    asyncio.run(run())


def test_adapters_count_by_their_values(tmp_path: Path) -> None:
    one = saved_adapter(tmp_path / "one", 1)
    tables: dict[str, Any] = {"edge": {"model": folder_of("llama")}, "serve": {"max_tokens": 64}}
    model = Path(folder_of("llama"))
    assert checked(written(tmp_path, **tables), model=model)["edge"].figures["adapters_bytes"] == 0
    tables["serve"]["adapters"] = {"a": str(one), "b": str(one)}
    counted = checked(written(tmp_path, **tables), model=model)["edge"].figures["adapters_bytes"]
    file = (one / "adapter_model.safetensors").stat().st_size
    assert 2 * file < counted < 2 * 2 * file  # each whole, and its part over the edge's blocks


# -- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("serve", "words", "fix"),
    [
        (
            {"kv_memory": "100KB"},
            ["serve.kv_memory = 100000", "serve.max_tokens = 512", "can never fit"],
            "or lower serve.max_tokens",
        ),
        ({"cut_layer": 9}, ["serve.cut_layer = 9", "the model has 4 blocks"], "Choose 0 to 3"),
        ({"adapters": {"a": "nothing"}}, ["serve.adapters.a"], ""),
    ],
)
def test_what_can_never_be_names_its_setting(
    serve: dict[str, Any], words: list[str], fix: str, tmp_path: Path
) -> None:
    checks = checked(written(tmp_path, edge={"model": str(MODEL)}, serve=serve))
    (found,) = [check for check in checks.values() if check.mark == "problem"]
    assert all(word in found.text for word in words), found
    assert fix in found.fix


def test_the_codec_of_rows_is_named(tmp_path: Path) -> None:
    width = open_model(MODEL).hidden_size
    for serve, loss, row in (
        ("none", "lossless", 4 * width),
        ("fp16", "changes what is said", 2 * width),
    ):
        path = written(tmp_path, edge={"model": str(MODEL)}, serve={}, codec={"serve": serve})
        found = checked(path)["edge"]
        assert f"rows travel as {serve} (codec.serve), which" in found.text and loss in found.text
        assert row <= found.figures["row_bytes"] < row + 16
    path = written(tmp_path, edge={"model": str(MODEL)}, serve={}, codec={"serve": "topk(0.1)"})
    assert "codec.serve" in checked(path)["serve"].text
    path = written(tmp_path, edge={"model": str(MODEL)}, serve={"codec": "fp16"})
    with pytest.raises(ConfigError, match=r"codec\.serve"):
        load_served(path, ())


def test_a_budget_beyond_the_memory_says_what_would_fit(tmp_path: Path) -> None:
    path = written(tmp_path, edge={"model": str(MODEL)}, serve={"kv_memory": "2GB"})
    found = checked(path, room=1_000_000_000)["edge"]
    assert found.mark == "problem" and "serve.kv_memory" in found.text
    assert "Lower serve.kv_memory to" in found.fix
    fits = found.fix.removeprefix("Lower serve.kv_memory to ").removesuffix(" at most.")
    path = written(tmp_path, edge={"model": str(MODEL)}, serve={"kv_memory": fits})
    assert checked(path, room=1_010_000_000)["edge"].mark == "ok"  # it is said rounded
    assert "smaller model" in checked(path, room=400_000_000)["edge"].fix


def test_devices_are_looked_at_one_by_one_and_together(tmp_path: Path) -> None:
    devices = [
        {"name": "sound"},
        {"name": "early", "cut_layer": 0},
        {"name": "deep", "cut_layer": 7},
        {"name": "wide", "conversations": 200_000},
    ]
    path = written(tmp_path, model={"path": str(MODEL)}, serve={}, devices=devices)
    checks = checked(path)
    assert checks["edge"].mark == checks["device sound"].mark == "ok"
    assert "devices.early.cut_layer = 0" in checks["device early"].text
    assert checks["device deep"].mark == "problem"
    assert "devices.wide.conversations" in checks["device wide"].text
    assert checks["sfl serve"].mark == "problem" and "together" in checks["sfl serve"].text


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_what_guesses_counts_by_its_bytes(topology: str, tmp_path: Path) -> None:
    """Weights and keys and values that a real drafter holds, beside the device's own."""
    model = tiny("llama", json.dumps({"max_position_embeddings": LONGEST}))  # its head is tied
    folder = open_model(model)
    head = exit_span(folder, BaseForm())
    taught = ExitHeader(model_digest(folder), 1, 0.5, 0.0)
    write_exit(tmp_path / "exit", head, taught)

    def draft_bytes(draft: str) -> int:
        table = {"name": "d", "model": str(model), "edge": "127.0.0.1:1"}
        serve = {"draft": draft, "topology": topology, "conversations": 2}
        found = checked(written(tmp_path, device=table, serve=serve), model=model)["device d"]
        assert found.mark == "ok" and ("a draft" in found.text) == (draft not in ("none", "lookup"))
        return int(found.figures["draft_bytes"])

    assert draft_bytes("none") == draft_bytes("lookup") == 0
    page = page_bytes(folder.config, 1, 4)
    pages = 2 * LONGEST // 64
    own = sum(parameter.nbytes for parameter in own_parameters(head).values())
    assert draft_bytes(f"exit:{tmp_path / 'exit'}") == own + pages * page
    whole = serving_span(folder, Span(0, LAYERS, embedding=True, head=True), BaseForm())
    held = sum(parameter.nbytes for parameter in whole.model.parameters())
    found = draft_bytes(f"model:{model}")
    assert held + pages * LAYERS * page < found < held + pages * LAYERS * page + 2_000_000


def test_a_draft_that_does_not_fit_is_a_problem(tmp_path: Path) -> None:
    for draft in ("exit:nowhere", f"model:{tiny('llama')}"):
        table = {"name": "d", "model": str(MODEL), "edge": "127.0.0.1:1"}
        found = checked(written(tmp_path, device=table, serve={"draft": draft}))["device d"]
        assert found.mark == "problem" and "serve.draft" in found.text


@pytest.mark.process
def test_the_command_reads_files_of_each_kind(tmp_path: Path) -> None:
    manifest = build_manifest(open_model(MODEL), "causal_lm", 0, LoraSettings(rank=4, alpha=8))
    save_adapter(tmp_path / "a", busy_values(manifest), manifest.peft_config)
    here = written(
        tmp_path,
        model={"path": str(MODEL)},
        serve={"adapters": {"a": "a"}, "kv_memory": "64MB"},
        devices=[{"name": "kitchen", "topology": "u_shaped"}],
    )
    done = sfl("doctor", here, "--format", "json", "--memory", "8GB")
    assert done.returncode == 0, done.stdout
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert "a file that serves 1 adapter with 1 device on this machine" in checks["file"]["text"]
    assert checks["edge"]["figures"]["kv_bytes"] <= 64e6
    assert checks["device kitchen"]["mark"] == "ok"
    assert "cuts" not in checks  # of training
    own = tmp_path / "device.toml"
    table = {"name": "d", "model": str(MODEL), "edge": "127.0.0.1:1"}
    own.write_text(tomli_w.dumps({"device": table, "serve": {"conversations": 10**7}}))
    done = sfl("doctor", own, "--memory", "8GB")
    assert done.returncode == 1
    assert "serve.conversations" in done.stdout and "Traceback" not in done.stderr
    own.write_text(tomli_w.dumps({"device": table, "serve": {"conversation": 1}}))
    done = sfl("doctor", own)
    assert done.returncode == 1 and "conversation" in done.stdout
