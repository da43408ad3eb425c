"""An edge's frozen base: a value once it is loaded, the same for all devices."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sfl.adapters.lora import LoraBank, build_manifest, given_values
from sfl.adapters.manifest import AdapterManifest
from sfl.adapters.names import belongs_to
from sfl.adapters.rank import truncated
from sfl.config import EdgeConfig, RunSettings
from sfl.config.ranges import plans_of
from sfl.config.serving import ServeSettings
from sfl.errors import ModelError
from sfl.metrics.stats import NodeStats
from sfl.models.beside import over_same_weights
from sfl.models.classes import check_class_order
from sfl.models.folder import ModelFolder, check_length, open_model
from sfl.models.memory.batching import check_batching
from sfl.models.memory.beside import check_beside, first_block
from sfl.models.memory.edge_budget import EdgeChoice, fit_edge
from sfl.models.span import SpanModel, build_span
from sfl.models.vocabulary import check_files
from sfl.node.files import writable_folder
from sfl.plan import Holder, Plan, Span
from sfl.rounds.values import Assignment
from sfl.stage.base import lay_over_devices, settle
from sfl.stage.computation import COMPUTATIONS
from sfl.transport.device.stream_codecs import check_codecs, remembers_samples
from sfl.transport.frames import contract
from sfl.transport.frames.chunks import Buffer, adapter_bytes, decode_adapter

Values = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Base:
    """The blocks that this edge computes, over all its devices' cuts, and their adapters' names."""

    settings: RunSettings
    folder: ModelFolder
    model: SpanModel
    bank: LoraBank
    choice: EdgeChoice
    """What fits into this server's memory."""
    manifest: AdapterManifest
    """What an adapter of the whole model consists of."""
    given: bytes = b""
    """Values of it that the checkpoint holds, as a safetensors file."""
    holder: Holder = "edge"
    """Which stage server this is."""
    serving: SpanModel | None = None
    """The same blocks for conversations, where it serves as well."""

    @property
    def digest(self) -> str:
        """Tells this model from another one, by its configuration and what an adapter has."""
        config = json.dumps(self.folder.config, sort_keys=True, default=str)
        said = f"{config}\n{self.manifest.to_json()}".encode()
        return hashlib.sha256(said + self.given).hexdigest()

    @property
    def adapter_limit(self) -> int:
        """Most bytes of an adapter of this run."""
        return contract.adapter_limit(p.shape for p in self.manifest.parameters)

    @property
    def global_limit(self) -> int:
        """Most bytes of what the cloud sends: what folds is a sum, of the ranks of all devices."""
        shapes = [parameter.shape for parameter in self.manifest.parameters]
        return contract.adapter_limit(shapes, len(self.settings.names))


@dataclass(frozen=True, slots=True)
class Shares:
    """An adapter for one device: the edge's part, the device's, and what stages behind have."""

    mine: Values
    theirs: Values
    behind: Values


def shares(payload: Buffer, orders: Mapping[str, Assignment]) -> dict[str, Shares]:
    """The global adapter, at each device's rank, in parts. A large one's ranks take a while.

    Devices of the same plan and rank have the same parts, as one object.
    """
    values = decode_adapter(payload)
    made = {(own.plan, own.rank): own for own in orders.values()}
    parts = {alike: _share(own, values) for alike, own in made.items()}
    return {device: parts[own.plan, own.rank] for device, own in orders.items()}


def _share(own: Assignment, values: Values) -> Shares:
    values = truncated(values, own.rank)
    mine, theirs = part_of(own.plan, "edge", values), part_of(own.plan, "device", values)
    known = mine.keys() | theirs.keys()
    return Shares(mine, theirs, {n: array for n, array in values.items() if n not in known})


def part_of(plan: Plan, holder: Holder, values: Mapping[str, np.ndarray]) -> Values:
    """The part of an adapter's values that belongs to somebody's own blocks."""
    return within(plan.of(holder), values)


def within(spans: Sequence[Span], values: Mapping[str, np.ndarray]) -> Values:
    """The part of an adapter's values that belongs to the blocks of these spans."""
    return {
        name: array
        for name, array in values.items()
        if any(belongs_to(name, span) for span in spans)
    }


def load_base(
    config: EdgeConfig,
    settings: RunSettings,
    threads: int,
    stats: NodeStats,
    holder: Holder = "edge",
) -> Base:
    """Load all blocks that any device may leave to this stage server. Raises SflError.

    For the compute thread. What was settled of their form goes into `stats`.
    """
    folder = _checked_folder(config, settings, holder)
    form = settle(config, settings.model, threads, settings.aggregation.traits.folds)
    own = config.model_copy(update={"quantised": form.quantised})
    choice = fit_edge(folder, settings, own, holder)
    stats.dtype, stats.quantised = form.dtype, form.quantised
    num_labels = len(settings.model.labels)
    manifest = build_manifest(folder, settings.model.task, num_labels, settings.lora)
    span = _span(settings, folder, holder, config.serve)
    model = build_span(
        folder,
        span,
        task=settings.model.task,
        num_labels=num_labels,
        dtype=form.weights,
        packed=COMPUTATIONS[settings.computation].packed,
        autocast=form.autocast,
        quantised=form.quantised,
    )
    lay_over_devices(model, config)
    serving = None if config.serve is None else over_same_weights(folder, model)
    bank = LoraBank(model, settings.lora, settings.lora.target_modules)
    log = _log(holder)
    log.info("base loaded: blocks %d to %d of %s", span.first, span.last - 1, folder.path)
    log.info("%s", choice)
    given = adapter_bytes(given_values(folder, manifest))
    return Base(settings, folder, model, bank, choice, manifest, given, holder, serving)


def _log(holder: Holder) -> logging.Logger:
    return logging.getLogger("sfl.edge" if holder == "edge" else "sfl.stage")


def _checked_folder(config: EdgeConfig, settings: RunSettings, holder: Holder) -> ModelFolder:
    """The model's folder, which this run can use."""
    check_codecs(settings)
    if remembers_samples(settings):
        writable_folder(config.cache_dir, "edge.cache_dir")
    folder = open_model(config.model or settings.model.path)
    check_length(settings.model.max_length, folder.context_length)
    if holder == "edge":
        _warn_of_tokenizer(folder)
    check_class_order(folder, settings.model.labels)
    check_batching(folder, settings, config, holder)
    check_beside(folder, settings, config)
    return folder


def _warn_of_tokenizer(folder: ModelFolder) -> None:
    """Devices without a folder of their own get the tokenizer from here, and look at it."""
    try:
        check_files(folder.path, folder.config)
    except ModelError as error:
        _log("edge").warning(
            "devices without a model folder of their own will be refused: %s", error
        )


def _span(
    settings: RunSettings, folder: ModelFolder, holder: Holder, serve: ServeSettings | None
) -> Span:
    """All blocks that any of the devices may leave to this stage server.

    With `serve` also those that conversations need: up to the model's end.
    """
    layers = folder.num_layers
    plans = [plan for name in settings.names for plan in plans_of(settings, name, layers)]
    spans = [plan.span_of(holder) for plan in plans]
    if serve is not None:
        return Span(first_block(serve, spans), layers, embedding=False, head=True)
    return Span(
        min(span.first for span in spans),
        max(span.last for span in spans),
        embedding=False,
        head=any(span.head for span in spans),
    )
