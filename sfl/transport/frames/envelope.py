"""Messages as bytes, each with its checksum; a tensor's frame without copying its data on the way.

On the wire it is an ordinary `TensorFrame` within a `DeviceMessage` or an `EdgeMessage`, and any
protobuf library reads it. Python's own copies the data four times out and three times in, which is
most of what a fast link's step would wait for; so only the few bytes around the data are handled
here, and everything else by protobuf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from sfl.errors import Corrupted, ProtocolError
from sfl.metrics.timeline import TimedKey
from sfl.node.buffers import Chunks
from sfl.transport.frames.seal import SEAL_BYTES, Unreadable, has_seal, seal, unsealed
from sfl.v1 import tensor_pb2

M = TypeVar("M", bound=Message)

_HEADER, _DATA, _LAST, _KIND = 0x0A, 0x12, 0x18, 0x20  # tags of TensorFrame's fields


@dataclass(slots=True)
class Frame:
    """A TensorFrame; `data` are views, of the payload on the way out, of the message on the way in.

    `wire_bytes` is the size of the whole message it travels in, `key` what its tensor is of,
    known where it is sent.
    """

    header: tensor_pb2.TensorHeader | None
    data: Chunks
    last: bool
    kind: int
    wire_bytes: int = 0
    key: TimedKey | None = None

    def __post_init__(self) -> None:
        if not self.wire_bytes:
            self.wire_bytes = len(self.prefix(1)) + len(self.data) + SEAL_BYTES

    def prefix(self, field: int) -> bytes:
        """What comes before the data, where the message has its frame in `field`."""
        inner = bytearray()
        if self.header is not None:
            header = self.header.SerializeToString()
            inner.append(_HEADER)
            inner += _varint(len(header)) + header
        if self.last:
            inner += bytes((_LAST, 1))
        inner.append(_KIND)
        inner += _varint(self.kind)
        if len(self.data):
            inner.append(_DATA)
            inner += _varint(len(self.data))
        return bytes((field << 3 | 2,)) + _varint(len(inner) + len(self.data)) + bytes(inner)

    def WhichOneof(self, group: str) -> str:  # noqa: N802 - as protobuf's own messages have it
        """The body of the message that it travels in."""
        return "tensor"

    def message(self) -> tensor_pb2.TensorFrame:
        """The same as protobuf's own object."""
        return tensor_pb2.TensorFrame(
            header=self.header,
            data=bytes(self.data),
            last=self.last,
            kind=self.kind,  # type: ignore[arg-type]
        )


@dataclass(frozen=True, slots=True)
class Envelope(Generic[M]):
    """How one direction's messages become bytes: `field` is where its type holds a frame, if so."""

    kind: type[M]
    field: int = 0

    def serialize(self, message: M | Frame | bytes) -> bytes:
        """The message's bytes, as they are where a thread has made them; a frame's only copy."""
        if isinstance(message, bytes):
            return message
        if isinstance(message, Frame):
            return seal(message.prefix(self.field), *message.data.pieces)
        return seal(message.SerializeToString())

    def parse(self, data: bytes) -> M | Frame | Unreadable:
        """The message, or the frame in it as a view of its bytes; or what is wrong with it.

        gRPC would end a call that a parser raises in, without the reason.
        """
        try:
            if not has_seal(data) and (old := self._hello(data)) is not None:
                return old
            return self._read(unsealed(data), len(data))
        except Corrupted as error:
            return Unreadable(error)
        except (DecodeError, ValueError) as error:
            return Unreadable(
                ProtocolError(f"a message of {len(data)} bytes is not protobuf: {error}")
            )

    def _read(self, body: memoryview, wire_bytes: int) -> M | Frame:
        if self.field and body[:1] == bytes((self.field << 3 | 2,)):
            frame = _frame(body, wire_bytes)
            if frame is not None:
                return frame
        message = self.kind.FromString(body)  # type: ignore[arg-type]
        if self.field and message.WhichOneof("body") == "tensor":
            return _whole(message.tensor, wire_bytes)  # type: ignore[attr-defined]
        return message

    def _hello(self, data: bytes) -> M | None:
        """A hello of an sfl that knew no checksums, which is to be told that it is too old."""
        try:
            message = self.kind.FromString(data)
        except DecodeError:
            return None
        hello = getattr(message, "hello", None)
        return message if hello is not None and message.WhichOneof("body") == "hello" else None


def _whole(frame: tensor_pb2.TensorFrame, size: int) -> Frame:
    """A frame as protobuf read it, its header a copy: a part of a message keeps all of it."""
    header = None
    if frame.HasField("header"):
        header = tensor_pb2.TensorHeader()
        header.CopyFrom(frame.header)
    return Frame(header, Chunks([frame.data]), frame.last, frame.kind, size)


def _frame(data: memoryview, wire_bytes: int) -> Frame | None:
    """The frame that a message consists of; None for protobuf to say what is wrong, or unusual."""
    try:
        size, at = _read_varint(data, 1)
        if at + size != len(data):
            return None
        header, body, last, kind = None, data[:0], False, 0
        while at < len(data):
            tag = data[at]
            value, at = _read_varint(data, at + 1)
            if tag in (_HEADER, _DATA):
                piece, at = data[at : at + value], at + value
                if len(piece) != value or (tag == _DATA and len(body)):
                    return None
                if tag == _HEADER:
                    header = tensor_pb2.TensorHeader.FromString(bytes(piece))
                else:
                    body = piece
            elif tag == _LAST:
                last = bool(value)
            elif tag == _KIND:
                kind = value
            else:
                return None
    except (IndexError, DecodeError):
        return None
    return Frame(header, Chunks([body]), last, kind, wire_bytes)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 63, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise IndexError
