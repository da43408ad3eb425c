"""OpenAI's interface over an edge and a device in this process, and a client of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import torch

from device_agent.serving.node import ServingDevice
from edge_server.serving import ServingEdge
from sfl.config.serve import ServeDeviceConfig, ServeEdgeConfig
from tests.house.paths import MODEL

PROMPT = "Turn on the lamp"


class Api:
    """A client of one endpoint."""

    def __init__(
        self, session: aiohttp.ClientSession, address: str, device: ServingDevice, edge: str
    ) -> None:
        self.session = session
        self.base = f"http://{address}"
        self.device = device
        self.edge = edge

    async def post(self, path: str, **body: Any) -> tuple[int, Any]:
        body = {"model": "base", "temperature": 0, "max_tokens": 12, **body}
        async with self.session.post(self.base + path, json=body) as response:
            return response.status, await response.json()

    async def text(self, **body: Any) -> str:
        status, answer = await self.post("/v1/completions", prompt=PROMPT, **body)
        assert status == 200, answer
        return str(answer["choices"][0]["text"])

    async def events(self, path: str, **body: Any) -> list[Any]:
        body = {"model": "base", "temperature": 0, "max_tokens": 12, "stream": True, **body}
        async with self.session.post(self.base + path, json=body) as response:
            assert response.content_type == "text/event-stream"
            lines = (await response.text()).strip().split("\n\n")
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines]


@contextlib.asynccontextmanager
async def endpoint(
    serve: dict[str, Any] | None = None,
    edge_metrics: bool = False,
    device_metrics: bool = False,
    **answer: Any,
) -> AsyncIterator[Api]:
    """An edge and a device that answers, both in this process, and a client."""
    torch.set_num_threads(1)
    edge = ServingEdge(
        ServeEdgeConfig.model_validate(
            {
                "edge": {"model": str(MODEL), "metrics": {"enabled": edge_metrics}},
                "serve": {"kv_memory": "64MB", **(serve or {})},
            }
        ),
        1,
        insecure=False,
    )
    async with edge.port() as address:
        config = ServeDeviceConfig.model_validate(
            {
                "device": {
                    "name": "d",
                    "model": str(MODEL),
                    "edge": address,
                    "metrics": {"enabled": device_metrics},
                },
                "serve": {"listen": "127.0.0.1:0", **answer},
            }
        )
        own = ServingDevice(config, 1, insecure=False)
        async with own.port() as where, aiohttp.ClientSession() as session:
            yield Api(session, where, own, address)
