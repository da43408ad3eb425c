"""A planner decides who takes part in a round, with which cut; the coordinator carries it out."""

from __future__ import annotations

from typing import Any

import pytest

from sfl.config import RunSettings
from sfl.planners.decision import Choice
from sfl.planners.told import Cut, Outcome
from sfl.rounds import (
    Aggregate,
    CloudRestarted,
    Command,
    Coordinator,
    DeviceJoined,
    DeviceLost,
    DeviceMoved,
    DeviceOffended,
    DeviceReady,
    EdgeReady,
    Fault,
    FinishRun,
    Phase,
    Planned,
    PlanRound,
    Rehearse,
    Rehearsed,
    ReplayRound,
    StartRound,
    Tick,
)
from sfl.rounds.assignment import assignments
from sfl.rounds.tally import Tally
from sfl.rounds.values import DeviceFacts, EdgeBase
from tests.house.lost import ROUNDS, begun, close_round, deliver, join, settings
from tests.house.rebuilt import Rebuilt

OUT = Choice(1, takes_part=False)


def waiting(**planner: Any) -> tuple[Coordinator, list[Command]]:
    """A run of three devices that waits for its planner; killed and rebuilt before every event."""
    config = settings(planner={"policy": "fleet", **planner})
    coordinator = Rebuilt(config)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    commands: list[Command] = []
    for entry in config.devices:
        coordinator.handle(DeviceJoined(entry.name, "e"), 0.0)
        commands = coordinator.handle(DeviceReady(entry.name, 10), 0.0)
    return coordinator, commands


def started(commands: list[Command]) -> StartRound:
    (command,) = (command for command in commands if isinstance(command, StartRound))
    return command


def test_a_round_waits_for_its_plan_and_is_as_it_says() -> None:
    coordinator, commands = waiting()
    assert PlanRound(1, ("d0", "d1", "d2")) in commands
    choices = {"d0": Choice(2), "d1": Choice(3, share=0.25), "d2": Choice(1, activation="int8")}
    commands = coordinator.handle(Planned(1, choices, ("d2", "d0", "d1")), 0.0)
    command = started(commands)
    assert command.order == ("d2", "d0", "d1") and dict(command.choices) == choices
    own = assignments(command, coordinator.settings, dict.fromkeys(command.devices, EdgeBase(4)))
    assert [own[name].plan.cut_layer for name in ("d0", "d1", "d2")] == [2, 3, 1]
    assert own["d1"].share == 0.25 and own["d0"].share == 1.0
    assert own["d2"].codecs.activation == "int8" and own["d2"].codecs.hidden == "int8"
    assert own["d0"].codecs.activation == own["d1"].codecs.activation != "int8"


def test_who_is_not_chosen_is_not_counted_on_and_evaluates_at_the_end() -> None:
    config = settings(planner={"policy": "fleet"}, run={"rounds": 1, "min_devices": 3})
    coordinator = Rebuilt(config)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    for entry in config.devices:
        join(coordinator, entry.name, 0.0)
    command = started(coordinator.handle(Planned(1, {"d1": OUT}), 0.0))
    assert list(command.devices) == ["d0", "d2"]
    deliver(coordinator, "d0")
    assert deliver(coordinator, "d2") == [Aggregate(1, {"d0": 10, "d2": 10})]
    final = started(close_round(coordinator, []))
    assert list(final.devices) == ["d0", "d1", "d2"]
    for name in final.devices:
        commands = deliver(coordinator, name)
    assert commands == [FinishRun(True, "every round closed")]


def test_a_decision_holds_for_its_rounds_and_for_the_last_evaluation() -> None:
    coordinator, _ = waiting(every_rounds=2)
    coordinator.handle(Planned(1, {"d0": Choice(2)}), 0.0)
    for round_ in range(2, ROUNDS + 2):
        commands = close_round(coordinator, ["d0", "d1", "d2"])
        if round_ == 3:
            assert commands == [PlanRound(3, ("d0", "d1", "d2"))]
            commands = coordinator.handle(Planned(3, {"d0": Choice(3)}), 1.0)
        at = {name: choice.at for name, choice in started(commands).choices.items()}
        assert at == {"d0": (2, 0) if round_ < 3 else (3, 0)}


