"""Round trips, bounds, two kernels with the same bytes, and what hostile packets meet."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tracemalloc
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import sfl.codec
from benchmarks.codec_speed import compile_kernel
from sfl.codec.integers import pack_integers, pack_labels, unpack_integers, unpack_labels
from sfl.codec.kernel import Kernel, kernel
from sfl.codec.memory import DeltaReceiver, DeltaSender, Directory
from sfl.codec.packet import Packet, symbol_bits
from sfl.codec.pipeline import Decoder, Encoder, decode, parse
from sfl.codec.rans import frequencies_of
from sfl.codec.spec import GRADIENT_PRESETS, PRESETS
from sfl.codec.stages import STAGES, is_exact
from sfl.codec.torch_kernel import TorchKernel, uniform
from sfl.codec.transform import RowContext
from sfl.codec.zstd import group_of
from sfl.errors import ConfigError, ProtocolError
from tests.house import kernel_bytes, packet_bytes

BITS = range(2, 9)
LOSSY = [
    "int8",
    *(f"int({b})" for b in BITS),
    *(f"stochastic({b})" for b in BITS),
    "int(4, row)",
    "int(3, 16)",
    "uniform(0.5)",
    "uniform(0.5, stochastic)",
    "uniform(0.5, dither)",
]
SPECS = [
    first + rest
    for first in ("none", "fp16", "bf16", *LOSSY)
    for rest in ("", " | zstd", " | rans")
] + ["topk(0.3) | stochastic(4) | zstd", "topk(0.1, row) | int(4) | rans", "topk(0.5) | fp16"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
pure = settings(
    deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("spec", packet_bytes.SPECS)
def test_packets_keep_every_byte(spec: str) -> None:
    assert packet_bytes.digest(spec) == packet_bytes.DIGESTS[spec]


def bits(values: torch.Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).numpy().tobytes()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_of(
    largest: float = 2.0**100, dtype: torch.dtype = torch.float32
) -> st.SearchStrategy[torch.Tensor]:
    """Tensors `[1..6, 1..9]` with zeros of both signs and denormals among the values."""
    value = st.floats(-largest, largest, width=32, allow_nan=False, allow_subnormal=True)
    return st.tuples(st.integers(1, 6), st.integers(1, 9)).flatmap(
        lambda shape: st.lists(
            value, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]
        ).map(lambda flat: torch.tensor(flat, dtype=dtype).reshape(shape))
    )


# -- what comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["none", "none | zstd", "none | rans"])
@pytest.mark.parametrize("dtype", DTYPES)
@pure
@given(data=st.data())
def test_none_returns_the_same_bits(spec: str, dtype: torch.dtype, data: st.DataObject) -> None:
    rows = data.draw(rows_of(largest=60000.0, dtype=dtype))
    packet = parse(spec).encode(rows)
    back = decode(packet)
    assert back.dtype == dtype and back.shape == rows.shape
    assert bits(back) == bits(rows)
    assert packet.raw_bytes == 4 * rows.numel()


def test_none_keeps_the_sign_of_zero_and_denormals() -> None:
    rows = torch.tensor([[-0.0, 0.0, 1e-45, -1e-40, 3.4e38], [-0.0] * 5, [0.0] * 5])
    assert bits(decode(parse("none").encode(rows))) == bits(rows)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packet_describes_itself_and_is_deterministic(spec: str, dtype: torch.dtype) -> None:
    rows = normal(33, 24).to(dtype)
    rows[5:9] = 0.0
    packet = parse(spec).encode(rows, 7, (20, 13))
    assert packet == parse(spec).encode(rows.clone(), 7, (20, 13))
    assert packet.codec == spec == parse(packet.codec).spec
    back = decode(packet, shape=(33, 24))
    assert back.dtype == dtype and back.shape == rows.shape
    assert not back[5:9].any()
    assert float((back - rows).norm() / rows.norm()) < 1.2


@pytest.mark.parametrize("spec", LOSSY)
@pure
@given(rows=rows_of(), key=st.integers(0, 2**32 - 1))
@example(rows=torch.tensor([[1.0, 0.0], [0.0, 1.1141e-27]]), key=0)
def test_the_error_stays_within_its_bound(spec: str, rows: torch.Tensor, key: int) -> None:
    codec = parse(spec)
    back = decode(codec.encode(rows, key)).double()
    error = (back - rows.double()).abs()
    if spec.startswith("uniform"):
        nonzero = rows[rows.abs().amax(1) > 0]
        columns = torch.linalg.vector_norm(nonzero.double(), dim=0) if len(nonzero) else None
        if columns is None:
            assert not back.any()
            return
        scale = float(columns.median()) or float(columns.max())
        step = max(0.5 * scale / len(nonzero) ** 0.5, 2.0**-120)
        whole = 1.0 if "stochastic" in spec else 0.5
        assert float(error.max()) <= step * whole * (1 + 1e-4) + float(rows.abs().max()) * 2.0**-20
        return
    levels = 2 ** (int(spec[spec.index("(") + 1]) - 1) - 1 if "(" in spec else 127
    largest = float(rows.abs().max())
    whole = 1.0 if "stochastic" in spec else 0.5
    # A block's scale is its absmax / L, rounded up to bf16: at most 1/128 more.
    assert float(error.max()) <= (max(largest / levels, 2.0**-120) * whole) * (1 + 1 / 120)


@pytest.mark.process
@pytest.mark.parametrize(
    "spec",
    [*(f"stochastic({b})" for b in BITS), "uniform(2, stochastic)", "uniform(2, dither)"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_by_chance_is_unbiased(spec: str, dtype: torch.dtype) -> None:
    rows = (normal(16, 64) * torch.linspace(0.01, 1.0, 64)).to(dtype)
    codec, draws = parse(spec), 2000
    total = torch.zeros(16, 64, dtype=torch.float64)
    squares = torch.zeros(16, 64, dtype=torch.float64)
    encoder = Encoder(codec)
    for key in range(draws):
        back = decode(encoder.encode(rows.float(), key * 7919)).double()
        total += back
        squares += back * back
    mean = total / draws
    # Beside the spread that was seen, that of an event too rare to have been seen.
    rare = (float(rows.abs().max()) + 2.0) ** 2 / draws
    deviation = ((squares / draws - mean * mean).clamp(min=0.0) + rare).div(draws).sqrt()
    # 1,024 values: the largest of so many standard normals lies below 5.
    assert float(((mean - rows.double()).abs() / deviation).max()) < 5.0
    nearest = decode(
        parse(
            spec.replace("stochastic(", "int(").replace(", dither", "").replace(", stochastic", "")
        ).encode(rows.float())
    ).double()
    biased = float((nearest - rows.double()).abs().mean())
    assert float((mean - rows.double()).abs().mean()) < 0.2 * biased or "8" in spec


def test_dither_errs_less_than_rounding_by_chance_for_the_same_bytes() -> None:
    rows = normal(256, 64)
    chance, dither = (
        parse(f"uniform(1, {how}) | rans").encode(rows, 3) for how in ("stochastic", "dither")
    )
    assert abs(len(chance.payload) - len(dither.payload)) <= 2
    errors = [float((decode(packet) - rows).square().mean()) for packet in (chance, dither)]
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("spec", LOSSY)
@pytest.mark.parametrize(
    "rows",
    [
        torch.zeros(3, 4),
        torch.full((2, 3), 1e-44),
        torch.ones(1, 1),
        torch.full((2, 70), 3.0e38),
        torch.full((5, 6), -0.25),
    ],
    ids=["zeros", "denormal", "single", "huge", "constant"],
)
def test_extremes_come_back(spec: str, rows: torch.Tensor) -> None:
    back = decode(parse(spec + " | rans").encode(rows, 5))
    levels = 2 ** (int(spec[spec.index("(") + 1]) - 1) - 1 if "t(" in spec or "c(" in spec else 2
    assert bool(back.isfinite().all())
    assert torch.allclose(back, rows, rtol=1.02 / levels, atol=1e-36)


def test_an_outlying_channel_does_not_cost_the_others_their_precision() -> None:
    rows = normal(128, 64)
    rows[:, 7] *= 3000.0  # as the massive activations of large language models
    plain, step = (decode(parse(spec).encode(rows)) for spec in ("int8", "uniform(0.25)"))
    others = torch.arange(64) != 7
    error = [float((back - rows)[:, others].abs().max()) for back in (plain, step)]
    assert error[1] < 0.2 < 1.0 < error[0]
    assert float((step - rows)[:, 7].abs().max()) < 0.2


def test_topk_keeps_the_largest_of_each_sequence() -> None:
    rows = normal(12, 20)
    rows[4] = 0.0
    encoder = Encoder(parse("topk(0.25) | fp16"))
    back = decode(encoder.encode(rows, 0, (5, 7)))
    assert encoder.mask is not None
    mask = encoder.mask.dense()
    assert mask.shape == rows.shape
    for first, last in ((0, 5), (5, 12)):
        own, kept = rows[first:last].abs(), mask[first:last]
        sent_rows = int((own.amax(1) > 0).sum())
        assert int(kept.sum()) == -(-sent_rows * 20 // 4)
        assert float(own[kept].min()) >= float(own[~kept].max())
    assert torch.equal(back, (rows * mask).half().float())


# -- two kernels, the same bytes -------------------------------------------------------------------


@cache
def kernels() -> tuple[Kernel, Kernel]:
    if kernel().name != "compiled":
        pytest.skip("no compiled kernel in this installation (no C compiler when it was built)")
    return kernel(), TorchKernel()


@pytest.mark.parametrize("count", [1, 7, 64, 1000, 200_003])
@pytest.mark.parametrize("width", BITS)
@pytest.mark.parametrize("key", [None, 77, 2**32 - 1])
def test_kernels_quantise_and_pack_alike(count: int, width: int, key: int | None) -> None:
    fast, plain = kernels()
    values = normal(count, seed=width) * torch.rand(count) ** 4
    levels = 2 ** (width - 1) - 1
    one, other = (k.quantise_blocks(values, 64, levels, key) for k in (fast, plain))
    assert one is not None and other is not None
    scales, codes = one
    assert np.array_equal(scales, other[0]) and np.array_equal(codes, other[1])
    back = [k.dequantise_blocks(codes, scales, 64, levels) for k in (fast, plain)]
    assert bits(back[0]) == bits(back[1])
    packed = [k.pack_bits(codes, symbol_bits(2 * levels + 1)) for k in (fast, plain)]
    assert np.array_equal(*packed)
    group = group_of(2 * levels + 1)
    joined = [k.pack_radix(codes, 2 * levels + 1, group) for k in (fast, plain)]
    assert np.array_equal(*joined)
    for k in (fast, plain):
        assert np.array_equal(k.unpack_bits(packed[0], count, symbol_bits(2 * levels + 1)), codes)
        assert np.array_equal(k.unpack_radix(joined[0], count, 2 * levels + 1, group), codes)


@pytest.mark.parametrize("key", [None, 1, 2**31])
def test_kernels_share_their_grid(key: int | None) -> None:
    fast, plain = kernels()
    values = normal(100_001) * 40
    codes = [k.quantise_grid(values, 3.3, key) for k in (fast, plain)]
    assert np.array_equal(*codes)
    assert bits(fast.dequantise_grid(codes[0], 0.3, key)) == bits(
        plain.dequantise_grid(codes[0], 0.3, key)
    )


@pytest.mark.parametrize("sizes", [(5,), (16, 48), (1000, 31, 4096), (100_000, 100_000)])
@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_kernels_sparsify_alike(sizes: tuple[int, ...], share: float) -> None:
    fast, plain = kernels()
    values = normal(sum(sizes))
    values[::3] = 0.5  # ties
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    keep = np.asarray([max(1, int(share * size)) for size in sizes], np.int64)
    (mask, kept), (other_mask, other_kept) = (
        k.sparsify(values, starts, keep) for k in (fast, plain)
    )
    assert np.array_equal(mask, other_mask) and torch.equal(kept, other_kept)
    whole = [k.expand(mask, kept.contiguous(), sum(sizes)) for k in (fast, plain)]
    assert torch.equal(*whole) and torch.equal(whole[0][whole[0] != 0], values[whole[0] != 0])


@pytest.mark.parametrize("rows", [3, 100, 700])
@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize(("lanes", "segments"), [(2, 1), (8, 1), (32, 4)])
def test_kernels_code_alike_near_the_entropy(
    rows: int, by_row: bool, lanes: int, segments: int
) -> None:
    fast, plain = kernels()
    columns = 48
    rng = np.random.default_rng(rows)
    context_of = rng.integers(0, 3, rows if by_row else columns).astype(np.uint8)
    spread = (
        np.array([0.2, 1.0, 5.0])[context_of][:, None]
        if by_row
        else np.array([0.2, 1, 5])[context_of]
    )
    codes = np.clip(np.round(rng.laplace(size=(rows, columns)) * spread), -9, 9) + 9
    codes = codes.astype(np.uint8).reshape(-1)
    counts = [k.counts(codes, columns, context_of, by_row, 3) for k in (fast, plain)]
    assert np.array_equal(*counts)
    sums = [k.magnitudes(codes, columns, 9) for k in (fast, plain)]
    assert all(np.array_equal(a, b) for a, b in zip(*sums, strict=True))
    frequencies = frequencies_of(counts[0])
    words = [
        k.rans_encode(codes, columns, context_of, by_row, frequencies, lanes, segments)
        for k in (fast, plain)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*words, strict=True))
    starts = np.concatenate([[0], np.cumsum([own.size for own in words[0]])]).astype(np.int64)
    joined = np.concatenate(words[0])
    for k in (fast, plain):
        back = k.rans_decode(
            joined, starts, codes.size, columns, context_of, by_row, frequencies, lanes
        )
        assert back is not None and np.array_equal(back, codes)
        damaged = joined.copy()
        damaged[0] ^= 0x1234
        assert (
            k.rans_decode(
                damaged, starts, codes.size, columns, context_of, by_row, frequencies, lanes
            )
            is None
        )
    share = counts[0] / np.maximum(1, counts[0].sum(1, keepdims=True))
    entropy = -float((counts[0] * np.log2(np.where(share > 0, share, 1))).sum())
    assert 16 * joined.size <= 1.01 * entropy + 32 * lanes * segments + 64


def test_whole_packets_are_alike_from_both_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels()
    rows = normal(200, 64)
    rows[3] = 0
    made = {}
    for name in ("compiled", "torch"):
        monkeypatch.setenv("SFL_KERNEL", name)
        kernel.cache_clear()
        assert kernel().name == name
        made[name] = [parse(spec).encode(rows, 9, (120, 80)) for spec in SPECS]
        made[name + " back"] = [bits(decode(packet)) for packet in made["compiled"]]
    kernel.cache_clear()
    assert made["compiled"] == made["torch"]
    assert made["compiled back"] == made["torch back"]


def test_keyed_numbers_are_uniform_and_uncorrelated() -> None:
    drawn = uniform(12345, 1 << 18).double()
    assert abs(float(drawn.mean()) - 0.5) < 0.003
    assert abs(float(drawn.var()) - 1 / 12) < 0.001
    other = uniform(12346, 1 << 18).double()
    for a, b in ((drawn[1:], drawn[:-1]), (drawn, other)):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.01


# -- delta coding ----------------------------------------------------------------------------------


def context(tokens: list[int], example: int = 0) -> RowContext:
    own = np.asarray(tokens, np.int64)
    return RowContext(
        own,
        np.concatenate([[0], own[:-1] + 1]),
        np.full(len(own), example, np.int64),
        np.arange(len(own)),
    )


@pytest.mark.parametrize("kind", ["token", "bigram", "sample", "bigram, 64"])
def test_delta_gets_cheaper_and_both_ends_agree(kind: str) -> None:
    torch.manual_seed(0)
    states = torch.randn(50, 32)
    encoder = Encoder(parse(f"delta({kind}) | uniform(0.1, dither) | rans"))
    decoder = Decoder()
    rng = np.random.default_rng(0)
    sentence = rng.integers(0, 50, 120).tolist()
    sizes = []
    for turn in range(6):
        tokens = sentence if kind == "sample" else rng.integers(0, 50, 120).tolist()
        rows = states[tokens] + 0.05 * torch.randn(120, 32)
        packet = encoder.encode(rows, turn, (120,), context(tokens))
        sizes.append(len(packet.payload))
        back = decoder.decode(packet, (120, 32))
        assert float((back - rows).abs().max()) < 0.1
    if "64" not in kind:  # too few slots: always somebody else's
        assert sizes[-1] < 0.75 * sizes[0]
    (sender,), (receiver,) = encoder.stages, decoder.stages
    assert isinstance(sender, DeltaSender) and isinstance(receiver, DeltaReceiver)
    mine, theirs = sender.table, receiver.table
    assert np.array_equal(mine.rows, theirs.rows) and np.array_equal(mine.written, theirs.written)


@pytest.mark.parametrize(("keys", "slots"), [(30, 64), (200, 64), (64, 64), (40, 8)])
def test_a_slot_belongs_to_one_key_until_there_are_too_few(keys: int, slots: int) -> None:
    directory, draw = Directory(100, slots), np.random.default_rng(keys)
    known: dict[int, int] = {}
    for _ in range(50):
        asked = draw.integers(0, keys, min(keys, slots) // 2)
        found, fresh = directory.look_up(asked)
        assert found.min() >= 100 and found.max() < 100 + slots
        now = dict(zip(asked.tolist(), found.tolist(), strict=True))
        assert len(set(now.values())) == len(now)  # never two keys of a packet in one
        for key, slot in now.items():
            assert (known.get(key) != slot) == (slot in fresh)
        taken = set(now.values())
        known = {key: slot for key, slot in known.items() if slot not in taken} | now
    if keys <= slots:
        assert not fresh.size


def test_more_keys_than_slots_share() -> None:
    directory = Directory(0, 4)
    for _ in range(3):
        found, fresh = directory.look_up(np.arange(10))
        assert set(found.tolist()) <= set(range(4)) and set(fresh.tolist()) <= set(range(4))


@pytest.mark.parametrize("floor", [0.1, 1.0])
def test_kernels_remember_rows_alike(floor: float) -> None:
    tables, counts = (
        [np.zeros((41, 37), np.uint16) for _ in range(2)],
        np.zeros((2, 41), np.float32),
    )
    draw = np.random.default_rng(3)
    for turn in range(4):
        slots = draw.integers(0, 40, 300)
        values = normal(300, 37, seed=turn) * 10.0 ** float(draw.integers(-20, 20))
        values[0, 0] = 3.4e38  # beyond bfloat16
        for k, table, written in zip(kernels(), tables, counts, strict=True):
            k.move_rows(table, written, slots, values, floor)
        assert np.array_equal(*tables) and np.array_equal(*counts)
        one, other = (k.gather_rows(tables[0], slots) for k in kernels())
        assert bits(one) == bits(other) and bool(one.isfinite().all())
    assert not tables[0][40].any()


def test_a_receiver_without_the_past_gives_other_values_but_no_error() -> None:
    encoder = Encoder(parse("delta(token) | int(8)"))
    first, second = (encoder.encode(normal(9, 8) + 5, 0, (9,), context([3] * 9)) for _ in range(2))
    late = Decoder().decode(second)
    true = Decoder()
    true.decode(first)
    assert not torch.equal(late, true.decode(second))


def test_rows_of_samples_lie_in_a_folder_that_need_not_exist(tmp_path: Path) -> None:
    encoder = Encoder(parse("delta(sample, 64) | int8"), tmp_path / "cache" / "new")
    encoder.encode(normal(9, 8), 0, (9,), context(list(range(9))))
    assert list((tmp_path / "cache" / "new").iterdir()) == []  # the file has no name


def test_many_integers_of_no_width_are_refused() -> None:
    with pytest.raises(ProtocolError, match="packed integers"):
        unpack_integers(b"\x00\xff\xff\xff\x7f", 10, exactly=False)


def test_delta_is_refused_where_rows_have_no_names() -> None:
    with pytest.raises(ProtocolError, match="only a device's activations"):
        parse("delta(token) | int8").encode(torch.ones(2, 3))


# -- what it saves, and what it says beforehand ----------------------------------------------------


def test_every_preset_parses_and_comes_back() -> None:
    for gradient, presets in ((False, PRESETS), (True, GRADIENT_PRESETS)):
        for name, spec in presets.items():
            codec = parse(name, gradient=gradient)
            assert codec.spec == spec
            packet = codec.without_context().encode(normal(64, 32), 1, (64,))
            assert len(packet.payload) < 0.25 * packet.raw_bytes
            assert decode(packet).shape == (64, 32)


def test_zero_rows_cost_a_bit_each() -> None:
    rows = torch.zeros(800, 64)
    rows[::100] = normal(8, 64)
    for spec in ("none", "int8", "uniform(1) | rans", "topk(0.5) | int(4)"):
        all_rows = len(parse(spec).encode(rows[::100].contiguous()).payload)
        assert len(parse(spec).encode(rows).payload) <= all_rows + 800 // 8 + 4


def test_sections_that_coding_does_not_shorten_stay_plain() -> None:
    noise = torch.randint(-(2**31), 2**31 - 1, (8, 8), dtype=torch.int32).view(torch.float32)
    noise = torch.nan_to_num(noise, nan=1.5, posinf=1.5, neginf=1.5)
    for spec in ("none | zstd", "none | rans"):
        packet = parse(spec).encode(noise)
        assert len(packet.payload) <= 8 * 8 * 4 + 8
        assert bits(decode(packet)) == bits(noise)
    flat = torch.rand(16, 64) * 2 - 1
    assert len(parse("int8 | rans").encode(flat).payload) <= len(parse("int8").encode(flat).payload)


def test_a_peer_without_the_kernel_gets_the_same_values_otherwise_coded() -> None:
    codec, rows = parse("uniform(1, dither) | rans"), normal(300, 32)
    plain = codec.for_peer(compiled=False)
    assert plain.spec == "uniform(1, dither) | zstd" and codec.for_peer(compiled=True) is codec
    assert bits(decode(plain.encode(rows, 4))) == bits(decode(codec.encode(rows, 4)))


def test_sizes_are_exact_before_any_lossless_stage() -> None:
    for spec in ("none", "fp16", *(s for s in LOSSY if not s.startswith("uniform"))):
        codec = parse(spec)
        encoder = Encoder(codec)
        expected = codec.bits((40, 64), encoder.sizes)
        payload = encoder.encode(normal(40, 64)).payload
        assert 0 <= 8 * len(payload) - expected <= 8 * 14  # lengths of sections


# -- text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("none", "none"),
        (" int8|zstd ", "int8 | zstd"),
        ("zstd", "none | zstd"),
        ("zstd(7)", "none | zstd(7)"),
        ("int(4,row)|rans", "int(4, row) | rans"),
        ("int(4, 64)", "int(4)"),
        ("topk(0.30)|stochastic(4.0)", "topk(0.3) | stochastic(4)"),
        ("sft", PRESETS["sft"]),
        ("delta(token, 4096) | uniform(0.5) | zstd", "delta(token, 4096) | uniform(0.5) | zstd"),
    ],
)
def test_specifications(text: str, spec: str) -> None:
    assert parse(text).spec == spec == parse(spec).spec


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a stage"),
        ("int4", "no stage is called 'int4'"),
        ("zstd | int8", "int8 is given twice or out of order"),
        ("int8 | zstd | zstd", "zstd is given twice or out of order"),
        ("int8 |", "not a stage"),
        ("topk(0.3)", "a quantiser is missing"),
        ("topk(0.3) | none", "need a quantiser other than none"),
        ("topk(2) | int8", r"topk\(2\): 2 is not a number above 0, up to 1"),
        ("int(9)", r"int\(9\): 9 is not a whole number from 2 to 8"),
        ("int(4.5)", "4.5 is not a whole number"),
        ("int", "needs the number of bits"),
        ("int8(3)", "at most 0 arguments"),
        ("uniform(1, up)", "up is none of stochastic, dither"),
        ("delta(word) | int8", "word is none of bigram, token, sample"),
        ("int(4,)", "empty argument"),
    ],
)
def test_a_codec_that_is_none_says_why(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse(text, "codec.gradient")
    assert caught.value.field == "codec.gradient" and caught.value.value == text
    assert "docs/compression.md" in str(caught.value)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["fp16", "bf16", *LOSSY])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_lossy_codecs_refuse_non_finite_values(spec: str, bad: float) -> None:
    rows = torch.ones(2, 3)
    rows[1, 2] = bad
    with pytest.raises(ProtocolError, match=r"codec .*NaN"):
        parse(spec).encode(rows)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_are_refused_on_arrival(bad: float) -> None:
    rows = torch.ones(3, 3)
    rows[2, 0] = bad
    with pytest.raises(ProtocolError, match="NaN or infinite"):
        decode(parse("none").encode(rows))
    good = parse("int8").encode(torch.ones(2, 3))
    with pytest.raises(ProtocolError):
        decode(replace(good, payload=good.payload[:5] + b"\xff\xff\x7f\x7f" + good.payload[9:]))


def test_fp16_names_its_range() -> None:
    with pytest.raises(ProtocolError, match="65504"):
        parse("fp16").encode(torch.tensor([[7e4]]))


GOOD = parse("int8").encode(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("packet", "match"),
    [
        (replace(GOOD, codec="rot13"), "unknown codec 'rot13'"),
        (replace(GOOD, dtype="float64"), "dtype 'float64'"),
        (
            replace(GOOD, dtype="bfloat16", codec="none"),
            "4 bytes in a section where 12 are expected",
        ),
        (replace(GOOD, shape=(2, 4)), "6 bytes for 8 codes of 8 bits"),
        (replace(GOOD, shape=(6,)), "not \\[rows, hidden\\]"),
        (replace(GOOD, shape=(-2, -3)), "not \\[rows, hidden\\]"),
        (replace(GOOD, shape=(0, 3)), "not \\[rows, hidden\\]"),
        (replace(GOOD, shape=(2**31, 2**31)), "the limit"),
        (replace(GOOD, payload=GOOD.payload[:-1]), "ends within a section"),
        (replace(GOOD, payload=b""), "ends before its last section"),
        (replace(GOOD, payload=GOOD.payload + b"x"), "1 bytes too many"),
        (replace(GOOD, payload=b"\x01" + GOOD.payload[1:]), "not a valid frame"),
        (replace(GOOD, payload=b"\x09" + GOOD.payload[1:]), "unknown way"),
    ],
)
def test_a_bad_packet_says_why(packet: Packet, match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        decode(packet)


def test_another_shape_than_due_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"\[2, 3\] where \[3, 2\] is expected"):
        decode(GOOD, shape=(3, 2))


def test_hostile_packets_allocate_nothing_large() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    section = b"\x00\x01\x00" + b"\x01" + b"\x80\x40" + bomb[: 64 * 128]
    lies = [
        Packet("none | zstd", "float32", (4, 4), section),
        Packet("none", "float32", (16384, 16384), bytes(64)),
        Packet("int8", "float32", (16384, 16384), b"\x00\x01\x00" + bytes(64)),
        Packet("none | zstd", "float32", (16384, 16384), b"\x00\x01\x00" + bytes(64)),
        Packet("none | zstd", "float32", (2**40, 2**40), bomb),
    ]
    tracemalloc.start()
    try:
        for packet in lies:
            with pytest.raises(ProtocolError):
                decode(packet)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pure
@given(
    codec=st.sampled_from([*SPECS, "delta(bigram) | int8", "", "zstd", "?"]),
    dtype=st.sampled_from(["float32", "bfloat16", "int64"]),
    shape=st.lists(st.integers(-1, 40), max_size=3).map(tuple),
    payload=st.binary(max_size=200),
)
def test_any_bytes_give_a_finite_tensor_or_a_protocol_error(
    codec: str, dtype: str, shape: tuple[int, ...], payload: bytes
) -> None:
    try:
        values = decode(Packet(codec, dtype, shape, payload))
    except ProtocolError:
        return
    assert values.shape == shape and bool(values.isfinite().all())


@pytest.mark.parametrize(
    "spec",
    ["int8 | zstd", "uniform(0.5, dither) | rans", "delta(token) | int(4) | rans", PRESETS["sft"]],
)
@pure
@given(cut=st.integers(0, 4000), flip=st.integers(0, 4000), mask=st.integers(1, 255))
def test_damaged_packets_are_refused_or_decode_to_the_right_size(
    spec: str, cut: int, flip: int, mask: int
) -> None:
    rows = torch.arange(400.0).remainder(5).reshape(20, 20)
    packet = Encoder(parse(spec)).encode(rows, 1, (20,), context(list(range(20))))
    damaged = bytearray(packet.payload)
    damaged[flip % len(damaged)] ^= mask
    for payload in (bytes(damaged), packet.payload[: cut % len(packet.payload)]):
        try:
            assert decode(replace(packet, payload=payload)).shape == (20, 20)
        except ProtocolError:
            continue


# -- memory and small integers ---------------------------------------------------------------------


def test_tensors_of_any_layout_encode_alike() -> None:
    rows = torch.randn(6, 10, requires_grad=True)
    for spec in SPECS:
        codec = parse(spec)
        assert codec.encode(rows) == codec.encode(rows.detach().t().contiguous().t())


def test_decoded_memory_is_torchs_own() -> None:
    rows = torch.randn(3, 5)
    packet = parse("none").encode(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of tensors over read-only memory
        first, second = decode(packet), decode(packet)
    first.add_(1)
    assert bits(second) == bits(rows)
    assert first.data_ptr() % 64 == 0


@pure
@given(values=st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_integers_come_back(values: list[int]) -> None:
    packed = pack_integers(np.asarray(values, np.int64))
    assert unpack_integers(packed, len(values)).tolist() == values
    width = max(values, default=0).bit_length()
    assert len(packed) == 2 + (len(values) * width + 7) // 8


@pure
@given(
    labels=st.lists(st.one_of(st.just(-100), st.integers(0, 151_935)), max_size=60),
)
def test_labels_come_back_in_few_bits(labels: list[int]) -> None:
    array = np.asarray(labels, np.int32)
    packed = pack_labels(array, -100)
    assert np.array_equal(unpack_labels(packed, len(labels), -100), array)
    assert len(pack_labels(np.full(1000, -100, np.int32), -100)) <= 8


@pure
@given(data=st.binary(max_size=40), count=st.integers(0, 50))
def test_bad_labels_are_refused_or_of_the_right_number(data: bytes, count: int) -> None:
    try:
        assert unpack_labels(data, count, -100).shape == (count,)
    except ProtocolError:
        return


@pytest.mark.parametrize("spec", ["none", "fp16 | zstd", "sft", "compact"])
@pytest.mark.parametrize("shape", [(0, 8), (3, 0)])
def test_what_is_empty_is_neither_sent_nor_taken(spec: str, shape: tuple[int, int]) -> None:
    encoder = Encoder(parse(spec))
    with pytest.raises(ProtocolError, match=r"a tensor of \[\d, \d\] has nothing to send"):
        encoder.encode(torch.zeros(shape), 1, shape[:1])
    empty = Packet(parse(spec).spec, "float32", shape, b"")
    with pytest.raises(ProtocolError, match=r"shape \[\d, \d\] is not .* at least one of each"):
        decode(empty)
    # The refusal leaves nothing behind: the next tensor goes as it would have.
    rows = torch.arange(1.0, 17.0).view(2, 8)
    known = RowContext(*(np.arange(2) for _ in range(4)))
    wanted = Encoder(parse(spec)).encode(rows, 1, (2,), known)
    assert bytes(encoder.encode(rows, 1, (2,), known).payload) == bytes(wanted.payload)


def test_every_pass_gives_the_bytes_it_gives_everywhere() -> None:
    """kernel_bytes.py was run for aarch64 too: a pass that differs breaks mixed fleets."""
    library = next(Path(sfl.codec.__file__).parent.glob("_kernel*.so"), None)
    if library is None:
        pytest.skip("no compiled kernel in this installation")
    assert dict(kernel_bytes.passes(library)) == kernel_bytes.DIGESTS


@pytest.mark.process
def test_without_avx_the_kernel_gives_the_same_bytes(tmp_path: Path) -> None:
    library = compile_kernel(tmp_path, "-DSFL_PORTABLE")
    if library is None:
        pytest.skip("no compiler here")
    if platform.machine() == "x86_64" and (disassemble := shutil.which("objdump")):
        code = subprocess.run([disassemble, "-d", library], capture_output=True, text=True).stdout
        assert "%xmm" in code and "%ymm" not in code  # nothing beyond the baseline is in it
    assert dict(kernel_bytes.passes(library)) == kernel_bytes.DIGESTS


def test_settings_know_of_each_stage_what_it_says_itself() -> None:
    written = {"topk": "topk(0.3) | fp16", "delta": "delta | fp16", "int": "int(4)"}
    written |= {"stochastic": "stochastic(4)", "uniform": "uniform(0.5)"}
    for name, stage in STAGES.items():
        codec = parse(written.get(name, name))
        assert is_exact(codec.spec) == codec.exact == stage.exact
        made = (*codec.transforms, codec.quantiser, codec.coder)
        assert any(one is not None and one.name.startswith(name) for one in made)
    for preset, spec in (PRESETS | {"none | zstd": "none | zstd", "rans": "none | rans"}).items():
        assert is_exact(preset) == parse(spec).exact
    assert not is_exact("auto") and not is_exact("no codec | at all")
