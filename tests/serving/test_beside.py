"""One edge trains a run and serves conversations: same bits of both, served first, one base."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from device_agent.serving.talk import Wish
from sfl.adapters.lora import LoraBank
from sfl.config import EdgeConfig, LoraSettings, RunConfig, RunSettings, load_edge, load_run
from sfl.config.serve import load_serve_edge
from sfl.errors import ConfigError, SflError
from sfl.models.beside import over_same_weights
from sfl.models.folder import open_model
from sfl.models.memory.beside import check_beside
from sfl.models.memory.edge_budget import EdgeChoice, fit_edge, needs
from sfl.models.span import SpanModel, build_span
from sfl.plan import Span
from sfl.stage.engine import Engine
from tests.house.conversations import (
    DECODERS,
    LONGEST,
    NEW_TOKENS,
    PROMPT,
    Chain,
    folder_of,
    generated,
)
from tests.house.federation import finished
from tests.house.fleets import fleet, tiny
from tests.house.nodes import ByHand
from tests.house.reference import adapter, assert_same_bits
from tests.house.serving import device, saved_adapter
from tests.house.tiny_models import LAYERS, busy_values, manifest_of
from tests.house.twin import Twin

# -- one base -------------------------------------------------------------------------------------


def trained(kind: str) -> SpanModel:
    """An edge's blocks as a run with computation `reference` has them, up to the end."""
    span = Span(1, LAYERS, embedding=False, head=True)
    folder = open_model(folder_of(kind))
    return build_span(folder, span, task="causal_lm", num_labels=0, dtype=torch.float32)


@pytest.mark.parametrize("kind", DECODERS)
def test_conversations_have_the_weights_that_a_run_trains_over(kind: str) -> None:
    """No tensor twice, and nothing that training does to its blocks is heard in an answer."""
    folder = open_model(folder_of(kind))
    first = trained(kind)
    own = over_same_weights(folder, first)
    held = {name: tensor.data_ptr() for name, tensor in first.model.state_dict().items()}
    assert held and held == {n: t.data_ptr() for n, t in own.model.state_dict().items()}
    settings = LoraSettings(rank=4, alpha=8)
    bank = LoraBank(first, settings)
    busy = bank.add("busy", first.span)
    values = busy_values(manifest_of(folder, "causal_lm", settings), 3)
    busy.load({name: values[name] for name in busy.parameters})
    bank.activate(busy)
    first.train()
    front = build_span(
        folder,
        Span(0, 1, embedding=True, head=False),
        task="causal_lm",
        num_labels=0,
        dtype=torch.float32,
        packed=True,
    )
    chain = Chain([front, own])
    found, answer = chain.extend(PROMPT), list[int]()
    for _ in range(NEW_TOKENS):
        answer.append(int(found[-1].argmax()))
        found = chain.extend(answer[-1:])
    assert tuple(answer) == generated(kind)[0]
    assert first.training and not own.training


# -- served first ---------------------------------------------------------------------------------


class Noted:
    """Stands for a session: notes who was computed."""

    served_seconds = 0.0

    def __init__(self, device: str, log: list[str], gate: threading.Event | None = None) -> None:
        self.device, self.log, self.gate = device, log, gate
        self.begun = threading.Event()

    def group(self, message: Any) -> None:
        return None

    def handle(self, message: Any) -> list[Any]:
        self.begun.set()
        if self.gate is not None:
            self.gate.wait(60.0)
        self.log.append(self.device)
        return []


def test_steps_of_conversations_go_before_jobs_of_training() -> None:
    log: list[str] = []

    async def scene() -> None:
        engine, gate = Engine(1), threading.Event()
        first: Any = Noted("first", log, gate)
        waits = [asyncio.create_task(engine.serve(first, "m"))]
        await asyncio.to_thread(first.begun.wait, 60.0)
        for name in ("train-1", "train-2"):
            waits.append(asyncio.create_task(engine.serve(Noted(name, log), "m")))  # type: ignore[arg-type]
        for name in ("talk-1", "talk-2"):
            waits.append(asyncio.create_task(engine.answer(Noted(name, log), "m")))
        waits.append(asyncio.create_task(engine.run(log.append, "errand")))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*waits)
        engine.close()

    asyncio.run(scene())
    assert log == ["first", "errand", "talk-1", "talk-2", "train-1", "train-2"]


# -- real processes -------------------------------------------------------------------------------


class Serving(ByHand):
    """Cloud, edge and devices as processes; the edge serves as well."""

    def __init__(self, folder: Path, values: dict[str, Any], served: dict[str, Path]) -> None:
        adapters = ", ".join(f'{name} = "{path}"' for name, path in served.items())
        self.edge_lines = (
            f"[edge.serve]\nadapters = {{ {adapters} }}\nkv_memory = '4MB'\nprefill_chunk = 7\n"
        )
        super().__init__(folder, values)

    def reached(self, round_: int, step: int) -> bool:
        """Whether some device has come so far."""
        status = self.status()
        steps = [own["step"] for own in status.get("devices", ())]
        return status.get("round", 0) >= round_ and max(steps, default=0) >= step


async def talked(nodes: Serving, wishes: list[Wish]) -> list[tuple[Wish, list[int]]]:
    """What a device was answered, all wishes at once and again and again, from before the run's
    devices came until amid round 2."""
    said: list[tuple[Wish, list[int]]] = []
    async with device(nodes.edge_address, "talker") as own:
        while not nodes.reached(2, 10):
            named = [replace(wish, name=f"{len(said)}-{wish.adapter}") for wish in wishes]
            answers = await asyncio.gather(*(own.say(wish) for wish in named))
            if not said:
                nodes.device(0), nodes.device(1)
            said += zip(wishes, answers, strict=True)
        assert nodes.cloud.poll() is None, nodes.log("cloud")
    return said


