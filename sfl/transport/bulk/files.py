"""The files of a device's span as its edge serves them: never more of the weights than that.

The span's tensors are streamed as one safetensors file that exists nowhere: a header made here,
and behind it bytes read from the model's own files as they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sfl.errors import Refused
from sfl.models.families.family import Task
from sfl.models.folder import ModelFolder, TensorEntry, read_into, span_tensor_names
from sfl.models.vocabulary import is_tokenizer_file, tokenizer_files
from sfl.plan import Span
from sfl.transport.frames.wire import FRAME_BYTES
from sfl.v1 import edge_pb2

WEIGHTS = "model.safetensors"
CONFIGS = ("config.json", "generation_config.json")
"""Served beside the tokenizer's files. Nothing else of the folder leaves it."""

Piece = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file that a device may fetch; its SHA-256 in hex."""

    name: str
    num_bytes: int
    sha256: str


def to_listing(files: Iterable[FileEntry]) -> edge_pb2.FileList:
    """A list of files as the wire has it."""
    entries = [
        edge_pb2.FileEntry(name=file.name, num_bytes=file.num_bytes, sha256=file.sha256)
        for file in files
    ]
    return edge_pb2.FileList(files=entries)


def from_listing(said: edge_pb2.FileList) -> tuple[FileEntry, ...]:
    """A list of files from the wire."""
    return tuple(FileEntry(file.name, file.num_bytes, file.sha256) for file in said.files)


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a file: bytes in memory, or a tensor to read from."""

    num_bytes: int
    source: bytes | TensorEntry

    def read(self, start: int, count: int) -> bytes:
        """`count` bytes from `start` on."""
        if isinstance(self.source, bytes):
            return self.source[start : start + count]
        buffer = bytearray(count)
        read_into(self.source, memoryview(buffer), start)
        return bytes(buffer)


def is_served(name: str) -> bool:
    """Whether an edge may send a device a file of this name."""
    return name in (WEIGHTS, *CONFIGS) or is_tokenizer_file(name)


class SpanFiles:
    """The files of one device, listed with their hashes, readable from any offset."""

    def __init__(self, folder: ModelFolder, spans: Iterable[Span], task: Task) -> None:
        names = {name for span in spans for name in span_tensor_names(folder, span, task)}
        entries = [folder.tensors[name] for name in sorted(names)]
        self._files: dict[str, list[Part]] = {WEIGHTS: _weights(entries)}
        for name in (*CONFIGS, *tokenizer_files(folder.path)):
            path = folder.path / name
            if path.is_file():
                content = path.read_bytes()
                self._files[name] = [Part(len(content), content)]
        self._listing: tuple[FileEntry, ...] | None = None
        self._lock = threading.Lock()

    def listing(self) -> Sequence[FileEntry]:
        """Names, sizes and hashes; reads every byte once, the first time."""
        with self._lock:
            if self._listing is None:
                self._listing = tuple(self._entry(name) for name in self._files)
            return self._listing

    def pieces(self, name: str, offset: int) -> Iterator[Piece]:
        """The file from `offset` on, in frames; each is read when it is called. Raises Refused."""
        parts = self._files.get(name)
        if parts is None:
            raise Refused(f"no file {name!r}; there are {', '.join(self._files)}")
        for part in parts:
            skipped = min(offset, part.num_bytes)
            offset -= skipped
            for start in range(skipped, part.num_bytes, FRAME_BYTES):
                yield _piece(part, start, min(FRAME_BYTES, part.num_bytes - start))

    def _entry(self, name: str) -> FileEntry:
        digest, size = hashlib.sha256(), 0
        for piece in self.pieces(name, 0):
            data = piece()
            digest.update(data)
            size += len(data)
        return FileEntry(name, size, digest.hexdigest())


def _piece(part: Part, start: int, count: int) -> Piece:
    return lambda: part.read(start, count)


def _weights(entries: list[TensorEntry]) -> list[Part]:
    """One safetensors file of these tensors: length of the header, header, tensors."""
    header: dict[str, object] = {}
    offset = 0
    for entry in entries:
        end = offset + entry.nbytes
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned, as safetensors itself writes them
    head = len(text).to_bytes(8, "little") + text
    return [Part(len(head), head), *(Part(entry.nbytes, entry) for entry in entries)]
