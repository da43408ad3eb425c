"""Weights and tokenizer from the edge: hashed, cached by content, resumed after a break."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from sfl.errors import ConfigError, Corrupted, LinkLost, ProtocolError
from sfl.metrics.stats import NodeStats
from sfl.node.files import on_disk, writable_folder
from sfl.transport.bulk.files import FileEntry, from_listing, is_served
from sfl.transport.frames.seal import sound
from sfl.transport.frames.wire import (
    EDGE_FETCH_FILE,
    EDGE_LIST_FILES,
    SERVE_FETCH_FILE,
    SERVE_LIST_FILES,
    Method,
    wire_bytes,
)
from sfl.transport.status import error_of
from sfl.v1 import edge_pb2

log = logging.getLogger(__name__)

HASH = re.compile(r"[0-9a-f]{64}")
MOST_FILES = 64


LIST_TIMEOUT = 600.0
"""Seconds for the list of files: an edge may have to hash them all first."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Those of a device that serves: the ones before `cut_layer`, and where it `ends` the model the
    last `tail_layers` with the head."""

    cut_layer: int
    tail_layers: int = 0
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Door:
    """Where a device asks for its files: in the run that it has joined, or as one that serves."""

    channel: grpc.Channel
    device: str
    blocks: Blocks | None = None

    def listing(self) -> tuple[FileEntry, ...]:
        """What there is."""
        method = EDGE_LIST_FILES if self.blocks is None else SERVE_LIST_FILES
        request = edge_pb2.FilesRequest(device=self.device, blocks=self._blocks)
        return from_listing(
            sound(_called(method, self.channel, request, timeout=LIST_TIMEOUT), "edge")
        )

    def read(self, name: str, offset: int) -> Any:
        """A call that gives a file's chunks from `offset` on."""
        method = EDGE_FETCH_FILE if self.blocks is None else SERVE_FETCH_FILE
        request = edge_pb2.FileRequest(
            device=self.device, name=name, offset=offset, blocks=self._blocks
        )
        return _called(method, self.channel, request)

    @property
    def _blocks(self) -> edge_pb2.ServedBlocks | None:
        return None if self.blocks is None else edge_pb2.ServedBlocks(**asdict(self.blocks))


def fetch_model(
    channel: grpc.Channel,
    device: str,
    cache: Path,
    stats: NodeStats,
    silence: float = 60.0,
    blocks: Blocks | None = None,
) -> Path:
    """A folder with the files of this device's span; only what the cache lacks is transferred.

    The edge knows the span of a device that has joined a run; one that serves says its `blocks`. A
    file of which nothing comes for `silence` seconds is given up, and resumed by the next call.

    Raises ConfigError where the cache cannot be written, DiskError where it no longer can,
    LinkLost, Corrupted where bytes do not match their hash, Refused, ProtocolError where an entry
    is not a plain file's.
    """
    cache = writable_folder(cache, "device.cache_dir")
    with stats.waits.on("edge", "model", "the model's files"):
        return _fetched(Door(channel, device, blocks), cache, stats, silence)


def _fetched(door: Door, cache: Path, stats: NodeStats, silence: float) -> Path:
    try:
        files = door.listing()
        _check_listing(files, cache)
        digest = hashlib.sha256("".join(f.name + f.sha256 for f in files).encode()).hexdigest()
        folder = cache / "spans" / digest[:32]
        with on_disk(cache, "device.cache_dir"):
            folder.mkdir(parents=True, exist_ok=True)
            for entry in files:
                _fetch(door, entry, cache / "blobs", stats, silence)
                _link(cache / "blobs" / entry.sha256, folder / entry.name, door.device)
    except grpc.RpcError as error:
        raise error_of(error, "edge") from None
    return folder


