"""The short form of the fault matrix (`make test-faults` plays all of it)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.cells import SHORT
from tests.faults.lab import Cell, tried

pytestmark = pytest.mark.process


@pytest.mark.parametrize("cell", SHORT, ids=lambda cell: cell.name)
def test_a_node_that_is_killed_or_stopped_changes_no_bit(tmp_path: Path, cell: Cell) -> None:
    verdict = tried(tmp_path, cell)
    assert not verdict.wrong, "\n".join([*verdict.wrong, verdict.logs])
