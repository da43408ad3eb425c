"""Exit codes of nodes whose run has failed, for engines that start again who exits with another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house.fleets import LOST_IS_LOST, fleet
from tests.house.nodes import ByHand
from tests.house.waiting import PATIENCE, until

pytestmark = pytest.mark.process


class Supervised(ByHand):
    """Nodes that an engine watches."""

    def options(self, name: str) -> list[str]:
        return ["--resume", "auto"] if name == "cloud" else ["--supervised"]


@pytest.mark.parametrize(("kind", "code"), [(Supervised, 0), (ByHand, 1)])
def test_who_hears_that_the_run_has_failed_ends_as_its_engine_wants_it(
    tmp_path: Path, kind: type[ByHand], code: int
) -> None:
    values = fleet(tmp_path, 2, run={"min_devices": 2}, **LOST_IS_LOST)
    for device in values["devices"]:  # so that no part of round 1 is done when one is killed
        device["link"] = {"delay_ms": 40}
    nodes = kind(tmp_path, values)
    try:
        stays, lost = nodes.device(0), nodes.device(1)
        until(lambda: any(d["step"] > 2 for d in nodes.status().get("devices", ())), "a round")
        lost.kill()
        for node in (nodes.cloud, nodes.edge, stays):
            assert node.wait(PATIENCE) == code, nodes.log("edge") + nodes.log("d0")
        for name in ("cloud", "edge", "d0"):
            assert "round 1 closed with 1 of at least 2 devices" in nodes.log(name)
        # Who has nothing to do with the run's end ends as ever.
        again = nodes.device(0)
        assert again.wait(PATIENCE) == 1
        assert "did not answer" in nodes.log("d0")
    finally:
        nodes.stop()
