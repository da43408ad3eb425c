"""FedAvg against a direct computation, and what an incomplete contribution meets."""

import itertools
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from sfl.aggregation.contribution import Contribution, verify
from sfl.aggregation.fedavg import FedAvg
from sfl.errors import ProtocolError

Adapter = dict[str, npt.NDArray[Any]]
FEDAVG = FedAvg()
SHAPES = {"b.lora_A.weight": (4, 6), "a.lora_B.weight": (6, 4), "score.weight": (3,), "z": (2, 2)}


def adapter(seed: int) -> Adapter:
    random_source = np.random.default_rng(seed)
    return {
        name: random_source.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()
    }


def spool(folder: Path, device: str, values: Mapping[str, Any], n: int, cut: int = 2) -> Any:
    """The adapter in two files, cut behind the first `cut` names."""
    names = list(values)
    files = []
    for part, chosen in (("device", names[:cut]), ("edge", names[cut:])):
        path = folder / f"{device}-{part}.safetensors"
        save_file({name: values[name] for name in chosen}, path)
        files.append(path)
    return Contribution(device, n, tuple(files))


def shapes(values: Adapter) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in values.items()}


def same_bits(left: Adapter, right: Adapter) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


@pytest.mark.parametrize("n", [1, 3, 49, 1000, 2**28 + 1])
def test_one_device_comes_back_bit_for_bit(tmp_path: Path, n: int) -> None:
    values = adapter(0)
    values["z"] = np.array([[-0.0, 1e-45], [-1.1754944e-38, 3.4028235e38]], np.float32)
    contribution = spool(tmp_path, "home", values, n)
    assert same_bits(FEDAVG.aggregate([contribution], adapter(9)), values)


def test_mean_equals_a_direct_float64_computation_whatever_cut_and_order(tmp_path: Path) -> None:
    weights = {"b": 7, "a": 100, "d": 1, "c": 31}
    adapters = {name: adapter(seed) for seed, name in enumerate(weights)}
    contributions = [
        spool(tmp_path, name, adapters[name], n, cut)
        for cut, (name, n) in enumerate(weights.items())
    ]
    expected = {}
    for name in SHAPES:
        total = np.zeros(SHAPES[name])
        for device in sorted(weights):
            total = total + weights[device] * adapters[device][name].astype(np.float64)
        expected[name] = (total / sum(weights.values())).astype(np.float32)
    for order in itertools.permutations(contributions):
        assert same_bits(FEDAVG.aggregate(order, adapter(9)), expected)


def test_equal_adapters_average_to_themselves(tmp_path: Path) -> None:
    values = adapter(4)
    parts = [spool(tmp_path, f"d{k}", values, random.Random(k).randint(1, 999)) for k in range(5)]
    assert same_bits(FEDAVG.aggregate(parts, values), values)


def test_memory_does_not_grow_with_devices(tmp_path: Path) -> None:
    shape = (256, 256)
    values = {f"block.{k}": np.full(shape, float(k), np.float32) for k in range(8)}
    size = sum(array.nbytes for array in values.values())
    parts = [spool(tmp_path, f"d{k}", values, k + 1) for k in range(10)]

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            FEDAVG.aggregate(parts[:count], values)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(2), peak(10)
    assert many < few + 100_000
    assert many < 3 * size  # float64 sums, and one tensor being read or divided


def test_a_contribution_is_read_one_tensor_at_a_time(tmp_path: Path) -> None:
    values = {f"block.{k}": np.ones((256, 256), np.float32) for k in range(8)}
    contribution = spool(tmp_path, "d", values, 1)
    tracemalloc.start()
    try:
        verify(contribution, shapes(values))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 256 * 256 * 4


def missing(values: Adapter) -> None:
    del values["z"], values["score.weight"]


def unknown(values: Adapter) -> None:
    values["other"] = np.zeros(1, np.float32)


def reshaped(values: Adapter) -> None:
    values["z"] = values["z"].reshape(4)


def retyped(values: Adapter) -> None:
    values["z"] = values["z"].astype(np.float64)


def poisoned(values: Adapter) -> None:
    values["b.lora_A.weight"][1, 1] = np.nan


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (missing, "score.weight is missing, and 1 more"),
        (unknown, "other is unknown"),
        (reshaped, r"z is \[4\], not \[2, 2\]"),
        (retyped, "z is F64, not F32"),
        (poisoned, "b.lora_A.weight holds NaN"),
    ],
)
def test_an_incomplete_contribution_names_its_device(
    tmp_path: Path, damage: Any, match: str
) -> None:
    values = adapter(1)
    damage(values)
    good, bad = spool(tmp_path, "good", adapter(0), 5), spool(tmp_path, "bad", values, 5)
    verify(good, SHAPES)
    with pytest.raises(ProtocolError, match=f"device bad: {match}"):
        verify(bad, SHAPES)
    with pytest.raises(ProtocolError, match=f"device bad: {match}"):
        FEDAVG.aggregate([good, bad], adapter(9))


def test_a_tensor_in_both_parts_is_refused(tmp_path: Path) -> None:
    contribution = spool(tmp_path, "home", adapter(0), 5)
    twice = Contribution("home", 5, (*contribution.files, contribution.files[0]))
    with pytest.raises(ProtocolError, match=r"device home: .* comes twice"):
        verify(twice, SHAPES)


def test_no_examples_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="device home: num_examples is 0"):
        verify(spool(tmp_path, "home", adapter(0), 0), SHAPES)
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(ProtocolError, match="device home: not a valid safetensors file"):
        verify(Contribution("home", 1, (path,)), SHAPES)


@pytest.mark.process
def test_aggregation_needs_no_torch() -> None:
    code = "import sys, sfl.aggregation.strategy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
