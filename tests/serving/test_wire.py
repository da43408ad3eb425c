"""Answers over real sockets: device, link, service, engine and conversations, in this process."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
import torch

from device_agent.serving.talk import Wish
from sfl.adapters.served import open_served
from sfl.config import LoraSettings
from sfl.errors import ConfigError, LinkLost, ModelError, ProtocolError, Refused, SflError
from sfl.models.folder import open_model
from sfl.plan import Plan
from sfl.serving.sampling import Sampling
from sfl.stage.serving.conversation import Conversation
from sfl.stage.serving.conversations import Conversations
from sfl.stage.serving.messages import Opened, Opening, Step, Tokens
from sfl.transport.frames.wire import WIRE_VERSION
from sfl.transport.serve.link import ServeLink
from sfl.transport.serve.rows import RowCodec, serve_codec
from sfl.transport.serve.words import Closed
from sfl.v1 import serve_pb2, tensor_pb2
from tests.house.conversations import NEW_TOKENS, PROMPT, folder_of, generated, plans
from tests.house.serving import device, dialled, edge_config, saved_adapter, serving
from tests.house.tiny_models import LAYERS, busy_values, manifest_of, peft_model

WISH = Wish("c", PROMPT, NEW_TOKENS)
OPENING = Opening("c", "base", 1, LAYERS, True, 64)


def rows_of(count: int) -> torch.Tensor:
    return torch.full((count, 32), 0.1)


# -- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan", [plan for plan in plans() if plan.cut_layer], ids=lambda plan: str(plan.spans[1].span)
)
def test_an_answer_over_the_wire_is_generates(plan: Plan) -> None:
    async def run() -> None:
        async with serving(edge_config()) as (_, address), device(address, plan=plan) as own:
            assert tuple(await own.say(WISH)) == generated("llama")[0]
            assert own.traffic.round_trips == 1 + 2 + NEW_TOKENS - 1

    asyncio.run(run())


def test_bytes_on_the_wire_are_rows_and_little_more() -> None:
    async def run() -> None:
        async with serving(edge_config()) as (_, address), device(address) as own:
            answer = own.talker.answer(WISH)
            await anext(answer)
            before = replace(own.traffic)
            for _ in range(20):
                await anext(answer)
            up = (own.traffic.up - before.up) / 20
            down = (own.traffic.down - before.down) / 20
            assert 32 * 4 < up < 32 * 4 + 45
            assert down < 30

    asyncio.run(run())


def test_a_chat_goes_on_where_it_was_and_sends_what_is_new() -> None:
    async def run() -> None:
        async with serving(edge_config()) as (_, address), device(address) as own:
            first = await own.say(replace(WISH, max_tokens=10))
            before = own.traffic.round_trips
            longer = (*PROMPT, *first, 7, 8, 9)
            second = await own.say(replace(WISH, ids=longer, max_tokens=5))
            assert own.traffic.round_trips - before == 1 + 1 + 4  # opened again; no prefix sent
            fresh = await own.say(Wish("other", longer, 5))
            assert second == fresh
            turned = (*PROMPT[:6], 40, *PROMPT[6:])  # another text under the same name
            assert await own.say(replace(WISH, ids=turned, max_tokens=5)) == await own.say(
                Wish("third", turned, 5)
            )

    asyncio.run(run())


def test_several_adapters_at_once_are_pefts(tmp_path: Path) -> None:
    """Two devices, three adapters each: tokens of PEFT over the whole model in one process."""
    adapters = {f"a{n}": str(saved_adapter(tmp_path / f"a{n}", n, rank=2 + 2 * n)) for n in (0, 1)}
    expected = {"base": list(generated("llama")[0][:24])}
    folder = open_model(folder_of("llama"))
    for n in (0, 1):
        settings = LoraSettings(rank=2 + 2 * n, alpha=2 * (2 + 2 * n))
        manifest = manifest_of(folder, "causal_lm", settings)
        model = peft_model(folder, "causal_lm", manifest, busy_values(manifest, n)).eval()
        ids = torch.tensor([PROMPT])
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        expected[f"a{n}"] = made[0, len(PROMPT) :].tolist()
    assert len({tuple(text) for text in expected.values()}) == 3

    async def run() -> None:
        config = edge_config(adapters=adapters)
        u_shaped = Plan.split(LAYERS, 1, 1, "u_shaped")
        async with (
            serving(config) as (_, address),
            device(address, "d") as one,
            device(address, "e", plan=u_shaped) as other,
        ):
            names = list(expected)
            said = await asyncio.gather(
                *(own.say(Wish(name, PROMPT, 24, name)) for own in (one, other) for name in names)
            )
            assert said == [expected[name] for name in names] * 2

    asyncio.run(run())


def test_sampled_answers_are_the_same_wherever_the_head_is() -> None:
    async def run() -> None:
        wish = replace(WISH, sampling=Sampling(0.8, 0.9, seed=5), max_tokens=30)
        async with (
            serving(edge_config()) as (_, address),
            device(address, "d") as one,
            device(address, "e", plan=Plan.split(LAYERS, 1, 0, "u_shaped")) as other,
        ):
            said = await one.say(wish)
            assert said == await other.say(replace(wish, name="x"))
            assert said != await one.say(replace(wish, name="y", sampling=Sampling(0.8, 0.9, 6)))

    asyncio.run(run())


# -- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_an_edge_that_is_gone_in_mid_answer_costs_no_token(topology: Any) -> None:
    """The device goes on at another edge, which has never heard of the conversation."""

    async def run() -> None:
        plan = Plan.split(LAYERS, 1, 0, topology)
        async with serving(edge_config()) as (_, second):
            said = []
            async with serving(edge_config()) as (_, first):
                own_device = device(first, plan=plan)
                own = await own_device.__aenter__()
                answer = own.talker.answer(WISH)
                for _ in range(20):
                    said.append(await anext(answer))
            own.address = second
            said += [token async for token in answer]
            assert tuple(said) == generated("llama")[0]
            await own_device.__aexit__(None, None, None)

    asyncio.run(run())


def test_a_stream_that_breaks_is_dialled_again_and_sends_no_prefix() -> None:
    async def run() -> None:
        async with serving(edge_config()) as (_, address), device(address) as own:
            answer = own.talker.answer(WISH)
            said = [await anext(answer) for _ in range(9)]
            link = await own.talker.link()
            link._call.cancel()
            before = own.traffic.round_trips
            said.append(await anext(answer))
            assert own.traffic.round_trips - before <= 3  # perhaps one in vain, opened, one step
            said += [token async for token in answer]
            assert tuple(said) == generated("llama")[0]

    asyncio.run(run())


@pytest.mark.parametrize("evict", ["spill", "recompute"])
def test_conversations_that_share_too_little_room_all_get_their_text(
    evict: str, tmp_path: Path
) -> None:
    async def run() -> None:
        page = 2 * 2 * 2 * 64 * 8 * 4
        config = edge_config(kv_memory=2 * page, evict=evict, spill_dir=str(tmp_path))
        async with serving(config) as (edge, address), device(address) as own:
            conversations = edge.service._host.result().conversations
            conversations._rules = replace(conversations._rules, idle_seconds=0.05)
            texts: dict[int, tuple[int, ...]] = {}
            for _ in range(2):
                for n in range(5):
                    ids = texts.get(n, PROMPT[: 4 + n])
                    ids = (*ids, *await own.say(Wish(f"c{n}", ids, 20)))
                    texts[n] = ids
                    await asyncio.sleep(0.06)
            assert conversations.spilled + conversations.forgotten >= 5
            for n, text in texts.items():
                start = PROMPT[: 4 + n]
                alone = await own.say(Wish(f"x{n}", start, len(text) - len(start)))
                assert text == (*start, *alone)
                await asyncio.sleep(0.06)

    asyncio.run(run())


# -- peers that mean harm -------------------------------------------------------------------------


def raw(request: serve_pb2.GenerateRequest) -> Callable[[ServeLink], Awaitable[Any]]:
    async def send(link: ServeLink) -> Any:
        link._put(request)
        async with asyncio.timeout(20):
            while link.lost is None:
                await asyncio.sleep(0.01)
        raise link.lost

    return send


LOSSLESS = RowCodec(serve_codec("none"), 32).encode(rows_of(2))


def a_step(**changes: Any) -> serve_pb2.GenerateStep:
    step = serve_pb2.GenerateStep(conversation=1, number=1, wanted=1, rows=LOSSLESS)
    step.MergeFrom(serve_pb2.GenerateStep(**changes))
    return step


HOSTILE: dict[str, tuple[serve_pb2.GenerateRequest, str]] = {
    "no rows": (
        serve_pb2.GenerateRequest(
            step=serve_pb2.GenerateStep(conversation=1, number=1, rows=serve_pb2.TokenRows())
        ),
        "tokens of a step = 0",
    ),
    "too many rows": (
        serve_pb2.GenerateRequest(step=a_step(rows=serve_pb2.TokenRows(count=2**31))),
        "tokens of a step = ",
    ),
    "fewer bytes than rows": (
        serve_pb2.GenerateRequest(step=a_step(rows=serve_pb2.TokenRows(count=3))),
        "step 1",
    ),
    "another type": (
        serve_pb2.GenerateRequest(step=a_step(rows=serve_pb2.TokenRows(dtype="int64"))),
        "dtype 'int64'",
    ),
    "wants more than it sends": (serve_pb2.GenerateRequest(step=a_step(wanted=3)), "wants 3"),
    "beyond what it reserved": (
        serve_pb2.GenerateRequest(step=a_step(position=63)),
        "beyond the 64 tokens",
    ),
    "a welcome of its own": (serve_pb2.GenerateRequest(), "an empty message"),
    "a second hello": (
        serve_pb2.GenerateRequest(hello=serve_pb2.ServeHello(device="x")),
        "hello was not expected",
    ),
    "no name": (
        serve_pb2.GenerateRequest(open=serve_pb2.OpenConversation(conversation=2)),
        "1 to 200 characters",
    ),
    "another adapter of that name": (
        serve_pb2.GenerateRequest(
            open=serve_pb2.OpenConversation(
                conversation=2, name="x", adapter="base", digest="abc", reserved=5
            )
        ),
        "is another one than this edge's",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_breaks_the_contract_ends_its_own_stream_with_the_reason(case: str) -> None:
    request, reason = HOSTILE[case]

    async def run() -> None:
        async with serving(edge_config()) as (_, address), device(address) as honest:
            answer = honest.talker.answer(WISH)
            said = [await anext(answer)]
            evil = await dialled(address, "evil")
            assert await evil.open(OPENING) == Opened(0, 0)
            with pytest.raises(ProtocolError, match=reason):
                await raw(request)(evil)
            await evil.close()
            said += [token async for token in answer]
            assert tuple(said) == generated("llama")[0]

    asyncio.run(run())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_where_they_enter(value: float) -> None:
    async def run() -> None:
        async with serving(edge_config()) as (_, address):
            evil = await dialled(address, "evil")
            await evil.open(OPENING)
            sound, spoiled = rows_of(1).numpy().tobytes()[:4], np.float32(value).tobytes()
            rows = serve_pb2.TokenRows(count=2, data=LOSSLESS.data.replace(sound, spoiled, 1))
            step = serve_pb2.GenerateStep(conversation=1, number=1, wanted=1, rows=rows)
            with pytest.raises(ProtocolError, match=r"conversation c, step 1: .*(NaN|finite)"):
                await raw(serve_pb2.GenerateRequest(step=step))(evil)
            await evil.close()

    asyncio.run(run())


def test_a_second_step_before_the_answer_is_refused() -> None:
    async def run() -> None:
        async with serving(edge_config()) as (_, address):
            evil = await dialled(address, "evil")
            await evil.open(OPENING)
            for _ in range(50):
                evil._put(serve_pb2.GenerateRequest(step=a_step()))
            with pytest.raises(ProtocolError, match="before the last one was answered"):
                await raw(serve_pb2.GenerateRequest(heartbeat=tensor_pb2.Heartbeat()))(evil)
            await evil.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("count", "error", "reason"),
    [
        (200, ProtocolError, "more than 64 openings wait"),
        (
            10_000,
            SflError,
            "openings wait|Internal error",
        ),  # it may hear no reason while it still writes
    ],
)
def test_ten_thousand_openings_at_once_are_refused_and_the_others_go_on(
    count: int, error: type[SflError], reason: str
) -> None:
    async def run() -> None:
        async with serving(edge_config()) as (edge, address), device(address) as honest:
            answer = honest.talker.answer(WISH)
            said = [await anext(answer)]
            evil = await dialled(address, "evil")
            slow = asyncio.create_task(edge._engine.run(time.sleep, 1.0))
            for number in range(count):
                own = serve_pb2.OpenConversation(
                    conversation=number,
                    name=str(number),
                    adapter="base",
                    first=1,
                    last=LAYERS,
                    ends=True,
                    reserved=64,
                    sampling=serve_pb2.SamplingSettings(top_p=1.0),
                )
                evil._put(serve_pb2.GenerateRequest(open=own))
            with pytest.raises(error, match=reason):
                await raw(serve_pb2.GenerateRequest(heartbeat=tensor_pb2.Heartbeat()))(evil)
            await evil.close()
            await slow
            said += [token async for token in answer]
            assert tuple(said) == generated("llama")[0]
            assert len(edge.service._host.result().conversations) <= 65

    asyncio.run(run())


def test_openings_without_a_pause_let_others_steps_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take their turn: a step waits for those before it, and for none behind it."""
    done: list[str] = []

    def noted(one: type, name: str, what: str) -> None:
        computed = getattr(one, name)

        def work(self: Any, *args: Any) -> Any:
            done.append(what)
            return computed(self, *args)

        monkeypatch.setattr(one, name, work)

    async def waiting(edge: Any, count: int) -> None:
        async with asyncio.timeout(20):
            while len(edge._engine._queue) < count:
                await asyncio.sleep(0.01)

    async def run() -> None:
        async with serving(edge_config()) as (edge, address):
            honest, evil = await dialled(address, "honest"), await dialled(address, "evil")
            await honest.open(OPENING)
            noted(Conversations, "open", "opening")
            noted(Conversation, "handle", "step")
            released = threading.Event()
            slow = asyncio.create_task(edge._engine.run(released.wait, 20))
            step = asyncio.create_task(honest.step(Step("c", 1, 0, rows_of(2))))
            await waiting(edge, 1)
            names = map(str, range(20))
            openings = [asyncio.create_task(evil.open(replace(OPENING, name=n))) for n in names]
            await waiting(edge, 21)
            released.set()
            await asyncio.gather(slow, step, *openings)
            assert done == ["step"] + 20 * ["opening"]
            await honest.close()
            await evil.close()

    asyncio.run(run())


