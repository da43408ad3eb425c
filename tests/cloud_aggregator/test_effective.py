"""The settings in effect: what a device says of itself changes its own entry, and no more."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cloud_aggregator.effective import EffectiveConfig
from sfl.config import RunConfig
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats


class Unwalked(tuple[object, ...]):
    """Devices that nobody may go through."""

    def __iter__(self) -> None:  # type: ignore[override]
        pytest.fail("a device that says something costs a walk through all devices")


def said(name: str, **changes: str | int) -> NodeSnapshot:
    return dataclasses.replace(NodeStats(name, "device").snapshot(), **changes)


def config(folder: Path) -> EffectiveConfig:
    devices = [{"name": f"d{number}", "cut_layer": 1} for number in range(3)]
    return EffectiveConfig(
        RunConfig.model_validate({"model": {"path": "m"}, "devices": devices}), folder
    )


def test_what_a_device_does_otherwise_stands_in_its_entry(tmp_path: Path) -> None:
    own = config(tmp_path)
    before = own.current
    own.device_said(said("d1", dtype="float32", quantised="none", micro_batches=3))
    assert [entry.micro_batches for entry in own.current.devices] == [1, 3, 1]
    assert before.device("d1").micro_batches == 1
    assert own.current.devices[::2] == before.devices[::2]
    (written,) = tmp_path.iterdir()
    assert written.read_text().count("micro_batches = 3") == 1


def not_asked() -> None:
    raise AssertionError("nothing is to be written")


def test_what_was_said_is_kept_before_it_is_written(tmp_path: Path) -> None:
    own, there = config(tmp_path), list[list[Path]]()
    own.device_said(said("d1", micro_batches=3), lambda: there.append([*tmp_path.iterdir()]))
    assert there == [[]] and [*tmp_path.iterdir()]


def test_who_says_what_is_known_or_is_no_device_changes_nothing(tmp_path: Path) -> None:
    own = config(tmp_path)
    own.current.device("d1")  # from here on the names are known
    before = own.current
    own.current.__dict__["devices"] = Unwalked(before.devices)
    own.device_said(said("d1", dtype="float32", quantised="none"), not_asked)
    own.device_said(said("stranger", dtype="float32", micro_batches=3), not_asked)
    assert own.current is before and not list(tmp_path.iterdir())
