"""What a run's nodes show of their costs: each pass by its purpose and its device, link and bits.

`DeviceReport`s are made of the run's own journal, as a planner has them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfl.config import load_run
from sfl.cost.shown import Crossing, Passes
from sfl.planners.observed import DeviceReport, Observations
from sfl.report.journal import read_journal
from sfl.report.observing import device_report
from sfl.rounds import ReportReceived
from sfl.rounds.values import RoundReport
from tests.house.federation import Outcome, finished, run
from tests.house.fleets import completions, device, settings, tiny
from tests.house.twin import played

pytestmark = pytest.mark.process
STEPS, BATCH, HIDDEN = 6, 8, 32


def reports(outcome: Outcome) -> list[RoundReport]:
    """Of rounds with steps, in their order."""
    journal = read_journal(load_run(outcome.folder / "config.toml"), outcome.folder)
    assert journal is not None
    try:
        events = [entry.event for entry in journal.entries()]
    finally:
        journal.close()
    said = [e.report for e in events if isinstance(e, ReportReceived)]
    return [report for report in said if report is not None and report.num_steps]


def heard(report: RoundReport) -> DeviceReport:
    return device_report(report, "edge")


def run_of(
    folder: Path,
    devices: list[dict[str, Any]],
    how: Callable[[Path, dict[str, Any]], Outcome] = played,
    **sections: dict[str, Any],
) -> Outcome:
    training = {"batch_size": BATCH, "local_steps": STEPS, **sections.pop("training", {})}
    section = {"rounds": 2, **sections.pop("run", {})}
    values = settings(tiny("llama"), training=training, run=section, **sections)
    values["devices"] = devices
    return finished(how(folder, values))


def passed(passes: Passes, part: str, purpose: str) -> dict[tuple[int, bool, bool], float]:
    """(blocks, embedding, head) -> passes."""
    return {
        (key.blocks, key.embedding, key.head): sums.passes
        for key, sums in passes.items()
        if (key.part, key.purpose) == (part, purpose)
    }


def tokens(passes: Passes, part: str) -> float:
    """Of training, through blocks."""
    return sum(
        sums.size
        for key, sums in passes.items()
        if (key.part, key.purpose) == (part, "training") and key.blocks
    )


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("vanilla")
    data = [completions(folder / f"{name}.jsonl", seed, 40) for seed, name in enumerate("ab")]
    return run_of(folder, [device("a", data[0], 1), device("b", data[1], 2)])


def test_passes_are_told_by_purpose_span_and_device(vanilla: Outcome) -> None:
    for report in reports(vanilla):
        cut = 1 if report.device == "a" else 2
        own, there = heard(report).shown, heard(report).edge_passes
        known = STEPS * report.round - 1  # the process's very first of each is left out
        assert passed(own.passes, "forward", "training") == {
            (0, True, False): known, (cut, False, False): known
        }  # fmt: skip
        assert passed(own.passes, "backward", "training") == {(cut, False, False): known}
        assert passed(own.passes, "step", "training") == {(cut, False, False): known + 1}
        evaluated = passed(own.passes, "forward", "evaluation")
        assert evaluated.keys() == {(0, True, False), (cut, False, False)}
        # One of the two devices had the edge's very first pass.
        for part in ("forward", "backward"):
            counts = passed(there, part, "training")
            assert counts.keys() == {(3 - cut, False, False), (0, False, True)}
            assert all(STEPS - 1 <= count <= STEPS for count in counts.values())
        scored = {(3 - cut, False, False), (0, False, True)} if report.round == 1 else set()
        assert passed(there, "forward", "evaluation").keys() == scored
    ends = [report for report in reports(vanilla) if report.round == 2]
    both = sum(tokens(heard(report).edge_passes, "forward") for report in ends)
    assert both == sum(report.num_tokens for report in ends)


def test_bits_are_those_of_the_cut_that_was_crossed(vanilla: Outcome) -> None:
    last = {report.device: report for report in reports(vanilla)}
    for name, cut in (("a", 1), ("b", 2)):
        crossed = heard(last[name]).shown.crossed
        assert set(crossed) == {("activation", cut), ("gradient", cut)}
        trained = sum(r.num_tokens for r in reports(vanilla) if r.device == name)
        for one in crossed.values():
            assert (one.messages, one.values) == (2 * STEPS, trained * HIDDEN)
            assert one.bits is not None and 24.0 < one.bits < 36.0  # zeros are left out


def test_both_nodes_costs_are_known_after_a_round(vanilla: Outcome) -> None:
    first = [heard(report) for report in reports(vanilla) if report.round == 1]
    seen = Observations().with_round(first)
    for name in "ab":
        cost = seen.device_cost(name)
        assert cost is not None and cost.node.threads == 1 and cost.node.dtype == "float32"
        assert cost.node.forward(100, 1) > 0 and cost.node.backward(100, 1) > 0
        assert cost.node.step.unit > 0 and cost.node.encode.seconds(100) > 0
    edge = seen.edge_cost("edge")
    assert edge is not None and edge.node.head.both + edge.node.head.forward > 0


def test_a_u_shape_has_a_tail_and_four_roles(tmp_path: Path) -> None:
    data = completions(tmp_path / "a.jsonl", 1, 40)
    outcome = run_of(tmp_path, [device("a", data, 1, tail_layers=1)], run={"topology": "u_shaped"})
    said = heard(reports(outcome)[-1])
    wanted: set[tuple[Crossing, int]] = {
        ("activation", 1), ("gradient", 1), ("hidden", 1), ("tail_gradient", 1)
    }  # fmt: skip
    assert set(said.shown.crossed) == wanted
    parts = {(0, True, False), (1, False, False), (0, False, True)}
    assert passed(said.shown.passes, "forward", "training").keys() == parts
    ends = {(1, False, False), (0, False, True)}
    assert passed(said.shown.passes, "backward", "training").keys() == ends
    assert passed(said.edge_passes, "forward", "training").keys() == ends - {(0, False, True)}


def test_devices_in_one_pass_have_their_shares_of_it(tmp_path: Path) -> None:
    """Passes of two devices together count once over both, with all tokens."""
    data = [completions(tmp_path / f"{name}.jsonl", seed, 40) for seed, name in enumerate("ab")]
    outcome = run_of(
        tmp_path,
        [device("a", data[0], 1), device("b", data[1], 1)],
        edge={"batch_devices": 2},
        training={"computation": "lean"},
    )
    ends = [heard(report) for report in reports(outcome) if report.round == 2]
    trained = [report.num_tokens for report in reports(outcome) if report.round == 2]
    assert sum(tokens(one.edge_passes, "backward") for one in ends) == pytest.approx(sum(trained))
    count = sum(passed(one.edge_passes, "backward", "training")[2, False, False] for one in ends)
    assert count == pytest.approx(round(count), abs=1e-6) and count <= 2 * STEPS


def within(found: float, wanted: float) -> bool:
    return abs(found / wanted - 1.0) < 0.05


@pytest.mark.alone
def test_a_shaped_link_is_found_at_its_settings(tmp_path: Path) -> None:
    """Real processes, in which all else is quick beside 0.4 Mbit/s up and 0.2 down."""
    link = {"up_mbit": 0.4, "down_mbit": 0.2, "delay_ms": 100.0}
    data = completions(tmp_path / "a.jsonl", 1, 60)
    training = {"local_steps": 16}
    outcome = run_of(tmp_path, [device("a", data, 1, link=link)], run, training=training)
    cost = Observations().with_round(map(heard, reports(outcome))).device_cost("a")
    assert cost is not None
    assert within(cost.link.up, 0.4e6 / 8) and within(cost.link.down, 0.2e6 / 8), cost.link
    assert within(cost.link.latency, 0.1), cost.link


@pytest.mark.alone
def test_an_adapter_tells_the_rates_where_all_messages_are_of_one_size(tmp_path: Path) -> None:
    """Their latency would be taken for bytes, and an adapter foretold ten times too slow."""
    data = tmp_path / "a.jsonl"
    data.write_text('{"text": "the lamp in the kitchen is on"}\n' * 64)
    link = {"up_mbit": 16.0, "down_mbit": 8.0, "delay_ms": 100.0}
    values = settings(
        tiny("llama", '{"hidden_size": 128, "intermediate_size": 512}'),
        run={"rounds": 2},
        training={"batch_size": 1, "local_steps": 5},
        lora={"rank": 64},
        data={"eval_fraction": 0.1},
    )
    values["devices"] = [device("a", data, 1, link=link)]
    outcome = finished(run(tmp_path, values))
    cost = Observations().with_round(map(heard, reports(outcome))).device_cost("a")
    assert cost is not None
    size = 1 << 20
    assert cost.link.up_seconds(size) == pytest.approx(0.1 + 8 * size / 16e6, rel=0.25), cost.link
    assert cost.link.down_seconds(size) == pytest.approx(0.1 + 8 * size / 8e6, rel=0.25), cost.link