@pytest.mark.process
@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_a_run_keeps_its_bits_and_conversations_their_text(tmp_path: Path, topology: str) -> None:
    model = tiny("llama", json.dumps({"max_position_embeddings": LONGEST}))
    values = fleet(
        tmp_path,
        2,
        run={"rounds": 2, "min_devices": 2, "topology": topology},
        training={"local_steps": 60},
    )
    values["model"]["path"] = str(model)
    homes = saved_adapter(tmp_path / "homes", 5)
    (tmp_path / "alone").mkdir()
    alone = finished(Twin(tmp_path / "alone", copy.deepcopy(values)).run())
    nodes = Serving(tmp_path, values, {"homes": homes})
    try:
        wishes = [Wish("", PROMPT, NEW_TOKENS), Wish("", PROMPT, 24, "homes")]
        said = asyncio.run(talked(nodes, wishes))
        shared = finished(nodes.outcome())
    finally:
        nodes.stop()
    assert len(said) >= 6, nodes.log("edge")
    base = {tuple(answer) for wish, answer in said if wish.adapter == "base"}
    assert base == {generated("llama")[0]}
    (with_adapter,) = {tuple(answer) for wish, answer in said if wish.adapter == "homes"}
    assert with_adapter != generated("llama")[0][:24]
    assert_same_bits(adapter(shared), adapter(alone))


# -- what is foretold, and refused ----------------------------------------------------------------


def settings(**changes: Any) -> RunSettings:
    values = {
        "model": {"path": folder_of("llama"), "max_length": 32},
        "devices": [{"name": "a"}, {"name": "b", "cut_layer": 2}],
        **changes,
    }
    return RunSettings.model_validate(values)


def edge(**serve: Any) -> EdgeConfig:
    return EdgeConfig.model_validate({"serve": {"kv_memory": "4MB", "max_tokens": 64, **serve}})


def test_the_budget_of_keys_and_values_counts_beside_training(tmp_path: Path) -> None:
    folder, choice = open_model(folder_of("llama")), EdgeChoice((), 8, 4)
    least = needs(folder, settings(), EdgeConfig(), choice)
    both = needs(folder, settings(), edge(), choice)
    more = needs(folder, settings(), edge(kv_memory="8MB"), choice)
    assert least.serving == 0 and both.serving > 3_900_000
    assert both.total - least.total == both.serving
    assert abs(more.serving - both.serving - 4_000_000) < 100_000
    file = saved_adapter(tmp_path / "a", 1) / "adapter_model.safetensors"
    held = needs(folder, settings(), edge(adapters={"a": str(file.parent)}), choice)
    assert held.serving - both.serving == 2 * file.stat().st_size
    # Blocks and a head that no device leaves to it are loaded for conversations alone.
    u_shaped = settings(run={"topology": "u_shaped"}, devices=[{"name": "a", "cut_layer": 2}])
    lacking = needs(folder, u_shaped, edge(), choice).serving - both.serving
    assert lacking > 4 * 61 * 32  # the head, by itself
    with pytest.raises(ConfigError, match=r"edge\.memory.*conversations 5"):
        fit_edge(folder, settings(), edge().model_copy(update={"memory": 5_000_000}))
    tight = edge().model_copy(update={"memory": both.total - 1})
    assert fit_edge(folder, settings(), tight) != choice  # training gives way


@pytest.mark.parametrize(
    ("changes", "serve", "words"),
    [
        ({"aggregation": {"strategy": "flora"}}, {}, "aggregation.strategy = 'flora'"),
        (
            {"model": {"path": "x", "task": "sequence_classification", "labels": ["a", "b"]}},
            {},
            "model.task = 'sequence_classification'",
        ),
        ({}, {"cut_layer": 3}, "edge.serve.cut_layer = 3"),
        ({}, {"kv_memory": 100}, "edge.serve.kv_memory = 100"),
        ({}, {"adapters": {"a": "nowhere"}}, "edge.serve.adapters.a"),
    ],
)
def test_what_an_edge_cannot_serve_beside_a_run_is_refused(
    changes: dict[str, Any], serve: dict[str, Any], words: str
) -> None:
    folder = open_model(folder_of("llama"))
    with pytest.raises(SflError) as caught:
        check_beside(folder, settings(**changes), edge(**serve))
    assert words in str(caught.value)


def test_a_file_says_whether_its_edge_trains_as_well(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text(
        '[edge]\ncloud = "c:1"\n[edge.serve]\nadapters = { a = "a" }\nspill_dir = "s"\n'
    )
    own = load_edge(file).serve
    assert own is not None and own.adapters == {"a": tmp_path / "a"}
    assert own.spill_dir == tmp_path / "s"
    file.write_text('[edge]\nmodel = "m"\n[edge.serve]\n[serve]\n')
    with pytest.raises(ConfigError, match=r"edge\.serve.*trains as well"):
        load_serve_edge(file)
    file.write_text(
        '[model]\npath = "m"\n[[devices]]\nname = "a"\n[edge.serve]\nadapters = { a = "a" }\n'
    )
    found = load_run(file)
    assert found.edge.serve is not None and found.edge.serve.adapters == {"a": tmp_path / "a"}
    file.write_text(file.read_text() + '[aggregation]\nstrategy = "flora"\n')
    with pytest.raises(ConfigError, match=r"edge\.serve.*every round's sum"):
        load_run(file)
    assert RunConfig.model_validate({"model": {"path": "m"}, "devices": [{"name": "a"}]})
