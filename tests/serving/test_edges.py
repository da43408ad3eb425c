"""A device and its edges: another one, one begun anew, one that is gone; and what each keeps."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from device_agent.serving.talk import Wish
from edge_server.serving import MOST_SPANS
from sfl.errors import LinkLost, PeerUnavailable, Refused
from sfl.plan import Span
from sfl.stage.serving.messages import Opening, Step, Tokens
from sfl.transport.serve.link import ServeLink
from tests.house.conversations import NEW_TOKENS, PROMPT, generated
from tests.house.serving import (
    Device,
    answered,
    device,
    dialled,
    edge_config,
    saved_adapter,
    serving,
)
from tests.house.tiny_models import LAYERS

WISH = Wish("c", PROMPT, NEW_TOKENS)


def test_another_adapter_of_the_same_name_is_never_mixed_with_the_first(tmp_path: Path) -> None:
    """As where an edge is started anew with what was trained since, and its devices stay."""
    folders = [saved_adapter(tmp_path / str(seed), seed) for seed in (0, 1)]
    one, two = (serving(edge_config(adapters={"a": str(folder)})) for folder in folders)
    wish = Wish("c", PROMPT, 24, "a")

    async def moved(own: Device, address: str) -> None:
        own.address = address
        (await own.talker.link())._call.cancel()

    async def run() -> None:
        async with one as (_, first), two as (_, second), device(first) as own:
            expected = [await answered(address, wish, name="f") for address in (first, second)]
            assert expected[0] != expected[1]
            assert await own.say(wish) == expected[0]
            answer = own.talker.answer(wish)
            await anext(answer)
            await moved(own, second)
            with pytest.raises(Refused, match="serves another adapter 'a'"):
                _ = [token async for token in answer]
            assert await own.say(wish) == expected[1]
            await moved(own, first)
            assert await own.say(wish) == expected[0]

    asyncio.run(run())


def test_a_question_that_was_given_up_is_answered_before_the_next() -> None:
    """As where Ctrl-C meets a long prompt, and the next line is there at once."""

    async def run() -> None:
        async with serving(edge_config()) as (edge, address):
            link = await dialled(address)
            await link.open(Opening("c", "base", 1, LAYERS, True, 64))
            released = threading.Event()
            slow = asyncio.create_task(edge._engine.run(released.wait, 20))
            rows = torch.full((2, 32), 0.1)
            first = asyncio.create_task(link.step(Step("c", 1, 0, rows)))
            async with asyncio.timeout(20):
                while not edge._engine._queue:
                    await asyncio.sleep(0.01)
            first.cancel()
            second = asyncio.create_task(link.step(Step("c", 2, 0, rows)))
            await asyncio.sleep(0.05)
            released.set()
            assert isinstance(await second, Tokens)
            await slow
            await link.close()

    asyncio.run(run())


def test_an_adapter_that_gives_nothing_finite_fails_its_own_answers_alone(tmp_path: Path) -> None:
    folder = saved_adapter(tmp_path / "a", 0)
    values = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: 1e30 * value for name, value in values.items() if "layers.0" not in name},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )

    async def run() -> None:
        config = edge_config(adapters={"a": str(folder)})
        async with serving(config) as (_, address), device(address) as own:
            answer = own.talker.answer(WISH)
            said = [await anext(answer)]
            link = await own.talker.link()
            with pytest.raises(Refused, match="what adapter a makes of its rows is not finite"):
                await own.say(Wish("d", PROMPT, 9, "a"))
            said += [token async for token in answer]
            assert tuple(said) == generated("llama")[0]
            assert await own.talker.link() is link

    asyncio.run(run())


def test_an_edge_that_is_gone_is_dialled_once_for_all_who_wait() -> None:
    async def run() -> None:
        dialled_again = 0

        async def dial() -> ServeLink:
            nonlocal dialled_again
            dialled_again += 1
            await asyncio.sleep(0.05)
            raise PeerUnavailable("nobody answers")

        async with device("127.0.0.1:1") as own:
            own.talker._dial = dial
            for turn in (1, 2):
                asked = (own.say(replace(WISH, name=str(n))) for n in range(5))
                failed = await asyncio.gather(*asked, return_exceptions=True)
                assert {type(error) for error in failed} == {PeerUnavailable}
                assert dialled_again == turn

    asyncio.run(run())


def test_a_stream_that_is_refused_leaves_no_task_behind() -> None:
    async def run() -> None:
        async with serving(edge_config()) as (_, address):
            before = asyncio.all_tasks()
            with pytest.raises(Refused, match="another model"):
                await dialled(address, "d", kind="mistral")
            await asyncio.sleep(0)
            left = [task for task in asyncio.all_tasks() - before if "ServeLink" in repr(task)]
            assert not left

    asyncio.run(run())


def test_an_edge_that_is_lost_while_it_sends_an_adapter_is_asked_again(tmp_path: Path) -> None:
    async def run() -> None:
        config = edge_config(adapters={"a": str(saved_adapter(tmp_path / "a", 0))})
        async with serving(config) as (_, address), device(address) as own:
            link = await own.talker.link()

            async def lost(*_: object) -> Any:
                link._call.cancel()
                raise LinkLost("an adapter ended too early")

            link.fetch_adapter = lost  # type: ignore[method-assign]
            wish = replace(WISH, adapter="a", max_tokens=8)
            assert await own.say(wish) == await answered(address, wish, name="f")

    asyncio.run(run())


def test_files_of_spans_that_nobody_asks_for_any_more_are_not_kept() -> None:
    async def run() -> None:
        async with serving(edge_config()) as (edge, _):
            host = edge.service._host.result()
            every = [(Span(0, n, embedding=True, head=False),) for n in range(MOST_SPANS + 3)]
            kept = [host.files(spans) for spans in every]
            assert host.files(every[-1]) is kept[-1]
            assert len(host._files) == MOST_SPANS

    asyncio.run(run())


def test_what_a_device_drops_its_edge_drops_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device_agent.serving.kept.MOST_KEPT", 2)

    async def run() -> None:
        async with serving(edge_config()) as (edge, address), device(address) as own:
            conversations = edge.service._host.result().conversations
            for n in range(6):
                await own.say(Wish(f"c{n}", (*PROMPT, n), 2))
            async with asyncio.timeout(20):
                while len(conversations) > 2:
                    await asyncio.sleep(0.01)
            assert sorted((await own.talker.link())._numbers) == ["c4", "c5"]

    asyncio.run(run())
