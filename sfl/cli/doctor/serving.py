"""A file of nodes that answer with a model: what an edge and its devices would take, and hold."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from device_agent.serving.drafts import small_model
from sfl.adapters.served import ServedAdapter, Values, open_served
from sfl.cli.doctor.report import Check, problem
from sfl.cli.serve.here import device_file, edge_file
from sfl.codec.pipeline import Codec
from sfl.config import ModelSettings
from sfl.config.node import EdgeConfig, LocalDevice, certain
from sfl.config.serve import (
    ServeDeviceConfig,
    ServeEdgeConfig,
    load_serve,
    load_serve_device,
    load_serve_edge,
)
from sfl.config.size import size
from sfl.errors import ConfigError, SflError
from sfl.models.folder import ModelFolder
from sfl.models.kv.pages import PAGE_TOKENS, pages_for
from sfl.models.kv.size import check_kept
from sfl.models.memory.footprint import EDGE_BASE_BYTES, Load
from sfl.models.memory.serving import (
    Answering,
    ServingFootprint,
    answering_of,
    check_cut,
    check_room,
    exit_bytes,
    kv_bytes,
    longest_answer,
    pages_of_answer,
    serving_footprint,
    small_model_bytes,
    without_embedding,
)
from sfl.node.textfile import NotText, read_text
from sfl.plan import Plan
from sfl.serving.steps import chunk_tokens
from sfl.stage.base import decided
from sfl.stage.serving.exits import read_exit
from sfl.transport.serve.digest import model_digest
from sfl.transport.serve.rows import row_bytes, serve_codec

EDGE, DEVICE = {"edge", "serve"}, {"device", "serve"}


@dataclass(frozen=True, slots=True)
class ServeFile:
    """The nodes of one file: an edge, a device, or an edge and its devices on this machine."""

    edge: ServeEdgeConfig | None
    devices: tuple[ServeDeviceConfig, ...] = ()

    @property
    def model(self) -> tuple[str, str | None]:
        """The setting that names the model, and the model; None where an edge sends it."""
        if self.edge is not None:
            return ("model.path" if self.devices else "edge.model"), self.edge.edge.model or ""
        return "device.model", self.devices[0].device.model

    @property
    def words(self) -> str:
        """What the file is."""
        if self.edge is None:
            return "a device's file, that serves"
        count = len(self.edge.serve.adapters)
        said = f"an edge's file, that serves {count} adapter{'s' * (count != 1)}"
        if self.devices:
            many = len(self.devices)
            said = said.replace("an edge's file, that", "a file that")
            said += f" with {many} device{'s' * (many != 1)} on this machine"
        return said


def load_served(path: Path, overrides: Iterable[str]) -> ServeFile | None:
    """The file, where it is one of nodes that serve. Raises ConfigError."""
    try:
        tables = tomllib.loads(read_text(path)).keys()
    except (OSError, ValueError, NotText):
        return None
    if "serve" not in tables:
        return None
    if tables - {"codec"} == EDGE:
        return ServeFile(load_serve_edge(path, overrides))
    if tables == DEVICE:
        return ServeFile(None, (load_serve_device(path, overrides),))
    config = load_serve(path, overrides)
    address = "127.0.0.1:1"  # it is not dialled
    devices = tuple(device_file(config, own, address) for own in config.devices)
    return ServeFile(edge_file(config), devices)


def check_serving(file: ServeFile, folder: ModelFolder, room: int, device_base: int) -> list[Check]:
    """What each node needs of `room` bytes, and all of them together."""
    try:
        folder.check_task("causal_lm")
        check_kept(file.model[0], folder)
        return list(_checks(file, folder, room, device_base))
    except SflError as error:
        return [problem("serve", error)]


def _checks(file: ServeFile, folder: ModelFolder, room: int, base: int) -> Iterator[Check]:
    together, adapters = 0, dict[str, ServedAdapter]()
    if file.edge is not None:
        adapters = _adapters(file.edge)
        needed, check = _edge(file.edge, folder, adapters, room)
        together += needed
        yield check
    for own in file.devices:
        first = None if file.edge is None else file.edge.serve.cut_layer
        needed, check = _device(own, folder, adapters, first, room, base)
        together += needed
        yield check
    if file.edge is not None and file.devices and together > room:
        yield Check(
            "sfl serve",
            "problem",
            f"edge and devices need {size(together)} together, and there are {size(room)}",
            "Lower serve.kv_memory, or devices' conversations and context.",
            {"total_bytes": together, "room_bytes": room},
        )


def _adapters(config: ServeEdgeConfig) -> dict[str, ServedAdapter]:
    found = {}
    for name, path in config.serve.adapters.items():
        try:
            found[name] = open_served(path.expanduser())
        except SflError as error:
            fix = getattr(error, "fix", "")
            raise ConfigError(f"serve.adapters.{name}", str(path), str(error), fix) from None
    return found


def _load(own: EdgeConfig | LocalDevice) -> Load:
    """What the node settles on, as it does itself."""
    threads = 1 if own.threads == "auto" else own.threads
    device = own.devices[0] if isinstance(own, EdgeConfig) else "cpu"
    dtype = decided(own.dtype or ModelSettings(path="-").dtype, threads, device)
    return Load(1, 1, dtype=dtype, quantised=certain(own.quantised))


def _edge(
    config: ServeEdgeConfig, folder: ModelFolder, adapters: dict[str, ServedAdapter], room: int
) -> tuple[int, Check]:
    own, serve = config.edge, config.serve
    codec = serve_codec(config.codec.serve)
    check_cut(folder, serve, "serve")
    answering = answering_of(folder, serve, _load(own), serve.cut_layer)
    check_room(folder, serve, answering, "serve")
    (span,), pages = answering.spans, answering.pages
    each = kv_bytes(folder, (span,), 1, answering.load.item_bytes)
    longest = longest_answer(folder, serve)
    bytes_ = sum(_nbytes(one.values) + _nbytes(one.part((span,))) for one in adapters.values())
    needed = serving_footprint(folder, answering, EDGE_BASE_BYTES, bytes_)
    wanted = pages_of_answer(folder, serve, answering)
    talks = pages // wanted
    text = (
        f"{_said(needed, room)}: keys and values {size(needed.kv)} in {pages:,} pages of "
        f"{PAGE_TOKENS} tokens, for {talks:,} conversations of {longest} tokens; "
        f"{said_of_rows(codec, folder.hidden_size)}"
    )
    figures = _figures(needed, room) | {
        "pages": pages,
        "page_bytes": each,
        "conversations": talks,
        "longest_tokens": longest,
        "row_bytes": row_bytes(codec, folder.hidden_size),
    }
    if needed.total <= room:
        return needed.total, Check("edge", "ok", text, figures=figures)
    left = room - (needed.total - needed.kv)
    fix = "Serve a smaller model, or let devices hold more blocks (serve.cut_layer)."
    if left >= wanted * each:
        fix = f"Lower serve.kv_memory to {size(left // each * each).replace(' ', '')} at most."
    return needed.total, Check("edge", "problem", f"serve.kv_memory: {text}", fix, figures)


def _device(
    config: ServeDeviceConfig,
    folder: ModelFolder,
    adapters: dict[str, ServedAdapter],
    edge_first: int | None,
    room: int,
    base: int,
) -> tuple[int, Check]:
    own, serve = config.device, config.serve
    section = "serve" if edge_first is None else f"devices.{own.name}"
    try:
        plan = Plan.split(folder.num_layers, serve.cut_layer, serve.tail_layers, serve.topology)
    except ConfigError as error:
        return 0, problem(f"device {own.name}", error)
    if edge_first is not None and serve.cut_layer < edge_first:
        why = f"the edge has no block before serve.cut_layer = {edge_first}"
        unfit = ConfigError(
            f"{section}.cut_layer", serve.cut_layer, why, f"Set it to {edge_first} or more."
        )
        return 0, problem(f"device {own.name}", unfit)
    context = min(serve.context or folder.context_length, folder.context_length)
    pages = pages_for(serve.conversations * context)
    chunk = chunk_tokens(256, folder.hidden_size)  # the edge's own choice, if it is another one
    load = _load(own)
    spared = without_embedding(folder, own, serve, load)
    answering = Answering(plan.device_spans, load, pages, chunk, 1, context, spared)
    parts = sum(_nbytes(one.part(plan.device_spans)) for one in adapters.values())
    try:
        draft = _draft_bytes(config, folder, answering)
    except SflError as error:
        return 0, problem(f"device {own.name}", error)
    needed = serving_footprint(folder, answering, base, parts, draft)
    text = (
        f"{_said(needed, room)}: keys and values {size(needed.kv)} for {serve.conversations} "
        f"conversation{'s' * (serve.conversations != 1)} of {context} tokens"
    )
    figures = _figures(needed, room) | {"pages": pages, "cut_layer": serve.cut_layer}
    if needed.total <= room:
        return needed.total, Check(f"device {own.name}", "ok", text, figures=figures)
    return needed.total, Check(
        f"device {own.name}",
        "problem",
        f"{section}.conversations: {text}",
        f"Lower {section}.conversations or {section}.context, or {section}.cut_layer.",
        figures,
    )


def _draft_bytes(config: ServeDeviceConfig, folder: ModelFolder, own: Answering) -> int:
    """What guesses on a device takes. Raises ConfigError, ModelError where it cannot guess."""
    kind, source = config.serve.draft_source
    if kind == "exit":
        read_exit(Path(source).expanduser(), model_digest(folder), config.serve.cut_layer)
        return exit_bytes(folder, own)
    if kind == "model":
        return small_model_bytes(small_model(source, folder), own)
    return 0


def said_of_rows(codec: Codec, hidden_size: int) -> str:
    """How rows of conversations travel, and what one takes."""
    loss = "which is lossless" if codec.exact else "which changes what is said"
    num_bytes = size(row_bytes(codec, hidden_size))
    return f"rows travel as {codec.spec} (codec.serve), {loss}, {num_bytes} a token each way"


def _said(needed: ServingFootprint, room: int) -> str:
    return (
        f"needs {size(needed.total)} of {size(room)}: process {size(needed.base)}, weights "
        f"{size(needed.weights)}, adapters {size(needed.adapters)}, a forward "
        f"{size(needed.working)}" + (f", a draft {size(needed.draft)}" if needed.draft else "")
    )


def _figures(needed: ServingFootprint, room: int) -> dict[str, object]:
    figures: dict[str, object] = {f"{name}_bytes": v for name, v in asdict(needed).items()}
    return figures | {"total_bytes": needed.total, "room_bytes": room}


def _nbytes(values: Values) -> int:
    return sum(value.nbytes for value in values.values())
