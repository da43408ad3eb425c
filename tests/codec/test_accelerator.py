"""An edge whose blocks lie on an accelerator: gradients are coded there, and only codes leave it.

On CUDA where there is one; elsewhere on a stand-in (tests/house/accelerator.py). It sees to it that
nothing of the accelerator's is read or mixed by accident, and counts what is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from sfl.codec.packet import Packet, is_finite
from sfl.codec.pipeline import Encoder, decode, parse
from sfl.codec.stages import names
from sfl.codec.transform import RowContext
from sfl.errors import ProtocolError
from tests.house.accelerator import DEVICE, OffHost, accelerator
from tests.house.sessions import outcome

ROWS, HIDDEN = 100, 72  # not whole blocks, nor whole bytes of a mask
GROUPS = (37, 63)

# Bytes of a value that may leave the accelerator, besides a scale a block and a flag a row.
LEAVES = {
    "none": 4.0,
    "fp16": 2.0,
    "bf16": 2.0,
    "int8": 1.0,
    "int(4)": 1.0,
    "int(3, row) | rans": 1.0,
    "stochastic(2) | zstd": 1.0,
    "uniform(0.5)": 1.0,
    "uniform(1, stochastic) | zstd": 1.0,
    "uniform(0.5, dither) | rans": 1.0,
    "topk(0.3) | stochastic(4) | zstd": 0.125 + 0.3,
    "topk(0.1, row) | int(4)": 0.125 + 0.1,
    "topk(0.2) | fp16": 0.125 + 0.4,
}
HAS_CUDA = torch.cuda.is_available()
needs_stand_in = pytest.mark.skipif(HAS_CUDA, reason="CUDA itself is there to be tested")
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device on this machine")


@pytest.fixture
def rows() -> torch.Tensor:
    values = torch.randn(ROWS, HIDDEN, generator=torch.Generator().manual_seed(3))
    values[:, 5] *= 40.0  # a massive channel: uniform needs escapes for it
    values[11] = 0.0
    return values


@contextmanager
def somewhere_else() -> Iterator[str]:
    """The accelerator there is."""
    if HAS_CUDA:
        yield "cuda:0"
        return
    with accelerator():
        yield str(DEVICE)


def wire(packet: Packet) -> bytes:
    pieces = getattr(packet.payload, "pieces", None)
    return b"".join(bytes(piece) for piece in pieces or [packet.payload])


def test_every_quantiser_and_sparsifier_is_tried() -> None:
    named = {spec.partition("(")[0].partition(" ")[0] for spec in LEAVES}
    leaving = {*names("quantiser"), "topk"}
    stages = {name for spec in LEAVES for name in leaving if name in spec}
    assert stages == leaving and named <= stages


@needs_stand_in
@pytest.mark.parametrize("spec", LEAVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_packet_and_only_codes_are_copied(
    spec: str, dtype: torch.dtype, rows: torch.Tensor
) -> None:
    rows = rows.to(dtype)
    wanted = Encoder(parse(spec)).encode(rows, 7, GROUPS)
    with accelerator() as device:
        there = rows.to(DEVICE)
        packet = Encoder(parse(spec)).encode(there, 7, GROUPS)
    assert wire(packet) == wire(wanted)
    values = (ROWS - 1) * HIDDEN
    leaves = values * (dtype.itemsize if spec == "none" else LEAVES[spec])
    # Scales are two bytes for at least 8 values; escapes are looked up one by one.
    besides = leaves / 8 + 4 * 0.02 * values + 16 * ROWS
    assert leaves <= device.copied <= leaves + besides


@pytest.mark.parametrize("spec", ["int8", "uniform(0.5)", "fp16", "topk(0.3) | int(4)"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_there_too(spec: str, bad: float, rows: torch.Tensor) -> None:
    rows[17, 3] = bad
    with somewhere_else() as device, pytest.raises(ProtocolError, match="NaN"):
        Encoder(parse(spec)).encode(rows.to(device), 7, GROUPS)


def test_delta_predicts_where_its_tables_are(rows: torch.Tensor) -> None:
    ids = np.arange(ROWS)
    context = RowContext(ids, ids, ids, ids)
    spec = "delta(token) | int(4)"
    wanted = Encoder(parse(spec)).encode(rows, 7, GROUPS, context)
    with somewhere_else() as device:
        packet = Encoder(parse(spec)).encode(rows.to(device), 7, GROUPS, context)
    assert wire(packet) == wire(wanted)


@needs_stand_in
def test_nothing_leaves_the_stand_in_unnoticed() -> None:
    with accelerator() as device:
        there = torch.ones(3, 2).to(DEVICE)
        assert isinstance(there, OffHost) and isinstance(there * 2.0, OffHost)
        with pytest.raises(AssertionError, match="mixes"):
            there + torch.ones(3, 2)
        with pytest.raises(AssertionError, match="mixes"):
            torch.ones(3, 2)[there > 0]
        with pytest.raises((TypeError, RuntimeError, AssertionError)):
            there.numpy()
        assert device.copied == 0
        assert there.sum().item() == 6.0
        assert torch.equal(there.cpu(), torch.ones(3, 2)) and device.copied == 24
    with pytest.raises(AssertionError, match="switched off"):
        there + there


CASES = [
    ("llama", "vanilla", "lean", "causal_lm"),
    ("gpt2", "vanilla", "reference", "causal_lm"),
    ("gemma2", "u_shaped", "lean", "causal_lm"),
    ("gpt2", "u_shaped", "reference", "causal_lm"),
    ("llama", "vanilla", "lean", "sequence_classification"),
]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_session_there_answers_with_gradients_that_lie_there(case: tuple[str, ...]) -> None:
    wanted, wanted_state = outcome(*case)
    with somewhere_else() as device:
        replies, state = outcome(*case, device=device)
        answers = [(rows, rows.cpu(), loss) for rows, loss in replies]
    for (rows, values, loss), (expected, expected_loss) in zip(answers, wanted, strict=True):
        assert not rows.is_cpu
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
    assert state.keys() == wanted_state.keys()
    for name, array in state.items():
        # AdamW's first step makes one size of every gradient, however small.
        np.testing.assert_allclose(array, wanted_state[name], rtol=1e-3, atol=2e-4)


@needs_cuda
@pytest.mark.parametrize("spec", LEAVES)
def test_on_cuda_the_error_is_within_the_same_bound(spec: str, rows: torch.Tensor) -> None:
    plain, there = (
        decode(Encoder(parse(spec)).encode(values, 7, GROUPS), (ROWS, HIDDEN))
        for values in (rows, rows.to("cuda:0"))
    )
    assert is_finite(there)
    if parse(spec).exact:
        assert torch.equal(there, rows)
    # A code may differ where rounding was a matter of the last bit: then by one step. A step that
    # is measured (uniform) may be another in its last bit.
    assert (there - rows).abs().max() <= 1.01 * (plain - rows).abs().max() + 1e-6
    assert torch.isclose(there, plain, rtol=1e-5, atol=1e-6).float().mean() >= 0.99
