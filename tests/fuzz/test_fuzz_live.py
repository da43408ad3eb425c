"""Mutated messages at live nodes, under TLS: the short form of `make fuzz`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz import device, live
from tests.fuzz.live import Arena


@pytest.fixture(scope="module")
def nodes() -> Iterator[Arena]:
    """A run of two honest devices."""
    with live.arena() as nodes:
        yield nodes


@pytest.mark.process
@pytest.mark.parametrize("kind", ["edge", "cloud"])
def test_whatever_a_peer_with_a_certificate_says_the_others_run_goes_on(
    nodes: Arena, kind: str
) -> None:
    line, problems = live.live(kind, 300, 5, nodes)
    assert not problems, line


@pytest.mark.process
def test_whatever_an_edge_says_its_device_ends_with_a_reason() -> None:
    line, problems = device.live(100, 5)
    assert not problems, line
