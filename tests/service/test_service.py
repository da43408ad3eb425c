"""A service computes runs as `sfl run` would, on agents that stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.federation import finished
from tests.house.reference import adapter, assert_same_bits
from tests.house.service import Served, run_of
from tests.house.twin import played
from tests.house.waiting import until

pytestmark = pytest.mark.process


class Real(Served):
    """Whose nodes are interpreters of their own."""

    program = "sfl.cli"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    service = Real(tmp_path)
    try:
        yield service
    finally:
        service.stop()


def test_two_runs_at_once_and_a_third_that_waits(served: Served, tmp_path: Path) -> None:
    before = served.attached()
    pids = {name: process.pid for name, process in served.processes.items()}
    # The first two take a while, so that the third is seen to wait also on a busy machine.
    seeds, rounds = {"one": 0, "two": 7, "three": 0}, {"one": 6, "two": 6, "three": 2}
    devices = {"one": ("d0",), "two": ("d1",), "three": ("d0", "d1")}
    for name, seed in seeds.items():
        run = {"seed": seed, "rounds": rounds[name]}
        assert served.submit(name, devices[name], run=run) == name
    waits = until(lambda: served.row("three")["waits"], "what the third run waits for")
    assert waits.startswith(("a place at", "the service")), waits
    rows = {row["run"]: row for row in served.json("list")}
    assert rows["three"]["state"] == "queued" and rows["three"]["waits_since"] > 0
    for name, seed in seeds.items():
        outcome = finished(served.ended(name))
        folder = tmp_path / f"{name}-alone"
        folder.mkdir()
        values = run_of(served.data, devices[name], run={"seed": seed, "rounds": rounds[name]})
        assert_same_bits(adapter(outcome), adapter(finished(played(folder, values))))
    assert {n: p.pid for n, p in served.processes.items() if p.poll() is None} == pids
    served.at_rest()
    kept = {(agent["name"], agent["attached_at"]) for agent in served.attached()}
    assert kept == {(agent["name"], agent["attached_at"]) for agent in before}
