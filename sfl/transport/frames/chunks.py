"""Payloads of any size as frames of at most 1 MiB, and adapters as payloads; no torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

import numpy as np
import safetensors
import safetensors.numpy

from sfl.errors import ProtocolError
from sfl.node.buffers import Chunks, Raw
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.wire import FRAME_BYTES
from sfl.v1 import tensor_pb2

Buffer = Raw | Chunks


def adapter_bytes(values: Mapping[str, np.ndarray]) -> bytes:
    """An adapter's part as a safetensors file."""
    payload: bytes = safetensors.numpy.save(dict(values))
    return payload


def adapter_frames(
    header: tensor_pb2.AdapterHeader, payload: Buffer, frame_bytes: int | None = None
) -> Iterator[tensor_pb2.AdapterFrame]:
    """A safetensors file as frames; the first has the header."""
    header.num_bytes = len(payload)
    for first, data, last in pieces(payload, frame_bytes=frame_bytes):
        yield tensor_pb2.AdapterFrame(header=header if first else None, data=bytes(data), last=last)


def decode_adapter(payload: Buffer) -> dict[str, np.ndarray]:
    """The values of a safetensors file. Raises ProtocolError."""
    try:
        values: dict[str, np.ndarray] = safetensors.numpy.load(bytes(payload))
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ProtocolError(f"an adapter is not a safetensors file: {error}") from None
    return values


Header = TypeVar("Header", tensor_pb2.TensorHeader, tensor_pb2.AdapterHeader)

AnyFrame = Frame | tensor_pb2.AdapterFrame

_MOST_AROUND = 1 << 14
"""Bytes of a message beside its data that a view of it may keep alive."""
_CRUMB = 1 << 16
"""Bytes of data below which they are copied behind those before."""


@dataclass(slots=True)
class Assembly(Generic[Header]):
    """Puts one kind of frames together; a stream has one for each kind."""

    limit: int
    header: Header | None = None
    pieces: list[Raw] = field(default_factory=list)
    size: int = 0

    def add(self, frame: AnyFrame) -> tuple[Header, Buffer] | None:
        """Take a frame; the header and the whole payload with the last one.

        Raises ProtocolError on frames out of order and on more bytes than announced or allowed.
        """
        if (begun := _header(frame)) is not None:
            self._begin(cast(Header, begun))
        if self.header is None:
            raise ProtocolError("a frame without a header before it")
        self.size += len(frame.data)
        if self.size > self.header.num_bytes:
            raise ProtocolError(f"more than the announced {self.header.num_bytes} bytes")
        self._keep(frame)
        if not frame.last:
            return None
        header, payload = self.header, Chunks(self.pieces)  # most of it where gRPC put it
        self.header, self.pieces, self.size = None, [], 0
        if len(payload) != header.num_bytes:
            raise ProtocolError(f"{len(payload)} bytes came, {header.num_bytes} were announced")
        return header, payload

    def _keep(self, frame: AnyFrame) -> None:
        """Hold a frame's data, and of its message no more than that.

        A view of it keeps the whole message; and where a payload comes in crumbs, an object for
        each would take many times as much as they do.
        """
        data: Chunks = frame.data if isinstance(frame, Frame) else Chunks([frame.data])
        around = frame.wire_bytes - len(data) if isinstance(frame, Frame) else 0
        alone = frame.last and not self.pieces
        if around <= _MOST_AROUND and (alone or len(data) >= _CRUMB):
            self.pieces += data.pieces
            return
        if not self.pieces or not isinstance(self.pieces[-1], bytearray):
            self.pieces.append(bytearray())
        crumbs = self.pieces[-1]
        assert isinstance(crumbs, bytearray)
        for piece in data.pieces:
            crumbs += piece

    def _begin(self, header: Header) -> None:
        if self.header is not None:
            raise ProtocolError("a new header before the last frame of the one before")
        if header.num_bytes > self.limit:
            raise ProtocolError(f"{header.num_bytes} bytes announced, {self.limit} are allowed")
        self.header = header


def _header(frame: AnyFrame) -> tensor_pb2.TensorHeader | tensor_pb2.AdapterHeader | None:
    if isinstance(frame, Frame) or frame.HasField("header"):
        return frame.header
    return None


_KINDS = frozenset(tensor_pb2.TensorKind.values()) - {tensor_pb2.TENSOR_KIND_UNSPECIFIED}


class TensorAssembly:
    """Tensors of a stream: frames of one kind are in order, kinds may alternate."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kinds: dict[int, Assembly[tensor_pb2.TensorHeader]] = {}

    def header(self, frame: Frame) -> tensor_pb2.TensorHeader | None:
        """The header of the tensor that a frame belongs to, where it is known."""
        if frame.header is not None:
            return frame.header
        assembly = self._kinds.get(frame.kind)
        return None if assembly is None else assembly.header

    def add(self, frame: Frame) -> tuple[tensor_pb2.TensorHeader, Buffer] | None:
        """As Assembly's."""
        if frame.header is not None and frame.header.kind != frame.kind:
            raise ProtocolError("a frame and its header are of two kinds")
        if frame.kind not in _KINDS:
            raise ProtocolError(f"kind {frame.kind} of a tensor does not exist")
        assembly = self._kinds.setdefault(frame.kind, Assembly(self.limit))
        assembly.limit = self.limit
        return assembly.add(frame)


AdapterAssembly = Assembly[tensor_pb2.AdapterHeader]


def pieces(
    payload: Buffer, header_bytes: int = 0, frame_bytes: int | None = None
) -> Iterator[tuple[bool, Chunks, bool]]:
    """(first, data, last) of each frame; an empty payload is one empty frame. Slices `payload`.

    The first frame leaves room for a header of `header_bytes`.
    """
    whole = payload if isinstance(payload, Chunks) else Chunks([payload])
    frame_bytes = frame_bytes or FRAME_BYTES
    end = max(0, frame_bytes - header_bytes)
    yield True, whole.cut(0, end), end >= len(whole)
    for start in range(end, len(whole), frame_bytes):
        yield False, whole.cut(start, frame_bytes), start + frame_bytes >= len(whole)
