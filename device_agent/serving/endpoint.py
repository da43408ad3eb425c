"""OpenAI's interface on the device, and a page to chat with.

aiohttp serves it: it is well kept, has wheels for a Pi's processor, and is installed with sfl in
any case (`datasets` needs it).

A page of somebody else's must not talk to it from a visitor's browser. So a request that names an
origin is refused unless that is this endpoint's own or one of the settings', and on loopback so is
one for another host's name (a name that was made to lead here). Browsers ask before a page of the
settings' sends anything (CORS): they are told that it may.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from importlib import resources
from typing import Any

from aiohttp import web

from device_agent.serving.answers import Account, Answerer, Prepared
from sfl.errors import LinkLost, PeerUnavailable, Refused, SflError
from sfl.serving.requests import Asked, BadRequest, read_chat, read_completion

MOST_BODY = 8 << 20
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
OPEN = ("/", "/favicon.ico", "/health")
"""Paths that need no key."""

CALLER_LEFT = 499
"""As nginx calls it; nobody reads it."""
UNREAD = 60.0
"""Seconds that a caller may take to read what waits for it: others want the room of its answer."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gate:
    """Who may call."""

    def __init__(self, loopback: str | None, api_key: str | None, origins: Sequence[str]) -> None:
        """`loopback` is the host where that is this machine alone.

        `origins` may call from a browser, beside the endpoint's own page.
        """
        self._names = None if loopback is None else (*LOOPBACK, loopback)
        self._key = api_key
        self._origins = frozenset(origin.rstrip("/") for origin in origins)

    def refusal(self, request: web.Request) -> tuple[int, str] | None:
        """Status and reason, or None. The page itself needs no key: it asks for one."""
        host = request.host
        if self._names is not None and not {host, host.rpartition(":")[0]} & {*self._names}:
            return 403, f"this endpoint is not called {host!r:.80}"
        origin = request.headers.get("Origin")
        if origin is not None and origin not in (f"http://{host}", *self._origins):
            return 403, f"pages of {origin!r:.80} may not call this endpoint"
        if self._key is None or request.path in OPEN or request.method == "OPTIONS":
            return None
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(errors="surrogateescape"), self._key.encode()):
            return 401, "the API key is missing, or another one"
        return None

    async def welcome(self, request: web.Request, response: web.StreamResponse) -> None:
        """Tell a browser that a page of another origin may read what it gets."""
        if (origin := request.headers.get("Origin")) not in self._origins:
            return
        response.headers.update({"Access-Control-Allow-Origin": str(origin), "Vary": "Origin"})
        if request.method == "OPTIONS":
            asked = request.headers.get("Access-Control-Request-Headers", "")
            response.headers["Access-Control-Allow-Methods"] = "GET, POST"
            response.headers["Access-Control-Allow-Headers"] = asked


