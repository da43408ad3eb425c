"""A device that has no model: its blocks, tokenizer and config come from the edge that it dials."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from device_agent.serving.model import served_model
from device_agent.serving.node import ServingDevice
from device_agent.serving.talk import Wish
from edge_server.serving import ServingEdge
from sfl.config.serve import ServeDeviceConfig, ServeEdgeConfig
from sfl.errors import ConfigError, PeerUnavailable, ProtocolError
from sfl.models.folder import open_model, span_tensor_names
from sfl.transport.serve.digest import model_digest
from tests.house.paths import MODEL

IDS = (5, 17, 33, 8, 52, 21, 44)
ANSWER = {"vanilla": {}, "u_shaped": {"topology": "u_shaped", "tail_layers": 1}}


def device_file(
    edge: str, cache: Path, model: str | None = None, **serve: Any
) -> ServeDeviceConfig:
    device = {"name": "d", "edge": edge, "cache_dir": str(cache), "connect_timeout": 10.0}
    table = {**device, **({} if model is None else {"model": model})}
    return ServeDeviceConfig.model_validate(
        {"device": {**table, "metrics": {"enabled": False}}, "serve": serve}
    )


def edge_of(**serve: Any) -> ServingEdge:
    edge = {"model": str(MODEL), "metrics": {"enabled": False}}
    config = {"edge": edge, "serve": {"kv_memory": "64MB", **serve}}
    return ServingEdge(ServeEdgeConfig.model_validate(config), 1, insecure=False)


async def answer(config: ServeDeviceConfig, folder: Any = None) -> list[int]:
    own = ServingDevice(config, 1, False, folder=folder)
    try:
        return [token async for token in own.talker.answer(Wish("c", IDS, 12))]
    finally:
        await own.talker.close()


@pytest.mark.parametrize("topology", ANSWER)
def test_its_answer_is_that_of_one_with_the_whole_model(topology: str, tmp_path: Path) -> None:
    serve = ANSWER[topology]

    async def run() -> None:
        async with edge_of().port() as address:
            config = device_file(address, tmp_path, **serve)
            folder = await asyncio.to_thread(served_model, config, False)
            whole = open_model(MODEL)
            assert model_digest(folder) == model_digest(whole)
            wanted = [
                name
                for span in ServingDevice(config, 1, False, folder=folder).stage.plan.device_spans
                for name in span_tensor_names(whole, span, "causal_lm")
            ]
            assert folder.tensors.keys() == set(wanted) < whole.tensors.keys()
            own = device_file(address, tmp_path, str(MODEL), **serve)
            assert await answer(config, folder) == await answer(own)
            again = await asyncio.to_thread(served_model, config, False)
            assert again.path == folder.path  # nothing is fetched twice

    asyncio.run(run())


def test_no_more_than_a_devices_part_leaves_the_edge(tmp_path: Path) -> None:
    async def run() -> None:
        async with edge_of(cut_layer=1).port() as address:
            for serve in (
                {"cut_layer": 4},
                {"cut_layer": 0},
                {"cut_layer": 1, "topology": "u_shaped", "tail_layers": 3},
            ):
                with pytest.raises(ProtocolError, match=r"cut_layer|tail_layers"):
                    await asyncio.to_thread(
                        served_model, device_file(address, tmp_path, **serve), False
                    )

    asyncio.run(run())


def test_what_cannot_come_from_an_edge_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"serve\.draft.*does not send"):
        served_model(device_file("127.0.0.1:1", tmp_path, draft="exit:here"), False)
    alone = device_file("127.0.0.1:1", tmp_path)
    impatient = alone.device.model_copy(update={"connect_timeout": 0.3})
    with pytest.raises(PeerUnavailable):
        served_model(alone.model_copy(update={"device": impatient}), False)
