"""Sums of sums: what edges add up is what the cloud would, to the bit, and the flat sum nearly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import save, save_file

from sfl.adapters.names import is_lora_a
from sfl.aggregation.contribution import Array, Contribution, Shapes, Shortened, verify
from sfl.aggregation.mean import weighted_mean
from sfl.aggregation.sums import EdgeSum, by_edge, flat, groups, sum_bytes, total
from sfl.aggregation.traits import STRATEGIES
from sfl.aggregation.weighted import MeanStrategy, mean_strategy
from sfl.config import AggregationSettings, RunSettings
from sfl.errors import ConfigError, ProtocolError
from tests.house.adapters import Adapter, adapter, fresh, same_bits, spool, strategy

NAMES = sorted(STRATEGIES.built_in)
SUMS = [name for name in NAMES if STRATEGIES[name].weighted_sum]
SIZES = (7, 100, 1, 31, 12, 64, 5)


def shapes_of(values: Adapter) -> Shapes:
    return {name: array.shape for name, array in values.items()}


def fleet(folder: Path, name: str, edges: str = "abbabca") -> list[Contribution]:
    """Devices of three edges, as the strategy takes them."""
    parts = []
    for number, edge in enumerate(edges):
        values = adapter(number)
        if name == "ffa_lora":
            values = {key: array for key, array in values.items() if not is_lora_a(key)}
        one = spool(folder, f"d{number}", values, SIZES[number])
        parts.append(replace(one, edge=edge))
    return parts


def sent(folder: Path, devices: list[Contribution], shapes: Shapes) -> list[EdgeSum]:
    """What the edges of these devices send, each by itself."""
    found = []
    for edge, own in groups(devices).items():
        file = folder / f"{edge}.sum"
        file.write_bytes(sum_bytes(own, shapes))
        found.append(EdgeSum(edge, sum(one.num_examples for one in own), file))
    return found


def test_the_strategies_that_are_weighted_sums() -> None:
    assert SUMS == ["fedadam", "fedavg", "fedavgm", "fedprox", "fedyogi", "ffa_lora"]
    for name in NAMES:
        assert isinstance(strategy(name), MeanStrategy) == (name in SUMS)


@pytest.mark.parametrize("name", SUMS)
def test_what_edges_send_is_the_clouds_own_sum_of_sums(tmp_path: Path, name: str) -> None:
    devices, current, own = fleet(tmp_path, name), fresh(), strategy(name)
    assert isinstance(own, MeanStrategy)
    shapes = own.shapes(devices[0], current)
    clouds = by_edge(devices, shapes).mean()
    edges = total(sent(tmp_path, devices, shapes), shapes).mean()
    assert same_bits(edges, clouds)
    assert all(array.dtype == np.float64 for array in edges.values())
    one = flat(devices, shapes).mean()
    for key, array in one.items():
        np.testing.assert_allclose(edges[key], array, rtol=1e-13, atol=1e-15)
    twin = strategy(name)
    assert isinstance(twin, MeanStrategy)
    for _ in range(2):  # a second round, for what they remember
        assert same_bits(own.from_mean(edges | {}, current), twin.from_mean(clouds | {}, current))


@pytest.mark.parametrize("name", SUMS)
def test_one_edge_is_the_flat_sum(tmp_path: Path, name: str) -> None:
    devices, current, own = fleet(tmp_path, name, "aaaaa"), fresh(), strategy(name)
    assert isinstance(own, MeanStrategy)
    shapes = own.shapes(devices[0], current)
    found = total(sent(tmp_path, devices, shapes), shapes).mean()
    assert same_bits(own.from_mean(found, current), strategy(name).aggregate(devices, current))


def test_the_order_of_arrival_changes_no_bit(tmp_path: Path) -> None:
    devices = fleet(tmp_path, "fedavg")
    shapes = shapes_of(adapter(0))
    assert same_bits(by_edge(devices[::-1], shapes).mean(), by_edge(devices, shapes).mean())


@given(
    st.lists(
        st.tuples(
            st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(1, 10_000_000)
        ),
        min_size=1,
        max_size=9,
    )
)
def test_a_sum_of_sums_is_the_flat_one_to_rounding(values: list[tuple[float, int]]) -> None:
    shapes = {"w": (1,)}
    devices = [
        Contribution(
            f"d{number}",
            n,
            payloads=(save({"w": np.array([w], np.float32)}),),
            edge=f"e{number % 3}",
        )
        for number, (w, n) in enumerate(values)
    ]
    whole = sum(n for _, n in values)
    scale = sum(abs(float(np.float32(w))) * n for w, n in values) / whole
    two, one = by_edge(devices, shapes).mean()["w"], weighted_mean(devices, shapes)["w"]
    assert abs(two[0] - one[0]) <= 2 * len(values) * 2.0**-53 * scale


def test_an_edge_of_one_device_sends_its_adapter(tmp_path: Path) -> None:
    devices = fleet(tmp_path, "fedavg", "abb")
    shapes = shapes_of(adapter(0))
    one, two = sent(tmp_path, devices, shapes)
    values = sum(array.size for array in adapter(0).values())
    assert 4 * values < one.file.stat().st_size < 4 * values + 2000
    assert 8 * values < two.file.stat().st_size < 8 * values + 2000
    (alone,) = (groups(devices)["a"],)
    assert same_bits(total([one], shapes).values, flat(alone, shapes).values)


def test_files_in_memory_are_as_those_on_disk(tmp_path: Path) -> None:
    shapes = shapes_of(adapter(0))
    on_disk = spool(tmp_path, "d0", adapter(3), 5)
    payloads = tuple(path.read_bytes() for path in on_disk.files)
    in_memory = replace(on_disk, files=(), payloads=payloads)
    assert same_bits(dict(in_memory.tensors(shapes)), dict(on_disk.tensors(shapes)))
    half = replace(on_disk, files=on_disk.files[:1], payloads=payloads[1:])
    verify(half, shapes)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"no file", "not a valid safetensors file"),
        (save({"w": np.zeros(2, np.float64)}), "w is float64, not F32"),
        (save({"w": np.zeros(3, np.float32)}), r"w is \[3\], not \[2\]"),
        (save({"w": np.array([1, np.nan], np.float32)}), "w holds NaN"),
        (save({"v": np.zeros(2, np.float32)}), "w is missing"),
    ],
)
def test_what_is_no_adapter_in_memory_is_said(payload: bytes, said: str) -> None:
    with pytest.raises(ProtocolError, match=f"adapter of device d0: {said}"):
        verify(Contribution("d0", 1, payloads=(payload,)), {"w": (2,)})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"w": np.zeros(2, np.float16)}, "w is F16, not F32 or F64"),
        ({"w": np.zeros(3)}, r"w is \[3\], not \[2\]"),
        ({"w": np.array([1, np.inf])}, "w holds NaN"),
        ({"w": np.zeros(2), "v": np.zeros(2)}, "v is unknown"),
        ({}, "w is missing"),
    ],
)
def test_what_is_no_sum_is_said(tmp_path: Path, values: dict[str, Array], said: str) -> None:
    file = tmp_path / "sum"
    save_file(values, file)
    with pytest.raises(ProtocolError, match=f"sum of edge e: {said}"):
        EdgeSum("e", 3, file).change({"w": np.zeros(2)})
    file.write_bytes(b"nothing")
    with pytest.raises(ProtocolError, match="sum of edge e: not a valid safetensors file"):
        EdgeSum("e", 3, file).change({"w": np.zeros(2)})


def test_how_far_the_mean_in_a_sum_has_come(tmp_path: Path) -> None:
    devices, start = fleet(tmp_path, "fedavg", "aab"), adapter(40)
    for own in sent(tmp_path, devices, shapes_of(start)):
        mean = flat(groups(devices)[own.edge], shapes_of(start)).mean()
        change = [np.square(mean[name] - start[name]).sum() for name in start]
        assert own.change(start) == pytest.approx(float(np.sqrt(sum(change))), rel=1e-14)


def test_a_shortened_update_counts_shortened_in_its_edges_sum(tmp_path: Path) -> None:
    devices, shapes = fleet(tmp_path, "fedavg", "aab"), shapes_of(adapter(0))
    devices[0] = replace(devices[0], shortened=Shortened(adapter(40), 0.25))
    edges = total(sent(tmp_path, devices, shapes), shapes).mean()
    assert same_bits(edges, by_edge(devices, shapes).mean())
    moved = replace(devices[0], shortened=None)
    assert not same_bits(edges, by_edge([moved, *devices[1:]], shapes).mean())


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(SUMS)))
def test_who_needs_every_update_refuses_sums(name: str) -> None:
    with pytest.raises(ValidationError, match=f"sums = 'by_edge': strategy '{name}' needs each"):
        AggregationSettings(strategy=name, sums="by_edge")
    assert AggregationSettings(strategy=name).sums == "flat"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"run": {"mode": "asynchronous"}}, "an asynchronous run"),
        ({"aggregation": {"late_updates": "weighted"}}, "a late update"),
    ],
)
def test_updates_of_other_rounds_are_in_no_sum(sections: dict[str, Adapter], said: str) -> None:
    devices = [{"name": name} for name in ("d0", "d1", "d2")]
    model = {"path": "m"}
    own = {"aggregation": {"sums": "by_edge"} | sections.get("aggregation", {})}
    with pytest.raises(ValidationError, match=said):
        RunSettings.model_validate({"devices": devices, "model": model, **sections, **own})


def test_a_plug_in_that_promised_a_weighted_sum_and_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match="'mine': its traits say weighted_sum, and Median"):
        mean_strategy(strategy("median"), "mine")
