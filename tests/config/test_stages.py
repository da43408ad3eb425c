"""What does not fit together in a run of three tiers is named before anything starts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sfl.config import RunConfig, RunSettings
from sfl.config.codec import CodecChange, unread_roles
from sfl.config.effective import in_full
from sfl.config.load import dump_toml, load_stage, read_run
from sfl.config.node import NOT_OF_STAGES
from sfl.errors import ConfigError
from sfl.plan import TIERED


def settings(**sections: Any) -> RunSettings:
    own = {"run": {"topology": "three_tier"}, "stages": {"cuts": [4]}, "model": {"path": "m"}}
    return RunSettings.model_validate({"devices": [{"name": "a"}], **own, **sections})


TWO: dict[str, Any] = {"run": {"topology": "vanilla"}, "stages": {}}
NO_CUTS = ({"adapters": "shared"}, {"up_mbit": 1.0}, {"down_mbit": 1.0}, {"delay_ms": 50.0})
DEEPER = ("stage_activation", "stage_gradient", "stage_hidden", "stage_tail_gradient")
SHARED = {"stages": {"cuts": [4], "adapters": "shared"}, "training": {"local_steps": 2}}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"planner": {"policy": "fleet"}}, "planner.policy: a cut does not move"),
        ({"aggregation": {"strategy": "flora"}}, "flora adds to the base of every node"),
        ({"stages": {}}, "give the blocks before each stage"),
        ({"run": {"topology": "vanilla"}}, "topology vanilla has no stage behind the edge"),
        *((TWO | {"stages": own}, f"stages.{next(iter(own))}: topology") for own in NO_CUTS),
        *((TWO | {"codec": {key: "int8"}}, f"codec.{key}: in topology vanilla") for key in DEEPER),
        (TWO | {"codec": {"hidden": "int8"}}, "codec.hidden: in topology vanilla no tensor"),
        ({"codec": {"stage_hidden": "int8"}}, "codec.stage_hidden: in topology three_tier no"),
        (
            {"codec": {"schedule": [{"from_round": 2, "stage_tail_gradient": "int8"}]}},
            "codec.schedule.stage_tail_gradient: in topology three_tier no",
        ),
        (
            {"devices": [{"name": "a", "codec": {"tail_gradient": "int8"}}]},
            "devices.a.codec.tail_gradient: in topology three_tier no",
        ),
        (
            {"devices": [{"name": "a"}, {"name": "b", "stage_cuts": [3, 5]}]},
            "all devices have as many stages",
        ),
        (SHARED | {"run": {"topology": "three_tier_u_shaped"}}, "the loss at the last stage"),
        (SHARED | {"training": {}}, "set training.local_steps"),
        (SHARED | {"training": {"local_steps": 2, "max_grad_norm": 1.0}}, "max_grad_norm out"),
        (SHARED | {"recovery": {"snapshot_steps": 1}}, "recovery.snapshot_steps to 0"),
        (SHARED | {"aggregation": {"late_updates": "weighted"}}, "everybody in the same round"),
        (
            SHARED | {"devices": [{"name": "a"}, {"name": "b", "stage_cuts": [3]}]},
            "one place of the last stage",
        ),
        (
            {"devices": [{"name": "a", "stage_cut_range": [5, 6]}]},
            r"devices\.a\.stage_cut_range: 5 to 6 has to contain the stage's cut \[4\]",
        ),
        (
            {"devices": [{"name": "a", "stage_cut_range": [2, 6]}], "stages": {"cuts": [4, 5]}},
            "it is for one stage, and here are 2",
        ),
        (
            TWO | {"devices": [{"name": "a", "stage_cut_range": [2, 6]}]},
            "stage_cut_range: topology vanilla has no stage",
        ),
        (TWO | {"planner": {"policy": "fleet", "costs": "run"}}, "planner.costs: in topology van"),
        ({"planner": {"costs": "run"}}, "planner.costs: policy 'off' does not read it"),
    ],
)
def test_what_does_not_fit_is_named(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        settings(**sections)


@pytest.mark.parametrize("policy", ["off", "fixed", "advice", "pairing"])
def test_planners_that_leave_cuts_where_they_are_work(policy: str) -> None:
    assert settings(planner={"policy": policy}).is_tiered


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped", "three_tier", "three_tier_u_shaped"])
def test_every_role_that_codes_a_tensor_may_have_a_codec(topology: Any) -> None:
    unread = unread_roles(topology)
    codec = {role: "int8" for role in CodecChange.model_fields if role not in unread}
    stages = {"cuts": [4]} if topology in TIERED else {}
    own = settings(codec=codec, run={"topology": topology}, stages=stages)
    taken = own.codecs("a", 1).model_dump()
    assert [taken[role] for role in codec] == ["int8"] * len(codec)


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped", "three_tier", "three_tier_u_shaped"])
def test_a_run_said_in_full_reads_back(topology: str) -> None:
    stages = {"cuts": [4]} if topology in TIERED else {}
    values = {"run": {"topology": topology}, "stages": stages, "model": {"path": "m"}}
    full = in_full(RunConfig.model_validate(values | {"devices": [{"name": "a"}]}))
    assert in_full(read_run(dump_toml(full))).codec == full.codec


@pytest.mark.parametrize(
    ("field", "sections"),
    [
        ("edge.next", {"edge": {"next": "h:7002"}}),
        ("stage.threads", {"stage": {"threads": 2}}),
        ("stage.metrics", {"stage": {"metrics": {"enabled": False}}}),
    ],
)
def test_a_run_of_two_tiers_has_nothing_behind_its_edge(
    field: str, sections: dict[str, Any]
) -> None:
    run = {**TWO, "model": {"path": "m"}, "devices": [{"name": "a"}], **sections}
    with pytest.raises(ValidationError, match=f"{re.escape(field)}: topology vanilla has no stage"):
        RunConfig.model_validate(run)


OF_EDGES = {
    "cloud": "10.0.0.2:7000",
    "service": "10.0.0.2:7000",
    "max_runs": 3,
    "advertise": "stage:7002",
    "snapshots": "s3://bucket/x",
    "connect_timeout": 600.0,
    "serve": {},
    "teacher": "large",
}


@pytest.mark.parametrize("key", OF_EDGES)
def test_a_stage_refuses_what_it_would_not_read(tmp_path: Path, key: str) -> None:
    assert OF_EDGES.keys() == NOT_OF_STAGES.keys()
    file = tmp_path / "stage.toml"
    file.write_text('[stage]\nlisten = "127.0.0.1:0"\n')
    assert load_stage(file).listen == "127.0.0.1:0"
    with pytest.raises(ConfigError, match=rf"stage\.{key}.*{NOT_OF_STAGES[key]}"):
        load_stage(file, [f"stage.{key}={json.dumps(OF_EDGES[key])}"])


def test_a_shared_adapter_fits() -> None:
    assert settings(**SHARED).loss_server == "stage"
