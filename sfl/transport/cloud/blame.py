"""Why a device was lost, as its edge tells the cloud: whether that is the device's own fault."""

from __future__ import annotations

from sfl.errors import AdapterRefused, FellSilent, Goodbye, LeftBehind, ProtocolError, SflError
from sfl.rounds.messages import Cause
from sfl.v1 import cloud_pb2

_ON_THE_WIRE: dict[Cause, cloud_pb2.Cause] = {
    "link": cloud_pb2.CAUSE_LINK,
    "silence": cloud_pb2.CAUSE_SILENCE,
    "offence": cloud_pb2.CAUSE_OFFENCE,
    "adapter": cloud_pb2.CAUSE_ADAPTER,
    "left": cloud_pb2.CAUSE_LEFT,
    "stuck": cloud_pb2.CAUSE_STUCK,
}
_OF_THE_WIRE = {number: cause for cause, number in _ON_THE_WIRE.items()}


def on_the_wire(cause: Cause) -> cloud_pb2.Cause:
    """A cause as the wire has it."""
    return _ON_THE_WIRE[cause]


def cause_told(number: int) -> Cause:
    """What an edge said; what it cannot say is no strike."""
    return _OF_THE_WIRE.get(number, "link")  # type: ignore[call-overload, no-any-return]


def blamed(error: SflError) -> Cause:
    """What the error that ended a device's stream says of the device."""
    match error:
        case AdapterRefused():
            return "adapter"
        case ProtocolError():
            return "offence"
        case FellSilent():
            return "silence"
        case LeftBehind():
            return "stuck"
        case Goodbye(returns=False):
            return "left"
        case _:
            return "link"
