"""The process of a device: answers what it is told to, without an endpoint in between.

    python -m benchmarks.served.device NAME MODEL      # started by benchmarks/served/nodes.py

What `sfl serve --device` puts behind its endpoint: the same blocks, the same `Talker` and the same
link. A job has the edge's address, conversations, and how many of them are answered at a time.
Streams stay open from one job to the next.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from typing import Any

from sfl.node.process import keep_heap, quiet_environment

if __name__ == "__main__":
    quiet_environment()
    keep_heap()
    from sfl.models.modeling import leave_out_compiler

    leave_out_compiler()

import torch

from device_agent.serving.drafts import open_drafter
from device_agent.serving.node import caller
from device_agent.serving.talk import Talker, Wish
from sfl.config import LocalDevice
from sfl.config.serve import AnswerSettings
from sfl.models.folder import open_model
from sfl.models.memory.footprint import Load
from sfl.models.memory.serving import reads_rows
from sfl.plan import Plan
from sfl.stage.base import BaseForm
from sfl.stage.serving.front import FrontStage
from sfl.transport.serve.link import ServeLink, Traffic, dial, edge_channel

CONTEXT, ROOM = 256, 64 * 256
"""Tokens of a conversation at most, and of all that this device has room for."""


class Device:
    """What this process has loaded, and its streams."""

    def __init__(self, name: str, model: str) -> None:
        self._name = name
        self._folder = open_model(model)
        self._stages: dict[tuple[object, ...], FrontStage] = {}
        self._talkers: dict[tuple[object, ...], Talker] = {}

    async def play(self, job: dict[str, Any]) -> dict[str, Any]:
        """Answer all of a job; each token with the time at which it was there."""
        talker = self._talker(job)
        await talker.link()
        before, gate = talker.spoken, asyncio.Semaphore(job["together"])
        trips, drafted, accepted = before.round_trips, before.drafted, before.accepted
        await asyncio.sleep(max(0.0, job["begin"] - time.monotonic()))
        said = await asyncio.gather(
            *(self._said(talker, talk, job["tokens"], gate) for talk in job["talks"])
        )
        spoken = talker.spoken
        return {
            "said": said,
            "trips": spoken.round_trips - trips,
            "drafted": spoken.drafted - drafted,
            "accepted": spoken.accepted - accepted,
        }

    async def _said(
        self, talker: Talker, talk: dict[str, Any], tokens: int, gate: asyncio.Semaphore
    ) -> dict[str, Any]:
        wish = Wish(talk["name"], tuple(talk["ids"]), tokens, talk["adapter"])
        async with gate:
            asked = time.monotonic()
            answer = [(token, time.monotonic()) async for token in talker.answer(wish)]
        return {"asked": asked, "ids": [id_ for id_, _ in answer], "at": [at for _, at in answer]}

    def _talker(self, job: dict[str, Any]) -> Talker:
        serve = AnswerSettings.model_validate(job["serve"])
        key = (job["edge"], json.dumps(job["serve"], sort_keys=True))
        if key not in self._talkers:
            self._talkers[key] = self._dialling(job["edge"], serve)
        return self._talkers[key]

    def _dialling(self, edge: str, serve: AnswerSettings) -> Talker:
        own = caller(f"{self._name}-{len(self._talkers)}", self._folder)

        async def connect() -> ServeLink:
            return await dial(edge, edge_channel(edge, False), own, Traffic(), 30.0)

        return Talker(
            self._stage(serve),
            connect,
            CONTEXT,
            self._folder.hidden_size,
            draft_tokens=serve.draft_tokens,
            exact=serve.exact,
        )

    def _stage(self, serve: AnswerSettings) -> FrontStage:
        key = (serve.cut_layer, serve.topology, serve.tail_layers, serve.draft)
        if key not in self._stages:
            folder, form = self._folder, BaseForm()
            cuts = serve.cut_layer, serve.tail_layers, serve.topology
            plan = Plan.split(folder.num_layers, *cuts)
            on_disk = reads_rows(folder, LocalDevice(), Load(1, 1))
            drafter = open_drafter(serve, folder, ROOM, form)
            self._stages[key] = FrontStage(folder, plan, ROOM, form, drafter, on_disk)
        return self._stages[key]


async def answer(name: str, model: str) -> None:
    """Until nobody asks any more."""
    device = Device(name, model)
    for _ in itertools.count():
        line = await asyncio.to_thread(sys.stdin.readline)
        if not line:
            return
        print(json.dumps(await device.play(json.loads(line))), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    asyncio.run(answer(*sys.argv[1:]))
