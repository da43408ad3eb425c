"""One prompt over the cut in one process: a run's adapter, as a device and its edge serve it."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from sfl.config import RunConfig
from sfl.config.serve import ServeDeviceConfig, ServeEdgeConfig
from sfl.node.process import cores
from sfl.plan import U_SHAPED

_NAME = "run"


def generate_split(
    config: RunConfig, model: str, adapter: Path | None, ids: tuple[int, ...], max_tokens: int
) -> list[int]:
    """The greedy ids behind a prompt's: over the cut of the run's first device. Raises SflError."""
    from device_agent.serving.node import ServingDevice
    from device_agent.serving.talk import Wish
    from edge_server.serving import ServingEdge

    async def answer() -> list[int]:
        with tempfile.TemporaryDirectory(prefix="sfl-split-") as folder:
            edge = ServingEdge(edge_config(config, model, adapter, Path(folder)), cores(), False)
            async with edge.port() as address:
                device = ServingDevice(device_config(config, model, address), cores(), False)
                name = "base" if adapter is None else _NAME
                wish = Wish("prompt", ids, max_tokens, name)
                stops = device.answerer.stop_ids
                found: list[int] = []
                try:
                    async for token in device.talker.answer(wish):
                        if token in stops:
                            break
                        found.append(token)
                finally:
                    await device.talker.close()
                return found

    return asyncio.run(answer())


def edge_config(
    config: RunConfig, model: str, adapter: Path | None, folder: Path
) -> ServeEdgeConfig:
    """An edge on loopback with the run's adapter."""
    return ServeEdgeConfig.model_validate(
        {
            "edge": {"model": model, "dtype": config.model.dtype},
            "serve": {
                "adapters": {} if adapter is None else {_NAME: str(adapter)},
                "cut_layer": config.devices[0].cut_layer,
                "spill_dir": str(folder),
                "max_tokens": 1 << 20,
            },
        }
    )


def device_config(config: RunConfig, model: str, edge: str) -> ServeDeviceConfig:
    """A device that has what the run's first device has."""
    u_shaped = config.run.topology in U_SHAPED
    return ServeDeviceConfig.model_validate(
        {
            "device": {"name": "device", "model": model, "edge": edge, "dtype": config.model.dtype},
            "serve": {
                "cut_layer": config.devices[0].cut_layer,
                "topology": "u_shaped" if u_shaped else "vanilla",
                "tail_layers": config.devices[0].tail_layers if u_shaped else 0,
                "conversations": 1,
                "listen": "127.0.0.1:0",
            },
        }
    )
