"""What an edge says to a device before it takes it in."""

from __future__ import annotations

import queue
import time

from sfl.errors import LinkLost, ProtocolError, RunFailed, RunIsOver
from sfl.metrics.waits import OpenWait
from sfl.stage.messages import Finish
from sfl.transport.device.line import Incoming, Line
from sfl.transport.frames import contract
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.whereabouts import from_elsewhere
from sfl.transport.frames.wire import wire_bytes
from sfl.transport.security.signed import DeviceSignatures
from sfl.v1 import edge_pb2

FEW_WAITING = 8
"""Messages for the caller that may wait beside its tensors' answers and what folds."""


LOOK = 1.0
"""Seconds after which a device that waits looks whether that is to be said."""


class Greeting:
    """What an edge may say before it takes a device in."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def take(self, message: Incoming) -> bool:
        """Pass it on to who waits; whether more is to come before the welcome."""
        body = message.WhichOneof("body")
        if isinstance(message, Frame) or body in ("start", "adapter", "norm"):
            raise ProtocolError("the edge spoke of a round before it said welcome")
        self._line.stats.bytes.add("down", "control", wire_bytes(message))
        if body == "welcome":
            self._line.keep(message.welcome, FEW_WAITING)
            return False
        if body == "challenge":
            self._line.keep(message.challenge, FEW_WAITING)
        elif body == "elsewhere":
            self._line.keep(from_elsewhere(message.elsewhere), FEW_WAITING)
        elif body == "finish":
            self._line.keep(finish_of(message.finish), FEW_WAITING)
        elif body != "heartbeat":
            raise ProtocolError("an empty message, or one of another wire version")
        return True


def await_welcome(line: Line, signatures: DeviceSignatures, patience: float) -> edge_pb2.Welcome:
    """Wait to be taken in. Raises RunIsOver, RunFailed where the run has ended meanwhile, Elsewhere
    where another edge is to be dialled."""
    waits = line.stats.waits
    with waits.on(line.peer, "admission", "to be let in", patience) as wait:
        return _taken_in(line, signatures, patience, wait)


def _taken_in(
    line: Line, signatures: DeviceSignatures, patience: float, wait: OpenWait
) -> edge_pb2.Welcome:
    while True:
        left = line.silence.last_heard + patience - time.monotonic()
        if left <= 0:
            raise LinkLost(f"{line.peer}: not a byte for {patience:g} s")
        wait.extend(left)
        line.stats.waits.say()
        try:
            said = line.wait(min(left, LOOK))
        except queue.Empty:
            continue
        if isinstance(said, Finish):
            raise RunIsOver(said.run_key) if said.ok else RunFailed(said.reason)
        if isinstance(said, edge_pb2.Challenge):
            line.post(edge_pb2.DeviceMessage(proof=signatures.proof(said)))
            continue
        if not isinstance(said, edge_pb2.Welcome):
            raise ProtocolError(f"{line.peer}: a welcome was expected")
        return said


def finish_of(said: edge_pb2.Finish) -> Finish:
    """The end of the run, as the edge tells it."""
    return Finish(said.ok, contract.reason(said.reason), contract.reason(said.run_key))
