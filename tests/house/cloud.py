"""A cloud in this process, with edges that a test speaks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from cloud_aggregator.aggregator import CloudAggregator
from sfl.config import load_run
from sfl.errors import RunFailed
from sfl.report.runs import open_run_folder
from sfl.transport.frames.wire import CLOUD_SESSION, WIRE_VERSION
from sfl.v1 import cloud_pb2
from tests.house.federation import write_config
from tests.house.fleets import fleet


class SpokenEdge:
    """An edge's end of its stream with the cloud."""

    def __init__(self, address: str, name: str) -> None:
        self.channel = grpc.aio.insecure_channel(address)
        self.call = CLOUD_SESSION.stub(self.channel)()
        self.name = name

    async def join(self, incarnation: bytes = b"") -> None:
        hello = cloud_pb2.EdgeHello(
            edge=self.name, wire_version=WIRE_VERSION, incarnation=incarnation
        )
        await self.say(hello=hello)
        first = await self.call.read()
        assert first.WhichOneof("body") == "settings"

    async def say(self, **body: Any) -> None:
        await self.call.write(cloud_pb2.EdgeReportMessage(**body))

    async def hears(self, body: str) -> cloud_pb2.CloudMessage:
        while True:
            message: cloud_pb2.CloudMessage = await asyncio.wait_for(self.call.read(), 60)
            if message.WhichOneof("body") == body:
                return message

    async def close(self) -> None:
        self.call.cancel()
        await self.channel.close()


def cloud_alone(
    folder: Path, story: Callable[[CloudAggregator, str], Any], **sections: Any
) -> tuple[str, CloudAggregator]:
    """Serve a run in this process while `story` is played; why it failed, and the cloud."""
    config = load_run(write_config(folder, fleet(folder, 2, **sections)), [])

    async def play() -> tuple[str, CloudAggregator]:
        cloud = CloudAggregator(config, open_run_folder(config))
        address = folder / "address"
        serving = asyncio.create_task(cloud.run(address))
        while not address.exists():
            await asyncio.sleep(0.01)
        await story(cloud, address.read_text())
        with pytest.raises(RunFailed) as failed:
            await asyncio.wait_for(serving, 60)
        return str(failed.value), cloud

    return asyncio.run(play())