def test_who_comes_back_goes_on_with_its_choice() -> None:
    coordinator, _ = waiting()
    coordinator.handle(Planned(1, {"d0": Choice(2)}), 0.0)
    coordinator.handle(DeviceLost("d0", "killed"), 1.0)
    (replay,) = (c for c in join(coordinator, "d0", 2.0) if isinstance(c, ReplayRound))
    assert replay.choices == {"d0": Choice(2)}


def test_a_cloud_that_was_killed_before_the_answer_asks_again() -> None:
    coordinator, _ = waiting()
    coordinator.handle(Planned(1, {}), 0.0)
    assert close_round(coordinator, ["d0", "d1", "d2"]) == [PlanRound(2, ("d0", "d1", "d2"))]
    coordinator.handle(CloudRestarted(), 2.0)
    commands: list[Command] = []
    for name in ("d0", "d1", "d2"):
        commands = join(coordinator, name, 3.0)
    assert PlanRound(2, ("d0", "d1", "d2")) in commands
    assert started(coordinator.handle(Planned(2, {}), 3.0)).round == 2


def test_nothing_that_happens_meanwhile_asks_again() -> None:
    coordinator, _ = waiting()
    coordinator.handle(Planned(1, {}), 0.0)
    assert PlanRound(2, ("d0", "d1", "d2")) in close_round(coordinator, ["d0", "d1", "d2"])
    assert coordinator.phase is Phase.PLANNING
    commands = coordinator.handle(DeviceLost("d0", "cut"), 2.0)
    commands += coordinator.handle(DeviceMoved("d1", 7), 2.5)
    commands += join(coordinator, "d0", 3.0) + coordinator.handle(Tick(), 50.0)
    assert not [c for c in commands if isinstance(c, PlanRound | StartRound)]
    command = started(coordinator.handle(Planned(2, {"d0": Choice(2)}), 51.0))
    assert list(command.devices) == ["d0", "d1", "d2"] and command.choices == {"d0": Choice(2)}


def test_who_is_lost_while_the_planner_decides_is_waited_for() -> None:
    """Also before the first round; nobody asks again when it is back."""
    coordinator, _ = waiting()
    coordinator.handle(DeviceLost("d1", "cut"), 1.0)
    commands = coordinator.handle(Planned(1, {"d0": OUT, "d1": Choice(2)}), 2.0)
    assert not [c for c in commands if isinstance(c, PlanRound | StartRound)]
    assert coordinator.phase is Phase.WAITING
    command = started(join(coordinator, "d1", 3.0))
    assert list(command.devices) == ["d1", "d2"] and command.choices["d1"] == Choice(2)


def test_who_does_not_come_back_is_gone_on_without() -> None:
    coordinator, _ = waiting()
    coordinator.handle(DeviceLost("d1", "cut"), 1.0)
    coordinator.handle(Planned(1, {"d1": Choice(2)}), 2.0)
    commands = coordinator.handle(Tick(), 21.5)
    assert list(started(commands).devices) == ["d0", "d2"]
    assert not [command for command in commands if isinstance(command, PlanRound)]


def test_where_all_that_it_chooses_went_meanwhile_the_planner_is_asked_again() -> None:
    coordinator, _ = waiting()
    coordinator.handle(DeviceLost("d0", "went", "left"), 1.0)
    choices = {"d0": Choice(1), "d1": OUT, "d2": OUT}
    assert PlanRound(1, ("d1", "d2")) in coordinator.handle(Planned(1, choices), 2.0)
    chosen = coordinator.handle(Planned(1, {"d1": Choice(1), "d2": OUT}), 3.0)
    assert list(started(chosen).devices) == ["d1"]


def test_steps_are_not_timed_again_once_a_round_is_planned() -> None:
    training = {"local_steps": 5, "batch_size": 4, "micro_batches": "auto"}
    config = settings(planner={"policy": "fleet"}, training=training)
    coordinator = Rebuilt(config)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    commands: list[Command] = []
    for entry in config.devices:
        commands = join(coordinator, entry.name, 0.0)
    while coordinator.phase is Phase.REHEARSAL:
        (rehearse,) = (command for command in commands if isinstance(command, Rehearse))
        for name in rehearse.devices:
            seconds = tuple(1.0 for _ in rehearse.counts)
            commands = coordinator.handle(Rehearsed(name, seconds), 1.0)
    assert commands[-1] == PlanRound(1, ("d0", "d1", "d2"))
    assert coordinator.handle(DeviceLost("d2", "went", "left"), 2.0)
    assert list(started(coordinator.handle(Planned(1, {}), 3.0)).devices) == ["d0", "d1"]


