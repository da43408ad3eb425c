"""An edge that serves: the blocks once, adapters by name, room for keys and values."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sfl.adapters.lora import Adapter, LoraBank
from sfl.adapters.served import ServedAdapter, open_served, place
from sfl.codec.pipeline import Codec
from sfl.config import LoraSettings, ModelSettings
from sfl.config.serve import ServeEdgeConfig
from sfl.config.serving import BASE, ServeSettings
from sfl.errors import ConfigError, ModelError, ProtocolError, Refused
from sfl.metrics.prometheus import NodeCollector, serve_as_set
from sfl.metrics.said import DevicesSaid
from sfl.metrics.serving import ServingCount
from sfl.metrics.stats import NodeStats
from sfl.models.folder import ModelFolder, open_model
from sfl.models.kv.cache import KvPool
from sfl.models.kv.pages import PAGE_TOKENS
from sfl.models.kv.size import check_kept, keeping_of, page_bytes
from sfl.models.memory.serving import check_cut
from sfl.models.span import SpanModel
from sfl.node.certificates.own import OwnCertificate
from sfl.node.files import writable_folder, write_atomic
from sfl.plan import Span
from sfl.serving.room import Rules
from sfl.serving.steps import chunk_tokens
from sfl.stage.base import lay_over_devices, settle
from sfl.stage.engine import Engine
from sfl.stage.serving.conversation import ServingBase
from sfl.stage.serving.conversations import Conversations
from sfl.stage.serving.figures import held_by
from sfl.stage.serving.spans import serving_span
from sfl.transport.bulk.files import SpanFiles
from sfl.transport.frames.chunks import adapter_bytes
from sfl.transport.security.credentials import bind, new_server
from sfl.transport.security.door import Door
from sfl.transport.serve.digest import model_digest
from sfl.transport.serve.rows import serve_codec
from sfl.transport.serve.service import GenerateService
from sfl.transport.serve.words import ServedHere

log = logging.getLogger("sfl.edge")

MOST_SPANS = 16
"""Devices' spans whose files are kept, the last ones: each has a copy of the tokenizer."""


@dataclass(frozen=True, slots=True)
class ServingHost:
    """What devices' streams ask for."""

    stats: NodeStats
    count: ServingCount
    engine: Engine
    conversations: Conversations
    here: ServedHere
    codec: Codec
    model: str
    folder: ModelFolder
    adapters: Mapping[str, ServedAdapter]
    _files: dict[tuple[Span, ...], SpanFiles] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def hidden_size(self) -> int:
        """How wide rows are."""
        return self.folder.hidden_size

    def adapter_part(self, name: str, spans: tuple[Span, ...]) -> tuple[bytes, float]:
        """A part of an adapter as a safetensors file, and its scaling. Raises Refused."""
        found = self.adapters.get(name)
        if found is None:
            raise Refused(f"adapter {name!r:.80} is not served here")
        return adapter_bytes(found.part(spans)), found.scaling

    def files(self, spans: tuple[Span, ...]) -> SpanFiles:
        """Weights of these spans, config and tokenizer; devices of equal spans share them."""
        with self._lock:
            found = self._files.pop(spans, None) or SpanFiles(self.folder, spans, "causal_lm")
            self._files[spans] = found
            while len(self._files) > MOST_SPANS:
                del self._files[next(iter(self._files))]
            return found


def load_host(
    config: ServeEdgeConfig, threads: int, engine: Engine, stats: NodeStats
) -> ServingHost:
    """Load blocks and adapters; for the compute thread. Raises SflError."""
    own, serve, codec = config.edge, config.serve, serve_codec(config.codec.serve)
    adapters = opened_adapters(serve, "serve")
    folder = open_model(own.model or "")
    folder.check_task("causal_lm")
    check_kept("edge.model", folder)
    check_cut(folder, serve, "serve")
    form = settle(own, ModelSettings(path=folder.name), threads)
    stats.dtype, stats.quantised = form.dtype, form.quantised
    span = Span(serve.cut_layer, folder.num_layers, embedding=False, head=True)
    model = serving_span(folder, span, form)
    lay_over_devices(model, own)
    host = host_over(own.name, serve, codec, folder, model, adapters, engine, stats)
    stats.serving = host.count
    return host


def opened_adapters(serve: ServeSettings, section: str) -> dict[str, ServedAdapter]:
    """What is to be served beside the base, by name. Raises ModelError."""
    found = {}
    for name, path in serve.adapters.items():
        try:
            found[name] = open_served(path.expanduser())
        except ModelError as error:
            field = f"{section}.adapters.{name}"
            raise ModelError(field, error.value, error.problem, error.fix) from None
    return found


