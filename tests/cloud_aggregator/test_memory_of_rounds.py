"""A run may be long: of rounds that are over, the cloud's memory has next to nothing."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest

from sfl.errors import DiskError
from sfl.report.records import NodeRecord, RecordFile, RoundRecord, read_records
from tests.house.federation import finished
from tests.house.fleets import fleet
from tests.house.retold import assert_retold
from tests.house.twin import Twin


def records_in_memory() -> int:
    gc.collect()
    return sum(type(one) in (RoundRecord, NodeRecord) for one in gc.get_objects())


def test_records_of_rounds_that_are_over_are_on_the_disk_alone(tmp_path: Path) -> None:
    values = fleet(tmp_path, 2, run={"rounds": 8}, training={"local_steps": 1})
    twin = Twin(tmp_path, {**values, "evaluation": {"every": 1}})
    found = []

    async def story(twin: Twin) -> None:
        for number in (2, 8):
            await twin.until(lambda: twin.cloud.coordinator.round >= number)  # noqa: B023
            found.append(records_in_memory())

    outcome = finished(twin.run(story))
    assert found[1] - found[0] < 4, "each round has a record of each device, edge and cloud"
    assert len(read_records(outcome.folder / "metrics.jsonl")) == 9 * 2 + 8 * 2
    assert outcome.summary["best_round"] is not None
    assert_retold(outcome.folder, tmp_path / "retold")


def test_a_line_that_does_not_fit_leaves_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = fleet(tmp_path, 1, run={"rounds": 1}, training={"local_steps": 1})
    outcome = finished(Twin(tmp_path, values).run())
    record = read_records(outcome.folder / "metrics.jsonl")[0]
    path = tmp_path / "metrics.jsonl"
    with RecordFile(path) as file:
        file.append(record)
        whole = path.read_bytes()

        class Full:
            """It takes a few bytes, and then no more."""

            def __init__(self) -> None:
                self.left = 10

            def write(self, data: bytes) -> int:
                if not self.left:
                    raise OSError(28, "No space left on device")
                real.write(data[: self.left])
                self.left = 0
                return 10

            def __getattr__(self, name: str) -> object:
                return getattr(real, name)

        real = file._file
        monkeypatch.setattr(file, "_file", Full())
        with pytest.raises(DiskError):
            file.append(record)
        assert path.read_bytes() == whole
        monkeypatch.setattr(file, "_file", real)
        file.append(record)
    assert path.read_bytes() == 2 * whole and json.loads(whole)