class Endpoint:
    """The routes, over one answerer."""

    def __init__(self, answerer: Answerer, gate: Gate) -> None:
        self._answerer = answerer
        self._gate = gate

    def application(self) -> web.Application:
        """What aiohttp serves."""
        app = web.Application(client_max_size=MOST_BODY, middlewares=[self._guard])
        app.on_response_prepare.append(self._gate.welcome)
        app.router.add_get("/", self._page)
        app.router.add_get("/favicon.ico", self._icon)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completion)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if (refused := self._gate.refusal(request)) is not None:
            return _failure(*refused, "invalid_request_error")
        if request.method == "OPTIONS":
            return web.Response(status=204)
        try:
            return await handler(request)
        except web.HTTPException as error:  # no such path, too large a body
            said = f"{request.method} {request.path:.80}: {error.text or error.reason}"
            return _failure(error.status, said, "invalid_request_error")
        except BadRequest as error:
            status = 404 if error.param == "model" else 400
            return _failure(status, str(error), "invalid_request_error", error.param)
        except (LinkLost, PeerUnavailable, Refused) as error:
            return _failure(503, str(error), "server_error")
        except SflError as error:
            return _failure(500, str(error), "server_error")

    async def _page(self, _: web.Request) -> web.Response:
        page = resources.files("device_agent.serving").joinpath("chat.html").read_text("utf-8")
        policy = "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        return web.Response(
            text=page, content_type="text/html", headers={"Content-Security-Policy": policy}
        )

    async def _icon(self, _: web.Request) -> web.Response:
        return web.Response(status=204)  # browsers ask for one

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _models(self, _: web.Request) -> web.Response:
        models = await self._answerer.models()
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "sfl"} for name in models]
        return web.json_response({"object": "list", "data": data})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, read_chat(await _body(request)), Shape(chat=True))

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, read_completion(await _body(request)), Shape(chat=False))

    async def _answer(self, request: web.Request, asked: Asked, shape: Shape) -> web.StreamResponse:
        prepared = await self._answerer.prepare(asked)
        account = Account(len(prepared.ids))
        if asked.stream:
            return await self._stream(request, prepared, account, shape)
        pieces = []
        async with aclosing(self._answerer.pieces(prepared, account)) as answer:
            async for piece in answer:
                if request.transport is None:  # the caller has left
                    return web.Response(status=CALLER_LEFT)
                pieces.append(piece)
        return web.json_response(shape.whole(asked.model, "".join(pieces), account))

    async def _stream(
        self, request: web.Request, prepared: Prepared, account: Account, shape: Shape
    ) -> web.StreamResponse:
        """As server-sent events. What fails in the middle is said in the stream."""
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        try:
            await self._say(response, prepared, account, shape)
        except (ConnectionResetError, TimeoutError):  # the caller has left, or reads nothing
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _say(
        self, response: web.StreamResponse, prepared: Prepared, account: Account, shape: Shape
    ) -> None:
        asked = prepared.asked
        try:
            if shape.chat:
                await _event(response, shape.piece(asked.model, ""))
            async with aclosing(self._answerer.pieces(prepared, account)) as pieces:
                async for piece in pieces:
                    await _event(response, shape.piece(asked.model, piece))
            await _event(response, shape.piece(asked.model, None, account))
            if asked.include_usage:
                await _event(response, shape.usage(asked.model, account))
        except SflError as error:
            await _event(response, {"error": {"message": str(error), "type": "server_error"}})
        await _write(response, b"data: [DONE]\n\n")
        await response.write_eof()


class Shape:
    """One answer's objects as OpenAI's interface has them."""

    def __init__(self, chat: bool) -> None:
        self.chat = chat
        self._id = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        self._created = int(time.time())
        self._begun = False

    def whole(self, model: str, text: str, account: Account) -> dict[str, Any]:
        """All at once."""
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "finish_reason": account.finish_reason, "logprobs": None}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind, model), "choices": [choice], "usage": _usage(account)}

    def piece(self, model: str, text: str | None, account: Account | None = None) -> dict[str, Any]:
        """A part of it; with `account` the last one."""
        said: dict[str, Any] = {"text": text or ""}
        if self.chat:
            delta: dict[str, Any] = {} if text is None else {"content": text}
            if not self._begun:
                delta["role"] = "assistant"
            said = {"delta": delta}
        self._begun = True
        reason = None if account is None else account.finish_reason
        choice = {"index": 0, **said, "finish_reason": reason, "logprobs": None}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head(kind, model), "choices": [choice]}

    def usage(self, model: str, account: Account) -> dict[str, Any]:
        """What it took, behind the last part."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head(kind, model), "choices": [], "usage": _usage(account)}

    def _head(self, kind: str, model: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": model}


def _usage(account: Account) -> dict[str, int]:
    prompt, completion = account.prompt_tokens, account.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


async def _body(request: web.Request) -> Any:
    # Only JSON: a form of another page's needs no leave to be sent.
    if request.content_type != "application/json":
        raise BadRequest("", "the content type is not application/json")
    try:
        return json.loads(await request.text())
    except (ValueError, RecursionError, LookupError):  # the last: of its charset
        raise BadRequest("", "the body is not JSON") from None


async def _event(response: web.StreamResponse, value: dict[str, Any]) -> None:
    await _write(response, b"data: " + json.dumps(value).encode() + b"\n\n")


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(UNREAD):
        await response.write(data)


def _failure(status: int, message: str, kind: str, param: str = "") -> web.Response:
    error = {"message": message, "type": kind, "param": param or None, "code": None}
    return web.json_response({"error": error}, status=status)
