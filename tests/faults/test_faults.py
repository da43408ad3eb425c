"""Short forms of the fault matrix (`make test-faults`) and of chaos (`make test-chaos`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.cells import SHORT
from tests.faults.chaos import chaos
from tests.faults.lab import Fault, tried

pytestmark = pytest.mark.process


@pytest.mark.parametrize("cell", SHORT, ids=lambda cell: cell.name)
def test_a_node_that_is_killed_or_stopped_changes_no_bit(tmp_path: Path, cell: Fault) -> None:
    verdict = tried(tmp_path, cell)
    assert not verdict.wrong, "\n".join([*verdict.wrong, verdict.logs])


@pytest.mark.parametrize("seed", [1, 2])
def test_random_kills_change_no_bit(tmp_path: Path, seed: int) -> None:
    verdict, _ = chaos(tmp_path, 3, seed)
    assert not verdict.wrong, "\n".join([*verdict.wrong, verdict.logs])
