"""What a cloud holds in memory of a run does not grow with its rounds, or hardly."""

from __future__ import annotations

import gc
import math
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType

import pytest

from cloud_aggregator.sealed import Sealed
from sfl.metrics.snapshot import PHASES, ByteTotals, NodeSnapshot, PhaseTotals
from sfl.metrics.waits import Wait
from sfl.node.numbered import round_name
from sfl.report.projection import RunProjection
from sfl.report.scores import Scores
from sfl.report.statistics import Statistics
from sfl.report.summary import Staleness
from sfl.rounds import (
    AdapterReady,
    Coordinator,
    DeviceLost,
    DeviceReady,
    EdgeReady,
    Phase,
    ReportReceived,
)
from sfl.rounds.journal import Entry, MemoryJournal
from sfl.rounds.messages import NodeHeard
from sfl.rounds.values import DeviceFacts, RoundReport, Score
from tests.house.lost import STEPS, deliver, join, settings

DEVICES = [f"d{number}" for number in range(8)]
FACTS = DeviceFacts(num_examples=10, example_kind="completion")
WARM, LONG = 10, 60
"""Rounds that are not looked at, and that are."""


def grown(play: Callable[[int], object]) -> float:
    """Bytes a round that are held longer than it lasts."""
    for round_ in range(1, WARM):
        play(round_)
    gc.collect()
    tracemalloc.start()
    try:
        for round_ in range(WARM, WARM + LONG):
            play(round_)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / LONG
    finally:
        tracemalloc.stop()


def counted(name: str, began: float, up: int) -> NodeSnapshot:
    """As a device's are: all that a node counts."""
    totals = ByteTotals({"adapter": up}, {"adapter": 7 * up}, {"activation": up}, {})
    phases = {phase: PhaseTotals(up, 0.1 * up, (up, *[0] * 5)) for phase in PHASES[:6]}
    shape = len(PhaseTotals().buckets)
    phases = {own: PhaseTotals(t.count, t.seconds, (up,) * shape) for own, t in phases.items()}
    waits = (Wait("edge at 127.0.0.1:7001", "orders", 1.0),)
    return NodeSnapshot(name, "device", began, bytes=totals, phases=phases, waits=waits)


def of_round(round_: int, late: bool = False) -> Iterator[object]:
    """What is told in a round of eight devices, one of which has been started again."""
    for number, name in enumerate(DEVICES):
        life, began = (round_, float(round_)) if number == 7 else (0, 1.0)
        own = counted(name, began, round_).to_json()
        if number == 7:
            yield DeviceReady(name, 10, facts=FACTS)
        yield NodeHeard("device", name, own, life)
        score = Score(12.0 + number / round_, 10, 3, 4)
        report = RoundReport(round_, name, STEPS, 1.0, 100, 2.0, score, snapshot=own)
        yield ReportReceived(name, round_, report)
    yield AdapterReady(round_, "a", staleness=dict.fromkeys(DEVICES, 3 * late))


@pytest.mark.parametrize("late", [False, True])
def test_what_was_told_of_a_round_is_not_kept(late: bool) -> None:
    told = RunProjection()
    for name in DEVICES:
        told.take(Entry(0.0, DeviceReady(name, 10, facts=FACTS)))

    def play(round_: int) -> None:
        for event in of_round(round_, late):
            told.take(Entry(float(round_), event))  # type: ignore[arg-type]
        told.records.clear()  # written, by a cloud

    assert grown(play) < 2000, "with a device's life in each round, which is most of it"
    assert told.rounds.best_round() is not None


def test_what_is_decided_of_a_round_is_not_kept() -> None:
    class Forgets(MemoryJournal):
        def append(self, entry: Entry) -> None:
            """It is on a disk."""

    config = settings(3, run={"rounds": 10 * LONG, "min_devices": 1})
    coordinator = Coordinator(config, journal=Forgets())
    coordinator.handle(EdgeReady("e", 4), 0.0)
    for name in DEVICES[:3]:
        join(coordinator, name, 0.0)

    def play(round_: int) -> None:
        now = 10.0 * round_
        assert (coordinator.round, coordinator.phase) == (round_, Phase.ROUND)
        coordinator.handle(DeviceLost("d1", "killed"), now)
        join(coordinator, "d1", now + 1.0)
        for name in DEVICES[:3]:
            deliver(coordinator, name, now + 2.0)
        coordinator.handle(AdapterReady(round_, f"adapters/{round_name(round_)}"), now + 3.0)

    assert grown(play) < 256


def test_digests_of_what_is_loaded_no_more_are_not_kept(tmp_path: Path) -> None:
    sealed = Sealed(tmp_path)

    def play(round_: int) -> None:
        name = f"adapters/{round_name(round_)}/adapter_model.safetensors"
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"values")
        sealed.seal([name])
        sealed.forget_before(round_, "base_updates/")

    assert grown(play) < 64


def test_the_latest_digests_and_those_of_the_bases_stay(tmp_path: Path) -> None:
    names = [f"adapters/{round_name(n)}/a" for n in (1, 2, 3)]
    names += ["strategy/round-0003.safetensors", "base_updates/round-0001.safetensors"]
    known = dict.fromkeys(names, "0" * 64)
    sealed = Sealed(tmp_path, known)
    sealed.forget_before(2, "base_updates/")
    assert set(sealed._digests) == set(names[1:])


def test_lives_before_the_latest_add_up_to_the_same() -> None:
    statistics = Statistics()
    said = [counted("d0", float(life), 10 + life) for life in range(5)]
    for own in said:
        statistics.heard(own, statistics.life_of(own))
    found = statistics.all()
    assert [(own.started_at, own.bytes, own.phases) for own in found] == [
        (own.started_at, own.bytes, own.phases) for own in said
    ]


# -- which round is the best -----------------------------------------------------------------------


def test_the_best_round_is_that_of_all_scores_summed_exactly() -> None:
    """In any order, also where scores come late; as the definition has it."""
    drawn = random.Random(7)
    for _ in range(20):
        losses = {
            (round_, device): drawn.choice((0.1, 0.2, 0.3, 1e16, -1e16))
            for round_ in range(1, 30)
            for device in range(4)
        }
        told = list(losses)
        drawn.shuffle(told)
        scores, before = Scores(), dict[int, list[float]]()
        for round_, device in told:
            scores.take(_scored(round_, losses[round_, device]))
            before.setdefault(round_, []).append(losses[round_, device])
            if drawn.random() < 0.3:
                assert scores.best() == _by_definition(before)
        assert scores.best() == _by_definition(before)


def test_no_scores_have_no_best() -> None:
    scores = Scores()
    scores.take(_scored(0, 0.1))
    assert scores.best() is None


class _Scored:
    """As much of a record as counts."""

    def __init__(self, round_: int, loss: float) -> None:
        self.round, self.eval_loss_sum, self.eval_targets = round_, loss, 10

    @property
    def on_sample(self) -> _Scored:
        return self


def _scored(round_: int, loss: float) -> _Scored:  # type: ignore[misc]
    return _Scored(round_, loss)


def _by_definition(before: dict[int, list[float]]) -> int:
    return min(before, key=lambda r: (math.fsum(before[r]) / (10 * len(before[r])), r))


def test_staleness_is_counted() -> None:
    assert Staleness.of({0: 3, 2: 1}) == Staleness(4, 0.5, 2)
    assert Staleness.of(MappingProxyType({})) == Staleness(0, 0.0, 0)
