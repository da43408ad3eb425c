"""Every strategy against a direct float64 computation, and ranks against dense products."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import load, save

from cloud_aggregator.averaging import adapter_ref
from cloud_aggregator.memory import StrategyMemory
from sfl.adapters.artifact import load_adapter, save_adapter
from sfl.adapters.names import is_lora_a, lora_b_of, lora_names
from sfl.adapters.rank import ProductSum, shapes_at_rank, truncated
from sfl.aggregation.contribution import Contribution, verify
from sfl.aggregation.krum import krum_scores
from sfl.aggregation.strategy import Strategy, make_strategy
from sfl.aggregation.traits import STRATEGIES
from sfl.config import AggregationSettings, LoraSettings, RunSettings
from sfl.config.base import OneOf
from sfl.errors import ProtocolError
from sfl.report.journal import SqliteJournal
from sfl.rounds import AdapterReady, Coordinator
from tests.house.adapters import (
    ALPHA,
    LAYERS,
    RANK,
    SAVED,
    Adapter,
    Array,
    adapter,
    fresh,
    same_bits,
    spool,
    strategy,
    update,
)
from tests.house.paths import ROOT

NAMES = sorted(STRATEGIES)
ONE_SHAPE = [name for name in NAMES if name != "flora"]  # which gives base updates: test_flora.py
KEEP_ONE_DEVICE = ("fedavg", "fedprox", "median", "trimmed_mean")


def without_a(values: Adapter) -> Adapter:
    return {name: array for name, array in values.items() if not is_lora_a(name)}


def fleet(folder: Path, name: str, count: int = 5) -> tuple[list[Contribution], list[Adapter]]:
    """Contributions that the strategy takes, and what they hold."""
    adapters = [adapter(seed) for seed in range(count)]
    if name == "ffa_lora":
        adapters = [without_a(values) for values in adapters]
    sizes = [7, 100, 1, 31, 12, 64, 5][:count]
    parts = [spool(folder, f"d{k}", v, n) for k, (v, n) in enumerate(zip(adapters, sizes))]  # noqa: B905
    return parts, adapters


def stacked(adapters: Sequence[Adapter], name: str) -> Array:
    return np.stack([values[name].astype(np.float64) for values in adapters])


def mean(parts: Sequence[Contribution], adapters: Sequence[Adapter]) -> Adapter:
    weights = np.array([part.num_examples for part in parts], np.float64)
    return {
        name: np.tensordot(weights, stacked(adapters, name), 1) / weights.sum()
        for name in adapters[0]
    }


def assert_close(found: Adapter, wanted: Adapter) -> None:
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        assert array.dtype == np.float32
        assert array.shape == wanted[name].shape
        np.testing.assert_allclose(array, wanted[name], rtol=1e-6, atol=1e-6, err_msg=name)


# -- all of them -----------------------------------------------------------------------------------


def test_settings_and_strategies_name_the_same() -> None:
    (checked,) = AggregationSettings.model_fields["strategy"].metadata
    assert isinstance(checked, OneOf) and sorted(checked.table) == NAMES
    assert [AggregationSettings(strategy=name).strategy for name in NAMES] == NAMES
    with pytest.raises(ValidationError, match="'fedadam', 'fedyogi'"):
        AggregationSettings(strategy="fedsgd")


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_arrival_changes_no_bit(tmp_path: Path, name: str) -> None:
    parts, _ = fleet(tmp_path, name)
    current = adapter(50)
    wanted = strategy(name).aggregate(parts, current)
    for seed in range(6):
        shuffled = random.Random(seed).sample(parts, len(parts))
        assert same_bits(strategy(name).aggregate(shuffled, current), wanted)


@pytest.mark.parametrize("name", ONE_SHAPE)
def test_names_shapes_and_types_are_the_global_adapters(tmp_path: Path, name: str) -> None:
    parts, _ = fleet(tmp_path, name)
    current = adapter(50)
    before = {key: array.copy() for key, array in current.items()}
    result = strategy(name).aggregate(parts, current)
    assert list(result) == sorted(current)
    assert all(result[key].shape == current[key].shape for key in current)
    assert all(result[key].dtype == np.float32 for key in current)
    assert same_bits(current, before)


@pytest.mark.parametrize("name", KEEP_ONE_DEVICE)
def test_one_device_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    parts, adapters = fleet(tmp_path, name, 1)
    assert same_bits(strategy(name).aggregate(parts, adapter(50)), adapters[0])


@pytest.mark.parametrize("name", ["fedavgm", "flexlora"])
def test_one_device_comes_back_to_rounding(tmp_path: Path, name: str) -> None:
    parts, adapters = fleet(tmp_path, name, 1)
    result = strategy(name).aggregate(parts, adapter(50))
    if name == "fedavgm":
        assert_close(result, adapters[0])
    for layer in LAYERS:
        found, wanted = (update(v, layer, ALPHA / RANK) for v in (result, adapters[0]))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_incomplete_contribution_is_refused(tmp_path: Path, name: str) -> None:
    parts, adapters = fleet(tmp_path, name)
    broken = dict(adapters[2])
    del broken["base_model.model.score.bias"]
    parts[2] = spool(tmp_path, "d2", broken, 3)
    with pytest.raises(ProtocolError, match=r"device d2: .*score\.bias is missing"):
        strategy(name).aggregate(parts, adapter(50))


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_state_can_be_saved_and_put_back(tmp_path: Path, name: str) -> None:
    parts, _ = fleet(tmp_path, name)
    one, other = strategy(name), strategy(name)
    assert one.state == {}
    current = one.aggregate(parts, adapter(50))
    other.state = load(save(one.state))
    assert same_bits(one.aggregate(parts, current), other.aggregate(parts, current))
    assert not same_bits(strategy(name).aggregate(parts, current), one.aggregate(parts, current))


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_what_a_journal_names_gives_the_same_next_adapter(tmp_path: Path, name: str) -> None:
    """As a cloud that is started again finds it: state and adapter by their names in the journal"""
    parts, _ = fleet(tmp_path, name)
    settings = RunSettings.model_validate({"model": {"path": "m"}, "devices": DEVICES})
    one, memory, journal = strategy(name), StrategyMemory(tmp_path), SqliteJournal(tmp_path)
    first = one.aggregate(parts, adapter(50))
    save_adapter(tmp_path / adapter_ref(1), first, {})
    ready = AdapterReady(1, adapter_ref(1), memory.save(1, one.state))
    Coordinator(settings, journal=journal).handle(ready, 1.0)
    second = one.aggregate(parts, first)
    journal.close()
    found = SqliteJournal(tmp_path).latest().state(settings)
    other = strategy(name)
    other.state = StrategyMemory(tmp_path).read(found.strategy_ref)
    current, _ = load_adapter(tmp_path / found.adapter_ref)
    assert same_bits(other.aggregate(parts, current), second)
    memory.save(2, one.state)
    memory.forget_before(2)
    assert [file.name for file in (tmp_path / "strategy").iterdir()] == ["round-0002.safetensors"]


def test_who_remembers_nothing_leaves_no_file(tmp_path: Path) -> None:
    assert StrategyMemory(tmp_path).save(1, {}) == "" and not list(tmp_path.iterdir())
    assert StrategyMemory(tmp_path).read("") == {}


DEVICES = [{"name": "d0", "cut_layer": 1}]


# -- means and the cloud's optimizers --------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_the_weighted_mean(tmp_path: Path, name: str) -> None:
    parts, adapters = fleet(tmp_path, name)
    assert_close(strategy(name).aggregate(parts, adapter(50)), mean(parts, adapters))


def momentum(current: Adapter, means: Adapter, state: dict[str, Any]) -> Adapter:
    for name, array in current.items():
        state[name] = 0.8 * state.get(name, 0.0) + (array.astype(np.float64) - means[name])
    return {name: current[name] - 0.5 * state[name] for name in current}


def adaptive(second: Callable[[Array, Array], Array]) -> Callable[..., Adapter]:
    def step(current: Adapter, means: Adapter, state: dict[str, Any]) -> Adapter:
        result = {}
        for name, array in current.items():
            delta = means[name] - array.astype(np.float64)  # the paper's sign: towards the mean
            m, v = state.get(name, (0.0, np.full(array.shape, 1e-2**2)))
            m, v = 0.7 * m + 0.3 * delta, second(v, delta * delta)
            state[name] = m, v
            result[name] = array + 0.1 * m / (np.sqrt(v) + 1e-2)
        return result

    return step


ADAPTIVE = {"server_learning_rate": 0.1, "betas": (0.7, 0.9), "tau": 1e-2}
SERVERS: list[tuple[str, dict[str, Any], Callable[..., Adapter]]] = [
    ("fedavgm", {"server_learning_rate": 0.5, "momentum": 0.8}, momentum),
    ("fedadam", ADAPTIVE, adaptive(lambda v, d: 0.9 * v + 0.1 * d)),
    ("fedyogi", ADAPTIVE, adaptive(lambda v, d: v - 0.1 * d * np.sign(v - d))),
]


@pytest.mark.parametrize(("name", "options", "step"), SERVERS, ids=[s[0] for s in SERVERS])
def test_the_clouds_optimizers_over_rounds(
    tmp_path: Path, name: str, options: dict[str, Any], step: Callable[..., Adapter]
) -> None:
    server, state = strategy(name, **options), {}
    current = adapter(50)
    for number in range(4):
        adapters = [adapter(10 * number + k) for k in range(3)]
        parts = [spool(tmp_path, f"d{k}", v, k + 1) for k, v in enumerate(adapters)]
        wanted = step(current, mean(parts, adapters), state)
        current = server.aggregate(parts, current)
        assert_close(current, wanted)


def test_momentum_of_nothing_is_fedavg(tmp_path: Path) -> None:
    parts, adapters = fleet(tmp_path, "fedavgm")
    assert_close(
        strategy("fedavgm", momentum=0.0).aggregate(parts, adapter(50)), mean(parts, adapters)
    )


# -- FFA-LoRA --------------------------------------------------------------------------------------


def test_ffa_averages_products_exactly_and_never_moves_a(tmp_path: Path) -> None:
    parts, adapters = fleet(tmp_path, "ffa_lora")
    current = adapter(50)
    result = strategy("ffa_lora").aggregate(parts, current)
    frozen = {name: array for name, array in current.items() if is_lora_a(name)}
    assert same_bits({name: result[name] for name in frozen}, frozen)
    assert_close(without_a(result), mean(parts, adapters))
    shares = np.array([part.num_examples for part in parts], np.float64)
    shares /= shares.sum()
    for layer in LAYERS:
        products = [update(current | values, layer, 1.0) for values in adapters]
        np.testing.assert_allclose(
            update(result, layer, 1.0), np.tensordot(shares, products, 1), rtol=1e-5, atol=1e-5
        )


def test_ffa_takes_no_a(tmp_path: Path) -> None:
    whole = spool(tmp_path, "home", adapter(0))
    current = adapter(50)
    with pytest.raises(ProtocolError, match=r"device home: .*lora_A\.weight is unknown"):
        verify(whole, strategy("ffa_lora").shapes(whole, current))


# -- FlexLoRA and ranks ----------------------------------------------------------------------------


def best_of_rank(matrix: Array, rank: int) -> Array:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


@pytest.mark.parametrize("ranks", [(1, 2, 3), (2, 4, 6), (6, 6, 6), (1, 1, 1)])
def test_unequal_ranks_average_as_dense_products_do(tmp_path: Path, ranks: Sequence[int]) -> None:
    adapters = [adapter(k, rank) for k, rank in enumerate(ranks)]
    parts = [spool(tmp_path, f"d{k}", v, 3 * k + 1) for k, v in enumerate(adapters)]
    result = strategy("flexlora").aggregate(parts, fresh())
    total = sum(part.num_examples for part in parts)
    for layer in LAYERS:
        dense = sum(
            part.num_examples / total * update(values, layer, ALPHA / rank)
            for part, values, rank in zip(parts, adapters, ranks, strict=True)
        )
        wanted = best_of_rank(dense, RANK)
        found = update(result, layer, ALPHA / RANK)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    for name in SAVED:
        np.testing.assert_allclose(
            result[name], mean(parts, adapters_at(adapters))[name], rtol=1e-6
        )


@pytest.mark.parametrize("ranks", [(1, 2, 3), (2, 6, 4), (3, 3, 3)])
def test_partitioned_ranks_weigh_each_component_among_those_that_have_it(
    tmp_path: Path, ranks: Sequence[int]
) -> None:
    adapters = [adapter(k, rank) for k, rank in enumerate(ranks)]
    parts = [spool(tmp_path, f"d{k}", v, 3 * k + 1) for k, v in enumerate(adapters)]
    result = strategy("flexlora", rank_partitioned=True).aggregate(parts, fresh())
    for layer in LAYERS:
        a, b = lora_names(layer)
        dense = np.zeros(LAYERS[layer])
        for j in range(max(ranks)):
            holders = [k for k, rank in enumerate(ranks) if rank > j]
            total = sum(parts[k].num_examples for k in holders)
            for k in holders:
                column, line = (adapters[k][name].astype(np.float64) for name in (b, a))
                share = parts[k].num_examples / total
                dense += share * ALPHA / ranks[k] * np.outer(column[:, j], line[j])
        wanted = best_of_rank(dense, RANK)
        found = update(result, layer, ALPHA / RANK)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    if len(set(ranks)) == 1:
        assert same_bits(result, strategy("flexlora").aggregate(parts, fresh()))


@pytest.mark.parametrize(("partitioned", "left"), [(False, 0.2**5), (True, 1.0)])
def test_what_one_device_alone_holds_shrinks_unless_ranks_are_partitioned(
    tmp_path: Path, partitioned: bool, left: float
) -> None:
    """Rounds in which nobody learns anything: devices send back what they got."""
    server = strategy("flexlora", rank_partitioned=partitioned)
    before = current = strategy("flexlora").aggregate([spool(tmp_path, "d", adapter(3))], fresh())
    for _ in range(5):
        parts = [
            spool(tmp_path, "small", truncated(current, 1), 8),
            spool(tmp_path, "whole", truncated(current, RANK), 2),
        ]
        current = server.aggregate(parts, current)
    for layer in LAYERS:
        first, last = (
            np.linalg.svd(update(values, layer, ALPHA / RANK), compute_uv=False)
            for values in (before, current)
        )
        beyond = min(RANK, *LAYERS[layer])
        assert last[0] == pytest.approx(first[0], rel=1e-4)
        np.testing.assert_allclose(last[1:beyond], left * first[1:beyond], rtol=1e-3)


def adapters_at(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Only what has no rank."""
    return [{name: values[name] for name in SAVED} for values in adapters]


