"""An edge that serves and devices that talk to it, over real sockets in this process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from device_agent.serving.node import caller
from device_agent.serving.talk import Talker, Wish
from edge_server.serving import ServingEdge
from sfl.adapters.artifact import save_adapter
from sfl.config import LoraSettings
from sfl.config.serve import ServeEdgeConfig
from sfl.models.folder import open_model
from sfl.plan import Plan
from sfl.stage.serving.drafting import Drafter
from sfl.stage.serving.front import FrontStage
from sfl.transport.serve.link import Caller, ServeLink, Traffic, dial, edge_channel
from tests.house.conversations import LONGEST, folder_of
from tests.house.tiny_models import LAYERS, busy_values, manifest_of


def saved_adapter(folder: Path, seed: int, kind: str = "llama", rank: int = 4) -> Path:
    """A PEFT folder over a tiny model, with values that count."""
    manifest = manifest_of(
        open_model(folder_of(kind)), "causal_lm", LoraSettings(rank=rank, alpha=2 * rank)
    )
    save_adapter(folder, busy_values(manifest, seed), manifest.peft_config)
    return folder


def edge_config(kind: str = "llama", codec: str = "none", **serve: Any) -> ServeEdgeConfig:
    """Of an edge on loopback, within a small budget."""
    return ServeEdgeConfig.model_validate(
        {
            "edge": {"model": folder_of(kind), "threads": 1},
            "serve": {"cut_layer": 1, "kv_memory": "4MB", "prefill_chunk": 7, **serve},
            "codec": {"serve": codec},
        }
    )


@contextlib.asynccontextmanager
async def serving(config: ServeEdgeConfig) -> AsyncIterator[tuple[ServingEdge, str]]:
    """The edge, and its address."""
    edge = ServingEdge(config, 1, insecure=False)
    async with edge.port() as address:
        yield edge, address


@dataclass
class Device:
    """A device that answers, and what its links have moved."""

    talker: Talker
    traffic: Traffic
    address: str

    async def say(self, wish: Wish) -> list[int]:
        """The whole answer."""
        return [token async for token in self.talker.answer(wish)]


def caller_of(name: str, kind: str = "llama") -> Caller:
    """How a device introduces itself."""
    return caller(name, open_model(folder_of(kind)))


async def dialled(address: str, name: str = "raw", kind: str = "llama") -> ServeLink:
    """A link without anything behind it."""
    own = caller_of(name, kind)
    return await dial(address, edge_channel(address, False), own, Traffic(), 10.0)


@contextlib.asynccontextmanager
async def device(
    address: str,
    name: str = "d",
    kind: str = "llama",
    plan: Plan | None = None,
    drafter: Drafter | None = None,
    draft_tokens: int = 4,
    exact: bool = False,
) -> AsyncIterator[Device]:
    """A device that dials `address`, or whatever its `address` is set to later."""
    torch.set_num_threads(1)
    folder = open_model(folder_of(kind))
    plan = plan or Plan.split(LAYERS, 1, 0, "vanilla")
    stage = FrontStage(folder, plan, 8 * LONGEST, drafter=drafter)
    made: list[Device] = []

    async def connect() -> ServeLink:
        here, own = made[0].address, caller_of(name, kind)
        return await dial(here, edge_channel(here, False), own, made[0].traffic, 10.0)

    talker = Talker(
        stage,
        connect,
        LONGEST,
        folder.hidden_size,
        patience=20.0,
        draft_tokens=draft_tokens,
        exact=exact,
    )
    made.append(Device(talker, Traffic(), address))
    try:
        yield made[0]
    finally:
        await talker.close()


async def answered(address: str, wish: Wish, kind: str = "llama", **options: Any) -> list[int]:
    """The whole answer of a device of its own."""
    async with device(address, options.pop("name", "d"), kind, **options) as own:
        return await own.say(wish)
