"""How far a device may change the adapter, how much it may weigh, and what is made of more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfl.adapters.initial import fresh_lora
from sfl.adapters.rank import truncated
from sfl.aggregation.bound import Length, Verdict, judge
from sfl.aggregation.examine import Examined, examine, length_of, not_finite
from sfl.aggregation.shares import bounded
from sfl.aggregation.traits import STRATEGIES
from sfl.config import AggregationSettings, RunSettings, TrainingSettings
from sfl.rounds import Steps
from sfl.rounds.work import Walk, learning_rate_factor, walk
from tests.house.adapters import Adapter, adapter, same_bits, spool, strategy

VALUES = 10_000  # whose root is 100: so many steps at 0.01 have a reach of as much


def judged(
    norms: Mapping[str, float],
    steps: Mapping[str, int] | int = 10,
    fewest: int = 1,
    **options: Any,
) -> Verdict:
    lengths = {name: Length(norm, 0.0, VALUES) for name, norm in norms.items()}
    own = dict.fromkeys(norms, steps) if isinstance(steps, int) else steps
    walks = {name: Walk(count, 0.01 * count) for name, count in own.items()}
    return judge(lengths, walks, AggregationSettings(**options), 0.0, fewest)


def test_what_is_far_beyond_the_others_is_refused_and_the_reason_has_both_numbers() -> None:
    verdict = judged({"a": 1.0, "b": 2.0, "mallory": 7.6}, large_updates="refuse")
    assert set(verdict.refused) == {"mallory"} and not verdict.shortened
    assert "norm 7.6, more than 7.5 (5 times the other devices')" in verdict.refused["mallory"]
    assert not judged({"a": 1.0, "b": 2.0, "mallory": 7.4}, large_updates="refuse").refused


def test_an_honest_device_that_comes_late_counts_shortened_and_is_no_offender() -> None:
    # Lengths as they were: two homes had trained for rounds when two others joined.
    norms = {"pi": 0.17, "small": 0.18, "late-0": 5.2, "late-1": 5.5}
    verdict = judged(norms, 20)
    assert not verdict.refused and set(verdict.shortened) == {"late-0", "late-1"}
    assert verdict.shortened["late-0"] * 5.2 == pytest.approx(5 * 0.18)
    said = "norm 5.2, more than 0.9 (5 times the other devices'); it counts shortened to 0.9"
    assert said in verdict.notes["late-0"]


def test_what_no_steps_can_lead_to_is_refused_and_said_with_that_bound() -> None:
    verdict = judged({"a": 1.0, "b": 2.0, "mallory": 41.0})
    assert set(verdict.refused) == {"mallory"}
    said = "norm 41, more than 40 (4 times as far as its steps can lead)"
    assert said in verdict.refused["mallory"]


@pytest.mark.parametrize("others", [0.0, 1e-9, 1e9])
def test_one_liar_of_three_cannot_have_an_honest_device_refused(others: float) -> None:
    for rule in ("auto", "refuse"):
        verdict = judged({"a": 1.0, "b": 1.5, "mallory": others}, large_updates=rule)
        assert set(verdict.refused) | set(verdict.shortened) <= {"mallory"}


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_devices_are_held_to_what_their_steps_can_reach_alone(count: int) -> None:
    norms = {"a": 39.9, "b": 0.0}
    assert not judged(dict(list(norms.items())[:count])).refused
    far = judged({"a": 40.1, **({"b": 1.0} if count == 2 else {})}, fewest=0)
    assert set(far.refused) == {"a"}
    assert "4 times as far as its steps can lead" in far.refused["a"]


def test_more_steps_go_further_and_fewer_are_not_held_against_a_device() -> None:
    # b has a hundred times the data of the others, and comes as much further.
    assert not judged({"a": 1.0, "b": 90.0, "c": 1.0}, {"a": 10, "b": 1000, "c": 10}).refused
    assert not judged({"a": 9.0, "b": 1.0, "c": 9.0}, {"a": 1000, "b": 1, "c": 1000}).refused
    assert judged({"a": 1.0, "b": 90.0, "c": 1.0}, 1000).shortened


def test_devices_whose_steps_cannot_move_anything_are_no_measure() -> None:
    # The first step of a warmup has a learning rate of zero; a device with more data goes on.
    training = TrainingSettings(learning_rate=0.01, warmup_steps=10)
    walks = {name: walk(training, Steps(1, 0, 4)) for name in ("b", "c")}
    walks["a"] = walk(training, Steps(25, 0, 100))
    lengths = {name: Length(0.0, 0.0, VALUES) for name in ("b", "c")}
    lengths["a"] = Length(0.9 * walks["a"].rates * 100, 0.0, VALUES)
    assert not judge(lengths, walks, AggregationSettings(), 0.0, 1).refused


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("count", "first"), [(1, 0), (7, 3), (20, 80), (4000, 8000)])
def test_a_walk_adds_up_the_learning_rates_of_its_steps(
    schedule: Any, count: int, first: int
) -> None:
    total = 5 * count
    training = TrainingSettings(learning_rate=0.02, warmup_steps=5, schedule=schedule)
    found = walk(training, Steps(count, first % total, total))
    steps = range(first % total, first % total + count)
    wanted = sum(0.02 * learning_rate_factor(training, step, total) for step in steps)
    assert found.steps == count and found.rates == pytest.approx(wanted, rel=0.02)


def test_no_steps_that_move_anything_bound_nothing_that_did_not_move() -> None:
    assert judged({"a": 0.0, "b": 0.0, "c": 0.0}).refused == {}


def test_the_longest_go_first_and_who_cannot_be_spared_is_shortened() -> None:
    norms = {"a": 1.0, "b": 1.0, "c": 1.0, "m": 15.0, "n": 10.0}
    assert set(judged(norms, fewest=3, large_updates="refuse").refused) == {"m", "n"}
    some = judged(norms, fewest=4, large_updates="refuse")
    assert set(some.refused) == {"m"}
    assert some.shortened == pytest.approx({"n": 0.5})
    assert "counts shortened" in some.notes["n"]
    clipped = judged(norms, fewest=1, large_updates="clip")
    assert not clipped.refused
    assert clipped.shortened == pytest.approx({"m": 1 / 3, "n": 0.5})


def test_a_number_bounds_every_device_and_off_none() -> None:
    norms = {"a": 1.0, "b": 1e30}
    assert set(judged(norms, max_update_norm=5.0).refused) == {"b"}
    assert judged(norms, max_update_norm="off") == Verdict()


def test_the_bound_is_in_the_effective_settings() -> None:
    values = AggregationSettings().model_dump()
    assert values["max_update_norm"] == "auto" and values["large_updates"] == "auto"


# -- lengths, for every strategy -------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_length_counts_from_what_the_device_began_with(tmp_path: Path, name: str) -> None:
    current, rank = adapter(50), 3 if name in ("flexlora", "flora") else 6
    began: Adapter = dict(current)
    if name == "flexlora":
        began = truncated(current, rank)
    if name == "flora":
        shapes = {key: array.shape for key, array in truncated(current, rank).items()}
        began |= fresh_lora(shapes, 7, 4)
    if name == "ffa_lora":
        began = {key: array for key, array in began.items() if "lora_A" not in key}
    moved = {key: array + np.float32(0.5) for key, array in began.items()}
    one = spool(tmp_path, "d", moved)
    one = type(one)(one.device, 1, one.files, rank, one.scaling)
    length = length_of(one, strategy(name).start(one, current, 7, 4))
    count = sum(array.size for array in began.values())
    assert length.values == count
    assert length.norm == pytest.approx(0.5 * math.sqrt(count), rel=1e-5)


def settings(count: int, **aggregation: Any) -> RunSettings:
    return RunSettings.model_validate(
        {
            "model": {"path": "m"},
            "lora": {"rank": 6, "alpha": 8.0},
            "training": {"learning_rate": 0.01},
            "aggregation": aggregation,
            "devices": [{"name": f"d{n}"} for n in range(count)],
        }
    )


def examined(folder: Path, far: float, count: int = 5, **aggregation: Any) -> Examined:
    """A round of devices that moved by 0.1 or so, but for the last, which moved by `far`."""
    config, current = settings(count, **aggregation), adapter(50)
    contributions = []
    for number in range(count):
        step = np.float32(far if number == count - 1 else 0.1 + 0.01 * number)
        moved = {name: array + step for name, array in current.items()}
        contributions.append(spool(folder, f"d{number}", moved, 5))
    rule = strategy(config.aggregation.strategy)
    steps = {one.device: Steps(20, 0, 10**6) for one in contributions}
    return examine(contributions, steps, rule, current, config, 1)


def test_an_honest_round_is_given_on_untouched(tmp_path: Path) -> None:
    result = examined(tmp_path, 0.2)
    assert not result.verdict.refused and not result.verdict.shortened
    assert all(one.shortened is None for one in result.contributions)


def test_a_shortened_update_counts_as_far_as_its_bound(tmp_path: Path) -> None:
    result = examined(tmp_path, 1000.0, large_updates="clip")
    (odd,) = [one for one in result.contributions if one.shortened is not None]
    assert odd.device == "d4"
    current = adapter(50)
    shapes = {name: array.shape for name, array in current.items()}
    moved = dict(odd.tensors(shapes))
    norm = math.sqrt(sum(float(np.square(moved[n] - current[n]).sum()) for n in current))
    count = sum(array.size for array in current.values())
    # Four times 20 steps of 0.01, or five times the others' 0.115: the less of both.
    assert norm == pytest.approx(5 * 0.115 * math.sqrt(count), rel=1e-4)


def test_without_the_device_that_was_refused_the_mean_is_that_of_the_others(
    tmp_path: Path,
) -> None:
    result = examined(tmp_path, 1000.0)
    assert set(result.verdict.refused) == {"d4"}
    others = [one for one in result.contributions if one.device != "d4"]
    (tmp_path / "without").mkdir()
    without = examined(tmp_path / "without", 0.13, count=4)
    assert same_bits(
        strategy("fedavg").aggregate(others, adapter(50)),
        strategy("fedavg").aggregate(without.contributions, adapter(50)),
    )


def test_what_is_not_finite_is_named() -> None:
    values = adapter(1)
    assert not_finite(values) is None
    values["base_model.model.score.bias"][1] = np.inf
    assert not_finite(values) == "base_model.model.score.bias"


# -- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("examples", "most", "wanted"),
    [
        ([10, 20, 70], 1.0, [10, 20, 70]),
        ([10, 20, 70], 0.7, [10, 20, 70]),
        ([10, 20, 70], 0.5, [10, 20, 30]),
        ([10, 20, 10_000_000], 0.5, [10, 20, 30]),
        ([100, 100, 100, 100], 0.3, [100, 100, 100, 100]),
        ([10, 20, 70], 0.1, [10, 10, 10]),
        ([1], 0.2, [1]),
        ([4, 900, 900, 4], 0.4, [4, 16, 16, 4]),
    ],
)
def test_no_device_weighs_more_than_its_share(
    examples: list[int], most: float, wanted: list[int]
) -> None:
    found = bounded({f"d{n}": number for n, number in enumerate(examples)}, most)
    assert list(found.values()) == wanted
    if most * len(examples) >= 1.0:
        assert max(found.values()) <= most * sum(found.values()) + 1.0