def test_a_planner_that_never_decides_holds_nobody_up() -> None:
    coordinator, _ = waiting()
    assert coordinator.handle(Tick(), 99.0) == []
    commands = coordinator.handle(Tick(), 100.0)
    fault = "planner 'fleet' has not decided within round_timeout (100 s), so that cuts stay"
    assert commands[0] == Fault(1, "cloud", fault)
    assert list(started(commands).devices) == ["d0", "d1", "d2"]
    assert coordinator.handle(Planned(1, {"d0": Choice(2)}), 101.0) == []
    assert not coordinator.state.choices


def test_a_run_whose_devices_are_all_out_waits_for_no_planner() -> None:
    coordinator, _ = waiting()
    for name in ("d0", "d1", "d2"):
        commands = coordinator.handle(DeviceOffended(name, "broke the contract"), 1.0)
        for again in (2.0, 3.0):
            join(coordinator, name, again)
            commands = coordinator.handle(DeviceOffended(name, "broke it again"), again)
    assert any(isinstance(command, FinishRun) and not command.ok for command in commands)


def test_an_answer_to_another_question_changes_nothing() -> None:
    coordinator, _ = waiting()
    assert coordinator.handle(Planned(2, {"d0": Choice(2)}), 0.0) == []
    coordinator.handle(Planned(1, {}), 0.0)
    assert coordinator.handle(Planned(1, {"d0": Choice(2)}), 0.0) == []
    assert coordinator.handle(Tick(), 0.5) == []


def test_what_the_planner_remembers_outlives_its_cloud() -> None:
    coordinator, _ = waiting()
    memory = {"counts": {"d0": 2.5}}
    coordinator.handle(Planned(1, {}, memory=memory), 0.0)
    close_round(coordinator, ["d0", "d1", "d2"])
    coordinator.handle(CloudRestarted(), 2.0)
    assert coordinator.state.memory == memory


def test_how_devices_did_is_counted_and_outlives_the_cloud() -> None:
    coordinator, _ = waiting()
    coordinator.handle(Planned(1, {"d2": OUT}), 0.0)
    coordinator.handle(DeviceLost("d1", "went", "left"), 1.0)
    deliver(coordinator, "d0")
    close_round(coordinator, [])
    state = coordinator.state
    assert state.round == 1 and dict(state.tallies) == {
        "d0": Tally(1, 1, 1, 1.0),
        "d1": Tally(1, 0, 1),
    }
    assert state.tallies["d0"].outcome(1, 9.0) == Outcome(True, 1.0)
    assert state.tallies["d1"].outcome(1, 9.0) == Outcome(False, 9.0)
    assert state.tallies["d1"].outcome(2, 9.0) is None and state.tallies["d1"].success == 0.0
    assert Tally().outcome(0, 9.0) is None and Tally().success == 1.0


def test_without_a_planner_nothing_is_counted() -> None:
    coordinator = begun(settings())
    close_round(coordinator, ["d0", "d1", "d2"])
    assert not coordinator.state.tallies


def test_a_planner_that_failed_is_a_fault_and_the_round_begins() -> None:
    coordinator, _ = waiting()
    commands = coordinator.handle(Planned(1, {}, fault="planner 'x' failed"), 0.0)
    assert commands[0] == Fault(1, "cloud", "planner 'x' failed")
    assert list(started(commands).devices) == ["d0", "d1", "d2"]


def test_who_cannot_take_part_is_told_once() -> None:
    coordinator, _ = waiting()
    unfit = {"d1": "no cut fits"}
    commands = coordinator.handle(Planned(1, {"d1": OUT}, unfit=unfit), 0.0)
    assert Fault(1, "d1", "no cut fits") in commands
    commands = close_round(coordinator, ["d0", "d2"])
    assert PlanRound(2, ("d0", "d1", "d2")) in commands
    commands = coordinator.handle(Planned(2, {"d1": OUT}, unfit=unfit), 1.0)
    assert not [command for command in commands if isinstance(command, Fault)]


