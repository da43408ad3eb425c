"""The process of a device that serves: its blocks, its link to the edge, and the endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from device_agent.serving.answers import Answerer
from device_agent.serving.drafts import open_drafter
from device_agent.serving.endpoint import Endpoint, Gate
from device_agent.serving.talk import Talker
from sfl.config import ModelSettings
from sfl.config.serve import AnswerSettings, ServeDeviceConfig
from sfl.data.tokenizer import load_tokenizer
from sfl.errors import ConfigError, SflError
from sfl.metrics.prometheus import NodeCollector, serve_as_set
from sfl.metrics.serving import Held, ServingCount
from sfl.metrics.stats import NodeStats
from sfl.models.folder import ModelFolder, open_model
from sfl.models.kv.pages import pages_for
from sfl.models.kv.size import page_bytes
from sfl.models.memory.footprint import Load
from sfl.models.memory.serving import reads_rows
from sfl.node.certificates.own import OwnCertificate
from sfl.node.files import write_atomic
from sfl.node.logs import Sparing
from sfl.plan import Plan
from sfl.stage.base import settle
from sfl.stage.serving.front import FrontStage
from sfl.transport.security.addresses import is_loopback, joined, split_address
from sfl.transport.serve.digest import model_digest
from sfl.transport.serve.link import Caller, NewChannel, ServeLink, Traffic, dial, edge_channel
from sfl.transport.serve.words import ServedHere

log = logging.getLogger("sfl.device")
sparing = Sparing(log)

SHORTEST_KEY = 16
REDIAL = 5.0
"""Seconds between two looks at whether the edge is still there."""
SHUTDOWN = 1.0
"""Seconds that answers under way have, once this process is told to end."""


class ServingDevice:
    """Everything of a device that answers, before a port is open."""

    def __init__(
        self,
        config: ServeDeviceConfig,
        threads: int,
        insecure: bool,
        own: OwnCertificate | None = None,
        folder: ModelFolder | None = None,
    ) -> None:
        """Loads this device's blocks and the tokenizer. For a running event loop. Raises SflError.

        The blocks compute on a thread of their own. They are in `folder`, by default
        `device.model`.
        """
        device, serve = config.device, config.serve
        folder = folder or open_model(device.model or "")
        folder.check_task("causal_lm")
        form = settle(device, ModelSettings(path=folder.name), threads)
        plan = Plan.split(folder.num_layers, serve.cut_layer, serve.tail_layers, serve.topology)
        self.context = min(serve.context or folder.context_length, folder.context_length)
        room = serve.conversations * self.context
        drafter = open_drafter(serve, folder, room, form)
        on_disk = reads_rows(folder, device, Load(1, 1, dtype=form.dtype))
        self.stage = FrontStage(folder, plan, room, form, drafter, on_disk)
        self.traffic = Traffic()
        self.serve = serve
        self._config = config
        self._own = own
        self._caller = caller(device.name, folder)
        self._channel: NewChannel = edge_channel(device.edge, insecure, own, device.proxy)
        self.talker = Talker(
            self.stage,
            self._dial,
            self.context,
            folder.hidden_size,
            threads=threads,
            draft_tokens=serve.draft_tokens,
            exact=serve.exact,
        )
        self._latest: ServeLink | None = None
        self._kv_budget = sum(
            pages_for(serve.conversations * self.context)
            * page_bytes(folder.config, span.num_blocks, form.weights.itemsize)
            for span in plan.device_spans
        )
        self.stats = NodeStats(device.name, "device")
        self.stats.threads, self.stats.dtype = threads, form.dtype
        self.stats.quantised = form.quantised
        self.stats.serving = count = ServingCount(self._held)
        self.answerer = Answerer(self.talker, load_tokenizer(folder.path), self.context, count)

    def _held(self) -> Held:
        """What this device has at the moment; read from any thread."""
        traffic, spoken, link = self.traffic, self.talker.spoken, self._latest
        return Held(
            kv_bytes=self.stage.nbytes,
            kv_budget=self._kv_budget,
            connected=float(link is not None and link.lost is None),
            round_trips=spoken.round_trips,
            drafted=spoken.drafted,
            accepted=spoken.accepted,
            bytes_up=traffic.up,
            bytes_down=traffic.down,
        )

    async def _dial(self) -> ServeLink:
        device = self._config.device
        link = await dial(
            device.edge,
            self._channel,
            self._caller,
            self.traffic,
            device.connect_timeout,
            self._own,
            device.proxy,
            statistics=lambda: self.stats.snapshot().to_json(),
        )
        try:
            check_blocks(self.stage.plan, link.here)
        except ConfigError:
            await link.close("it has not the blocks that this device lacks")
            raise
        self._latest = link
        return link

    async def _stay_connected(self) -> None:
        """Dial again where the edge was lost, though nobody asks: so that what is shown is so."""
        while True:
            await asyncio.sleep(REDIAL)
            try:
                await self.talker.link()
            except SflError as error:
                sparing.warning("edge", "the edge cannot be reached: %s", error)

    async def run(self, address_file: Path | None = None) -> None:
        """Answer until this is cancelled. Raises SflError where it cannot begin."""
        async with self.port(address_file):
            await asyncio.get_running_loop().create_future()

    @contextlib.asynccontextmanager
    async def port(self, address_file: Path | None = None) -> AsyncIterator[str]:
        """Where callers find it, once the edge has let this device in. Raises SflError."""
        gate = _gate(self.serve)
        application = Endpoint(self.answerer, gate).application()
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN)
        with self._metrics():
            async with self._answering(runner, address_file) as address:
                yield address

    @contextlib.asynccontextmanager
    async def _answering(
        self, runner: web.AppRunner, address_file: Path | None
    ) -> AsyncIterator[str]:
        dialling = None
        try:
            models = await self.answerer.models()  # so that an edge that refuses says so at once
            await runner.setup()
            address = await _listen(runner, self.serve)
            if address_file is not None:
                write_atomic(address_file, address)
            log.info("chat at http://%s/, OpenAI's interface at http://%s/v1", address, address)
            log.info("models: %s", ", ".join(models))
            dialling = asyncio.create_task(self._stay_connected())
            yield address
        finally:
            if dialling is not None:
                dialling.cancel()
                await asyncio.wait({dialling})
            await runner.cleanup()
            await self.talker.close()

    def _metrics(self) -> contextlib.AbstractContextManager[object]:
        metrics = self._config.device.metrics
        if not metrics.enabled:
            return contextlib.nullcontext()
        return serve_as_set(metrics, NodeCollector(self.stats))


def caller(name: str, folder: ModelFolder) -> Caller:
    """How a device introduces itself to its edge."""
    return Caller(name, model_digest(folder), folder.hidden_size, folder.vocab_size)


def check_blocks(plan: Plan, here: ServedHere) -> None:
    """Raises ConfigError where the edge lacks blocks that this device leaves to it."""
    span = plan.middle
    if here.first <= span.first and span.last <= here.last and here.head >= span.head:
        return
    raise ConfigError(
        "serve.cut_layer",
        span.first,
        f"edge {here.edge} has the blocks {here.first} to {here.last - 1}"
        f"{'' if here.head else ' without the head'}, and this device leaves it "
        f"{span.first} to {span.last - 1}",
        f"Set it to {max(here.first, span.first)} or more.",
    )


def _gate(serve: AnswerSettings) -> Gate:
    """Raises ConfigError where anybody could call."""
    host, _ = split_address("serve.listen", serve.listen)
    key = None
    if serve.api_key_file is not None:
        path = serve.api_key_file.expanduser()
        try:
            key = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                "serve.api_key_file", str(path), f"cannot be read ({error})", "Check the path."
            ) from None
        if len(key) < SHORTEST_KEY or not key.isascii():
            raise ConfigError(
                "serve.api_key_file",
                str(path),
                f"the key is shorter than {SHORTEST_KEY} characters, or not ASCII",
                "Write one with `openssl rand -hex 24`.",
            )
    if key is None and not is_loopback(host):
        raise ConfigError(
            "serve.listen",
            serve.listen,
            "is not loopback, and no key is asked for",
            "Give serve.api_key_file, or use 127.0.0.1.",
        )
    return Gate(serve.listen.rpartition(":")[0] if is_loopback(host) else None, key, serve.origins)


async def _listen(runner: web.AppRunner, serve: AnswerSettings) -> str:
    host, port = split_address("serve.listen", serve.listen)
    try:
        site = web.TCPSite(runner, host.strip("[]"), port)
        await site.start()
    except OSError as error:
        raise ConfigError(
            "serve.listen",
            serve.listen,
            f"the port is in use or can't be bound ({error.strerror or error})",
            "Choose another, or port 0.",
        ) from None
    return joined(host, runner.addresses[0][1])
