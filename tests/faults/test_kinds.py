"""Each kind of message of the wire is cut in its middle by a cell of the fault matrix."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor

from sfl.v1 import cloud_pb2, edge_pb2, tensor_pb2
from tests.faults.cells import ALL
from tests.faults.links import Torn
from tests.faults.setup import Hop
from tests.house.paths import ROOT
from tests.house.proxy import Way

CUT = {(cell.kind, cell.way, cell.hop) for cell in ALL if isinstance(cell, Torn)}
SESSIONS: tuple[tuple[Descriptor, Way, tuple[Hop, ...]], ...] = (
    (edge_pb2.DeviceMessage.DESCRIPTOR, "up", ("device", "stage")),
    (edge_pb2.EdgeMessage.DESCRIPTOR, "down", ("device", "stage")),
    (cloud_pb2.EdgeReportMessage.DESCRIPTOR, "up", ("cloud",)),
    (cloud_pb2.CloudMessage.DESCRIPTOR, "down", ("cloud",)),
)
"""The streams, and where they are."""
SERVICES: dict[str, Hop] = {"Edge": "device", "Stage": "stage", "Cloud": "cloud"}
NEVER = {
    ("gradient of evaluation", "up"),
    ("gradient of evaluation", "down"),
    ("score of training", "up"),
    ("score of training", "down"),
    ("score of evaluation", "up"),
}
"""Tensors that there are not: evaluation has no gradient, and only the loss's side has scores."""


def tensors() -> Iterator[str]:
    """All kinds with all purposes."""
    for kind in tensor_pb2.TensorKind.DESCRIPTOR.values[1:]:
        for purpose in tensor_pb2.Purpose.DESCRIPTOR.values[1:]:
            name = kind.name.removeprefix("TENSOR_KIND_").lower()
            yield f"{name} of {purpose.name.removeprefix('PURPOSE_').lower()}"


def kinds() -> Iterator[tuple[str, Way, tuple[Hop, ...]]]:
    """What there is, by the files that define it; with the hops on one of which it is cut."""
    for message, way, hops in SESSIONS:
        for field in message.oneofs_by_name["body"].fields:
            if field.name != "tensor":
                yield field.name, way, hops
                continue
            yield from ((own, way, hops) for own in tensors() if (own, way) not in NEVER)
    for file in (edge_pb2, cloud_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            hop = SERVICES[service.name]
            for method in service.methods:
                if method.name != "Session":
                    yield f"{method.name} request", "up", (hop,)
                    yield f"{method.name} answer", "down", (hop,)


@pytest.mark.parametrize(("kind", "way", "hops"), [*kinds()], ids=str)
def test_each_kind_of_message_is_cut_by_a_cell(kind: str, way: Way, hops: tuple[Hop, ...]) -> None:
    assert any((kind, way, hop) in CUT for hop in hops), "add a cell to tests/faults/links.py"


def test_each_cell_has_a_name_of_its_own() -> None:
    names = [cell.name for cell in ALL]
    assert len(names) == len(set(names))


def test_the_page_of_figures_has_a_row_for_each_cell() -> None:
    lines = (ROOT / "docs/figures/reliability.md").read_text().splitlines()
    rows = [line[2:].split(" | ")[0] for line in lines if line.endswith("| equal | holds |")]
    assert sorted(rows) == sorted(cell.name for cell in ALL), "play those that are new"


def test_each_stream_of_the_contract_is_looked_at() -> None:
    services = [*edge_pb2.DESCRIPTOR.services_by_name, *cloud_pb2.DESCRIPTOR.services_by_name]
    assert set(services) == set(SERVICES)
