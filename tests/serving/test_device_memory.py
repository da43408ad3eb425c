"""What a device that answers holds of its model: rows of the embedding may stay on the disk."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import torch

from device_agent.serving.node import ServingDevice
from sfl.cli.doctor.serving import ServeFile, check_serving
from sfl.config.serve import ServeDeviceConfig
from sfl.models.folder import ModelFolder, open_model
from sfl.models.memory.footprint import Load
from sfl.models.memory.serving import reads_rows, without_embedding
from sfl.plan import Plan
from sfl.stage.serving.front import FrontStage
from tests.house.paths import MODEL
from tests.house.tiny_models import opened


def config_of(model: ModelFolder, embedding: str, **answer: Any) -> ServeDeviceConfig:
    device = {"name": "d", "model": str(model.path), "edge": "127.0.0.1:1", "embedding": embedding}
    return ServeDeviceConfig.model_validate({"device": device, "serve": answer})


def stage_of(config: ServeDeviceConfig) -> FrontStage:
    async def made() -> FrontStage:
        own = ServingDevice(config, 1, insecure=False)
        await own.talker.close()
        return own.stage

    return asyncio.run(made())


def test_rows_from_the_disk_are_those_from_memory_and_take_none() -> None:
    folder, stages = open_model(MODEL), {}
    for embedding in ("memory", "disk"):
        stages[embedding] = stage_of(config_of(folder, embedding))
    said = {name: stage.rows(stage.begin("base"), (5, 9, 5)) for name, stage in stages.items()}
    assert torch.equal(said["memory"], said["disk"])
    held = {
        name: sum(p.numel() for p in stage.parts[0].model.parameters())
        for name, stage in stages.items()
    }
    values = folder.vocab_size * folder.hidden_size
    assert held["memory"] - held["disk"] == values
    foretold = {
        name: check_serving(ServeFile(None, (config_of(folder, name),)), folder, 8 << 30, 0)[0]
        for name in stages
    }
    weights = {name: check.figures["weights_bytes"] for name, check in foretold.items()}
    assert weights["memory"] - weights["disk"] == 4 * values


def test_in_the_u_shape_values_that_are_the_heads_too_are_there_once() -> None:
    folder = opened("llama")
    plan, found = Plan.split(folder.num_layers, 1, 1, "u_shaped"), []
    for on_disk in (False, True):
        stage = FrontStage(folder, plan, 64, embedding_on_disk=on_disk)
        values = {p.data_ptr(): p.numel() for part in stage.parts for p in part.model.parameters()}
        own = stage.begin("base")
        rows = stage.rows(own, (5, 9, 5))
        logits = stage.parts[1].model.logits(stage._extend(1, own, rows))
        found.append((sum(values.values()), rows, logits))
    (held, *outputs), (read, *others) = found
    assert held == read
    assert all(map(torch.equal, outputs, others))


@pytest.mark.parametrize(
    ("embedding", "answer", "tied", "expected"),
    [
        ("disk", {}, True, True),
        ("memory", {}, True, False),
        ("auto", {}, True, False),  # it is small
        ("disk", {"draft": "lookup"}, True, True),
        ("disk", {"draft": "exit:x"}, True, False),
        ("disk", {"draft": "exit:x"}, False, True),
        ("disk", {"topology": "u_shaped"}, True, False),
        ("disk", {"topology": "u_shaped"}, False, True),
    ],
)
def test_what_a_head_on_the_device_shares_is_counted(
    embedding: str, answer: dict[str, Any], tied: bool, expected: bool
) -> None:
    folder = opened("llama", json.dumps({"tie_word_embeddings": tied}))
    config = config_of(folder, embedding, **answer)
    assert without_embedding(folder, config.device, config.serve, Load(1, 1)) is expected


def test_a_large_one_is_on_the_disk_though_nobody_says_so() -> None:
    folder = opened("llama", json.dumps({"vocab_size": 130_000}))
    assert reads_rows(folder, config_of(folder, "auto").device, Load(1, 1))
