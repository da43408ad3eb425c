"""What a device has loaded serves another link of the same run, and no other run."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from device_agent.agent import DeviceAgent
from device_agent.consent import Consent
from device_agent.loaded import Loaded
from sfl.config import DeviceConfig
from sfl.errors import ConfigError
from sfl.planners.told import Cut
from sfl.transport.device.link import Joined
from tests.house.alone import Alone


def joined(run: str, key: str) -> Joined:
    alone = Alone("vanilla", {"activation": "none", "gradient": "none"}, "fedavg")
    return Joined(run, alone.settings, alone.start(1), key)


def test_what_is_loaded_for_a_run_serves_no_other() -> None:
    first = joined("r", "one")
    stage = SimpleNamespace(assignment=first.assignment)
    loaded = Loaded(first, cast(Any, stage), cast(Any, None), 0)
    assert loaded.fits(first) and loaded.same_data(first)
    assert loaded.fits(replace(first, assignment=replace(first.assignment, round=2)))
    assert not loaded.fits(replace(first, run_key="another"))  # of the same name, begun anew
    settings = first.settings
    lora = settings.lora.model_copy(update={"rank": 1 + settings.lora.rank})
    assert not loaded.fits(replace(first, settings=settings.model_copy(update={"lora": lora})))


def test_a_cut_that_takes_more_memory_than_there_is_is_declined_before_it_is_built() -> None:
    told = joined("r", "one")
    cuts = (Cut(1, 0, 5_000_000), Cut(2, 0, 9_000_000))
    loaded = Loaded(told, cast(Any, None), cast(Any, None), 0, cuts)
    plan = told.assignment.plan
    loaded.check_room(plan.at(1), 8_000_000)
    loaded.check_room(plan.at(2), None)
    with pytest.raises(ConfigError, match=r"cut_layer 2 takes 9 MB.*cut_range"):
        loaded.check_room(plan.at(2), 8_000_000)
    with pytest.raises(ConfigError, match=r"cut_layer 0 was not foretold"):
        loaded.check_room(plan.at(0), 8_000_000)


def test_a_planner_hears_of_no_cut_that_a_device_declines() -> None:
    rules = {"min_cut_layer": 2}
    config = DeviceConfig.model_validate({"name": "d", "edge": "127.0.0.1:1", "consent": rules})
    assert Consent(config).allowed([Cut(1), Cut(2), Cut(3)]) == (Cut(2), Cut(3))


def test_a_device_notices_that_it_is_told_of_another_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DeviceConfig(name="d", edge="127.0.0.1:1", train=tmp_path / "d", cache_dir=tmp_path)
    agent = DeviceAgent(config, insecure=True)
    with caplog.at_level(logging.WARNING):
        agent._enter(joined("r", "one"))
        agent._enter(joined("r", "one"))
        assert agent._came_from.run_key == "one" and not caplog.records
        agent._enter(joined("s", "two"))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "the edge is in another run, s: this device was in r, and begins anew"
    assert agent._came_from.run_key == "two"
