"""Parts of updates, and sums, as an edge sends them: they go to disk frame by frame."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

from sfl.errors import ProtocolError
from sfl.node.files import on_disk
from sfl.rounds.values import UpdateHeader
from sfl.transport.cloud.spool import Part, Spool
from sfl.transport.frames import contract, words
from sfl.transport.frames.contract import DeviceContract
from sfl.transport.security.signed import SignatureCheck
from sfl.v1 import tensor_pb2


class Receiver(Protocol):
    """Where parts of updates go."""

    spool: Spool

    @property
    def adapter_limit(self) -> int:
        """Most bytes of one part of an update."""

    def update_received(self, header: UpdateHeader) -> None:
        """One side's part of an update is in the spool."""

    def sum_received(self, edge: str, round_: int, number: int) -> None:
        """An edge's sum is in the spool."""


class Intake:
    """Writes one edge's frames to disk; an update is never in memory as a whole."""

    def __init__(
        self,
        receiver: Receiver,
        signatures: SignatureCheck,
        devices: Mapping[str, DeviceContract],
    ) -> None:
        """`devices` are those that the edge may speak for at the moment."""
        self._receiver = receiver
        self._signatures = signatures
        self._devices = devices
        self._part: Part | None = None
        self._passing_over = False

    @property
    def device(self) -> str | None:
        """Whose part is coming in."""
        return None if self._part is None else self._part.header.device

    def pass_over(self, passing_over: bool = True) -> None:
        """Whether further frames of the adapter that comes are not kept."""
        self._passing_over = passing_over

    def take(self, frame: tensor_pb2.AdapterFrame) -> None:
        """Write a frame to disk. Raises ProtocolError, NotSigned, DiskError."""
        if self._passing_over and not frame.HasField("header"):
            return
        self._passing_over = False
        if frame.HasField("header"):
            self._begin(frame.header)
        if self._part is None:
            raise ProtocolError("an adapter frame without a header before it")
        with on_disk(self._receiver.spool.folder):
            self._part.write(frame.data)
            if not frame.last:
                return
            part, self._part = self._part, None
            part.close(partial(self._signatures.update, part.header))
        self._receiver.update_received(words.from_update_header(part.header))

    def _begin(self, header: tensor_pb2.AdapterHeader) -> None:
        if self._part is not None:
            raise ProtocolError("a new adapter began before the last frame of the one before")
        self._devices[header.device].part(header, header.side, self._receiver.adapter_limit)
        with on_disk(self._receiver.spool.folder):
            self._part = self._receiver.spool.begin(header)

    def drop(self) -> None:
        """Forget what has come of a part."""
        if self._part is not None:
            self._part.drop()
            self._part = None


class SumIntake:
    """Writes one edge's sums to disk: those that it was asked for on this stream, once each."""

    def __init__(self, edge: str, receiver: Receiver) -> None:
        self._edge = edge
        self._receiver = receiver
        self._part: Part | None = None
        self._asked: set[tuple[int, int]] = set()

    def ask(self, round_: int, number: int) -> None:
        """The order of that number goes out."""
        self._asked.add((round_, number))

    def take(self, frame: tensor_pb2.AdapterFrame) -> None:
        """Write a frame to disk. Raises ProtocolError, DiskError."""
        with on_disk(self._receiver.spool.folder):
            if frame.HasField("header"):
                self._begin(frame.header)
            if self._part is None:
                raise ProtocolError("a frame of a sum without a header before it")
            self._part.write(frame.data)
            if not frame.last:
                return
            part, self._part = self._part, None
            part.close()
        self._receiver.sum_received(self._edge, part.header.round, part.header.number)

    def _begin(self, said: tensor_pb2.AdapterHeader) -> None:
        if self._part is not None:
            raise ProtocolError("a new sum began before the last frame of the one before")
        if (said.round, said.number) not in self._asked:
            raise ProtocolError(f"sum {said.number} of round {said.round} was not asked for")
        self._asked.discard((said.round, said.number))
        most = 2 * self._receiver.adapter_limit  # float64
        contract.whole("num_bytes of a sum", said.num_bytes, 0, most)
        self._part = self._receiver.spool.begin_sum(self._edge, said)

    def drop(self) -> None:
        """Forget what has come of a sum."""
        if self._part is not None:
            self._part.drop()
            self._part = None