class Deaf:
    """A call whose device reads nothing."""

    def __init__(self) -> None:
        self.status: grpc.StatusCode | None = None

    async def write(self, message: object) -> None:
        await asyncio.Event().wait()

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.status = code


def test_a_device_that_reads_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfl.transport.serve.service.LAST_WORD", 0.05)

    async def requests(model: str) -> AsyncIterator[serve_pb2.GenerateRequest]:
        hello = serve_pb2.ServeHello(device="deaf", wire_version=WIRE_VERSION, model=model)
        yield serve_pb2.GenerateRequest(hello=hello)
        yield serve_pb2.GenerateRequest()  # says nothing
        await asyncio.Event().wait()

    async def run() -> None:
        async with serving(edge_config()) as (edge, _):
            call, service = Deaf(), edge.service
            async with asyncio.timeout(20):
                await service._generate(requests(service._host.result().model), cast(Any, call))
            assert call.status is grpc.StatusCode.INVALID_ARGUMENT
            assert service.devices == ()

    asyncio.run(run())


def test_a_device_that_asks_on_and_reads_nothing_fills_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sfl.transport.serve.service.LAST_WORD", 0.05)

    async def requests(model: str) -> AsyncIterator[serve_pb2.GenerateRequest]:
        hello = serve_pb2.ServeHello(device="deaf", wire_version=WIRE_VERSION, model=model)
        yield serve_pb2.GenerateRequest(hello=hello)
        for _ in range(1000):
            yield serve_pb2.GenerateRequest(step=a_step(conversation=7))  # which is not open

    async def run() -> None:
        async with serving(edge_config()) as (edge, _):
            call, service = Deaf(), edge.service
            async with asyncio.timeout(20):
                await service._generate(requests(service._host.result().model), cast(Any, call))
            assert call.status is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(run())


