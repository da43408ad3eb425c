"""Rounds at other cuts and ranks: with the moments handed over, the fixed run's adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from sfl.adapters.names import is_lora_a
from sfl.adapters.rank import shapes_at_rank
from sfl.errors import ProtocolError
from sfl.plan import Plan
from sfl.rounds.values import BEGINNING
from sfl.stage.device import DeviceStage
from sfl.stage.remembered import GoOn
from tests.house.alone import Alone

Values = Mapping[str, np.ndarray]
UNCODED = {"activation": "none", "gradient": "none"}


def trained(
    cuts: Sequence[int],
    ranks: Sequence[int],
    topology: str = "vanilla",
    codec: Mapping[str, str] = UNCODED,
) -> dict[str, np.ndarray]:
    """A round at each of these cuts and ranks, from where the one before it ended."""
    run = Alone(topology, codec)
    session, stage = run.session(within=0), run.stage()
    link = run.ends(stage, session)
    trainer = run.trainer(link, stage)
    values: Values = run.first
    for round_, (cut, rank) in enumerate(zip(cuts, ranks, strict=True), 1):
        own = run.start(round_)
        plan = own.plan.at(cut)
        own = replace(own, plan=plan, rank=rank, scaling=run.settings.lora.alpha / rank)
        order = link.begin_round(own, at_rank(values, rank))
        values = link.end_round(trainer.run_round(order))
    return dict(values)


def at_rank(values: Values, rank: int) -> dict[str, np.ndarray]:
    """The first components, and new ones that are nothing yet where there are too few."""
    found = {}
    for name, shape in shapes_at_rank(values, rank).items():
        fill = 0.01 if is_lora_a(name) else 0.0
        wider = np.full(shape, fill, np.float32)
        common = tuple(slice(min(a, b)) for a, b in zip(shape, values[name].shape, strict=True))
        wider[common] = values[name][common]
        found[name] = wider
    return found


SEQUENCES = [
    ((1, 2, 0), (4, 4, 4)),
    ((2, 0, 1), (4, 2, 4)),
    ((0, 1, 1), (4, 2, 2)),
]


@pytest.mark.parametrize(("cuts", "ranks"), SEQUENCES)
def test_any_sequence_of_cuts_and_ranks_gives_the_fixed_runs_adapter(
    cuts: tuple[int, ...], ranks: tuple[int, ...]
) -> None:
    moved, fixed = trained(cuts, ranks), trained((1, 1, 1), ranks)
    assert moved.keys() == fixed.keys()
    assert all(np.array_equal(moved[name], fixed[name]) for name in fixed)


def test_the_middle_of_a_u_moves_too() -> None:
    cuts, ranks = (1, 0, 1), (4, 4, 4)
    moved, fixed = trained(cuts, ranks, "u_shaped"), trained((1, 1, 1), ranks, "u_shaped")
    assert all(np.array_equal(moved[name], fixed[name]) for name in fixed)


def test_moments_that_are_left_behind_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts, ranks = (1, 2, 0), (4, 4, 4)
    fixed = trained((1, 1, 1), ranks)
    monkeypatch.setattr(GoOn, "of_blocks", lambda *of: {})
    moved = trained(cuts, ranks)
    assert not all(np.array_equal(moved[name], fixed[name]) for name in fixed)


@pytest.mark.parametrize("codec", ["compact", "delta(bigram) | int8"])
def test_what_codecs_remember_is_of_one_cut(codec: str) -> None:
    """Both ends forget by one rule: else a row would be told as a change of another cut's."""
    roles = {"activation": codec, "gradient": "int8", "adapter": "int8"}
    moved = trained((1, 2, 0, 1), (4, 4, 4, 4), codec=roles)
    fixed = trained((1, 1, 1, 1), (4, 4, 4, 4), codec=roles)
    assert all(np.isfinite(moved[name]).all() for name in fixed)
    assert all(np.abs(moved[name] - fixed[name]).max() < 0.2 for name in fixed)


def test_what_stays_is_not_made_anew() -> None:
    run = Alone("vanilla", UNCODED)
    session, stage = run.session(within=0), run.stage()
    adapter, optimizer, blocks = session.adapter, session.optimizer, stage.front.model
    link = run.ends(stage, session)
    link.begin_round(run.start(1), run.first)
    assert not stage.take(run.start(1))
    assert session.adapter is adapter and session.optimizer is optimizer
    lower = replace(run.start(2), rank=2, after=BEGINNING)
    assert stage.take(lower) and stage.front.model is blocks
    link.begin_round(lower, at_rank(run.first, 2))
    assert session.adapter is not adapter and session.optimizer is not optimizer


def test_a_device_knows_the_shapes_of_blocks_that_it_has_not_read() -> None:
    run = Alone("vanilla", UNCODED)
    stage, blocks = run.stage(), run.folder.num_layers
    for cut_layer, rank in ((0, 4), (2, 4), (1, 2), (0, 8)):
        told = replace(run.start(2), plan=Plan.split(blocks, cut_layer, 0, "vanilla"), rank=rank)
        before = stage.shapes_of(told)
        stage.take(told)
        assert sorted(before) == sorted(stage.shapes_of(told))
        assert bool(before) == bool(cut_layer)


def test_a_device_refuses_a_plan_of_another_model() -> None:
    run = Alone("vanilla", UNCODED)
    blocks = run.folder.num_layers
    other = replace(run.start(0), plan=Plan.split(blocks + 1, 1, 0, "vanilla"))
    words = f"{blocks + 1} blocks: the model of this device has {blocks}"
    with pytest.raises(ProtocolError, match=words):
        DeviceStage("d", other, run.folder, run.settings)
    with pytest.raises(ProtocolError, match=words):
        run.stage().take(replace(other, plan=Plan.split(blocks + 1, 2, 0, "vanilla")))