def test_factors_are_balanced_sorted_and_signed(tmp_path: Path) -> None:
    adapters = [adapter(k, rank) for k, rank in enumerate((2, 3))]
    parts = [spool(tmp_path, f"d{k}", v) for k, v in enumerate(adapters)]
    result = strategy("flexlora").aggregate(parts, fresh())
    for layer in LAYERS:
        a, b = (result[name].astype(np.float64) for name in lora_names(layer))
        rows, columns = np.linalg.norm(a[:5], axis=1), np.linalg.norm(b[:, :5], axis=0)
        np.testing.assert_allclose(rows, columns, rtol=1e-5)
        assert all(left >= right for left, right in pairwise(rows))
        assert (a[np.arange(5), np.argmax(np.abs(a[:5]), axis=1)] > 0).all()


def test_components_that_nobody_used_stay_trainable(tmp_path: Path) -> None:
    current = fresh()
    adapters = [adapter(k, rank) for k, rank in enumerate((1, 2))]
    parts = [spool(tmp_path, f"d{k}", v) for k, v in enumerate(adapters)]
    result = strategy("flexlora").aggregate(parts, current)
    for layer in LAYERS:
        a, b = lora_names(layer)
        assert not result[b][:, 3:].any()
        assert np.array_equal(result[a][3:], current[a][3:])
        assert result[b][:, :3].any(axis=0).all()


