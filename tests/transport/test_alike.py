"""A round's adapter in bytes, made once for all devices that get the same of it."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from edge_server.base import shares
from sfl.codec.pipeline import parse
from sfl.config import RunSettings
from sfl.rounds.assignment import assign
from sfl.rounds.values import EdgeBase
from sfl.transport.device.alike import MOST, Alike
from sfl.transport.device.end import whole_frames
from sfl.transport.device.updates import AdapterChanges
from sfl.transport.frames.chunks import adapter_bytes
from sfl.transport.stream import Ready

VALUES = {"x.lora_A.weight": np.ones((2, 3), np.float32)}
PREFIX = "base_model.model.transformer.h"


def made(values: dict[str, np.ndarray], round_: int) -> list[Ready]:
    return [Ready(frame.data) for frame in whole_frames(values, round_)]


def test_devices_with_the_same_values_get_the_same_bytes() -> None:
    async def scenario() -> None:
        alike, others = Alike(), dict(VALUES)
        first, second, third = await asyncio.gather(
            *(alike.frames(values, 1, made) for values in (VALUES, VALUES, others))
        )
        assert first is second
        assert third is not first
        assert [frame.data for frame in first] == [adapter_bytes(VALUES)]
        assert await alike.frames(VALUES, 1, made) is first
        assert await alike.frames(VALUES, 2, made) is not first

    asyncio.run(scenario())


def test_a_device_that_leaves_meanwhile_leaves_the_others_theirs() -> None:
    async def scenario() -> None:
        alike, go = Alike(), threading.Event()

        def slowly(values: dict[str, np.ndarray], round_: int) -> list[Ready]:
            assert go.wait(30)
            return made(values, round_)

        gone = asyncio.create_task(alike.frames(VALUES, 1, slowly))
        stays = asyncio.create_task(alike.frames(VALUES, 1, slowly))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        go.set()
        assert [frame.data for frame in await stays] == [adapter_bytes(VALUES)]

    asyncio.run(scenario())


def test_no_more_is_kept_than_so_many_parts() -> None:
    async def scenario() -> None:
        alike = Alike()
        several = [dict(VALUES) for _ in range(MOST + 1)]
        first = await alike.frames(several[0], 1, made)
        for values in several[1:]:
            last = await alike.frames(values, 1, made)
        assert await alike.frames(several[-1], 1, made) is last
        assert await alike.frames(several[0], 1, made) is not first

    asyncio.run(scenario())


def test_an_edge_has_one_part_for_all_devices_of_a_plan_and_rank() -> None:
    cuts = {"a": (1, 2), "b": (1, 2), "c": (2, 2), "d": (1, 1)}
    settings = RunSettings.model_validate(
        {
            "model": {"path": "m"},
            "lora": {"rank": 2},
            "aggregation": {"strategy": "flexlora"},
            "devices": [
                {"name": name, "cut_layer": cut, "rank": rank} for name, (cut, rank) in cuts.items()
            ],
        }
    )
    orders = {name: assign(settings, EdgeBase(3), name, 1) for name in cuts}
    adapter = {}
    for block in range(3):
        adapter[f"{PREFIX}.{block}.x.lora_A.weight"] = np.full((2, 4), block, np.float32)
        adapter[f"{PREFIX}.{block}.x.lora_B.weight"] = np.full((4, 2), block, np.float32)
    parts = shares(adapter_bytes(adapter), orders)
    assert parts["a"] is parts["b"]
    blocks = {name: {key.split(".")[4] for key in own.theirs} for name, own in parts.items()}
    assert blocks == {"a": {"0"}, "b": {"0"}, "c": {"0", "1"}, "d": {"0"}}
    ranks = {
        name: min(map(min, (a.shape for a in own.theirs.values()))) for name, own in parts.items()
    }
    assert ranks == {"a": 2, "b": 2, "c": 2, "d": 1}


def test_an_edge_remembers_nothing_of_what_it_sends_whole() -> None:
    changes = AdapterChanges("edge", "kitchen", 1)
    changes.send_round(parse("int8"), VALUES, 1)
    assert changes.held
    changes.send_whole()
    assert not changes.held
