"""The best cut of real models' graphs, against another solver; block by block it is no better."""

from __future__ import annotations

import pytest

from benchmarks.graphs.made import block_wise, seconds_of
from benchmarks.graphs.networks import MAKERS, arcs_of
from benchmarks.mincut import cases
from sfl.planners.graph import best_cut


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "vertices", "inputs"),
    [("ResNet-18", 71, 1), ("GoogLeNet", 113, 1), ("T5-small", 613, 2)],
)
def test_the_best_cut_of_an_exported_model_is_networkxs(name: str, vertices: int, inputs: int):
    """A residual model, one with four branches, and one with two inputs."""
    from benchmarks.graphs.exported import model_graph

    model = model_graph(name)
    graph = model.graph
    assert abs(len(graph) - vertices) <= 0.1 * vertices and model.held == 1 + inputs
    solve = MAKERS["networkx preflow_push"]()
    inside = 0
    for case in [*cases(model, 4)][-12:]:
        found, mine = best_cut(*case)
        assert found == pytest.approx(solve(*arcs_of(*case)), rel=1e-9)
        assert found == pytest.approx(seconds_of(*case, mine), rel=1e-9)
        assert found <= best_cut(*block_wise(*case))[0] * (1 + 1e-9)
        inside += model.held < len(mine) < len(graph)
    assert inside >= 4