def test_what_is_merely_refused_closes_its_own_conversation() -> None:
    async def run() -> None:
        async with serving(edge_config()) as (_, address):
            link = await dialled(address)
            nobody = await link.open(replace(OPENING, name="n", adapter="nobody"))
            assert isinstance(nobody, Closed) and "'nobody' is not served here" in nobody.reason
            large = await link.open(replace(OPENING, name="l", reserved=10**6))
            assert isinstance(large, Closed) and "there is room for" in large.reason
            assert await link.open(OPENING) == Opened(0, 0)
            answer = await link.step(Step("c", 1, 0, rows_of(3)))
            assert isinstance(answer, Tokens)
            link.close_conversation("c")
            assert await link.open(OPENING) == Opened(0, 0)  # nothing of it is left
            link._put(serve_pb2.GenerateRequest(close=link._numbers["c"]))
            gone = await link.step(Step("c", 2, 3, rows_of(1)))
            assert gone == Closed("it is not open here")
            await link.close()

    asyncio.run(run())


def test_another_model_and_another_wire_are_refused_at_the_door() -> None:
    async def run() -> None:
        async with serving(edge_config()) as (_, address):
            with pytest.raises(Refused, match="another model than this edge"):
                await dialled(address, "d", kind="mistral")
            with pytest.raises(ProtocolError, match="a name has letters"):
                await dialled(address, "../d")

    asyncio.run(run())