def host_over(
    edge: str,
    serve: ServeSettings,
    codec: Codec,
    folder: ModelFolder,
    model: SpanModel,
    adapters: Mapping[str, ServedAdapter],
    engine: Engine,
    stats: NodeStats,
    section: str = "serve",
) -> ServingHost:
    """Conversations over blocks that are loaded, packed; for the compute thread. Raises SflError.

    `section` is where the settings stand.
    """
    span = model.span
    num_bytes = page_bytes(folder.config, span.num_blocks, model.dtype.itemsize)
    pages = serve.kv_memory // num_bytes
    if not pages:
        problem = f"{PAGE_TOKENS} tokens take {num_bytes} bytes"
        raise ConfigError(f"{section}.kv_memory", serve.kv_memory, problem, "Give more.")
    spill = None
    if serve.evict == "spill":
        spill = serve.spill_dir.expanduser()
        writable_folder(spill, f"{section}.spill_dir")
    chunk = chunk_tokens(serve.prefill_chunk, folder.hidden_size)
    keeping = keeping_of(folder, span, chunk, lazy=not model.stretches)
    base = _base(model, adapters, KvPool(pages, keeping), serve, section)
    here = ServedHere(
        edge,
        ((BASE, ""), *((name, adapter.digest) for name, adapter in adapters.items())),
        codec.spec,
        span.first,
        span.last,
        span.head,
        chunk,
        keeping.longest(pages),
        serve.max_tokens,
    )
    log.info(
        "serving blocks %d to %d of %s, %d adapters, room for %d tokens",
        *(span.first, span.last - 1, folder.path, len(adapters), here.room),
    )
    conversations = Conversations(base, Rules(pages), spill, spilled_bytes=serve.spill_disk)
    held = partial(held_by, conversations, pages * num_bytes)
    return ServingHost(
        stats,
        ServingCount(held, base.batches),
        engine,
        conversations,
        here,
        codec,
        model_digest(folder),
        folder,
        adapters,
    )


def _base(
    model: SpanModel,
    adapters: Mapping[str, ServedAdapter],
    pool: KvPool,
    serve: ServeSettings,
    section: str,
) -> ServingBase:
    """The blocks with all adapters in them. Raises ModelError for one that does not fit."""
    targets = sorted({name for adapter in adapters.values() for name in adapter.target_modules})
    bank = LoraBank(model, LoraSettings(), targets)
    placed: dict[str, Adapter | None] = {BASE: None}
    for name, adapter in adapters.items():
        try:
            placed[name] = place(bank, name, model.span, adapter.values, adapter.scaling)
        except ProtocolError as error:
            fix = "Serve it over the model that it was trained on."
            path = str(serve.adapters[name])
            raise ModelError(f"{section}.adapters.{name}", path, str(error), fix) from None
    bank.stack([adapter for adapter in placed.values() if adapter is not None])
    return ServingBase(model, bank, placed, pool)


class ServingEdge:
    """The process of an edge that serves: opens a port, loads, and takes both down."""

    def __init__(
        self,
        config: ServeEdgeConfig,
        threads: int,
        insecure: bool,
        own: OwnCertificate | None = None,
    ) -> None:
        """For a running event loop."""
        self._config = config
        self._threads = threads
        self._insecure = insecure
        self._own = own
        self.stats = NodeStats(config.edge.name, "edge")
        self.stats.threads = threads
        self._engine = Engine(threads, answering=config.serve.batch)
        self._opened: asyncio.Future[ServingHost] = asyncio.get_running_loop().create_future()
        self.said = DevicesSaid()
        self.service = GenerateService(self._opened, self.said)

    async def run(self, address_file: Path | None = None) -> None:
        """Serve until this is cancelled. Raises SflError where it cannot begin."""
        async with self.port(address_file):
            await asyncio.get_running_loop().create_future()

    @contextlib.asynccontextmanager
    async def port(self, address_file: Path | None = None) -> AsyncIterator[str]:
        """Where devices dial, once all is loaded. Raises SflError."""
        edge, door = self._config.edge, Door()
        server = new_server(self._own, door)
        server.add_generic_rpc_handlers((self.service.handler(),))
        address = bind(server, "edge.listen", edge.listen, self._insecure, self._own)
        try:
            with self._metrics():
                load = partial(load_host, self._config, self._threads, self._engine, self.stats)
                host = await self._engine.run(load)
                self._opened.set_result(host)
                await server.start()
                if address_file is not None:
                    write_atomic(address_file, address)
                log.info("edge %s serves on %s", edge.name, address)
                with door.watched(address):
                    yield address
        finally:
            self.service.close()
            await server.stop(grace=1.0)
            if self._opened.done():
                await self._engine.run(self._opened.result().conversations.close_all)
            self._engine.close()

    def _metrics(self) -> contextlib.AbstractContextManager[object]:
        metrics = self._config.edge.metrics
        if not metrics.enabled:
            return contextlib.nullcontext()
        return serve_as_set(metrics, NodeCollector(self.stats, self.said.latest))
