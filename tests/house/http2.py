"""Whose message a byte is: a gRPC connection of this project, read from outside as it passes."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from hpack import Decoder

from sfl.transport.frames import wire
from sfl.v1 import tensor_pb2
from tests.house.proxy import Way

METHODS = {method.path: method for method in vars(wire).values() if isinstance(method, wire.Method)}
PREFACE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
DATA, HEADERS, CONTINUATION = 0, 1, 9
PADDED, PRIORITY, END_HEADERS = 0x8, 0x20, 0x4
GRPC_PREFIX = 5
"""Bytes before each message: whether it is compressed, and its length."""


@dataclass(frozen=True)
class Passed:
    """A message that has passed whole; `begin` and `end` count the bytes of its way."""

    way: Way
    method: wire.Method
    message: Any
    begin: int
    end: int

    @property
    def kind(self) -> str:
        """What it is, as the tests call it."""
        if self.method.name != "Session":
            return f"{self.method.name} {'request' if self.way == 'up' else 'answer'}"
        body: str = self.message.WhichOneof("body")
        if body != "tensor":
            return body
        header = self.message.tensor.header
        kind = tensor_pb2.TensorKind.Name(header.kind).removeprefix("TENSOR_KIND_")
        purpose = tensor_pb2.Purpose.Name(header.purpose).removeprefix("PURPOSE_")
        return f"{kind} of {purpose}".lower()

    @property
    def round(self) -> int | None:
        """Of which round it is, where it says so."""
        if self.method.name != "Session":
            return None
        inner = getattr(self.message, self.message.WhichOneof("body"))
        for one in (inner, getattr(inner, "header", None)):
            if isinstance(one, Message) and "round" in one.DESCRIPTOR.fields_by_name:
                return int(one.round)  # type: ignore[attr-defined]
        return None


class Conversation:
    """One connection, both ways; it is cut off in the middle of the first message that `tears`."""

    def __init__(self, tears: Callable[[Passed], bool]) -> None:
        self._tears = tears
        self._paths: dict[int, str] = {}
        self._ways = {"up": _Reading("up", self._paths), "down": _Reading("down", self._paths)}

    def torn(self, way: Way, data: bytes) -> int | None:
        """After how many of these bytes all is cut off."""
        before = self._ways[way].count
        for passed in self._ways[way].read(data):
            if self._tears(passed):
                return max(0, (passed.begin + passed.end) // 2 - before)
        return None


class _Reading:
    """One way of it."""

    def __init__(self, way: Way, paths: dict[int, str]) -> None:
        self.count = 0
        self._way, self._paths = way, paths
        self._headers = Decoder()
        self._block = bytearray()
        self._left = bytearray()
        self._skip = PREFACE if way == "up" else 0
        self._bodies: dict[int, bytearray] = defaultdict(bytearray)
        self._begins: dict[int, int] = {}

    def read(self, data: bytes) -> list[Passed]:
        self._left += data
        self.count += len(data)
        if self._skip:
            if len(self._left) < self._skip:
                return []
            del self._left[: self._skip]
            self._skip = 0
        found: list[Passed] = []
        while len(self._left) >= 9:
            length = int.from_bytes(self._left[:3], "big")
            if len(self._left) < 9 + length:
                break
            kind, flags, stream = struct.unpack(">BBI", self._left[3:9])
            payload = bytes(self._left[9 : 9 + length])
            del self._left[: 9 + length]
            found += self._frame(kind, flags, stream & 0x7FFFFFFF, payload)
        return found

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> list[Passed]:
        if kind == DATA:
            padding = payload[0] if flags & PADDED else 0
            body = payload[1 : len(payload) - padding] if flags & PADDED else payload
            return self._data(stream, body, self.count - len(self._left) - padding)
        if kind in (HEADERS, CONTINUATION):
            if kind == HEADERS and flags & (PADDED | PRIORITY):
                raise NotImplementedError("gRPC sends neither")
            self._block += payload
            if flags & END_HEADERS:
                fields = dict(self._headers.decode(bytes(self._block)))
                self._block.clear()
                if ":path" in fields:
                    self._paths[stream] = fields[":path"]
        return []

    def _data(self, stream: int, payload: bytes, end: int) -> list[Passed]:
        """Of a frame whose payload ends at byte `end` of this way."""
        body = self._bodies[stream]
        if not body:
            self._begins[stream] = end - len(payload)
        body += payload
        found = []
        while len(body) >= GRPC_PREFIX:
            length = GRPC_PREFIX + int.from_bytes(body[1:GRPC_PREFIX], "big")
            if len(body) < length:
                break
            content = bytes(body[GRPC_PREFIX:length])
            del body[:length]
            over = end - len(body)
            method = METHODS[self._paths[stream]]
            kind = method.request if self._way == "up" else method.response
            begin = self._begins[stream]
            found.append(Passed(self._way, method, kind.FromString(content), begin, over))
            self._begins[stream] = over
        return found
