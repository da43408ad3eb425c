"""What does not fit together in a run of three tiers is named before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sfl.config import RunSettings


def settings(**sections: Any) -> RunSettings:
    own = {"run": {"topology": "three_tier"}, "stages": {"cuts": [4]}, "model": {"path": "m"}}
    return RunSettings.model_validate({"devices": [{"name": "a"}], **own, **sections})


SHARED = {"stages": {"cuts": [4], "adapters": "shared"}, "training": {"local_steps": 2}}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"planner": {"policy": "fleet"}}, "planner.policy: a cut does not move"),
        ({"aggregation": {"strategy": "flora"}}, "flora adds to the base of every node"),
        ({"stages": {}}, "give the blocks before each stage"),
        ({"run": {"topology": "vanilla"}}, "topology vanilla has no stage behind the edge"),
        (
            {"devices": [{"name": "a"}, {"name": "b", "stage_cuts": [3, 5]}]},
            "all devices have as many stages",
        ),
        (SHARED | {"run": {"topology": "three_tier_u_shaped"}}, "the loss at the last stage"),
        (SHARED | {"training": {}}, "set training.local_steps"),
        (SHARED | {"training": {"local_steps": 2, "max_grad_norm": 1.0}}, "max_grad_norm out"),
        (SHARED | {"recovery": {"snapshot_steps": 1}}, "recovery.snapshot_steps to 0"),
        (SHARED | {"aggregation": {"late_updates": "weighted"}}, "everybody in the same round"),
    ],
)
def test_what_does_not_fit_is_named(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        settings(**sections)


@pytest.mark.parametrize("policy", ["off", "fixed", "advice", "pairing"])
def test_planners_that_leave_cuts_where_they_are_work(policy: str) -> None:
    assert settings(planner={"policy": policy}).is_tiered


def test_a_shared_adapter_fits() -> None:
    assert settings(**SHARED).loss_server == "stage"
