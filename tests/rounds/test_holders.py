"""A plan with a third holder: its part of an update is due as the others' are, and nobody else's.

No topology of today has one; what takes parts of updates asks the plan, so it need not change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sfl.config import RunSettings
from sfl.errors import ProtocolError
from sfl.plan import Held, Plan, Span
from sfl.rounds import Aggregate, DeviceJoined, DeviceReady, EdgeReady, StartRound, UpdateReceived
from sfl.rounds.assignment import assign
from sfl.rounds.coordinator import Coordinator
from sfl.rounds.messages import ReportReceived
from sfl.rounds.values import EdgeBase, Steps
from sfl.transport.cloud.spool import Spool
from sfl.transport.frames.contract import DeviceContract
from sfl.v1 import tensor_pb2

DEEP: Any = "deep"
PLAN = Plan(
    (
        Held(Span(0, 1, embedding=True, head=False), "device"),
        Held(Span(1, 2, embedding=False, head=False), "edge"),
        Held(Span(2, 3, embedding=False, head=True), DEEP),
    )
)


@pytest.fixture(autouse=True)
def three_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device of a run is cut so."""
    monkeypatch.setattr(RunSettings, "plan", lambda self, device, num_layers: PLAN)


def settings() -> RunSettings:
    return RunSettings.model_validate(
        {
            "model": {"path": "m"},
            "run": {"rounds": 1},
            "training": {"local_steps": 5, "batch_size": 4},
            "devices": [{"name": "d"}],
        }
    )


def header(side: str, num_bytes: int = 1) -> tensor_pb2.AdapterHeader:
    return tensor_pb2.AdapterHeader(round=1, device="d", side=side, num_bytes=num_bytes)


def test_the_plan_names_them_in_its_order() -> None:
    assert PLAN.holders == ("device", "edge", "deep")


def test_each_holder_s_part_is_due_once_and_nobody_else_s() -> None:
    contract = DeviceContract("d", settings())
    contract.begin(assign(settings(), EdgeBase(3), "d", 1, steps=Steps(5, 0, 5)))
    for side in PLAN.holders:
        contract.part(header(side), side, 10)
        with pytest.raises(ProtocolError, match=f"the {side}'s part of round 1 came twice"):
            contract.part(header(side), side, 10)
    with pytest.raises(ProtocolError, match="no adapter of side 'cellar' is expected"):
        contract.part(header("cellar"), "cellar", 10)


def test_the_spool_keeps_a_file_for_each(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    for side in PLAN.holders:
        part = spool.begin(header(side))
        part.write(side[:1].encode())
        part.close()
    files = spool.files(1, "d", PLAN.holders)
    assert [file.read_bytes() for file in files] == [b"d", b"e", b"d"]
    assert len(set(files)) == 3


@pytest.mark.parametrize("side", ["", ".", "..", "../x", "a/b", "a\0"])
def test_a_side_that_becomes_a_path_leads_nowhere(tmp_path: Path, side: str) -> None:
    with pytest.raises(ProtocolError, match="is expected"):
        Spool(tmp_path / "spool").begin(header(side))
    assert not (tmp_path / "spool").exists()


def test_a_round_closes_once_all_three_parts_are_there() -> None:
    coordinator = Coordinator(settings(), 0.0)
    coordinator.handle(EdgeReady("e", 3), 0.0)
    coordinator.handle(DeviceJoined("d", "e"), 0.0)
    (start,) = coordinator.handle(DeviceReady("d", 10), 0.0)
    assert isinstance(start, StartRound)
    assert coordinator.handle(ReportReceived("d", 1), 1.0) == []
    commands = [coordinator.handle(UpdateReceived("d", side, 1, 5), 1.0) for side in PLAN.holders]
    assert commands == [[], [], [Aggregate(1, {"d": 10})]]
