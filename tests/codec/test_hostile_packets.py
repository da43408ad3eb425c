"""Packets that lie about their lengths: refused by both kernels, in words, without a crash."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfl.codec
from sfl.codec.compiled.calls import MISFIT
from sfl.codec.kernel import kernel
from sfl.codec.pipeline import Decoder, Encoder, decode, parse
from sfl.codec.transform import RowContext
from sfl.errors import ProtocolError
from tests.fuzz import packets
from tests.fuzz.packets import SEGMENTS, SPECS


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def both_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("SFL_KERNEL", request.param)
    kernel.cache_clear()
    if kernel().name != request.param:
        pytest.skip("no compiled kernel in this installation")
    yield request.param
    kernel.cache_clear()


@pytest.mark.parametrize("lengths", SEGMENTS)
def test_lengths_of_segments_are_bounded_by_what_there_is(lengths: tuple[int, ...]) -> None:
    """Sums of lengths come round to small numbers in 64 bits, and words lie far away then."""
    with pytest.raises(ProtocolError, match="codec rans: words are missing"):
        decode(packets.wrapped_lengths(lengths))


@pytest.mark.parametrize("spec", SPECS)
def test_every_number_of_a_packet_at_its_extremes(spec: str) -> None:
    """Alone and in pairs; what is around a lie is what an honest sender would write around it."""
    case = next(c for c in packets.cases(0) if c.spec == spec and c.rows.shape == (3, 40))
    taken = [packets.check(packet) for packet in packets.lies(case, 60, random.Random(1))]
    assert len(taken) > 60 and not all(taken)
    assert packets.check(case.packet())


def test_mutated_packets_are_refused_or_decode() -> None:
    taken = [*packets.fuzz(1500, seed=3), *packets.fuzz_numbers(500, seed=4)]
    assert 0 < sum(taken) < len(taken)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if "delta" in spec])
def test_rows_of_another_width_than_before_are_refused(spec: str) -> None:
    """What is remembered of rows has one width."""
    narrow, wide = (packets.Case(spec, torch.randn(3, width)).packet() for width in (16, 24))
    decoder = Decoder()
    assert decoder.decode(narrow).shape == (3, 16)
    with pytest.raises(ProtocolError, match="rows of 24 values, after rows of 16"):
        decoder.decode(wide)


@pytest.mark.parametrize("spec", ["int(3, 16) | zstd", "int8", "stochastic(8) | rans"])
def test_a_scale_at_the_end_of_float32_gives_finite_values(spec: str) -> None:
    """A scale is rounded up, so that L of the largest one are more than float32 holds."""
    rows = torch.tensor([[3.4e38, -3.4e38, 1e38, 0.0] * 8])
    decoded = decode(packets.Case(spec, rows).packet())
    assert bool(decoded.isfinite().all())
    assert decoded[0, 0] > 3e38 and decoded[0, 1] < -3e38


def test_rows_that_add_up_to_infinity_are_refused() -> None:
    """What came is added to what is remembered: here of another sender's packet."""
    large, small = torch.full((3, 16), 3e38), torch.ones(3, 16)
    known = RowContext(*(np.arange(3) for _ in range(4)))
    one, other = (Encoder(parse("delta(token, 64) | int8")) for _ in range(2))
    other.encode(small, 7, (3,), known)
    decoder = Decoder()
    assert bool(decoder.decode(one.encode(large, 7, (3,), known)).isfinite().all())
    with pytest.raises(ProtocolError, match="codec delta: a value is NaN or infinite"):
        decoder.decode(other.encode(large, 7, (3,), known))


def _library() -> Any:
    path = next(Path(sfl.codec.__file__).parent.glob("_kernel*.so"), None)
    if path is None:
        pytest.skip("no compiled kernel in this installation")
    return ctypes.CDLL(str(path))


def test_the_kernel_looks_before_it_reads(both_kernels: str) -> None:
    """In C as well: whoever calls it with lengths that do not fit gets a status, not memory."""
    if both_kernels != "compiled":
        pytest.skip("of the compiled kernel")
    library, long, number = _library(), ctypes.c_int64, ctypes.c_int32
    room = np.zeros(4096, np.uint8)
    at, threads = ctypes.c_void_p(room.ctypes.data), number(1)
    slots = np.array([0, 4, -1, 2**40])

    def slot(index: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(slots[index:].ctypes.data)

    misfits = [
        library.sfl_dequantise_blocks(at, at, long(1), long(65), long(64), number(1), at, threads),
        library.sfl_dequantise_blocks(
            at, at, long(1), long(2**62), long(2), number(1), at, threads
        ),
        library.sfl_unpack_bits(at, long(1), long(9), number(4), at, threads),
        library.sfl_unpack_bits(at, long(9), long(9), number(9), at, threads),
        library.sfl_unpack_radix(at, long(2), long(16), number(3), number(5), at, threads),
        library.sfl_unpack_radix(at, long(2), long(2), number(0), number(1), at, threads),
        library.sfl_expand(at, long(2), at, long(1), long(16), at),  # no ones for the one value
        library.sfl_expand(at, long(1), at, long(0), long(16), at),
        library.sfl_gather_rows(at, long(4), slot(1), long(1), long(4), at),
        library.sfl_gather_rows(at, long(4), slot(2), long(1), long(4), at),
        library.sfl_move_rows(at, at, long(4), long(4), slot(3), at, long(1), ctypes.c_float(0.1)),
    ]
    words = ctypes.c_void_p(np.zeros(64, np.uint16).ctypes.data)
    table = np.zeros((1, 256), np.uint16)
    table[0, 0] = 4096

    def decodes(starts: list[int], rows: int = 1, columns: int = 4, contexts: int = 1) -> int:
        given = np.array(starts, np.int64)
        status: int = library.sfl_rans_decode(
            words, long(8), ctypes.c_void_p(given.ctypes.data), long(rows), long(columns), at,
            long(1), number(1), number(contexts), ctypes.c_void_p(table.ctypes.data), number(2),
            number(len(starts) - 1), at, threads,
        )  # fmt: skip
        return status

    misfits += [
        decodes([0, 9]),
        decodes([0, 7]),
        decodes([0, 2**40, 8]),
        decodes([0, -1, 8]),
        decodes([-8, 8]),
        decodes([0, 8], rows=2),
        decodes([0, 8], rows=2**62),
        decodes([0, 8], contexts=0),
    ]
    assert misfits == [MISFIT] * len(misfits)
