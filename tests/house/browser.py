"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.house.waiting import PATIENCE

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def browser() -> str | None:
    """The command, where this machine has one (Debian: chromium)."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One page, and what it logged."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.logged: list[str] = []
        """Exceptions, and errors on its console."""

    async def call(self, method: str, **params: Any) -> Any:
        """A command of DevTools, and its result."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        async with asyncio.timeout(PATIENCE):
            async for message in self._socket:
                answer = message.json()
                if answer.get("id") == self._number:
                    assert "error" not in answer, answer
                    return answer["result"]
                self._hear(answer)
        raise AssertionError(f"the browser hung up in {method}")

    async def value(self, expression: str) -> Any:
        """What a script comes to."""
        result = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str) -> Any:
        """The same, once it is true."""
        deadline = time.monotonic() + PATIENCE
        while not (found := await self.value(expression)):
            assert time.monotonic() < deadline, (expression, self.logged)
            await asyncio.sleep(0.1)
        return found

    async def open(self, url: str) -> None:
        """Go there."""
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def type(self, text: str) -> None:
        """As if by the keyboard, and Enter."""
        await self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key="Enter",
                code="Enter",
                windowsVirtualKeyCode=13,
                text="\r" if kind == "keyDown" else "",
            )

    async def click(self, selector: str) -> None:
        """On the middle of an element."""
        place = await self.value(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        at = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, **at)

    async def picture(self, path: Path) -> None:
        """A screenshot as PNG."""
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def _hear(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.logged.append(str(params["exceptionDetails"]))
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.logged.append(str(params["entry"]["text"]))


@contextlib.asynccontextmanager
async def opened(command: str, folder: Path, size: str = "900,640") -> AsyncIterator[Page]:
    """A browser with one empty page; its profile is in `folder`."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    process = await asyncio.create_subprocess_exec(
        command,
        *("--headless=new", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *sandbox,
        *("--remote-debugging-port=0", f"--user-data-dir={folder}", f"--window-size={size}"),
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        port = await _port(folder / "DevToolsActivePort", process)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                targets = await answer.json()
            (url,) = [t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page"]
            async with session.ws_connect(url, max_msg_size=64 << 20) as socket:
                yield Page(socket)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _port(file: Path, process: asyncio.subprocess.Process) -> str:
    deadline = time.monotonic() + PATIENCE
    while not (file.exists() and file.read_text().count("\n")):
        assert process.returncode is None, f"the browser has ended with {process.returncode}"
        assert time.monotonic() < deadline, "the browser opens no port"
        await asyncio.sleep(0.1)
    return file.read_text().splitlines()[0]
