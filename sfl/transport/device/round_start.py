"""What a device is to do in a round, from the wire."""

from __future__ import annotations

from sfl.errors import ProtocolError
from sfl.stage.messages import RoundStart
from sfl.transport.frames.wire import EXTENTS
from sfl.v1 import edge_pb2

_KNOWN = {number: extent for extent, number in EXTENTS.items()}


def from_round_start(start: edge_pb2.RoundStart) -> RoundStart:
    """The same as a value. Raises ProtocolError for an extent that nobody knows."""
    extent = _KNOWN.get(start.evaluate)
    if extent is None:
        raise ProtocolError(f"round {start.round}: evaluation {start.evaluate} is not known")
    return RoundStart(
        start.round,
        extent,
        start.num_steps,
        start.first_step,
        start.total_steps,
        start.micro_batches,
        tuple(start.rehearse),
    )
