"""A trainer and a session over two ends give the adapter of a stream over gRPC, and of no split."""

from __future__ import annotations

import numpy as np
import pytest

from sfl.errors import ProtocolError
from tests.house.alone import Alone
from tests.house.reference import assert_same_bits

EXACT = {"activation": "none", "gradient": "none"}
DELTA = {
    "activation": "delta(bigram) | uniform(0.25, dither) | rans",
    "gradient": "uniform(2, dither) | rans",
    "adapter": "stochastic(8) | zstd",
}


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_uncoded_it_is_the_adapter_of_the_unsplit_model_and_of_grpc(topology: str) -> None:
    run = Alone(topology, EXACT)
    found = run.over_ends()
    assert any(not np.array_equal(found[name], run.first[name]) for name in found)
    assert_same_bits(found, run.unsplit())
    assert_same_bits(found, run.over_grpc())


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_norms_are_exchanged_as_over_grpc(topology: str) -> None:
    run = Alone(topology, EXACT, max_grad_norm=0.5)
    found = run.over_ends()
    assert_same_bits(found, run.over_grpc())
    for name, wanted in run.unsplit().items():  # which adds up its norm in another order
        np.testing.assert_allclose(found[name], wanted, atol=1e-5)


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_what_codecs_remember_is_the_same_as_over_grpc(topology: str) -> None:
    run = Alone(topology, DELTA)
    found = run.over_ends()
    assert_same_bits(found, run.over_grpc())
    exact = Alone(topology, EXACT).over_ends()
    assert any(not np.array_equal(found[name], exact[name]) for name in found)


def test_several_micro_batches_are_the_same_as_over_grpc() -> None:
    run = Alone("vanilla", EXACT, micro_batches=2)
    assert_same_bits(run.over_ends(), run.over_grpc())


def test_what_is_not_asked_is_not_answered() -> None:
    run = Alone("vanilla", EXACT)
    with pytest.raises(ProtocolError, match="nothing was asked"):
        run.ends(run.stage()).receive()