def _check_listing(files: Sequence[FileEntry], cache: Path) -> None:
    """Refuse what is no model's span, or more than this device has room for."""
    if len(files) > MOST_FILES:
        raise ProtocolError(f"{len(files)} files from the edge; {MOST_FILES} are allowed")
    there: dict[str, int] = {}
    for entry in files:
        _check_entry(entry)
        if there.setdefault(entry.sha256, entry.num_bytes) != entry.num_bytes:
            raise ProtocolError(
                f"{entry.name} from the edge has the hash of a file of another size"
            )
    wanted = sum(size for sha256, size in there.items() if not (cache / "blobs" / sha256).exists())
    free = shutil.disk_usage(cache).free
    if wanted > free:
        raise ConfigError(
            "device.cache_dir",
            str(cache),
            f"has {free / 1e6:.0f} MB free, and the model's files from the edge take "
            f"{wanted / 1e6:.0f} MB",
            "Make room, or name a folder on a larger disk.",
        )


def _check_entry(entry: FileEntry) -> None:
    """Hash and name become paths of this device's, so neither may lead out of the cache."""
    if not HASH.fullmatch(entry.sha256):
        raise ProtocolError(f"{entry.sha256!r:.80} from the edge is not a SHA-256 in hex")
    if not is_served(entry.name):
        raise ProtocolError(f"{entry.name!r:.80} from the edge is not a plain file name of a model")


def _fetch(door: Door, entry: FileEntry, blobs: Path, stats: NodeStats, silence: float) -> None:
    """Bring one file's content into the cache under its hash."""
    blobs.mkdir(parents=True, exist_ok=True)
    final = blobs / entry.sha256
    if final.exists():
        return
    partial = blobs / f"{entry.sha256}.{door.device}.partial"
    offset = partial.stat().st_size if partial.exists() else 0
    log.info(
        "fetching %s (%.1f MB, %.1f MB already here)",
        entry.name,
        entry.num_bytes / 1e6,
        offset / 1e6,
    )
    with partial.open("ab") as file:
        call = door.read(entry.name, offset)
        for chunk in _in_time(call, entry.name, silence):
            stats.bytes.add("down", "weights", wire_bytes(chunk), len(chunk.data))
            offset += len(chunk.data)
            if offset > entry.num_bytes:
                call.cancel()
                break
            file.write(chunk.data)
    if offset > entry.num_bytes:
        partial.unlink()
        raise ProtocolError(
            f"{entry.name} from the edge is longer than the {entry.num_bytes} bytes it announced"
        )
    if _sha256(partial) != entry.sha256:
        partial.unlink()
        raise Corrupted(f"{entry.name} from the edge does not match its hash")
    partial.replace(final)


def _called(method: Method, channel: grpc.Channel, request: Any, **options: float) -> Any:
    """A call. Raises LinkLost where the channel was closed meanwhile: the link's own thread does
    that, as where nothing was heard for long."""
    try:
        return method.stub(channel)(request, **options)
    except ValueError as error:  # so gRPC says it
        raise LinkLost(f"edge: {error}") from None


def _in_time(call: Any, name: str, silence: float) -> Iterator[edge_pb2.FileChunk]:
    """A file's chunks. Raises LinkLost where the next one takes longer than `silence` seconds."""
    over, late = threading.Event(), threading.Event()
    heard = time.monotonic()

    def watch() -> None:
        while not over.wait(min(1.0, silence / 4)):
            if time.monotonic() - heard > silence:
                late.set()
                call.cancel()
                return

    threading.Thread(target=watch, name="fetch-watch", daemon=True).start()
    try:
        for chunk in call:
            heard = time.monotonic()
            yield sound(chunk, "edge")
    except grpc.RpcError:
        if late.is_set():
            raise LinkLost(f"edge: nothing of {name} for {silence:g} s") from None
        raise
    finally:
        over.set()
        call.cancel()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link(content: Path, target: Path, device: str) -> None:
    """Give cached content its name; a hard link where the file system has them.

    Another device of this machine may do the same, and read `target` already: so it appears whole.
    """
    if target.exists():
        return
    target.parent.mkdir(exist_ok=True)
    try:
        target.hardlink_to(content)
    except FileExistsError:
        return  # another device of this machine was quicker
    except OSError:  # also where another device has put the same content in its place just now
        aside = target.with_name(f".{target.name}.{device}.tmp")
        try:
            shutil.copyfile(content, aside)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
