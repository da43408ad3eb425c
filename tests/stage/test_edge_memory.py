"""What `benchmarks/edge_memory.py` measures does what it says, on a model that takes no time."""

from __future__ import annotations

import pytest

from benchmarks.edge_memory import Edge, one_base, sequential, splitfed
from sfl.stage.training import VanillaSession
from tests.house.fleets import tiny

MODEL = '{"num_hidden_layers": 4, "n_positions": 128}'


def trained(mode: str, edge: Edge) -> list[VanillaSession]:
    """Sessions after all steps; sequential SL has only the last one left."""
    if mode == "sl":
        return sequential(edge)
    return one_base(edge, 8) if mode == "ours" else splitfed(edge)


@pytest.mark.parametrize("mode", ["ours", "splitfed", "sl"])
def test_every_device_takes_all_steps(mode: str) -> None:
    edge = Edge(tiny("gpt2", MODEL), "gpt2", mode, 2, 2)
    sessions = trained(mode, edge)
    assert [session.device for session in sessions] == edge.names[-len(sessions) :]
    for session in sessions:
        assert session.steps_left == 0
        after = session.end_round()
        assert after and all((after[name] != edge.values[name]).any() for name in after)