def test_a_device_that_comes_back_takes_the_place_of_its_old_stream() -> None:
    async def run() -> None:
        async with serving(edge_config()) as (edge, address):
            old = await dialled(address, "d")
            new = await dialled(address, "d")
            with pytest.raises(LinkLost, match="has taken its place"):
                await raw(serve_pb2.GenerateRequest(heartbeat=tensor_pb2.Heartbeat()))(old)
            assert await new.open(OPENING) == Opened(0, 0)
            assert edge.service.devices == ("d",)
            await old.close()
            await new.close()

    asyncio.run(run())


@pytest.mark.parametrize("lost", [False, True])
def test_a_link_that_is_closed_leaves_no_task(lost: bool) -> None:
    """gRPC's own writer waits for requests where the call was over before it was cancelled."""

    async def run() -> None:
        before = asyncio.all_tasks()
        async with serving(edge_config()) as (edge, address):
            link = await dialled(address)
            if lost:
                edge.service.close()
                while link.lost is None:
                    await asyncio.sleep(0.01)
            await link.close()
            await asyncio.sleep(0.01)
            left = [task for task in asyncio.all_tasks() - before if "_consume" in repr(task)]
            assert not left

    asyncio.run(run())


# -- before anything starts -----------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["compact", "sft", "topk(0.3) | fp16"])
def test_codecs_that_remember_rows_are_refused(codec: str) -> None:
    with pytest.raises(ConfigError, match="a step may be sent again"):
        serve_codec(codec)


