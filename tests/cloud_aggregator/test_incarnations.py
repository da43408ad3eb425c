"""An edge's process and its streams: a new one replaces a half-open one, and nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import grpc.aio
import pytest

from cloud_aggregator.aggregator import CloudAggregator
from sfl.metrics import NodeSnapshot
from sfl.rounds import FinishRun
from sfl.v1 import tensor_pb2
from tests.house.cloud import SpokenEdge, cloud_alone
from tests.house.waiting import until_async


def beat(round_: int) -> tensor_pb2.Heartbeat:
    """An edge says in which round it is."""
    snapshot = NodeSnapshot("edge", "edge", round=round_)
    return tensor_pb2.Heartbeat(snapshot=snapshot.to_json())


def test_a_new_stream_of_the_same_process_replaces_the_old_one(tmp_path: Path) -> None:
    async def story(cloud: CloudAggregator, address: str) -> None:
        def heard(round_: int) -> bool:
            return cloud.records.told.statistics.of("edge", "edge").round == round_

        first, second, other = (SpokenEdge(address, "edge") for _ in range(3))
        await first.join(b"one")
        await first.say(heartbeat=beat(7))
        await until_async(lambda: heard(7))
        with pytest.raises(grpc.aio.AioRpcError, match="is connected already"):
            await other.join(b"two")
        await second.join(b"one")
        with pytest.raises(grpc.aio.AioRpcError, match="came back on a new stream"):
            while await first.call.read() is not grpc.aio.EOF:
                pass
            raise grpc.aio.AioRpcError(
                await first.call.code(),
                grpc.aio.Metadata(),
                grpc.aio.Metadata(),
                await first.call.details(),
            )
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await first.say(heartbeat=beat(9))
        await second.say(heartbeat=beat(8))
        await until_async(lambda: heard(8))
        await asyncio.sleep(0.2)
        assert heard(8) and [*cloud.service.streams] == ["edge"]
        for edge in (first, second, other):
            await edge.close()
        cloud.driver.do(FinishRun(False, "enough"))

    reason, _ = cloud_alone(tmp_path, story)
    assert reason == "enough"
