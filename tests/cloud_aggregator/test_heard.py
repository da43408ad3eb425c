"""What a cloud keeps of what edges say of others: the latest, and of few stages."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from cloud_aggregator.driver import Driver
from cloud_aggregator.host import EdgeHost
from sfl.errors import ProtocolError
from sfl.metrics.snapshot import NodeKind, NodeSnapshot
from sfl.plan import MOST_STAGES
from sfl.report.projection import RunProjection
from sfl.rounds.messages import NodeHeard
from sfl.transport.frames import contract


def a_host() -> tuple[EdgeHost, list[tuple[str, str]]]:
    """Hears edges; what it keeps."""
    kept: list[tuple[str, str]] = []
    driver: Any = MagicMock(heard=lambda own: kept.append((own.kind, own.name)))
    values = dict.fromkeys(
        ("coordinator", "records", "models", "adapter", "averaging"), MagicMock()
    )
    rest: dict[str, Any] = {**values, "edges": MagicMock(), "challenges": MagicMock()}
    host = EdgeHost(MagicMock(), driver=driver, stats=MagicMock(), run_id="r", run_key="k", **rest)
    return host, kept


def test_an_edge_makes_up_no_more_stages_than_plans_have(caplog: pytest.LogCaptureFixture) -> None:
    host, kept = a_host()
    for number in range(100):
        host.stage_heard("e", NodeSnapshot(f"s{number}", "stage"))
    host.stage_heard("e", NodeSnapshot("s0", "stage"))
    assert {name for _, name in kept} == {f"s{number}" for number in range(MOST_STAGES)}
    assert kept[-1] == ("stage", "s0") and len(kept) == MOST_STAGES + 1
    host.stage_heard("f", NodeSnapshot("other", "stage"))
    assert kept[-1] == ("stage", "other"), "what one edge says takes nothing from another one"
    assert 1 <= caplog.text.count("too many stages") <= 5


def test_a_stage_has_a_name_like_any_node() -> None:
    with pytest.raises(ProtocolError, match="a name has letters"):
        contract.stage_statistics(NodeSnapshot("a b", "stage").to_json())


def test_what_is_older_than_what_is_known_changes_nothing() -> None:
    told, journal = RunProjection(), []

    def keep(event: NodeHeard, now: float) -> None:
        journal.append(NodeSnapshot.from_json(event.snapshot).step)
        told.words.heard(NodeSnapshot.from_json(event.snapshot), now)

    def says(step: int, age: float, kind: NodeKind = "device") -> NodeSnapshot:
        return NodeSnapshot("d0", kind, taken_at=9e8, age=age, step=step)

    async def scene() -> None:
        coordinator, clock = MagicMock(tell=keep), SimpleNamespace(now=lambda: 100.0)
        nobody: Any = MagicMock()
        driver = Driver(
            coordinator,
            nobody,
            nobody,
            None,
            MagicMock(told=told),
            nobody,
            None,
            clock,  # type: ignore[arg-type]
        )
        driver.heard(says(7, age=0.0))
        driver.heard(says(3, age=25.0))  # as an edge knows it that it has left
        driver.heard(says(2, age=25.0, kind="edge"))
        driver.heard(says(8, age=0.0))

    asyncio.run(scene())
    assert journal == [7, 2, 8]