def test_a_lossless_codec_and_others_of_one_step_work() -> None:
    async def run(codec: str) -> list[int]:
        async with serving(edge_config(codec=codec)) as (_, address), device(address) as own:
            return await own.say(replace(WISH, max_tokens=8))

    assert tuple(asyncio.run(run("none"))) == generated("llama")[0][:8]
    assert tuple(asyncio.run(run("none | zstd"))) == generated("llama")[0][:8]
    assert len(asyncio.run(run("int8"))) == 8


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"cut_layer": 3}, ConfigError, "the model has 3 blocks"),
        ({"kv_memory": "1KB"}, ConfigError, "64 tokens take"),
        ({"codec": "compact"}, ConfigError, "codec.serve"),
        ({"adapters": {"a": "nowhere"}}, ModelError, "not an adapter in PEFT's format"),
    ],
)
def test_what_cannot_be_served_is_said_before_a_device_is_let_in(
    changes: dict[str, Any], error: type[Exception], reason: str
) -> None:
    async def run() -> None:
        async with serving(edge_config(**changes)):
            raise AssertionError("it serves")

    with pytest.raises(error, match=reason):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"r": 0}, "r = 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha = nan"),
        ({"r": "4"}, "no r and lora_alpha"),
        ([], "not a table"),
    ],
)
def test_an_adapter_with_settings_of_no_lora_is_refused(
    config: Any, reason: str, tmp_path: Path
) -> None:
    path = saved_adapter(tmp_path / "a", 0) / "adapter_config.json"
    told = {**json.loads(path.read_text()), **config} if config else config
    path.write_text(json.dumps(told))
    with pytest.raises(ModelError, match=reason):
        open_served(path.parent)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    other = str(saved_adapter(tmp_path / "a", 0, kind="gpt2"))

    async def run() -> None:
        async with serving(edge_config(adapters={"a": other})):
            raise AssertionError("it serves")

    with pytest.raises(ModelError, match=r"serve.adapters.a = .*does not fit"):
        asyncio.run(run())
