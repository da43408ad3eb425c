"""Answers over the cut in one process: a run's adapter, as a device and its edge serve it."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfl.cli.serve.speaker import Said, whole_answer
from sfl.config import RunConfig
from sfl.config.serve import ServeDeviceConfig, ServeEdgeConfig
from sfl.errors import ModelError
from sfl.node.process import cores
from sfl.plan import U_SHAPED

if TYPE_CHECKING:
    from device_agent.serving.node import ServingDevice

_NAME = "run"
Begun = tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]


def generate_split(
    config: RunConfig, model: str, adapter: Path | None, ids: tuple[int, ...], max_tokens: int
) -> list[int]:
    """The greedy ids behind a prompt's: over the cut of the run's first device. Raises SflError."""
    return whole_answer(SplitSpeaker(config, model, adapter), ids, max_tokens)


class SplitSpeaker:
    """An edge and a device on a thread of their own, with a real connection between them."""

    def __init__(self, config: RunConfig, model: str, adapter: Path | None) -> None:
        self._config = config
        self._model = model
        self._adapter = adapter
        self._begun = Future[Begun]()
        self._opened: Future[ServingDevice] = Future()
        self._thread = threading.Thread(target=self._run, name="split", daemon=True)

    def __enter__(self) -> SplitSpeaker:
        """Open both. Raises SflError."""
        self._thread.start()
        try:
            self._opened.result()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close both."""
        loop, task = self._begun.result()
        with contextlib.suppress(RuntimeError):  # it is closed already
            loop.call_soon_threadsafe(task.cancel)
        self._thread.join()

    def answer(self, ids: Sequence[int], most: int) -> Generator[int, None, None]:
        """As Speaker has it."""
        loop, _ = self._begun.result()
        said = Said()
        task = asyncio.run_coroutine_threadsafe(self._begin(ids, most, said), loop).result()
        try:
            while (token := said.get()) is not None:
                yield token
        finally:
            asyncio.run_coroutine_threadsafe(self._end(task), loop).result()

    # -- on the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        """Until this is cancelled."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        self._begun.set_result((loop, task))
        async with AsyncExitStack() as nodes:
            try:
                device = await self._open(nodes)
            except BaseException as error:  # noqa: BLE001 - raised where this is entered
                self._opened.set_exception(error)
                return
            self._opened.set_result(device)
            await loop.create_future()

    async def _open(self, nodes: AsyncExitStack) -> ServingDevice:
        from device_agent.serving.node import ServingDevice
        from edge_server.serving import ServingEdge

        folder = Path(nodes.enter_context(tempfile.TemporaryDirectory(prefix="sfl-split-")))
        own = edge_config(self._config, self._model, self._adapter, folder)
        try:
            address = await nodes.enter_async_context(ServingEdge(own, cores(), False).port())
        except ModelError as error:
            if error.field != f"serve.adapters.{_NAME}":
                raise
            raise ModelError("adapter", error.value, error.problem, error.fix) from None
        config = device_config(self._config, self._model, address)
        device = ServingDevice(config, cores(), False)
        nodes.push_async_callback(device.talker.close)
        return device

    async def _begin(self, ids: Sequence[int], most: int, said: Said) -> asyncio.Task[None]:
        return asyncio.create_task(self._say(tuple(ids), most, said))

    async def _say(self, ids: tuple[int, ...], most: int, said: Said) -> None:
        from device_agent.serving.talk import Wish

        name = "base" if self._adapter is None else _NAME
        device = self._opened.result()
        talker, stops = device.talker, device.answerer.stop_ids
        wish = Wish("", ids, most, name)
        try:
            async with aclosing(talker.answer(wish)) as answer:
                async for token in answer:
                    if token in stops:
                        break
                    said.put(token)
        finally:
            said.put(None)

    async def _end(self, task: asyncio.Task[None]) -> None:
        """Let it end, or have it ended; raise what it has failed with."""
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


def edge_config(
    config: RunConfig, model: str, adapter: Path | None, folder: Path
) -> ServeEdgeConfig:
    """An edge on loopback with the run's adapter."""
    return ServeEdgeConfig.model_validate(
        {
            "edge": {
                "model": model,
                "dtype": config.model.dtype,
                "metrics": {"enabled": False},
            },
            "serve": {
                "adapters": {} if adapter is None else {_NAME: str(adapter)},
                "cut_layer": config.devices[0].cut_layer,
                "spill_dir": str(folder),
                "max_tokens": 1 << 20,
            },
            "codec": {"serve": config.codec.serve},
        }
    )


def device_config(config: RunConfig, model: str, edge: str) -> ServeDeviceConfig:
    """A device that has what the run's first device has."""
    u_shaped = config.run.topology in U_SHAPED
    return ServeDeviceConfig.model_validate(
        {
            "device": {"name": "device", "model": model, "edge": edge, "dtype": config.model.dtype},
            "serve": {
                "cut_layer": config.devices[0].cut_layer,
                "topology": "u_shaped" if u_shaped else "vanilla",
                "tail_layers": config.devices[0].tail_layers if u_shaped else 0,
                "conversations": 1,
                "listen": "127.0.0.1:0",
            },
        }
    )