def test_the_first_round_of_a_device_that_learnt_nothing(tmp_path: Path) -> None:
    current = fresh()
    part = spool(tmp_path, "home", truncated(current, 2))
    result = strategy("flexlora").aggregate([part], current)
    assert same_bits(result, {name: current[name] for name in sorted(current)})


def test_the_same_rank_is_not_touched_by_truncation() -> None:
    values = adapter(0)
    cut = truncated(values, RANK)
    assert all(cut[name] is values[name] for name in values)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_device_gets_the_best_approximation_of_its_rank(tmp_path: Path, rank: int) -> None:
    sorted_out = strategy("flexlora").aggregate([spool(tmp_path, "d", adapter(3))], fresh())
    cut = truncated(sorted_out, rank)
    assert {name: array.shape for name, array in cut.items()} == shapes_at_rank(sorted_out, rank)
    for layer in LAYERS:
        wanted = best_of_rank(update(sorted_out, layer, ALPHA / RANK), rank)
        found = update(cut, layer, ALPHA / rank)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        a, b = (np.linalg.norm(cut[name].astype(np.float64)) for name in lora_names(layer))
        assert a == pytest.approx(b, rel=1e-5)


def test_a_new_component_starts_as_lora_of_that_rank_does() -> None:
    current = fresh()
    cut = truncated(current, 2)
    for name in filter(is_lora_a, current):
        assert np.array_equal(cut[name], current[name][:2])
        assert not cut[lora_b_of(name)].any()


