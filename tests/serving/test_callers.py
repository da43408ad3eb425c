"""Callers of the endpoint that browsers, mistakes and hang-ups make; each is told in JSON."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from aiohttp.http_writer import StreamWriter
from aiohttp.web_protocol import RequestHandler

from sfl.errors import ConfigError
from tests.house.endpoint import PROMPT, Api, endpoint

FRIEND = "http://friend.example"


def test_a_page_of_the_settings_may_call_from_a_browser(tmp_path: Path) -> None:
    """It asks first, without a key, and reads what it gets only where it is told that it may."""
    key = tmp_path / "key"
    key.write_text("0123456789abcdef")

    async def run() -> None:
        async with endpoint(origins=[FRIEND], api_key_file=str(key)) as api:
            url = api.base + "/v1/chat/completions"
            wants = "authorization,content-type,x-stainless-os"
            asked = {
                "Origin": FRIEND,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": wants,
            }
            async with api.session.options(url, headers=asked) as response:
                assert response.status == 204
                assert response.headers["Access-Control-Allow-Origin"] == FRIEND
                assert "POST" in response.headers["Access-Control-Allow-Methods"]
                assert response.headers["Access-Control-Allow-Headers"] == wants
            async with api.session.options(
                url, headers={**asked, "Origin": "http://evil.example"}
            ) as response:
                assert response.status == 403
                assert "Access-Control-Allow-Origin" not in response.headers
            own = {"Origin": FRIEND, "Authorization": "Bearer 0123456789abcdef"}
            for stream in (False, True):
                body = {
                    "model": "base",
                    "messages": [{"role": "user", "content": PROMPT}],
                    "stream": stream,
                    "max_tokens": 3,
                }
                async with api.session.post(url, json=body, headers=own) as response:
                    assert response.status == 200
                    assert response.headers["Access-Control-Allow-Origin"] == FRIEND
                    assert response.headers["Vary"] == "Origin"
            async with api.session.get(api.base + "/v1/models", headers={"Origin": FRIEND}) as no:
                assert no.status == 401  # and the page may read why
                assert no.headers["Access-Control-Allow-Origin"] == FRIEND

    asyncio.run(run())


WRONG: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "no such path": ("GET", "/v1/nothing", {}, 404, "Not Found"),
    "another method": ("GET", "/v1/completions", {}, 405, "Not Allowed"),
    "too large": ("POST", "/v1/completions", {"data": io.BytesIO(b" " * (9 << 20))}, 413, "size"),
    "another charset": (
        "POST",
        "/v1/completions",
        {"data": b"{}", "headers": {"Content-Type": "application/json; charset=none"}},
        400,
        "not JSON",
    ),
    "too large a number": (
        "POST",
        "/v1/completions",
        {"json": {"model": "base", "prompt": "a", "temperature": 10**400}},
        400,
        "temperature",
    ),
    "half a character": (
        "POST",
        "/v1/completions",
        {"json": {"model": "base", "prompt": "a\ud800"}},
        400,
        "prompt",
    ),
    "half a character in a chat": (
        "POST",
        "/v1/chat/completions",
        {"json": {"model": "base", "messages": [{"role": "user", "content": "\udc80"}]}},
        400,
        "messages[0]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_whatever_is_wrong_is_said_as_openai_says_it(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    method, path, options, status, words = WRONG[case]
    options.setdefault("headers", {"Content-Type": "application/json"})

    async def run() -> None:
        async with (
            endpoint() as api,
            api.session.request(method, api.base + path, **options) as answer,
        ):
            error = (await answer.json())["error"]
            assert (answer.status, error["type"]) == (status, "invalid_request_error")
            assert words in error["message"]

    asyncio.run(run())
    assert "Traceback" not in caplog.text


def test_a_key_of_other_bytes_is_another_one(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef")

    async def run() -> bytes:
        async with endpoint(api_key_file=str(key)) as api:
            host, port = api.base.removeprefix("http://").split(":")
            read, write = await asyncio.open_connection(host, int(port))
            write.write(
                b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                b"Authorization: Bearer \xff\xfe456789abcdef\r\n\r\n"
            )
            answer = await read.read()
            write.close()
            return answer

    assert asyncio.run(run()).startswith(b"HTTP/1.1 401")


def test_another_address_of_loopback_is_called_by_its_own_name() -> None:
    async def run() -> None:
        async with endpoint(listen="127.0.0.2:0") as api:
            assert api.base.startswith("http://127.0.0.2:")
            assert await api.text(max_tokens=2)

    asyncio.run(run())


def test_a_device_without_the_blocks_that_its_edge_lacks_does_not_begin() -> None:
    async def run() -> None:
        async with endpoint({"cut_layer": 2}, cut_layer=1):
            raise AssertionError("it is open")

    with pytest.raises(ConfigError, match=r"serve.cut_layer = 1: edge edge has .* 2 or more"):
        asyncio.run(run())


async def ended(api: Api, how: str) -> None:
    async with asyncio.timeout(30):
        while not api.device.answerer.count.snapshot().endings[how]:  # type: ignore[index]
            await asyncio.sleep(0.02)


def test_whoever_hangs_up_is_not_computed_for_to_the_end() -> None:
    async def run() -> None:
        async with endpoint() as api:
            count = api.device.answerer.count
            asked = asyncio.create_task(api.text(max_tokens=230))
            while not count.snapshot().answer_tokens:
                await asyncio.sleep(0.005)
            asked.cancel()
            await ended(api, "left")
            assert count.snapshot().endings["length"] == 0
            assert await api.text(max_tokens=3)

    asyncio.run(run())


def test_a_caller_that_stops_reading_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device_agent.serving.endpoint.UNREAD", 0.5)
    body = {"model": "base", "prompt": PROMPT, "stream": True, "max_tokens": 230}
    data = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )

    async def run() -> None:
        # What of an answer fits between the two is bounded, so that a short one does not fit.
        monkeypatch.setattr("aiohttp.web_protocol.RequestHandler.connection_made", narrow)
        async with endpoint() as api:
            host, port = api.base.removeprefix("http://").split(":")
            with socket.socket() as own:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                own.connect((host, int(port)))
                own.sendall(head.encode() + data)
                await ended(api, "left")

    made = RequestHandler.connection_made

    def narrow(self: RequestHandler, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        transport.set_write_buffer_limits(high=1024)
        monkeypatch.setitem(StreamWriter.write.__kwdefaults__, "LIMIT", 1024)
        made(self, transport)

    asyncio.run(run())


def test_more_callers_than_a_device_has_room_for_wait_for_each_other() -> None:
    async def run() -> None:
        async with endpoint(conversations=1) as api:
            alone = await api.text(max_tokens=100)
            together = await asyncio.gather(*(api.text(max_tokens=100) for _ in range(5)))
            assert together == [alone] * 5

    asyncio.run(run())


def test_more_callers_than_an_edge_lets_a_device_ask_at_once_are_all_answered() -> None:
    async def run() -> None:
        async with endpoint({"kv_memory": "1GB"}, conversations=64) as api:
            alone = await api.text(max_tokens=2)
            texts = await asyncio.gather(*(api.text(max_tokens=2) for _ in range(100)))
            assert texts == [alone] * 100

    asyncio.run(run())


def test_what_can_never_fit_is_told_at_once_and_an_answer_is_as_long_as_fits() -> None:
    async def run() -> None:
        async with endpoint({"kv_memory": "200KB"}) as api:  # of one page
            link = await api.device.talker.link()
            room = link.here.room
            assert room == 64
            for more in ({"max_tokens": None}, {"max_tokens": 500}):
                status, answer = await api.post("/v1/completions", prompt=PROMPT, **more)
                assert status == 200
                assert answer["usage"]["total_tokens"] <= room
                assert answer["usage"]["completion_tokens"] > 20
            status, answer = await api.post("/v1/completions", prompt="lamp " * 100)
            assert status == 400
            assert f"the edge has room for {room}" in answer["error"]["message"]

    asyncio.run(run())


def test_a_prompt_is_encoded_beside_the_event_loop() -> None:
    """A long one takes seconds, and others' answers and heartbeats must not wait for it."""
    threads: set[int] = set()

    async def run() -> None:
        async with endpoint() as api:
            ids = api.device.answerer._ids

            def encoded(asked: Any) -> tuple[int, ...]:
                threads.add(threading.get_ident())
                return ids(asked)

            api.device.answerer._ids = encoded  # type: ignore[method-assign]
            assert await api.text(max_tokens=2)

    asyncio.run(run())
    assert threads and threading.get_ident() not in threads
