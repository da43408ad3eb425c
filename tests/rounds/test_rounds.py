"""The coordinator as a pure state machine: no clock, no socket, every ending tried."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sfl.config import RunSettings
from sfl.report.journal import SqliteJournal
from sfl.report.projection import RunProjection
from sfl.rounds import (
    AdapterReady,
    Aggregate,
    Coordinator,
    DeviceJoined,
    DeviceLost,
    DeviceMoved,
    DeviceOffended,
    DeviceReady,
    EdgeLost,
    EdgeReady,
    Evict,
    Fault,
    FinishRun,
    Phase,
    Refuse,
    RefuseEdge,
    Rehearse,
    Rehearsed,
    Report,
    ReportReceived,
    RunState,
    Settle,
    StartRound,
    TextForm,
    Tick,
    UpdateReceived,
    UpdatesRefused,
    UseModel,
    UseTextForm,
    Welcome,
    step,
)
from sfl.rounds.journal import MemoryJournal
from tests.house.rebuilt import MOST_DEVICES, NeverMarked, Rebuilt
from tests.house.retold import assert_told_again


@pytest.fixture(autouse=True, params=["as it is", "in memory", "from the first event", "SQLite"])
def rebuilt(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """Every scenario once more with a cloud that is killed before each event, and goes on from its
    journal."""
    if request.param == "as it is":
        yield
        return
    runs: list[tuple[Rebuilt, RunProjection]] = []

    def forgetful(config: RunSettings, now: float = 0.0) -> Coordinator:
        folder = tmp_path / str(len(runs))
        folder.mkdir()
        make = {"in memory": MemoryJournal, "from the first event": NeverMarked}.get(request.param)
        journal, live = SqliteJournal(folder) if make is None else make(), RunProjection()
        runs.append((Rebuilt(config, now, journal, live.take), live))
        return runs[-1][0]

    monkeypatch.setattr(sys.modules[__name__], "Coordinator", forgetful)
    yield
    for coordinator, live in runs:
        journal = coordinator.journal
        if len(coordinator.settings.devices) <= MOST_DEVICES:
            assert_told_again(live, journal, coordinator.state, coordinator.settings)
        journal.close()


def settings(count: int = 3, **sections: Any) -> RunSettings:
    values: dict[str, Any] = {
        "model": {"path": "m"},
        "run": {"rounds": 2},
        "training": {"local_steps": 5, "batch_size": 4},
        "devices": [{"name": f"d{n}", "cut_layer": 1} for n in range(count)],
        "network": {},
    }
    values |= sections
    values["network"] = {"rejoin_timeout": 0, **values["network"]}  # lost is lost: test_away waits
    return RunSettings.model_validate(values)


def joined(config: RunSettings, num_examples: int = 10) -> tuple[Coordinator, list[Any]]:
    coordinator = Coordinator(config, now=0.0)
    assert coordinator.handle(EdgeReady("e", 4), 0.0) == [UseModel("")]
    commands: list[Any] = []
    for entry in config.devices:
        assert coordinator.handle(DeviceJoined(entry.name, "e"), 0.0) == [Welcome(entry.name)]
        commands = coordinator.handle(DeviceReady(entry.name, num_examples), 0.0)
    return coordinator, commands


def deliver(coordinator: Coordinator, device: str, steps: int = 5) -> list[Any]:
    round_ = coordinator.round
    commands: list[Any] = []
    for side in ("device", "edge"):
        event = UpdateReceived(device, side, round_, steps)  # type: ignore[arg-type]
        commands += coordinator.handle(event, 1.0)
    return commands + coordinator.handle(ReportReceived(device, round_), 1.0)


def test_a_run_trains_every_round_and_ends_with_an_evaluation() -> None:
    coordinator, commands = joined(settings())
    for round_ in (1, 2):
        (start,) = commands
        assert isinstance(start, StartRound)
        assert start.round == round_
        assert {s.count for s in start.devices.values()} == {5}
        assert {s.first for s in start.devices.values()} == {5 * (round_ - 1)}
        assert {s.total for s in start.devices.values()} == {10}
        ends = [deliver(coordinator, f"d{n}") for n in range(3)]
        assert ends[:2] == [[], []]
        assert ends[2] == [Aggregate(round_, {"d0": 10, "d1": 10, "d2": 10})]
        commands = coordinator.handle(AdapterReady(round_), 2.0)
    (final,) = commands
    assert isinstance(final, StartRound)
    assert {s.count for s in final.devices.values()} == {0}
    for n in range(3):
        commands = coordinator.handle(ReportReceived(f"d{n}", 3), 3.0)
    assert commands == [FinishRun(True, "every round closed")]
    assert coordinator.handle(Tick(), 9e9) == []


def test_local_epochs_give_each_device_its_own_number_of_steps() -> None:
    config = settings(1, training={"local_epochs": 2, "batch_size": 4})
    _, (start,) = joined(config, num_examples=10)
    assert start.devices["d0"].count == 6


def test_a_lost_device_is_left_out_and_joins_again_with_the_next_round() -> None:
    coordinator, _ = joined(settings())
    deliver(coordinator, "d0")
    lost = coordinator.handle(DeviceLost("d1", "killed"), 1.0)
    assert lost == [Fault(1, "d1", "killed")]
    assert deliver(coordinator, "d2") == [Aggregate(1, {"d0": 10, "d2": 10})]
    assert coordinator.handle(DeviceJoined("d1", "e"), 1.5) == [Welcome("d1")]
    assert coordinator.handle(DeviceReady("d1", 10), 1.5) == []
    (start,) = coordinator.handle(AdapterReady(1), 2.0)
    assert set(start.devices) == {"d0", "d1", "d2"}


def test_a_device_that_dies_after_delivering_still_counts() -> None:
    coordinator, _ = joined(settings())
    deliver(coordinator, "d0")
    coordinator.handle(DeviceLost("d0", "killed"), 1.0)
    deliver(coordinator, "d1")
    assert deliver(coordinator, "d2") == [Aggregate(1, {"d0": 10, "d1": 10, "d2": 10})]


def test_half_an_update_does_not_count() -> None:
    coordinator, _ = joined(settings(2))
    coordinator.handle(UpdateReceived("d0", "device", 1, 5), 1.0)
    assert coordinator.handle(ReportReceived("d0", 1), 1.0) == []
    assert deliver(coordinator, "d1") == []
    assert coordinator.phase is Phase.ROUND


def test_parts_of_different_final_steps_are_evicted() -> None:
    coordinator, _ = joined(settings())
    coordinator.handle(UpdateReceived("d0", "device", 1, 5), 1.0)
    commands = coordinator.handle(UpdateReceived("d0", "edge", 1, 4), 1.0)
    assert [type(command) for command in commands] == [Evict, Fault]
    assert "d0" not in coordinator.progress


def test_updates_of_another_round_are_ignored() -> None:
    coordinator, _ = joined(settings(1))
    assert coordinator.handle(UpdateReceived("d0", "device", 7, 5), 1.0) == []
    assert coordinator.handle(ReportReceived("d0", 7), 1.0) == []
    assert not coordinator.progress["d0"].final_steps


def test_a_round_with_too_few_devices_ends_the_run() -> None:
    coordinator, _ = joined(settings())
    coordinator.handle(DeviceLost("d0", "killed"), 1.0)
    coordinator.handle(DeviceLost("d1", "killed"), 1.0)
    (end,) = deliver(coordinator, "d2")
    assert not end.ok
    assert end.reason == ("round 1 closed with 1 of at least 2 devices; d0: killed; d1: killed")


def test_late_devices_are_left_out_at_the_deadline() -> None:
    config = settings(network={"round_timeout": 10.0})
    coordinator, _ = joined(config)
    deliver(coordinator, "d0")
    deliver(coordinator, "d1")
    assert coordinator.handle(Tick(), 9.0) == []
    commands = coordinator.handle(Tick(), 10.0)
    assert [type(command) for command in commands] == [Evict, Fault, Aggregate]
    assert commands[-1].contributions == {"d0": 10, "d1": 10}


def holding(now: float, **network: Any) -> Coordinator:
    """A round of three whose third device holds it: the others took `now` seconds."""
    coordinator, _ = joined(settings(network={"round_timeout": 3600.0, **network}))
    for device in ("d0", "d1"):
        for side in ("device", "edge"):
            coordinator.handle(UpdateReceived(device, side, 1, 5), now)  # type: ignore[arg-type]
        assert coordinator.handle(ReportReceived(device, 1), now) == []
    return coordinator


def beats(coordinator: Coordinator, until: float, moves: bool, resting: bool = False) -> list[Any]:
    """Heartbeats of d2 each second; what comes of them, and of the clock."""
    for second in range(int(coordinator.state.now) + 1, int(until) + 1):
        count = second if moves else 7
        coordinator.handle(DeviceMoved("d2", count, resting), float(second))
        if commands := coordinator.handle(Tick(), float(second)):
            return commands
    return []


def test_who_only_beats_is_left_out_when_the_others_are_done() -> None:
    coordinator = holding(5.0)
    assert beats(coordinator, 299, moves=False) == []
    evict, fault, aggregate = beats(coordinator, 320, moves=False)
    assert evict.device == "d2" and aggregate.contributions == {"d0": 10, "d1": 10}
    assert fault.reason.startswith("nothing moved for 300 s while 2 of 3 devices finished")
    assert "strike 1 of 3" in fault.reason


@pytest.mark.parametrize(
    ("took", "network", "patience"),
    [
        (100.0, {}, 1000.0),  # ten times what the others took
        (5.0, {"straggler_seconds": 900.0}, 900.0),
        (100.0, {"straggler_factor": 20.0}, 2000.0),
        (5.0, {"straggler_factor": "off"}, 3590.0),
    ],
)
def test_how_long_it_is_waited_for(took: float, network: dict[str, Any], patience: float) -> None:
    coordinator = holding(took, **network)
    assert beats(coordinator, took + patience, moves=False) == []
    left_out = beats(coordinator, took + patience + 2, moves=False)
    assert bool(left_out) is ("straggler_factor" not in network or patience == 2000.0)


def test_a_slow_device_that_moves_is_waited_for_and_one_that_stops_is_not() -> None:
    coordinator = holding(1.0)
    assert beats(coordinator, 3000, moves=True) == []
    assert beats(coordinator, 3299, moves=False)[:1] == []
    *_, aggregate = beats(coordinator, 3310, moves=False)
    assert isinstance(aggregate, Aggregate)


def test_half_of_a_round_and_enough_devices_have_to_be_done_first() -> None:
    config = settings(4, run={"rounds": 2, "min_devices": 1}, network={"round_timeout": 3600.0})
    coordinator, _ = joined(config)
    deliver(coordinator, "d0")
    assert coordinator.handle(Tick(), 3599.0) == []
    # With as many as it takes for a round left, nobody of them is left out before the deadline.
    coordinator, _ = joined(settings(run={"rounds": 2, "min_devices": 3}))
    for device in ("d0", "d1"):
        deliver(coordinator, device)
    assert coordinator.handle(Tick(), 3599.0) == []


def test_a_device_that_rests_is_left_out_too_and_it_is_no_strike() -> None:
    coordinator = holding(1.0)
    _, fault, _ = beats(coordinator, 400, moves=False, resting=True)
    assert "strike" not in fault.reason


def test_a_grace_ends_the_wait_for_the_rest_once_enough_are_there() -> None:
    config = settings(
        4, run={"min_devices": 2}, network={"join_timeout": 300.0, "join_grace": 20.0}
    )
    coordinator = Coordinator(config, now=0.0)
    coordinator.handle(EdgeReady("e", 4), 0.0)

    def ready(device: str, now: float) -> list[Any]:
        coordinator.handle(DeviceJoined(device, "e"), now)
        return coordinator.handle(DeviceReady(device, 10), now)

    ready("d0", 10.0)
    assert coordinator.handle(Tick(), 100.0) == [], "one is not enough, and no grace runs"
    ready("d1", 100.0)
    coordinator.handle(DeviceLost("d1", "gone"), 110.0)
    assert coordinator.handle(Tick(), 130.0) == [], "there are too few again"
    ready("d1", 140.0)
    ready("d2", 150.0)
    assert coordinator.handle(Tick(), 159.0) == [], "the grace counts from when enough were there"
    *missed, start = coordinator.handle(Tick(), 160.0)
    assert isinstance(start, StartRound)
    assert sorted(start.devices) == ["d0", "d1", "d2"]
    assert missed == [Fault(1, "d3", "did not join in time")]
    ready("d3", 161.0)
    assert coordinator.handle(Tick(), 200.0) == [], "the open round is not cut short"


def test_with_a_grace_too_few_still_fail_at_the_join_timeout() -> None:
    config = settings(run={"min_devices": 2}, network={"join_timeout": 30.0, "join_grace": 5.0})
    coordinator = Coordinator(config, now=0.0)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    coordinator.handle(DeviceJoined("d0", "e"), 1.0)
    coordinator.handle(DeviceReady("d0", 10), 1.0)
    assert coordinator.handle(Tick(), 29.0) == []
    (end,) = coordinator.handle(Tick(), 30.0)
    assert isinstance(end, FinishRun)
    assert "after 30 s" in end.reason


def test_the_first_round_waits_for_all_until_the_join_timeout() -> None:
    coordinator = Coordinator(settings(network={"join_timeout": 30.0}), now=0.0)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    for name in ("d0", "d1"):
        coordinator.handle(DeviceJoined(name, "e"), 0.0)
        coordinator.handle(DeviceReady(name, 10), 0.0)
    assert coordinator.phase is Phase.WAITING
    commands = coordinator.handle(Tick(), 30.0)
    assert [type(command) for command in commands] == [Fault, StartRound]


def test_nobody_joins() -> None:
    coordinator = Coordinator(settings(network={"join_timeout": 30.0}), now=0.0)
    (end,) = coordinator.handle(Tick(), 30.0)
    assert not end.ok
    assert "missing: d0, d1, d2" in end.reason


def test_a_lost_edge_takes_its_devices_along() -> None:
    coordinator, _ = joined(settings())
    commands = coordinator.handle(EdgeLost("e", "killed"), 1.0)
    assert [c.device for c in commands if isinstance(c, Fault)] == ["", "d0", "d1", "d2"]
    # The edge is the reason, not each of its devices.
    assert commands[-1] == FinishRun(
        False, "round 1 closed with 0 of at least 2 devices; edge e: killed"
    )


def test_the_only_edge_lost_while_devices_join_is_not_waited_for() -> None:
    coordinator = Coordinator(settings(), now=0.0)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    coordinator.handle(DeviceJoined("d0", "e"), 0.0)
    *_, end = coordinator.handle(EdgeLost("e", "killed", final=True), 1.0)
    assert end == FinishRun(False, "no edge is left; edge e: killed")


def test_an_edge_that_failed_is_waited_for_and_that_is_said() -> None:
    coordinator = Coordinator(settings(network={"join_timeout": 30.0}), now=0.0)
    why = "model.path: no config.json"
    *_, said = coordinator.handle(EdgeLost("e", why, returns=False, elsewhere=True), 1.0)
    assert said == Report(f"edge e: {why}; waiting for edge e to be started again")
    *_, said = coordinator.handle(EdgeLost("f", "no memory", returns=False, elsewhere=True), 1.0)
    assert said == Report(f"edge e: {why}; edge f: no memory; waiting for an edge")
    coordinator.handle(EdgeReady("e", 4), 2.0)
    assert not coordinator.state.edges_missing
    for name in ("d0", "d1", "d2"):
        coordinator.handle(DeviceJoined(name, "e"), 3.0)
        *_, last = coordinator.handle(DeviceReady(name, 10), 3.0)
    assert isinstance(last, StartRound)


def test_where_another_edge_may_come_its_loss_is_the_reason_in_the_end() -> None:
    coordinator = Coordinator(settings(network={"join_timeout": 30.0}), now=0.0)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    assert not any(
        isinstance(command, FinishRun) for command in coordinator.handle(EdgeLost("e", "cut"), 1.0)
    )
    (end,) = coordinator.handle(Tick(), 30.0)
    assert end.reason.endswith("missing: d0, d1, d2; edge e: cut")  # and no advice to wait longer


def test_who_came_back_is_no_reason() -> None:
    coordinator, _ = joined(settings())
    coordinator.handle(DeviceLost("d0", "cut"), 1.0)
    coordinator.handle(DeviceJoined("d0", "e"), 1.0)
    coordinator.handle(DeviceLost("d1", "killed"), 1.0)
    (end,) = deliver(coordinator, "d2")
    assert end.reason.endswith("devices; d1: killed")


def test_averaging_has_a_deadline() -> None:
    coordinator, _ = joined(settings(network={"round_timeout": 10.0}))
    for device in ("d0", "d1", "d2"):
        commands = deliver(coordinator, device)
    assert isinstance(commands[-1], Aggregate)
    assert coordinator.handle(Tick(), 10.0) == []
    (end,) = coordinator.handle(Tick(), 11.0)
    assert end == FinishRun(False, "round 1 was not averaged within round_timeout (10 s)")


def evaluating(count: int = 3) -> Coordinator:
    """A run whose rounds are closed, and whose last adapter is being evaluated."""
    coordinator, _ = joined(settings(count))
    for _ in range(2):
        for number in range(count):
            deliver(coordinator, f"d{number}")
        coordinator.handle(AdapterReady(coordinator.round), 1.0)
    assert coordinator.phase is Phase.FINAL
    return coordinator


def test_a_last_adapter_that_nobody_evaluated_is_no_success() -> None:
    *_, end = evaluating().handle(EdgeLost("e", "killed", final=True), 2.0)
    assert end == FinishRun(
        False,
        "every round closed, but 0 of at least 2 devices evaluated the last adapter; "
        "edge e: killed",
    )


@pytest.mark.parametrize(("lost", "ok"), [(("d0",), True), (("d0", "d1"), False)])
def test_the_last_evaluation_counts_its_devices_too(lost: tuple[str, ...], ok: bool) -> None:
    coordinator = evaluating()
    for device in lost:
        coordinator.handle(DeviceLost(device, "killed"), 2.0)
    left = [f"d{number}" for number in range(3) if f"d{number}" not in lost]
    for device in left:
        *_, end = coordinator.handle(ReportReceived(device, 3), 2.0) or [None]
    assert isinstance(end, FinishRun) and end.ok is ok, end


@pytest.mark.parametrize(("device", "words"), [("x", "known: d0, d1, d2"), ("d0", "already")])
def test_strangers_and_doubles_are_refused(device: str, words: str) -> None:
    coordinator, _ = joined(settings())
    (refusal,) = coordinator.handle(DeviceJoined(device, "e"), 1.0)
    assert isinstance(refusal, Refuse)
    assert words in refusal.reason


def test_a_cut_beyond_the_model_ends_the_run_with_its_name() -> None:
    config = settings(devices=[{"name": "a", "cut_layer": 9}])
    (end,) = Coordinator(config, 0.0).handle(EdgeReady("e", 4), 0.0)
    assert not end.ok
    assert end.reason.startswith("devices.a.cut_layer = 9")


def test_a_stage_cut_beyond_the_model_ends_it_too_of_whichever_device() -> None:
    devices = [{"name": "a", "cut_layer": 1}, {"name": "b", "cut_layer": 1, "stage_cuts": [9]}]
    tiers = {"rounds": 2, "topology": "three_tier"}
    config = settings(devices=devices, run=tiers, stages={"cuts": [2]})
    (end,) = Coordinator(config, 0.0).handle(EdgeReady("e", 4), 0.0)
    assert not end.ok
    assert end.reason.startswith("devices.b.stage")


def test_an_edge_with_another_model_costs_its_own_part() -> None:
    coordinator, _ = joined(settings())
    refused, fault = coordinator.handle(EdgeReady("f", 6), 1.0)
    assert isinstance(refused, RefuseEdge) and refused.edge == "f"
    assert "another model than most" in refused.reason and fault.reason.startswith("edge f: ")
    assert coordinator.phase is Phase.ROUND and coordinator.num_layers == 4


THREE = {"rounds": 2, "edges": ["e", "f", "g"]}


def at_edges(
    coordinator: Coordinator, models: dict[str, tuple[int, str]], devices: dict[str, str]
) -> list[Any]:
    """Edges are ready in this order, then devices at them; all that comes of it."""
    commands = []
    for edge, model in models.items():
        commands += coordinator.handle(EdgeReady(edge, *model), 0.0)
    for device, edge in devices.items():
        commands += coordinator.handle(DeviceJoined(device, edge), 0.0)
    for device in devices:
        commands += coordinator.handle(DeviceReady(device, 10), 0.0)
    return commands


@pytest.mark.parametrize("lie", [(1, "x"), (4, "x"), (60000, "x")])
@pytest.mark.parametrize("first", [True, False])
def test_one_lying_edge_of_three_decides_nothing(lie: tuple[int, str], first: bool) -> None:
    honest = {"f": (4, "m"), "g": (4, "m")}
    models = {"e": lie, **honest} if first else {**honest, "e": lie}
    coordinator = Coordinator(settings(run=THREE), 0.0)
    commands = at_edges(coordinator, models, {"d0": "f", "d1": "g", "d2": "f"})
    assert [c.model for c in commands if isinstance(c, UseModel)] == ["m"]
    assert [c.edge for c in commands if isinstance(c, RefuseEdge)] == ["e"]
    assert isinstance(commands[-1], StartRound) and len(commands[-1].devices) == 3


def test_where_no_model_has_a_majority_of_all_edges_the_start_decides() -> None:
    config = settings(run={"rounds": 2, "edges": ["e", "f"], "min_devices": 2})
    coordinator = Coordinator(config, 0.0)
    commands = at_edges(
        coordinator, {"e": (4, "x"), "f": (4, "m")}, {"d0": "e", "d1": "f", "d2": "f"}
    )
    # As many edges say the one as the other; what more devices stand on is used.
    use, refused = [c for c in commands if isinstance(c, UseModel | RefuseEdge)]
    assert use == UseModel("m") and refused.edge == "e"
    start = coordinator.handle(Tick(), 1000.0)[-1]
    assert isinstance(start, StartRound) and sorted(start.devices) == ["d1", "d2"]


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_the_odd_one_of_three_forms_of_text_costs_itself_whoever_is_first(odd: int) -> None:
    coordinator = Coordinator(settings(run={"rounds": 2, "min_devices": 2}), 0.0)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    commands = []
    for n in range(3):
        coordinator.handle(DeviceJoined(f"d{n}", "e"), 0.0)
        form = TextForm("messages" if n == odd else "completion")
        commands += coordinator.handle(DeviceReady(f"d{n}", 10, form), 0.0)
    assert [c.form.layout for c in commands if isinstance(c, UseTextForm)] == ["completion"]
    (evict,) = [c for c in commands if isinstance(c, Evict)]
    assert evict.device == f"d{odd}" and evict.final
    assert evict.reason.startswith("its rows are laid out as 'messages', the run's as 'completion'")
    start = coordinator.handle(Tick(), 1000.0)[-1]
    assert isinstance(start, StartRound) and f"d{odd}" not in start.devices
    # One that comes later with the odd form is told so as well, and the round goes on.
    coordinator.handle(DeviceJoined(f"d{odd}", "e"), 1001.0)
    late = coordinator.handle(DeviceReady(f"d{odd}", 10, TextForm("text")), 1001.0)
    assert isinstance(late[0], Evict) and coordinator.phase is Phase.ROUND


def test_an_edge_that_is_gone_has_no_say() -> None:
    coordinator = Coordinator(settings(run=THREE), 0.0)
    coordinator.handle(EdgeReady("e", 1, "x"), 0.0)
    coordinator.handle(EdgeLost("e", "cut"), 0.0)
    assert coordinator.handle(EdgeReady("f", 4, "m"), 0.0) == []
    assert coordinator.handle(EdgeReady("g", 4, "m"), 0.0) == [UseModel("m")]


# -- offences --------------------------------------------------------------------------------------


def back(coordinator: Coordinator, device: str, now: float = 2.0) -> list[Any]:
    """A device joins again."""
    commands = coordinator.handle(DeviceJoined(device, "e"), now)
    return commands + coordinator.handle(DeviceReady(device, 10), now)


def test_an_update_that_is_refused_beside_the_others_is_left_out_and_the_rest_merged() -> None:
    coordinator, _ = joined(settings())
    for n in range(3):
        deliver(coordinator, f"d{n}")
    evict, fault, again = coordinator.handle(UpdatesRefused(1, {"d1": "too long"}), 2.0)
    said = "too long (strike 1 of 3)"
    assert evict == Evict("d1", said) and fault == Fault(1, "d1", said)
    assert again == Aggregate(1, {"d0": 10, "d2": 10})
    welcome, afresh = back(coordinator, "d1")
    assert welcome == Welcome("d1") and "moments start afresh" in afresh.reason
    (start,) = coordinator.handle(AdapterReady(1), 3.0)
    assert set(start.devices) == {"d0", "d1", "d2"}


def test_an_update_that_is_refused_as_it_comes_leaves_the_round_to_the_others() -> None:
    coordinator, _ = joined(settings())
    deliver(coordinator, "d0")
    deliver(coordinator, "d2")
    commands = coordinator.handle(DeviceOffended("d1", "not finite"), 2.0)
    assert [type(command) for command in commands] == [Evict, Fault, Aggregate]
    # What comes while others are merged stops nothing, and does not merge twice.
    commands = coordinator.handle(DeviceOffended("d0", "twice"), 2.0)
    assert [type(command) for command in commands] == [Evict, Fault]
    assert coordinator.handle(UpdatesRefused(7, {"d2": "of another round"}), 2.0) == []


def test_too_few_are_left_when_updates_are_refused() -> None:
    coordinator, _ = joined(settings())
    for n in range(3):
        deliver(coordinator, f"d{n}")
    *_, end = coordinator.handle(UpdatesRefused(1, {"d1": "a", "d2": "b"}), 2.0)
    refused = "d1: a (strike 1 of 3); d2: b (strike 1 of 3)"
    assert end == FinishRun(False, f"round 1 closed with 1 of at least 2 devices; {refused}")


def test_after_so_many_strikes_a_device_is_out_for_good_and_told_why() -> None:
    coordinator, _ = joined(settings(4, run={"rounds": 9, "min_devices": 2}))
    for strike in range(1, 4):
        for n in range(4):
            deliver(coordinator, f"d{n}")
        round_ = coordinator.round
        evict, fault, *_ = coordinator.handle(UpdatesRefused(round_, {"d1": "too long"}), 2.0)
        # Told now, and for good with the last: nobody knows whether it will ask once more in time.
        assert evict == Evict("d1", fault.reason, final=strike == 3)
        commands = back(coordinator, "d1")
        coordinator.handle(AdapterReady(round_), 3.0)
        assert f"strike {strike} of 3" in fault.reason
    (refusal,) = commands
    assert refusal == Refuse("d1", "e", fault.reason)
    assert fault.reason == "too long (strike 3 of 3); it is out of this run for good"
    assert set(coordinator.progress) == {"d0", "d2", "d3"}


@pytest.mark.parametrize("how", ["round_timeout", "idle_timeout"])
def test_whoever_holds_up_round_after_round_is_out_too(how: str) -> None:
    config = settings(4, run={"rounds": 9, "min_devices": 2}, network={"round_timeout": 10.0})
    coordinator, _ = joined(config)
    now = 0.0
    for _ in range(3):
        for n in range(3):
            deliver(coordinator, f"d{n}")
        now += 20.0
        silence = DeviceLost("d3", "not a byte for 60 s", "silence")
        commands = coordinator.handle(Tick() if how == "round_timeout" else silence, now)
        assert isinstance(commands[-1], Aggregate)
        (last,) = [command for command in commands if isinstance(command, Fault)]
        told = [c for c in commands if isinstance(c, Evict) and c.final]
        answer = back(coordinator, "d3", now)
        coordinator.handle(AdapterReady(coordinator.round), now)
    assert "out of this run for good" in last.reason
    assert told == [Evict("d3", last.reason, final=True)]
    assert isinstance(answer[0], Refuse)


def test_silence_is_forgotten_after_rounds_that_were_seen_through() -> None:
    config = settings(3, run={"rounds": 30, "min_devices": 2})
    coordinator, _ = joined(config)
    for _ in range(5):
        coordinator.handle(DeviceLost("d2", "not a byte for 60 s", "silence"), 1.0)
        back(coordinator, "d2", 1.0)
        for _ in range(4):
            for n in range(3):
                deliver(coordinator, f"d{n}")
            coordinator.handle(AdapterReady(coordinator.round), 2.0)
    assert not coordinator.strikes.out


def test_a_link_that_breaks_is_no_strike() -> None:
    coordinator, _ = joined(settings(3))
    for _ in range(9):
        assert coordinator.handle(DeviceLost("d2", "killed"), 1.0) == [Fault(1, "d2", "killed")]
        assert back(coordinator, "d2", 1.0) == [Welcome("d2")]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "it has no training examples"),
        (10_000_001, "aggregation.max_examples is 10000000"),
        (1 << 40, "1099511627776 training examples"),
        ((1 << 64) - 1, "aggregation.max_examples"),
        (9_000_000, "4500000000 steps over the run"),
    ],
)
def test_more_examples_than_a_run_can_count_are_refused_and_the_others_go_on(
    number: int, words: str
) -> None:
    config = settings(3, run={"rounds": 2000}, training={"batch_size": 4})
    coordinator = Coordinator(config, now=0.0)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    for name in ("d0", "d1", "d2"):
        coordinator.handle(DeviceJoined(name, "e"), 0.0)
    evict, fault, _ = coordinator.handle(DeviceReady("d1", number), 0.0)
    assert isinstance(evict, Evict) and evict.final and words in evict.reason
    assert fault == Fault(0, "d1", evict.reason)
    assert coordinator.handle(DeviceJoined("d1", "e"), 0.0) == [Refuse("d1", "e", evict.reason)]
    coordinator.handle(DeviceReady("d0", 10), 0.0)
    (start,) = coordinator.handle(DeviceReady("d2", 10), 0.0)
    assert isinstance(start, StartRound) and set(start.devices) == {"d0", "d2"}
    assert max(steps.total for steps in start.devices.values()) < 1 << 32


def test_a_run_that_cannot_have_enough_devices_any_more_ends_at_once() -> None:
    coordinator = Coordinator(settings(2, run={"min_devices": 2}), now=0.0)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    coordinator.handle(DeviceJoined("d0", "e"), 0.0)
    *_, end = coordinator.handle(DeviceReady("d0", 1 << 40), 0.0)
    assert not end.ok and "d0: it says it has 1099511627776 training examples" in end.reason


@pytest.mark.parametrize(
    "sections", [{"training": {"local_steps": 1 << 31}}, {"run": {"rounds": 1 << 40}}]
)
def test_settings_that_make_more_steps_than_can_be_counted_are_refused(
    sections: dict[str, Any],
) -> None:
    with pytest.raises(ValueError, match="lower either"):
        settings(3, **sections)


def test_where_all_refuse_the_adapter_the_run_ends_with_that() -> None:
    coordinator, _ = joined(settings())
    reason = "activation of round 1, step 0: beyond 65504"
    faults = coordinator.handle(DeviceLost("d0", reason, "adapter"), 1.0)
    assert faults == [Fault(1, "d0", reason)]
    *_, end = coordinator.handle(DeviceLost("d1", reason, "adapter"), 1.0)
    assert not end.ok
    assert f"the result of round 0's adapter: d0: {reason}; d1: {reason}" in end.reason


def test_where_one_refuses_the_adapter_the_others_go_on() -> None:
    coordinator, _ = joined(settings())
    coordinator.handle(DeviceLost("d0", "beyond 65504", "adapter"), 1.0)
    deliver(coordinator, "d1")
    assert deliver(coordinator, "d2") == [Aggregate(1, {"d1": 10, "d2": 10})]
    assert back(coordinator, "d0") == [Welcome("d0")]
    (start,) = coordinator.handle(AdapterReady(1), 3.0)
    assert set(start.devices) == {"d0", "d1", "d2"}


def test_a_last_adapter_that_nobody_can_evaluate_is_no_good_end() -> None:
    coordinator, _ = joined(settings(1, run={"rounds": 1}))
    deliver(coordinator, "d0")
    coordinator.handle(AdapterReady(1), 2.0)
    *_, end = coordinator.handle(DeviceLost("d0", "beyond 65504", "adapter"), 3.0)
    assert not end.ok and "the result of round 1's adapter: d0: beyond 65504" in end.reason


# -- what is "auto" is rehearsed ----------------------------------------------------------------


def automatic(count: int = 3, **sections: Any) -> RunSettings:
    training = {"local_steps": 5, "batch_size": 5, "micro_batches": "auto"}
    return settings(count, **{"training": training, **sections})


def test_a_rehearsal_comes_first_and_the_slowest_device_decides() -> None:
    coordinator, commands = joined(automatic())
    # Powers of two up to the batch of 5; credits allow 4 as well.
    assert commands == [Rehearse(("d0", "d1", "d2"), (1, 2, 4))]
    assert coordinator.phase is Phase.REHEARSAL
    assert coordinator.handle(Rehearsed("d0", (1.0, 0.5, 0.4)), 1.0) == []
    assert coordinator.handle(Rehearsed("d1", (8.0, 6.0, 7.0)), 1.0) == []
    chosen, start = coordinator.handle(Rehearsed("d2", (2.0, 2.0, 6.5)), 1.0)
    assert chosen == Settle(2, {1: 8.0, 2: 6.0, 4: 7.0})
    assert isinstance(start, StartRound) and start.round == 1


def test_more_micro_batches_have_to_pay() -> None:
    coordinator, _ = joined(automatic(1))
    chosen, _ = coordinator.handle(Rehearsed("d0", (1.0, 0.98, 0.97)), 1.0)
    assert chosen == Settle(1, {1: 1.0, 2: 0.98, 4: 0.97})


def test_credits_bound_what_is_tried() -> None:
    _, commands = joined(automatic(1, network={"credits": 3}))
    assert commands == [Rehearse(("d0",), (1, 2))]


def test_a_device_lost_in_rehearsal_does_not_hold_up_the_others() -> None:
    coordinator, _ = joined(automatic())
    for device in ("d0", "d1"):
        assert coordinator.handle(Rehearsed(device, (3.0, 2.0, 1.0)), 1.0) == []
    fault, chosen, start = coordinator.handle(DeviceLost("d2", "gone"), 2.0)
    assert fault == Fault(0, "d2", "gone")
    assert chosen == Settle(4, {1: 3.0, 2: 2.0, 4: 1.0})
    assert isinstance(start, StartRound) and list(start.devices) == ["d0", "d1"]


def test_a_device_that_never_ends_its_rehearsal_is_left_out() -> None:
    coordinator, _ = joined(automatic(network={"round_timeout": 10.0}))
    for device in ("d0", "d1"):
        coordinator.handle(Rehearsed(device, (3.0, 2.0, 1.0)), 1.0)
    assert coordinator.handle(Tick(), 9.0) == []
    evict, fault, chosen, start = coordinator.handle(Tick(), 11.0)
    assert isinstance(evict, Evict) and evict.device == "d2" and isinstance(fault, Fault)
    assert isinstance(chosen, Settle) and isinstance(start, StartRound)


def test_too_few_in_rehearsal_end_the_run() -> None:
    coordinator, _ = joined(automatic())
    coordinator.handle(Rehearsed("d0", (3.0, 2.0, 1.0)), 1.0)
    coordinator.handle(DeviceLost("d1", "gone"), 1.0)
    *_, end = coordinator.handle(DeviceLost("d2", "gone"), 1.0)
    lost = "d1: gone; d2: gone"
    assert end == FinishRun(False, f"1 of at least 2 devices timed their steps; {lost}")


def test_codecs_are_tried_from_the_smallest_and_each_device_gets_its_own() -> None:
    codec = {"activation": "auto", "gradient": "auto"}
    coordinator, commands = joined(automatic(2, codec=codec, network={"credits": 2}))
    both = ("d0", "d1")
    assert commands == [Rehearse(both, (1, 2), "compact")]
    assert coordinator.handle(Rehearsed("d0", (2.0, 1.5)), 1.0) == []
    assert coordinator.handle(Rehearsed("d1", (1.0, 1.0)), 1.0) == [Rehearse(both, (1, 2), "bf16")]
    # d0's link is slow; on d1's nothing is gained by saving bytes.
    coordinator.handle(Rehearsed("d0", (8.0, 7.0)), 1.0)
    assert coordinator.handle(Rehearsed("d1", (0.9, 0.8)), 1.0) == [Rehearse(both, (1, 2), "none")]
    coordinator.handle(Rehearsed("d0", (16.0, 15.0)), 1.0)
    chosen, start = coordinator.handle(Rehearsed("d1", (0.92, 0.82)), 1.0)
    assert chosen == Settle(2, {1: 2.0, 2: 1.5}, {"d0": "compact", "d1": "none"})
    assert isinstance(start, StartRound) and start.round == 1


def rehearsed_codecs(*timed: tuple[float, float | None], count: int = 1) -> Coordinator:
    """After compact, bf16, ... took so many seconds a step and bits a value on d0."""
    codec = {"activation": "auto", "gradient": "auto"}
    training = {"local_steps": 5, "micro_batches": 3}
    coordinator, _ = joined(settings(count, codec=codec, training=training))
    for seconds, bits in timed:
        coordinator.handle(Rehearsed("d0", (seconds,), bits), 1.0)
    return coordinator


def test_that_bf16_did_not_pay_says_little_of_none() -> None:
    # As over 1 Gbit/s, where steps of one codec differ by several percent by themselves.
    coordinator = rehearsed_codecs((0.256, 1.7))
    (third,) = coordinator.handle(Rehearsed("d0", (0.280,), 16.0), 1.0)
    assert third == Rehearse(("d0",), (3,), "none")
    chosen, _ = coordinator.handle(Rehearsed("d0", (0.257,), 32.0), 1.0)
    assert chosen == Settle(3, {3: 0.256}, {"d0": "none"})


def test_a_codec_whose_bits_would_double_every_step_is_not_tried() -> None:
    # 0.2 s for 14.3 bits more; 16 more again are 0.22, together 0.74: over twice the quickest.
    coordinator = rehearsed_codecs((0.32, 1.7))
    chosen, start = coordinator.handle(Rehearsed("d0", (0.52,), 16.0), 1.0)
    assert chosen == Settle(3, {3: 0.32}, {"d0": "compact"}) and isinstance(start, StartRound)


def test_without_its_bits_a_codec_gets_the_benefit_of_the_doubt() -> None:
    # Had compact taken 10 bits a value, 0.12 s for 6 of them would be 0.76 s for 32.
    with_bits = rehearsed_codecs((0.32, 10.0), (0.44, 16.0))
    without = rehearsed_codecs((0.32, None), (0.44, None))
    assert with_bits.phase is Phase.ROUND and without.phase is Phase.REHEARSAL


def test_one_device_for_which_a_codec_may_pay_is_enough_to_try_it() -> None:
    coordinator = rehearsed_codecs((0.3, 1.7), count=2)
    coordinator.handle(Rehearsed("d1", (0.3,), 1.7), 1.0)
    coordinator.handle(Rehearsed("d0", (0.9,), 16.0), 1.0)
    (third,) = coordinator.handle(Rehearsed("d1", (0.31,), 16.0), 1.0)
    assert third == Rehearse(("d0", "d1"), (3,), "none")


def test_what_was_chosen_stands_in_the_settings() -> None:
    codec = {"activation": "auto", "gradient": "auto"}
    before = automatic(3, codec=codec)
    after = before.settled(2, {"d0": "none", "d1": "compact", "d2": "none"})
    assert after.training.micro_batches == 2 and not after.codec.is_auto
    # The devices were told to compute so when they joined; nothing that is exact now changes it.
    assert before.computation == after.training.computation == "lean"
    got = {name: after.codecs(name, 1).activation for name in ("d0", "d1", "d2")}
    assert got == {"d0": "none", "d1": "compact", "d2": "none"}
    assert after.codecs("d1", 1).gradient == "compact"
    assert RunSettings.model_validate(after.model_dump()) == after


# -- a run of many devices ------------------------------------------------------------------------


def test_of_many_devices_messages_name_a_few() -> None:
    config = settings(2000, network={"join_timeout": 30.0})
    coordinator = Coordinator(config, now=0.0)
    said: list[str] = []
    for entry in config.devices[:1995]:
        coordinator.handle(DeviceJoined(entry.name, "e"), 0.0)
        (report,) = coordinator.handle(DeviceReady(entry.name, 10), 0.0)
        said.append(report.text)
    assert said[0] == "waiting for 1999 of 2000 devices"
    assert said[-1] == "waiting for d1995, d1996, d1997, d1998, d1999"
    (refused,) = coordinator.handle(DeviceJoined("x", "e"), 0.0)
    assert refused.reason.endswith("d9 and 1990 more")
    (end,) = Coordinator(config, now=0.0).handle(Tick(), 30.0)
    assert "missing: d0, " in end.reason and "1990 more" in end.reason and len(end.reason) < 300


def test_a_step_leaves_the_state_before_it_as_it_was() -> None:
    config = settings()
    states = [RunState.begin(config)]
    events: list[Any] = [EdgeReady("e", 4)]
    for entry in config.devices:
        events += [DeviceJoined(entry.name, "e"), DeviceReady(entry.name, 10)]
    events += [DeviceMoved("d0", 1), UpdateReceived("d0", "edge", 1, 5), DeviceLost("d1", "cut")]
    for event in events:
        states.append(step(states[-1], event, 1.0, config)[0])
    # From any of them the run goes on in the same way, whatever was tried from it meanwhile.
    again = [
        step(state, event, 1.0, config)[0] for state, event in zip(states, events, strict=False)
    ]
    assert again == states[1:]
