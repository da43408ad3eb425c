"""One adapter for all devices of a stage: each step takes the mean of their gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sfl.errors import LeftBehind, ProtocolError
from sfl.metrics.stats import NodeStats
from sfl.stage.messages import TensorMessage
from sfl.stage.snapshots import Snapshots
from sfl.stage.training import SharedSession, VanillaSession, new_team
from tests.house.shared_stage import NAMES, STEPS, Stage


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture(scope="module")
def wanted() -> dict[str, np.ndarray]:
    return Stage(max_grad_norm=1e9).averaged()


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_step_takes_the_mean_of_all_whoever_comes_first(
    order: tuple[str, ...], wanted: dict[str, np.ndarray]
) -> None:
    stage = Stage()
    team, sessions = stage.shared()
    for step in range(STEPS):
        for name in order:
            assert team.step == step
            sessions[name].handle(stage.sent(name, step))
        assert [session.step for session in sessions.values()] == [step + 1] * 2
    for session in sessions.values():
        same(session.end_round(), wanted)


def test_who_only_asks_for_a_member_s_step_changes_nothing() -> None:
    """The event loop asks, while the compute thread counts: a step must not count twice."""
    stage = Stage()
    _, sessions = stage.shared()
    sessions["a"].handle(stage.sent("a", 0))
    sessions["b"].handle(stage.sent("b", 0))
    assert sessions["a"].step == 1 and sessions["a"].steps_left == STEPS - 1
    assert sessions["a"].stepper.step == 0
    sessions["a"].handle(stage.sent("a", 1))
    assert sessions["a"].step == sessions["a"].stepper.step == 1


def test_nobody_is_ahead_of_the_others() -> None:
    stage = Stage()
    _, sessions = stage.shared()
    sessions["a"].handle(stage.sent("a", 0))
    assert sessions["a"].waits_for(1) == ("b",)
    with pytest.raises(ProtocolError, match="step 1"):
        sessions["a"].handle(stage.sent("a", 1))
    sessions["b"].handle(stage.sent("b", 0))
    assert sessions["a"].waits_for(1) == ()


@pytest.mark.parametrize("done", [1, 2, 3])
def test_who_begins_again_computes_as_before_and_counts_once(
    done: int, wanted: dict[str, np.ndarray]
) -> None:
    stage = Stage()
    team, sessions = stage.shared()
    answers = []
    for step in range(done):
        for name in NAMES:
            (answer, *_) = sessions[name].handle(stage.sent(name, step))
            if name == "b":
                answers.append(answer.message)
    sessions["b"].begin_round(stage.told("b"), stage.values)
    for step in range(done):
        assert sessions["b"].step == step and team.step == done
        (answer, *_) = sessions["b"].handle(stage.sent("b", step))
        again, before = answer.message, answers[step]
        assert isinstance(again, TensorMessage) and isinstance(before, TensorMessage)
        assert again.loss == before.loss and again.rows is not None and before.rows is not None
        assert torch.equal(again.rows, before.rows)
    for step in range(done, STEPS):
        for name in NAMES:
            sessions[name].handle(stage.sent(name, step))
    same(sessions["b"].end_round(), wanted)


def test_a_gradient_that_was_given_counts_once_where_its_step_is_open(
    wanted: dict[str, np.ndarray],
) -> None:
    stage = Stage()
    _, sessions = stage.shared()
    sessions["a"].handle(stage.sent("a", 0))
    sessions["a"].begin_round(stage.told("a"), stage.values)
    for step in range(STEPS):
        for name in NAMES:
            sessions[name].handle(stage.sent(name, step))
    same(sessions["a"].end_round(), wanted)


def test_the_others_go_on_without_who_does_not_come_back() -> None:
    stage = Stage()
    team, sessions = stage.shared()
    sessions["a"].handle(stage.sent("a", 0))
    team.leave_out("b")
    assert team.step == 1 and sessions["a"].step == 1
    with pytest.raises(LeftBehind, match="goes on without device b"):
        sessions["b"].begin_round(stage.told("b"), stage.values)


def test_another_process_serves_who_begins_a_round_again(
    tmp_path: Path, wanted: dict[str, np.ndarray]
) -> None:
    stage, kept = Stage(), Snapshots(tmp_path, "run")
    _, sessions = stage.shared(kept)
    for step in range(STEPS):
        for name in NAMES:
            sessions[name].handle(stage.sent(name, step))
    later, again = stage.shared(Snapshots(tmp_path, "run"))
    assert later.step == STEPS
    for step in range(STEPS):
        again["b"].handle(stage.sent("b", step))
    same(again["b"].end_round(), wanted)


def test_another_process_knows_who_was_left_out_of_a_round_that_it_takes_back(
    tmp_path: Path,
) -> None:
    stage, kept = Stage(), Snapshots(tmp_path, "run")
    team, sessions = stage.shared(kept)
    for name in NAMES:
        sessions[name].handle(stage.sent(name, 0))
    team.leave_out("b")
    for step in range(1, STEPS):
        sessions["a"].handle(stage.sent("a", step))
    wanted = sessions["a"].end_round()
    with pytest.raises(LeftBehind, match="goes on without device b"):
        stage.shared(Snapshots(tmp_path, "run"))
    model, bank = stage.model()
    later = new_team(stage.told("a"), model, bank, stage.settings, Snapshots(tmp_path, "run"))
    stats = NodeStats("s", "stage")
    again = SharedSession(
        "a", stage.told("a"), model, bank, stage.settings, stats, later, holder="stage"
    )
    again.begin_round(stage.told("a"), stage.values)
    for step in range(STEPS):
        again.handle(stage.sent("a", step))
    same(again.end_round(), wanted)


def test_the_batches_of_all_in_one_equal_one_after_the_other_to_rounding() -> None:
    """Concatenating the users' batches and accumulating their gradients is the same step."""
    stage = Stage("lean")
    _, sessions = stage.shared()
    model, bank = stage.model()
    stats = NodeStats("s", "stage")
    whole = VanillaSession("a", stage.told("a"), model, bank, stage.settings, stats, holder="stage")
    whole.begin_round(stage.told("a"), stage.values)
    for step in range(STEPS):
        one = stage.sent("a", step)
        other = replace(one, rows=one.rows.flip(0).clone() if one.rows is not None else None)
        assert one.rows is not None and other.rows is not None and one.labels is not None
        both = replace(
            one,
            lengths=one.lengths * 2,
            rows=torch.cat([one.rows, other.rows]),
            labels=np.concatenate([one.labels, one.labels]),
        )
        sessions["a"].handle(one)
        sessions["b"].handle(other)
        whole.handle(both)
    found, wanted = sessions["a"].end_round(), whole.end_round()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=2e-3, atol=2e-5, err_msg=name)
    assert any(not np.array_equal(array, stage.values[name]) for name, array in wanted.items())


def test_another_process_keeps_what_was_given_by_who_was_left_out(tmp_path: Path) -> None:
    """The others begin again, and steps that were taken with its gradients stay as they were."""
    stage = Stage()
    team, sessions = stage.shared(Snapshots(tmp_path, "run"))
    for name in NAMES:
        sessions[name].handle(stage.sent(name, 0))
    sessions["a"].handle(stage.sent("a", 1))
    team.leave_out("b")
    assert team.step == 2
    model, bank = stage.model()
    later = new_team(stage.told("a"), model, bank, stage.settings, Snapshots(tmp_path, "run"))
    told = replace(stage.told("a"), together=("a",))
    stats = NodeStats("s", "stage")
    again = SharedSession("a", told, model, bank, stage.settings, stats, later, holder="stage")
    again.begin_round(told, stage.values)
    assert later.step == 1
    for step in range(STEPS):
        again.handle(stage.sent("a", step))
        if step == 1:
            assert later.step == 2
    sessions["a"].handle(stage.sent("a", 2))
    same(again.end_round(), sessions["a"].end_round())