def test_an_update_of_another_rank_than_the_devices_is_refused(tmp_path: Path) -> None:
    claimed = spool(tmp_path, "home", adapter(0, 4))
    other = Contribution("home", 1, claimed.files, 2, ALPHA / 2)
    with pytest.raises(ProtocolError, match=r"lora_A\.weight is \[4, 7\], not \[2, 7\]"):
        verify(other, strategy("flexlora").shapes(other, adapter(50)))
    with pytest.raises(ProtocolError, match=r"is \[4, 7\], not \[6, 7\]"):
        strategy("fedavg").aggregate([claimed], adapter(50))


@given(
    outputs=st.integers(1, 9),
    inputs=st.integers(1, 9),
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    rank=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_sums_of_products_equal_dense_ones(
    outputs: int, inputs: int, ranks: list[int], rank: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    product, dense = ProductSum(), np.zeros((outputs, inputs))
    for own in ranks:
        weight, b, a = (
            rng.uniform(0.1, 2),
            rng.normal(size=(outputs, own)),
            rng.normal(size=(own, inputs)),
        )
        product.add(weight, b, a)
        dense += weight * b @ a
    b, a = product.best(rank)
    assert b.shape[1] == len(a) <= min(rank, outputs, inputs)
    scale = np.linalg.norm(dense)
    np.testing.assert_allclose(b @ a, best_of_rank(dense, rank), atol=1e-6 * scale + 1e-12)


@pytest.mark.process
def test_memory_does_not_grow_with_devices_of_unequal_ranks(tmp_path: Path) -> None:
    layer, size = "m.layers.0.q", 256
    a, b = lora_names(layer)
    rng = np.random.default_rng(0)

    def values(rank: int) -> Adapter:
        return {
            a: rng.normal(size=(rank, size)).astype(np.float32),
            b: rng.normal(size=(size, rank)).astype(np.float32),
        }

    parts = [spool(tmp_path, f"d{k:02}", values(16)) for k in range(74)]
    current = values(16)
    server = make_strategy(AggregationSettings(strategy="flexlora"), LoraSettings(rank=16))

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            server.aggregate(parts[:count], current)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # After both numbers of devices the factors are equally wide.
    assert peak(74) < 1.05 * peak(40)


# -- against devices that lie ----------------------------------------------------------------------


def test_median(tmp_path: Path) -> None:
    for count in (3, 4, 5):
        parts, adapters = fleet(tmp_path, "median", count)
        wanted = {name: np.median(stacked(adapters, name), axis=0) for name in adapters[0]}
        assert_close(strategy("median").aggregate(parts, adapter(50)), wanted)


@pytest.mark.parametrize(
    ("fraction", "count", "trimmed"),
    [(0.2, 5, 1), (0.3, 5, 2), (0.01, 3, 1), (0.49, 7, 3), (0.2, 2, 0), (0.4, 4, 1)],
)
def test_trimmed_mean(tmp_path: Path, fraction: float, count: int, trimmed: int) -> None:
    parts, adapters = fleet(tmp_path, "trimmed_mean", count)
    wanted = {}
    for name in adapters[0]:
        values = np.sort(stacked(adapters, name), axis=0)
        wanted[name] = values[trimmed : count - trimmed].mean(axis=0)
    server = strategy("trimmed_mean", trim_fraction=fraction)
    assert_close(server.aggregate(parts, adapter(50)), wanted)


def crowd(folder: Path, honest: int, liars: int) -> tuple[list[Contribution], list[Adapter]]:
    """Honest adapters around one point, liars far away and agreed among themselves."""
    centre, lie = adapter(0), adapter(1)
    adapters = []
    for number in range(honest + liars):
        rng = np.random.default_rng(number)
        base, spread = (centre, 0.1) if number < honest else (lie, 0.01)
        adapters.append(
            {
                name: (array + spread * rng.normal(size=array.shape)).astype(np.float32)
                for name, array in base.items()
            }
        )
    parts = [spool(folder, f"d{k}", v, 1000 if k >= honest else 1) for k, v in enumerate(adapters)]
    return parts, adapters


def naive_krum(adapters: Sequence[Adapter], byzantine: int) -> list[int]:
    """Numbers of the adapters, the best score first."""
    flat = [np.concatenate([v[n].astype(np.float64).ravel() for n in sorted(v)]) for v in adapters]
    scores = []
    for i, own in enumerate(flat):
        distances = sorted(
            float(((own - other) ** 2).sum()) for j, other in enumerate(flat) if j != i
        )
        scores.append(sum(distances[: len(flat) - byzantine - 2]))
    return sorted(range(len(flat)), key=lambda number: scores[number])


def test_krum_takes_an_honest_one_as_it_is(tmp_path: Path) -> None:
    parts, adapters = crowd(tmp_path, honest=5, liars=2)
    result = strategy("krum", byzantine=2).aggregate(parts, adapter(50))
    best = naive_krum(adapters, 2)[0]
    assert best < 5
    assert same_bits(result, {name: adapters[best][name] for name in sorted(adapters[best])})


@pytest.mark.parametrize(("selected", "count"), [(None, 3), (1, 1), (4, 4), (5, 5)])
def test_multi_krum_averages_the_nearest(tmp_path: Path, selected: int | None, count: int) -> None:
    parts, adapters = crowd(tmp_path, honest=5, liars=2)
    result = strategy("multi_krum", byzantine=2, selected=selected).aggregate(parts, adapter(50))
    chosen = [adapters[number] for number in naive_krum(adapters, 2)[:count]]
    assert_close(result, {name: stacked(chosen, name).mean(axis=0) for name in chosen[0]})


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "multi_krum"])
def test_one_liar_with_many_examples_moves_robust_ones_little(tmp_path: Path, name: str) -> None:
    parts, adapters = crowd(tmp_path, honest=4, liars=1)
    current = adapter(50)
    honest = {key: stacked(adapters[:4], key).mean(axis=0) for key in adapters[0]}

    def error(result: Adapter) -> float:
        return max(float(np.abs(result[key] - honest[key]).max()) for key in honest)

    assert error(strategy(name).aggregate(parts, current)) < 0.5
    assert error(strategy("fedavg").aggregate(parts, current)) > 2.0


