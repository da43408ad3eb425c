"""OpenAI's interface on the device: real words, over the real cut, called by a real HTTP client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sfl.adapters.artifact import save_adapter
from sfl.adapters.lora import build_manifest
from sfl.config import LoraSettings
from sfl.data import load_tokenizer
from sfl.errors import ConfigError
from sfl.models.folder import open_model
from tests.house.endpoint import PROMPT, endpoint
from tests.house.paths import MODEL
from tests.house.tiny_models import busy_values


def generated(count: int) -> str:
    """What transformers says."""
    tokenizer = load_tokenizer(MODEL)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(MODEL).eval()
    prompt = [*tokenizer.prefix, *tokenizer.encode([PROMPT])[0]]
    ids = torch.tensor([prompt])
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )[0].tolist()
    return tokenizer.decode(made).removeprefix(tokenizer.decode(prompt))


def test_completions_are_the_models_own_words() -> None:
    async def run() -> None:
        async with endpoint() as api:
            assert await api.text() == generated(12)
            events = await api.events(
                "/v1/completions", prompt=PROMPT, stream_options={"include_usage": True}
            )
            *pieces, last, usage = events
            assert "".join(event["choices"][0]["text"] for event in pieces) == generated(12)
            assert len(pieces) > 3
            assert last["choices"][0]["finish_reason"] == "length"
            assert usage["usage"]["completion_tokens"] == 12
            total = usage["usage"]["prompt_tokens"] + 12
            assert usage["usage"]["total_tokens"] == total

    asyncio.run(run())


def test_a_chat_is_answered_whole_and_as_a_stream() -> None:
    async def run() -> None:
        async with endpoint() as api:
            messages = [{"role": "user", "content": PROMPT}]
            status, answer = await api.post("/v1/chat/completions", messages=messages)
            assert status == 200
            said = answer["choices"][0]["message"]
            assert said["role"] == "assistant" and said["content"]
            events = await api.events("/v1/chat/completions", messages=messages)
            deltas = [event["choices"][0]["delta"] for event in events]
            assert deltas[0]["role"] == "assistant"
            assert "".join(delta.get("content", "") for delta in deltas) == said["content"]
            assert {event["object"] for event in events} == {"chat.completion.chunk"}

    asyncio.run(run())


def test_stop_seed_and_temperature_do_what_they_say() -> None:
    async def run() -> None:
        async with endpoint() as api:
            whole = generated(12)
            stop = whole[6:9]
            cut = await api.text(stop=[stop])
            assert cut == whole[: whole.find(stop)]
            hot = {"temperature": 1.5, "max_tokens": 24}
            one, same, other = [await api.text(seed=seed, **hot) for seed in (1, 1, 2)]
            assert one == same != other
            free = {await api.text(**hot) for _ in range(4)}
            assert len(free) > 1

    asyncio.run(run())


def test_two_chats_with_two_adapters_at_once(tmp_path: Path) -> None:
    manifest = build_manifest(open_model(MODEL), "causal_lm", 0, LoraSettings(rank=4, alpha=8))
    for number in (0, 1):
        values = busy_values(manifest, number)
        save_adapter(tmp_path / f"a{number}", values, manifest.peft_config)

    async def run() -> None:
        adapters = {f"a{number}": str(tmp_path / f"a{number}") for number in (0, 1)}
        async with endpoint({"adapters": adapters}) as api:
            async with api.session.get(api.base + "/v1/models") as response:
                models = await response.json()
            assert [one["id"] for one in models["data"]] == ["base", "a0", "a1"]
            alone = [await api.text(model=name) for name in ("a0", "a1", "base")]
            together = await asyncio.gather(
                *(api.text(model=name) for name in ("a0", "a1", "base"))
            )
            assert together == alone and len(set(alone)) == 3

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/completions", {"prompt": PROMPT, "model": "gpt-5"}, 404, "'gpt-5' is none of base"),
        ("/v1/completions", {"prompt": ""}, 400, "prompt"),
        ("/v1/completions", {"prompt": "lamp " * 300}, 400, "the model's context is 256"),
        ("/v1/chat/completions", {"messages": "hi"}, 400, "messages"),
        ("/v1/chat/completions", {"messages": [], "n": 3}, 400, "messages"),
    ],
)
def test_what_cannot_be_answered_is_said_as_openai_says_it(
    path: str, body: dict[str, Any], status: int, said: str
) -> None:
    async def run() -> None:
        async with endpoint() as api:
            found, answer = await api.post(path, **body)
            assert found == status
            assert said in answer["error"]["message"]
            assert await api.text() == generated(12)

    asyncio.run(run())


def test_pages_of_others_and_other_names_may_not_call() -> None:
    async def run() -> None:
        async with endpoint(origins=["http://friend.example"]) as api:
            url = api.base + "/v1/models"

            async def status(**headers: str) -> int:
                async with api.session.get(url, headers=headers) as response:
                    return response.status

            assert await status() == 200
            assert await status(Origin=api.base) == 200
            assert await status(Origin="http://friend.example") == 200
            assert await status(Origin="http://evil.example") == 403
            assert await status(Origin="null") == 403
            assert await status(Host="evil.example") == 403
            assert await status(Host="evil.example:8080") == 403
            form = {"prompt": PROMPT, "model": "base"}
            async with api.session.post(api.base + "/v1/completions", data=form) as response:
                assert response.status == 400
            async with api.session.get(api.base + "/") as response:
                page = await response.text()
                assert "<title>sfl chat</title>" in page
                assert "default-src 'self'" in response.headers["Content-Security-Policy"]

    asyncio.run(run())


def test_beyond_loopback_a_key_is_asked_for(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef\n")

    async def open_at(**answer: Any) -> None:
        async with endpoint(**answer):
            raise AssertionError("it is open")

    async def run() -> None:
        with pytest.raises(ConfigError, match=r"serve.listen = .*is not loopback"):
            await open_at(listen="0.0.0.0:0")
        (tmp_path / "short").write_text("abc")
        with pytest.raises(ConfigError, match=r"serve.api_key_file = .*shorter than 16"):
            await open_at(api_key_file=str(tmp_path / "short"))
        async with endpoint(listen="0.0.0.0:0", api_key_file=str(key)) as api:
            base = api.base.replace("0.0.0.0", "127.0.0.1")
            async with api.session.get(base + "/v1/models") as response:
                assert response.status == 401
            own = {"Authorization": "Bearer 0123456789abcdef"}
            async with api.session.get(base + "/v1/models", headers=own) as response:
                assert response.status == 200

    asyncio.run(run())


def test_a_caller_that_hangs_up_leaves_the_conversation_to_others() -> None:
    async def run() -> None:
        async with endpoint() as api:
            body = {"model": "base", "prompt": PROMPT, "stream": True, "max_tokens": 200}
            async with api.session.post(api.base + "/v1/completions", json=body) as response:
                await response.content.readline()
                response.close()
            for _ in range(3):
                assert await api.text() == generated(12)

    asyncio.run(run())