def test_the_planner_is_asked_again_where_all_that_it_chose_are_gone() -> None:
    coordinator, _ = waiting(every_rounds=3)
    coordinator.handle(Planned(1, {"d1": OUT, "d2": OUT}), 0.0)
    deliver(coordinator, "d0")
    coordinator.handle(DeviceLost("d0", "left", "left"), 1.0)
    assert PlanRound(2, ("d1", "d2")) in close_round(coordinator, [])
    assert list(started(coordinator.handle(Planned(2, {"d1": Choice(1)}), 2.0)).devices) == ["d1"]


def test_a_plan_without_anybody_ends_the_run_and_says_so() -> None:
    coordinator, _ = waiting()
    commands = coordinator.handle(Planned(1, dict.fromkeys(("d0", "d1", "d2"), OUT)), 0.0)
    assert commands == [FinishRun(False, "the planner chose no device for round 1")]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"planner": {"policy": "flet"}}, "'fleet'"),
        ({"planner": {"policy": "fleet", "select": 2}}, "planner.select.*'ucb' or 'random'"),
        ({"planner": {"policy": "ucb", "select": 4}}, "at most the number of devices"),
        ({"planner": {"policy": "recorded"}}, "planner.plans: name the plans.jsonl"),
        ({"planner": {"policy": "fleet"}, "run": {"mode": "asynchronous"}}, "planner.policy"),
        (
            {
                "planner": {"policy": "ucb", "select": 2},
                "aggregation": {"strategy": "krum", "byzantine": 0},
            },
            "krum needs 3 devices in every round",
        ),
        ({"devices": [{"name": "d0", "cut_range": [3, 2]}]}, "exchange the two"),
        ({"devices": [{"name": "d0", "cut_range": [2, 3]}]}, "has to contain cut_layer"),
        ({"devices": [{"name": "d0", "tail_range": [0, 1]}]}, "has no tail in this topology"),
    ],
)
def test_settings_that_do_not_fit_are_named(sections: dict[str, Any], words: str) -> None:
    run = {"rounds": ROUNDS, "min_devices": 1, **sections.pop("run", {})}
    with pytest.raises(ValueError, match=words):
        settings(run=run, **sections)


def test_settings_that_hold_are_taken() -> None:
    config: RunSettings = settings(
        planner={"policy": "ucb", "select": 2},
        devices=[{"name": f"d{n}", "cut_range": [1, 3]} for n in range(3)],
    )
    assert config.planner.decides and not config.planner.moves


def ready_with(
    room: int | None, told: tuple[Cut, ...], **sections: Any
) -> tuple[Coordinator, list[Command]]:
    """A run of one device that says which cuts it may have, and what they take."""
    config = settings(count=1, devices=[{"name": "d0", "cut_layer": 3}], **sections)
    coordinator = Rebuilt(config)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    coordinator.handle(DeviceJoined("d0", "e"), 0.0)
    facts = DeviceFacts(10, cuts=told, memory=room)
    return coordinator, coordinator.handle(DeviceReady("d0", 10, facts=facts), 0.0)


TOLD = (Cut(1, 0, 100), Cut(2, 0, 200), Cut(3, 0, 300))


@pytest.mark.parametrize(
    ("policy", "room", "cut"),
    [("fleet", 250, 1), ("fleet", 300, 3), ("fleet", None, 3), ("fleet", 99, 3), ("ucb", 250, 3)],
)
def test_who_has_joined_with_another_cut_goes_on_with_that(
    policy: str, room: int | None, cut: int
) -> None:
    """The same that the device came to; a planner that fails leaves it there."""
    coordinator, _ = ready_with(room, TOLD, planner={"policy": policy})
    command = started(coordinator.handle(Planned(1, {}, fault="it failed"), 1.0))
    own = assignments(command, coordinator.settings, {"d0": EdgeBase(4)})
    assert own["d0"].plan.cut_layer == cut


def test_steps_are_timed_with_the_cut_that_fits() -> None:
    training = {"local_steps": 5, "batch_size": 4, "micro_batches": "auto"}
    coordinator, commands = ready_with(250, TOLD, planner={"policy": "fleet"}, training=training)
    (command,) = (command for command in commands if isinstance(command, Rehearse))
    own = assignments(command, coordinator.settings, {"d0": EdgeBase(4)})
    assert own["d0"].plan.cut_layer == 1
