"""Sums that an edge sends: only what was asked for, once, no larger than it may be, whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from cloud_aggregator.host import EdgeHost
from sfl.errors import ProtocolError
from sfl.rounds import UpdateReceived
from sfl.rounds.values import HeldUpdate, Length, UpdateHeader
from sfl.transport.cloud.intake import SumIntake
from sfl.transport.cloud.link import sum_messages
from sfl.transport.cloud.spool import Spool
from sfl.transport.frames.chunks import adapter_bytes


class Receiver:
    """Hears of sums."""

    def __init__(self, folder: Path, limit: int = 1 << 20) -> None:
        self.spool = Spool(folder)
        self.adapter_limit = limit
        self.heard: list[tuple[str, int, int]] = []

    def update_received(self, header: UpdateHeader) -> None:
        raise AssertionError(header)

    def sum_received(self, edge: str, round_: int, number: int) -> None:
        self.heard.append((edge, round_, number))


PAYLOAD = adapter_bytes({"w": np.arange(4096, dtype=np.float64)})


def taken(receiver: Receiver, *numbers: int, asked: tuple[int, ...] = (1, 2)) -> None:
    intake = SumIntake("north", receiver)
    for number in asked:
        intake.ask(3, number)
    for number in numbers:
        for message in sum_messages(3, number, PAYLOAD):
            intake.take(message.sum)


def test_a_sum_is_in_the_spool_by_its_number(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path)
    taken(receiver, 2, 1)  # an answer to an earlier order comes late, and takes no other's place
    assert receiver.heard == [("north", 3, 2), ("north", 3, 1)]
    for number in (1, 2):
        assert receiver.spool.sum_path(3, "north", number).read_bytes() == PAYLOAD
    assert receiver.spool.sum_path(3, "north", 1).name == "north.sum-1.safetensors"


@pytest.mark.parametrize(
    ("numbers", "said"), [((7,), "sum 7 of round 3"), ((1, 1), "sum 1 of round 3")]
)
def test_what_was_not_asked_for_is_not_taken(
    tmp_path: Path, numbers: tuple[int, ...], said: str
) -> None:
    with pytest.raises(ProtocolError, match=f"{said} was not asked for"):
        taken(Receiver(tmp_path), *numbers)


def test_a_sum_is_no_larger_than_float64_values_are(tmp_path: Path) -> None:
    half = len(PAYLOAD) // 2
    taken(Receiver(tmp_path, half + 1), 1)
    with pytest.raises(ProtocolError, match="num_bytes of a sum"):
        taken(Receiver(tmp_path, half - 1), 1)


def test_frames_out_of_order_are_refused_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfl.transport.frames.chunks.FRAME_BYTES", 10_000)
    receiver = Receiver(tmp_path)
    intake = SumIntake("north", receiver)
    intake.ask(3, 1)
    intake.ask(3, 2)
    first, second, *_ = sum_messages(3, 1, PAYLOAD)
    with pytest.raises(ProtocolError, match="without a header"):
        intake.take(second.sum)
    intake.take(first.sum)
    with pytest.raises(ProtocolError, match="a new sum began"):
        intake.take(sum_messages(3, 2, PAYLOAD)[0].sum)
    intake.drop()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert receiver.heard == []


def host(sums: str, bound: str = "auto") -> Any:
    own: Any = MagicMock()
    own._config.current.aggregation.sums = sums
    own._config.current.aggregation.max_update_norm = bound
    own._is_sound.return_value = True
    for name in ("update_held", "_may_stay"):
        setattr(own, name, getattr(EdgeHost, name).__get__(own))
    return own


LENGTH = Length(1.0, 2.0, 3)
PARTS = (UpdateHeader(2, "d", "device", 5), UpdateHeader(2, "d", "edge", 5))


def test_an_update_that_stays_at_its_edge_is_told_of_part_by_part() -> None:
    own = host("at_edges")
    own.update_held(HeldUpdate("d", PARTS, length=LENGTH))
    told = [call.args[0] for call in own._driver.happened.call_args_list]
    assert told == [UpdateReceived("d", side, 2, 5, LENGTH) for side in ("device", "edge")]
    own.device_broke.assert_not_called()


@pytest.mark.parametrize(
    ("sums", "length", "said"),
    [
        ("flat", LENGTH, "the run wants it here"),
        ("by_edge", LENGTH, "the run wants it here"),
        ("at_edges", None, "without its length"),
    ],
)
def test_an_update_that_is_kept_where_it_should_not_be_costs_its_device(
    sums: str, length: Length | None, said: str
) -> None:
    own = host(sums)
    own.update_held(HeldUpdate("d", PARTS, length=length))
    (device, reason), _ = own.device_broke.call_args
    assert device == "d" and said in reason
    own._driver.happened.assert_not_called()


def test_where_nothing_is_measured_no_length_is_due() -> None:
    own = host("at_edges", "off")
    own.update_held(HeldUpdate("d", PARTS))
    assert own._driver.happened.call_count == 2
