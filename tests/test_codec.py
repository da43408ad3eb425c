"""Round trips, bounds, and what hostile packets meet."""

import tracemalloc
import warnings
from dataclasses import replace

import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfl.codec import LOSSLESS, QUANTISERS, Packet, decode, parse
from sfl.errors import ConfigError, ProtocolError

SPECS = [first + rest for first in QUANTISERS for rest in ("", *(f" | {n}" for n in LOSSLESS))]
pure = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)


def bits(values: torch.Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).numpy().tobytes()


def rows_of(
    largest: float = 2.0**127, dtype: torch.dtype = torch.float32
) -> st.SearchStrategy[torch.Tensor]:
    """Tensors `[1..6, 1..9]` with zeros of both signs and denormals among the values."""
    value = st.floats(-largest, largest, width=32, allow_nan=False, allow_subnormal=True)
    return st.tuples(st.integers(1, 6), st.integers(1, 9)).flatmap(
        lambda shape: st.lists(
            value, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]
        ).map(lambda flat: torch.tensor(flat, dtype=dtype).reshape(shape))
    )


@pytest.mark.parametrize("spec", ["none", "none | zstd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pure
@given(data=st.data())
def test_none_returns_the_same_bits(spec: str, dtype: torch.dtype, data: st.DataObject) -> None:
    rows = data.draw(rows_of(dtype=dtype))
    packet = parse(spec).encode(rows)
    back = decode(packet)
    assert back.dtype == dtype and back.shape == rows.shape
    assert bits(back) == bits(rows)
    assert packet.raw_bytes == 4 * rows.numel()


def test_none_keeps_the_sign_of_zero_and_denormals() -> None:
    rows = torch.tensor([[-0.0, 0.0, 1e-45, -1e-40, 3.4e38]])
    packet = parse("none").encode(rows)
    assert packet.payload == rows.numpy().astype("<f4").tobytes()
    assert bits(decode(packet)) == bits(rows)


@pure
@given(rows=rows_of())
def test_int8_errs_by_at_most_half_a_scale_of_its_row(rows: torch.Tensor) -> None:
    back = decode(parse("int8").encode(rows)).double()
    scale = rows.double().abs().amax(1, keepdim=True) / 127
    bound = scale.clamp(min=torch.finfo(torch.float32).tiny) * (0.5 + 1e-4)
    assert bool(((back - rows.double()).abs() <= bound).all())


@pytest.mark.parametrize(("spec", "wire"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pure
@given(rows=rows_of(largest=60000.0))
def test_sixteen_bit_codecs_round_as_torch_does(
    spec: str, wire: torch.dtype, rows: torch.Tensor
) -> None:
    assert torch.equal(decode(parse(spec).encode(rows)), rows.to(wire).float())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packet_describes_itself_and_is_deterministic(spec: str, dtype: torch.dtype) -> None:
    rows = torch.randn(33, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    rows[5:] = 0.0  # so that zstd pays
    packet = parse(spec).encode(rows)
    assert packet == parse(spec).encode(rows.clone())
    assert packet.codec == spec
    back = decode(packet, shape=(33, 24))
    assert back.dtype == dtype
    assert not back[5:].any()
    assert float((back - rows).abs().max()) < 0.05


@pytest.mark.parametrize("rows", [torch.zeros(3, 4), torch.full((2, 3), 1e-44), torch.ones(1, 1)])
def test_int8_takes_rows_of_zeros_and_denormals(rows: torch.Tensor) -> None:
    back = decode(parse("int8 | zstd").encode(rows))
    assert torch.allclose(back, rows, atol=1e-37)


@pytest.mark.parametrize("spec", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_lossy_codecs_refuse_non_finite_values(spec: str, bad: float) -> None:
    rows = torch.ones(2, 3)
    rows[1, 2] = bad
    with pytest.raises(ProtocolError, match=rf"codec {spec}: .*NaN"):
        parse(spec).encode(rows)


def test_fp16_names_its_range() -> None:
    with pytest.raises(ProtocolError, match="65504"):
        parse("fp16").encode(torch.tensor([[7e4]]))


def test_zstd_is_left_out_where_it_does_not_pay() -> None:
    noise = torch.randint(-(2**31), 2**31 - 1, (8, 8), dtype=torch.int32).view(torch.float32)
    noise = torch.nan_to_num(noise, nan=1.5, posinf=1.5, neginf=1.5)
    packet = parse("none | zstd").encode(noise)
    assert packet.codec == "none" and len(packet.payload) == 8 * 8 * 4
    assert bits(decode(packet)) == bits(noise)
    zeros = parse("int8 | zstd").encode(torch.zeros(64, 64))
    assert zeros.codec == "int8 | zstd" and len(zeros.payload) < 64


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
    assert bits(second) == bits(rows) == packet.payload
    assert first.data_ptr() % 64 == 0


@pytest.mark.parametrize(
    ("text", "spec"),
    [("none", "none"), (" int8|zstd ", "int8 | zstd"), ("zstd", "none | zstd"), ("bf16", "bf16")],
)
def test_specifications(text: str, spec: str) -> None:
    assert parse(text).spec == spec == parse(spec).spec


@pytest.mark.parametrize("text", ["", "int4", "zstd | int8", "int8 | zstd | zstd", "int8 |", "|"])
def test_an_unknown_codec_lists_those_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match="none, fp16, bf16, int8") as caught:
        parse(text, "codec.gradient")
    assert caught.value.field == "codec.gradient" and caught.value.value == text


GOOD = parse("int8").encode(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("packet", "match"),
    [
        (replace(GOOD, codec="rot13"), "unknown codec 'rot13'"),
        (replace(GOOD, dtype="float64"), "dtype 'float64'"),
        (replace(GOOD, dtype="bfloat16", codec="none"), "14 bytes of none"),
        (replace(GOOD, shape=(2, 4)), "14 bytes of int8"),
        (replace(GOOD, shape=(6,)), "not \\[rows, hidden\\]"),
        (replace(GOOD, shape=(-2, -3)), "not \\[rows, hidden\\]"),
        (replace(GOOD, shape=(0, 3)), "not \\[rows, hidden\\]"),
        (replace(GOOD, shape=(2**31, 2**31)), "the limit"),
        (replace(GOOD, payload=GOOD.payload[:-1]), "13 bytes of int8"),
        (replace(GOOD, payload=b""), "0 bytes of int8"),
        (replace(GOOD, codec="int8 | zstd"), "not a valid frame"),
    ],
)
def test_a_bad_packet_says_why(packet: Packet, match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        decode(packet)


def test_another_shape_than_due_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"\[2, 3\] where \[3, 2\] is due"):
        decode(GOOD, shape=(3, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_are_refused_on_arrival(bad: float) -> None:
    rows = torch.ones(3, 3)
    rows[2, 0] = bad
    with pytest.raises(ProtocolError, match="NaN or infinite"):
        decode(parse("none").encode(rows))
    scales = torch.full((2, 1), 3e38).numpy().tobytes()
    with pytest.raises(ProtocolError, match="NaN or infinite"):
        decode(Packet("int8", "float32", (2, 3), scales + b"\x7f" * 6))


def test_hostile_packets_allocate_nothing_large() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    lies = [
        Packet("none | zstd", "float32", (4, 4), bomb),
        Packet("none", "float32", (16384, 16384), bytes(64)),
        Packet("int8", "float32", (16384, 16384), bytes(64)),
        Packet("none | zstd", "float32", (16384, 16384), bytes(64)),
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
    codec=st.sampled_from([*SPECS, "", "zstd", "?"]),
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


@pure
@given(cut=st.integers(0, 60), flip=st.integers(0, 60), mask=st.integers(1, 255))
def test_damaged_frames_are_refused_or_decode_to_the_right_size(
    cut: int, flip: int, mask: int
) -> None:
    packet = parse("int8 | zstd").encode(torch.arange(400.0).remainder(5).reshape(20, 20))
    assert packet.codec == "int8 | zstd"
    damaged = bytearray(packet.payload)
    damaged[flip % len(damaged)] ^= mask
    for payload in (bytes(damaged), packet.payload[: cut % len(packet.payload)]):
        try:
            assert decode(replace(packet, payload=payload)).shape == (20, 20)
        except ProtocolError:
            continue