def test_krum_says_what_it_needs(tmp_path: Path) -> None:
    parts, _ = fleet(tmp_path, "krum", 4)
    with pytest.raises(ProtocolError, match=r"krum needs 5 adapters against 1 .*, 4 came"):
        strategy("krum").aggregate(parts, adapter(50))


def test_equal_scores_go_to_the_first_name(tmp_path: Path) -> None:
    same = [adapter(0)] * 5
    parts = [spool(tmp_path, f"d{k}", v) for k, v in enumerate(same)]
    assert np.array_equal(krum_scores(np.zeros((5, 5)), 1), np.zeros(5))
    server: Any = strategy("krum")
    assert server.nearest(parts[::-1], adapter(50))[0].device == "d0"


@pytest.mark.parametrize("name", NAMES)
def test_every_line_of_the_table_is_a_strategy_that_reads_what_it_says(name: str) -> None:
    traits = STRATEGIES[name]
    options = AggregationSettings.model_fields
    assert set(traits.reads) <= options.keys()
    assert issubclass(resolve_name(traits.implementation), Strategy)
    assert (traits.server_step is not None) == ("server_learning_rate" in traits.reads)
    assert bool(traits.fewest_more) == ("byzantine" in traits.reads)
    own = strategy(name)
    current = adapter(0)
    assert bool(own.folded(current)) == traits.folds


def test_settings_name_no_strategy() -> None:
    settings = (ROOT / "sfl" / "config").glob("*.py")
    source = "".join(path.read_text(encoding="utf-8") for path in settings)
    found = [name for name in NAMES if f'strategy == "{name}"' in source]
    assert found == []
