"""Payloads of any size as frames of at most 1 MiB, and adapters as payloads; no torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

import numpy as np
import safetensors
import safetensors.numpy

from sfl.errors import ProtocolError
from sfl.transport.wire import FRAME_BYTES
from sfl.v1 import tensor_pb2


def encode_adapter(
    header: tensor_pb2.AdapterHeader, values: Mapping[str, np.ndarray]
) -> list[tensor_pb2.AdapterFrame]:
    """An adapter's part as frames of one safetensors file."""
    return list(adapter_frames(header, adapter_bytes(values)))


def adapter_bytes(values: Mapping[str, np.ndarray]) -> bytes:
    """An adapter's part as a safetensors file."""
    payload: bytes = safetensors.numpy.save(dict(values))
    return payload


def adapter_frames(
    header: tensor_pb2.AdapterHeader, payload: bytes
) -> Iterator[tensor_pb2.AdapterFrame]:
    """A safetensors file as frames; the first has the header."""
    header.num_bytes = len(payload)
    for first, data, last in pieces(payload):
        yield tensor_pb2.AdapterFrame(header=header if first else None, data=data, last=last)


def decode_adapter(payload: bytes) -> dict[str, np.ndarray]:
    """The values of a safetensors file. Raises ProtocolError."""
    try:
        values: dict[str, np.ndarray] = safetensors.numpy.load(payload)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ProtocolError(f"an adapter is not a safetensors file: {error}") from None
    return values


Header = TypeVar("Header", tensor_pb2.TensorHeader, tensor_pb2.AdapterHeader)

Frame = tensor_pb2.TensorFrame | tensor_pb2.AdapterFrame


@dataclass(slots=True)
class Assembly(Generic[Header]):
    """Puts one kind of frames together; a stream has one for each kind."""

    limit: int
    header: Header | None = None
    data: bytearray = field(default_factory=bytearray)

    def add(self, frame: Frame) -> tuple[Header, bytes] | None:
        """Take a frame; the header and the whole payload with the last one.

        Raises ProtocolError on frames out of order and on more bytes than announced or allowed.
        """
        if frame.HasField("header"):
            self._begin(cast(Header, frame.header))
        if self.header is None:
            raise ProtocolError("a frame without a header before it")
        self.data += frame.data
        if len(self.data) > self.header.num_bytes:
            raise ProtocolError(f"more than the announced {self.header.num_bytes} bytes")
        if not frame.last:
            return None
        header, payload = self.header, bytes(self.data)
        self.header, self.data = None, bytearray()
        if len(payload) != header.num_bytes:
            raise ProtocolError(f"{len(payload)} bytes came, {header.num_bytes} were announced")
        return header, payload

    def _begin(self, header: Header) -> None:
        if self.header is not None:
            raise ProtocolError("a new header before the last frame of the one before")
        if header.num_bytes > self.limit:
            raise ProtocolError(f"{header.num_bytes} bytes announced, {self.limit} are allowed")
        self.header = header


class TensorAssembly:
    """Tensors of a stream: frames of one kind are in order, kinds may alternate."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kinds: dict[int, Assembly[tensor_pb2.TensorHeader]] = {}

    def header(self, frame: tensor_pb2.TensorFrame) -> tensor_pb2.TensorHeader | None:
        """The header of the tensor that a frame belongs to, where it is known."""
        if frame.HasField("header"):
            return frame.header
        assembly = self._kinds.get(frame.kind)
        return None if assembly is None else assembly.header

    def add(self, frame: tensor_pb2.TensorFrame) -> tuple[tensor_pb2.TensorHeader, bytes] | None:
        """As Assembly's."""
        if frame.HasField("header") and frame.header.kind != frame.kind:
            raise ProtocolError("a frame and its header are of two kinds")
        if frame.kind not in self._kinds and len(self._kinds) > 8:
            raise ProtocolError(f"kind {frame.kind} of a tensor does not exist")
        assembly = self._kinds.setdefault(frame.kind, Assembly(self._limit))
        return assembly.add(frame)


AdapterAssembly = Assembly[tensor_pb2.AdapterHeader]

ADAPTER_LIMIT = 4 << 30
"""Most bytes that an adapter may announce."""


def pieces(payload: bytes, header_bytes: int = 0) -> Iterator[tuple[bool, bytes, bool]]:
    """(first, data, last) of each frame; an empty payload is one empty frame.

    The first frame leaves room for a header of `header_bytes`.
    """
    end = max(0, FRAME_BYTES - header_bytes)
    yield True, payload[:end], end >= len(payload)
    for start in range(end, len(payload), FRAME_BYTES):
        data = payload[start : start + FRAME_BYTES]
        yield False, data, start + FRAME_BYTES >= len(payload)
