"""Edges and how far they are, to the wire and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sfl.errors import Elsewhere, ProtocolError
from sfl.rounds.values import RoundTrips
from sfl.transport.frames import contract
from sfl.v1 import edge_pb2, tensor_pb2

MOST_EDGES = 4096
"""That anybody tells of at once."""
MOST_SECONDS = 3600.0
LONGEST_ADDRESS = 300


def to_edges(edges: Mapping[str, str]) -> list[edge_pb2.EdgeAt]:
    """Addresses by name as the wire has them."""
    return [edge_pb2.EdgeAt(edge=name, address=edges[name]) for name in sorted(edges)]


def from_edges(said: Collection[edge_pb2.EdgeAt]) -> dict[str, str]:
    """Addresses by name from the wire. Raises ProtocolError."""
    contract.whole("edges", len(said), 0, MOST_EDGES)
    for own in said:
        contract.name("edge", own.edge)
        address_of(own.address)
    return {own.edge: own.address for own in said}


def address_of(text: str) -> str:
    """`host:port`, or nothing. Raises ProtocolError where it is neither."""
    if len(text) > LONGEST_ADDRESS or not text.isprintable():
        raise ProtocolError(f"{text!r:.80} is no address")
    return text


def to_elsewhere(elsewhere: Elsewhere) -> edge_pb2.Elsewhere:
    """Another edge, or several, as the wire has them."""
    return edge_pb2.Elsewhere(reason=str(elsewhere), edges=to_edges(elsewhere.edges))


def from_elsewhere(said: edge_pb2.Elsewhere) -> Elsewhere:
    """The same from the wire. Raises ProtocolError."""
    return Elsewhere(contract.reason(said.reason), from_edges(said.edges))


def to_round_trips(trips: RoundTrips) -> list[tensor_pb2.RoundTrip]:
    """Seconds by edge as the wire has them."""
    return [tensor_pb2.RoundTrip(edge=name, seconds=trips[name]) for name in sorted(trips)]


def from_round_trips(said: Collection[tensor_pb2.RoundTrip]) -> dict[str, float]:
    """Seconds by edge from the wire. Raises ProtocolError."""
    contract.whole("round trips", len(said), 0, MOST_EDGES)
    for own in said:
        contract.name("edge", own.edge)
        contract.number("seconds of a round trip", own.seconds, 0, MOST_SECONDS)
    return {own.edge: own.seconds for own in said}
