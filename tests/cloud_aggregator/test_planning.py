"""The cloud asks a planner for each round, and a planner that fails loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloud_aggregator.effective import EffectiveConfig
from cloud_aggregator.planning import Planning
from sfl.adapters.manifest import AdapterManifest, ParameterSpec
from sfl.config import RunConfig
from sfl.errors import ConfigError
from sfl.planners import PLANNERS, Choice, Cut, Planner, Proposal, State
from sfl.planners.plans import Plan
from sfl.report.projection import RunProjection
from sfl.rounds import Coordinator, DeviceJoined, DeviceReady, EdgeReady, Planned, PlanRound
from sfl.rounds.journal import Entry
from sfl.rounds.values import DeviceFacts
from tests.house.rebuilt import Rebuilt

MANIFEST = AdapterManifest(
    tuple(
        ParameterSpec(f"m.layers.{block}.{layer}.lora_{side}.weight", shape, "zeros", fan_in)
        for block in range(4)
        for layer, inputs in (("q_proj", 64), ("down_proj", 172))
        for side, shape, fan_in in (("A", (8, inputs), inputs), ("B", (64, 8), 8))
    ),
    4,
    {},
)
CUTS = tuple(Cut(number, 0, 100 * number) for number in range(1, 4))


def asked(folder: Path, facts: dict[str, Any] | None = None, **planner: Any) -> Asked:
    config = RunConfig.model_validate(
        {
            "model": {"path": "m"},
            "devices": [{"name": f"d{n}"} for n in range(3)],
            "planner": {"policy": "fleet", **planner},
        }
    )
    return Asked(config, folder, facts or {})


class Asked:
    """A run whose devices are ready, and its planner's answer to round 1."""

    def __init__(self, config: RunConfig, folder: Path, facts: dict[str, Any]) -> None:
        told = RunProjection()
        adapter: Any = SimpleNamespace(manifest=MANIFEST)
        self.planning = Planning(EffectiveConfig(config, folder), told, adapter, None, None)
        self.coordinator: Coordinator = Rebuilt(config.settings)
        self.coordinator.handle(EdgeReady("e", 4), 0.0)
        for name in config.names:
            event = DeviceReady(name, 10, facts=DeviceFacts(10, **facts))
            told.take(Entry(0.0, event))
            self.coordinator.handle(DeviceJoined(name, "e"), 0.0)
            self.commands = self.coordinator.handle(event, 0.0)

    def answer(self) -> Planned:
        (question,) = (one for one in self.commands if isinstance(one, PlanRound))
        return self.planning.asked(question, self.coordinator)()


def test_a_first_round_stays_as_configured_and_says_that_it_is_a_guess(tmp_path: Path) -> None:
    planned = asked(tmp_path, {"cuts": CUTS}).answer()
    assert {name: choice.at for name, choice in planned.choices.items()} == {
        f"d{n}": (1, 0) for n in range(3)
    }
    plan = Plan.from_json(planned.line)
    assert plan.state is not None and "a guess" in plan.decision.why.note
    assert plan.state.workload.hidden_size == 64  # the least that a layer takes in
    lora = 4 * (8 * (64 + 64) + 8 * (172 + 64))
    assert {device.cost.lora_bytes for device in plan.state.devices} == {lora}
    assert PLANNERS["fleet"].decide(plan.state).devices == planned.choices
    assert not planned.fault and not planned.unfit


def test_before_the_first_step_its_tokens_are_those_of_the_examples(tmp_path: Path) -> None:
    line = asked(tmp_path, {"num_tokens": 500, "num_tokens_kept": 70}).answer().line
    state = Plan.from_json(line).state
    assert state is not None and state.workload.tokens == 8 * 7  # 10 examples each


def test_advice_chooses_nothing_and_has_its_line(tmp_path: Path) -> None:
    planned = asked(tmp_path, policy="advice").answer()
    assert planned.choices == {} and planned.order == ()
    assert json.loads(planned.line)["advice"] is True


def test_whom_nothing_fits_takes_no_part(tmp_path: Path) -> None:
    planned = asked(tmp_path, {"cuts": CUTS, "memory": 99}).answer()
    assert {choice.takes_part for choice in planned.choices.values()} == {False}
    assert planned.unfit.keys() == {"d0", "d1", "d2"}


def _raises(state: State) -> Proposal:
    raise RuntimeError("out\nof ideas")


def _illegal(state: State) -> Proposal:
    return Proposal({device.name: Choice(77) for device in state.able})


def _greedy(state: State) -> Proposal:
    return Proposal({device.name: Choice(1, share=1.5) for device in state.able})


def _unheard_of(state: State) -> Proposal:
    return Proposal({device.name: Choice(1, activation="") for device in state.able})


@pytest.mark.parametrize(
    ("propose", "words"),
    [
        (_raises, "RuntimeError: out"),
        (_illegal, r"\(77, 0\) is no legal cut"),
        (_greedy, "a share of 1.5 of its link"),
        (_unheard_of, "is not a stage"),
    ],
)
def test_a_planner_that_fails_leaves_all_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    propose: Callable[[State], Proposal],
    words: str,
) -> None:
    monkeypatch.setitem(dict_of(PLANNERS), "fleet", Planner("fleet", propose))
    planned = asked(tmp_path).answer()
    assert planned.choices == {} and planned.line == "" and "\n" not in planned.fault
    assert planned.fault.startswith("planner 'fleet' failed, so that cuts stay: ")
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(planned.fault)


def dict_of(registry: Any) -> dict[str, Planner]:
    built_in: dict[str, Planner] = registry.built_in
    return built_in


def test_what_was_recorded_is_chosen(tmp_path: Path) -> None:
    first = asked(tmp_path, policy="random").answer()
    file = tmp_path / "plans.jsonl"
    file.write_text(first.line + "\n")
    again = asked(tmp_path, policy="recorded", plans=str(file)).answer()
    assert again.choices == first.choices


def test_a_file_that_was_not_recorded_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"planner\.plans"):
        asked(tmp_path, policy="recorded", plans=str(tmp_path / "none.jsonl"))
