"""Clients of others at the endpoint: OpenAI's own for Python, and the chat page in a browser."""

from __future__ import annotations

import asyncio
from pathlib import Path

import openai
import pytest

from sfl.adapters.artifact import save_adapter
from sfl.adapters.lora import build_manifest
from sfl.config import LoraSettings
from sfl.models.folder import open_model
from tests.house.browser import browser, opened
from tests.house.endpoint import PROMPT, Api, endpoint
from tests.house.paths import MODEL
from tests.house.tiny_models import busy_values

needs_browser = pytest.mark.skipif(
    browser() is None, reason="no Chromium is installed (Debian: chromium)"
)


def adapters(folder: Path) -> dict[str, str]:
    manifest = build_manifest(open_model(MODEL), "causal_lm", 0, LoraSettings(rank=4, alpha=8))
    for number in (0, 1):
        save_adapter(folder / f"a{number}", busy_values(manifest, number), manifest.peft_config)
    return {f"a{number}": str(folder / f"a{number}") for number in (0, 1)}


def client(api: Api) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{api.base}/v1", api_key="none", max_retries=0)


@pytest.mark.process
def test_openais_client_streams_two_chats_with_two_adapters_at_once(tmp_path: Path) -> None:
    async def chat(own: openai.AsyncOpenAI, model: str) -> tuple[str, int, int]:
        """The text, in how many pieces it came, and how many tokens it is said to have."""
        pieces, tokens = [], 0
        stream = await own.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": PROMPT}],
            temperature=0,
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for event in stream:
            if event.choices and event.choices[0].delta.content:
                pieces.append(event.choices[0].delta.content)
            if event.usage is not None:
                tokens = event.usage.completion_tokens
        return "".join(pieces), len(pieces), tokens

    async def run() -> None:
        async with endpoint({"adapters": adapters(tmp_path)}) as api, client(api) as own:
            assert [one.id async for one in own.models.list()] == ["base", "a0", "a1"]
            together = await asyncio.gather(chat(own, "a0"), chat(own, "a1"))
            alone = [await chat(own, name) for name in ("a0", "a1")]
            assert together == alone
            (one, pieces, tokens), (other, *_) = together
            assert one != other and pieces > 5 and tokens == 20

    asyncio.run(run())


@pytest.mark.process
def test_openais_client_reads_answers_and_refusals_as_its_own() -> None:
    async def run() -> None:
        async with endpoint() as api, client(api) as own:

            async def text(seed: int) -> str:
                done = await own.completions.create(
                    model="base", prompt=PROMPT, temperature=0.9, seed=seed, max_tokens=12
                )
                assert done.usage is not None and done.usage.completion_tokens == 12
                return done.choices[0].text

            assert await text(7) == await text(7) != await text(8)
            whole = await own.chat.completions.create(
                model="base", messages=[{"role": "user", "content": PROMPT}], max_tokens=5
            )
            assert whole.choices[0].message.role == "assistant"
            assert whole.choices[0].finish_reason == "length"
            with pytest.raises(openai.NotFoundError, match="'x' is none of base"):
                await own.completions.create(model="x", prompt="a")
            with pytest.raises(openai.BadRequestError, match="n: is not supported here"):
                await own.completions.create(model="base", prompt="a", n=2)

    asyncio.run(run())


@pytest.mark.process
@needs_browser
def test_the_page_chats_in_a_real_browser(tmp_path: Path) -> None:
    async def run() -> None:
        command = browser()
        assert command is not None
        serve = {"adapters": adapters(tmp_path), "max_tokens": 24}
        async with endpoint(serve) as api, opened(command, tmp_path / "profile") as page:
            await page.open(f"{api.base}/")
            names = await page.until(
                "[...document.querySelectorAll('#model option')].map(o => o.value)"
            )
            assert names == ["base", "a0", "a1"]
            await page.value("document.querySelector('#temperature').value = 0")
            said = "[...document.querySelectorAll('.said')].map(one => one.textContent)"
            done = "document.querySelector('#note').textContent.includes('tokens in')"
            await page.value("document.querySelector('#text').focus()")
            await page.type(PROMPT)
            await page.until(done)
            asked, answer = await page.value(said)
            status, expected = await api.post(
                "/v1/chat/completions",
                messages=[{"role": "user", "content": PROMPT}],
                max_tokens=24,
            )
            assert status == 200
            assert (asked, answer) == (PROMPT, expected["choices"][0]["message"]["content"])
            await page.click("#anew")
            assert await page.value(said) == []
            await page.value("document.querySelector('#model').value = 'a0'")
            await page.value("document.querySelector('#note').textContent = ''")
            await page.value("document.querySelector('#text').focus()")
            await page.type("<b>bold</b>")
            await page.until(done)
            asked, other = await page.value(said)
            assert asked == "<b>bold</b>" and other != answer  # shown as it is written
            assert page.logged == []
            await page.picture(tmp_path / "page.png")
            assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")

    asyncio.run(run())
