"""Updates that stay at their edge, and sums over them: values, and the wire's messages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from sfl.rounds.values import HeldUpdate, Length, Share, SumOrder
from sfl.transport.frames import contract, words
from sfl.v1 import cloud_pb2

MOST_LONG = 1e200
"""No finite float32 values are as long as that."""
SUM = "sum"
"""The side of a sum: no holder of a plan is called so."""


def to_held(held: HeldUpdate) -> cloud_pb2.HeldUpdate:
    """An update that stays at its edge, as the wire has it."""
    own = held.length
    length = None
    if own is not None:
        length = cloud_pb2.Length(norm=own.norm, start=own.start, values=own.values)
    parts = map(words.to_update_header, held.parts)
    return cloud_pb2.HeldUpdate(device=held.device, parts=parts, digest=held.digest, length=length)


def from_held(said: cloud_pb2.HeldUpdate) -> HeldUpdate:
    """An update that stays at its edge, from the wire. Raises ProtocolError."""
    length = None
    if said.HasField("length"):
        contract.number("norm of an update", said.length.norm, 0, MOST_LONG)
        contract.number("start of an update", said.length.start, 0, MOST_LONG)
        length = Length(said.length.norm, said.length.start, said.length.values)
    parts = tuple(words.from_update_header(part) for part in said.parts)
    return HeldUpdate(said.device, parts, said.digest, length)


def to_order(order: SumOrder) -> cloud_pb2.Reduce:
    """What an edge is to add up, as the wire has it."""
    shares = (
        cloud_pb2.Share(device=name, weight=own.weight, factor=own.factor)
        for name, own in order.shares.items()
    )
    return cloud_pb2.Reduce(round=order.round, number=order.number, shares=shares)


def from_order(said: cloud_pb2.Reduce) -> SumOrder:
    """What an edge is to add up, from the wire. Raises ProtocolError."""
    for share in said.shares:
        contract.whole("weight of an update", share.weight, 1, (1 << 64) - 1)
        contract.number("factor of an update", share.factor, 0, 1)
    shares = {one.device: Share(one.weight, one.factor) for one in said.shares}
    return SumOrder(said.round, said.number, shares)


def to_kept(keeps: Mapping[str, int]) -> Iterable[cloud_pb2.KeptUpdate]:
    """Of which devices and rounds an edge keeps updates, as the wire has it."""
    return (cloud_pb2.KeptUpdate(device=name, round=own) for name, own in keeps.items())


def from_kept(said: Collection[cloud_pb2.KeptUpdate]) -> dict[str, int]:
    """Of which devices and rounds an edge keeps updates, from the wire."""
    return {one.device: one.round for one in said}
